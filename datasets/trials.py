"""Trials of one split as a map-style dataset, batches with text targets, and the shuffled-label control.

PyTorch is imported where it is used: a script's -h reads the datasets' files, and must not wait for it.
"""

import copy
import hashlib
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.signal import sosfiltfilt

from datasets.alignment import ALIGNMENTS, LABELLED, METHODS, aligning_matrices, used_together
from datasets.description import SPLITS, DatasetDescription
from datasets.preprocessing import band_filter
from datasets.recording import Trial, origin
from datasets.splits import of_images, protocol_named, split_trials
from datasets.store import open_store
from utils.errors import UserError, loading

PART = ("window", "regions", "band", "align", "align_method")  # what a run reads of a trial: `TrialDataset.part`
KEPT_BYTES = 2 << 30  # of prepared trials that are kept in memory; a split that takes more is prepared each time


class TrialDataset:
    """Trials of one split.

    data_dir : str or Path. A store of this project, or CBraMod's LMDB.
    mode : {"train", "val", "test"}
    protocol : str. See `datasets.splits`.
    description : DatasetDescription, optional. The subclasses of the datasets' files have it already.
    store : TrialStore or CBraModStore, optional. Where it is open already.
    granularity : str, optional. Which part of the classes, for datasets that have `granularities`.

    Items are dicts: `x`, `label`, `image` and `subject` (texts), `index`. `x` is the (n_chans, n_times) float32 signal
    in microvolts at `sfreq` Hz; of a `prepared` dataset what an encoder reads, of one `with_tokens` its tokens.
    `trials[i]` tells item i's subject, session, run and number. What changes a dataset returns another one.

    Raises UserError if the store has other electrodes or labels than the dataset.
    """

    description: DatasetDescription  # set by each dataset

    def __init__(
        self,
        data_dir: str | Path,
        mode: str,
        protocol: str = "published",
        description: DatasetDescription | None = None,
        store=None,
        granularity: str | None = None,
    ):
        self.store = store or open_store(data_dir)
        self.description, classes = self._description(description or self.description, granularity)
        self._check_store()
        self.trials: list[Trial] = split_trials(self.store, self.description, protocol)[mode]
        if classes is not None:
            self.trials = [trial for trial in self.trials if trial.label in classes]
        self.labels = [classes.index(trial.label) if classes else trial.label for trial in self.trials]  # counted anew
        self.mode, self.sfreq = mode, self.store.sfreq
        named = protocol_named(protocol)[0]
        self.seen_by = "trial" if of_images(self.description, named) else named.seen_by
        self.trains_on_tested = named.trains_on_tested
        self.align, self.align_method = "none", "euclidean"
        self._aligning: dict[str, np.ndarray] | None = None  # the matrix that a trial is multiplied by, by its key
        self._prepare: Callable | None = None
        self.tokens = None  # (N, n, width) tensor
        self._kept: dict[int, object] = {}  # prepared trials
        self._select(None, None)
        n_classes = len(self.description.classes)
        if wrong := {label for label in self.labels if not 0 <= label < n_classes}:
            raise UserError(f"{self.store.path}: label {min(wrong)} in {mode}; expected 0 to {n_classes - 1}")

    def _description(self, description: DatasetDescription, granularity: str | None) -> tuple:
        """The dataset as the store has it, and the labels of the classes that were asked for (None: all)."""
        meta, path = self.store.meta, self.store.path
        try:
            if granularity in (None, "all"):
                return description.of_store(meta), None
            if not description.granularities:
                raise UserError(f"--granularity {granularity}: {description.name} has one set of classes")
            labels = description.granularities(meta)
            if granularity not in labels:
                raise UserError(f"--granularity {granularity}: {path} has {', '.join(('all', *labels))}")
            return description.of_store(meta, labels[granularity]), labels[granularity]
        except ValueError as error:
            raise UserError(f"{path} is no store of {description.name}: {error}") from None

    def _check_store(self) -> None:
        """Whether the store is one of this dataset."""
        name, electrodes, path = self.description.name, self.description.montage.electrodes, self.store.path
        if (stored := self.store.meta.get("dataset", name)) != name:
            raise UserError(f"{path} is a store of {stored}; expected {name}")
        n_chans, n_times = self.store.shape
        if n_times and n_chans not in (len(electrodes), len(electrodes) + self.description.extra_channels):
            raise UserError(f"{path}: trials are ({n_chans}, {n_times}); {name} has {len(electrodes)} electrodes")
        if tuple(self.store.meta.get("electrodes", electrodes)) != electrodes:
            raise UserError(f"{path} has other electrodes than {name}")

    # ------------------------------------------------------------ other datasets of the same trials

    def part(
        self,
        window: Sequence[float] | None = None,
        regions: Sequence[str] | None = None,
        band: Sequence[float] | None = None,
        align: str = "none",
        align_method: str = "euclidean",
    ) -> "TrialDataset":
        """The same trials, of each of which a part is read: what an ablation leaves, and how it is aligned.

        window : (float, float), optional. From and to, in seconds of the stored trial.
        regions : sequence of str, optional. The brain regions, as in `REGION_NAMES`, and electrodes that are read.
        band : (float, float), optional. Hz; the stored trial is filtered (zero phase) before the window is cut.
        align, align_method : str. Keys of `ALIGNMENTS`, `METHODS`. Covariances are those of the part that is read.
        Raises UserError if the trials have no such part.
        """
        if align in ("none", "trial") and align_method != "euclidean":
            raise UserError(f"--align_method {align_method} is of a mean over trials; --align {align} makes none")
        made = self._another(align=align, align_method=align_method, _aligning=None)
        made._select(window, regions, band)
        if align != "none" and len(made):
            people = {trial.subject for trial in made.trials}
            made._aligning = made.aligning([trial for trial in made.store.trials if trial.subject in people])
        return made

    def aligning(self, trials: Sequence[Trial]) -> dict[str, np.ndarray]:
        """The matrix that aligns each of some trials, by its key, if there are no others: see `aligning_matrices`."""
        how = self.align, self.align_method, self.units
        return aligning_matrices(trials, self._another(_aligning=None).samples, *how)

    def aligned_together(self) -> tuple[list[list[int]], bool]:
        """Places of this split's trials that share a mean covariance, in the order of recording; whether it is causal.

        Empty where trials are not aligned, or each alone.
        """
        alignment, groups = ALIGNMENTS[self.align], {}
        if self.align in ("none", "trial"):
            return [], False
        for place in sorted(range(len(self)), key=lambda k: origin(self.trials[k])):
            groups.setdefault(alignment.group(self.trials[place]), []).append(place)
        return list(groups.values()), alignment.causal

    def prepared(self, prepare: Callable) -> "TrialDataset":
        """The same trials as an encoder reads them: prepare(x, sfreq) of each, kept in memory where there is room.

        Raises UserError if `prepare` gives something else each time: what is random would stay as it was drawn first,
            in validation and test as well. It belongs into the training loop (`AUGMENTATIONS` in models/__init__.py).
        """
        if len(self):
            check_not_random(prepare, self.samples(self.trials[0]), self.sfreq)
        return self._another(_prepare=prepare)

    def with_tokens(self, tokens: "torch.Tensor") -> "TrialDataset":  # noqa: F821
        """The same trials as tokens (N, n, width) that a frozen encoder gave."""
        return self._another(tokens=tokens)

    def shuffled(self, seed: int) -> "TrialDataset":
        """The shuffled-label control: see `shuffled_labels`."""
        return self.relabelled(self.trials, shuffled_labels(self.trials, seed))

    def relabelled(self, trials: Sequence[Trial], labels: Sequence[int]) -> "TrialDataset":
        """The same samples under other labels, or images, trial by trial."""
        return self._another(trials=list(trials), labels=list(labels))

    def without(self, images: Collection[str]) -> "TrialDataset":
        """The trials that show other images."""
        kept = [k for k, trial in enumerate(self.trials) if trial.image not in images]
        return self.relabelled([self.trials[k] for k in kept], [self.labels[k] for k in kept])

    def _another(self, **changes) -> "TrialDataset":
        made = copy.copy(self)
        vars(made).update(changes, _kept={})
        return made

    def _select(
        self, window: Sequence[float] | None, regions: Sequence[str] | None, band: Sequence[float] | None = None
    ) -> None:
        """Note which samples, electrodes and frequencies of the stored trials are read."""
        montage, n_times = self.description.montage, self.store.shape[1]
        start, stop = 0, n_times
        if window is not None and n_times:
            start, stop = (round(min(max(-1.0, second), 1e6) * self.sfreq) for second in window)
            if not 0 <= start < stop <= n_times:
                asked, lasts = f"{window[0]:g} {window[1]:g}", n_times / self.sfreq
                raise UserError(f"--window {asked}: the trials of {self.store.path} last {lasts:g} s")
        try:
            self.montage = montage if regions is None else montage.part(regions)
        except ValueError as error:
            raise UserError(f"--regions: {self.description.name}: {error}") from None
        self.window, self.regions = None if window is None else list(window), None if regions is None else list(regions)
        self._cut = slice(start, stop)
        picks = [montage.electrodes.index(name) for name in self.montage.electrodes]
        self._picks = slice(len(picks)) if regions is None else picks  # channels behind the electrodes stay behind
        self.band = None if band is None else list(band)
        self._filter = None if band is None or not n_times else band_filter(band, self.sfreq, n_times)

    # ------------------------------------------------------------ items

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> dict:
        x, trial = self._x(index) if self.tokens is None else self.tokens[index], self.trials[index]
        return {"x": x, "label": self.labels[index], "image": trial.image, "subject": trial.subject, "index": index}

    def _x(self, index: int) -> "torch.Tensor":  # noqa: F821
        import torch

        if self._prepare is None:
            return self.signal(index)
        if index not in self._kept:
            x = self._prepare(self.samples(self.trials[index]), self.sfreq)
            if not np.isfinite(x).all():
                raise UserError(f"{self.store.path}: trial {self.trials[index].key} holds NaN or infinity")
            x = torch.from_numpy(np.array(x, np.float32))  # a copy: the store's own samples are read-only
            if x.nbytes * len(self) > KEPT_BYTES:
                return x
            self._kept[index] = x
        return self._kept[index]

    def samples(self, trial: Trial) -> np.ndarray:
        """(n_chans, n_times) float32 microvolts of the part that is read, aligned."""
        x = self.store.read(trial)[self._picks]
        if self._filter is not None:
            x = sosfiltfilt(self._filter, x, axis=-1).astype(np.float32)
        x = x[:, self._cut]
        return x if self._aligning is None else self._aligning[trial.key] @ x

    def signal(self, index: int) -> "torch.Tensor":  # noqa: F821
        """(n_chans, n_times) float32 microvolts of trial `index`."""
        import torch

        return torch.from_numpy(self.samples(self.trials[index]).copy())

    @property
    def seen(self) -> list[str]:
        """What a checkpoint that trains on these trials keeps of them: whose sessions, "A01/T", … (`Trial.marks`)."""
        return sorted({trial.marks[self.seen_by] for trial in self.trials})

    @property
    def facts(self) -> dict:
        """What a checkpoint keeps of the trials that trained it: length, rate (Hz), preprocessing, part of them."""
        stored = {"n_times": self.n_times, "sfreq": self.sfreq, "preprocessing": self.store.meta.get("preprocessing")}
        read = {"window": self.window, "regions": self.regions, "band": self.band}
        return stored | read | {"align": self.align, "align_method": self.align_method, "units": self.units}

    def changes(self, trials: Sequence[Trial]) -> dict:
        """What is done to stored samples beyond cutting them, for the key of a cache; empty where nothing is."""
        done = {} if self.band is None else {"band": self.band}
        if self._aligning is not None:
            digest = hashlib.sha256()
            for matrix in (self._aligning[trial.key] for trial in trials):
                size = np.abs(matrix).max()  # whatever the unit of the samples
                digest.update(f"{size:.3g}".encode() + (matrix / max(size, 1e-30)).round(3).tobytes())
            done["aligned"] = digest.hexdigest()
        return done

    @property
    def uses(self) -> str:
        """What is used of a test person besides the trial that is decoded: one of `USES`, or two joined by "; "."""
        labelled = self.trains_on_tested or self.units != "microvolts"  # whitened by a session's repetitions of images
        return used_together(ALIGNMENTS[self.align].uses, *([LABELLED] if labelled else []))

    @property
    def units(self) -> str:
        """Of the stored samples: "microvolts", or "no unit" where they were whitened."""
        return str(self.store.meta.get("units", "microvolts"))

    @property
    def simulated(self) -> bool:
        """Whether the store says that its recordings are simulated."""
        return bool(self.store.meta.get("simulated"))

    @property
    def n_times(self) -> int:
        """Samples of a trial that are read."""
        return self._cut.stop - self._cut.start

    def spread(self, n: int) -> list[int]:
        """`n` trials spread evenly over the split, or all where there are fewer, with a notice.

        Raises UserError if the split is empty.
        """
        if not len(self):
            raise UserError(f"{self.store.path} has no {self.mode} trials")
        if n > len(self):
            print(f"notice: --num_samples {n}, but {self.mode} has {len(self)} trials; all are used")
            n = len(self)
        return np.linspace(0, len(self) - 1, n).round().astype(int).tolist()


