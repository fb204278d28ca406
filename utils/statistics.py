"""No accuracy without its n, interval, chance and p-value."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binom, binomtest

TEXT_READOUTS = ("keyword", "likelihood")  # the class that the text names; the class whose sentence is likeliest
MAPPER_READOUTS = ("head", "prototype")  # the classifier head; the nearest prototype in CLIP space


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with what is needed to believe it.

    Attributes
    ----------
    correct, n : int
    accuracy, low, high : float
        Share of correct trials and its 95 % Wilson interval. Trials of one person resemble each other, so the
        interval speaks of these people and not of people in general.
    chance, p : float
        Chance level and the one-sided exact binomial p-value of doing this well by chance.
    """

    correct: int
    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    p: float

    def __str__(self) -> str:
        p = f"p = {self.p:.2g}" if self.p >= 1e-4 else "p < 0.0001"
        return (
            f"{100 * self.accuracy:5.1f} % (n = {self.n}, 95 % interval {100 * self.low:.1f} to {100 * self.high:.1f} %, "
            f"chance {100 * self.chance:.0f} %, {p})"
        )

    as_dict = asdict


def accuracy(predicted, true, chance: float) -> Accuracy:
    """Score predictions; −1 (no class named) counts as wrong.

    Parameters
    ----------
    predicted, true : sequences of int
    chance : float

    Raises
    ------
    ValueError
        If there are no trials: no accuracy without n.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    if len(true) == 0 or len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} trials")
    correct, n = int((predicted == true).sum()), len(true)
    test = binomtest(correct, n, chance, alternative="greater")
    interval = binomtest(correct, n, chance).proportion_ci(0.95, method="wilson")
    return Accuracy(correct, n, correct / n, float(interval.low), float(interval.high), chance, float(test.pvalue))


def readouts_of(rows: list[dict]) -> tuple[str, ...]:
    """Which read-outs decoded trials have."""
    return MAPPER_READOUTS if "head_label" in rows[0] else TEXT_READOUTS


def score_readouts(rows: list[dict], chance: float) -> dict[str, Accuracy]:
    """Accuracies of decoded trials (rows of `decoded.jsonl`) by read-out; empty without trials."""
    if not rows:
        return {}
    true = [row["true_label"] for row in rows]
    return {name: accuracy([row[f"{name}_label"] for row in rows], true, chance) for name in readouts_of(rows)}


def chance_interval(n: int, chance: float) -> tuple[float, float]:
    """Where 95 % of the accuracies of pure guessing on n trials lie (exact binomial quantiles)."""
    low, high = binom.ppf([0.025, 0.975], n, chance) / n
    return float(low), float(high)
