import numpy as np
import pytest
import scipy.signal

from datasets.preprocessing import Preprocessing, cut_trial, filter_run, window


@pytest.mark.parametrize("sfreq", [250.0, 1000.0])
def test_a_trial_equals_an_independent_computation(sfreq):
    """Step by step from the data set's description, with a filter applied section by section."""
    rng = np.random.default_rng(0)
    signal = np.cumsum(rng.standard_normal((5, int(20 * sfreq))), axis=1)
    onset = int(3.2 * sfreq)
    ours = cut_trial(filter_run(signal, sfreq, Preprocessing(2, 6)), onset, sfreq, Preprocessing(2, 6))
    x = signal - signal.mean(0)
    z, p, k = scipy.signal.iirfilter(5, [0.3, 50], btype="bandpass", ftype="butter", fs=sfreq, output="zpk")
    x = scipy.signal.sosfiltfilt(scipy.signal.zpk2sos(z, p, k), x)
    x = x[:, onset + int(2 * sfreq) : onset + int(6 * sfreq)]
    x = scipy.signal.resample_poly(x, 200, int(sfreq), axis=1)
    assert ours.dtype == np.float32
    assert np.allclose(ours.reshape(5, 800), x / 100, atol=1e-5)
    assert np.array_equal(ours[2, 1], (x / 100).astype(np.float32)[2, 200:400])  # patches follow each other in time


def test_the_band_passes_and_the_rest_does_not():
    t = np.arange(0, 30, 1 / 250)
    for freq, low, high in ((10, 0.98, 1.02), (0.02, 0, 0.05), (90, 0, 0.02)):
        signal = np.stack([np.sin(2 * np.pi * freq * t), -np.sin(2 * np.pi * freq * t)])
        gain = filter_run(signal, 250, Preprocessing(2, 6))[0, 2500:5000].std() / np.sqrt(0.5)
        assert low <= gain <= high, freq


def test_the_filter_is_stable_at_1000_hz():
    noise = np.random.default_rng(0).standard_normal((2, 60_000))
    assert filter_run(noise, 1000.0, Preprocessing(2, 6)).std() < 1


def test_what_all_electrodes_share_is_gone():
    shared = np.random.default_rng(0).standard_normal(5000) * 100
    assert np.abs(filter_run(np.tile(shared, (22, 1)), 250, Preprocessing(2, 6))).max() < 1e-9


def test_a_window_is_as_long_as_it_is_said_to_be_wherever_it_begins():
    settings = Preprocessing(2.006, 3.006)
    assert all(w.stop - w.start == 250 for w in (window(onset, 250, settings) for onset in range(20)))
    assert window(100, 250, Preprocessing(2, 6)) == slice(600, 1600)
    assert window(100, 250, Preprocessing(-1, 3)).start < 0
    assert cut_trial(np.ones((22, 2000)), 5, 250, settings).shape == (22, 1, 200)
