"""Looks for what a shuffled-label control cannot see: people or trials in two splits, labels that no brain put there,
an epoch chosen on test, files that do not belong together.

Each check gives findings: ok, notice, cannot (what it cannot check) or BREACH. `store_findings` reads a store,
`run_findings` a run on it.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

import numpy as np
from scipy.stats import beta, rankdata

from datasets.alignment import ADAPTATIONS, ALIGNMENTS, used_together
from datasets.description import DatasetDescription
from datasets.prepare import AMPLITUDES, RATIOS
from datasets.recording import Trial, origin
from datasets.splits import Split, protocol_named, without_split
from datasets.trials import TrialDataset
from evaluation.decoded_runs import Run
from evaluation.statistics import permutation_level, permutation_p, permuted_accuracies
from stages.runs import best_epoch, is_history
from stages.scores import percent
from stages.tokens import TokenCache, encoder_for
from utils.checkpoints import fingerprint, read_checkpoint, read_kept
from utils.errors import UserError
from utils.files import read_json
from utils.progress import progress

COPIES = 0.9999  # correlation of two trials from which on one is a copy of the other; neighbours in time stay far below
READABLE = (
    0.25  # share of what guessing leaves that a probe may read before it is a breach; simulated effects reach 0.1,
)
READABLE_LOUDNESS = 0.4  # and those that all electrodes share 0.25, a rhythm that changes everywhere
UNITS = {"volts": 1e-6, "millivolts": 1e-3, "nanovolts": 1e3}  # what one microvolt is in each
FAR = 3.0  # times beyond what preparing a store accepts, from which on it is a breach: other filters do not do that
WRITTEN = 0.5  # share of one sample's variance between classes, from which on it was written; ERPs stay far below
EQUAL = 2e-5  # relative difference of electrodes' amplitudes over all trials, below which somebody made them equal
SAME_TOKENS = 1e-2  # of their RMS: other devices and precisions differ by less
# baselines
WITHOUT_EPOCHS = "best_constant recording_only bandpower_lda csp_lda tangent_space ridge knn forest svm".split()
WITHOUT_EPOCHS += ["samples_lda", "xdawn_tangent", "filterbank_tangent"]
CANNOT = [
    "a label that is written into one electrode's variance or rhythm: "
    "it looks like the band power that decoders live on",
    "amplitudes that were made equal by medians or quantiles of all trials, or made equal and then clipped",
    "a label in the fifth and higher bits of single samples",
    "copies with other noise, overlapping windows, or a filter that reaches from one trial into the next",
    "whether the test people were looked at before this store was made, "
    "or the settings were chosen by other runs' test scores",
]


@dataclass(frozen=True)
class Finding:
    """What a check found: ok, notice, cannot or BREACH, of what, in words."""

    kind: str
    check: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind:7} {self.check}: {self.words}"


# ---------------------------------------------------------------- people and keys


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
        promised = {"person": "no person in two splits", "tested person": "nobody who tests trains or validates"}
        apart = (
            f"{promised[promise]}, in any spelling" if promise in promised else "one person's sessions, as asked for"
        )
        yield Finding("ok", "people", f"{len(names)} people; {apart}")


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
    """A name without what people spell differently: case, blanks, dashes, leading zeros."""
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name)).casefold())


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


# ---------------------------------------------------------------- samples


@dataclass
class Summaries:
    """What one pass over the samples leaves; a row a trial.

    mean, first, last : (N, C) microvolts. Of each electrode; its first and its last sample.
    bits : (N, 8 + 2 C). How often each of a sample's 8 lowest bits is set; the lowest byte of first and last samples.
    constant : (N, 2 C). Which electrodes do not change within the trial, and their value.
    sketch : (N, 24). The trial, each electrode standardised, seen from 24 fixed directions.
    deviation, reach, pooled_mean : (C,). Of each electrode over all trials; reach is largest minus smallest.
    spread : (N, C). Deviation within each trial.
    written, chance : float. The largest share of one sample's variance, or of one of its low bits', that lies between
        classes, and what it may reach by chance; `where` that sample is.
    """

    mean: np.ndarray
    first: np.ndarray
    last: np.ndarray
    bits: np.ndarray
    constant: np.ndarray
    sketch: np.ndarray
    spread: np.ndarray
    deviation: np.ndarray
    reach: np.ndarray
    pooled_mean: np.ndarray
    written: float
    chance: float
    where: str


def summarise(store, trials: Sequence[Trial]) -> Summaries:
    """One pass over all samples of a store."""
    n_chans, n_times = store.shape
    directions = np.random.default_rng(0).standard_normal((n_chans * n_times, 24)).astype(np.float32)
    rows = defaultdict(list)
    total, squares, n = np.zeros(n_chans), np.zeros(n_chans), len(trials) * n_times
    most, least = np.full(n_chans, -np.inf), np.full(n_chans, np.inf)
    values, bits = _BetweenClasses((n_chans, n_times)), _BetweenClasses((4, n_chans, n_times))
    recordings = defaultdict(list)
    for place, trial in enumerate(trials):
        recordings[origin(trial)[:3]].append(place)
    with progress(total=len(trials), desc="reading", unit="trial", leave=False) as bar:
        for places in recordings.values():
            x = np.stack([store.read(trials[k]) for k in places]).astype(np.float32)  # (n, C, T)
            if not np.isfinite(x).all():
                raise UserError(f"{store.path}: a trial of {trials[places[0]].subject} holds NaN or infinity")
            labels = np.array([trials[k].label for k in places])
            values.add(x, labels)
            bits.add(np.stack([(x.view(np.uint32) >> b) & 1 for b in range(4)], axis=1).astype(np.float32), labels)
            for name, part in _rows_of_trials(x, directions).items():
                rows[name].append(part)
            most, least = np.maximum(most, x.max(axis=(0, 2))), np.minimum(least, x.min(axis=(0, 2)))
            total += x.sum(axis=(0, 2), dtype=float)
            squares += np.square(x, dtype=float).sum(axis=(0, 2))
            bar.update(len(places))
    back = np.argsort(np.concatenate(list(recordings.values())))
    (written, (*_, electrode, sample)), kind = max((values.largest(), "the value"), (bits.largest(), "a low bit"))
    n_classes, n_places = len(values.sums), 5 * n_chans * n_times  # a value and four bits of each sample
    left = max(len(trials) - len(recordings) - n_classes + 1, 1)  # degrees of freedom
    mean = total / n
    return Summaries(
        **{name: np.concatenate(parts)[back] for name, parts in rows.items()},
        pooled_mean=mean,
        deviation=np.sqrt(np.maximum(squares / n - mean**2, 0)),
        reach=most - least,
        written=written,
        chance=float(beta.isf(1e-6 / n_places, (n_classes - 1) / 2, left / 2)),
        where=f"{kind} of electrode {electrode + 1}, sample {sample + 1}",
    )


def _rows_of_trials(x: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
    """Those fields of `Summaries` that have a row a trial, of the trials (n, C, T) of a recording."""
    first, last = x[:, :, 0].copy(), x[:, :, -1].copy()  # no views: they would keep all samples
    bits = x.view(np.uint32)
    share = np.stack([((bits >> b) & 1).mean(axis=(1, 2)) for b in range(8)], axis=1)
    still = x.max(axis=2) == x.min(axis=2)
    return {
        "mean": x.mean(axis=2),
        "spread": x.std(axis=2),
        "first": first,
        "last": last,
        "bits": np.concatenate([share, bits[:, :, 0] & 255, bits[:, :, -1] & 255], axis=1),
        "constant": np.concatenate([still, np.where(still, first, 0)], axis=1),
        "sketch": _standard(x).reshape(len(x), -1) @ directions / np.sqrt(len(directions)),
    }


class _BetweenClasses:
    """The share of variance between classes, place by place; each recording is centred first. Sums in float64."""

    def __init__(self, shape: tuple):
        self.squares, self.sums, self.counts = np.zeros(shape), defaultdict(lambda: np.zeros(shape)), Counter()

    def add(self, x: np.ndarray, labels: np.ndarray) -> None:
        x = x.astype(float) - x.mean(axis=0, dtype=float)
        self.squares += np.square(x).sum(axis=0)
        for label in set(labels.tolist()):
            self.sums[label] += x[labels == label].sum(axis=0)
            self.counts[label] += int((labels == label).sum())

    def largest(self) -> tuple[float, tuple]:
        """The largest share and where it is; places that never change within a recording have none."""
        between = sum(np.square(total) / self.counts[label] for label, total in self.sums.items())
        share = np.divide(between, self.squares, out=np.zeros_like(self.squares), where=self.squares > 1e-12)
        place = np.unravel_index(np.argmax(share), share.shape)
        return float(share[place]), place


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
        x, y = (_standard(store.read(trials[k])) for k in (a, b))
        if abs((x * y).sum()) >= COPIES * np.sqrt(np.square(x).sum() * np.square(y).sum()):
            copies.append((trials[a].key, trials[b].key))
    for a, b in copies[:5]:
        where = " and ".join(split_of.get(key, "no split") for key in (a, b))
        yield Finding("BREACH", "copies", f"{a} ({where}) is {b} but for gain and offset")
    if len(copies) > 5:
        yield Finding("BREACH", "copies", f"{len(copies) - 5} more pairs of trials are copies")
    if not copies:
        yield Finding("ok", "copies", f"no two of {len(trials)} trials are the same up to gain and offset")


def _standard(x: np.ndarray) -> np.ndarray:
    """(…, C, T) with mean 0 and deviation 1 of each electrode; one that does not change is 0."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.maximum(x.std(axis=-1, keepdims=True), 1e-6)


