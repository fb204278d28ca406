"""Reading and writing weights: weights only, whole files only, and nothing skipped in silence."""

import hashlib
import io
import json
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from utils.errors import UserError
from utils.paths import written_whole


def save_checkpoint(content: dict, path: Path) -> None:
    """Write a checkpoint beside its place and rename it when whole."""
    buffer = io.BytesIO()  # torch.save into a full disk raises no OSError; writing bytes does
    torch.save(content, buffer)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint without running any code it may carry.

    Raises UserError if the file is missing, damaged, or holds more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in many ways; none of them may pass
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be read as a checkpoint of weights only ({first[:160]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a dict of tensors")
    return content


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; UserError where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is not there")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is made anew") from None


def keep(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Put tensors into a cache with a checksum; a cache that cannot be written is reported, and no error."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(save(tensors, metadata={"checksum": _checksum(tensors)}))
    except OSError as error:
        print(
            f"notice: {path.parent} cannot be written ({error.strerror}), so nothing is kept; --cache_dir names another"
        )


def read_kept(path: Path) -> dict[str, torch.Tensor] | None:
    """Tensors from a cache; None where they are not there, damaged or not finite."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors, found = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError):
        tensors, found = {}, {}
    finite = all(torch.isfinite(tensor).all() for tensor in tensors.values())
    if not finite or found != {"checksum": _checksum(tensors)}:
        print(f"notice: {path.name} in the cache is damaged or of something else; made anew")
        return None
    return tensors


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of all tensors' names and bytes."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].numpy().tobytes(), zlib.crc32(f"{name} {tensors[name].shape}".encode(), crc))
    return f"{crc:08x}"


def best_checkpoint(place: Path, pattern: str) -> Path:
    """A checkpoint as it is named, or of a run's folder the best epoch's.

    pattern : str. The checkpoints' names, with {} for the epoch.
    Raises UserError if a folder has no results.
    """
    if not place.is_dir():
        return place
    try:
        return place / pattern.format(json.loads((place / "results.json").read_text())["best_epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{place} has no results.json of a finished run; name a {pattern.format('N')} in it") from None


def load_weights(module: nn.Module, path: str | Path, allow_partial: bool = False) -> str:
    """Load a plain state dict, "module." prefixes stripped, into a module.

    allow_partial : bool. Skip tensors that are missing, unknown or misshapen, and list them; without it each is an
        error.
    Returns str: "295/295 loaded" and, with `allow_partial`, what was skipped.
    Raises UserError names every tensor that does not fit.
    """
    given = {str(key).removeprefix("module."): value for key, value in read_checkpoint(path).items()}
    wanted = module.state_dict()
    faults = [f"{key} is missing" for key in wanted if key not in given]
    for key, value in given.items():
        if key not in wanted:
            faults.append(f"{key} is unknown")
        elif not isinstance(value, torch.Tensor) or value.shape != wanted[key].shape:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            faults.append(f"{key} is {shape}, expected {tuple(wanted[key].shape)}")
    if faults and not allow_partial:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{path} does not fit: {shown} (--allow_partial loads the rest)")
    misshapen = {fault.split(" ")[0] for fault in faults}
    fitting = {key: value for key, value in given.items() if key not in misshapen}
    module.load_state_dict(fitting, strict=False)
    return "\n  skipped: ".join([f"{len(fitting)}/{len(wanted)} loaded", *faults])


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights, names included."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