def load_splits(
    data_dir: str | Path,
    description: DatasetDescription,
    protocol: str,
    part: Mapping | None = None,
    granularity: str | None = None,
) -> dict[str, TrialDataset]:
    """All three splits of a store, opened once. A split may be empty. `part`: parameters of `TrialDataset.part`.

    Raises UserError if nothing is there to train on, or nothing validates under a protocol that chooses by validation.
    """
    store = open_store(data_dir)
    splits = {mode: TrialDataset(data_dir, mode, protocol, description, store, granularity) for mode in SPLITS}
    splits = {mode: dataset.part(**(part or {})) for mode, dataset in splits.items()}
    for mode in ("train",) if protocol_named(protocol)[0].may_lack_val else ("train", "val"):
        if not len(splits[mode]):
            lacking = f"no {mode} trials under --protocol {protocol}"
            raise UserError(f"{data_dir} has {lacking}; training needs train and val")
    if not len(splits["val"]):
        print(f"notice: {protocol} leaves no session to validate on; the last epoch is tested, and nothing is chosen")
    return splits


class TextCollator:
    """Batches items and attaches tokenised targets.

    tokenizer : transformers tokenizer
    seed : int. With `epoch`, decides which phrasing a trial gets; the choice depends on nothing else.
    augment : sequence of callable. Change signals and labels of a batch (`AUGMENTATIONS`), before its texts are chosen.

    Batches are dicts: `x` (B, …), `label` (B,), `index` (B,), `target_ids` (B, T) int64, `target_mask` (B, T) bool.
    Every target ends with the end-of-sequence token. The mask, and never a token id, says what is padding: TinyLlama's
    padding token is its end token, and masking by id would remove the lesson to stop.
    """

    def __init__(self, description: DatasetDescription, tokenizer, seed: int = 0, augment: Sequence[Callable] = ()):
        self.seed, self.epoch, self.augment = seed, 0, augment
        self.pad_id = tokenizer.eos_token_id  # any id will do: padded places are masked
        self.target_ids = {}
        for label, texts in description.phrasings.items():
            self.target_ids[label] = [target_ids(text, tokenizer) for text in texts]

    def __call__(self, items: Sequence[dict]) -> dict:
        import torch

        x, labels = torch.stack([item["x"] for item in items]), torch.tensor([item["label"] for item in items])
        for change in self.augment:
            x, labels = change(x, labels)
        targets = []
        for item, label in zip(items, labels.tolist(), strict=True):
            phrasings = self.target_ids[label]
            rng = np.random.default_rng((self.seed, self.epoch, item["index"]))
            targets.append(phrasings[rng.integers(len(phrasings))])
        longest = max(map(len, targets))
        return {
            "x": x,
            "label": labels,
            "index": torch.tensor([item["index"] for item in items]),
            "target_ids": torch.tensor([t + [self.pad_id] * (longest - len(t)) for t in targets]),
            "target_mask": torch.tensor([[True] * len(t) + [False] * (longest - len(t)) for t in targets]),
        }


