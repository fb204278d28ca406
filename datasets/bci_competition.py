"""The copies in which BCIC-IV-2a and 2b are found: BNCI's .mat, and the competition's own .gdf with files of labels.

bbci.de/competition/iv: `A01T.gdf` … `A09E.gdf`, `B0101T.gdf` … `B0905E.gdf`; `A01E.mat` with `classlabel` for each.
MOABB keeps BNCI's files some folders deep. The same session is the same recording in both.
"""

import filecmp
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.recording import Recording
from readers.gdf import check_gdf, read_gdf
from readers.matlab import read_variables, variables_of
from utils.errors import UserError

# data set → names of its recordings, without suffix, in capitals
NAMES = {"BCICIV2a": r"A\d\d[TE]", "BCICIV2b": r"B\d\d(\d\d)?[TE]"}
# codes of events
START, UNKNOWN_CUE, REJECTED, NEW_RUN, FIRST_CUE = 768, 783, 1023, 32766, 769
LABELS, LABEL_FOLDER = "classlabel", re.compile(r"(true[_ -]?)?(class)?labels?", re.IGNORECASE)
# what people have in place of recordings → what to do with it
CUT = "Trials that others have cut, and tables, are not read: filters need whole runs."
OTHERS = {
    ".zip": "Unpack the zip.",
    ".gdf": "The competition's files are called A01T.gdf … and B0101T.gdf …",
    ".mat": "BNCI's files are called A01T.mat … and B01T.mat …",
} | dict.fromkeys((".npy", ".npz", ".csv", ".pkl", ".pt", ".fif", ".set", ".h5"), CUT)
FROM = "the competition's true labels, bbci.de/competition/iv/results"

# ---------------------------------------------------------------- which files


def session_files(raw_dir: Path, pattern: str) -> list[Path]:
    """The recordings under a folder, however deep and in whatever case: BNCI's .mat, or else the .gdf of a session.

    pattern : str. One of `NAMES`.
    Returns list of Path, by name. Copies under other names ("A01T (1).mat", "._A01T.mat") stay out.
    Raises UserError if two different files are the same recording.
    """
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted(raw_dir.rglob("*")):
        key = path.stem.upper(), path.suffix.lower()
        hidden = any(part[0] == "." or part == "__MACOSX" for part in path.relative_to(raw_dir).parts)
        if key[1] in (".mat", ".gdf") and re.fullmatch(pattern, key[0]) and not hidden and path.is_file():
            found[key].append(path)
    files: dict[str, dict[str, Path]] = defaultdict(dict)  # BNCI's name of a recording → suffix, name → file
    for (stem, suffix), paths in found.items():
        if suffix == ".mat" and (len(paths) > 1 or (stem, ".gdf") in found):
            paths = [path for path in paths if LABELS not in variables_of(path)]  # what is left are recordings
        if suffix == ".mat" and bnci_name(paths[0] if paths else Path(stem)) != f"{stem}.mat":
            continue  # labels of a session of 2b, whose recording is in BNCI's B01T.mat
        if paths:
            files[bnci_name(paths[0])][stem + suffix] = _the_only(paths)
    chosen = {}
    for of in files.values():
        mat = {name: path for name, path in of.items() if name.endswith(".mat")}
        chosen |= mat or of
        if mat and len(of) > len(mat):
            gdf = next(path for name, path in of.items() if name.endswith(".gdf"))
            print(f"notice: {next(iter(mat.values()))} and {gdf} are the same recording; BNCI's .mat is read")
    return [chosen[name] for name in sorted(chosen)]


def bnci_name(path: Path) -> str:
    """BNCI's name of the file that a recording belongs to: "A01T.mat" of a01t.gdf, "B01T.mat" of B0103T.gdf."""
    stem = path.stem.upper()
    return f"{stem[:3]}{stem[-1:]}.mat"


def missing_files(all_files: Sequence[str], files: Sequence[Path]) -> list[str]:
    """BNCI's names of what is not there in any copy."""
    return sorted(set(all_files) - {bnci_name(path) for path in files}) if all_files else []


