"""From trials to EEG tokens: the encoder and the pooling of a run, and the cache of a frozen encoder's tokens."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from datasets.montage import Montage
from datasets.store import Trial
from datasets.trials import TrialDataset
from models import POOLINGS, choose
from models.eeg_llm import EEGTokenReducer
from models.encoders import load_encoder
from utils.checkpoints import fingerprint, keep, read_kept
from utils.errors import UserError

BATCH = 32  # trials encoded at once
PROBES = (2.0, 50.0, 1000.0)  # microvolts, standard deviations of the noise trials that notice changed code
LARGE = ("electrode",)  # poolings whose tokens are kept only when asked for


def encoder_for(
    dataset: TrialDataset, name: str, checkpoint: str | None, allow_partial: bool = False, seed: int = 0
) -> nn.Module:
    """The encoder of a run, for trials like these. Parameters as `load_encoder`."""
    montage = dataset.description.montage
    return load_encoder(
        name, checkpoint, allow_partial, seed, electrodes=montage.electrodes, brain_regions=montage.brain_regions,
        sorted_indices=montage.sorted_indices, n_times=dataset.n_times, sfreq=dataset.sfreq,
    )  # fmt: skip


def reducer_for(encoder: nn.Module, montage: Montage, pooling: str) -> EEGTokenReducer:
    """The pooling of an encoder's features; an encoder that mixes the electrodes has nothing left to pool."""
    order = encoder.electrode_order
    if order is None:
        return EEGTokenReducer({"all electrodes": [0]}, 1)
    electrodes = [montage.electrodes[k] for k in order]
    regions = [montage.region_names[k] for k in order]
    return EEGTokenReducer(choose(POOLINGS, pooling)(electrodes, regions), len(order))


def give_tokens(
    splits: Iterable[TrialDataset], encoder: nn.Module, cached: bool, pooling: str, cache_dir: str | None,
    device: torch.device,
) -> EEGTokenReducer:  # fmt: skip
    """Give each split its tokens, from the cache or encoded now, or else its prepared signals. Returns the pooling."""
    splits = list(splits)
    montage = splits[0].description.montage
    cache = TokenCache(cache_dir, encoder, montage, pooling) if cached else None
    for dataset in splits:
        if cache:
            dataset.tokens = cache.tokens(dataset, device)
        else:
            dataset.prepare = encoder.prepare
    return reducer_for(encoder, montage, pooling)


