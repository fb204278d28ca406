"""The frozen encoder's reduced tokens, computed once and kept."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.CSBrain import load_encoder
from models.eeg_llm import EEGTokenReducer
from utils.checkpoints import fingerprint, read_tensors
from utils.errors import UserError
from utils.montages import Montage
from utils.paths import written_whole


@torch.no_grad()
def encode_trials(
    encoder: nn.Module, reducers: dict[str, nn.Module], dataset, device: torch.device, batch_size: int = 32
) -> dict[str, torch.Tensor]:
    """Run the encoder once over a dataset and reduce its features in one or more ways.

    Parameters
    ----------
    encoder : nn.Module
        CSBrain.
    reducers : dict of str to nn.Module
        Name → EEGTokenReducer.
    dataset : Dataset
        Items have the signal (C, P, 200) under "x".

    Returns
    -------
    dict of name to (N, n, 200) float32 tensor on the CPU.
    """
    encoder = encoder.to(device).eval()
    reducers = {name: reducer.to(device) for name, reducer in reducers.items()}
    loader = DataLoader(dataset, batch_size, collate_fn=lambda items: torch.stack([item["x"] for item in items]))
    parts = {name: [] for name in reducers}
    with tqdm(total=len(dataset), desc=f"encoding {getattr(dataset, 'mode', '')}", unit="trial") as bar:
        for x in loader:  # (B, C, P, 200)
            features = encoder(x.to(device))
            for name, reducer in reducers.items():
                parts[name].append(reducer(features).float().cpu())
            bar.update(len(x))
    return {name: torch.cat(tokens) for name, tokens in parts.items()}


class TokenCache:
    """Reduced tokens on disk, keyed by all that they depend on.

    Parameters
    ----------
    folder : str, Path or None
        None: `token_cache` beside each dataset's store.
    encoder : CSBrain
    montage : Montage
    token_pooling : str
        What is asked for. Region and hemisphere tokens are small and always kept, so that comparing them costs one
        pass of the encoder; electrode tokens only when asked for.
    """

    def __init__(self, folder: str | Path | None, encoder: nn.Module, montage: Montage, token_pooling: str):
        self.folder, self.encoder, self.montage, self.token_pooling = folder, encoder, montage, token_pooling
        self.key = {
            "encoder": fingerprint(encoder),
            "electrodes": montage.electrodes,
            "topology": montage.topology,
        }

    def tokens(self, dataset, device: torch.device) -> torch.Tensor:
        """(N, n, 200) tokens of a dataset, from the cache, or encoded now and kept."""
        if len(dataset) == 0:
            return torch.empty(0, 0, 200)
        path = self._path(dataset, self.token_pooling)
        if path.exists():
            tokens = read_tensors(path)["tokens"]
            print(f"encoder: {len(tokens)} {dataset.mode} trials from the cache {path.name}")
            return tokens
        poolings = dict.fromkeys(("region", "hemisphere", self.token_pooling))
        reducers = {pooling: EEGTokenReducer(self.montage, pooling) for pooling in poolings}
        encoded = encode_trials(self.encoder, reducers, dataset, device)
        for pooling, tokens in encoded.items():
            with written_whole(self._path(dataset, pooling)) as unfinished:
                unfinished.write_bytes(save({"tokens": tokens}))
        print(f"encoder: {len(dataset)} {dataset.mode} trials encoded, kept as {path.name}")
        return encoded[self.token_pooling]

    def _path(self, dataset, pooling: str) -> Path:
        key = self.key | {"store": dataset.store.fingerprint, "split": dataset.mode, "token_pooling": pooling}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        folder = Path(self.folder or dataset.store.path.resolve().parent / "token_cache")
        return folder / f"tokens-{dataset.mode}-{digest[:16]}.safetensors"


def tokens_for(checkpoint: dict, name: Path, dataset, montage: Montage, args, device: torch.device) -> torch.Tensor:
    """(N, n, 200) tokens of a dataset from the encoder, and in the pooling, that a checkpoint was trained on.

    Parameters
    ----------
    checkpoint : dict
        With `encoder_fingerprint`, `token_pooling` and, where it was trained as well, the weights `encoder`.
    name : Path
        The checkpoint's file, for messages.
    args : argparse.Namespace
        The flags of `utils.flags.add_encoder_flags`.

    Raises
    ------
    UserError
        If --foundation_dir is another encoder.
    """
    encoder = load_encoder(
        montage, args.foundation_dir if args.use_pretrained_weights else None, args.allow_partial, args.encoder_seed
    )
    if fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
        raise UserError(f"{name} was trained on the features of another encoder than {args.foundation_dir}")
    if checkpoint.get("encoder") is not None:
        encoder.load_state_dict(checkpoint["encoder"])
    return TokenCache(args.cache_dir, encoder, montage, checkpoint["token_pooling"]).tokens(dataset, device)