def normalisation_findings(s: Summaries) -> Iterator[Finding]:
    """No normalisation that was fitted on all trials, test people among them: amplitudes never agree by themselves."""

    def equal(x: np.ndarray) -> bool:
        return np.ptp(x) < EQUAL * x.mean()

    moving = s.deviation > 1e-9
    deviation, spread, several = s.deviation[moving], s.spread[:, moving], moving.sum() > 1
    if not moving.any():
        yield Finding("cannot", "normalisation", "no electrode changes at all")
        return
    same = several and (equal(deviation) or equal(s.reach[moving]))
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
        yield Finding(
            "ok", "amplitudes", f"of recordings' median electrodes {reach}; no electrode is far from the others"
        )
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


# ---------------------------------------------------------------- probes


def probe_findings(trials: Sequence[Trial], s: Summaries) -> Iterator[Finding]:
    """No label readable from what is no brain's: order, key, constant electrodes, means, low bits, loudness.

    Loudness is the middle one of all electrodes' deviations: a rhythm changes some electrodes, a written label all.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    labels = np.array([trial.label for trial in trials])
    recordings = np.unique([repr(origin(trial)[:3]) for trial in trials], return_inverse=True)[1]  # (N,) counted from 0
    n_classes = len(np.unique(labels))
    held = np.array([len(np.unique(labels[recordings == k])) for k in range(recordings.max() + 1)])  # classes of each
    if n_classes < 2:
        yield Finding("cannot", "probes", "there is one class only")
        return
    if (held == 1).all():
        kind, words = "BREACH", "each recording holds one class: whatever tells recordings apart tells the class"
    elif (held == n_classes).all():
        kind, words = "ok", "each holds all classes"
    else:
        worth = percent(np.mean(1 / held[recordings]))
        kind, words = "notice", f"they hold some of the classes: knowing the recording alone gives {worth}"
    yield Finding(kind, "recordings", words)
    if kind == "BREACH":
        return

    def centred(x: np.ndarray) -> np.ndarray:
        return _within(recordings, x, _robust)

    number = np.array([trial.trial for trial in trials], float)
    rank = _within(recordings, number, lambda x: rankdata(x, "ordinal") - 1)
    share = rank / _within(recordings, number, len)
    letters = CountVectorizer(analyzer="char", ngram_range=(1, 4), max_features=400, lowercase=False)
    loudness = np.median(centred(np.log(s.spread + 1e-9)), axis=1, keepdims=True)
    probes = {
        "order": np.stack([rank, share, *(rank % k for k in range(2, 13))], axis=1),
        "key": letters.fit_transform([trial.key for trial in trials]).toarray(),
        "means": centred(np.concatenate([s.mean, s.mean.mean(axis=1, keepdims=True)], axis=1)),
        "variance": centred(loudness),
        "first samples": centred(s.first),
        "last samples": centred(s.last),
        "low bits": s.bits,
    }
    if s.constant[:, : s.constant.shape[1] // 2].any():
        probes["constant electrodes"] = np.concatenate([s.constant, centred(s.constant)], axis=1)
    else:
        yield Finding("ok", "constant electrodes", "there are none")
    for name, summary in probes.items():
        yield _probe(name, summary, labels, recordings, READABLE_LOUDNESS if name == "variance" else READABLE)
    kind = "BREACH" if s.written >= max(WRITTEN, s.chance) else "ok"
    most = f"{percent(s.written)} of the variance of {s.where} lies between classes"
    yield Finding(kind, "single samples", f"{most}; no other sample has more (by chance up to {percent(s.chance)})")


def _probe(name: str, x: np.ndarray, labels: np.ndarray, recordings: np.ndarray, limit: float) -> Finding:
    """Trees that are trained on some recordings and asked about others."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    n_recordings = recordings.max() + 1
    if n_recordings < 2:
        return Finding("cannot", name, "there is one recording only")
    trees = ExtraTreesClassifier(60, min_samples_leaf=2, random_state=0)
    answers = cross_val_predict(trees, x, labels, groups=recordings, cv=GroupKFold(min(5, n_recordings)))
    permuted = permuted_accuracies(labels.tolist(), answers.tolist(), recordings.tolist())
    accuracy, (level, _, high) = float((answers == labels).mean()), permutation_level(permuted)
    above_guessing = permutation_p(accuracy, permuted) < 0.001
    readable = (accuracy - level) / max(1 - level, 1e-9)
    kind = "ok" if not above_guessing else "BREACH" if readable >= limit else "notice"
    guessing = f"n = {len(labels)}, level {percent(level)}, 95 % of guessing up to {percent(high)}"
    return Finding(kind, name, f"trees read {percent(accuracy)} of the labels from them ({guessing})")


