"""Looks for what a shuffled-label control cannot see: people or trials in two splits, labels that stand where no brain put
them, an epoch chosen on test, files that do not belong together.

Each check gives findings: ok, notice, cannot (what it cannot check) or BREACH. `store_findings` reads a store,
`run_findings` a run on it.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import beta

from datasets.description import DatasetDescription
from datasets.recording import Trial
from datasets.splits import protocol_named, without_split
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
TOLD = 0.25  # share of what guessing leaves that a probe may tell before it is a breach; simulated effects reach 0.1,
TOLD_LOUDNESS = 0.4  # and those that all electrodes share 0.25, a rhythm that changes everywhere
WRITTEN = (
    0.5  # share of one sample's variance between classes from which on it was written; evoked potentials stay far below
)
EQUAL = 2e-5  # relative difference of electrodes' amplitudes over all trials, below which somebody made them equal
SAME_TOKENS = 1e-2  # of their RMS: other devices and precisions differ by less
# baselines
WITHOUT_EPOCHS = (
    "best_constant",
    "recording_only",
    "bandpower_lda",
    "csp_lda",
    "tangent_space",
    "ridge",
    "knn",
    "forest",
    "svm",
)
CANNOT = [
    "a label that is written into one electrode's variance or rhythm: it looks like the band power that decoders live on",
    "amplitudes that were made equal by medians or quantiles of all trials, or made equal and then clipped",
    "a label in the fifth and higher bits of single samples",
    "copies with other noise, overlapping windows, or a filter that reaches from one trial into the next",
    "whether the test people were looked at before this store was made, or the settings were chosen by other runs' test scores",
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


def people_findings(splits: dict[str, list[Trial]], promise: str) -> Iterator[Finding]:
    """No person in two splits, whatever the spelling, and none without a name."""
    names = {trial.subject for trials in splits.values() for trial in trials}
    if names == {""}:
        yield Finding("cannot", "people", "the store does not say whose the trials are")
        return
    nameless = sum(not _same_name(trial.subject) for trials in splits.values() for trial in trials)
    if nameless:
        yield Finding("BREACH", "people", f"{nameless} trials say not whose they are; nobody can keep them apart")
    variants = defaultdict(set)
    for name in names:
        variants[_same_name(name)].add(name)
    where = {mode: {_same_name(t.subject) for t in trials} - {""} for mode, trials in splits.items()}
    found = 0
    pairs = {"person": list(combinations(where, 2)), "tested person": [("train", "test"), ("val", "test")]}
    for a, b in pairs.get(promise, ()):
        for name in sorted(where[a] & where[b]):
            found += 1
            spelled = " and ".join(map(repr, sorted(variants[name])))
            yield Finding("BREACH", "people", f"{spelled} in {a} and in {b}")
    for name, spelled in sorted(variants.items()):
        if len(spelled) > 1 and sum(name in of for of in where.values()) < 2:
            yield Finding("notice", "people", f"{' and '.join(map(repr, sorted(spelled)))} look like one person")
    if not found and not nameless:
        apart = {
            "person": "no person in two splits, in any spelling",
            "tested person": "nobody who tests trains or validates, in any spelling",
        }.get(promise, "one person's sessions, as asked for")
        yield Finding("ok", "people", f"{len(names)} people; {apart}")


def seen_findings(splits: dict[str, list[Trial]], promise: str) -> Iterator[Finding]:
    """No concept (label), or no image, in two splits, of datasets of seen images."""
    kinds = {mode: {t.label if promise == "concept" else t.image for t in trials} for mode, trials in splits.items()}
    found = [(a, b, sorted(kinds[a] & kinds[b])[0]) for a, b in combinations(kinds, 2) if kinds[a] & kinds[b]]
    for a, b, one in found:
        yield Finding("BREACH", "seen", f"the {promise} {one} is in {a} and in {b}")
    if not found:
        yield Finding(
            "ok", "seen", f"no {promise} in two splits: {', '.join(f'{len(of)} {mode}' for mode, of in kinds.items())}"
        )


def _same_name(name: str) -> str:
    """A name without what people spell differently: case, blanks, dashes, leading zeros."""
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name)).casefold())


def key_findings(trials: Sequence[Trial]) -> Iterator[Finding]:
    """No key twice, and no trial of a recording twice."""
    keys = [key for key, n in Counter(trial.key for trial in trials).items() if n > 1]
    origins = [o for o, n in Counter((t.subject, t.session, t.run, t.trial) for t in trials).items() if n > 1]
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
    views = np.random.default_rng(0).standard_normal((n_chans * n_times, 24)).astype(np.float32)
    rows = defaultdict(list)
    total, squares, n = np.zeros(n_chans), np.zeros(n_chans), 0
    most, least = np.full(n_chans, -np.inf), np.full(n_chans, np.inf)
    values, bits = _BetweenClasses((n_chans, n_times)), _BetweenClasses((4, n_chans, n_times))
    recordings = defaultdict(list)
    for trial in trials:
        recordings[trial.subject, trial.session, trial.run].append(trial)
    place = {id(trial): k for k, trial in enumerate(trials)}
    order = []
    with progress(total=len(trials), desc="reading", unit="trial", leave=False) as bar:
        for of in recordings.values():
            x = np.stack([store.read(trial) for trial in of]).astype(np.float32)  # (n, C, T)
            if not np.isfinite(x).all():
                raise UserError(f"{store.path}: a trial of {of[0].subject} holds NaN or infinity")
            low = x.view(np.uint32)
            labels = np.array([trial.label for trial in of])
            values.add(x, labels)
            bits.add(np.stack([(low >> b) & 1 for b in range(4)], axis=1).astype(np.float32), labels)
            mean, spread = x.mean(axis=2), x.std(axis=2)
            still = x.max(axis=2) == x.min(axis=2)
            rows["mean"].append(mean)
            rows["spread"].append(spread)
            rows["first"].append(x[:, :, 0])
            rows["last"].append(x[:, :, -1])
            share = np.stack([((low >> b) & 1).mean(axis=(1, 2)) for b in range(8)], axis=1)
            rows["bits"].append(np.concatenate([share, low[:, :, 0] & 255, low[:, :, -1] & 255], axis=1))
            rows["constant"].append(np.concatenate([still, np.where(still, x[:, :, 0], 0)], axis=1))
            rows["sketch"].append(_standard(x).reshape(len(of), -1) @ views / np.sqrt(n_chans * n_times))
            most, least = np.maximum(most, x.max(axis=(0, 2))), np.minimum(least, x.min(axis=(0, 2)))
            total += x.sum(axis=(0, 2), dtype=float)
            squares += np.square(x, dtype=float).sum(axis=(0, 2))
            n += len(of) * n_times
            order += [place[id(trial)] for trial in of]
            bar.update(len(of))
    back = np.argsort(order)
    found = {name: np.concatenate(parts)[back] for name, parts in rows.items()}
    written, where = max((values.largest(), "the value"), (bits.largest(), "a low bit"))
    pooled = total / n
    n_classes = len(values.sums)
    places = 5 * n_chans * n_times  # looked at
    chance = float(
        beta.isf(1e-6 / places, (n_classes - 1) / 2, max(len(trials) - len(recordings) - n_classes + 1, 1) / 2)
    )
    return Summaries(**found, pooled_mean=pooled, reach=most - least, chance=chance, deviation=np.sqrt(np.maximum(squares / n - pooled**2, 0)),
                     written=written[0], where=f"{where} of electrode {written[1][-2] + 1}, sample {written[1][-1] + 1}")  # fmt: skip


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


def copy_findings(
    store, splits: dict[str, list[Trial]], trials: Sequence[Trial], sketch: np.ndarray
) -> Iterator[Finding]:
    """No trial twice by content, whatever its gain and offset (of the trial, or of each electrode)."""
    from scipy.spatial import cKDTree

    lively = np.flatnonzero(np.square(sketch).sum(axis=1) > 1e-6)  # trials that do not change are no copies
    mode = {trial.key: name for name, of in splits.items() for trial in of}
    pairs = set()
    if len(lively) > 1:
        tree = cKDTree(sketch[lively])
        same, turned = (
            tree.query(sketch[lively], k=2),
            tree.query(-sketch[lively], k=1),
        )  # a turned sign is a gain as well
        for distance, near in ((same[0][:, 1], same[1][:, 1]), turned):
            for a, (d, b) in enumerate(zip(distance, near, strict=True)):
                if d < 0.1:  # of sketches whose entries have a deviation of one
                    pairs.add(tuple(sorted((int(lively[a]), int(lively[int(b)])))))
    found = 0
    for a, b in sorted(pairs):
        x, y = (_standard(store.read(trials[k])) for k in (a, b))
        if abs((x * y).sum()) >= COPIES * np.sqrt(np.square(x).sum() * np.square(y).sum()):
            found += 1
            if found <= 5:
                where = f"{mode.get(trials[a].key, 'no split')} and {mode.get(trials[b].key, 'no split')}"
                yield Finding(
                    "BREACH", "copies", f"{trials[a].key} ({where}) is {trials[b].key} but for gain and offset"
                )
    if found > 5:
        yield Finding("BREACH", "copies", f"{found - 5} more pairs of trials are copies")
    if not found:
        yield Finding("ok", "copies", f"no two of {len(trials)} trials are the same up to gain and offset")


def _standard(x: np.ndarray) -> np.ndarray:
    """(…, C, T) with mean 0 and deviation 1 of each electrode; one that does not change is 0."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.maximum(x.std(axis=-1, keepdims=True), 1e-6)


