"""Trials that are there twice: as they are, or shifted, filtered, cut to some electrodes, in another order."""

from collections.abc import Iterator, Sequence

import numpy as np

from datasets.recording import Trial, origin
from datasets.splits import Split
from evaluation.findings import Finding, first_of
from evaluation.summaries import Summaries, own_bins, standardised

COPIES = 0.9999  # correlation of two trials from which on one is a copy of the other; neighbours in time stay far below
CHANGED = 0.6  # correlation, each frequency counting alike, from which on a trial is made of another
ABOVE_CHANCE = 1.4  # times what unrelated trials reach, which is more than `CHANGED` where they are short
LOUDEST = 2.0  # times an electrode's middle frequency, what one counts at most: one blink looks like another
AUDIBLE = 0.02  # of the loudest frequency's amplitude: what lies below it was filtered away
OUTSTANDING = 4.5  # deviations by which a pair's likeness exceeds that of most pairs before it is looked at closely
MOST_PAIRS = 200  # looked at closely
NEIGHBOURS = 5  # trials of a recording so near each other may overlap in time


def copy_findings(store, splits: Split, trials: Sequence[Trial], sketch: np.ndarray) -> Iterator[Finding]:
    """No trial twice by content, whatever its gain and offset (of the trial, or of each electrode)."""
    from scipy.spatial import cKDTree

    lively = np.flatnonzero(np.square(sketch).sum(axis=1) > 1e-6)  # trials that do not change are no copies
    split_of = {trial.key: mode for mode, of_split in splits.items() for trial in of_split}
    pairs = set()
    if len(lively) > 1:
        tree = cKDTree(sketch[lively])
        for sign in (1, -1):  # a turned sign is a gain as well
            distance, nearest = tree.query(sign * sketch[lively], k=2)
            for a, k in np.argwhere(distance < 0.1):  # of sketches whose entries have a deviation of one
                pairs.add(tuple(sorted((int(lively[a]), int(lively[nearest[a, k]])))))
    copies = []
    for a, b in sorted((a, b) for a, b in pairs if a != b):
        x, y = (standardised(store.read(trials[k])) for k in (a, b))
        if abs((x * y).sum()) >= COPIES * np.sqrt(np.square(x).sum() * np.square(y).sum()):
            copies.append((trials[a].key, trials[b].key))
    words = []
    for a, b in copies:
        where = " and ".join(split_of.get(key, "no split") for key in (a, b))
        words.append(f"{a} ({where}) is {b} but for gain and offset")
    yield from first_of("BREACH", "copies", words, "pairs of trials are copies")
    if not copies:
        yield Finding("ok", "copies", f"no two of {len(trials)} trials are the same up to gain and offset")


# ---------------------------------------------------------------- changed copies


