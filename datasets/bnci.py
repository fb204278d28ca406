"""Reader of BNCI Horizon 2020's MATLAB files (sets 001-2014 and 004-2014): runs, trials and labels of one file."""

from pathlib import Path

import numpy as np

from datasets.recording import Recording
from readers.matlab import read_variables, variables_of
from utils.errors import UserError

FETCH = "fetch BNCI's .mat (prepare_data.py without --skip_download)"


def read_bnci_mat(path: Path, electrodes: tuple[str, ...], n_classes: int, sfreq: float) -> list[Recording]:
    """Read one file.

    path : Path. A MATLAB v5 file whose `data` is a cell of structs with `X` (samples × channels, microvolts, the EEG
        electrodes first), `trial` (1-based samples), `y` (1, 2, …), `fs`, `artifacts`.
    electrodes : tuple of str. The first columns of `X`; what follows (EOG) stays behind.
    sfreq : float. What `fs` must be, Hz.
    Returns list of Recording, runs without trials included; subject, session and run are left to the dataset.
    Raises UserError if the file is truncated, is no such file, asks for more than a recording needs, or its content
        cannot be right; names the file and the run.
    """
    content = read_variables(path, ["data"])
    if "data" not in content:
        raise UserError(f"{path}: no variable 'data'; expected a file of BNCI Horizon 2020{_instead(path)}")
    if not isinstance(content["data"], np.ndarray):  # a sparse matrix, or what SciPy says in place of a damaged one
        raise UserError(f"{path}: 'data' is no cell; expected one of runs")
    if content["data"].dtype.kind in "fiu" and content["data"].ndim > 2:
        shape = " × ".join(map(str, content["data"].shape))
        hint = f"filters and references need whole runs: {FETCH} or the competition's .gdf"
        raise UserError(f"{path} holds trials that are cut already ('data' is an array of {shape}); {hint}")
    if not (structs := content["data"].ravel().tolist()):
        raise UserError(f"{path}: 'data' is empty; expected runs")
    return [_run(path, k, struct, electrodes, n_classes, sfreq) for k, struct in enumerate(structs, start=1)]


def _instead(path: Path) -> str:
    """What a file is that has no recording, for a message."""
    variables = variables_of(path)
    if "classlabel" in variables:
        what = "the competition's labels ('classlabel') and no EEG"
        return f": it has {what}; put {path.stem}.gdf beside it, or {FETCH}"
    return f"; it has {', '.join(sorted(variables))[:100] or 'none'}: {FETCH}"


def _run(path: Path, number: int, struct, electrodes: tuple[str, ...], n_classes: int, sfreq: float) -> Recording:
    """Check one struct of the cell and take what is needed."""
    where = f"{path}: run {number}"
    if isinstance(struct, np.ndarray) and struct.size == 1:  # a struct inside the cell comes as a 1 × 1 array
        struct = struct.item()
    if missing := [name for name in ("X", "trial", "y", "fs") if not hasattr(struct, name)]:
        raise UserError(f"{where} has no field {', '.join(missing)}; expected X, trial, y, fs")
    try:
        x = np.asarray(struct.X, dtype=np.float64)
        columns = (struct.trial, struct.y, getattr(struct, "artifacts", []))
        trial, y, artifacts = (np.asarray(column, dtype=np.float64).ravel() for column in columns)
        fs = float(np.asarray(struct.fs, dtype=np.float64).ravel()[0])
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{where} holds something else than numbers ({error})") from None

    n_chans = len(electrodes)
    if fs != sfreq:
        raise UserError(f"{where} is sampled at {fs:g} Hz; expected {sfreq:g} Hz")
    if x.ndim != 2 or x.shape[1] < n_chans:
        raise UserError(f"{where} has {x.shape[-1] if x.ndim == 2 else 0} channels; expected {n_chans} EEG and 3 EOG")
    if len(trial) != len(y):
        raise UserError(f"{where} has {len(trial)} trials and {len(y)} labels")
    signal = x[:, :n_chans].T  # (n_chans, n_times)
    if len(trial) and not np.isfinite(signal).all():
        chan, sample = np.argwhere(~np.isfinite(signal))[0]
        raise UserError(f"{where} has NaN or infinity in {electrodes[chan]} at sample {sample}; expected microvolts")
    if len(wrong := y[~np.isin(y, np.arange(1, n_classes + 1))]):
        raise UserError(f"{where} has the label {wrong[0]:g}; expected 1 to {n_classes}")
    if len(nowhere := trial[~((trial >= 1) & (trial == np.round(trial)) & (trial < 2**53))]):
        raise UserError(f"{where} has a trial at sample {nowhere[0]:g}")
    if len(artifacts) != len(trial):
        artifacts = np.zeros(len(trial))
    signal, onsets, labels = np.ascontiguousarray(signal), trial.astype(int) - 1, y.astype(int) - 1
    return Recording(signal, fs, onsets, labels, number=number, artifacts=artifacts > 0)
