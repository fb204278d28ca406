import numpy as np
import pytest

from utils.errors import UserError
from utils.signals import resample, to_patches


@pytest.mark.parametrize("sfreq", [160.0, 250.0, 512.0, 1000.0])
def test_a_resampled_sine_keeps_frequency_amplitude_and_phase(sfreq):
    def sine(rate):
        return 50 * np.sin(2 * np.pi * 10 * np.arange(0, 4, 1 / rate) + 0.3)

    ours = resample(np.stack([sine(sfreq), -sine(sfreq)]), sfreq, 200)
    assert ours.shape == (2, 800)
    assert np.abs(ours[0] - sine(200))[50:-50].max() < 0.5 and np.array_equal(ours[1], -ours[0])


def test_what_has_the_rate_already_is_not_touched():
    x = np.random.default_rng(0).standard_normal((3, 400))
    assert np.array_equal(resample(x, 200.0, 200), x)
    assert np.allclose(to_patches(x, 200.0), x.reshape(3, 2, 200) / 100)


@pytest.mark.parametrize("n_times", [0, 125, 1125])
def test_trials_that_are_no_whole_seconds_make_no_patches(n_times):
    with pytest.raises(UserError, match=f"last {n_times / 250:g} s.*whole seconds"):
        to_patches(np.zeros((22, n_times), np.float32), 250.0)
