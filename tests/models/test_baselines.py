"""What classical baselines compute, where scikit-learn and pyRiemann do not say it."""

import numpy as np
import pytest

from models.baselines import Data, filterbank_tangent, recentred, tangent_space

SFREQ = 128.0


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def people(rng: np.random.Generator, n: int = 40) -> Data:
    """Two people whose electrodes mix otherwise (without a rotation); class 1 has a rhythm of 20 Hz in one source."""
    time, x, labels = np.arange(256) / SFREQ, [], []
    for mixing in (np.eye(3), np.array([[1, 0, 0], [0, 9, 3], [0, 3, 2.0]])):
        for k in range(n):
            source = rng.normal(size=(3, len(time)))
            source[0] += (k % 2) * 1.2 * np.sin(2 * np.pi * 20 * time + rng.uniform(0, 6))
            x.append(mixing @ source)
            labels.append(k % 2)
    return Data(np.array(x, np.float32), np.array(labels), [("1", 1)] * 2 * n, SFREQ)


def part(data: Data, places: slice, **changes) -> Data:
    x, labels = data.x[places], data.labels[places]
    return Data(x, labels, data.recordings[places], data.sfreq, **changes)


def test_each_group_is_brought_to_the_identity(rng: np.random.Generator):
    from pyriemann.geometry.mean import mean_riemann

    x = rng.normal(size=(12, 3, 50)) * np.repeat([1, 10], 6)[:, None, None]
    covariances = x @ x.transpose(0, 2, 1) / 50
    made = recentred(covariances, [range(0, 12, 2), range(1, 11, 2)], causal=False)
    for group in (slice(0, 12, 2), slice(1, 11, 2)):
        np.testing.assert_allclose(mean_riemann(made[group]), np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(made[11], covariances[11])  # of no group


def test_a_causal_mean_knows_nothing_of_later_trials(rng: np.random.Generator):
    x = rng.normal(size=(8, 3, 50))
    covariances = x @ x.transpose(0, 2, 1) / 50
    order = [3, 0, 5, 1, 2, 4, 6, 7]
    before = recentred(covariances, [order], causal=True)
    changed = covariances.copy()
    changed[order[4:]] *= 7
    after = recentred(changed, [order], causal=True)
    np.testing.assert_array_equal(before[order[:4]], after[order[:4]])
    assert np.abs(before[order[4:]] - after[order[4:]]).max() > 0.01
    np.testing.assert_allclose(before[order[0]], np.eye(3), atol=1e-9)  # of itself alone


@pytest.mark.parametrize("model", [tangent_space, filterbank_tangent])
def test_recentred_bands_carry_over_to_another_person(model, rng: np.random.Generator):
    data = people(rng)
    train, test = slice(0, 40), slice(40, 80)
    accuracy = {}
    for how in ({}, {"groups": [range(40)]}):
        baseline = model(n_classes=2)
        baseline.fit(part(data, train, **how), part(data, slice(0, 0)))
        p = baseline.predict(part(data, test, **how))
        assert p.shape == (40, 2)
        accuracy[bool(how)] = (p.argmax(axis=1) == data.labels[test]).mean()
    assert accuracy[True] > 0.8
    assert accuracy[False] < 0.7