def _within(recordings: np.ndarray, x: np.ndarray, transform: Callable) -> np.ndarray:
    """Numbers (N, …) as seen from inside their recording."""
    seen = np.zeros(x.shape)
    for recording in range(recordings.max() + 1):
        seen[recordings == recording] = transform(x[recordings == recording])
    return seen


def _robust(x: np.ndarray) -> np.ndarray:
    """Standardised by median and quartiles."""
    return (x - np.median(x, axis=0)) / (np.ptp(np.quantile(x, [0.25, 0.75], axis=0), axis=0) + 1e-12)


# ---------------------------------------------------------------- the store, and a run on it


def splits_of(store, description: DatasetDescription, protocol: str) -> Split:
    """The splits as a protocol makes them, unchecked; trials that the published splits do not know stand apart."""
    named, person = protocol_named(protocol)
    splits = named.split(store, description, person)
    apart = without_split(store, splits) if named.complete else []
    return splits | ({"no split": apart} if apart else {})


def store_findings(store, splits: Split) -> Iterator[Finding]:
    """All checks of a store's trials."""
    trials = [trial for of_split in splits.values() for trial in of_split]
    yield from key_findings(store.trials)
    summaries = summarise(store, trials)
    yield from copy_findings(store, splits, trials, summaries.sketch)
    yield from amplitude_findings(store, trials, summaries)
    yield from normalisation_findings(summaries)
    yield from probe_findings(trials, summaries)


