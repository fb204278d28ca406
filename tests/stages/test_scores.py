import pytest
from utils.statistics import accuracy, chance_interval


def test_an_accuracy_carries_n_interval_chance_and_p():
    score = accuracy([0] * 30 + [1] * 70, [0] * 100, chance=0.25)
    assert (score.correct, score.n, score.accuracy) == (30, 100, 0.3)
    assert (score.low, score.high) == pytest.approx((0.2189, 0.3958), abs=1e-4)  # Wilson, by hand
    assert score.p == pytest.approx(0.1495, abs=1e-3)  # P(X ≥ 30), X ~ B(100, 0.25)
    assert "n = 100" in str(score) and "21.9 to 39.6 %" in str(score) and "p = 0.15" in str(score)


def test_no_class_counts_as_wrong_and_no_trials_give_no_accuracy():
    assert accuracy([-1, -1, 2], [0, 1, 2], 0.25).correct == 1
    with pytest.raises(ValueError):
        accuracy([], [], 0.25)


def test_guessing_stays_inside_the_chance_interval():
    low, high = chance_interval(288, 0.25)
    assert low == pytest.approx(0.2014, abs=1e-3) and high == pytest.approx(0.3021, abs=1e-3)
