"""Trials with words: the dataset and the collator that every text pipeline uses, and the shuffled-labels twin."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.description import DatasetDescription
from datasets.store import Trial, open_store
from utils.errors import UserError


class EEGTextDataset(Dataset):
    """Trials of one split.

    Parameters
    ----------
    data_dir : str
        A store of this project, or CBraMod's LMDB.
    mode : {"train", "val", "test"}
    tokens : (N, n, 200) tensor, optional
        Reduced encoder tokens of all trials, from the cache; items then carry these and the signal stays unread.

    Items are dicts: `x` (the tokens, or the (n_chans, n_patches, 200) float32 signal in units of 100 µV), `label` and
    `index`. `trials[i]` tells item i's subject, session, run and number; `labels` may be replaced (see
    `shuffled_labels`).

    Raises
    ------
    UserError
        If the store has other electrodes or labels than the dataset.
    """

    description: DatasetDescription  # set by each dataset

    def __init__(self, data_dir: str, mode: str, tokens: torch.Tensor | None = None):
        self.store = open_store(data_dir)
        self.trials = self.store.trials(mode)
        self.labels = [trial.label for trial in self.trials]
        self.tokens = tokens
        self.mode = mode
        of = self.store.meta.get("dataset", self.description.name)
        if of != self.description.name:
            raise UserError(f"{data_dir} is a store of {of}; expected {self.description.name}")
        n_chans = len(self.description.montage.electrodes)
        shape = tuple(self.signal(0).shape) if self.trials else (n_chans, 0, 200)
        if len(shape) != 3 or shape[::2] != (n_chans, 200):
            raise UserError(f"{data_dir}: trials are {shape}; {self.description.name} has ({n_chans}, patches, 200)")
        wrong = set(self.labels) - set(range(len(self.description.classes)))
        if wrong:
            raise UserError(
                f"{data_dir}: label {min(wrong)} in {mode}; expected 0 to {len(self.description.classes) - 1}"
            )
        electrodes = self.store.meta.get("electrodes", self.description.montage.electrodes)
        if tuple(electrodes) != self.description.montage.electrodes:
            raise UserError(f"{data_dir} has other electrodes than {self.description.name}")

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> dict:
        x = self.signal(index) if self.tokens is None else self.tokens[index]
        return {"x": x, "label": self.labels[index], "index": index}

    def truth(self, index: int) -> dict:
        """Where a trial comes from and what it is, for a line of `decoded.jsonl`."""
        trial, label = self.trials[index], self.labels[index]
        return {
            "index": index,
            "subject": trial.subject,
            "session": trial.session,
            "run": trial.run,
            "trial": trial.trial,
            "true_label": label,
            "true_name": self.description.class_name(label),
        }

    def spread(self, n: int) -> list[int]:
        """`n` trials spread evenly over the split, or all where there are fewer, which is said.

        Raises
        ------
        UserError
            If the split is empty.
        """
        if not len(self):
            raise UserError(f"{self.store.path} has no {self.mode} trials")
        if n > len(self):
            print(f"notice: --num_samples {n}, but {self.mode} has {len(self)} trials; all are used")
            n = len(self)
        return np.linspace(0, len(self) - 1, n).round().astype(int).tolist()

    def signal(self, index: int) -> torch.Tensor:
        """(n_chans, n_patches, 200) float32, units of 100 µV; a copy, since the mapped file is read-only."""
        return torch.from_numpy(self.store.read(self.trials[index]).copy())


class TextCollator:
    """Batches items and attaches tokenised targets.

    Parameters
    ----------
    description : DatasetDescription
    tokenizer : transformers tokenizer
    seed : int
        With `epoch`, decides which phrasing a trial gets; the choice depends on nothing else.

    Batches are dicts: `x` (B, …), `label` (B,), `index` (B,), `target_ids` (B, T) int64, `target_mask` (B, T) bool.
    Every target ends with the end-of-sequence token. The mask, and never a token id, says what is padding: TinyLlama's
    padding token is its end token, and masking by id would remove the lesson to stop.
    """

    def __init__(self, description: DatasetDescription, tokenizer, seed: int = 0):
        self.seed, self.epoch = seed, 0
        self.pad_id = tokenizer.eos_token_id  # any id will do: padded places are masked
        self.target_ids = {label: [target_ids(text, tokenizer) for text in description.phrasings[label]]
                           for label in description.phrasings}  # fmt: skip

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        targets = []
        for item in items:
            phrasings = self.target_ids[item["label"]]
            rng = np.random.default_rng((self.seed, self.epoch, item["index"]))
            targets.append(phrasings[rng.integers(len(phrasings))])
        longest = max(map(len, targets))
        return {
            "x": torch.stack([item["x"] for item in items]),
            "label": torch.tensor([item["label"] for item in items]),
            "index": torch.tensor([item["index"] for item in items]),
            "target_ids": torch.tensor([t + [self.pad_id] * (longest - len(t)) for t in targets]),
            "target_mask": torch.tensor([[True] * len(t) + [False] * (longest - len(t)) for t in targets]),
        }


def target_ids(text: str, tokenizer) -> list[int]:
    """Token ids of an answer, ended by the end-of-sequence token."""
    return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def shuffled_labels(trials: Sequence[Trial], seed: int) -> list[int]:
    """Labels that say nothing about the trials: the twin that every score is printed beside.

    Within each person and each true class the labels are dealt out in equal shares of that person's classes, and every
    label as often as it was there (where classes are equally frequent), so shuffled and true labels are independent by
    construction and not just on average. A pipeline whose training or selection never sees the test trials scores at
    chance on such labels; one with a leak does not.

    Parameters
    ----------
    trials : sequence of Trial
    seed : int

    Returns
    -------
    list of int, in the order of `trials`.
    """
    rng = np.random.default_rng(seed)
    true = np.array([trial.label for trial in trials])
    subjects = np.array([trial.subject for trial in trials])
    shuffled = true.copy()
    for subject in np.unique(subjects):
        classes = np.unique(true[subjects == subject])
        columns = rng.permutation(classes)
        for row, label in enumerate(rng.permutation(classes)):  # a Latin square, its rows as long as needed
            places = rng.permutation(np.flatnonzero((subjects == subject) & (true == label)))
            shuffled[places] = columns[(row + np.arange(len(places))) % len(classes)]
    return shuffled.tolist()
