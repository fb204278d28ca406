"""Amplitudes: whether they can be microvolts, and whether anything was made equal by means of test trials."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from datasets.description import SPLITS
from datasets.prepare import AMPLITUDES, RATIOS
from datasets.recording import Trial, origin
from evaluation.findings import Finding
from evaluation.summaries import Summaries
from stages.scores import percent

UNITS = {"volts": 1e-6, "millivolts": 1e-3, "nanovolts": 1e3}  # what one microvolt is in each
FAR = 3.0  # times beyond what preparing a store accepts, from which on it is a breach: other filters do not do that
EQUAL = 2e-5  # relative difference of electrodes' amplitudes over all trials, below which somebody made them equal
RAILED = 10  # samples at an electrode's largest or smallest value, from which on the amplifier made them equal
WHITE = 1e-4  # the same of the variances along a covariance's axes
ABOUT_WHITE = 0.5  # the same where they were shrunk, other means or filtered later; the real BCIC-IV-2b has 0.8 to 1.1
NEAR_WHITE = 0.5  # of the squared distance that chance gives: below it, something was fitted
CLEARLY = 4  # times nearer than of training trials, from which on the fit was on test trials alone
# how many parts of a recording's name tell a group; the smallest first: where each of them is white, all are
SCOPES = {"each recording": 3, "each session": 2, "each person": 1, "all people": 0}


def normalisation_findings(s: Summaries) -> Iterator[Finding]:
    """No normalisation that was fitted on all trials, test people among them: amplitudes never agree by themselves."""

    def equal(x: np.ndarray) -> bool:
        return np.ptp(x) < EQUAL * x.mean()

    moving = s.deviation > 1e-9
    deviation, spread, several = s.deviation[moving], s.spread[:, moving], moving.sum() > 1
    if not moving.any():
        yield Finding("cannot", "normalisation", "no electrode changes at all")
        return
    same = several and (equal(deviation) or (equal(s.reach[moving]) and s.railed.max() < RAILED))
    overall = np.sqrt(np.mean(np.square(s.deviation) + np.square(s.pooled_mean)) - s.pooled_mean.mean() ** 2)
    unit = abs(overall - 1) < EQUAL and abs(s.pooled_mean.mean()) < EQUAL
    if several and np.mean([equal(row) for row in spread]) > 0.9:
        kind, words = "notice", "each trial was standardised by itself: nothing leaks, and amplitudes are no microvolts"
    elif same or unit:
        what = "all electrodes have the same amplitude" if same else "mean 0 and deviation 1"
        kind, words = "BREACH", f"{what} over all trials together: fitted on test trials as well"
    else:
        reach = f"{deviation.min():.3g} to {deviation.max():.3g} µV"
        kind, words = "ok", f"electrodes' deviations over all trials are {reach}, not made equal"
    yield Finding(kind, "normalisation", words)


def amplitude_findings(store, trials: Sequence[Trial], s: Summaries) -> Iterator[Finding]:
    """Amplitudes can be the microvolts that a store says: each recording's, and each electrode's against the others."""
    if store.meta.get("units", "microvolts") != "microvolts":
        yield Finding("cannot", "amplitudes", "the trials are whitened, and have no unit")
        return
    recordings = defaultdict(list)
    for place, trial in enumerate(trials):
        recordings[" ".join(map(str, origin(trial)[:3]))].append(place)
    spread = np.stack([np.median(s.spread[places], axis=0) for places in recordings.values()])  # (recordings, C) µV
    changing = np.ma.masked_equal(spread, 0)  # what does not change has no unit
    typical = np.ma.median(changing, axis=1)  # the median electrode's
    electrodes = store.meta.get("electrodes") or ()
    electrodes = electrodes if len(electrodes) == spread.shape[1] else range(1, spread.shape[1] + 1)
    odd = {}  # in words → how many times beyond what preparing a store accepts
    for name, value in zip(recordings, typical, strict=True):
        if value is not np.ma.masked and (beyond := _beyond(value, AMPLITUDES)) > 1:
            odd[f"{name}: {value:.3g} µV{_as_unit(value)}"] = beyond
    for name, values in zip(electrodes, (changing / typical[:, None]).T, strict=True):
        if values.count() and (beyond := _beyond(value := np.ma.median(values), RATIOS)) > 1:
            odd[f"electrode {name}: {value:.3g} times the median electrode's"] = beyond
    if not odd:
        reach = f"{typical.min():.3g} to {typical.max():.3g} µV" if typical.count() else "nothing changes"
        words = f"of recordings' median electrodes {reach}; no electrode is far from the others"
        yield Finding("ok", "amplitudes", words)
        return
    some = "; ".join(list(odd)[:5]) + (f"; and {len(odd) - 5} more" if len(odd) > 5 else "")
    wrong = max(odd.values()) >= FAR and store.meta.get("scale_flag") is None
    words = "these cannot be microvolts" if wrong else "odd for microvolts"
    yield Finding("BREACH" if wrong else "notice", "amplitudes", f"{words}: standard deviations within trials, {some}")


def _beyond(value: float, limits: tuple[float, float]) -> float:
    """How many times a positive value lies below or above its limits; 1 or less: between them."""
    return max(limits[0] / value, value / limits[1])


def _as_unit(microvolts: float) -> str:
    """Which unit such a number would be usual in, in words."""
    low, high = AMPLITUDES
    fitting = [name for name, factor in UNITS.items() if low <= microvolts / factor <= high]
    return f", as {fitting[0]} would be (--scale {1 / UNITS[fitting[0]]:g} when preparing)" if fitting else ""


# ---------------------------------------------------------------- whitening


def whitening_findings(store, s: Summaries) -> Iterator[Finding]:
    """No whitening that was fitted on test trials: covariances of what it was fitted on are the identity.

    Exactly so of trials as they are stored; about so where the covariances were shrunk. Where a longer epoch was
    whitened by shrunk covariances, as prepare_data_things.py does, it is asked which trials' covariance is nearer to
    the identity (`_distances_to_white`).
    """
    scopes = {scope: _parts_of(s, depth) for scope, depth in SCOPES.items()}
    yield exact if (exact := _fitted_exactly(scopes)) else _fitted_about(store, s, scopes)


def _parts_of(s: Summaries, depth: int) -> list[dict[str, tuple]]:
    """For each group of recordings, such as a person's: split → moments of its trials."""
    groups = defaultdict(dict)
    for key, moments in s.moments.items():
        of_group = groups[key[:depth]]
        of_group[key[-1]] = _added(of_group.get(key[-1]), moments)
    return list(groups.values())