Checked = Iterator[tuple[str, str]]  # a finding's kind and words, of the run that is checked


def run_findings(run: Run, store, splits: Split) -> Iterator[Finding]:
    """All checks of a run's folder, against the store that it says it was made from."""
    folder = run.place if run.place.is_dir() else run.place.parent
    checks = [_made_from(run, store), _test_trials(run, splits)]
    if "projection" in run.record or "mapper" in run.record:
        checks.append([("ok", f"decoded with {run.record.get('projection') or run.record.get('mapper')}")])
    else:
        checks += [_scores(run, folder), _epoch(run, folder, splits)]
    for kind, words in chain(*checks):
        yield Finding(kind, run.name, words)


def _made_from(run: Run, store) -> Checked:
    """Whether the run was made from this store and this list of its trials."""
    if run.encoder_note:
        yield "notice", f"its encoder's checkpoint: {run.encoder_note}; the rest of the encoder is random"
    depends = run.record.get("depends_on", {"store": run.record["store"]} if "store" in run.record else None)
    if not isinstance(depends, dict):
        yield "cannot", "without its run.json nobody knows what it was made from"
        depends = {}
    for name, now in (("store", store.fingerprint), ("list of trials", store.listed)):
        if name not in depends:
            if name == "store" or "store" not in run.record:
                yield "cannot", f"its run.json does not say from which {name} it was made"
        elif depends[name] == now:
            yield "ok", f"made from this {name}"
        else:
            yield "BREACH", f"it was made from another {name}: {str(depends[name])[:16]} and not {str(now)[:16]}"


