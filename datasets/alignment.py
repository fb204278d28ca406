"""What a run may use of the test person, and `--align`: trials brought to one covariance without their labels.

People, and sessions of a person, differ in the size and the mixture of their electrodes more than classes do. Each
trial x becomes M⁻¹ᐟ² x, where M is the mean covariance of unlabelled trials of the same person (He & Wu, IEEE Trans.
Biomed. Eng. 67:399, 2020; with the Riemannian mean Zanini et al., IEEE Trans. Biomed. Eng. 65:1107, 2018). Training
people are aligned as the test person is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from datasets.recording import Trial, origin
from utils.covariances import riemannian_means
from utils.errors import UserError

SIZE = 10.0  # microvolts: the mean power of an aligned electrode is its square, whoever the person is
PRIOR = 2.0  # trials: with so many a mean covariance counts half, and half no direction is larger than another
SMALLEST = 1e-6  # share of the largest eigenvalue below which a direction is not there: the average reference takes one


@dataclass(frozen=True)
class Alignment:
    """Which trials the mean covariance of a trial is of."""

    uses: str  # what a run that tests under it has used of the test person
    moabb: str = ""  # MOABB's name of that (`CrossSubjectMode`); empty where it has none
    group: Callable[[Trial], object] | None = None  # it is aligned with those of the same value; None: not aligned
    causal: bool = False  # whether earlier trials of the group, and the trial itself, count alone


ALL_TRIALS = "all trials, unlabelled (transductive)", "train_and_target_unlabeled_full"
# --align
ALIGNMENTS = {
    "none": Alignment("nothing", "train"),
    "trial": Alignment("each trial alone", "train_trialwise", attrgetter("key")),
    "causal": Alignment("earlier trials, unlabelled (causal)", "", attrgetter("subject", "session"), causal=True),
    "session": Alignment(*ALL_TRIALS, attrgetter("subject", "session")),
    "person": Alignment(*ALL_TRIALS, attrgetter("subject")),
}


@dataclass(frozen=True)
class Adaptation:
    """What is learned of test trials: see `stages.adaptation`."""

    uses: str  # of the test person
    changes: str = ""  # "encoder": its batch normalisation; "answers": the probabilities of a trial's classes
    causal: bool = False  # whether a trial is decoded without those that come after it


# --adapt
ADAPTATIONS = {
    "none": Adaptation(ALIGNMENTS["none"].uses),
    "im": Adaptation(ALIGNMENTS["session"].uses, "encoder"),
    "im_causal": Adaptation(ALIGNMENTS["causal"].uses, "encoder", causal=True),
    "prior": Adaptation(ALIGNMENTS["session"].uses, "answers"),
    "prior_causal": Adaptation(ALIGNMENTS["causal"].uses, "answers", causal=True),
}
LABELLED = "other trials, labelled"  # of runs within a person, and of what is whitened by repetitions of an image
# what may be used of the test person besides the trial that is decoded, from the least to the most
USES = (*dict.fromkeys(alignment.uses for alignment in ALIGNMENTS.values()), LABELLED)


def used_together(*uses: str) -> str:
    """What a run uses of the test person that does several such things: labelled trials, and the most of the others."""
    unlabelled = max((one for one in uses if one != LABELLED), key=USES.index, default=USES[0])
    kept = [LABELLED] * (LABELLED in uses) + [unlabelled] * (unlabelled != USES[0] or LABELLED not in uses)
    return "; ".join(kept)


# ---------------------------------------------------------------- mean covariances


def euclidean(covariances: np.ndarray, causal: bool) -> np.ndarray:
    """(N, C, C) → (1, C, C) mean, or (N, C, C) means of each and those before it."""
    if not causal:
        return covariances.mean(axis=0, keepdims=True)
    return covariances.cumsum(axis=0) / np.arange(1, 1 + len(covariances))[:, None, None]


def zscore(covariances: np.ndarray, causal: bool) -> np.ndarray:
    """As `euclidean`, of each electrode alone: what is mixed stays mixed."""
    means = euclidean(covariances, causal)
    return means * np.eye(means.shape[-1])


def riemann(covariances: np.ndarray, causal: bool) -> np.ndarray:
    """As `euclidean`, the Riemannian mean: see `riemannian_means`. A flat trial counts for nothing."""
    means = euclidean(covariances, causal)
    there = np.trace(covariances, axis1=1, axis2=2) > 1e-12  # a power
    if not there.any():
        return means
    known = covariances[there]
    of = known[0] if causal else known.mean(axis=0)  # what comes later must not change what came before
    basis = directions(of)[0]  # (C, r): an average reference leaves C − 1 directions
    inside = basis.T @ known @ basis  # (N, r, r)
    inside += 1e-6 * np.trace(inside, axis1=1, axis2=2)[:, None, None] / len(basis.T) * np.eye(len(basis.T))
    rest = np.eye(len(basis)) - basis @ basis.T  # what the first trial lacked, such as an electrode, has its plain mean
    means = rest @ means @ rest
    places = np.cumsum(there) - 1 if causal else np.zeros(1, int)
    means[places >= 0] += (basis @ riemannian_means(inside, causal) @ basis.T)[places[places >= 0]]
    return means


# --align_method
METHODS = {"euclidean": euclidean, "riemann": riemann, "zscore": zscore}


def directions(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C, r) eigenvectors and (r,) eigenvalues of the directions that are there."""
    values, vectors = np.linalg.eigh(covariance)
    there = values > SMALLEST * max(values[-1], 1e-12)
    return vectors[:, there], values[there]


