"""Who is in which split: people by their names and by their signals, trials by their keys, images and concepts."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product

import numpy as np

from datasets.recording import Trial, origin
from datasets.splits import Split
from evaluation.findings import Finding
from evaluation.summaries import Summaries

LOOK_ALIKE = str.maketrans("авекмнорстухіјѕαβεζηικμνορτυχ", "abekmhopctyxijsabezhikmnoptyx")  # Cyrillic, Greek
DIGITS = str.maketrans("oil", "011")
FEW_ELECTRODES = 4  # with fewer, two people may be alike by chance
FEW_PEOPLE = 4  # from so many on, a pair can stand out
ALIKE, RATHER_ALIKE = 0.25, 0.5  # times as far apart as from anybody else: one person under two names, or in doubt


def people_findings(splits: Split, promise: str) -> Iterator[Finding]:
    """No person in two splits, whatever the spelling, and none without a name."""
    trials = [trial for of_split in splits.values() for trial in of_split]
    names = {trial.subject for trial in trials}
    if names == {""}:
        yield Finding("cannot", "people", "the store does not say whose the trials are")
        return
    nameless = sum(not _same_name(trial.subject) for trial in trials)
    if nameless:
        yield Finding("BREACH", "people", f"{nameless} trials say not whose they are; nobody can keep them apart")
    spellings = defaultdict(set)
    for name in names:
        spellings[_same_name(name)].add(name)
    spelled = {name: " and ".join(map(repr, sorted(variants))) for name, variants in spellings.items()}
    where = {mode: {_same_name(t.subject) for t in of_split} - {""} for mode, of_split in splits.items()}
    apart = {"person": combinations(where, 2), "tested person": [("train", "test"), ("val", "test")]}.get(promise, ())
    twice = [(name, a, b) for a, b in apart for name in sorted(where[a] & where[b])]
    for name, a, b in twice:
        yield Finding("BREACH", "people", f"{spelled[name]} in {a} and in {b}")
    for name, variants in sorted(spellings.items()):
        if len(variants) > 1 and sum(name in people for people in where.values()) < 2:
            yield Finding("notice", "people", f"{spelled[name]} look like one person")
    if not twice and not nameless:
        promised = {
            "person": "no person in two splits, in any spelling",
            "tested person": "nobody who tests trains or validates, in any spelling",
        }
        words = promised.get(promise, "one person's sessions, as asked for")
        yield Finding("ok", "people", f"{len(names)} people; {words}")


def seen_findings(splits: Split, promise: str) -> Iterator[Finding]:
    """No concept (label), or no image, in two splits, of datasets of seen images."""
    seen = {mode: {t.label if promise == "concept" else t.image for t in trials} for mode, trials in splits.items()}
    shared = [(a, b) for a, b in combinations(seen, 2) if seen[a] & seen[b]]
    for a, b in shared:
        yield Finding("BREACH", "seen", f"the {promise} {min(seen[a] & seen[b])} is in {a} and in {b}")
    if not shared:
        counts = ", ".join(f"{len(kinds)} {mode}" for mode, kinds in seen.items())
        yield Finding("ok", "seen", f"no {promise} in two splits: {counts}")


def _same_name(name: str) -> str:
    """A name without what people spell differently: case, blanks, dashes, leading zeros, letters that look alike."""
    name = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name)).casefold().translate(LOOK_ALIKE)
    name = re.sub(r"(?<=\d)[oil]+|[oil]+(?=\d)", lambda m: m[0].translate(DIGITS), name)
    return re.sub(r"0*(\d+)", r"\1", name)


def key_findings(trials: Sequence[Trial]) -> Iterator[Finding]:
    """No key twice, and no trial of a recording twice."""
    keys = [key for key, n in Counter(trial.key for trial in trials).items() if n > 1]
    origins = [place for place, n in Counter(map(origin, trials)).items() if n > 1]
    for key in keys[:5]:
        yield Finding("BREACH", "keys", f"{key!r} is there twice")
    for subject, session, run, trial in origins[:5]:
        yield Finding("BREACH", "keys", f"trial {trial} of run {run} of {subject} {session} is there twice")
    if not keys and not origins:
        yield Finding("ok", "keys", f"{len(trials)} trials, each there once")


# ---------------------------------------------------------------- people by their signals


def likeness_findings(splits: Split, promise: str, trials: Sequence[Trial], s: Summaries) -> Iterator[Finding]:
    """No person under two names: by the energies of their electrodes' bands, and their mean spectrum.

    Two names are one person where each is the other's likest and far nearer to it than to the next likest. People who
    are all alike, as simulated ones may be, have no such pair, and are not told apart.

    Measured: the least ratio of two people is 0.74 in the real BCIC-IV-2b (7 people) and 0.42 in the demo of motor
    imagery. Of one person under two names it is 0.27 to 1.1 across days with the three electrodes of BCIC-IV-2b (none
    of 7 is a breach, 3 are notices), and 0.12 to 0.45 in the demo (6 of 9 are breaches, 3 notices).
    """
    if promise not in ("person", "tested person"):
        return
    where = {mode: {trial.subject for trial in of_split} for mode, of_split in splits.items()}
    tested, others = where.get("test", set()), where.get("train", set()) | where.get("val", set())
    names = sorted({trial.subject for trial in trials})
    if len(names) < FEW_PEOPLE or not tested or not others or not s.energies.size:
        short = "trials are too short" if not s.energies.size else f"{len(names)} people are too few"
        yield Finding("cannot", "likeness", f"whether two names are one person: {short}")
        return
    # pairs of which one tests and the other does not
    numbers = range(len(names))
    pairs = {frozenset((a, b)) for a, b in permutations(numbers, 2) if names[a] in tested and names[b] in others}
    (apart, found), n_chans = ({}, {}), s.energies.shape[1]
    for louder, x in enumerate(_features(trials, s)):  # as they are; whatever a trial's loudness, for a notice
        for pair, (ratio, usual, chance) in _nearness(names, trials, x).items():
            if frozenset(pair) not in pairs:
                continue
            apart[pair] = min(ratio, apart.get(pair, np.inf))
            if usual and ratio < RATHER_ALIKE:
                sure = ratio < ALIKE and chance and not louder and n_chans >= FEW_ELECTRODES
                found[pair] = min(found.get(pair, (True, np.inf)), (not sure, ratio))
    for (a, b), (doubt, ratio) in sorted(found.items(), key=lambda one: one[1]):
        words = f"{names[a]} and {names[b]} look like one person: {ratio:.2f} times as far apart as from anybody else"
        yield Finding("notice" if doubt else "BREACH", "likeness", words)
    if lacking := len(pairs) - len(apart):
        words = f"whether {lacking} of {len(pairs)} pairs of names are one person"
        yield Finding("cannot", "likeness", f"{words}: their signals are too much like others'")
    if apart and not found:
        nearest = f"nearest pair {min(apart.values()):.2f} times as far apart as from anybody else"
        yield Finding("ok", "likeness", f"no two of {len(names)} people look like one ({nearest})")


def _features(trials: Sequence[Trial], s: Summaries) -> Iterator[np.ndarray]:
    """(N, D) logarithms of energies by electrode and band, and of the mean spectrum; then less each trial's means."""
    parts = s.energies.reshape(len(trials), -1), s.profile
    yield np.concatenate(parts, axis=1)
    yield np.concatenate([part - part.mean(axis=1, keepdims=True) for part in parts if part.shape[1]], axis=1)