def _test_trials(run: Run, splits: Split) -> Checked:
    """Whether all test trials are decoded and no others, with the store's labels; of seen images, with its images."""
    by_image = any(row.image for row in run.rows)  # candidates are counted anew there, and repetitions averaged
    labels = {origin(trial): trial.image if by_image else trial.label for trial in splits["test"]}
    others = {origin(trial) for name in ("train", "val") for trial in splits[name]}
    decoded = {origin(row): row.image if by_image else row.true_label for row in run.rows}
    foreign, unknown = set(decoded) & others - set(labels), set(decoded) - set(labels) - others
    if foreign:
        yield "BREACH", f"{len(foreign)} of its decoded trials are training or validation trials"
    if unknown:
        yield "BREACH", f"{len(unknown)} of its decoded trials are not in this store"
    changed = sum(labels[trial] != label for trial, label in decoded.items() if trial in labels)
    if changed and not run.is_control:
        what = "image" if by_image else "label"
        yield "BREACH", f"{changed} of its decoded trials have another {what} than in the store"
    wanted, there = set(labels), set(decoded)
    if by_image:  # a row stands for all repetitions of an image
        wanted, there = ({(trial[0], image) for trial, image in images.items()} for images in (labels, decoded))
    if not foreign and not unknown:
        what = "images" if by_image else "trials"
        yield "notice" if wanted - there else "ok", f"{len(there)} of {len(wanted)} test {what} are decoded"


def _scores(run: Run, folder: Path) -> Checked:
    """Whether the test was decoded once, and results.json has the scores of the decoded trials."""
    files = sorted(path.name for path in folder.glob("*.jsonl*") if "test" in path.name)
    if len(files) > 1:
        yield "BREACH", f"the test was decoded more than once: {', '.join(files)}"
    try:
        tested = read_json(folder / "results.json")["test"].items()
    except (UserError, KeyError, TypeError, AttributeError):
        yield "cannot", "results.json is missing or damaged: nobody can tell what it said its scores were"
        return
    for name, scored in tested:
        right = sum(run.right(name)) if name in run.rows[0].readouts else None
        if not isinstance(scored, dict) or scored.get("correct") != right:
            yield "BREACH", f"results.json says other scores of {name} than its decoded trials"


