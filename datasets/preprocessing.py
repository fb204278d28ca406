"""From a continuous run to trials in microvolts: the same steps for every dataset, in one place.

Filter in second-order sections on purpose: in transfer-function form the same Butterworth filter is unstable at
1000 Hz (its largest pole has modulus 1.006).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.signal import butter, sosfiltfilt

from utils.errors import UserError

AT_ONCE = 1 << 20  # samples of some electrodes that are filtered together


@dataclass(frozen=True)
class Preprocessing:
    """The settings of one run over a dataset; all of them go into the store's metadata."""

    tmin: float  # window in seconds after the trial's reference sample
    tmax: float  # excluded
    reference: str = "average"  # or "none"; "average" subtracts the mean over electrodes at each sample
    l_freq: float = 0.3  # Hz, corner frequencies of the band-pass
    h_freq: float = 50.0
    order: int = 5  # Butterworth's; the filter runs forwards and backwards, so the phase is zero
    reject: float | None = None  # microvolts: trials with a larger amplitude at any electrode are left out

    def as_dict(self) -> dict:
        """What the store's metadata says; without `reject` where nothing is rejected, as before it was there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def filter_run(signal: np.ndarray, sfreq: float, settings: Preprocessing) -> np.ndarray:
    """Reference, then zero-phase band-pass over the whole run.

    signal : (n_chans, n_times) array. Microvolts.
    sfreq : float. Hz.
    Returns (n_chans, n_times) float64 array, microvolts.
    """
    filtered = signal - (signal.mean(axis=0, keepdims=True) if settings.reference == "average" else 0.0)
    sos = butter(settings.order, (settings.l_freq, settings.h_freq), "bandpass", fs=sfreq, output="sos")
    some = max(1, AT_ONCE // filtered.shape[1])  # the filter makes several copies, and a recording can be 600 MB
    for start in range(0, len(filtered), some):
        filtered[start : start + some] = sosfiltfilt(sos, filtered[start : start + some])
    return filtered


def band_filter(band: Sequence[float], sfreq: float, n_times: int) -> np.ndarray:
    """A fourth-order Butterworth band-pass of cut trials, for `sosfiltfilt`; UserError where they cannot have one."""
    low, high = band
    if not 0 < low < high < sfreq / 2:
        raise UserError(f"--band {low:g} {high:g}: expected 0 < LOW < HIGH < {sfreq / 2:g} Hz, half the store's rate")
    if n_times < sfreq / low:
        longest = f"trials of {n_times / sfreq:g} s do not hold one wave of {low:g} Hz"
        raise UserError(f"--band {low:g} {high:g}: {longest}")
    return butter(4, (low, high), "bandpass", fs=sfreq, output="sos")


def window(onset: int, sfreq: float, settings: Preprocessing) -> slice:
    """The samples of a trial's window in its run; as long as `tmax - tmin` wherever it begins."""
    start = int(onset) + round(settings.tmin * sfreq)
    return slice(start, start + round((settings.tmax - settings.tmin) * sfreq))
