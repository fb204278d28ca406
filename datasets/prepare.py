"""One way from raw recordings to a store, for every dataset.

Recordings → filter → window → trials → store → closing table.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.description import SPLITS, DatasetDescription
from datasets.preprocessing import Preprocessing, filter_run, window
from datasets.recording import DTYPE, Piece, Prepared, Recording, Trial, source_of
from datasets.store import StoreWriter
from utils.errors import UserError
from utils.files import code_digest, environment
from utils.limits import guarded
from utils.workers import WorkerLost, in_order

AMPLITUDES = (1.0, 200.0)  # microvolts, the median electrode's standard deviation after filtering
UNIT_HINT = "is the unit wrong? --scale sets a factor and goes on (--scale 1: as it is)"
# An electrode's standard deviation over the median electrode's, after filtering and before the common average is taken
# off. In the real recordings at hand (BCIC-IV-2b of 7 people, PhysioNet's S001 as 2a and VI) 0.57 to 2.2, with the
# average off 0.48 to 3.0. Loose electrodes reach some ten times the median; a wrong unit is a factor of 256 or more.
RATIOS = (0.01, 100.0)

# In the raw folder of recordings that prepare_demo.py wrote; tables and figures say so.
SIMULATED = "SIMULATED.txt"


def prepare(
    description: DatasetDescription,
    files: Sequence[Path | Piece],
    lmdb_dir: Path,
    settings: Preprocessing,
    workers: int,
    scale: float | None = None,
    options: dict | None = None,
    facts: dict | None = None,
) -> None:
    """Write the store of a dataset, file by file, and print the closing table. After an interruption, go on.

    files : sequence of Path or Piece. Raw files, in the store's order, whichever worker is done first.
    settings : Preprocessing
    workers : int. Files prepared at the same time.
    scale : float, optional. Multiplies what is read, and leaves the check of amplitudes out.
    options : dict, optional. Of `description.recordings` or `prepare_piece`; kept in the store's metadata.
    facts : dict, optional. What else the store's metadata says, where the description does not: classes, electrodes.
    Raises UserError if a file is damaged, amplitudes cannot be right, or nothing is left.
    """
    if not files:
        raise UserError("there is no recording with a trial in it; nothing was written")
    options = options or {}
    meta = {"dataset": description.name, "electrodes": description.montage.electrodes, "classes": description.classes}
    meta |= {"description": description.as_record(), "options": options, "preprocessing": settings.as_dict()}
    meta |= {"scale_flag": scale, "environment": environment()}
    meta |= {"sfreq": 0.0, "sources": [], "counts": {}, "simulated": is_simulated(files)} | (facts or {})
    writer = StoreWriter(lmdb_dir, meta | {"code": code_digest()})
    if writer.notes:
        go_on(writer, files)
    try:
        jobs = [(description, file, settings, scale, options) for file in files[len(writer.notes) :]]
        for trials, counts, source in _prepared(description, jobs, workers):
            sfreqs = rates([source, *(note["source"] for note in writer.notes)])
            if len(sfreqs) > 1:
                raise UserError(f"{source['name']} has another sampling rate ({sfreqs} Hz) than the files before it")
            writer.add(trials, {"counts": list(counts.items()), "source": source})
        counts = Counter()
        for note in writer.notes:
            counts.update({tuple(key): n for key, n in note["counts"]})
        if not any(fate == "kept" for fate, *_ in counts):
            cause = _why_none(counts)
            raise UserError(f"none of the {len(files)} recordings gives a trial: {cause}; {files[0]} is the first")
    except BaseException as error:
        wrong = isinstance(error, UserError) and not isinstance(error, WorkerLost)
        if wrong or not writer.notes:
            writer.discard()  # what is wrong has to be put right first, and the parts may be wrong with it
        else:
            done = f"{len(writer.notes)} of {len(files)} files are prepared and kept"
            print(f"{done}; the same command goes on behind them")
        raise
    meta["sources"] = [note["source"] for note in writer.notes]
    meta["sfreq"] = max(rates(meta["sources"]), default=0.0)
    meta["counts"] = {"/".join(map(str, key)): n for key, n in counts.items()}  # JSON has no tuples: "kept/A01/0"
    closing_table(description, writer.finish(meta), counts)


def _why_none(counts: Counter) -> str:
    """Why recordings give no trial, in words."""
    dropped = sum(n for (fate, *_), n in counts.items() if fate.startswith("dropped"))
    said = Counter({key: n for key, n in counts.items() if isinstance(key[-1], str) and key[0] != "recordings"})
    some = "; ".join(f"{fate.partition(': ')[2]}: {what} ({n})" for (fate, *_, what), n in said.most_common(5))
    return (f"{dropped} were dropped" if dropped else "no events in them") + (f" ({some})" if some else "")


def is_simulated(files: Sequence[Path | Piece]) -> bool:
    """Whether any of these recordings lies in a folder that says it is simulated."""
    paths = set(map(_path_of, files))
    return any((folder / SIMULATED).is_file() for path in paths for folder in list(path.absolute().parents)[:4])


def go_on(writer: StoreWriter, files: Sequence[Path | Piece]) -> None:
    """Say how many files an interrupted run has prepared; where one of them is another file now, begin anew."""
    known = [{k: v for k, v in note["source"].items() if k != "recordings"} for note in writer.notes]
    if len(known) <= len(files) and known == [source_of(file) for file in files[: len(known)]]:
        print(f"{len(known)} of {len(files)} files were prepared by a run that was interrupted; going on behind them")
    else:
        print("notice: an interrupted run prepared other files; beginning anew")
        writer.discard()


def rates(sources: Sequence[dict]) -> set[float]:
    """Sampling rates of recordings, Hz."""
    return {recording["sfreq"] for source in sources for recording in source["recordings"]}


def _prepared(description: DatasetDescription, jobs: Sequence[tuple], workers: int) -> Iterator[tuple]:
    """What `prepare_file` makes of each job, in order.

    A worker lives for one job. What many jobs need, a whitener, a checksum of gigabytes, a slow import, is made before
    them and in this process, from which they inherit it: of pieces, session by session.
    """

    def whole(job: tuple) -> Path | None:
        """The recording that a piece is whitened by, or is cut from; None of what is prepared at once."""
        piece = job[1] if description.ahead and isinstance(job[1], Piece) else None
        return piece and (*piece.beside, piece.path)[0]

    for _, group in itertools.groupby(jobs, key=whole):
        together = list(group)
        for _, file, _, scale, options in together:
            if isinstance(file, Piece):
                source_of(file)
            if description.ahead:
                with guarded(_path_of(file)):
                    description.ahead(file, scale, options, workers)
        yield from in_order(prepare_file, together, workers, "preparing")


def _path_of(file: Path | Piece) -> Path:
    return file if isinstance(file, Path) else file.path


def prepare_file(
    description: DatasetDescription, path: Path | Piece, settings: Preprocessing, scale: float | None, options: dict
) -> tuple[list[tuple[Trial, np.ndarray]], Counter, dict]:
    """All trials of one file; counts by (fate, subject, label) and of recordings by kind; the file's facts."""
    prepared = description.prepare_piece or partial(_prepare_recordings, description)
    with guarded(_path_of(path)):
        trials, counts, facts = prepared(path, settings, scale, options)
    return trials, counts, source_of(path) | {"recordings": facts}


