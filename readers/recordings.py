"""Reader of recordings through MNE: one file in, its signal in microvolts and its events out, units put right."""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from readers.electrode_names import electrodes_of
from readers.headbands import as_number, read_table, read_xdf
from readers.matlab import check_mat
from utils.errors import UserError, loading
from utils.files import plain_bytes
from utils.limits import LOADED_RATIO, LOADED_SMALL, MAX_TEXT, SMALL, reading

TABLES = (".csv", ".csv.gz", ".txt", ".tsv")
FORMATS = {
    ".bdf": mne.io.read_raw_bdf,
    ".fif": mne.io.read_raw_fif,
    ".edf": mne.io.read_raw_edf,
    ".set": mne.io.read_raw_eeglab,
    ".vhdr": mne.io.read_raw_brainvision,
    ".gdf": mne.io.read_raw_gdf,
    ".ahdr": mne.io.read_raw_brainvision,
    ".fif.gz": mne.io.read_raw_fif,
    ".eeg": mne.io.read_raw_nihon,
    ".lay": mne.io.read_raw_persyst,
    ".cnt": mne.io.read_raw_cnt,
    ".xdf": read_xdf,
    ".xdfz": read_xdf,
    **dict.fromkeys(TABLES, read_table),
}
PACKED = (".fif.gz", ".csv.gz", ".lay", ".xdfz", ".set", ".xdf")  # memory is no small multiple of the file's size
HINTS = {  # what else a file with this ending may be, and what its reader needs
    ".cnt": "; a Neuroscan file is read, one of another maker is not: export EDF or BrainVision",
    ".eeg": "; of BrainVision's three files give the .vhdr, and of Nihon Kohden's this one",
    ".set": "; neither trials that are cut (epochs) nor MATLAB 7.3 are read: save the continuous recording from EEGLAB "
    "with pop_saveset(…, 'version', '6')",
} | dict.fromkeys((".xdf", ".xdfz"), "; its reader is pyxdf: pip install pyxdf")
ANNOTATION = re.compile(r"(?:Stimulus/)?\s*S?\s*(\d+)(?:\.0*)?")  # "3", "S  3", "Stimulus/S  3"
TOLERANCE = 1  # samples by which two sources of events may differ
SAMPLE_BYTES = {".bdf": 3, ".edf": 2}
CONTENT_RATIO = 4  # bytes of the content in memory for a byte of its files: 16-bit samples become doubles
LARGEST = 2**31  # sample or code of an event; 24 days at 1000 Hz
TIMES = ("onset", "sample", "latency")  # columns of events.tsv
# BrainVision's header and markers
VHDR = re.compile(
    r"^[ \t]*(DataFile|MarkerFile|NumberOfChannels|BinaryFormat)[ \t]*[=:](.*)$", re.IGNORECASE | re.MULTILINE
)
# bytes that a channel's fields have in a BDF or EDF header
LIMITS = ("physical_min", "physical_max", "digital_min", "digital_max")
WIDTHS = dict(labels=16, transducer=80, dimensions=8) | dict.fromkeys(LIMITS, 8) | dict(prefilter=80, n_samples=8)
VHDR_BYTES = {"INT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4}
MARKER = re.compile(r"^Mk\d+=[^,\n]*,[^,\n]*,\s*(\d{1,15}),", re.MULTILINE)


@dataclass
class ReadFile:
    """What a file holds."""

    signal: np.ndarray  # (n_chans, n_times) float64: electrodes as asked for, microvolts
    sfreq: float  # Hz
    events: list[tuple[int, int]]  # 0-based sample and code, in order of time
    sources: list[str]  # where the events were found; all agree
    corrections: list[str]  # what was wrong with the units and put right
    notes: list[str]  # what was understood of the electrodes' names, in words
    not_understood: list[str]  # annotations that are no code


def suffix_of(path: Path) -> str:
    """The ending that tells a recording's format, in lower case: ".edf", ".csv.gz"; empty where it is none."""
    name = path.name.lower()
    return next((ending for ending in sorted(FORMATS, key=len, reverse=True) if name.endswith(ending)), "")


def open_recording(
    path: Path,
    sfreq: float | None = None,
    trigger: str | None = None,
    renamed: Mapping[str, str] | None = None,
    electrodes: Sequence[str] = (),
) -> mne.io.BaseRaw:
    """Open a recording of any format that MNE reads, a headband's table, or XDF; the signal stays on the disk.

    sfreq, trigger, renamed : of a table (see `read_table`).
    electrodes : sequence of str. Those that a BDF or EDF header must have possible limits for (see `check_header`).
    Raises UserError if the file is damaged, of an unknown format, holds trials instead of a recording, or names a file
        elsewhere.
    """
    ending = suffix_of(path)
    if not ending:
        known = ", ".join(sorted(FORMATS))
        raise UserError(f"{path} is no recording that is read here; expected one of {known}")
    if not path.is_file():
        raise UserError(f"{path} is not there")
    check_header(path, electrodes, renamed)
    content = SMALL * 10 if ending in PACKED else 0
    if ending == ".set":
        with _by_a_library(path):
            content += check_mat(path)
    with _by_a_library(path, content):
        if FORMATS[ending] in (read_table, read_xdf):
            return FORMATS[ending](path, sfreq, trigger, renamed)
        raw = FORMATS[ending](path, preload=False, verbose="ERROR")
        check_beside(path, raw.filenames)
        return raw


def read_signal(path: Path, channels: Sequence[str], raw: mne.io.BaseRaw, status: Sequence[str] = ()) -> tuple:
    """(n_chans, n_times) float64 microvolts of some channels, units put right as their header's quirks demand.

    raw : the recording, opened.
    status : sequence of str. Channels of codes, whose (n, n_times) values are the second array: read in one pass, since
        MNE decodes all channels of a file in each.
    Raises UserError for NaN or infinity, or a damaged file.
    """
    with _by_a_library(path, 8 * len(raw.times) * len(raw.ch_names)):
        signal, codes = np.split(raw.get_data(picks=[*channels, *status]), [len(channels)])
    signal *= 1e6
    for factor, _ in unit_corrections(path, channels):
        signal *= factor[:, None]
    if not np.isfinite(signal).all():
        chan, sample = np.argwhere(~np.isfinite(signal))[0]
        raise UserError(f"{path} has NaN or infinity in {channels[chan]} at sample {sample}; expected microvolts")
    return signal, codes


@contextmanager
def _by_a_library(path: Path, more: int = 0) -> Iterator[None]:
    """`reading`, and one line in place of what a reader raises: damaged files fail in many ways inside of them.

    more : int. Bytes that the content takes, besides CONTENT_RATIO times those of its files.
    """
    size = sum(file.stat().st_size for file in [path, *companions(path)]) if path.is_file() else 0
    hint = "it is damaged, or of another kind than its name says" + HINTS.get(suffix_of(path), "")
    with loading(str(path), hint, "read"), reading(path, size, CONTENT_RATIO * size + more):
        yield


def read_recording(path: Path, electrodes: Sequence[str], renamed: Mapping[str, str] | None = None) -> ReadFile:
    """Read one recording through MNE, put its units right and compare its sources of events.

    Units: a BDF file whose header claims 16-bit digital limits holds 24-bit samples, which a plain reader makes 256
    times too large; numbers without a physical dimension are microvolts, where MNE takes them for volts.
    Events: `events.tsv` beside the file, the `Status` channel, the file's annotations.
    Names: "EEG Fp1-Ref", "FP1." and "T3" are understood (`electrodes_of`); `renamed`: channel → electrode.

    Raises UserError if the file is truncated or damaged, asks for more than a recording needs, names a file elsewhere,
        lacks an electrode, holds NaN, or its sources of events disagree.
    """
    raw = open_recording(path, renamed=renamed, electrodes=electrodes)
    sfreq = float(raw.info["sfreq"])
    if not 0 < sfreq < 1e6:
        raise UserError(f"{path} is sampled at {sfreq:g} Hz; it is damaged, fetch it again")
    found, notes = electrodes_of(raw.ch_names, renamed, str(path))
    if missing := [name for name in electrodes if name not in found]:
        known = _short(", ".join(raw.ch_names), 1000)
        hint = f"--rename '{_short(raw.ch_names[0])}={missing[0]}' says which one a channel is"
        raise UserError(f"{path} has no electrode {', '.join(missing)}; it has {known}; {hint}")
    channels = [found[name] for name in electrodes]
    status = [name for name in raw.ch_names if name.lower() == "status"][-1:]
    signal, codes = read_signal(path, channels, raw, status)
    n_times = signal.shape[1]
    with _by_a_library(path):
        events = {"annotations": annotated_events(raw)}
        words = [_short(text, 60) for text in raw.annotations.description if not code_of(text)]
        events |= {"Status": status_events(codes[0])} if status else {}
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
    corrections = [what for _, what in unit_corrections(path, channels)]
    return ReadFile(signal, sfreq, chosen, sources, corrections, notes, words)


# ---------------------------------------------------------------- files that a file names


def companions(path: Path) -> list[Path]:
    """List what is read with a recording: what a BrainVision header names, the data beside an EEGLAB file.

    Raises UserError if a BrainVision header names a file in another folder, or one that is missing or truncated.
    """
    if path.suffix.lower() == ".set":  # it names one of these at most, if it holds no data itself
        return sorted(path.parent.glob("*.fdt"), key=lambda file: file.stat().st_size)[-1:]
    if path.suffix.lower() != ".vhdr":
        return []
    entries = [(name.lower(), value.strip()) for name, value in VHDR.findall(_text(path).split("[Comment]")[0])]
    files = [path.parent / value for name, value in entries if name in ("datafile", "markerfile")]
    check_beside(path, files)
    if missing := [_short(file.name) for file in files if not os.path.isfile(file)]:  # or the name is no possible one
        raise UserError(f"{path} names the file {missing[0]}, which is missing; it belongs beside the header")
    facts = dict(entries)
    n_chans, width = facts.get("numberofchannels", ""), VHDR_BYTES.get(facts.get("binaryformat"))
    if width and re.fullmatch(r"\d{1,9}", n_chans) and {"datafile", "markerfile"} <= set(facts):
        data, markers = path.parent / facts["datafile"], _text(path.parent / facts["markerfile"])
        n_times, more = divmod(data.stat().st_size, width * max(int(n_chans), 1))
        last = max(map(int, MARKER.findall(markers)), default=0)
        if more or n_times < last:
            there = f"{data.stat().st_size} bytes are {n_times} samples of {n_chans} channels and {more} bytes"
            raise UserError(f"{data} is truncated: {there}, and the last marker is at {last}; fetch it again")
    return files


def _text(path: Path) -> str:
    """Read a header or a list of markers in text."""
    content = plain_bytes(path, MAX_TEXT)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def check_beside(path: Path, files: Sequence[str | Path]) -> None:
    """Raise UserError where a recording would have files read that do not lie beside it."""
    folder = os.path.abspath(path.parent)
    for file in files:
        if os.path.dirname(os.path.abspath(file)) != folder:
            raise UserError(f"{path} names the file {_short(str(file))}; expected one beside it, in {folder}")


def _short(text: str, most: int = 200) -> str:
    """Make what a file says fit for a message."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


# ---------------------------------------------------------------- BDF and EDF headers


def read_header(path: Path) -> dict:
    """Read what decides on units and size in a BDF or EDF header (European Data Format, Kemp et al. 1992).

    Returns dict: labels, dimensions (lists of str); physical_min, physical_max, digital_min, digital_max (lists of
        float, NaN where there is no number); n_samples (list of int, of a record); duration (of a record, float,
        seconds); n_records (-1: left open), header_bytes, n_chans (int).
    Raises ValueError where a count is no whole number.
    """
    with open(path, "rb") as file:
        fixed = file.read(256)
        n = int(fixed[252:256])
        per_channel = file.read(256 * max(n, 0))
    fields, start = {}, 0
    for name, width in WIDTHS.items():
        column = per_channel[start : start + width * n]
        fields[name] = [column[k * width : (k + 1) * width].decode("latin-1").strip() for k in range(n)]
        start += width * n
    header = {name: fields[name] for name in ("labels", "dimensions")}
    header |= {name: [as_number(v) for v in fields[name]] for name in LIMITS}
    header["n_samples"] = [int(v) for v in fields["n_samples"]]
    header["duration"] = as_number(fixed[244:252].decode("latin-1"))
    return header | dict(n_records=int(fixed[236:244]), header_bytes=int(fixed[184:192]), n_chans=n)


def check_header(path: Path, electrodes: Sequence[str], renamed: Mapping[str, str] | None = None) -> None:
    """Refuse a BDF or EDF file whose header cannot be right, or that is shorter than its header says.

    MNE would read what is there, and make numbers of nothing. A header may leave the number of records open (-1): then
    the data must be whole records, and a notice says so. Of `electrodes`, under whatever names, the limits are checked.
    """
    if path.suffix.lower() not in SAMPLE_BYTES:
        return
    with loading(str(path), "its header is damaged; fetch it again", "read"):
        header = read_header(path)
    for what in _faults(header, electrodes, renamed, str(path)):
        raise UserError(f"{path}: its header says {what}; it is damaged, fetch it again")

    size, record = path.stat().st_size, sum(header["n_samples"]) * SAMPLE_BYTES[path.suffix.lower()]
    data, n_records = size - header["header_bytes"], header["n_records"]
    if size < (expected := header["header_bytes"] + n_records * record) and n_records >= 0:
        raise UserError(f"{path} is truncated: {size} bytes where its header says {expected}; fetch it again")
    if n_records == -1:
        if data < record or data % record:
            there = f"{data} bytes of data are no whole number of records of {record} bytes"
            raise UserError(f"{path} is truncated: {there}; fetch it again")
        n_records = data // record
        print(f"notice: {path}: its header leaves the number of records open; {n_records} are there")
    # MNE brings all channels to the highest rate among them
    content = 8 * len(electrodes) * n_records * max(header["n_samples"])
    if content > max(LOADED_SMALL, LOADED_RATIO * size):
        cause = f"one channel has {max(header['n_samples'])} samples a record; it is damaged, fetch it again"
        raise UserError(f"{path} has {size} bytes and would take {content >> 20} MB: {cause}")


def _faults(header: dict, electrodes: Sequence[str], renamed: Mapping[str, str] | None, where: str) -> Iterator[str]:
    """Yield what cannot be right in a header: what was found, and what was expected."""
    n = header["n_chans"]
    if n < 1:
        yield f"{n} channels; expected 1 or more"
    if header["header_bytes"] != 256 * (n + 1):
        yield f"that it has {header['header_bytes']} bytes; expected {256 * (n + 1)} for {n} channels"
    if header["n_records"] < 1 and header["n_records"] != -1:
        yield f"{header['n_records']} records; expected 1 or more, or -1 where it leaves the number open"
    if not 0 < header["duration"] < math.inf:
        yield f"that a record lasts {header['duration']:g} s; expected more than 0"
    for name, k in zip(header["labels"], header["n_samples"], strict=True):
        if k < 1:
            yield f"{k} samples a record of {_short(name)}; expected 1 or more"
    found = electrodes_of(header["labels"], renamed, where)[0] if electrodes else {}
    for name in [name for name in electrodes if name in found]:
        for kind in ("physical", "digital"):
            low, high = (header[f"{kind}_{side}"][header["labels"].index(found[name])] for side in ("min", "max"))
            if not (math.isfinite(low) and math.isfinite(high)) or low == high:
                yield f"{low:g} and {high:g} for the {kind} limits of {name}; expected two different numbers"


def unit_corrections(path: Path, electrodes: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """Find what MNE's numbers must be multiplied by, per electrode: [((n_chans,) factors, what it is), …]."""
    if path.suffix.lower() not in SAMPLE_BYTES:
        return []
    header = read_header(path)
    labels = [label.lower() for label in header["labels"]]
    places = [labels.index(name.lower()) for name in electrodes]
    limits = [(header["digital_min"][k], header["digital_max"][k]) for k in places]
    small = np.array([path.suffix.lower() == ".bdf" and max(map(abs, pair)) <= 2**15 for pair in limits])
    blank = np.array([not header["dimensions"][k] for k in places])
    wrong = {
        "24-bit samples under 16-bit digital limits: divided by 256": (small, 1 / 256),
        "no physical dimension: taken for microvolts": (blank, 1e-6),
    }
    return [(np.where(where, factor, 1), what) for what, (where, factor) in wrong.items() if where.any()]


# ---------------------------------------------------------------- events


def status_events(status: np.ndarray) -> list[tuple[int, int]]:
    """Find onsets of all values but the resting one, which is the most frequent (0 or 131071)."""
    values, counts = np.unique(status.astype(int), return_counts=True)
    rest = values[counts.argmax()]
    onsets = np.flatnonzero(np.diff(status.astype(int), prepend=rest))
    return [(int(k), int(status[k])) for k in onsets if status[k] != rest]


def code_of(description: str) -> int | None:
    """The number that an annotation is; None for one that says something else."""
    number = ANNOTATION.fullmatch(description.strip())
    return int(number[1]) if number else None


def annotated_events(raw: mne.io.BaseRaw) -> list[tuple[int, int]]:
    """Take annotations that are a number, perhaps behind "S" or "Stimulus/"; all others say something else."""
    if not len(raw.annotations):
        return []
    events, _ = mne.events_from_annotations(raw, event_id=code_of, regexp=None, verbose="ERROR")
    return [(int(sample) - raw.first_samp, int(value)) for sample, _, value in events]


def table_rows(path: Path, delimiter: str = "") -> tuple[list[str], list[tuple[int, dict]]]:
    """Columns, and lines with their numbers, of a small table with a head, by tabs, commas or semicolons.

    delimiter : str. Of those, the only one. Raises UserError where it is no such table.
    """
    content = plain_bytes(path, MAX_TEXT)
    with loading(str(path), "expected a table", "read as UTF-8 text"):
        text = content.decode("utf-8-sig")
        first = text.partition("\n")[0]
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter or max("\t,;", key=first.count))
        return list(rows.fieldnames or []), [(rows.line_num, row) for row in rows]