def changed_copy_findings(store, splits: Split, trials: Sequence[Trial], s: Summaries) -> Iterator[Finding]:
    """No test trial that is a training or validation trial shifted, filtered, turned round, or cut to some electrodes.

    What is a trial's own in its spectra finds the most alike pairs; those are compared sample by sample, at all lags.
    False alarms: none among 1,136 test trials of clean stores (192, 120 and 224 of the demos of motor imagery, visual
    imagery and EEG-ImageNet, 600 of the real BCIC-IV-2b), nor later among 1,200 of two people of 2b. Their most alike
    pairs reached 0.43, and 0.6 is asked for.
    """
    place_of = {trial.key: k for k, trial in enumerate(trials)}
    test = np.array([place_of[trial.key] for trial in splits.get("test", ())], int)
    others = np.array([place_of[t.key] for mode in ("train", "val") for t in splits.get(mode, ())], int)
    if not len(test) or not len(others) or not s.spectra.shape[1]:
        yield Finding("cannot", "changed copies", "there is no test, nothing beside it, or trials are too short")
        return
    pairs = {}
    for features in (s.spectra, s.layout):
        for a, b, likeness in _most_alike(features, test, others):
            pairs[a, b] = max(likeness, pairs.get((a, b), 0.0))
    # (C, F) mean amplitudes of some trials, each electrode standardised; by them each frequency counts alike
    some = trials[:: max(1, len(trials) // 100)]
    flat = np.mean([np.abs(_spectrum(store.read(trial))) for trial in some], axis=0)
    split_of = {trial.key: mode for mode, of_split in splits.items() for trial in of_split}
    found = {"BREACH": [], "notice": []}
    for place, other in sorted(pairs, key=pairs.get, reverse=True)[:MOST_PAIRS]:
        a, b = trials[place], trials[other]
        likeness, chance, how = _at_any_lag(store.read(a), store.read(b), flat, store.sfreq)
        if likeness >= max(CHANGED, ABOVE_CHANCE * chance):
            words = f"{a.key} (test) is made of {b.key} ({split_of[b.key]}): {how}, correlation {likeness:.2f}"
            # windows of neighbours in time overlap by a protocol, not by a hand
            overlap = origin(a)[:3] == origin(b)[:3] and abs(a.trial - b.trial) <= NEIGHBOURS
            found["notice" if overlap else "BREACH"].append(words + "; they overlap in time" * overlap)
    for kind, words in found.items():
        yield from first_of(kind, "changed copies", sorted(words), "test trials are made of others")
    if not any(found.values()):
        words = f"no test trial is another one shifted, filtered or cut; {len(pairs)} pairs were looked at closely"
        yield Finding("ok", "changed copies", words)


def _most_alike(features: np.ndarray, test: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """For each test trial the other one whose features correlate most with its own, where that stands out."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    theirs = unit[others].T
    for part in np.array_split(test, max(1, len(test) // 512)):
        like = unit[part] @ theirs  # (n, N)
        # the deviation of pairs that have nothing in common
        usual = np.median(np.abs(like[:, :: max(1, len(others) // 2000)])) / 0.6745
        for a, b, most in zip(part, others[like.argmax(axis=1)], like.max(axis=1), strict=True):
            if most > OUTSTANDING * usual:
                yield int(a), int(b), float(most / usual)


def _spectrum(x: np.ndarray) -> np.ndarray:
    """(C, F) spectrum of a trial, with zeros behind it, so that no lag wraps around."""
    x = standardised(x.astype(np.float32))
    return np.fft.rfft(x * np.hanning(x.shape[1] + 2)[1:-1], 2 * x.shape[1])


def _at_any_lag(x: np.ndarray, y: np.ndarray, flat: np.ndarray, sfreq: float) -> tuple[float, float, str]:
    """How alike two trials (C, T) are, at the lag and in the order of electrodes where they are most; how alike by
    chance; and how one is made of the other, in words.

    The median of correlations over that quarter of x's electrodes that fits best; each frequency counts alike. y may be
    turned round in time. Of unrelated trials a correlation's deviation is 1 / √(2 n) with n independent frequencies,
    and the largest of M of them reaches √(log M / n).
    """
    n_chans, n_times = x.shape
    bins = own_bins(n_times, sfreq, padded=2)
    bins = bins[flat[:, bins].max(axis=0) > AUDIBLE * flat[:, bins].max()]
    n_lags = 4 * int(bins[-1] + 2)  # twice as many as these frequencies tell apart
    best, quarter = (0.0, ""), max(1, n_chans // 4)
    for turned in (False, True):
        a, b = (_spectrum(z)[:, bins] / (flat[:, bins] + 1e-9) for z in (x, y[:, ::-1] if turned else y))
        a, b = (z / np.maximum(np.median(np.abs(z), axis=1, keepdims=True), np.abs(z) / LOUDEST + 1e-9) for z in (a, b))
        a, b = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9) for z in (a, b))
        cross = np.zeros((n_chans, n_chans, n_lags // 2 + 1), np.complex64)
        cross[:, :, bins] = a[:, None] * b[None].conj()
        lags = np.abs(np.fft.irfft(cross, n_lags, axis=2)) * n_lags / 2  # (C, C, lags)
        fits = np.sort(lags.max(axis=1), axis=0)  # by the other's electrode that fits best
        at_lag = np.median(fits[-quarter:], axis=0)
        place = int(at_lag.argmax())
        if at_lag[place] > best[0]:
            shift = round((place if 2 * place <= n_lags else place - n_lags) * 2 * n_times / n_lags)
            how = f"shifted by {shift} samples" if shift else "at the same time"
            how += ", turned round in time" if turned else ""
            how += ", other electrodes" if np.diagonal(lags[:, :, place]).max() < CHANGED else ""
            best = (float(at_lag[place]), how)
    chance = float(np.sqrt(np.log(n_chans * n_lags) / (len(bins) / 3)))  # zeros and window join three frequencies
    return best[0], chance, best[1]