def _prepare_recordings(
    description: DatasetDescription, path: Path, settings: Preprocessing, scale: float | None, options: dict
) -> Prepared:
    """The trials of a file of uninterrupted runs."""
    trials, counts, facts = [], Counter(), []
    for recording in description.recordings(path, **options):
        counts["recordings", recording.kind] += 1
        counts.update({(cause, recording.subject, label): n for (cause, label), n in recording.left_out.items()})
        cut, sd = cut_trials(recording, path, settings, scale, counts, description.montage.electrodes)
        trials += cut
        origin = {"subject": recording.subject, "session": recording.session, "run": recording.run}
        amplitude = {"kind": recording.kind, "sfreq": recording.sfreq, "median_sd_microvolts": sd}
        facts.append(origin | amplitude | recording.notes)
    return trials, counts, facts


def cut_trials(
    recording: Recording, path: Path, settings: Preprocessing, scale: float | None, counts: Counter, electrodes: tuple
) -> tuple[list[tuple[Trial, np.ndarray]], float | None]:
    """Filter one run and cut its trials; also its amplitude. Counts what is kept and what is dropped.

    electrodes : tuple of str. Names of the signal's rows; those that never change are named in the recording's notes.

    Raises UserError if the run is too short, its rate does not fit the filter, or its amplitude, or one electrode's
        against the others, is out of range.
    """
    signal, sfreq, n_trials = recording.signal, recording.sfreq, len(recording.onsets)
    if settings.h_freq >= sfreq / 2 or sfreq != round(sfreq):
        band = f"{settings.l_freq:g} to {settings.h_freq:g} Hz are to be read"
        expected = f"expected a whole number above {2 * settings.h_freq:g}; a narrower --band needs less"
        raise UserError(f"{path} is sampled at {sfreq:g} Hz, and {band}: {expected}")
    if not n_trials:
        return [], None
    if signal.shape[1] < sfreq * (settings.tmax - settings.tmin):
        window_s = f"{settings.tmin:g} to {settings.tmax:g} s"
        lasts = f"lasts {signal.shape[1] / sfreq:.1f} s ({signal.shape[1]} samples), less than one window of {window_s}"
        raise UserError(f"{path} {lasts}: is it cut off, or the window too long?")
    if scale is not None:
        signal *= scale
    filtered = filter_run(signal, sfreq, settings)
    _check_electrodes(recording, filtered, path, settings, scale, electrodes)
    amplitude = float(np.median([chan.std() for chan in filtered]))  # microvolts
    check_amplitude(f"{path}: the median electrode's standard deviation after filtering", amplitude, scale)
    numbers = range(1, n_trials + 1) if recording.numbers is None else map(int, recording.numbers)
    artifacts = [False] * n_trials if recording.artifacts is None else recording.artifacts
    images, labels, trials = recording.images or [""] * n_trials, recording.labels.tolist(), []
    columns = zip(recording.onsets, labels, numbers, images, artifacts, strict=True)
    for onset, label, number, image, is_artifact in columns:
        samples = window(onset, sfreq, settings)
        if samples.start < 0 or samples.stop > signal.shape[1]:
            counts["dropped: window leaves the run", recording.subject, label] += 1
            continue
        if settings.reject is not None and np.abs(filtered[:, samples]).max() > settings.reject:
            counts[f"dropped: over {settings.reject:g} microvolts", recording.subject, label] += 1
            continue
        key = f"{recording.subject}-{recording.session}-r{recording.run}-t{number:03d}"
        trial = Trial(key, label, recording.subject, recording.session, recording.run, number, image)
        trials.append((trial, filtered[:, samples].astype(DTYPE)))
        counts["kept", recording.subject, label] += 1
        if is_artifact:
            counts["of these marked as artifact", recording.subject, label] += 1
    return trials, round(amplitude, 3)


