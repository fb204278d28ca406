"""BCIC-IV-2a for a classifier: the patches that CSBrain reads, and a label."""

from pathlib import Path

from datasets.bciciv2a_llm_dataset import DESCRIPTION
from datasets.splits import split_trials
from datasets.store import open_store
from utils.signals import to_patches


class BCICIV2aDataset:
    """Trials of one split for a classifier.

    data_dir : str. A store of `prepare_data.py`, or CBraMod's LMDB.
    mode : {"train", "val", "test"}
    protocol : str. See `datasets.splits`.

    Items are `(x, label)`: a (22, 4, 200) float32 tensor (200 Hz, units of 100 µV), and an int. `trials[i]` tells item
    i's subject, session, run and trial number.
    """

    def __init__(self, data_dir: str | Path, mode: str, protocol: str = "published"):
        self.store = open_store(data_dir)
        self.trials = split_trials(self.store, DESCRIPTION, protocol)[mode]

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> tuple:
        import torch  # slow to import, and a script's -h reads the datasets' files

        trial = self.trials[index]
        return torch.from_numpy(to_patches(self.store.read(trial), self.store.sfreq)), trial.label
