"""Statistics of decoded trials: numbers in, numbers out. What each test assumes stands in its docstring."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from scipy.stats import binomtest, t

from stages.scores import FEW_PEOPLE, mean_and_interval

PERMUTATIONS = 2000
KEPT_TRIALS = 5000  # whose permuted labels are kept for the next read-out: 20 MB
BINS = 10  # of the calibration

# ---------------------------------------------------------------- one run


def confusion(true: Sequence[int], decoded: Sequence[int], n_classes: int) -> np.ndarray:
    """(K, K + 1) counts: true class by decoded class; the last column is −1, no class."""
    counts = np.zeros((n_classes, n_classes + 1), int)
    np.add.at(counts, (np.asarray(true), np.asarray(decoded)), 1)
    return counts


def class_scores(counts: np.ndarray) -> dict[str, float]:
    """Balanced accuracy, macro-F1 and Cohen's kappa of a confusion matrix (K, K + 1).

    Classes without a trial are left out of the two means. Kappa is 0 where chance alone would agree everywhere.
    """
    n, hits, true, decoded = counts.sum(), np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)[:-1]
    there = true > 0
    f1 = 2 * hits[there] / (true + decoded)[there]
    expected, agreed = float((true * decoded).sum() / n**2), hits.sum() / n
    scores = {"balanced_accuracy": float((hits[there] / true[there]).mean()), "macro_f1": float(f1.mean())}
    return scores | {"kappa": float((agreed - expected) / (1 - expected)) if expected < 1 else 0.0}


def top_k(true: Sequence[int], probabilities: np.ndarray, k: int) -> float:
    """Share of trials whose class is among the `k` most probable (N, K); of equal ones the lower label is first."""
    first = np.argsort(-np.asarray(probabilities), axis=1, kind="stable")[:, :k]
    return float((first == np.asarray(true)[:, None]).any(axis=1).mean())


def calibration(right: Sequence[bool], confidence: Sequence[float]) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error (Naeini et al., AAAI 2015); (mean confidence, accuracy, n) of each bin with trials.

    confidence : sequence of float. Probability of the decoded class; ten bins of equal width.
    """
    right, confidence = np.asarray(right, float), np.asarray(confidence, float)
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    members = [place == b for b in np.unique(place)]
    bins = [(float(confidence[b].mean()), float(right[b].mean()), int(b.sum())) for b in members]
    return sum(n * abs(c - a) for c, a, n in bins) / len(right), bins


def permuted_accuracies(
    true: Sequence[int], decoded: Sequence[int], recordings: Sequence[Hashable], n: int = PERMUTATIONS, seed: int = 0
) -> np.ndarray:
    """(n,) accuracies of these answers when true labels change places within each recording.

    Under the null hypothesis a recording's labels may change places, whatever the recording as a whole tells, whatever
    classes it holds and however often each of them is answered.
    """
    order = tuple(map(int, true)), tuple(recordings), n, seed
    permuted = _kept(*order) if len(true) <= KEPT_TRIALS else _permuted(*order)
    decoded = np.asarray(decoded)
    return sum((labels == decoded[places]).sum(axis=1) for places, labels in permuted) / len(true)


def _permuted(true: tuple[int, ...], recordings: tuple[Hashable, ...], n: int, seed: int) -> Iterator[tuple]:
    """(places of a recording's trials, (n, trials) of its labels that have changed places)."""
    labels, rng = np.array(true, np.int16 if max(true) < 2**15 else np.int64), np.random.default_rng(seed)
    members = defaultdict(list)
    for place, recording in enumerate(recordings):
        members[recording].append(place)
    for places in members.values():
        yield places, rng.permuted(np.tile(labels[places], (n, 1)), axis=1)


@lru_cache(maxsize=8)  # all read-outs of all runs on the same trials ask for the same one
def _kept(*order) -> list[tuple]:
    return list(_permuted(*order))


def permutation_p(accuracy: float, permuted: np.ndarray) -> float:
    """One-sided: the share of permutations, this order among them, that do as well."""
    return float((1 + (permuted >= accuracy - 1e-12).sum()) / (1 + len(permuted)))


def permutation_level(permuted: np.ndarray) -> tuple[float, float, float]:
    """Mean of permuted accuracies, and where the middle 95 % of them lie: where a shuffled-label control belongs."""
    low, high = np.quantile(permuted, [0.025, 0.975], method="inverted_cdf")
    return float(permuted.mean()), float(low), float(high)


# ---------------------------------------------------------------- several people, several runs


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t-interval of a mean over people; None for three people or fewer, where it would promise too much."""
    if len(values) <= FEW_PEOPLE:
        return None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, float]:
    """Exact two-sided test whether two runs are right on the same trials as often (McNemar, Psychometrika 12, 1947).

    Returns how many trials only `a` and only `b` has right, and p. Trials are taken for independent.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a, only_b, float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected for their number (Holm, Scand. J. Stat. 6, 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def difference(a: np.ndarray, b: np.ndarray, seed: int = 0, paired: bool = True) -> tuple[float, float, float]:
    """Mean of `a` less mean of `b`, and its 95 % bootstrap interval: 2,000 draws of trials.

    paired : bool. The same trials of both are drawn, if both have as many.
    """
    if paired and len(a) == len(b):
        return mean_and_interval(a - b, seed)
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not len(a) or not len(b):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = [x[rng.integers(0, len(x), (2000, len(x)))].mean(axis=1) for x in (a, b)]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return float(a.mean() - b.mean()), float(low), float(high)
