"""From a continuous run to trials: the same steps for every dataset, in one place.

Filter in second-order sections on purpose: in transfer-function form the same Butterworth filter is unstable at
1000 Hz (its largest pole has modulus 1.006).
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.signal import butter, resample_poly, sosfiltfilt

SFREQ = 200  # Hz, CSBrain's
PATCH = 200  # samples, one second
SCALE = 100.0  # microvolts a unit, the published division


@dataclass(frozen=True)
class Preprocessing:
    """The settings of one run over a dataset; all of them go into the store's metadata.

    Attributes
    ----------
    tmin, tmax : float
        Window in seconds after the trial's reference sample; `tmax` excluded.
    l_freq, h_freq : float
        Hz, corner frequencies of the band-pass.
    order : int
        Butterworth order; the filter runs forwards and backwards, so the phase is zero.
    """

    tmin: float
    tmax: float
    l_freq: float = 0.3
    h_freq: float = 50.0
    order: int = 5

    @property
    def n_patches(self) -> int:
        return round((self.tmax - self.tmin) * SFREQ) // PATCH

    def as_dict(self) -> dict:
        return asdict(self) | {"reference": "common average", "resampling": "polyphase", "sfreq": SFREQ, "scale": SCALE}


def filter_run(signal: np.ndarray, sfreq: float, settings: Preprocessing) -> np.ndarray:
    """Common average reference, then zero-phase band-pass over the whole run.

    Parameters
    ----------
    signal : (n_chans, n_times) array
        Microvolts.
    sfreq : float
        Hz.

    Returns
    -------
    (n_chans, n_times) float64 array, microvolts.
    """
    filtered = signal - signal.mean(axis=0, keepdims=True)
    sos = butter(settings.order, (settings.l_freq, settings.h_freq), "bandpass", fs=sfreq, output="sos")
    for chan in filtered:  # one at a time: the filter makes several copies, and a recording can be 600 MB
        chan[:] = sosfiltfilt(sos, chan)
    return filtered


def window(onset: int, sfreq: float, settings: Preprocessing) -> slice:
    """The samples of a trial's window in its run; as long as `tmax - tmin` wherever it begins."""
    start = onset + round(settings.tmin * sfreq)
    return slice(start, start + round((settings.tmax - settings.tmin) * sfreq))


def cut_trial(filtered: np.ndarray, onset: int, sfreq: float, settings: Preprocessing) -> np.ndarray:
    """One trial from a filtered run.

    Parameters
    ----------
    filtered : (n_chans, n_times) array
        Microvolts.
    onset : int
        0-based reference sample; its `window` must lie inside the run.

    Returns
    -------
    (n_chans, n_patches, 200) float32 array in units of 100 µV.
    """
    common = int(np.gcd(SFREQ, round(sfreq)))
    # polyphase and not FFT: an FFT resample rings at the ends of the window
    trial = filtered[:, window(onset, sfreq, settings)]
    trial = resample_poly(trial, SFREQ // common, round(sfreq) // common, axis=-1)
    return (trial.reshape(len(trial), settings.n_patches, PATCH) / SCALE).astype(np.float32)
