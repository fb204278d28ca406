"""From trials to EEG tokens: the encoder and the pooling of a run, and the cache of a frozen encoder's tokens."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.montage import Montage
from datasets.recording import Trial
from datasets.trials import TrialDataset, check_not_random
from models import AUGMENTATIONS, FEATURE_ENCODERS, POOLINGS, choose
from models.augmentations import Mirror
from models.poolings import EEGTokenReducer
from models.token_encoders import load_encoder
from utils.checkpoints import fingerprint, keep, read_kept
from utils.errors import UserError
from utils.locks import only_one, remove_stale
from utils.paths import cache_folder, remove_leftovers
from utils.progress import progress

BATCH, FILE = 32, 256  # trials encoded at once; trials a file of the cache
PROBES = (2.0, 50.0, 1000.0)  # microvolts, standard deviations of the noise trials that notice changed code
LARGE = ("electrode",)  # poolings whose tokens are kept only when asked for
Splits = Mapping[str, TrialDataset]  # by mode: train, val, test


def encoder_for(
    dataset: TrialDataset, name: str, checkpoint: str | None, allow_partial: bool = False, seed: int = 0
) -> nn.Module:
    """The encoder of a run, for trials like these. Parameters as `load_encoder`."""
    if getattr(choose(FEATURE_ENCODERS, name), "needs_microvolts", False) and dataset.units != "microvolts":
        hint = f"--encoder {name} reads microvolts: prepare with --whiten none"
        raise UserError(f"{dataset.store.path} holds whitened trials, without a unit; {hint}")
    montage = {key: getattr(dataset.montage, key) for key in ("electrodes", "brain_regions", "sorted_indices")}
    kind = {"n_times": dataset.n_times, "sfreq": dataset.sfreq} | montage
    return load_encoder(name, checkpoint, allow_partial, seed, **kind)


def check_pretraining(encoder: nn.Module, dataset: TrialDataset) -> None:
    """Raise UserError where an encoder was pretrained on unlabelled trials of a person who is tested as a stranger."""
    tested = {f"{dataset.description.name}/{trial.subject}" for trial in dataset.trials}
    if not dataset.trains_on_tested and (both := sorted(tested & set(encoder.pretrained_on))):
        hint = "pretrain under the protocol that you test under"
        raise UserError(f"--foundation_dir was pretrained on trials of {', '.join(both[:5])}, who is tested; {hint}")


def checkpoint_facts(encoder: nn.Module) -> dict:
    """What run.json says of the encoder's checkpoint: how many of how many names were loaded; None without one."""
    loaded = encoder.loaded
    return {"encoder_loaded": None if loaded is None else {"loaded": loaded.loaded, "of": loaded.of}}


def reducer_for(encoder: nn.Module, montage: Montage, pooling: str) -> EEGTokenReducer:
    """The pooling of an encoder's features; an encoder that mixes the electrodes has nothing left to pool."""
    order = encoder.electrode_order
    if order is None:
        return EEGTokenReducer({"all electrodes": [0]}, 1)
    electrodes = [montage.electrodes[k] for k in order]
    regions = [montage.region_names[k] for k in order]
    return EEGTokenReducer(choose(POOLINGS, pooling)(electrodes, regions), len(order))


def with_features(
    splits: Splits,
    encoder: nn.Module,
    cached: bool,
    pooling: str,
    cache_dir: str | None,
    device: torch.device,
    turn: tuple[int, int] = (0, 1),
) -> tuple[dict[str, TrialDataset], EEGTokenReducer]:
    """The splits with their tokens, from the cache or encoded now, or else with prepared signals; and the pooling.

    turn : tuple of int. Which process of how many this one is: each begins to encode at another place.
    """
    montage = next(iter(splits.values())).montage
    reducer = reducer_for(encoder, montage, pooling)
    if not cached:
        return {mode: dataset.prepared(encoder.prepare) for mode, dataset in splits.items()}, reducer
    cache = TokenCache(cache_dir, encoder, montage, pooling, turn)
    return {mode: dataset.with_tokens(cache.tokens(dataset, device)) for mode, dataset in splits.items()}, reducer


def augmentations(augment: Sequence[str], reads: str, dataset: TrialDataset) -> list[Callable]:
    """What changes training batches of these trials: entries of `AUGMENTATIONS`.

    reads : str. What the encoder is given: "signal", or kept "tokens" or "features".
    Raises UserError where the signal is not read, or the trials have no two sides.
    """
    return [_for_trials(choose(AUGMENTATIONS, name), "--augment", reads, dataset) for name in augment]


