"""BCIC-IV-2a as arrays: which person is in which split, how many trials there should be, and the plain loader."""

import warnings

import torch
from torch.utils.data import Dataset

from datasets.store import open_store

# __getitems__ hands out tensors over read-only memory, and collation copies them before anybody can write
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

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
        """What a `DataLoader` fetches: views, since collating copies them into the batch at once."""
        trials = [self.trials[index] for index in indices]
        return [(torch.from_numpy(self.store.read(trial)), trial.label) for trial in trials]
