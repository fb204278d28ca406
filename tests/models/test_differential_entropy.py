"""Differential entropy of known signals, and the edges that RGNN begins with."""

import math

import mne
import numpy as np
import pytest

from models.differential_entropy import BANDS, differential_entropy
from models.electrode_positions import initial_edges
from utils.errors import UserError


def test_noise_of_known_variance_has_the_formulas_entropy():
    """White noise of 10 µV: a band holds 100 µV² · width / 500 Hz."""
    x = 10 * np.random.default_rng(0).standard_normal((400, 1000))
    found = differential_entropy(x, 1000.0).reshape(5, 400).mean(axis=1)
    for entropy, (low, high) in zip(found, BANDS.values(), strict=True):
        assert entropy == pytest.approx(
            0.5 * math.log(2 * math.pi * math.e * 100 * (high - low) / 500), abs=0.4 if low < 8 else 0.15
        )


def test_a_rhythm_raises_its_own_band_and_features_stand_band_by_band():
    rng, t = np.random.default_rng(0), np.arange(400) / 1000
    x = rng.standard_normal((62, 400))
    louder = x.copy()
    louder[7] += 20 * np.sin(2 * np.pi * 10 * t)
    change = (differential_entropy(louder, 1000.0) - differential_entropy(x, 1000.0)).reshape(5, 62)
    assert change.argmax() == 2 * 62 + 7 and change[2, 7] > 0.5 and np.abs(np.delete(change, 7, axis=1)).max() < 1e-6


@pytest.mark.parametrize("n_times, sfreq", [(400, 1000.0), (500, 500.0), (333, 1000.0)])
def test_the_published_kind_is_the_authors_call_of_mne(n_times, sfreq):
    """`Epochs.compute_psd` with its defaults, band by band; both edges of a band are in it."""
    volts = 1e-5 * np.random.default_rng(1).standard_normal((2, 5, n_times)).cumsum(axis=-1)
    epochs = mne.EpochsArray(volts, mne.create_info(5, sfreq, "eeg"), verbose="ERROR")
    of_bands = [epochs.compute_psd(fmin=low, fmax=high, verbose="ERROR").get_data() for low, high in BANDS.values()]
    wanted = np.concatenate([np.log(psd + 1e-10).sum(axis=-1) for psd in of_bands], axis=1)  # (2, 25)
    found = np.stack([differential_entropy(trial * 1e6, sfreq, "published") for trial in volts])
    assert np.allclose(found, wanted, rtol=1e-6)


def test_both_kinds_hear_how_loud_eeg_is():
    x = 10 * np.random.default_rng(0).standard_normal((5, 400)).cumsum(axis=-1)
    change = {kind: differential_entropy(2 * x, 1000.0, kind) - differential_entropy(x, 1000.0, kind)
              for kind in ("gaussian", "published")}  # fmt: skip
    assert np.allclose(change["gaussian"], math.log(2), atol=1e-4) and (change["published"] > 1).all()


@pytest.mark.parametrize("n_times, sfreq", [(200, 1000.0), (100, 150.0)])
def test_a_trial_that_is_too_short_or_too_slow_is_one_line(n_times, sfreq):
    with pytest.raises(UserError, match="differential entropy"):
        differential_entropy(np.zeros((3, n_times)), sfreq)


def test_rgnns_initial_edges_are_the_published_ones(shared):
    from datasets.eeg_imagenet_dataset import ELECTRODES

    wanted = np.load(shared / "golden/image_decoding/rgnn.npz")["initial_edge_weight"]
    assert np.abs(initial_edges(ELECTRODES).numpy() - wanted).max() < 1e-5


def test_edges_of_electrodes_that_the_table_lacks():
    from datasets.things_dataset import ELECTRODES

    edges = initial_edges(ELECTRODES)
    assert len(edges) == 63 * 64 // 2 and edges.max() == 1 and edges.min() >= -1
    with pytest.raises(ValueError, match="X9"):
        initial_edges(["Cz", "X9"])