# ---------------------------------------------------------------- what aligns a trial


def covariance(x: np.ndarray) -> np.ndarray:
    """(C, T) → (C, C), about each electrode's mean."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    return x @ x.T / x.shape[-1]


def inverse_root(mean: np.ndarray, n: int) -> np.ndarray:
    """(C, C) → M⁻¹ᐟ² in the directions that are there; M is the mean, shrunk as if seen in `n` trials."""
    vectors, values = directions(mean)
    if not len(values):
        return np.eye(len(mean))  # flat
    logs, weight = np.log(np.maximum(values, 1e-12)), PRIOR / (PRIOR + n)
    logs = (1 - weight) * logs + weight * logs.mean()  # of eigenvalues, so that a loud electrode hides no other
    return (vectors * np.exp(-logs / 2)) @ vectors.T


def aligning_matrices(
    trials: Sequence[Trial], read: Callable, align: str, method: str, units: str = "microvolts"
) -> dict[str, np.ndarray]:
    """The matrix that each trial is multiplied by, by its key: (C, C) float32.

    trials : sequence of Trial. All of the people concerned: of a store, not of a split.
    read : callable. Trial → (C, T) of the part that is read.
    units : str. "microvolts"; what has none was whitened, and is brought to a size of one, as encoders expect it.
    align, method : str. Keys of ALIGNMENTS and METHODS. A trial alone is brought to one size: whitened by its own
        covariance, it would lose what tells its class.
    Raises UserError where a trial holds NaN or infinity.
    """
    alignment, groups, matrices = ALIGNMENTS[align], {}, {}
    size = SIZE if units == "microvolts" else 1.0
    for trial in sorted(trials, key=origin):
        groups.setdefault(alignment.group(trial), []).append(trial)
    for group in groups.values():
        covariances = np.stack([covariance(read(trial)) for trial in group])  # (N, C, C)
        if not (finite := np.isfinite(covariances).all(axis=(1, 2))).all():
            raise UserError(f"--align {align}: trial {group[int(np.argmin(finite))].key} holds NaN or infinity")
        if align == "trial":
            power = np.trace(covariances[0]) / len(covariances[0])
            means, counts = np.eye(len(covariances[0]))[None] * power, [np.inf]
        else:
            means = METHODS[method](covariances, alignment.causal)
            counts = range(1, 1 + len(group)) if alignment.causal else [len(group)]
        made = [(size * inverse_root(mean, n)).astype(np.float32) for mean, n in zip(means, counts, strict=True)]
        matrices |= {trial.key: made[k if alignment.causal else 0] for k, trial in enumerate(group)}
    return matrices
