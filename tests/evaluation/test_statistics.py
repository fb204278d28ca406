"""Ours against scikit-learn, SciPy and statsmodels on random answers; how often true null hypotheses are rejected."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, top_k_accuracy_score
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from evaluation.statistics import (
    calibration,
    class_scores,
    confusion,
    holm,
    mcnemar,
    mean_interval,
    permutation_level,
    permutation_p,
    permuted_accuracies,
    top_k,
)
from stages.scores import accuracy, best_constant


@pytest.fixture(params=range(20))
def answers(request):
    """True labels of unequal classes, answers with −1 among them, probabilities."""
    rng = np.random.default_rng(request.param)
    n_classes, n = int(rng.integers(2, 12)), int(rng.integers(20, 400))
    true = rng.choice(n_classes, n, p=rng.dirichlet(np.ones(n_classes) * 3))
    decoded = np.where(rng.random(n) < 0.3, true, rng.integers(-1 if request.param % 2 else 0, n_classes, n))
    return true, decoded, rng.dirichlet(np.ones(n_classes), n), n_classes


def test_scores_of_classes_are_scikit_learns(answers):
    true, decoded, _, n_classes = answers
    ours, there = class_scores(confusion(true, decoded, n_classes)), sorted(set(true))
    assert ours["balanced_accuracy"] == pytest.approx(np.mean([(decoded[true == k] == k).mean() for k in there]))
    if set(decoded) <= set(true):
        assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, decoded))
    f1 = f1_score(true, decoded, labels=there, average="macro", zero_division=0)
    assert ours["macro_f1"] == pytest.approx(f1) and ours["kappa"] == pytest.approx(cohen_kappa_score(true, decoded))


def test_top_3_is_scikit_learns_and_the_best_constant_is_the_largest_class(answers):
    true, _, probabilities, n_classes = answers
    theirs = top_k_accuracy_score(true, probabilities, k=3, labels=range(n_classes)) if n_classes > 2 else 1.0
    assert top_k(true, probabilities, 3) == pytest.approx(theirs)
    assert best_constant(true) == max((true == k).mean() for k in range(n_classes))


def test_intervals_and_p_are_statsmodels_and_scipys(answers):
    true, decoded, _, _ = answers
    score = accuracy(list(true == decoded), best_constant(true), 3)
    assert (score.low, score.high) == pytest.approx(proportion_confint(score.correct, score.n, method="wilson"))
    assert score.p == pytest.approx(binom.sf(score.correct - 1, score.n, best_constant(true)))


def test_mcnemar_and_holm_are_statsmodels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.random((2, 80)) < rng.random((2, 1))
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
        only_a, only_b, p = mcnemar(a, b)
        assert (only_a, only_b) == (table[0][1], table[1][0])
        assert p == pytest.approx(mcnemar_of_statsmodels(table, exact=True).pvalue)
        p_values = list(rng.random(int(rng.integers(1, 9))) ** 3)
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([]) == []


def test_probabilities_that_can_be_believed_have_no_expected_error_and_bold_ones_have():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.25, 1, 200_000)
    right = rng.random(200_000) < confidence
    error, bins = calibration(right, confidence)
    assert error < 0.005 and sum(n for _, _, n in bins) == 200_000
    assert calibration(right, np.ones(200_000))[0] == pytest.approx(1 - right.mean())
    assert calibration([True, False, True, True], [0.95, 0.95, 0.55, 0.51])[0] == pytest.approx(
        0.5 * abs(0.95 - 0.5) + 0.5 * abs(0.53 - 1)
    )


# ---------------------------------------------------------------- the null hypothesis is true: 1,000 experiments each

N_EXPERIMENTS = 1000


def balanced(rng, n_recordings=12, of_each=6, n_classes=4):
    """Labels as a protocol shows them: each class equally often in each recording."""
    recordings = np.repeat(np.arange(n_recordings), of_each * n_classes)
    true = np.concatenate([rng.permutation(np.repeat(np.arange(n_classes), of_each)) for _ in range(n_recordings)])
    return true, recordings


def rejected(p_values):
    return np.mean(np.array(p_values) <= 0.05)


def guesses(rng, kind, true, recordings):
    """Answers that know nothing of a trial: even ones, ones that favour a class, ones that know the recording's
    classes.
    """
    if kind == "even":
        return rng.integers(0, 4, len(true))
    if kind == "one-sided":
        return rng.choice(4, len(true), p=[0.6, 0.2, 0.1, 0.1])
    return np.where(recordings % 2, 2, 0) + rng.integers(0, 2, len(true))


@pytest.mark.parametrize("kind", ["even", "one-sided", "recording"])
def test_the_permutation_test_and_the_controls_level_reject_as_often_as_they_say(kind):
    rng, p_values, outside = np.random.default_rng(1), [], 0
    for k in range(N_EXPERIMENTS):
        true, recordings = balanced(rng)
        if kind == "recording":
            true = np.where(recordings % 2, 2, 0) + true % 2
        decoded = guesses(rng, kind, true, recordings)
        permuted = permuted_accuracies(true, decoded, recordings, n=400, seed=k)
        _, low, high = permutation_level(permuted)
        p_values.append(permutation_p((true == decoded).mean(), permuted))
        outside += not low <= (true == decoded).mean() <= high
    assert 0.03 <= rejected(p_values) <= 0.07 and 0.03 <= outside / N_EXPERIMENTS <= 0.07


def test_the_binomial_test_rejects_as_often_as_it_says():
    rng, p_values = np.random.default_rng(2), []
    for _ in range(N_EXPERIMENTS):
        true, _ = balanced(rng)
        p_values.append(accuracy(list(true == rng.integers(0, 4, len(true))), best_constant(true), 1).p)
    assert 0.03 <= rejected(p_values) <= 0.07


def test_mcnemars_test_rejects_as_often_as_it_says_and_holms_families_too():
    rng, p_values, families = np.random.default_rng(3), [], []
    for _ in range(N_EXPERIMENTS):
        pairs = [rng.random((2, 1200)) < 0.5 for _ in range(5)]
        of_family = [mcnemar(a, b)[2] for a, b in pairs]
        p_values.append(of_family[0])
        families.append(min(holm(of_family)))
    assert 0.03 <= rejected(p_values) <= 0.07 and 0.03 <= rejected(families) <= 0.07


def test_intervals_over_nine_people_cover_and_over_three_there_are_none():
    rng, covered = np.random.default_rng(4), 0
    for _ in range(N_EXPERIMENTS):
        skill = np.clip(rng.normal(0.5, 0.1, 9), 0, 1)  # of nine people; 0.5 in the population
        low, high = mean_interval(rng.binomial(288, skill) / 288)
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / N_EXPERIMENTS <= 0.98
    assert mean_interval([0.1, 0.2, 0.3]) is None and mean_interval([0.1, 0.2, 0.3, 0.4]) is not None


def test_permutations_stay_within_recordings_and_depend_on_the_seed_alone():
    true, recordings = np.array([0, 0, 1, 1]), ["a", "a", "b", "b"]
    assert (permuted_accuracies(true, [0, 0, 1, 1], recordings) == 1).all()
    assert (permuted_accuracies(true, [1, 1, 0, 0], recordings) == 0).all()
    mixed = permuted_accuracies(true, [0, 0, 1, 1], ["a"] * 4, n=4000)
    assert mixed.mean() == pytest.approx(0.5, abs=0.03) and set(mixed) == {0, 0.5, 1}
    assert np.array_equal(mixed, permuted_accuracies(true, [0, 0, 1, 1], ["a"] * 4, n=4000))
