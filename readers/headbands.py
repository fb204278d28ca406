"""Tables of samples that headbands' apps write (Muse, OpenBCI, …), and XDF: one file in, an MNE recording out.

A table has a row a sample: columns named by electrode in microvolts, a column of times or a rate in its head, and
perhaps a column of markers. Recorders write such rows late, in bunches, and lose some: a line fitted through the times
between two gaps says when each sample was taken, and the samples are brought to an even rate.
"""

import csv
import gzip
import io
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from readers.electrode_names import electrodes_of
from utils.errors import UserError
from utils.limits import MAX_RATIO, SMALL

TIME = re.compile(r"(?i)(time|timestamps?|t|seconds?|lsl_?time(stamp)?s?|unix.*time.*|time ?\(.*\)|%?timestamp.*)")
MARKER = re.compile(r"(?i)(markers?|stim(ulus)?|triggers?|events?|labels?|status|class|annotations?)[ _]?(channel)?\d*")
COUNTER = re.compile(r"(?i)(index|counter|package|number|battery)")
RATE = re.compile(r"(?i)sampl\w*[ _]rate\s*[=:]\s*([\d.]+)")
RATES = (50.0, 20_000.0)  # Hz, of a table that holds samples
GAP, PAUSE = 1.8, 0.05  # steps without a sample that end a line of times; seconds without one that spoil a trial
LARGEST = 2 << 30  # bytes of a table that is unpacked
GAP_MARK = "BAD_GAP"


def read_table(
    path: Path, sfreq: float | None = None, marker: str | None = None, renamed: Mapping[str, str] | None = None
) -> "mne.io.BaseRaw":  # noqa: F821
    """Read a table of samples: electrodes, and markers and gaps as annotations.

    sfreq : float, optional. Hz, of a table without times. marker : str, optional. The column of markers.
    renamed : mapping, optional. Column → electrode.
    Raises UserError where it is no such table, its rate cannot be, or it names no electrode.
    """
    head, rows, comments = _rows(path)
    columns = {name: k for k, name in enumerate(head)}
    electrodes, _ = electrodes_of(head, renamed, str(path))
    if not electrodes:
        others = [name for name in head if not (TIME.fullmatch(name) or COUNTER.search(name) or MARKER.fullmatch(name))]
        hint = f"--rename '{(others or head)[0]}=Cz' says which one is"
        raise UserError(f"{path} has the columns {', '.join(head)[:300]}; none is named as an electrode: {hint}")
    times = next((name for name in head if TIME.fullmatch(name.strip())), None)
    signal = np.array([[as_number(row[columns[name]]) for name in electrodes.values()] for row in rows]).T  # (C, N)
    stated = next((float(m[1]) for m in map(RATE.search, comments) if m), None)
    if times is not None:
        seconds = _seconds([row[columns[times]] for row in rows], path, sfreq or stated)
    elif sfreq or stated:
        seconds = np.arange(len(rows)) / (sfreq or stated)
    else:
        raise UserError(f"{path} has no column of times; expected one (timestamps), or --sfreq")
    names = [marker] if marker else [name for name in head if MARKER.fullmatch(name.strip())]
    if marker and marker not in columns:
        raise UserError(f"{path} has no column {marker}; it has {', '.join(head)[:300]}")
    marks = [[row[columns[name]].strip() for row in rows] for name in names]
    marks = next((said for said in marks if len(set(said)) > 1), [])  # of a column that says more than one thing
    return _even(path, signal, list(electrodes.values()), seconds, _onsets(marks), sfreq)


