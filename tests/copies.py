"""Writers of the copies in which the field has the known data sets."""

import struct

import numpy as np


def write_gdf(path, signal, events, sfreq=250, version=2, unit=None, step=0.1, n_records=None, names=None):
    """A GDF file of 16-bit samples of `step` units, one second a record.

    signal : (n_chans, n_times) array. NaN becomes the lower end of the range, as the competition marks gaps.
    events : list of (int, int). 0-based sample and code.
    """
    n, n_times = signal.shape
    n_times -= n_times % sfreq
    records = n_times // sfreq if n_records is None else n_records
    counts = np.where(np.isnan(signal), -32768, np.clip(np.round(signal / (step or 1)), -32767, 32767))[:, :n_times]
    limits = (-32768 * step, 32767 * step, -32768, 32767)
    labels = names or [f"EEG-{k}" for k in range(n)]
    head = bytearray(256)
    head[:8] = b"GDF 1.25" if version == 1 else b"GDF 2.20"
    if version == 1:
        head[168:184] = b"2005010112000000"
        struct.pack_into("<q", head, 184, 256 * (n + 1))
        struct.pack_into("<I", head, 252, n)
        middle = [b"\0" * 80 * n, (b"uV" if unit is None else unit).ljust(8, b"\0") * n]
        middle += [*(struct.pack("<d", v) * n for v in limits[:2]), *(struct.pack("<q", v) * n for v in limits[2:])]
        middle += [b"\0" * 80 * n]
    else:
        head[8:9] = head[88:89] = b"X"
        struct.pack_into("<H", head, 184, 1 + n)
        struct.pack_into("<H", head, 252, n)
        middle = [b"\0" * 80 * n, b"\0" * 6 * n, struct.pack("<H", 4275 if unit is None else unit) * n]
        middle += [struct.pack("<d", v) * n for v in limits] + [b"\0" * 68 * n]
        middle += [struct.pack("<f", v) * n for v in (100.0, 0.5, 50.0)]
    struct.pack_into("<q", head, 236, records)
    struct.pack_into("<II", head, 244, 1, 1)
    columns = [b"".join(label.encode().ljust(16, b"\0")[:16] for label in labels), *middle]
    columns += [struct.pack("<I", sfreq) * n, struct.pack("<I", 3) * n, b"\0" * 32 * n]
    body = counts.astype("<i2").reshape(n, -1, sfreq).transpose(1, 0, 2).tobytes()
    at, codes = (np.array([event[k] for event in events]) for k in (0, 1))
    m = len(events)
    if version == 1:
        table = struct.pack("<B", 3) + struct.pack("<I", sfreq)[:3] + struct.pack("<I", m)
    else:
        table = struct.pack("<B", 3) + struct.pack("<I", m)[:3] + struct.pack("<f", sfreq)
    table += (at + 1).astype("<u4").tobytes() + codes.astype("<u2").tobytes() + bytes(2 * m)
    table += np.full(m, sfreq, "<u4").tobytes()
    path.write_bytes(bytes(head) + b"".join(columns) + body + table)
    return path