def other_files(folder: Path, name: str) -> str:
    """What a folder holds in place of the recordings of a data set, for a message; empty where there is nothing."""
    for other, pattern in NAMES.items():
        if other != name and (files := session_files(folder, pattern)):
            return f"; {files[0]} is of {other}: say --downstream_dataset {other}"
    labels = [p for p in sorted(folder.rglob("*.[mM][aA][tT]")) if re.fullmatch(r"B\d{4}[TE]", p.stem.upper())]
    if labels:
        return f"; {labels[0]} has the labels of {labels[0].stem}.gdf, which belongs beside it"
    there = Counter(path.suffix.lower() for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    some = {suffix: advice for suffix, advice in OTHERS.items() if suffix in there}
    names = ", ".join(f"{there[suffix]} {suffix}" for suffix in some)
    return f"; what is there: {names}. {' '.join(dict.fromkeys(some.values()))}" if some else ""


def _the_only(paths: Sequence[Path]) -> Path:
    first, *others = paths
    for other in others:
        if not filecmp.cmp(first, other, shallow=False):
            raise UserError(f"{first} and {other} are the same recording with different contents; keep one of them")
        print(f"notice: {other} is a copy of {first}, which is read")
    return first


# ---------------------------------------------------------------- the competition's recordings


def read_competition_gdf(
    path: Path, electrodes: tuple[str, ...], n_classes: int, sfreq: float, by_runs: bool
) -> list[Recording]:
    """Read one file; runs without trials included. Subject, session and run are left to the dataset.

    path : Path. A GDF file with the electrodes by name, or as its first channels ("EEG-0", …). Its labels stand in its
        events (769 and on), or, of cues of unknown class (783), in a .mat of its name beside it or in a folder there.
    sfreq : float. What its rate must be, Hz.
    by_runs : bool. Whether a run begins at each mark of one, as in BNCI's 2a; else the file is one run, as in 2b.
    Raises UserError if the file is damaged, or its labels are missing, too many, or others than its events'.
    """
    file = read_gdf(path, _places(path, check_gdf(path)["label"], electrodes))
    if file.sfreq != sfreq:
        raise UserError(f"{path} is sampled at {file.sfreq:g} Hz; expected {sfreq:g} Hz")
    onsets, labels = _trials(path, file.events, n_classes)
    starts = np.array([-1, *(sample for sample, code in file.events if code == START)])
    rejected = [sample for sample, code in file.events if code == REJECTED]
    artifacts = np.isin(onsets, starts[np.searchsorted(starts, rejected, "right") - 1])
    marks = sorted({sample for sample, code in file.events if code == NEW_RUN and by_runs})
    if not marks or (onsets < marks[0]).any():
        marks = [0, *marks]
    runs = []
    for start, stop in zip(marks, [*marks[1:], file.signal.shape[1]], strict=True):
        recorded = np.flatnonzero(~file.gaps[start:stop])
        if not len(recorded):
            continue
        inside = (onsets >= start) & (onsets < stop)
        start, stop = start + recorded[0], start + recorded[-1] + 1  # runs stand apart by a gap
        signal = _filled(file.signal[:, start:stop], file.gaps[start:stop])
        run = Recording(signal, sfreq, onsets[inside] - start, labels[inside], number=len(runs) + 1)
        run.artifacts, run.notes = artifacts[inside], {"corrections": file.corrections}
        runs.append(run)
    return runs


def _places(path: Path, names: Sequence[str], electrodes: Sequence[str]) -> list[int]:
    """Where the electrodes are among a file's channels: by name, or in order, as the competition numbers most of them.

    Raises UserError where they are too few, or a name stands where another electrode should be.
    """
    plain = [re.sub(r"^(EEG|EOG)[-: ]*(?=.)", "", name, flags=re.IGNORECASE).lower() for name in names]
    wanted = [name.lower() for name in electrodes]
    if set(wanted) <= set(plain):
        return [plain.index(name) for name in wanted]
    if len(names) < len(wanted):
        raise UserError(f"{path} has {len(names)} channels; expected {len(wanted)} EEG, and EOG behind them")
    for k, name in enumerate(plain):
        is_eog = names[k].upper().startswith("EOG")
        if (k < len(wanted) and is_eog) or (name in wanted and wanted.index(name) != k):
            should = electrodes[k] if k < len(wanted) else "no electrode"
            raise UserError(f"{path}: channel {k + 1} is {names[k]}; expected {should}, in the competition's order")
    return list(range(len(wanted)))


def _filled(signal: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Draw a straight line over gaps inside a run."""
    signal, there = np.ascontiguousarray(signal), np.flatnonzero(~gaps)
    for chan in signal if gaps.any() else ():
        chan[gaps] = np.interp(np.flatnonzero(gaps), there, chan[there])
    return signal


def _trials(path: Path, events: Sequence[tuple[int, int]], n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of trials' starts and 0-based labels: of each cue, and the start before it."""
    known = range(FIRST_CUE, FIRST_CUE + n_classes)
    onsets, labels, start = [], [], None
    for sample, code in events:
        if code == START:
            start = sample
        elif code in known or code == UNKNOWN_CUE:
            if start is None:
                raise UserError(f"{path}: the cue at sample {sample} (code {code}) has no start of a trial ({START})")
            onsets.append(start)
            labels.append(code - FIRST_CUE if code in known else -1)
            start = None
    onsets, labels = np.array(onsets, int), np.array(labels, int)
    given = _labels(path, n_classes)
    if given is None:
        if (labels < 0).any():
            missing = f"{path.stem}.mat with {LABELS} is not beside it; fetch it: {FROM}"
            raise UserError(f"{path} does not say its classes (code {UNKNOWN_CUE}), and {missing}")
        return onsets, labels
    source, given = given
    if len(given) != len(onsets):
        raise UserError(f"{source} has {len(given)} labels, {path} {len(onsets)} trials; do they belong together?")
    if len(wrong := np.flatnonzero((labels >= 0) & (labels != given))):
        k = wrong[0]
        raise UserError(f"{source}: label {k + 1} is {given[k] + 1}, {path} says {labels[k] + 1}; keep the right one")
    return onsets, given


def _labels(path: Path, n_classes: int) -> tuple[Path, np.ndarray] | None:
    """The file of labels, and its 0-based labels; None where there is none."""
    below, beside = (
        [f for f in sorted(at.glob("*")) if f.is_dir()] for at in (path.parent, path.absolute().parent.parent)
    )
    for folder in (path.parent, *below, *(folder for folder in beside if LABEL_FOLDER.fullmatch(folder.name))):
        for source in sorted(folder.glob("*.[mM][aA][tT]")):
            if source.stem.upper() == path.stem.upper() and LABELS in variables_of(source):
                values = read_variables(source, [LABELS])[LABELS]
                numbers = np.asarray(values, float).ravel() if np.asarray(values).dtype.kind in "fiu" else np.array([])
                if not len(numbers) or not np.isin(numbers, np.arange(1, n_classes + 1)).all():
                    raise UserError(f"{source}: {LABELS} is none of numbers from 1 to {n_classes}; fetch it again")
                return source, numbers.astype(int) - 1
    return None