def _unions(groups: Sequence[dict]) -> Iterator[tuple[str, list]]:
    """Splits in words, "train and test", and moments of their trials together in each group that has some of them."""
    modes = sorted({mode for parts in groups for mode in parts}, key=[*SPLITS, "no split", ""].index)
    for size in range(1, len(modes) + 1):
        for union in combinations(modes, size):
            some = [[parts[mode] for mode in union if mode in parts] for parts in groups]
            yield " and ".join(union), [_added(*of_group) for of_group in some if of_group]


def _fitted_exactly(scopes: dict[str, list]) -> Finding | None:
    """What is said where the trials of a group, or of some of its splits, have the identity as covariance."""
    for scope, groups in scopes.items():
        words = f"the covariance of {scope} is the identity: all its trials were whitened together"
        mixed = [parts for parts in groups if "test" in parts and len(parts) > 1]
        if all(_spread(_added(*parts.values())) < WHITE for parts in groups):
            more = "test trials among those that train" if mixed else "unlabelled, and no split with another"
            return Finding("BREACH" if mixed else "notice", "whitening", f"{words}, {more}")
        for parts in mixed:  # one person's may be, and nobody else's
            for union, (moments,) in _unions([parts]):
                if "test" in union and _spread(moments) < WHITE:
                    words = (
                        f"the covariance of {scope}, of {union} trials, is the identity: they were whitened together"
                    )
                    return Finding("BREACH", "whitening", f"{words}, test trials among them")
    for scope, groups in scopes.items():
        for union, moments in _unions(groups):
            if "test" not in union and max(map(_spread, moments)) < WHITE:
                named = {"train": "training", "val": "validation"}.get(union, union)
                return Finding("ok", "whitening", f"whitened by the {named} trials of {scope}")
    return None


