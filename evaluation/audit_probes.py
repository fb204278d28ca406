"""Labels that can be read from what is no brain's: order, keys, means, loudness, single samples, blocks in time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import binom, rankdata

from datasets.recording import Trial, origin
from evaluation.findings import Finding
from evaluation.statistics import PERMUTATIONS, permutation_level, permutation_p, permuted_accuracies
from evaluation.summaries import Summaries
from stages.scores import percent

# share of what guessing leaves that a probe may read before it is a breach; simulated effects reach 0.1
READABLE = 0.25
READABLE_LOUDNESS = 0.4  # and those that all electrodes share 0.25, a rhythm that changes everywhere
CERTAIN = 6.0  # deviations of guessing above its mean, for a breach: few blocks fall together by chance
WRITTEN = 0.5  # share of one sample's variance between classes, from which on it was written; ERPs stay far below
# share of the changes of class from trial to trial that chance would give: below it, classes come in blocks
BLOCKS = 0.5
DRIFT = 0.1  # share of what guessing leaves that a block must tell of its later trials, beyond what others' blocks tell


def probe_findings(trials: Sequence[Trial], s: Summaries) -> Iterator[Finding]:
    """No label readable from what is no brain's: order, key, constant electrodes, means, low bits, loudness.

    Loudness is the middle one of all electrodes' deviations: a rhythm changes some electrodes, a written label all. A
    rhythm that changes all of a few electrodes, such as alpha of closed eyes, is in one band; a written one in all.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    labels = np.array([trial.label for trial in trials])
    recordings = np.unique([repr(origin(trial)[:3]) for trial in trials], return_inverse=True)[1]  # (N,) counted from 0
    n_classes = len(np.unique(labels))
    held = np.array([len(np.unique(labels[recordings == k])) for k in range(recordings.max() + 1)])  # classes of each
    if n_classes < 2:
        yield Finding("cannot", "probes", "there is one class only")
        return
    yield _of_recordings(held, n_classes, recordings)
    if (held == 1).all():
        return

    def centred(x: np.ndarray) -> np.ndarray:
        return _within(recordings, x, _robust)

    number = np.array([trial.trial for trial in trials], float)
    blocks = blocks_of(labels, recordings, number)
    rank = _within(recordings, number, lambda x: rankdata(x, "ordinal") - 1)
    share = rank / _within(recordings, number, len)
    place = np.lexsort((number, recordings))
    gap = np.zeros(len(number))  # to the trial before
    gap[place[1:]] = np.where(np.diff(recordings[place]) == 0, np.diff(number[place]), 0)
    letters = CountVectorizer(analyzer="char", ngram_range=(1, 4), max_features=400, lowercase=False)
    loudness = np.median(centred(np.log(s.spread + 1e-9)), axis=1, keepdims=True)
    probes = {
        "order": np.stack([rank, share, *(of % k for of in (rank, number, gap) for k in range(2, 13)), gap], axis=1),
        "key": letters.fit_transform([trial.key for trial in trials]).toarray(),
        "means": centred(np.concatenate([s.mean, s.mean.mean(axis=1, keepdims=True)], axis=1)),
        "variance": centred(loudness),
        "first samples": centred(s.first),
        "last samples": centred(s.last),
        "low bits": s.bits,
    }
    if s.flat.any():
        probes["flat samples"] = s.flat
    if s.constant[:, : s.constant.shape[1] // 2].any():
        probes["constant electrodes"] = np.concatenate([s.constant, centred(s.constant)], axis=1)
    else:
        yield Finding("ok", "constant electrodes", "there are none")
    for name, summary in probes.items():
        limit = READABLE_LOUDNESS if name == "variance" else READABLE
        found = _probe(name, summary, labels, recordings, blocks, limit)
        if name == "variance" and found.kind == "BREACH" and s.energies.size:
            of_bands = centred(s.energies.mean(axis=1) / 2)  # (N, B)
            if np.median(_apart(of_bands, labels)) < _apart(loudness, labels)[0] / 2:
                found = replace(found, kind="notice", words=f"{found.words}; a rhythm's: most bands do not change")
        yield found
    yield _single_samples(s, blocks is not None)
    if blocks is not None and s.energies.size:
        yield _drift(s, labels, recordings, blocks)


def _single_samples(s: Summaries, in_blocks: bool) -> Finding:
    """Whether one sample, or one of its low bits, tells the class by itself: no response of a brain does."""
    apart = not in_blocks or s.typical < s.written / 2  # in blocks, a drift gives all samples a share
    kind = "BREACH" if s.beside < s.written / 2 else "notice"
    kind = kind if s.written >= max(WRITTEN, s.chance) and apart else "ok"
    words = f"{percent(s.written)} of the variance of {s.where} lies between classes; no other sample has more"
    return Finding(kind, "single samples", f"{words} (by chance up to {percent(min(s.chance, 1))})")


def _apart(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, D) → (D,) how far the classes' means are apart at most."""
    return np.ptp([x[labels == label].mean(axis=0) for label in np.unique(labels)], axis=0)


def _of_recordings(held: np.ndarray, n_classes: int, recordings: np.ndarray) -> Finding:
    """What the recording of a trial alone tells of its class. held : (R,) numbers of classes of each recording."""
    if (held == 1).all():
        words = "each recording holds one class: whatever tells recordings apart tells the class"
        return Finding("BREACH", "recordings", words)
    if (held == n_classes).all():
        return Finding("ok", "recordings", "each holds all classes")
    words = "they hold some of the classes: knowing the recording alone gives"
    return Finding("notice", "recordings", f"{words} {percent(np.mean(1 / held[recordings]))}")


def _probe(
    name: str, x: np.ndarray, labels: np.ndarray, recordings: np.ndarray, blocks: np.ndarray | None, limit: float
) -> Finding:
    """Trees that are trained on some recordings and asked about others."""
    if recordings.max() < 1:
        return Finding("cannot", name, "there is one recording only")
    answers = _answers_across(x, labels, recordings)
    if blocks is None:
        permuted = permuted_accuracies(labels.tolist(), answers.tolist(), recordings.tolist())
    else:
        permuted = _by_blocks(labels, answers, recordings, blocks)
    accuracy, (level, _, high) = float((answers == labels).mean()), permutation_level(permuted)
    # few blocks leave few orders, which may all give one accuracy: it must be beyond single trials' chance as well
    by_chance = binom.sf(round(accuracy * len(labels)) - 1, len(labels), level)
    above_guessing = permutation_p(accuracy, permuted) < 0.001 and by_chance < 0.001
    readable = (accuracy - level) / max(1 - level, 1e-9)
    certain = accuracy - level >= CERTAIN * permuted.std()
    kind = "ok" if not above_guessing else "BREACH" if readable >= limit and certain else "notice"
    unit = "" if blocks is None else " in blocks"
    guessing = f"n = {len(labels)}{unit}, level {percent(level)}, 95 % of guessing up to {percent(high)}"
    return Finding(kind, name, f"trees read {percent(accuracy)} of the labels from them ({guessing})")


def _answers_across(x: np.ndarray, labels: np.ndarray, recordings: np.ndarray) -> np.ndarray:
    """What trees answer of each recording (N,) that were trained on others."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    trees = ExtraTreesClassifier(60, min_samples_leaf=2, random_state=0)
    return cross_val_predict(trees, x, labels, groups=recordings, cv=GroupKFold(min(5, recordings.max() + 1)))


# ---------------------------------------------------------------- classes that come in blocks


def blocks_of(labels: np.ndarray, recordings: np.ndarray, number: np.ndarray) -> np.ndarray | None:
    """(N,) which block of its recording a trial is in, counted over all; None where classes come in no blocks.

    A block is trials of one class that follow one another. Classes come in blocks where the class changes less than
    half as often from a trial to the next as it would in a random order.
    """
    order = np.lexsort((number, recordings))
    same = np.diff(recordings[order]) == 0
    changes = np.diff(labels[order]) != 0
    expected = 0.0
    for recording in np.unique(recordings):
        n = (recordings == recording).sum()
        expected += (1 - np.square(np.bincount(labels[recordings == recording]) / n).sum()) * (n - 1)
    if (changes & same).sum() >= BLOCKS * expected:
        return None
    blocks = np.zeros(len(labels), int)
    blocks[order[1:]] = np.cumsum(changes | ~same)
    return blocks


def _by_blocks(labels: np.ndarray, answers: np.ndarray, recordings: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """(n,) accuracies of these answers when whole blocks change places within each recording.

    A block's trials follow one another and share whatever drifts, so that single trials may not be exchanged for
    others: two people whose blocks fall together by chance would look like a leak. What two recordings have in common
    is found twice, from either side; so every other recording's blocks change places, and count for two.
    """
    rng, right = np.random.default_rng(0), np.zeros(PERMUTATIONS)
    some = np.unique(recordings)[::2]
    for recording in some:
        inside = np.flatnonzero(recordings == recording)
        inside = inside[np.argsort(blocks[inside], kind="stable")]
        _, starts, lengths = np.unique(blocks[inside], return_index=True, return_counts=True)
        classes = labels[inside][starts]
        other = rng.permuted(np.tile(np.arange(len(classes)), (PERMUTATIONS, 1)), axis=1)  # (n, blocks)
        permuted = np.repeat(classes[other].ravel(), lengths[other].ravel()).reshape(PERMUTATIONS, -1)
        right += (permuted == answers[inside]).sum(axis=1)
    return right / np.isin(recordings, some).sum()


def _drift(s: Summaries, labels: np.ndarray, recordings: np.ndarray, blocks: np.ndarray) -> Finding:
    """Whether a block tells its later trials from others' beyond what its class does in other recordings.

    Band energies, means and deviations of each block's first half are compared with its second half: the nearest mean
    of a recording's blocks. Of other recordings, trees are asked. What only the former knows is the block, or the
    person's own effect.
    """
    x = np.concatenate([s.energies.reshape(len(labels), -1), s.mean, np.log(s.spread + 1e-9)], axis=1)
    x = _within(recordings, x, _robust)
    right = chance = 0.0
    place = _within(blocks, np.arange(len(labels), dtype=float), lambda k: rankdata(k, "ordinal") / len(k))
    for recording in np.unique(recordings):
        inside = recordings == recording
        first, later = inside & (place <= 0.5), inside & (place > 0.5)
        known = np.unique(blocks[first])
        means = np.stack([x[first & (blocks == block)].mean(axis=0) for block in known])
        classes = np.array([labels[blocks == block][0] for block in known])
        nearest = np.square(x[later][:, None] - means[None]).sum(axis=2).argmin(axis=1)
        right += float((classes[nearest] == labels[later]).sum())
        chance += later.sum() / len(set(classes.tolist()))
    n = int((place > 0.5).sum())
    within, level = right / n, chance / n
    words = f"classes come in blocks; within a recording, a block's first half tells {percent(within)} of its second"
    words += f" (n = {n}, chance {percent(level)})"
    if recordings.max() < 1:
        return Finding("notice", "blocks", f"{words}: time tells the class as well, and there is one recording only")
    across = float((_answers_across(x, labels, recordings) == labels).mean())
    words += f", other recordings {percent(across)}"
    beyond = (within - max(across, level)) / max(1 - level, 1e-9)
    if beyond < DRIFT:
        return Finding("ok", "blocks", f"{words}: no drift of blocks stands out")
    return Finding("notice", "blocks", f"{words}: blocks drift, so within a person time tells the class as well")


def _within(recordings: np.ndarray, x: np.ndarray, transform: Callable) -> np.ndarray:
    """Numbers (N, …) as seen from inside their recording."""
    seen = np.zeros(x.shape)
    for recording in range(recordings.max() + 1):
        seen[recordings == recording] = transform(x[recordings == recording])
    return seen


def _robust(x: np.ndarray) -> np.ndarray:
    """Standardised by median and quartiles."""
    return (x - np.median(x, axis=0)) / (np.ptp(np.quantile(x, [0.25, 0.75], axis=0), axis=0) + 1e-12)
