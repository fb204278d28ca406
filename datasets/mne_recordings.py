"""Reader of recordings through MNE: one file in, its signal in microvolts and its events out, units put right."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from utils.errors import UserError

READERS = {
    ".bdf": mne.io.read_raw_bdf,
    ".fif": mne.io.read_raw_fif,
    ".edf": mne.io.read_raw_edf,
    ".set": mne.io.read_raw_eeglab,
    ".vhdr": mne.io.read_raw_brainvision,
}
ANNOTATION = re.compile(r"(?:Stimulus/)?\s*S?\s*(\d+)(?:\.0*)?")  # "3", "S  3", "Stimulus/S  3"
TOLERANCE = 1  # samples by which two sources of events may differ
SAMPLE_BYTES = {".bdf": 3, ".edf": 2}


@dataclass
class ReadFile:
    """What a file holds.

    signal : (n_chans, n_times) float64 array. Electrodes as asked for, microvolts.
    sfreq : float. Hz.
    events : list of (int, int). 0-based sample and code, in order of time.
    sources : list of str. Where the events were found; all agree.
    corrections : list of str. What was wrong with the units and put right.
    """

    signal: np.ndarray
    sfreq: float
    events: list[tuple[int, int]]
    sources: list[str]
    corrections: list[str]


def read_recording(path: Path, electrodes: Sequence[str]) -> ReadFile:
    """Read one recording through MNE, put its units right and compare its sources of events.

    Units: a BDF file whose header claims 16-bit digital limits holds 24-bit samples, which a plain reader makes 256
    times too large; numbers without a physical dimension are microvolts, where MNE takes them for volts.
    Events: `events.tsv` beside the file, the `Status` channel, the file's annotations.

    Raises UserError if the file is truncated or damaged, lacks an electrode, holds NaN, or its sources of events
        disagree.
    """
    check_whole(path)
    try:
        raw = READERS[path.suffix.lower()](path, preload=False, verbose="ERROR")
        names = {name.lower(): name for name in raw.ch_names}
        missing = [name for name in electrodes if name.lower() not in names]
        if missing:
            raise UserError(f"{path} has no electrode {', '.join(missing)}; it has {', '.join(raw.ch_names)}")
        signal = raw.get_data(picks=[names[name.lower()] for name in electrodes])  # (n_chans, n_times) volts
        events = {"annotations": annotated_events(raw)}
        if "status" in names:
            events["Status"] = status_events(raw.get_data(picks=[names["status"]])[0])
    except UserError:
        raise
    except Exception as error:  # damaged files fail in many ways inside the readers
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); it is damaged, fetch it again") from None

    sfreq, n_times = float(raw.info["sfreq"]), signal.shape[1]
    signal *= 1e6
    corrections = unit_corrections(path, electrodes)
    for factor, _ in corrections:
        signal *= factor[:, None]
    if not np.isfinite(signal).all():
        chan, sample = np.argwhere(~np.isfinite(signal))[0]
        raise UserError(f"{path} has NaN or infinity in {electrodes[chan]} at sample {sample}; expected microvolts")

    tsv = path.with_name(path.name.replace(f"_eeg{path.suffix}", "_events.tsv"))
    if tsv.exists():
        events = {tsv.name: tsv_events(tsv, sfreq)} | events
    sources = [name for name, found in events.items() if found]
    for name in sources[1:]:
        compare_events(path, sources[0], events[sources[0]], name, events[name])
    chosen = events[sources[0]] if sources else []
    outside = [sample for sample, _ in chosen if not 0 <= sample < n_times]
    if outside:
        raise UserError(f"{path}: an event at sample {outside[0]}, but the recording has {n_times} samples")
    return ReadFile(signal, sfreq, chosen, sources, [what for _, what in corrections])


# ---------------------------------------------------------------- BDF and EDF headers


def read_header(path: Path) -> dict:
    """The fields of a BDF or EDF header that decide on units and size (European Data Format, Kemp et al. 1992).

    Returns dict: labels, dimensions (lists of str), digital_min, digital_max (lists of float), expected_bytes (of the
        whole file, None where the header leaves the number of records open).
    """
    with open(path, "rb") as file:
        fixed = file.read(256)
        n = int(fixed[252:256])
        per_channel = file.read(256 * n)
    widths = dict(labels=16, transducer=80, dimensions=8, physical_min=8, physical_max=8, digital_min=8, digital_max=8,
                  prefilter=80, n_samples=8)  # fmt: skip
    fields, start = {}, 0
    for name, width in widths.items():
        column = per_channel[start : start + width * n]
        fields[name] = [column[k * width : (k + 1) * width].decode("latin-1").strip() for k in range(n)]
        start += width * n
    records = int(fixed[236:244])
    record_bytes = sum(map(int, fields["n_samples"])) * SAMPLE_BYTES[path.suffix.lower()]
    return {
        "labels": fields["labels"], "dimensions": fields["dimensions"],
        "digital_min": [float(v) for v in fields["digital_min"]],
        "digital_max": [float(v) for v in fields["digital_max"]],
        "expected_bytes": int(fixed[184:192]) + records * record_bytes if records >= 0 else None,
    }  # fmt: skip


def check_whole(path: Path) -> None:
    """Refuse a BDF or EDF file that is shorter than its header says; MNE would read what is there."""
    if path.suffix.lower() not in SAMPLE_BYTES:
        return
    try:
        expected = read_header(path)["expected_bytes"]
    except ValueError:
        raise UserError(f"{path}: its header is damaged; fetch it again") from None
    if expected is not None and path.stat().st_size < expected:
        raise UserError(
            f"{path} is truncated: {path.stat().st_size} bytes where its header says {expected}; fetch it again"
        )


def unit_corrections(path: Path, electrodes: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """What must be multiplied to what MNE reads, per electrode: [((n_chans,) factors, what it is), …]."""
    if path.suffix.lower() not in SAMPLE_BYTES:
        return []
    header = read_header(path)
    labels = [label.lower() for label in header["labels"]]
    places = [labels.index(name.lower()) for name in electrodes]
    limits = [(header["digital_min"][k], header["digital_max"][k]) for k in places]
    small = np.array([path.suffix.lower() == ".bdf" and max(map(abs, pair)) <= 2**15 for pair in limits])
    blank = np.array([not header["dimensions"][k] for k in places])
    corrections = []
    if small.any():
        factors = np.where(small, 1 / 256, 1)
        corrections.append((factors, "24-bit samples under 16-bit digital limits: divided by 256"))
    if blank.any():
        corrections.append((np.where(blank, 1e-6, 1), "no physical dimension: taken for microvolts"))
    return corrections


# ---------------------------------------------------------------- events


def status_events(status: np.ndarray) -> list[tuple[int, int]]:
    """Onsets of all values but the resting one, which is the most frequent (0 or 131071)."""
    values, counts = np.unique(status.astype(int), return_counts=True)
    rest = values[counts.argmax()]
    onsets = np.flatnonzero(np.diff(status.astype(int), prepend=rest))
    return [(int(k), int(status[k])) for k in onsets if status[k] != rest]


def annotated_events(raw: mne.io.BaseRaw) -> list[tuple[int, int]]:
    """Annotations that are a number, perhaps behind "S" or "Stimulus/"; all others say something else."""

    def code(description: str) -> int | None:
        number = ANNOTATION.fullmatch(description.strip())
        return int(number[1]) if number else None

    if not len(raw.annotations):
        return []
    events, _ = mne.events_from_annotations(raw, event_id=code, regexp=None, verbose="ERROR")
    return [(int(sample) - raw.first_samp, int(value)) for sample, _, value in events]


def tsv_events(path: Path, sfreq: float) -> list[tuple[int, int]]:
    """Events of a BIDS `events.tsv`: `onset` in seconds, or `sample` or `latency` in samples, and `value`.

    Raises UserError if a column is missing, a number is none, or `onset` and samples disagree.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text with tabs ({error})") from None
    if not rows:
        return []
    times = [name for name in ("onset", "sample", "latency") if name in rows[0]]
    if not times or "value" not in rows[0]:
        raise UserError(f"{path} has the columns {', '.join(rows[0])}; expected onset (or sample) and value")
    events = []
    for line, row in enumerate(rows, start=2):
        try:
            samples = [float(row[name]) * (sfreq if name == "onset" else 1) for name in times if row[name] != "n/a"]
            samples = [round(sample) for sample in samples]
            code = float(row["value"])
            if code != int(code):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{path}, line {line}: {dict(row)}; expected numbers in {', '.join(times)}, value"
            ) from None
        if not samples or max(samples) - min(samples) > TOLERANCE:
            raise UserError(f"{path}, line {line}: {', '.join(times)} give the samples {samples}; expected the same")
        events.append((samples[0], int(code)))
    return sorted(events)


def compare_events(path: Path, name: str, events: list, other_name: str, others: list) -> None:
    """Raise UserError where two sources differ by more than a sample or in a code."""
    if len(events) != len(others):
        raise UserError(f"{path}: {len(events)} events in {name}, {len(others)} in {other_name}; mend or remove one")
    for number, (a, b) in enumerate(zip(events, others, strict=True), start=1):
        if abs(a[0] - b[0]) > TOLERANCE or a[1] != b[1]:
            raise UserError(
                f"{path}: event {number} is code {a[1]} at sample {a[0]} in {name} and code {b[1]} at sample {b[0]} in "
                f"{other_name}; mend or remove one"
            )
