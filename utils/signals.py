"""Resampling and cutting of multichannel signals."""

from fractions import Fraction

import numpy as np

from utils.errors import UserError


def resampling_ratio(sfreq: float, new_sfreq: float) -> Fraction:
    """How many samples `resample` makes of one: sample k lies at k times this; of odd rates nearly new / old."""
    return Fraction(new_sfreq / sfreq).limit_denominator(1000)


def resample(x: np.ndarray, sfreq: float, new_sfreq: float) -> np.ndarray:
    """(…, n_times) at `sfreq` → (…, n_times · new_sfreq / sfreq), both in Hz.

    Polyphase and not FFT: an FFT resample rings at the ends of a window.
    """
    ratio = resampling_ratio(sfreq, new_sfreq)
    if ratio == 1:
        return x
    from scipy.signal import resample_poly  # slow to import

    return resample_poly(x, ratio.numerator, ratio.denominator, axis=-1)


def to_patches(x: np.ndarray, sfreq: float) -> np.ndarray:
    """Trials as CSBrain reads them: (n_chans, n_times) microvolts → (n_chans, n_patches, 200), units of 100 µV.

    Raises UserError if the trial does not last a whole number of patches (seconds).
    """
    resampled = resample(x.astype(np.float64), sfreq, 200)
    n_chans, n_times = resampled.shape
    if n_times % 200 or not n_times:
        hint = "prepare with such a --tmin and --tmax, or choose another --encoder"
        raise UserError(f"trials last {x.shape[1] / sfreq:g} s; --encoder csbrain reads whole seconds: {hint}")
    return (resampled.reshape(n_chans, n_times // 200, 200) / 100).astype(np.float32)