def _epoch(run: Run, folder: Path, splits: Split) -> Checked:
    """Whether the epoch was chosen on validation, the test decoded once, and the checkpoint belongs to the run."""
    model = run.argument.get("model")
    if not (folder / "metrics.jsonl").is_file():
        if model in WITHOUT_EPOCHS:
            yield "ok", f"{model} has no epochs to choose from"
        else:
            yield "cannot", "without its metrics.jsonl nobody can tell how its epoch was chosen"
        return
    try:
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        results = read_json(folder / "results.json")
        readout, tested = results["selected_by"], results["best_epoch"]
        if not is_history(history) or type(tested) is not int or not isinstance(results.get("test"), dict):
            raise ValueError
        best = best_epoch(history, readout)["epoch"]
    except (UserError, ValueError, KeyError, TypeError, OSError):
        yield "cannot", "metrics.jsonl or results.json is missing or damaged: nobody can tell how its epoch was chosen"
        return
    with_test = [epoch["epoch"] for epoch in history if any("test" in str(name) for name in epoch)]
    if with_test:
        yield "BREACH", f"test scores stand beside epoch {with_test[0]}: the test was decoded more than once"
    if tested != best:
        yield "BREACH", f"epoch {tested} was tested; by validation ({readout}) it is epoch {best}"
    elif not with_test:
        yield "ok", f"epoch {tested} of {len(history)} was chosen by validation ({readout})"
    kinds = ("projection", "mapper", "encoder")
    path = next(filter(Path.is_file, (folder / f"{kind}_epoch{tested}.pth" for kind in kinds)), None)
    if path:
        yield from _checkpoint(run, path, splits)
    elif model is None:  # a baseline keeps none
        yield "cannot", f"the checkpoint of epoch {tested} is not there"


def _checkpoint(run: Run, path: Path, splits: Split) -> Checked:
    """Whether a checkpoint has seen nothing that tests, and is of the run's encoder."""
    checkpoint = read_checkpoint(path)
    of_images = path.name.startswith("encoder")
    kind = "image" if of_images else "session"
    tested = {mark for t in splits["test"] for mark in ([t.image] if of_images else t.marks.values())}
    seen = set(map(str, checkpoint.get("seen") or ())) & tested
    if seen and not (of_images and protocol_named(str(checkpoint.get("protocol")))[0].repeats_images):
        yield "BREACH", f"its checkpoint was trained on test {kind}s: {', '.join(sorted(seen)[:5])}"
    if (checkpoint.get("encoder_fingerprint") or None) != run.depends_on.get("encoder"):
        yield "BREACH", "its checkpoint is of another encoder than the run"
    else:
        yield "ok", f"{path.name} is of this run's encoder, and has seen no test {kind}"


def token_findings(run: Run, datasets: Sequence[TrialDataset], cache_dir: str | None, device) -> Iterator[Finding]:
    """Whether the cache's tokens are what the encoder makes of these splits: a few of each file are encoded anew."""
    for kind, words in _cached_tokens(run, datasets, cache_dir, device):
        yield Finding(kind, run.name, words)


