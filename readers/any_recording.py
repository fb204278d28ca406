"""Recordings of whatever recorder: a file in, its electrodes, rate, events and signal in microvolts out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mne
import numpy as np

from readers.electrode_names import OTHERS, electrodes_of, numbered_cap, standard_core
from readers.headbands import GAP_MARK
from readers.recordings import TABLES, open_recording, status_events, suffix_of, table_rows
from utils.errors import UserError

# annotations that say something else than what was shown
REST = re.compile(
    r"(?i)(bad.*|edge.*|boundary|new segment.*|.*/new segment.*|.*lost samples.*|impedance.*|recording .*|"
    r"segment: .*|\+\d+\.\d+)"
)
BAD = re.compile(r"(?i)\s*bad(?![a-z])")  # MNE's mark of what is not to be used
BREAK = re.compile(rf"(?i)(bad_acq_skip|boundary|edge.*|{GAP_MARK}|.*lost samples.*)")  # samples that do not follow on
EVENT_TIMES = {"onset": 1.0, "time": 1.0, "latency": 0.0, "sample": 0.0}  # column → seconds a unit; 0: samples
CLASS_COLUMNS = "trial_type class label condition category value event stimulus marker type".split()


@dataclass
class Found:
    """What a recording holds."""

    electrodes: dict[str, str]  # standard name → channel, in the order of the file
    sfreq: float  # Hz
    n_times: int  # samples
    events: list[tuple[float, str]]  # seconds from the first sample, and what the recording or its table says
    events_from: str = ""  # where the events stand
    rows: list[dict] = field(default_factory=list)  # the table's row of each event, where there is one
    # from and to, in seconds: no samples, or samples that do not follow on
    breaks: list[tuple[float, float]] = field(default_factory=list)
    bad: list[tuple[float, float]] = field(default_factory=list)  # the same of what is marked as bad ("BAD_muscle")
    positions: dict = field(default_factory=dict)  # channel → (3,) metres, where the recording tells
    others: list[str] = field(default_factory=list)  # channels left out
    notes: list[str] = field(default_factory=list)  # what was understood, in words


def file_facts(
    path: Path,
    renamed: Mapping[str, str] | None = None,
    sfreq: float | None = None,
    trigger: str | None = None,
    table: Path | None = None,
    class_column: str | None = None,
    raw: mne.io.BaseRaw | None = None,
    not_eeg: Sequence[str] = (),
) -> Found:
    """What a recording holds, without its signal.

    renamed : mapping, optional. Channel → electrode, of --rename. trigger : str, optional. The channel with the events.
    table : Path, optional. A table of onsets beside the recording; it goes before annotations and triggers.
    class_column : str, optional. The table's column with the classes (default: the first of `CLASS_COLUMNS`).
    raw : optional. The recording, where it is open already. not_eeg : sequence of str. Channels of other kinds.
    """
    raw = open_recording(path, sfreq, trigger, renamed) if raw is None else raw
    rate, n_times = float(raw.info["sfreq"]), len(raw.times)
    of_kind = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
    eeg = [name for name, kind in of_kind.items() if kind in ("eeg", "misc", "bio", "seeg", "ecog", "dbs")]
    eeg = [name for name in eeg if name not in not_eeg]
    renamed = {channel: electrode for channel, electrode in (renamed or {}).items() if channel in of_kind}
    cap = [name for name in numbered_cap(eeg) if name not in renamed]  # its C3 is another one than the 10-20 system's
    named = [name for name in eeg if name not in cap]
    electrodes, notes = electrodes_of([*named, *(name for name in renamed if name not in eeg)], renamed, str(path))
    montage = raw.get_montage()
    positions = {} if montage is None else montage.get_positions()["ch_pos"]
    positions = {name: np.asarray(xyz) for name, xyz in positions.items() if np.isfinite(xyz).all() and np.any(xyz)}
    inside = set(electrodes.values())
    others = [name for name in eeg if name not in inside and not OTHERS.fullmatch(standard_core(name)) or name in cap]
    begins = raw.first_samp / rate if raw.annotations.orig_time is not None else 0.0
    marks = [(float(a["onset"]) - begins, float(a["duration"]), str(a["description"])) for a in raw.annotations]
    breaks = [(onset, onset + max(lasts, 1 / rate)) for onset, lasts, text in marks if BREAK.fullmatch(text)]
    bad = [(onset, onset + lasts) for onset, lasts, text in marks if BAD.match(text) and not BREAK.fullmatch(text)]
    marks = [mark for mark in marks if not BAD.match(mark[2])]
    if spoilt := [name for name in raw.info["bads"] if name in electrodes.values()]:
        hint = "--electrodes names those that are read"
        notes.append(f"marked as bad and read all the same: {', '.join(spoilt)}; {hint}")
    rows = read_onsets(table, rate, class_column) if table else []
    if table:
        events, source = [(seconds, text) for seconds, text, _ in rows], table.name
    elif trigger and trigger in of_kind:
        events, source = _triggers(raw, trigger, rate), trigger
    else:
        said = [(onset, text.strip()) for onset, _, text in marks]
        events = [(onset, _plain(text)) for onset, text in said if text and not REST.fullmatch(text)]
        source, usual = "annotations" if events else "", ("status", "trigger", "stim", "marker")
        for name in sorted(of_kind, key=lambda name: of_kind[name] != "stim"):
            if not events and (of_kind[name] == "stim" or name.lower() in usual):
                events, source = _triggers(raw, name, rate), name
    if trigger and trigger not in of_kind and suffix_of(path) not in TABLES:
        raise UserError(f"--trigger {trigger}: {path} has no such channel; it has {', '.join(of_kind)[:300]}")
    rows = [row for *_, row in rows]
    return Found(electrodes, rate, n_times, events, source, rows, breaks, bad, positions, others, notes)


def _triggers(raw: mne.io.BaseRaw, name: str, rate: float) -> list[tuple[float, str]]:
    """Onsets of all values of a trigger channel but the resting one. The lower 16 bits count: above them BioSemi's
    recorder keeps its own state."""
    values = raw.get_data(picks=[name])[0]
    if raw.info["chs"][raw.ch_names.index(name)]["unit"] == 107:  # volts: a trigger that a reader took for EEG
        values = values * 1e6
    values = np.round(values).astype(np.int64) & 0xFFFF
    if len(np.unique(values)) > 1000:
        raise UserError(f"channel {name} has over 1000 values; that is no trigger channel: --trigger names another")
    return [(sample / rate, str(code)) for sample, code in status_events(values)]


def _plain(text: str) -> str:
    """An annotation without what recorders put before it: "Stimulus/S  3" → "3", "3.0" → "3"."""
    text = re.sub(r"(?i)^(stimulus|response|comment|trigger|event)/", "", text.strip())
    number = re.fullmatch(r"[SR#]?\s*(\d+)(?:\.0*)?", text)
    return number[1] if number else text


# ---------------------------------------------------------------- tables of onsets


def table_beside(path: Path) -> Path | None:
    """A table of onsets that lies beside a recording and has its name."""
    stem = path.name[: -len(suffix_of(path))]
    stems = [stem, re.sub(r"_eeg$", "", stem)]
    names = [
        f"{s}{end}{ending}" for s in stems for end in ("_events", "_onsets", "") for ending in (".tsv", ".csv", ".txt")
    ]
    return next((path.with_name(name) for name in names if name != path.name and path.with_name(name).is_file()), None)


def read_onsets(path: Path, sfreq: float, class_column: str | None) -> list[tuple[float, str, dict]]:
    """(seconds, class, row) of each line of a table: BIDS' events.tsv, or one of one's own.

    A time stands in onset (seconds), or in sample or latency (samples). Lines without a class ("n/a") are left out.
    Raises UserError where a column is missing or a time is no number.
    """
    columns, rows = table_rows(path)
    named = {column.lower(): column for column in reversed(columns)}
    time = next((named[name] for name in EVENT_TIMES if name in named), None)
    usual = [named[name] for name in CLASS_COLUMNS if name in named]
    says = [column for column in usual if any((row[column] or "n/a").strip() not in ("n/a", "") for _, row in rows)]
    column = class_column or (says or [None])[0]
    if not rows or time is None or column not in columns:
        found = ", ".join(columns)[:300] or "none"
        wanted = class_column or "trial_type (or class, label, value; --class_column names another)"
        raise UserError(f"{path} has the columns {found}; expected onset (or sample) and {wanted}")
    events = []
    for number, row in rows:
        name = (row[column] or "").strip()
        if name in ("", "n/a"):
            continue
        try:
            seconds = float(row[time]) * (EVENT_TIMES[time.lower()] or 1 / sfreq)
        except (TypeError, ValueError):
            raise UserError(f"{path}, line {number}: {time} is {str(row[time])[:40]!r}; expected a number") from None
        if not abs(seconds) < 1e7:
            raise UserError(f"{path}, line {number}: {time} is {seconds:g} s")
        events.append((seconds, _plain(name), {k: (v or "").strip() for k, v in row.items() if k}))
    return sorted(events, key=lambda event: event[0])