def _rows(path: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """The head, the rows and the comments of a table, whatever it is parted by, decimal commas put right."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    most = min(LARGEST, max(MAX_RATIO * path.stat().st_size, SMALL)) if packed else LARGEST
    with gzip.open(path) if packed else open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} unpacks to more than {most >> 20} MB; that is no recording")
    lines = content.decode("utf-8-sig").splitlines()
    comments = [line for line in lines[:50] if line.startswith(("%", "#"))]
    first = next((k for k, line in enumerate(lines) if line.strip() and not line.startswith(("%", "#"))), None)
    if first is None:
        raise UserError(f"{path} is empty; expected a table of samples")
    delimiter = max(",;\t", key=lines[first].count)
    table = list(csv.reader(io.StringIO("\n".join(lines[first:])), delimiter=delimiter))
    head = [name.strip() for name in table[0]]
    short = range(len(head) - 2, len(head))  # cells that are empty at a row's end are left out by some apps
    rows = [row + [""] * (len(head) - len(row)) if len(row) in short else row for row in table[1:]]
    rows = [row for row in rows if len(row) == len(head)]
    if len(rows) < 10 or len(rows) < 0.9 * (len(table) - 1):
        raise UserError(f"{path} has {len(rows)} whole rows of {len(table) - 1}; expected a sample in each")
    if delimiter == ";":
        rows = [[cell.replace(",", ".") for cell in row] for row in rows]
    return head, rows, comments


def as_number(text: str) -> float:
    """The number that a text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return np.nan


def _seconds(column: Sequence[str], path: Path, sfreq: float | None) -> np.ndarray:
    """Times in seconds from the first one on, whatever unit they are written in."""
    times, units = np.array([as_number(text) for text in column]), (1.0, 1e-3, 1e-6, 1e-9)  # seconds, ms, µs, ns
    if np.isnan(times).mean() > 0.5:
        dates = [datetime.fromisoformat(text.strip().replace("Z", "+00:00")) for text in column]
        times, units = np.array([date.timestamp() for date in dates]), units[:1]
    good = np.isfinite(times)
    if 1e8 < times[good][0] < 1e18:  # since 1970: only one of the units gives a date of these decades
        units = [unit for unit in units if 1e8 < times[good][0] * unit < 1e10] or units
    times = np.interp(np.arange(len(times)), np.flatnonzero(good), times[good])  # a time that is missing
    lasts = np.percentile(times, 99) - np.percentile(times, 1)
    for unit in units:  # the one that makes the rate an EEG's
        rate = 0.98 * len(times) / (lasts * unit) if lasts > 0 else 0.0
        if RATES[0] <= rate <= RATES[1] and (sfreq is None or 0.5 < rate / sfreq < 2):
            return (times - times[0]) * unit
    rate = 0.98 * len(times) / lasts if lasts > 0 else 0.0
    raise UserError(
        f"{path} has {rate:.3g} rows a second; expected the raw samples, {RATES[0]:g} a second or more: let the app "
        "record all samples (no averages, no band powers), or give --sfreq where its times are wrong"
    )


def _onsets(marks: Sequence[str]) -> list[tuple[int, str]]:
    """(row, text) where a marker begins; nothing, 0 and -1 are rest."""
    rest, onsets, before = ("", "0", "0.0", "-1", "nan", "NaN", "None"), [], ""
    for row, mark in enumerate(marks):
        if mark != before and mark not in rest:
            onsets.append((row, mark))
        before = mark
    return onsets


def _even(
    path: Path, signal: np.ndarray, channels: list[str], seconds: np.ndarray, onsets: list, sfreq: float | None
) -> "mne.io.BaseRaw":  # noqa: F821
    """Samples at an even rate, from samples at the times of lines fitted between gaps."""
    import mne
    from scipy.interpolate import CubicSpline

    backwards = np.flatnonzero(np.diff(seconds) < -1.0)  # the clock was put back, or two recordings in one file
    if len(backwards):
        raise UserError(f"{path}: its times go back at row {backwards[0] + 2}; cut the file there")
    seconds = np.maximum.accumulate(seconds)
    steps = np.diff(seconds)
    usual = np.percentile(steps[steps > 0], 99) if (steps > 0).any() else 0.0
    cuts = np.flatnonzero(steps > GAP * usual) + 1
    pieces = [np.arange(a, b) for a, b in zip([0, *cuts], [*cuts, len(seconds)], strict=True)]
    long = max(pieces, key=len)
    step = np.polyfit(long - long[0], seconds[long], 1)[0]  # seconds a sample, by the longest piece
    rate = sfreq or float(round(1 / step))
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{path} has {rate:g} samples a second; expected {RATES[0]:g} to {RATES[1]:g}")
    fitted = np.concatenate([(piece - piece.mean()) * step + seconds[piece].mean() for piece in pieces])  # (N,)
    fitted = np.maximum.accumulate(fitted) + np.arange(len(fitted)) * 1e-9  # pieces may touch
    grid = np.arange(fitted[0], fitted[-1], 1 / rate)
    even = np.empty((len(signal), len(grid)))
    missing = np.zeros(len(grid), bool)
    for chan, samples in enumerate(signal):
        good = np.isfinite(samples)
        if good.sum() < 10:
            raise UserError(f"{path}: column {channels[chan]} holds no numbers; leave the electrode out")
        even[chan] = CubicSpline(fitted[good], samples[good])(grid)
        times = fitted[good]
        after = np.searchsorted(times, grid).clip(1, len(times) - 1)
        missing |= (times[after] - times[after - 1] > PAUSE) & (grid > times[after - 1]) & (grid < times[after])
        even[chan, missing] = np.interp(grid[missing], fitted[good], samples[good])  # a spline swings across a gap
    info = mne.create_info(channels, rate, "eeg")
    raw = mne.io.RawArray(even * 1e-6, info, verbose="ERROR")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    times = [*(fitted[row] - fitted[0] for row, _ in onsets), *(edges[::2] / rate)]
    durations = [*(0.0 for _ in onsets), *((edges[1::2] - edges[::2]) / rate)]
    texts = [*(text for _, text in onsets), *[GAP_MARK] * (len(edges) // 2)]
    return raw.set_annotations(mne.Annotations(times, durations, texts))


def read_xdf(path: Path, sfreq: float | None = None, *_) -> "mne.io.BaseRaw":  # noqa: F821
    """Read the EEG stream of an XDF file (Lab Streaming Layer), and its streams of markers as annotations.

    Raises ImportError where pyxdf is not installed, UserError where no stream is EEG.
    """
    import pyxdf

    streams, _ = pyxdf.load_xdf(str(path))
    of = {kind: [s for s in streams if s["info"]["type"][0].lower() == kind] for kind in ("eeg", "markers")}
    if not of["eeg"]:
        kinds = ", ".join(sorted({s["info"]["type"][0] for s in streams}))
        raise UserError(f"{path} has no stream of the type EEG; it has {kinds}")
    stream = max(of["eeg"], key=lambda s: len(s["time_stamps"]))
    signal, seconds = np.asarray(stream["time_series"], float).T, np.asarray(stream["time_stamps"])
    described = (stream["info"].get("desc") or [None])[0] or {}
    channels = ((described.get("channels") or [{}])[0] or {}).get("channel", [])
    labels = [channel["label"][0] for channel in channels]
    labels = labels if len(labels) == len(signal) else [f"channel {k + 1}" for k in range(len(signal))]
    units = [(channel.get("unit") or [""])[0] for channel in channels]
    if units and all(str(unit).lower() in ("v", "volts", "volt") for unit in units):
        signal = signal * 1e6
    onsets = [
        (int(np.searchsorted(seconds, time)), str(np.ravel(value)[0]))
        for s in of["markers"]
        for time, value in zip(s["time_stamps"], s["time_series"], strict=True)
    ]
    inside = [(row, text) for row, text in sorted(onsets) if row < len(seconds)]
    return _even(path, signal, labels, seconds - seconds[0], inside, sfreq or float(stream["info"]["nominal_srate"][0]))
