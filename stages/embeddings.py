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
        hint = "--conditioning embedding and blend need it: run --stage decode with the same flag"
        raise UserError(f"{path} is not there, or not of these trials; {hint}")
    kept = read_tensors(path)
    kinds = {name: (tensor.dtype, tensor.ndim) for name, tensor in kept.items()}
    expected = {"index": (torch.int64, 1), "states": (torch.float32, 3), "pooled": (torch.float32, 2)}
    if kinds != expected or len({len(tensor) for tensor in kept.values()}) > 1:
        parts = "index, states and pooled of the same trials"
        raise UserError(f"{path} is damaged: it does not hold {parts}; decode again")
    digests, conditionings = {}, {}
    for index, states, pooled in zip(kept["index"].tolist(), kept["states"], kept["pooled"], strict=True):
        digests[index], conditionings[index] = digest(states, pooled), Conditioning(states[None], pooled[None])
    check_belongs(path, rows, [digests.get(row.index, "") for row in rows])
    if others := ", ".join(sorted({row.embedding_of for row in rows} - {image_model})):
        now = f"{image_model} reads them now; another kind of model reads other states"
        print(f"notice: the mapper's states were trained towards {others}, and {now}")
    return conditionings


def check_belongs(path: Path, rows: Sequence[Row], digests: Sequence[str]) -> None:
    """Raise UserError where what a file holds of a row has another digest than the row says."""
    for row, kept in zip(rows, digests, strict=True):
        if kept != row.embedding:
            raise UserError(f"{path} belongs to other trials than decoded.jsonl (trial {row.index}); decode again")


# ---------------------------------------------------------------- what pictures of seen images are drawn from


COMPARED_WITH = ("ceiling", "nearest")  # the same trials are drawn from these for comparison; they were not decoded
Tensors = dict[str, torch.Tensor]  # (N, …) by name


def write_guidance(path: Path, rows: Sequence[Row], tensors: Tensors) -> None:
    """Keep tensors (N, …) of the rows, in their order, and mark each row with the digest of what was decoded.

    What another run left is removed: it would not belong to these trials.
    """
    path.unlink(missing_ok=True)
    kept = {name: tensor.float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with written_whole(path) as unfinished:
        unfinished.write_bytes(save(kept | {"index": torch.tensor([row.index for row in rows])}))
    for k, row in enumerate(rows):
        row.embedding = digest_of(_decoded(kept), k)


def read_guidance(path: Path, rows: Sequence[Row]) -> Tensors:
    """The tensors (N, …), in the order of the rows; UserError if they are not there, damaged, or of other trials."""
    kept = read_tensors(path)
    index = kept.pop("index", torch.empty(0))
    same_rows = index.dtype == torch.int64 and index.tolist() == [row.index for row in rows]
    sizes = {len(tensor) if tensor.ndim else -1 for tensor in kept.values()}
    numbers = all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in kept.values())
    if not same_rows or not numbers or sizes != {len(rows)}:
        raise UserError(f"{path} is damaged, or of other trials than decoded.jsonl; decode again")
    decoded = _decoded(kept)
    check_belongs(path, rows, [digest_of(decoded, k) for k in range(len(rows))])
    return kept


def _decoded(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in COMPARED_WITH}


def digest_of(tensors: Tensors, k: int) -> str:
    """Tells what trial k is drawn from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape[1:])} ".encode() + as_bytes(tensor[k]))
    return digest.hexdigest()[:16]