def tsv_events(path: Path, sfreq: float) -> list[tuple[int, int]]:
    """Read a BIDS `events.tsv`: `onset` in seconds, or `sample` or `latency` in samples, and `value`.

    Raises UserError if a column is missing, a number is none, or `onset` and samples disagree.
    """
    columns, rows = table_rows(path, "\t")
    times = [name for name in TIMES if name in columns]
    each_once = times and all(columns.count(name) == 1 for name in (*times, "value"))
    if (columns or rows) and not each_once:
        found = f"the columns {_short(', '.join(columns))}" if columns else "no columns in its first line"
        raise UserError(f"{path} has {found}; expected onset (or sample) and value, each once")
    return sorted(_event(row, times, sfreq, f"{path}, line {line}") for line, row in rows)


def _event(row: dict, times: list[str], sfreq: float, where: str) -> tuple[int, int]:
    try:
        samples = [float(row[name]) * (sfreq if name == "onset" else 1) for name in times if row[name] != "n/a"]
        samples = [round(sample) for sample in samples]
        code = float(row["value"])
        if code != int(code) or max(map(abs, [*samples, code])) > LARGEST:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: {str(dict(row))[:200]}; expected numbers in {', '.join(times)}, value") from None
    if not samples or max(samples) - min(samples) > TOLERANCE:
        raise UserError(f"{where}: {', '.join(times)} give the samples {samples}; expected the same")
    return samples[0], int(code)


def compare_events(path: Path, name: str, events: list, other_name: str, others: list) -> None:
    """Raise UserError where two sources differ by more than a sample or in a code."""
    if len(events) != len(others):
        raise UserError(f"{path}: {len(events)} events in {name}, {len(others)} in {other_name}; mend or remove one")
    for number, (a, b) in enumerate(zip(events, others, strict=True), start=1):
        if abs(a[0] - b[0]) > TOLERANCE or a[1] != b[1]:
            both = f"code {a[1]} at sample {a[0]} in {name} and code {b[1]} at sample {b[0]} in {other_name}"
            raise UserError(f"{path}: event {number} is {both}; mend or remove one")
