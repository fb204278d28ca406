"""Differential entropy in five bands, as EEG-ImageNet's networks read it: (C, T) microvolts → (5 · C,) features."""

import math

import numpy as np

from utils.errors import UserError

# Hz
BANDS = {"delta": (0.5, 4.0), "theta": (4.0, 8.0), "alpha": (8.0, 13.0), "beta": (13.0, 30.0), "gamma": (30.0, 80.0)}
SHORTEST = 0.25  # seconds: theta has one bin of 4 Hz then


def differential_entropy(x: np.ndarray, sfreq: float, kind: str = "gaussian") -> np.ndarray:
    """Features of each electrode and band, band by band: (5 · C,) float32.

    x : (C, T) array. Microvolts at `sfreq` Hz.
    kind : {"gaussian", "published"}. gaussian: ½ log(2πe σ²), σ² the variance within the band by a multitaper spectrum.
        published: Σ over the band's bins of log(psd + 1e-10) in volts, psd as MNE's `Epochs.compute_psd` gives it by
        default: the multitaper's usual width, "length" normalisation, both edges of a band in it (30 Hz is in two).
    Raises UserError if the trial is too short, or its rate does not hold the highest band.
    """
    from mne.time_frequency import psd_array_multitaper  # slow to import

    if x.shape[-1] < SHORTEST * sfreq or sfreq / 2 < BANDS["gamma"][1]:
        raise UserError(
            f"trials of {x.shape[-1] / sfreq:g} s at {sfreq:g} Hz are too short for differential entropy, "
            f"or sampled too slowly; expected {SHORTEST:g} s or more at {2 * BANDS['gamma'][1]:g} Hz or more"
        )
    low, high = BANDS["delta"][0], BANDS["gamma"][1]
    if kind == "published":
        psd, freqs = psd_array_multitaper(np.asarray(x, float) * 1e-6, sfreq, low, high, verbose="ERROR")  # (C, F)
        inside = [(freqs >= lower) & (freqs <= upper) for lower, upper in BANDS.values()]
        features = [np.log(psd[:, bins] + 1e-10).sum(axis=1) for bins in inside]
        return np.concatenate(features).astype(np.float32)
    step, features = sfreq / x.shape[-1], []  # Hz between two bins: 2.5 for 400 ms
    # Multitaper's usual width, eight bins, would make one band of the lowest three; the narrowest one keeps them apart.
    how = {"bandwidth": 2 * step, "normalization": "full", "verbose": "ERROR"}
    psd, freqs = psd_array_multitaper(np.asarray(x, float), sfreq, low, high, **how)  # (C, F)
    for lower, upper in BANDS.values():
        inside = (freqs >= lower) & (freqs <= upper if upper == high else freqs < upper)
        variance = psd[:, inside].sum(axis=1) * step
        features.append(0.5 * np.log(2 * math.pi * math.e * np.maximum(variance, 1e-12)))
    return np.concatenate(features).astype(np.float32)