def target_ids(text: str, tokenizer) -> list[int]:
    """Token ids of an answer, ended by the end-of-sequence token."""
    return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def check_not_random(prepare: Callable, x: np.ndarray, sfreq: float) -> None:
    """Raise UserError where an encoder's `prepare` draws anything at random: what it gives of a trial is kept."""
    import torch

    def drawn() -> tuple:
        name, keys, place, *_ = np.random.get_state()
        return random.getstate(), name, keys.tobytes(), place, torch.get_rng_state().numpy().tobytes()

    before, first, *others = drawn(), *(np.asarray(prepare(x.copy(), sfreq)) for _ in range(8))
    alike = [np.array_equal(first, other, equal_nan=first.dtype.kind == "f") for other in others]
    if not all(alike) or drawn() != before:  # it may change few trials, by one of these generators or by its own
        hint = "augment in the training loop (AUGMENTATIONS in models/__init__.py, --augment)"
        raise UserError(f"prepare() of this encoder is random, and what it gives is kept: {hint}")


def shuffled_labels(trials: Sequence[Trial], seed: int) -> list[int]:
    """Labels of the shuffled-label control: a plain random permutation within each recording (subject, session, run).

    What a recording as a whole tells stays: where recordings hold some of the classes only, as in Visual Imagery, the
    control scores what knowing the recording is worth, and not 1 / number of classes. The permutation of a recording
    depends on `seed` and on the recording alone, so it is the same under every protocol.

    trials : sequence of Trial
    Returns list of int, in the order of `trials`.
    """
    return [trials[source].label for source in permuted_within_recordings(trials, seed)]


