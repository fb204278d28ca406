"""Reader of GDF recordings through MNE, versions 1 and 2: the header is checked first, units are put right.

"GDF: A general dataformat for biosignals", Schlögl, arXiv cs/0608052, and the BioSig project's tables of types and
units.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.limits import LOADED_RATIO, LOADED_SMALL, guarded

SAMPLE_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 8, 8: 8, 16: 4, 17: 8}  # type of a channel → bytes of a sample
# physical dimension → volts; "" and codes of no unit: taken for microvolts, as for BDF
UNITS = {4256: 1.0, 4274: 1e-3, 4275: 1e-6, 4276: 1e-9, "V": 1.0, "mV": 1e-3, "uV": 1e-6, "µV": 1e-6, "nV": 1e-9}
BLANK = {0, 512, ""}
BY_MNE = {4274: 1e-3, 4275: 1e-6, "uV": 1e-6}  # what MNE multiplies by; all others by 1
# columns of the header, a field a channel, by version: their types, and a name where they are read
COLUMNS = {
    1: "label=16s 80x unit=8s physical_min=d physical_max=d digital_min=q digital_max=q 80x n_samples=I type=I 32x",
    2: "label=16s 86x unit=H physical_min=d physical_max=d digital_min=d digital_max=d 80x n_samples=I type=I 32x",
}


@dataclass
class GDFFile:
    """What a file holds."""

    signal: np.ndarray  # (n_chans, n_times) float64: the channels that were asked for, microvolts
    sfreq: float  # Hz
    events: list[tuple[int, int]]  # 0-based sample and code, in order of time
    gaps: np.ndarray  # (n_times,) bool: nothing was recorded, all channels at the lower end of their range, or NaN
    corrections: list[str]  # what was wrong with the units and put right


def read_gdf(path: Path, picks: Sequence[int]) -> GDFFile:
    """Read some channels of a GDF file, by their places in it, and its events.

    Raises UserError if the file is truncated or damaged, or a channel is in a unit that is no voltage.
    """
    import mne  # slow to import, and a script's -h reads the datasets' files

    header = check_gdf(path)
    unit, low, step = ([header[name][k] for k in picks] for name in ("unit", "physical_min", "step"))
    if unknown := next((u for u in unit if u not in UNITS and u not in BLANK), None):
        raise UserError(f"{path}: its channels have the unit {unknown!r}; expected a voltage")
    with guarded(path):
        raw = mne.io.read_raw_gdf(path, preload=False, verbose="ERROR")
        signal, sfreq = raw.get_data(picks=list(picks)), float(raw.info["sfreq"])
        at = np.round(raw.annotations.onset * sfreq).astype(int)
        codes = [int(text) for text in raw.annotations.description]
    microvolts = np.array([1e6 * UNITS.get(u, 1e-6) for u in unit])
    signal *= (microvolts / [BY_MNE.get(u, 1.0) for u in unit])[:, None]
    low, step = microvolts * low, np.abs(microvolts * step)
    gaps = ~(np.abs(signal - low[:, None]) > step[:, None] / 2).any(axis=0)  # NaN is not larger
    events = sorted((sample, code) for sample, code in zip(at.tolist(), codes, strict=True))
    blank = "no physical dimension: taken for microvolts"
    return GDFFile(signal, sfreq, events, gaps, [blank] if set(unit) & BLANK else [])


def check_gdf(path: Path) -> dict:
    """Read a GDF header, by channel: label, unit, physical_min, step (of a sample) and so on.

    Raises UserError if it cannot be right, or the file is shorter than it says.
    """
    size = path.stat().st_size if path.is_file() else 0
    try:
        with open(path, "rb") as file:
            fixed = file.read(256)
            version = float(fixed[3:8])
            if fixed[:3] != b"GDF" or not 1 <= version < 4:
                raise ValueError("no GDF of version 1 or 2")
            kind = 1 if version < 1.9 else 2
            n_records, over, under = struct.unpack_from("<qII", fixed, 236)
            (n,) = struct.unpack_from("<I" if kind == 1 else "<H", fixed, 252)
            (header_bytes,) = struct.unpack_from("<q" if kind == 1 else "<H", fixed, 184)
            header_bytes *= 1 if kind == 1 else 256
            if not 1 <= n <= 10_000 or header_bytes < 256 * (n + 1) or header_bytes > size:
                raise ValueError(f"{n} channels in a header of {header_bytes} bytes")
            columns, header = file.read(256 * n), {}
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: its header is damaged ({error}); fetch it again") from None
    start = 0
    for column in COLUMNS[kind].split():
        name, _, code = column.rpartition("=")
        width = struct.calcsize("<" + code)
        if name:
            values = [struct.unpack_from("<" + code, columns, start + k * width)[0] for k in range(n)]
            texts = isinstance(values[0], bytes)
            header[name] = [v.split(b"\0")[0].decode("latin-1").strip() for v in values] if texts else values
        start += width * n
    limits = [header[f"{of}_{end}"] for of in ("physical", "digital") for end in ("min", "max")]
    for what in _faults(header, limits, n_records, over, under):
        raise UserError(f"{path}: its header says {what}; it is damaged, fetch it again")
    record = sum(k * SAMPLE_BYTES[t] for k, t in zip(header["n_samples"], header["type"], strict=True))
    if size < (expected := header_bytes + n_records * record):
        raise UserError(f"{path} is truncated: {size} bytes where its header says {expected}; fetch it again")
    _check_events(path, version, expected, size)
    # MNE brings all channels to the highest rate among them
    content = 8 * n * n_records * max(header["n_samples"])
    if content > max(LOADED_SMALL, LOADED_RATIO * size):
        raise UserError(f"{path} has {size} bytes and would take {content >> 20} MB; it is damaged, fetch it again")
    header["step"] = [(b - a) / (d - c) for a, b, c, d in zip(*limits, strict=True)]
    return header


def _check_events(path: Path, version: float, start: int, size: int) -> None:
    """Raise UserError where the table of events, behind the samples, is cut off: MNE would read what is there."""
    with open(path, "rb") as file:
        file.seek(start)
        mode, *head = file.read(8).ljust(8, b"\0")
    n = int.from_bytes(head[:3] if version >= 1.94 else head[3:], "little")
    expected = start + 8 + n * (12 if mode == 3 else 6)
    if start < size < expected:
        raise UserError(f"{path} is truncated: {size} bytes, its table of events ends at {expected}; fetch it again")


def _faults(header: dict, limits: list, n_records: int, over: int, under: int):
    if n_records < 1:
        yield f"{n_records} records"
    if under < 1 or over < 1:
        yield f"that a record lasts {over}/{under} s"
    if not all(t in SAMPLE_BYTES for t in header["type"]) or not all(1 <= k <= 1 << 24 for k in header["n_samples"]):
        yield "a type of channel, or a number of samples, that there is not"
    for a, b, c, d in zip(*limits, strict=True):
        if not all(map(math.isfinite, (a, b, c, d))) or a == b or c == d:
            yield f"{a:g} to {b:g} for {c:g} to {d:g} as a channel's limits"
