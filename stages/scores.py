"""No accuracy without its n, people, interval, chance and p-value; and without what the recording alone would give."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest

from stages.rows import Row

FEW_PEOPLE = 3  # up to so many, an interval over people is worth nothing


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with what is needed to believe it.

    Trials of one person resemble each other, so the interval speaks of these people and not of people in general. Where
    classes are unequal the p-value is on the safe side.
    """

    correct: int  # right trials
    n: int  # trials
    people: int  # that they are from
    accuracy: float  # share of right trials, and its 95 % Wilson interval
    low: float
    high: float
    chance: float  # accuracy of the best constant answer on these trials
    p: float  # one-sided exact binomial p-value of doing this well at that rate
    # where recordings hold some classes only: is the kind of recording right
    task: "Accuracy | None" = None
    # and the class, asked among those of the trial's own task; without probabilities, of trials whose task is right
    within_task: "Accuracy | None" = None
    recording_line: float | None = None  # the accuracy of knowing the recording and guessing among its classes

    def __str__(self) -> str:
        interval = f"95 % interval {100 * self.low:.1f} to {percent(self.high)}"
        chance = f"chance {percent(self.chance)}, {p_value(self.p)}"
        text = f"{percent(self.accuracy)} (n = {self.n}, {self.people} people, {interval}, {chance})"
        return text + (f"\n{'':13}{self.by_task}" if self.by_task else "")

    @property
    def by_task(self) -> str:
        """Task, class within it, and the line of the recording, in words; empty where recordings hold all classes."""
        if self.recording_line is None:
            return ""
        within, inside = self.within_task, "no trials"
        if within:
            inside = f"{percent(within.accuracy)} (n = {within.n}, chance {percent(within.chance)})"
        task = f"task {percent(self.task.accuracy)} (chance {percent(self.task.chance)}), within the task {inside}"
        return f"{task}; knowing the recording alone gives {percent(self.recording_line)}"

    as_dict = asdict


@dataclass(frozen=True)
class Measure:
    """What is no accuracy: the mean of one number a trial, more being better, with a bootstrap over trials."""

    measure: str  # "cosine", "correlation", "share explained"
    value: float
    low: float
    high: float
    n: int  # of trials, or of pictures

    def __str__(self) -> str:
        return f"{self.measure} {self.value:.3f} (n = {self.n}, 95 % interval {self.low:.3f} to {self.high:.3f})"

    as_dict = asdict


def measured(measure: str, values: Sequence[float]) -> Measure:
    """Mean and interval of one number a trial; ValueError where there is none."""
    if not len(values):
        raise ValueError("no trials to measure")
    return Measure(measure, *mean_and_interval(np.asarray(values, np.float64)), len(values))


def mean_and_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean over trials (or people) and its 95 % bootstrap interval; over trials, it speaks of these people only."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def worth(score: Mapping) -> float | None:
    """What epochs are compared by: the accuracy, or the mean of a measure; None where a score has neither."""
    value = score.get("accuracy", score.get("value"))
    return value if isinstance(value, float) else None


def percent(share: float) -> str:
    """ "37.5 %"."""
    return f"{100 * share:.1f} %"


def p_value(p: float) -> str:
    """ "p = 0.012", or "p < 0.0001"."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def accuracy(right: Sequence[bool], chance: float, people: int, **more) -> Accuracy:
    """Score trials, right or wrong; ValueError if there are none: no accuracy without n."""
    n, correct = len(right), int(sum(right))
    if n == 0:
        raise ValueError("no trials to score")
    p = float(binomtest(correct, n, chance, alternative="greater").pvalue)
    return Accuracy(correct, n, people, correct / n, *wilson(correct, n), chance, p, **more)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Ends of the 95 % Wilson interval of a share."""
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def score_rows(rows: Sequence[Row]) -> dict[str, Accuracy]:
    """Accuracies of decoded trials by read-out; −1 (no class) counts as wrong. Empty without trials."""
    return {name: score_readout(rows, name) for name in rows[0].readouts} if rows else {}


def best_constant(true: Sequence[int]) -> float:
    """The accuracy of the best constant answer on these trials: the share of the class that most of them have."""
    return float(np.bincount(true).max() / len(true))


def score_readout(rows: Sequence[Row], name: str) -> Accuracy:
    """Accuracy of one read-out."""
    people = len({row.subject for row in rows})
    chance = best_constant([row.true_label for row in rows])
    by_task = _by_task(rows, name, people) if rows[0].tasks else {}
    return accuracy([row.readouts[name].label == row.true_label for row in rows], chance, people, **by_task)


def _by_task(rows: Sequence[Row], name: str, people: int) -> dict:
    """Task, class within the task, and the line of the recording."""
    tasks = rows[0].tasks
    classes = {task: [label for label, other in enumerate(tasks) if other == task] for task in tasks}
    task_right, within, within_chance = [], [], []
    for row in rows:
        readout, true_task = row.readouts[name], tasks[row.true_label]
        label = readout.label
        hit = label >= 0 and tasks[label] == true_task
        task_right.append(hit)
        if readout.probabilities is not None:
            label = max(classes[true_task], key=lambda k, p=readout.probabilities: p[k])
        elif not hit:
            continue
        within.append(label == row.true_label)
        within_chance.append(1 / len(classes[true_task]))
    return {
        "task": accuracy(task_right, 1 / len(classes), people),
        "within_task": accuracy(within, float(np.mean(within_chance)), people) if within else None,
        "recording_line": float(np.mean([1 / len(classes[tasks[row.true_label]]) for row in rows])),
    }


# ---------------------------------------------------------------- captions

PAIRINGS = 20  # random pairings of decoded captions with those of other images


def word_overlap(a: str, b: str) -> float:
    """F1 of the words that two captions share, each counted as often as both have it."""
    one, other = Counter(a.lower().split()), Counter(b.lower().split())
    shared = sum((one & other).values())
    return 2 * shared / max(1, sum(one.values()) + sum(other.values()))


def caption_measures(decoded: Sequence[str], true: Sequence[str], images: Sequence[str]) -> dict[str, Measure]:
    """Word overlap of decoded captions with those of the seen images; and with those of random other images."""
    rng, order, at_random = np.random.default_rng(0), np.arange(len(decoded)), []
    for _ in range(PAIRINGS):
        pairs = enumerate(rng.permutation(order))
        at_random.append([word_overlap(decoded[k], true[j]) if images[j] != images[k] else np.nan for k, j in pairs])
    at_random = np.asarray(at_random)  # (PAIRINGS, N)
    known = np.isfinite(at_random).any(axis=0)
    own = [word_overlap(a, b) for a, b in zip(decoded, true, strict=True)]
    measures = {"words shared": measured("F1 of words", own)}
    if known.any():
        measures["words shared, another image"] = measured("F1 of words", np.nanmean(at_random[:, known], axis=0))
    return measures
