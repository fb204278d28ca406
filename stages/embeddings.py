"""The mapper's states on their way to the image model: `embeddings.safetensors` beside `decoded.jsonl`."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from models.image_generator import Conditioning
from stages.rows import Row
from utils.checkpoints import as_bytes, read_tensors
from utils.errors import UserError
from utils.paths import written_whole


def digest(states: torch.Tensor, pooled: torch.Tensor) -> str:
    """Tells one trial's states (77, D) from another's, and from the same bytes in another shape or type."""
    kinds = f"{states.dtype} {tuple(states.shape)} {pooled.dtype} {tuple(pooled.shape)} ".encode()
    return hashlib.sha256(kinds + as_bytes(states) + as_bytes(pooled)).hexdigest()[:16]


def write_embeddings(
    path: Path, rows: Sequence[Row], outputs: Mapping[int, tuple[torch.Tensor, torch.Tensor]], image_model: str
) -> None:
    """Keep text states (1, 77, D) and pooled vector (1, D) by trial index, and mark each row with their digest.

    Without outputs, what another run left is removed: it would not belong to these trials.
    """
    path.unlink(missing_ok=True)
    if not outputs:
        return
    kept = {
        "index": torch.tensor(list(outputs)),
        "states": torch.cat([states.float().cpu() for states, _ in outputs.values()]),  # (n, 77, D)
        "pooled": torch.cat([pooled.float().cpu() for _, pooled in outputs.values()]),  # (n, D)
    }
    with written_whole(path) as unfinished:
        unfinished.write_bytes(save(kept))
    for row, states, pooled in zip(rows, kept["states"], kept["pooled"], strict=True):
        row.embedding, row.embedding_of = digest(states, pooled), image_model


def read_embeddings(path: Path, rows: Sequence[Row], image_model: str) -> dict[int, Conditioning]:
    """The mapper's states and pooled vector of every decoded trial, by index.

    Raises UserError if they are not there, damaged, or belong to other decoded trials.
    """
    if not path.exists() or not all(row.embedding for row in rows):
        raise UserError(
            f"{path} is not there, or not of these trials; --conditioning embedding and blend need it: run --stage decode "
            "with the same flag"
        )
    kept = read_tensors(path)
    kinds = {name: (tensor.dtype, tensor.ndim) for name, tensor in kept.items()}
    expected = {"index": (torch.int64, 1), "states": (torch.float32, 3), "pooled": (torch.float32, 2)}
    if kinds != expected or len({len(tensor) for tensor in kept.values()}) > 1:
        raise UserError(
            f"{path} is damaged: it does not hold index, states and pooled of the same trials; decode again"
        )
    found = {}
    for index, states, pooled in zip(kept["index"].tolist(), kept["states"], kept["pooled"], strict=True):
        found[index] = digest(states, pooled), Conditioning(states[None], pooled[None])
    for row in rows:
        if found.get(row.index, ("", None))[0] != row.embedding:
            raise UserError(f"{path} belongs to other trials than decoded.jsonl (trial {row.index}); decode again")
    others = {row.embedding_of for row in rows} - {image_model}
    if others:
        print(f"notice: the mapper's states were trained towards {', '.join(sorted(others))}, and {image_model} "
              "reads them now; another kind of model reads other states")  # fmt: skip
    return {index: conditioning for index, (_, conditioning) in found.items()}


# ---------------------------------------------------------------- what pictures of seen images are drawn from


COMPARED_WITH = (
    "ceiling",
    "nearest",
)  # what the same trials are drawn from for comparison: no part of what was decoded


def write_guidance(path: Path, rows: Sequence[Row], tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep tensors (N, …) of the rows, in their order, and mark each row with the digest of what was decoded.

    What another run left is removed: it would not belong to these trials.
    """
    path.unlink(missing_ok=True)
    kept = {name: tensor.float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with written_whole(path) as unfinished:
        unfinished.write_bytes(save(kept | {"index": torch.tensor([row.index for row in rows])}))
    for k, row in enumerate(rows):
        row.embedding = digest_of(_decoded(kept), k)


def read_guidance(path: Path, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """The tensors (N, …), in the order of the rows; UserError if they are not there, damaged, or of other trials."""
    kept = read_tensors(path)
    index = kept.pop("index", None)
    sizes = {len(tensor) if tensor.ndim else -1 for tensor in kept.values()}
    wrong = any(tensor.dtype != torch.float32 or not torch.isfinite(tensor).all() for tensor in kept.values())
    if (
        index is None
        or index.dtype != torch.int64
        or wrong
        or sizes != {len(rows)}
        or index.tolist() != [row.index for row in rows]
    ):
        raise UserError(f"{path} is damaged, or of other trials than decoded.jsonl; decode again")
    for k, row in enumerate(rows):
        if digest_of(_decoded(kept), k) != row.embedding:
            raise UserError(f"{path} belongs to other trials than decoded.jsonl (trial {row.index}); decode again")
    return kept


def _decoded(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in COMPARED_WITH}


def digest_of(tensors: Mapping[str, torch.Tensor], k: int) -> str:
    """Tells what trial k is drawn from."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape[1:])} ".encode() + as_bytes(tensor[k]))
    return found.hexdigest()[:16]