def check_amplitude(what: str, microvolts: float, scale: float | None, hint: str = UNIT_HINT) -> None:
    """Raise UserError where an amplitude cannot be right, and no `scale` says that it is."""
    low, high = AMPLITUDES
    if scale is None and not low <= microvolts <= high:
        raise UserError(f"{what} is {microvolts:.4g} microvolts; expected {low:g} to {high:g}: {hint}")


def _check_electrodes(
    recording: Recording, filtered: np.ndarray, path: Path, settings: Preprocessing, scale: float | None, names: tuple
) -> None:
    """Note electrodes that never change; raise UserError where one's amplitude does not fit the others'."""
    flat, ratios = compare_electrodes(recording.signal, filtered, recording.sfreq, settings)
    if flat.any():
        recording.notes["flat_electrodes"] = [names[k] for k in np.flatnonzero(flat)]
        print(f"notice: {path}: {', '.join(recording.notes['flat_electrodes'])} never change; kept as they are")
    low, high = RATIOS
    odd = np.flatnonzero(~((ratios >= low) & (ratios <= high)) & ~flat)
    if scale is None and len(odd):
        some = ", ".join(f"{names[k]} is {ratios[k]:.3g}" for k in odd[:5]) + (" …" if len(odd) > 5 else "")
        found = f"of the electrodes' standard deviations after filtering, {some} times the median"
        hint = "is a unit wrong? --scale 1 goes on with all as they are"
        raise UserError(f"{path}: {found}; expected {low:g} to {high:g} times: {hint}")


