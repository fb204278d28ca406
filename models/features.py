"""The frozen encoder's reduced tokens, computed once and kept."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.checkpoints import fingerprint
from utils.paths import written_whole


@torch.no_grad()
def encode_trials(
    encoder: nn.Module, reducer: nn.Module, dataset, device: torch.device, batch_size: int = 32
) -> torch.Tensor:
    """Run the encoder once over a dataset.

    Parameters
    ----------
    encoder, reducer : nn.Module
        CSBrain and EEGTokenReducer.
    dataset : Dataset
        Items have the signal (C, P, 200) under "x".

    Returns
    -------
    (N, n, 200) float32 tensor on the CPU.
    """
    encoder, reducer = encoder.to(device).eval(), reducer.to(device)
    loader = DataLoader(dataset, batch_size, collate_fn=lambda items: torch.stack([item["x"] for item in items]))
    bar = tqdm(total=len(dataset), desc=f"encoding {getattr(dataset, 'mode', '')}", unit="trial")
    parts = []
    with bar:
        for x in loader:  # (B, C, P, 200)
            parts.append(reducer(encoder(x.to(device))).float().cpu())
            bar.update(len(x))
    return torch.cat(parts)


class TokenCache:
    """Reduced tokens on disk, keyed by all that they depend on.

    Parameters
    ----------
    folder : Path
    encoder, reducer : nn.Module
    montage : Montage
    token_pooling : str
    """

    def __init__(self, folder: str | Path, encoder, reducer, montage, token_pooling: str):
        self.folder, self.encoder, self.reducer = Path(folder), encoder, reducer
        self.key = {
            "encoder": fingerprint(encoder),
            "electrodes": montage.electrodes,
            "topology": montage.topology,
            "token_pooling": token_pooling,
        }

    def tokens(self, dataset, device: torch.device) -> torch.Tensor:
        """(N, n, 200) tokens of a dataset, from the cache, or encoded now and kept."""
        if len(dataset) == 0:
            return torch.empty(0, 0, 200)
        key = json.dumps(self.key | {"store": dataset.store.fingerprint, "split": dataset.mode}, sort_keys=True)
        path = self.folder / f"tokens-{dataset.mode}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        if path.exists():
            tokens = load_file(path)["tokens"]
            if len(tokens) == len(dataset):
                print(f"encoder: {len(tokens)} {dataset.mode} trials from the cache {path.name}")
                return tokens
        tokens = encode_trials(self.encoder, self.reducer, dataset, device)
        with written_whole(path) as unfinished:
            save_file({"tokens": tokens}, unfinished)
        print(f"encoder: {len(tokens)} {dataset.mode} trials encoded, kept as {path.name}")
        return tokens