def mirror_of(dataset: TrialDataset, reads: str) -> Mirror:
    """The mirror image of trials like these, for `--mirror_average`. Parameters and errors as `augmentations`."""
    return _for_trials(Mirror, "--mirror_average", reads, dataset)


def _for_trials(change: Callable, flag: str, reads: str, dataset: TrialDataset) -> Callable:
    """A change of signals, made for trials like these where it asks for their electrodes and classes."""
    if reads != "signal":
        kept = f"{flag} changes the signal of a trial, and what is read here are kept {reads}"
        such_as = "such as --encoder eegnet, shallow; csbrain with --train_encoder or --no_cache_features"
        raise UserError(f"{kept}: use an encoder that reads the signal and is trained ({such_as})")
    electrodes, mirrored, classes = dataset.montage.electrodes, dataset.montage.mirrored, dataset.description.classes
    return change.of_trials(electrodes, mirrored, classes) if hasattr(change, "of_trials") else change


class TokenCache:
    """A frozen encoder's tokens on disk, so many trials of a person a file: so all protocols and folds share them.

    A file is keyed by the keys and checksums of its trials, the encoder's weights, and the groups of electrodes. It
    keeps the tokens of three fixed noise trials, so that other code in encoder, preparation or pooling is noticed.
    Before tokens are served, the stored samples are compared with their checksums. Each file is written as soon as its
    trials are encoded: a run that dies loses one file's work.

    folder : str, Path or None. None: `token_cache` beside the store.
    pooling : str. What is asked for. Small poolings are always kept: comparing them costs one pass of the encoder.
    turn : tuple of int. Which process of how many this one is. Each goes through the files from another place on, so
        each encodes its share, and finds the others' when it comes to them.
    """

    def __init__(
        self,
        folder: str | Path | None,
        encoder: nn.Module,
        montage: Montage,
        pooling: str,
        turn: tuple[int, int] = (0, 1),
    ):
        self.folder, self.encoder, self.montage, self.pooling = folder, encoder.eval(), montage, pooling
        self.turn = turn
        self.weights = fingerprint(encoder)
        names = [name for name in POOLINGS if name not in LARGE] if encoder.electrode_order is not None else []
        self.reducers = {name: reducer_for(encoder, montage, name) for name in dict.fromkeys((*names, pooling))}
        self._tokens: dict[str, Tensor] = {}  # by trial key
        self._probes: dict[str, Tensor] | None = None

    def tokens(self, dataset: TrialDataset, device: torch.device) -> Tensor:
        """(N, n, D) tokens of a split, in its order: from the cache, or encoded now and kept.

        Raises UserError if stored samples are damaged, or the encoder gives NaN.
        """
        if not len(dataset):
            return torch.empty(0, 0, self.encoder.width)
        files = self.files(dataset)
        folder = next(iter(files)).parent
        files = [(path, trials) for path, trials in files.items() if trials[0].key not in self._tokens]
        first = len(files) * self.turn[0] // self.turn[1]
        remove_leftovers(folder)  # of runs that died
        remove_stale(folder, ".tokens-*.lock")
        encoded = []
        n = sum(len(trials) for _, trials in files)
        with progress(total=n, desc="encoding", unit="trial", leave=False, disable=self.turn[0] > 0) as bar:
            for path, trials in files[first:] + files[:first]:
                if self._load(path, trials, dataset, device):
                    encoded += trials
                bar.update(len(trials))
        people = {trial.subject for trial in encoded}
        source = f"{len(encoded)} trials of {len(people)} people encoded" if encoded else "from the cache"
        print(f"encoder: {len(dataset)} {dataset.mode} trials, {source}")
        return torch.stack([self._tokens[trial.key] for trial in dataset.trials])

    def files(self, dataset: TrialDataset) -> dict[Path, list[Trial]]:
        """The cache's files for the people of a split, and whose tokens each holds: FILE trials of a person."""
        files, of_person = {}, defaultdict(list)
        for trial in dataset.store.trials:
            of_person[trial.subject].append(trial)
        for person in dict.fromkeys(trial.subject for trial in dataset.trials):
            trials = of_person[person]
            for start in range(0, len(trials), FILE):
                part = trials[start : start + FILE]
                files[self._path(dataset, part, self.pooling)] = part
        return files

    def encode(self, dataset: TrialDataset, trials: Sequence[Trial], device: torch.device) -> Tensor:
        """(len(trials), n, D) tokens, encoded now."""
        return self._encode(self._prepared(dataset, trials), device)[self.pooling]

    def _load(self, path: Path, trials: Sequence[Trial], dataset: TrialDataset, device: torch.device) -> bool:
        """Bring one file's tokens into memory; whether they had to be encoded."""
        for trial in trials:
            dataset.store.verify(trial)
        if self._probes is None:
            self._probes = self._encode([self._probe(dataset)], device)
        kept = self._kept(path, len(trials))
        if encodes := kept is None:
            waited = False  # whether another process encoded these trials meanwhile
            with ExitStack() as one_process:
                lock = only_one(path.with_name(f".{path.stem}.lock"), "encodes the same trials")
                with suppress(OSError):  # a folder that cannot be written: nothing is kept there, and nobody waits
                    waited = one_process.enter_context(lock)
                kept = self._kept(path, len(trials)) if waited else None
                if encodes := kept is None:
                    encoded = self._encode(self._prepared(dataset, trials), device)
                    for pooling, tokens in encoded.items():
                        check_finite(tokens, trials)
                        keep({"tokens": tokens, "probe": self._probes[pooling]}, self._path(dataset, trials, pooling))
                    kept = {"tokens": encoded[self.pooling]}
        self._tokens |= {trial.key: row for trial, row in zip(trials, kept["tokens"], strict=True)}
        return encodes

    def _kept(self, path: Path, n: int) -> dict[str, Tensor] | None:
        """Tokens of `n` trials from the cache; None where they are not there, or not what would be computed now."""
        kept, probe = read_kept(path) or {}, self._probes[self.pooling]
        kinds = {name: (tensor.dtype, tensor.ndim) for name, tensor in kept.items()}
        if kinds != dict.fromkeys(("tokens", "probe"), (torch.float32, 3)):
            return None
        if kept["probe"].shape != probe.shape or len(kept["tokens"]) != n:
            return None
        rms = probe.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)  # of each noise trial
        largest = ((kept["probe"] - probe).abs() / rms).max()
        if largest > 2e-3:  # devices and precisions differ by less
            now = "the encoder or the pooling computes something else than when these tokens were kept"
            print(f"notice: {now}; encoded anew")
        return kept if largest <= 2e-3 and kept["tokens"].shape[1:] == probe.shape[1:] else None

    def _probe(self, dataset: TrialDataset) -> Tensor:
        """Fixed noise trials of small, usual and huge amplitude, prepared for the encoder: clipping shows as well."""
        noise = np.random.default_rng(0).standard_normal((len(self.montage.electrodes), dataset.n_times))
        check_not_random(self.encoder.prepare, (PROBES[0] * noise).astype(np.float32), dataset.sfreq)
        prepared = [self.encoder.prepare((sd * noise).astype(np.float32), dataset.sfreq) for sd in PROBES]
        return torch.from_numpy(np.stack(prepared))

    def _prepared(self, dataset: TrialDataset, trials: Sequence[Trial]):
        """Batches of prepared trials."""
        for start in range(0, len(trials), BATCH):
            x = [self.encoder.prepare(dataset.samples(t), dataset.sfreq) for t in trials[start : start + BATCH]]
            yield torch.from_numpy(np.stack(x))

    @torch.no_grad()
    def _encode(self, batches, device: torch.device) -> dict[str, Tensor]:
        """Tokens (N, n, D) by pooling, float32 on the CPU, from one pass of the encoder."""
        encoder, parts = self.encoder.to(device), {name: [] for name in self.reducers}
        for x in batches:
            features = encoder(x.to(device))
            for name, reducer in self.reducers.items():
                parts[name].append(reducer.to(device)(features).float().cpu())
        return {name: torch.cat(tokens) for name, tokens in parts.items()}

    def _path(self, dataset: TrialDataset, trials: Sequence[Trial], pooling: str) -> Path:
        key = {
            "trials": [(trial.key, trial.checksum) for trial in trials],
            "encoder": [type(self.encoder).__name__, self.weights],
            "groups": list(self.reducers[pooling].groups.values()),
            "electrodes": self.montage.electrodes,
            "samples": [dataset.window, dataset.n_times],
            **dataset.changes(trials),
        }
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return cache_folder(self.folder, dataset.store.path) / f"tokens-{digest[:24]}.safetensors"


def check_finite(tokens: Tensor, trials: Sequence[Trial]) -> None:
    """Raise UserError where tokens hold NaN or infinity; names the trial."""
    bad = (~torch.isfinite(tokens).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        first = f"trial {trials[bad[0]].key} and {len(bad) - 1} more"
        hint = "look at the recording and the encoder's weights"
        raise UserError(f"the encoder gives NaN or infinity for {first}; {hint}")