def normalisation_findings(s: Summaries) -> Iterator[Finding]:
    """No normalisation that was fitted on all trials, test people among them: amplitudes never agree by themselves."""

    def equal(x: np.ndarray) -> bool:
        return np.ptp(x) < EQUAL * x.mean()

    moving = s.deviation > 1e-9
    deviation, spread = s.deviation[moving], s.spread[:, moving]
    if not moving.any():
        yield Finding("cannot", "normalisation", "no electrode changes at all")
        return
    each = np.mean([equal(row) for row in spread]) > 0.9 and moving.sum() > 1
    overall = np.sqrt(np.mean(np.square(s.deviation) + np.square(s.pooled_mean)) - s.pooled_mean.mean() ** 2)
    same = moving.sum() > 1 and (equal(deviation) or equal(s.reach[moving]))
    unit = abs(overall - 1) < EQUAL and abs(s.pooled_mean.mean()) < EQUAL
    if each:
        words = "each trial was standardised by itself: nothing leaks, and amplitudes are no microvolts"
        yield Finding("notice", "normalisation", words)
    elif same or unit:
        what = "all electrodes have the same amplitude" if same else "mean 0 and deviation 1"
        yield Finding("BREACH", "normalisation", f"{what} over all trials together: fitted on test trials as well")
    else:
        words = f"electrodes' deviations over all trials are {deviation.min():.3g} to {deviation.max():.3g} µV, not made equal"
        yield Finding("ok", "normalisation", words)