class TokenCache:
    """A frozen encoder's tokens on disk, one file a person: so all protocols and folds share it.

    A file is keyed by the keys and checksums of the person's trials, the encoder's weights, and the groups of
    electrodes; it also keeps the tokens of three fixed noise trials, so that other code in encoder, preparation or pooling
    is noticed. Before tokens are served, the stored samples are compared with their checksums.

    folder : str, Path or None. None: `token_cache` beside the store.
    encoder : nn.Module. See `models/encoders.py`.
    pooling : str. What is asked for. Small poolings are always kept, so that comparing them costs one pass of the
        encoder.
    """

    def __init__(self, folder: str | Path | None, encoder: nn.Module, montage: Montage, pooling: str):
        self.folder, self.encoder, self.montage, self.pooling = folder, encoder.eval(), montage, pooling
        self.weights = fingerprint(encoder)
        names = [name for name in POOLINGS if name not in LARGE] if encoder.electrode_order is not None else []
        self.reducers = {name: reducer_for(encoder, montage, name) for name in dict.fromkeys((*names, pooling))}
        self._people: dict[str, dict[str, torch.Tensor]] = {}  # person → trial key → tokens
        self._probes: dict[str, torch.Tensor] | None = None

    def tokens(self, dataset: TrialDataset, device: torch.device) -> torch.Tensor:
        """(N, n, D) tokens of a split, in its order: from the cache, or encoded now and kept.

        Raises UserError if stored samples are damaged, or the encoder gives NaN.
        """
        if not len(dataset):
            return torch.empty(0, 0, self.encoder.width)
        people = list(dict.fromkeys(trial.subject for trial in dataset.trials))
        encoded = [self._load(person, dataset, device) for person in people if person not in self._people]
        n_people = sum(n > 0 for n in encoded)
        source = f"{sum(encoded)} trials of {n_people} people encoded" if n_people else "from the cache"
        print(f"encoder: {len(dataset)} {dataset.mode} trials, {source}")
        return torch.stack([self._people[trial.subject][trial.key] for trial in dataset.trials])

    def _load(self, person: str, dataset: TrialDataset, device: torch.device) -> int:
        """Bring one person's tokens into memory; how many trials had to be encoded."""
        trials = [trial for trial in dataset.store.trials if trial.subject == person]
        for trial in trials:
            dataset.store.verify(trial)
        if self._probes is None:
            self._probes = self._encode([self._probe(dataset)], device)
        kept = read_kept(self._path(dataset, trials, self.pooling))
        n_encoded = 0
        if kept is None or not self._fits(kept, len(trials)):
            encoded = self._encode(self._prepared(dataset, trials), device)
            n_encoded = len(trials)
            for pooling, tokens in encoded.items():
                check_finite(tokens, trials)
                keep({"tokens": tokens, "probe": self._probes[pooling]}, self._path(dataset, trials, pooling))
            kept = {"tokens": encoded[self.pooling]}
        self._people[person] = {trial.key: row for trial, row in zip(trials, kept["tokens"], strict=True)}
        return n_encoded

    def _fits(self, kept: dict[str, torch.Tensor], n: int) -> bool:
        """Whether kept tokens are as many as the trials, and what this encoder and pooling compute."""
        probe = self._probes[self.pooling]
        if set(kept) != {"tokens", "probe"} or kept["probe"].shape != probe.shape or len(kept["tokens"]) != n:
            return False
        rms = probe.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)  # of each noise trial
        largest = ((kept["probe"] - probe).abs() / rms).max()
        if largest > 2e-3:  # devices and precisions differ by less
            print(
                "notice: the encoder or the pooling computes something else than when these tokens were kept; encoded anew"
            )
        return bool(largest <= 2e-3 and kept["tokens"].shape[1:] == probe.shape[1:])

    def _probe(self, dataset: TrialDataset) -> torch.Tensor:
        """Fixed noise trials of small, usual and huge amplitude, prepared for the encoder: clipping shows as well."""
        noise = np.random.default_rng(0).standard_normal((len(self.montage.electrodes), dataset.n_times))
        prepared = [self.encoder.prepare((sd * noise).astype(np.float32), dataset.sfreq) for sd in PROBES]
        return torch.from_numpy(np.stack(prepared))

    def _prepared(self, dataset: TrialDataset, trials: Sequence[Trial]):
        """Batches of prepared trials, with a bar."""
        with tqdm(total=len(trials), desc=f"encoding {trials[0].subject}", unit="trial", leave=False) as bar:
            for start in range(0, len(trials), BATCH):
                batch = trials[start : start + BATCH]
                x = [self.encoder.prepare(dataset.samples(trial), dataset.sfreq) for trial in batch]
                yield torch.from_numpy(np.stack(x))
                bar.update(len(batch))

    @torch.no_grad()
    def _encode(self, batches, device: torch.device) -> dict[str, torch.Tensor]:
        """Tokens (N, n, D) by pooling, float32 on the CPU, from one pass of the encoder."""
        encoder = self.encoder.to(device)
        reducers = {name: reducer.to(device) for name, reducer in self.reducers.items()}
        parts = {name: [] for name in reducers}
        for x in batches:
            features = encoder(x.to(device))
            for name, reducer in reducers.items():
                parts[name].append(reducer(features).float().cpu())
        return {name: torch.cat(tokens) for name, tokens in parts.items()}

    def _path(self, dataset: TrialDataset, trials: Sequence[Trial], pooling: str) -> Path:
        key = {
            "trials": [(trial.key, trial.checksum) for trial in trials],
            "encoder": [type(self.encoder).__name__, self.weights],
            "groups": list(self.reducers[pooling].groups.values()),
            "electrodes": self.montage.electrodes,
        }
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        folder = Path(self.folder or dataset.store.path.resolve().parent / "token_cache")
        return folder / f"tokens-{digest[:24]}.safetensors"


def check_finite(tokens: torch.Tensor, trials: Sequence[Trial]) -> None:
    """Raise UserError where tokens hold NaN or infinity; names the trial."""
    bad = (~torch.isfinite(tokens).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"the encoder gives NaN or infinity for trial {trials[bad[0]].key} and {len(bad) - 1} more; look at the "
            "recording and the encoder's weights"
        )