def _fitted_about(store, s: Summaries, scopes: dict[str, list]) -> Finding:
    """What is said where no covariance is exactly the identity."""
    if store.meta.get("units", "microvolts") == "microvolts":
        parts = [(scope, *part) for scope, groups in scopes.items() for part in _unions(groups)]
        about = [(max(map(_spread, of)), scope, union) for scope, union, of in parts if "test" in union]
        most, scope, union = min(about, default=(np.inf, "", ""))
        if most < ABOUT_WHITE:
            words = f"the covariance of {scope}, of {union} trials, is the identity but for {percent(most)}"
            return Finding("cannot", "whitening", f"whose trials whitened these: {words}")
        return Finding("ok", "whitening", "no covariance is near the identity")
    if (distances := _distances_to_white(s)) is None:
        return Finding("cannot", "whitening", "what whitened these trials: no session has training and test trials")
    of_train, of_test, of_all = distances
    words = "distance of their covariance to the identity, where 1 is chance: "
    words += f"training trials {of_train:.2f}, training and test trials {of_all:.2f}, test trials {of_test:.2f}"
    of_test_alone = of_test < min(NEAR_WHITE, of_train / CLEARLY)
    if min(of_train, of_all) > NEAR_WHITE and not of_test_alone:
        return Finding("cannot", "whitening", f"on which trials it was fitted: {words}")
    if of_all < of_train or of_test_alone:
        return Finding("BREACH", "whitening", f"the sessions' whitening was fitted on test trials as well: {words}")
    return Finding("ok", "whitening", f"fitted on the sessions' training trials, as far as the store shows: {words}")


def _added(*moments: tuple | None) -> tuple:
    """Moments of several groups together."""
    return tuple(sum(parts) for parts in zip(*(part for part in moments if part is not None), strict=True))


def _spread(moments: tuple) -> float:
    """Relative deviation of the variances along a covariance's axes: 0 where it is the identity times a number.

    However it was centred, the least; axes that are empty count for nothing, and a single axis is never the identity.
    """
    n, mean, within, raw = moments
    spreads = [np.inf]
    for covariance in (within / n, raw / n, raw / n - np.outer(mean, mean) / n**2):
        values = np.linalg.eigvalsh(covariance)
        values = values[values > 1e-3 * values[-1]]
        if len(values) > 1:
            spreads.append(np.std(values) / np.mean(values))
    return float(min(spreads))


def _distances_to_white(s: Summaries) -> tuple[float, float, float] | None:
    """Squared distances of the training, the test, and all trials' covariance to the identity, over chance.

    With A and B the training and the test trials' covariances, n and m their numbers: what a whitener was fitted on
    has the identity, but for its shrinkage and window. Of noise that nobody whitened and that is white by itself, the
    squared distances are, in the mean, shares m / (n + m), n / (n + m) and n m / (n + m)² of that of A to B. Sums over
    sessions; None where none has both.
    """
    sessions, sums = defaultdict(dict), np.zeros((2, 3))
    for (person, session, _, mode), moments in s.moments.items():
        mode = "test" if mode == "test" else "train"
        sessions[person, session][mode] = _added(sessions[person, session].get(mode), moments)
    for parts in sessions.values():
        if len(parts) == 2:
            (n, _, a, _), (m, _, b, _) = parts["train"], parts["test"]
            shares = np.array([m / (n + m), n / (n + m), n * m / (n + m) ** 2])
            white = [np.square(x / (np.trace(x) / len(x)) - np.eye(len(x))).sum() for x in (a, b, a + b)]
            sums += white, shares * np.square(a / n - b / m).sum()
    return tuple(sums[0] / sums[1]) if sums[1].all() else None