def permuted_within_recordings(trials: Sequence[Trial], seed: int) -> list[int]:
    """The place of the trial that each one changes with: a permutation of each recording (`shuffled_labels`)."""
    places_of = defaultdict(list)
    for place, trial in enumerate(trials):
        places_of[trial.subject, trial.session, trial.run].append(place)
    sources = np.zeros(len(trials), int)
    for recording, places in places_of.items():
        rng = np.random.default_rng((seed, zlib.crc32("/".join(map(str, recording)).encode())))
        sources[places] = rng.permutation(places)
    return sources.tolist()


def part_as_trained(dataset: TrialDataset, checkpoint: Mapping, path: Path) -> TrialDataset:
    """The same trials, of which the part is read that a checkpoint was trained on."""
    part = part_of(checkpoint)
    with loading(f"{path} is damaged: its window, regions, band or alignment", "name another checkpoint"):
        for name in ("window", "band"):
            pair = part.get(name)
            numbers = all(type(value) in (int, float) and np.isfinite(value) for value in pair or ())
            if not numbers or (pair is not None and len(pair) != 2):
                raise ValueError(f"{pair} is no {name}")
        if part.get("regions") is not None and not all(isinstance(name, str) for name in part["regions"]):
            raise ValueError(f"{part['regions']} are no regions")
        if part.get("align", "none") not in ALIGNMENTS or part.get("align_method", "euclidean") not in METHODS:
            raise ValueError(f"{part['align']} by {part.get('align_method')} is no alignment")
    return dataset.part(**part)


def part_of(settings: Mapping) -> dict:
    """What flags, or a checkpoint's facts, say of the part of a trial: parameters of `TrialDataset.part`."""
    return {name: settings[name] for name in PART if name in settings}