# ---------------------------------------------------------------- probes


def probe_findings(trials: Sequence[Trial], s: Summaries) -> Iterator[Finding]:
    """No label readable from what is no brain's: order, key, constant electrodes, means, low bits, loudness.

    Loudness is the middle one of all electrodes' deviations: a rhythm changes some electrodes, a written label all.
    """
    labels = np.array([trial.label for trial in trials])
    recordings = [(trial.subject, trial.session, trial.run) for trial in trials]
    kinds = defaultdict(set)
    for recording, label in zip(recordings, labels.tolist(), strict=True):
        kinds[recording].add(label)
    n_classes = len(set(labels.tolist()))
    if n_classes < 2:
        yield Finding("cannot", "probes", "there is one class only")
        return
    if all(len(of) == 1 for of in kinds.values()):
        yield Finding(
            "BREACH", "recordings", "each recording holds one class: whatever tells recordings apart tells the class"
        )
        return
    if all(len(of) == n_classes for of in kinds.values()):
        yield Finding("ok", "recordings", "each holds all classes")
    else:
        worth = np.mean([1 / len(kinds[recording]) for recording in recordings])
        yield Finding(
            "notice", "recordings", f"they hold some of the classes: knowing the recording alone gives {percent(worth)}"
        )
    within = _Within(recordings)
    number = np.array([trial.trial for trial in trials], float)
    probes: dict[str, Callable[[], np.ndarray]] = {
        "order": lambda: np.stack(
            [within.rank(number), within.share(number), *(within.rank(number) % k for k in range(2, 13))], 1
        ),
        "key": lambda: _texts([trial.key for trial in trials]),
        "means": lambda: within.centred(np.concatenate([s.mean, s.mean.mean(axis=1, keepdims=True)], axis=1)),
        "variance": lambda: within.centred(np.median(within.centred(np.log(s.spread + 1e-9)), axis=1, keepdims=True)),
        "first samples": lambda: within.centred(s.first),
        "last samples": lambda: within.centred(s.last),
        "low bits": lambda: s.bits,
    }
    if s.constant[:, : s.constant.shape[1] // 2].any():
        probes["constant electrodes"] = lambda: np.concatenate([s.constant, within.centred(s.constant)], axis=1)
    else:
        yield Finding("ok", "constant electrodes", "there are none")
    for name, summary in probes.items():
        yield _probe(name, summary(), labels, recordings, TOLD_LOUDNESS if name == "variance" else TOLD)
    kind = "BREACH" if s.written >= max(WRITTEN, s.chance) else "ok"
    words = f"{percent(s.written)} of the variance of {s.where} lies between classes; no other sample has more (by chance up to {percent(s.chance)})"
    yield Finding(kind, "single samples", words)


def _probe(name: str, x: np.ndarray, labels: np.ndarray, recordings: Sequence[tuple], most: float) -> Finding:
    """Trees that are trained on some recordings and asked about others."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    groups = np.unique([repr(recording) for recording in recordings], return_inverse=True)[1]
    if groups.max() < 1:
        return Finding("cannot", name, "there is one recording only")
    trees = ExtraTreesClassifier(60, min_samples_leaf=2, random_state=0)
    said = cross_val_predict(trees, x, labels, groups=groups, cv=GroupKFold(min(5, groups.max() + 1)))
    permuted = permuted_accuracies(labels.tolist(), said.tolist(), recordings)
    accuracy, (level, _, high) = float((said == labels).mean()), permutation_level(permuted)
    p, told = permutation_p(accuracy, permuted), (accuracy - level) / max(1 - level, 1e-9)
    kind = "BREACH" if told >= most and p < 0.001 else "notice" if p < 0.001 else "ok"
    return Finding(kind, name, f"trees read {percent(accuracy)} of the labels from them (n = {len(labels)}, level {percent(level)}, "
                               f"95 % of guessing up to {percent(high)})")  # fmt: skip


class _Within:
    """Numbers as seen from inside their recording."""

    def __init__(self, recordings: Sequence[tuple]):
        self.of = np.unique([repr(recording) for recording in recordings], return_inverse=True)[1]

    def _each(self, x: np.ndarray, make: Callable) -> np.ndarray:
        made = np.zeros(x.shape)
        for recording in range(self.of.max() + 1):
            made[self.of == recording] = make(x[self.of == recording])
        return made

    def rank(self, x: np.ndarray) -> np.ndarray:
        return self._each(x, lambda of: np.argsort(np.argsort(of, kind="stable")))

    def share(self, x: np.ndarray) -> np.ndarray:
        return self._each(x, lambda of: np.argsort(np.argsort(of, kind="stable")) / len(of))

    def centred(self, x: np.ndarray) -> np.ndarray:
        """Standardised by the recording's median and quartiles."""
        return self._each(
            x, lambda of: (of - np.median(of, axis=0)) / (np.ptp(np.quantile(of, [0.25, 0.75], axis=0), axis=0) + 1e-12)
        )


def _texts(texts: Sequence[str]) -> np.ndarray:
    """Which short pieces a text has."""
    from sklearn.feature_extraction.text import CountVectorizer

    counted = CountVectorizer(analyzer="char", ngram_range=(1, 4), max_features=400, lowercase=False).fit_transform(
        texts
    )
    return counted.toarray()


# ---------------------------------------------------------------- the store, and a run on it


def splits_of(store, description: DatasetDescription, protocol: str) -> dict[str, list[Trial]]:
    """The splits as a protocol makes them, unchecked; trials that the published splits do not know stand apart."""
    named, person = protocol_named(protocol)
    splits = named.split(store, description, person)
    apart = without_split(store, splits) if named.complete else []
    return splits | ({"no split": apart} if apart else {})


def store_findings(store, splits: dict[str, list[Trial]]) -> Iterator[Finding]:
    """All checks of a store's trials."""
    trials = [trial for of in splits.values() for trial in of]
    yield from key_findings(store.trials)
    summaries = summarise(store, trials)
    yield from copy_findings(store, splits, trials, summaries.sketch)
    yield from normalisation_findings(summaries)
    yield from probe_findings(trials, summaries)


def run_findings(run: Run, store, splits: dict[str, list[Trial]]) -> Iterator[Finding]:
    """All checks of a run's folder, against the store that it says it was made from."""
    depends = run.record.get("depends_on", {"store": run.record["store"]} if "store" in run.record else None)
    if not isinstance(depends, dict):
        yield Finding("cannot", run.name, "without its run.json nobody knows what it was made from")
        depends = {}
    for name, now in (("store", store.fingerprint), ("list of trials", store.listed)):
        if name not in depends and not (name == "list of trials" and "store" in run.record):
            yield Finding("cannot", run.name, f"its run.json does not say from which {name} it was made")
        elif name in depends and depends[name] != now:
            yield Finding(
                "BREACH",
                run.name,
                f"it was made from another {name}: {str(depends[name])[:16]} and not {str(now)[:16]}",
            )
        elif name in depends:
            yield Finding("ok", run.name, f"made from this {name}")
    yield from _test_trials(run, splits)
    folder = run.place if run.place.is_dir() else run.place.parent
    if "projection" in run.record or "mapper" in run.record:
        yield Finding("ok", run.name, f"decoded with {run.record.get('projection') or run.record.get('mapper')}")
        return
    yield from _scores(run, folder)
    if (folder / "metrics.jsonl").is_file():
        yield from _epoch(run, folder, splits, depends)
    elif run.argument.get("model") in WITHOUT_EPOCHS:
        yield Finding("ok", run.name, f"{run.argument['model']} has no epochs to choose from")
    else:
        yield Finding("cannot", run.name, "without its metrics.jsonl nobody can tell how its epoch was chosen")


def _scores(run: Run, folder: Path) -> Iterator[Finding]:
    """Whether the test was decoded once, and results.json has the scores of the decoded trials."""
    files = sorted(path.name for path in folder.glob("*.jsonl*") if "test" in path.name)
    if len(files) > 1:
        yield Finding("BREACH", run.name, f"the test was decoded more than once: {', '.join(files)}")
    try:
        tested = read_json(folder / "results.json")["test"]
        if not isinstance(tested, dict):
            raise TypeError
    except (UserError, KeyError, TypeError):
        yield Finding(
            "cannot", run.name, "results.json is missing or damaged: nobody can tell what it said its scores were"
        )
        return
    for name, scored in tested.items():
        right = sum(run.right(name)) if name in run.rows[0].readouts else None
        if not isinstance(scored, dict) or scored.get("correct") != right:
            yield Finding("BREACH", run.name, f"results.json says other scores of {name} than its decoded trials")


def _test_trials(run: Run, splits: dict[str, list[Trial]]) -> Iterator[Finding]:
    """Whether the decoded trials are the test trials, all of them, with the store's labels; of seen images, with its images."""
    by_image = any(row.image for row in run.rows)  # candidates are counted anew there, and repetitions averaged
    labels = {(t.subject, t.session, t.run, t.trial): t.image if by_image else t.label for t in splits["test"]}
    others = {(t.subject, t.session, t.run, t.trial) for name in ("train", "val") for t in splits[name]}
    decoded = {(r.subject, r.session, r.run, r.trial): r.image if by_image else r.true_label for r in run.rows}
    foreign, unknown = set(decoded) & others - set(labels), set(decoded) - set(labels) - others
    if foreign:
        yield Finding("BREACH", run.name, f"{len(foreign)} of its decoded trials are training or validation trials")
    if unknown:
        yield Finding("BREACH", run.name, f"{len(unknown)} of its decoded trials are not in this store")
    changed = sum(labels[trial] != label for trial, label in decoded.items() if trial in labels)
    if changed and not run.is_control:
        what = "image" if by_image else "label"
        yield Finding("BREACH", run.name, f"{changed} of its decoded trials have another {what} than in the store")
    wanted, there = set(labels), set(decoded)
    if by_image:  # a row stands for all repetitions of an image
        wanted, there = ({(trial[0], image) for trial, image in of.items()} for of in (labels, decoded))
    kind = "notice" if wanted - there else "ok"
    if not foreign and not unknown:
        yield Finding(
            kind, run.name, f"{len(there)} of {len(wanted)} test {'images' if by_image else 'trials'} are decoded"
        )


def _epoch(run: Run, folder: Path, splits, depends: dict) -> Iterator[Finding]:
    """Whether the epoch was chosen on validation, the test decoded once, and the checkpoint belongs to the run."""
    try:
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        results = read_json(folder / "results.json")
        readout, said = results["selected_by"], results["best_epoch"]
        if not is_history(history) or type(said) is not int or not isinstance(results.get("test"), dict):
            raise ValueError
        best = best_epoch(history, readout)
    except (UserError, ValueError, KeyError, TypeError, OSError):
        yield Finding(
            "cannot",
            run.name,
            "metrics.jsonl or results.json is missing or damaged: nobody can tell how its epoch was chosen",
        )
        return
    with_test = [epoch["epoch"] for epoch in history if any("test" in str(name) for name in epoch)]
    if with_test:
        yield Finding(
            "BREACH", run.name, f"test scores stand beside epoch {with_test[0]}: the test was decoded more than once"
        )
    if said != best["epoch"]:
        yield Finding(
            "BREACH", run.name, f"epoch {said} was tested; by validation ({readout}) it is epoch {best['epoch']}"
        )
    elif not with_test:
        yield Finding("ok", run.name, f"epoch {said} of {len(history)} was chosen by validation ({readout})")
    yield from _checkpoint(run, folder, said, splits, depends)


def _checkpoint(run: Run, folder: Path, epoch: int, splits, depends: dict) -> Iterator[Finding]:
    paths = [
        path
        for path in (folder / f"{kind}_epoch{epoch}.pth" for kind in ("projection", "mapper", "encoder"))
        if path.is_file()
    ]
    if not paths:
        if run.argument.get("model") is None:  # a baseline keeps none
            yield Finding("cannot", run.name, f"the checkpoint of epoch {epoch} is not there")
        return
    checkpoint = read_checkpoint(paths[0])
    of_images = paths[0].name.startswith("encoder")
    tested = {trial.image if of_images else trial.whose_session for trial in splits["test"]}
    seen = set(map(str, checkpoint.get("seen") or ())) & tested
    if seen and not (of_images and protocol_named(str(checkpoint.get("protocol")))[0].repeats_images):
        what = "images" if of_images else "sessions"
        yield Finding("BREACH", run.name, f"its checkpoint was trained on test {what}: {', '.join(sorted(seen)[:5])}")
    if (checkpoint.get("encoder_fingerprint") or None) != depends.get("encoder"):
        yield Finding("BREACH", run.name, "its checkpoint is of another encoder than the run")
    else:
        what = "image" if of_images else "session"
        yield Finding("ok", run.name, f"{paths[0].name} is of this run's encoder, and has seen no test {what}")


def token_findings(run: Run, datasets: Sequence[TrialDataset], cache_dir: str | None, device) -> Iterator[Finding]:
    """Whether the cache's tokens are what the encoder makes of this store's trials: a few of each file are encoded anew.

    datasets : sequence of TrialDataset. The splits.
    """
    asked, depends = run.argument, run.record.get("depends_on") or {}
    if not isinstance(depends.get("encoder"), str) or asked.get("no_cache_features") or asked.get("train_encoder"):
        return
    foundation = asked.get("foundation_dir") if asked.get("use_pretrained_weights", True) else None
    try:
        encoder = encoder_for(
            datasets[0],
            str(asked.get("encoder")),
            foundation,
            bool(asked.get("allow_partial")),
            int(asked.get("seed", 0)),
        )
    except (UserError, KeyError, ValueError, TypeError) as error:
        yield Finding(
            "cannot", run.name, f"whether the cached tokens are of this store: the encoder cannot be loaded ({error})"
        )
        return
    if not encoder.pretrained:
        return
    if fingerprint(encoder) != depends["encoder"]:
        yield Finding(
            "cannot",
            run.name,
            f"whether the cached tokens are of this store: {foundation} is another encoder than the run's",
        )
        return
    cache = TokenCache(
        cache_dir or asked.get("cache_dir"), encoder, datasets[0].montage, str(asked.get("token_pooling") or "region")
    )
    files = {path: (dataset, trials) for dataset in datasets for path, trials in cache.files(dataset).items()}
    there = {path: of for path, of in files.items() if path.is_file()}
    wrong = compared = 0
    for path, (dataset, trials) in there.items():
        kept, chosen = read_kept(path), sorted({0, len(trials) // 2, len(trials) - 1})
        fresh = cache.encode(dataset, [trials[k] for k in chosen], device)
        compared += len(chosen)
        same = kept is not None and kept["tokens"].shape == (len(trials), *fresh.shape[1:])
        if not same or (kept["tokens"][chosen] - fresh).abs().max() > SAME_TOKENS * fresh.square().mean().sqrt():
            yield Finding(
                "BREACH", run.name, f"{path.name} in the token cache is not what the encoder makes of this store"
            )
            wrong += 1
    if not there:
        yield Finding("cannot", run.name, "no tokens of this store and encoder are in the cache")
    elif not wrong:
        yield Finding(
            "ok", run.name, f"{compared} trials of {len(there)} files of the token cache were encoded anew and agree"
        )


def decoding_findings(runs: Sequence[Run]) -> Iterator[Finding]:
    """Whether the test was decoded with several epochs of one run: then somebody may have taken the best."""
    used = defaultdict(set)
    for run in runs:
        checkpoint = run.record.get("projection") or run.record.get("mapper")
        if isinstance(checkpoint, str) and run.argument.get("split", "test") == "test":
            used[str(Path(checkpoint).absolute().parent)].add(Path(checkpoint).name)
    for folder, names in used.items():
        if len(names) > 1:
            yield Finding("BREACH", folder, f"the test was decoded with several epochs: {', '.join(sorted(names))}")
