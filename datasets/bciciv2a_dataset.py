"""BCIC-IV-2a as arrays: which person is in which split, how many trials there should be, and the plain loader."""

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.store import open_store

SPLIT_OF_SUBJECT = {
    **dict.fromkeys(("A01", "A02", "A03", "A04", "A05"), "train"),
    **dict.fromkeys(("A06", "A07"), "val"),
    **dict.fromkeys(("A08", "A09"), "test"),
}
CALIBRATION_STRUCTS = 3  # what the published preprocessing drops from every file, A04T's real runs among them
EXPECTED_TRIALS = {
    "published": {"train": 2784, "val": 1152, "test": 1152},
    "all": {"train": 2880, "val": 1152, "test": 1152},
}


class BCICIV2aDataset(Dataset):
    """Trials of one split for a classifier.

    Parameters
    ----------
    data_dir : str
        A store of `prepare_data.py`, or CBraMod's LMDB.
    mode : {"train", "val", "test"}

    Items are `(x, label)`: a (22, 4, 200) float32 tensor in units of 100 µV, and an int. `trials[i]` tells item i's
    subject, session, run and trial number.
    """

    def __init__(self, data_dir: str, mode: str):
        self.store = open_store(data_dir)
        self.trials = self.store.trials(mode)

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        trial = self.trials[index]
        # a copy, since the mapped samples are read-only and a caller may work in place
        return torch.from_numpy(self.store.read(trial).copy()), trial.label

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """What a `DataLoader` fetches: the rows of one new batch, each copied once from the mapped file."""
        trials = [self.trials[index] for index in indices]
        batch = np.stack([self.store.read(trial) for trial in trials])  # (B, 22, 4, 200)
        return list(zip(torch.from_numpy(batch).unbind(), (trial.label for trial in trials), strict=True))

    @staticmethod
    def collate(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 22, 4, 200) and (B,); for `DataLoader(dataset, collate_fn=dataset.collate)`, which copies nothing again."""
        batch = items[0][0]._base
        if batch is None or len(batch) != len(items) or any(x._base is not batch for x, _ in items):
            batch = torch.stack([x for x, _ in items])
        return batch, torch.tensor([label for _, label in items])
