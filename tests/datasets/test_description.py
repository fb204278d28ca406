import pytest

from datasets import description as module
from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset
from datasets.description import DATASETS, SPLITS, load_description, with_words
from datasets.faced_llm_dataset import FACEDLLMDataset
from datasets.visual_imagery_llm_dataset import VisualImageryLLMDataset


@pytest.mark.parametrize("name", with_words())
def test_every_phrasing_and_prompt_belongs_to_one_class(name):
    description = load_description(name)
    assert description.name == name and len(set(description.classes)) == len(description.classes)
    for label in range(len(description.classes)):
        assert len(description.phrasings[label]) >= 3
        for text in description.phrasings[label]:
            assert description.keyword_label(text) == label, text
        assert description.image_prompt(description.canonical[label]) == description.image_prompts[label]
    assert description.user_prompt.count("{eeg}") == 1
    assert len(description.tasks) in (0, len(description.classes))
    everybody = [person for split in SPLITS for person in description.people.get(split, ())]
    assert len(set(everybody)) == len(everybody)


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_electrode_is_in_one_region_and_regions_follow_each_other(name):
    montage = load_description(name).montage
    assert sorted(e for electrodes in montage.topology.values() for e in electrodes) == sorted(montage.electrodes)
    codes = montage.brain_regions
    assert [codes[i] for i in montage.sorted_indices] == sorted(codes)
    in_order = [montage.electrodes[i] for i in montage.sorted_indices]
    assert in_order == [e for code in sorted(montage.topology) for e in montage.topology[code]]


def test_the_loaders_have_their_datasets_description():
    for name, loader in (("BCICIV2a", BCICIV2aLLMDataset), ("VI", VisualImageryLLMDataset), ("FACED", FACEDLLMDataset)):
        assert loader.description is load_description(name)


def test_a_description_can_be_registered_without_a_module(monkeypatch):
    monkeypatch.setitem(module.DATASETS, "mine", BCIC)
    assert load_description("mine") is BCIC


@pytest.mark.parametrize("name", ["BCICIV2a", "BCICIV2b"])
def test_bcic_says_where_the_rhythm_changes(name):
    phrasings = load_description(name).phrasings
    for label, place in ((0, "right central"), (1, "left central"), (2, "midline"), (3, "both sides")):
        assert all(place in text for text in phrasings.get(label, ()))
    assert set(phrasings) == set(range(len(load_description(name).classes)))


@pytest.mark.parametrize(
    "text, label",
    [("the LEFT HAND moved", 0), ("a foot", 2), ("footstool and mouthful", -1), ("left hand and right hand", -1),
     ("right fist, right hand, tongue", 1), ("", -1), ("lefthand", -1), ("left-hand\nleft\nhand", 0),
     ("tongue, mouth and feet", 3)],
)  # fmt: skip
def test_keywords_match_whole_words_and_ties_are_no_class(text, label):
    assert BCIC.keyword_label(text) == label


def test_a_text_without_a_class_is_its_own_prompt():
    assert BCIC.image_prompt("colourless green ideas") == "colourless green ideas"


def test_a_person_has_the_published_split_or_none():
    assert [BCIC.split_of(person) for person in ("A01", "A05", "A06", "A07", "A08", "A09", "A10")] == [
        "train", "train", "val", "val", "test", "test", None,
    ]  # fmt: skip
    vi = load_description("VI")
    assert [vi.split_of(f"S{k:02d}") for k in range(1, 23)] == ["train"] * 16 + ["val"] * 3 + ["test"] * 3