def _cached_tokens(run: Run, datasets: Sequence[TrialDataset], cache_dir: str | None, device) -> Checked:
    asked, expected = run.argument, run.depends_on.get("encoder")
    if not isinstance(expected, str) or any(map(asked.get, ("no_cache_features", "train_encoder", "encoder_lora"))):
        return
    foundation = asked.get("foundation_dir") if asked.get("use_pretrained_weights", True) else None
    unknown = "whether the cached tokens are of this store"
    try:
        settings = str(asked.get("encoder")), foundation, bool(asked.get("allow_partial")), int(asked.get("seed", 0))
        encoder = encoder_for(datasets[0], *settings)
    except (UserError, KeyError, ValueError, TypeError) as error:
        yield "cannot", f"{unknown}: the encoder cannot be loaded ({error})"
        return
    if not encoder.pretrained:
        return
    if fingerprint(encoder) != expected:
        yield "cannot", f"{unknown}: {foundation} is another encoder than the run's"
        return
    pooling = str(asked.get("token_pooling") or "region")
    cache = TokenCache(cache_dir or asked.get("cache_dir"), encoder, datasets[0].montage, pooling)
    files = {path: (dataset, trials) for dataset in datasets for path, trials in cache.files(dataset).items()}
    files = {path: part for path, part in files.items() if path.is_file()}
    wrong = compared = 0
    for path, (dataset, trials) in files.items():
        kept, chosen = read_kept(path), sorted({0, len(trials) // 2, len(trials) - 1})
        fresh = cache.encode(dataset, [trials[k] for k in chosen], device)
        compared += len(chosen)
        same = kept is not None and kept["tokens"].shape == (len(trials), *fresh.shape[1:])
        if not same or (kept["tokens"][chosen] - fresh).abs().max() > SAME_TOKENS * fresh.square().mean().sqrt():
            yield "BREACH", f"{path.name} in the token cache is not what the encoder makes of this store"
            wrong += 1
    if not files:
        yield "cannot", "no tokens of this store and encoder are in the cache"
    elif not wrong:
        yield "ok", f"{compared} trials of {len(files)} files of the token cache were encoded anew and agree"


def used_findings(run: Run, datasets: Sequence[TrialDataset]) -> Iterator[Finding]:
    """Whether a run has used of the test person what its rows say, and causal alignment nothing of later trials."""
    test = next((dataset for dataset in datasets if dataset.mode == "test"), None)
    if test is None or not run.rows[0].uses:
        yield Finding("cannot", run.name, "what was used of the test person: its rows do not say it")
        return
    adapt = ADAPTATIONS.get(str(run.argument.get("adapt", "none")), ADAPTATIONS["none"])
    settings, said = used_together(*test.uses.split("; "), adapt.uses), run.uses
    if "ensemble" not in run.record and settings != said:
        yield Finding(
            "BREACH", run.name, f"its rows say {said!r} was used of the test person, its settings {settings!r}"
        )
        return
    yield Finding("ok", run.name, f"used of the test person: {said}, as its settings say")
    if ALIGNMENTS[test.align].causal:
        person = [trial for trial in test.store.trials if trial.subject == test.trials[0].subject]
        order = sorted(person, key=origin)
        aligned = test.aligning(order)
        for place in sorted({1, len(order) // 2, len(order) - 1}):  # with nothing behind it, each is aligned alike
            until = test.aligning(order[:place])
            if any(not np.array_equal(until[trial.key], aligned[trial.key]) for trial in order[:place]):
                yield Finding("BREACH", run.name, f"trials before {order[place].key} are aligned by what comes after")
                return
        yield Finding("ok", run.name, "no trial is aligned by a later one: bit-equal without them")


def decoding_findings(runs: Sequence[Run]) -> Iterator[Finding]:
    """Whether the test was decoded with several epochs of one run: then somebody may have taken the best."""
    used = defaultdict(set)
    for run in runs:
        checkpoints = run.record.get("projection") or run.record.get("mapper") or []
        for checkpoint in checkpoints if isinstance(checkpoints, list) else [checkpoints]:  # several: of an ensemble
            if isinstance(checkpoint, str) and run.argument.get("split", "test") == "test":
                used[str(Path(checkpoint).absolute().parent)].add(Path(checkpoint).name)
    for folder, names in used.items():
        if len(names) > 1:
            yield Finding("BREACH", folder, f"the test was decoded with several epochs: {', '.join(sorted(names))}")