def compare_electrodes(
    signal: np.ndarray, filtered: np.ndarray, sfreq: float, settings: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Which electrodes never change, and the standard deviation of each over the median of those that do.

    signal, filtered : (n_chans, n_times) arrays. Before and after `filter_run`.
    Returns (n_chans,) bool and float arrays.
    """
    flat = np.ptp(signal, axis=1) == 0
    common = 0.0
    if settings.reference == "average":  # it carries one wrong electrode into all others: put it back
        common = filter_run(signal.mean(axis=0, keepdims=True), sfreq, replace(settings, reference="none"))[0]
    sds = np.array([(chan + common).std() for chan in filtered])  # microvolts
    return flat, sds / (1.0 if flat.all() else np.median(sds[~flat]))


def closing_table(description: DatasetDescription, meta: dict, counts: Counter) -> None:
    """Print trials kept and dropped, against what was expected, and what the store holds in all."""
    lines = description.table(meta, counts) if description.table else _table_by_class(description, meta, counts)
    n_chans, n_times = meta["shape"]
    shape = f"{n_chans} electrodes × {n_times} samples at {meta['sfreq']:g} Hz"
    lines.append(f"{meta['n_trials']} trials of {shape}, {meta['units']}; fingerprint {meta['fingerprint'][:16]}")
    print("", *lines, sep="\n")


def _table_by_class(description: DatasetDescription, meta: dict, counts: Counter) -> list[str]:
    """Print files, recordings and trials kept and dropped by cause, by the published splits; what else to say."""
    kinds = [f"{n} {key[1]}" for key, n in counts.items() if key[0] == "recordings"]
    people = {recording["subject"] for source in meta["sources"] for recording in source["recordings"]}
    print(f"\nfiles {len(meta['sources'])}, people {len(people)}: {', '.join(kinds)}\n")
    columns, lines = description.closing(meta["options"], meta["sources"], counts) if description.closing else ({}, [])
    labels = range(len(description.classes))
    fates = dict.fromkeys(["kept", *sorted(key[0] for key in counts if isinstance(key[-1], int) and len(key) == 3)])
    width = max(map(len, fates)) + 2
    heads = (*description.classes, "trials", *columns)
    size = max(map(len, heads)) + 2
    print(" " * (6 + width) + "".join(f"{name:>{size}}" for name in heads))
    split_of = {subject: description.split_of(subject) or "other" for subject in people}
    splits = SPLITS if description.people else ()  # else a run's protocol says who tests
    for split in (*splits, *({"other"} & set(split_of.values()))):
        for fate in fates:
            row = [sum(counts[fate, who, label] for who in people if split_of[who] == split) for label in labels]
            expected = [column.get(split, 0) for column in columns.values()] if fate == "kept" else []
            name = split if description.people else "all"
            print(f"{name:6}{fate:{width}}" + "".join(f"{n:{size}d}" for n in (*row, sum(row), *expected)))
        if split not in split_of.values():
            people_of = f"the people of the published {split} split"
            lines.append(f"notice: no {split} trials; {people_of} are not among the files")
    if meta["scale_flag"] is not None:
        lines.insert(0, f"--scale {meta['scale_flag']:g} was applied to all recordings; amplitudes were not checked")
    return lines
