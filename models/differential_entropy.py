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
        published: Σ over the band's bins of log(psd + 1e-10) in volts; 1e-10 outweighs EEG, delta has a bin or two.
    Raises UserError if the trial is too short, or its rate does not hold the highest band.
    """
    from mne.time_frequency import psd_array_multitaper  # slow to import

    if x.shape[-1] < SHORTEST * sfreq or sfreq / 2 < BANDS["gamma"][1]:
        raise UserError(
            f"trials of {x.shape[-1] / sfreq:g} s at {sfreq:g} Hz are too short for differential entropy, "
            f"or sampled too slowly; expected {SHORTEST:g} s or more at {2 * BANDS['gamma'][1]:g} Hz or more"
        )
    volts = np.asarray(x, float) * (1e-6 if kind == "published" else 1.0)
    low, high = BANDS["delta"][0], BANDS["gamma"][1]
    step, features = sfreq / x.shape[-1], []  # Hz between two bins: 2.5 for 400 ms
    # Multitaper's usual width, eight bins, would make one band of the lowest three; the narrowest one keeps them apart.
    width = None if kind == "published" else 2 * step
    psd, freqs = psd_array_multitaper(volts, sfreq, low, high, width, normalization="full", verbose="ERROR")  # (C, F)
    for lower, upper in BANDS.values():
        inside = (freqs >= lower) & (freqs <= upper if upper == high else freqs < upper)
        if kind == "published":
            features.append(np.log(psd[:, inside] + 1e-10).sum(axis=1))
        else:
            variance = psd[:, inside].sum(axis=1) * step
            features.append(0.5 * np.log(2 * math.pi * math.e * np.maximum(variance, 1e-12)))
    return np.concatenate(features).astype(np.float32)