def _nearness(
    names: Sequence[str], trials: Sequence[Trial], x: np.ndarray
) -> dict[tuple[int, int], tuple[float, bool, bool]]:
    """Pair of people to their distance over the lesser one of either's to anybody else; whether it is no larger than
    chance or than one person's from session to session; whether than chance alone. x : (N, D) as `_features` gives it.

    A distance is the least one of their sessions', in deviations of a trial, less what so few trials give by chance.
    Pairs whose distance to others is not beyond that chance are left out.
    """
    from sklearn.covariance import ledoit_wolf

    sessions = sorted({(trial.subject, trial.session) for trial in trials})
    which = np.array([sessions.index((trial.subject, trial.session)) for trial in trials])
    mean = np.stack([x[which == k].mean(axis=0) for k in range(len(sessions))])  # (S, D)
    deviation = (x - mean[which]).std(axis=0) + 1e-6
    x, mean = x / deviation, mean / deviation
    values, vectors = np.linalg.eigh(ledoit_wolf(x - mean[which], assume_centered=True)[0])
    axes = vectors / np.sqrt(np.maximum(values, 1e-6))  # along which trials of a session differ alike
    x, mean, counts = x @ axes, mean @ axes, np.bincount(which)
    chance = np.square(x - mean[which]).sum(axis=1).mean() * (1 / counts[:, None] + 1 / counts[None])
    squares = np.square(mean[:, None] - mean[None]).sum(axis=2)  # (S, S)
    whose = np.array([names.index(person) for person, _ in sessions])
    n, nearness = len(names), {}
    signal, noise = np.zeros((n, n)), np.zeros((n, n))
    for a, b in product(range(n), repeat=2):
        of_both = np.ix_(whose == a, whose == b)
        least = np.argmin((squares - chance)[of_both])
        signal[a, b], noise[a, b] = (squares - chance)[of_both].flat[least], chance[of_both].flat[least]
    own = [(squares - chance)[a, b] for a, b in combinations(range(len(sessions)), 2) if whose[a] == whose[b]]
    usual = float(np.median(own)) if own else 0.0  # of one person, from session to session
    for a, b in combinations(range(n), 2):
        rest = np.delete(np.arange(n), [a, b])
        next_one = min(signal[a, rest].min(), signal[b, rest].min())
        if next_one > noise[[a, b]][:, rest].max():
            ratio = float(np.sqrt(max(signal[a, b], 0) / next_one))
            chance = bool(signal[a, b] <= noise[a, b])
            nearness[a, b] = ratio, chance or bool(signal[a, b] <= usual), chance
    return nearness
