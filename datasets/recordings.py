"""Readers of the raw files: one recording in, its runs, trials and labels out."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io

from utils.errors import UserError
from utils.montages import BCIC

BCIC_SFREQ = 250.0  # Hz
BCIC_FILE = re.compile(r"A0[1-9][TE]\.mat")
BCIC_FILES = [f"A0{subject}{session}.mat" for subject in range(1, 10) for session in "TE"]
# BNCI Horizon 2020, set 001-2014, tried in this order
BCIC_ADDRESSES = (
    "https://lampx.tugraz.at/~bci/database/001-2014/",
    "http://bnci-horizon-2020.eu/database/data-sets/001-2014/",
)


@dataclass
class Run:
    """One uninterrupted run of a recording.

    Attributes
    ----------
    signal : (n_chans, n_times) float64 array
        EEG electrodes in montage order, microvolts.
    onsets : (n_trials,) int array
        0-based sample of each trial's reference point.
    labels : (n_trials,) int array
        0-based class.
    artifacts : (n_trials,) bool array
        Marked by the expert.
    sfreq : float
        Hz.
    number : int
        Position among the file's structs, from 1, calibration included.
    """

    signal: np.ndarray
    onsets: np.ndarray
    labels: np.ndarray
    artifacts: np.ndarray
    sfreq: float
    number: int

    @property
    def is_calibration(self) -> bool:
        """EOG calibration runs have no trials."""
        return len(self.onsets) == 0


def read_bcic_mat(path: Path) -> list[Run]:
    """Read one file of BNCI 001-2014 (`A01T.mat` … `A09E.mat`).

    Parameters
    ----------
    path : Path
        A MATLAB v5 file whose `data` is a cell of structs with `X` (samples × 25, microvolts, the first 22 EEG),
        `trial` (1-based samples of the fixation cross), `y` (1..4), `fs`, `artifacts`.

    Returns
    -------
    list of Run, calibration runs (without trials) included.

    Raises
    ------
    UserError
        If the file is truncated, is no such file, or its content cannot be right; names the file and the run.
    """
    try:
        content = scipy.io.loadmat(path, squeeze_me=False, struct_as_record=False, variable_names=["data"])
    except NotImplementedError:
        raise UserError(f"{path}: a MATLAB v7.3 file; expected v5 as BNCI publishes it, download it again") from None
    except Exception as error:  # SciPy lets many kinds through for a damaged file, zlib's and struct's among them
        raise UserError(
            f"{path}: cannot be read as a MATLAB v5 file ({type(error).__name__}: {error}); it is truncated or "
            "damaged, delete it and download it again"
        ) from None
    if "data" not in content:
        raise UserError(f"{path}: no variable 'data'; expected a file of BNCI Horizon 2020 set 001-2014")
    structs = content["data"].ravel()
    if len(structs) == 0:
        raise UserError(f"{path}: 'data' is empty; expected calibration and task runs")
    return [_bcic_run(struct, number, f"{path}: run {number}") for number, struct in enumerate(structs, start=1)]


def _bcic_run(struct, number: int, where: str) -> Run:
    """Check one struct of the cell and take what is needed."""
    if isinstance(struct, np.ndarray) and struct.size == 1:  # a struct inside the cell comes as a 1 × 1 array
        struct = struct.item()
    missing = [name for name in ("X", "trial", "y", "fs") if not hasattr(struct, name)]
    if missing:
        raise UserError(f"{where} has no field {', '.join(missing)}; expected X, trial, y, fs")
    try:
        x = np.asarray(struct.X, dtype=np.float64)
        trial, y = (np.asarray(v, dtype=np.float64).ravel() for v in (struct.trial, struct.y))
        artifacts = np.asarray(getattr(struct, "artifacts", []), dtype=np.float64).ravel()
        sfreq = float(np.asarray(struct.fs, dtype=np.float64).ravel()[0])
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{where} holds something else than numbers ({error})") from None

    n_chans = len(BCIC.electrodes)
    if sfreq != BCIC_SFREQ:
        raise UserError(f"{where} is sampled at {sfreq:g} Hz; expected {BCIC_SFREQ:g} Hz")
    if x.ndim != 2 or x.shape[1] < n_chans:
        raise UserError(f"{where} has {x.shape[-1] if x.ndim == 2 else 0} channels; expected {n_chans} EEG and 3 EOG")
    if len(trial) != len(y):
        raise UserError(f"{where} has {len(trial)} trials and {len(y)} labels")
    signal = x[:, :n_chans].T  # (22, n_times); the EOG columns stay behind
    if len(trial) and not np.isfinite(signal).all():
        chan, sample = np.argwhere(~np.isfinite(signal))[0]
        raise UserError(
            f"{where} has NaN or infinity in {BCIC.electrodes[chan]} at sample {sample}; expected microvolts"
        )
    wrong = y[~np.isin(y, (1, 2, 3, 4))]
    if len(wrong):
        raise UserError(f"{where} has the label {wrong[0]:g}; expected 1 to 4")
    if (trial < 1).any() or (trial != np.round(trial)).any():
        raise UserError(f"{where} has a trial at sample {trial[(trial < 1) | (trial != np.round(trial))][0]:g}")
    if len(artifacts) != len(trial):
        artifacts = np.zeros(len(trial))
    return Run(np.ascontiguousarray(signal), trial.astype(int) - 1, y.astype(int) - 1, artifacts > 0, sfreq, number)
