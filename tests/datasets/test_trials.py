import numpy as np
import pytest
import torch
from datasets.text import TextCollator, shuffled_labels

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.description import DATASETS, load_dataset
from datasets.store import Trial


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_phrasing_and_prompt_belongs_to_one_class(name):
    description, loader = load_dataset(name)
    assert loader.description is description
    for label in range(len(description.classes)):
        assert len(description.phrasings[label]) >= 3
        for text in (*description.phrasings[label], description.image_prompts[label]):
            if text in description.phrasings[label]:
                assert description.keyword_label(text) == label, text
        assert description.image_prompt(description.canonical[label]) == description.image_prompts[label]
    assert description.user_prompt.count("{eeg}") == 1
    codes = description.montage.brain_regions
    assert [codes[i] for i in description.montage.sorted_indices] == sorted(codes)


def test_bcic_says_where_the_rhythm_changes():
    for label, place in ((0, "right central"), (1, "left central"), (2, "midline"), (3, "both sides")):
        assert all(place in text for text in BCIC.phrasings[label])


@pytest.mark.parametrize(
    "text, label",
    [("the LEFT HAND moved", 0), ("a foot", 2), ("footstool and mouthful", -1), ("left hand and right hand", -1),
     ("right fist, right hand, tongue", 1), ("", -1), ("lefthand", -1), ("left-hand\nleft\nhand", 0), ("tongue, mouth and feet", 3)],
)  # fmt: skip
def test_keywords_match_whole_words_and_ties_are_no_class(text, label):
    assert BCIC.keyword_label(text) == label


def test_a_text_without_a_class_is_its_own_prompt():
    assert BCIC.image_prompt("colourless green ideas") == "colourless green ideas"


class WordTokenizer:
    """Words to numbers; 2 ends a sentence and pads, as TinyLlama's does."""

    eos_token_id = pad_token_id = 2

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return type("Ids", (), {"input_ids": [3 + sum(map(ord, w)) % 100 for w in text.split()]})


def items(n):
    return [{"x": torch.full((2, 200), float(k)), "label": k % 4, "index": k} for k in range(n)]


def test_targets_end_with_the_end_token_inside_the_mask():
    batch = TextCollator(BCIC, WordTokenizer())(items(8))
    assert batch["x"].shape == (8, 2, 200) and batch["label"].tolist() == [0, 1, 2, 3] * 2
    assert batch["target_ids"].shape == batch["target_mask"].shape
    for ids, mask in zip(batch["target_ids"], batch["target_mask"], strict=True):
        kept = ids[mask]
        assert kept[-1] == 2 and (kept[:-1] != 2).all()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded on the right


def test_a_phrasing_depends_on_seed_epoch_and_trial_only():
    collator = TextCollator(BCIC, WordTokenizer(), seed=1)
    together = collator(items(40))

    def target(batch, i):
        return batch["target_ids"][i][batch["target_mask"][i]].tolist()

    assert all(target(together, i) == target(collator([item]), 0) for i, item in enumerate(items(40)))
    collator.epoch = 1
    assert any(target(together, i) != target(collator(items(40)), i) for i in range(40))


def test_shuffled_labels_say_nothing_about_the_true_ones():
    trials = [Trial(f"{s}{k}", k % 4, s, "T", 1, k) for s in ("A01", "A02") for k in range(72)]
    shuffled = np.array(shuffled_labels(trials, seed=3))
    true = np.array([t.label for t in trials])
    for subject in range(2):
        of = slice(72 * subject, 72 * subject + 72)
        table = np.zeros((4, 4))
        np.add.at(table, (true[of], shuffled[of]), 1)
        assert (np.abs(table - 4.5) <= 0.5).all()
        assert table.sum(axis=0).tolist() == table.sum(axis=1).tolist() == [18] * 4
    assert shuffled.tolist() == shuffled_labels(trials, seed=3) != shuffled_labels(trials, seed=4)
