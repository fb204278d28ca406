import numpy as np
import pytest
import scipy.signal

from datasets.preprocessing import Preprocessing, filter_run, window
from utils.signals import to_patches


@pytest.mark.parametrize("sfreq", [250.0, 1000.0])
def test_a_trial_equals_an_independent_computation(sfreq):
    """Step by step from the data set's description, with a filter made from its poles; then CSBrain's patches of it."""
    rng = np.random.default_rng(0)
    signal = np.cumsum(rng.standard_normal((5, int(20 * sfreq))), axis=1)
    onset = int(3.2 * sfreq)
    settings = Preprocessing(2, 6)
    ours = filter_run(signal, sfreq, settings)[:, window(onset, sfreq, settings)]
    x = signal - signal.mean(0)
    z, p, k = scipy.signal.iirfilter(5, [0.3, 50], btype="bandpass", ftype="butter", fs=sfreq, output="zpk")
    x = scipy.signal.sosfiltfilt(scipy.signal.zpk2sos(z, p, k), x)
    x = x[:, onset + int(2 * sfreq) : onset + int(6 * sfreq)]
    assert ours.shape == (5, 4 * sfreq) and np.allclose(ours, x, atol=1e-6)  # microvolts at the recorder's rate
    patches = to_patches(ours.astype(np.float32), sfreq)
    x = scipy.signal.resample_poly(x, 200, int(sfreq), axis=1)
    assert patches.dtype == np.float32
    assert np.allclose(patches.reshape(5, 800), x / 100, atol=1e-5)
    assert np.allclose(patches[2, 1], (x / 100)[2, 200:400], atol=1e-5)  # patches follow each other in time


def test_the_band_passes_and_the_rest_does_not():
    t = np.arange(0, 30, 1 / 250)
    for freq, low, high in ((10, 0.98, 1.02), (0.02, 0, 0.05), (90, 0, 0.02)):
        signal = np.stack([np.sin(2 * np.pi * freq * t), -np.sin(2 * np.pi * freq * t)])
        gain = filter_run(signal, 250, Preprocessing(2, 6))[0, 2500:5000].std() / np.sqrt(0.5)
        assert low <= gain <= high, freq


def test_the_filter_is_stable_at_1000_hz():
    noise = np.random.default_rng(0).standard_normal((2, 60_000))
    assert filter_run(noise, 1000.0, Preprocessing(2, 6)).std() < 1


def test_what_all_electrodes_share_is_gone_unless_the_reference_is_to_stay():
    shared = np.tile(np.random.default_rng(0).standard_normal(5000) * 100, (22, 1))
    assert np.abs(filter_run(shared, 250, Preprocessing(2, 6))).max() < 1e-9
    kept = filter_run(shared, 250, Preprocessing(2, 6, reference="none"))
    sos = scipy.signal.butter(5, [0.3, 50], "bandpass", fs=250, output="sos")
    assert np.allclose(kept, scipy.signal.sosfiltfilt(sos, shared), atol=1e-9) and kept.std() > 10


def test_the_signal_that_was_read_is_left_as_it_is():
    for reference in ("average", "none"):
        signal = np.random.default_rng(0).standard_normal((3, 5000))
        before = signal.copy()
        filter_run(signal, 250, Preprocessing(2, 6, reference))
        assert np.array_equal(signal, before), reference


def test_a_window_is_as_long_as_it_is_said_to_be_wherever_it_begins():
    settings = Preprocessing(2.006, 3.006)
    assert all(w.stop - w.start == 250 for w in (window(onset, 250, settings) for onset in range(20)))
    assert window(100, 250, Preprocessing(2, 6)) == slice(600, 1600)
    assert window(100, 250, Preprocessing(-1, 3)).start < 0
    assert window(100, 250, Preprocessing(0, 0.5)) == slice(100, 225)  # no whole second is asked for
