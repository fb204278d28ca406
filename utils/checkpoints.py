"""Reading and writing weights: weights only, whole files only, and nothing skipped in silence."""

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from utils.archives import check_packed
from utils.errors import UserError, loading, some
from utils.files import read_json, write_json
from utils.hub import local_folder
from utils.limits import check_plain
from utils.paths import written_whole

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # a checkpoint's second form: its tensors, and all else
FORMAT = "eeg2image checkpoint 1"


def save_checkpoint(content: dict, path: Path) -> None:
    """Write a checkpoint beside its place and rename it when whole. Equal contents give equal bytes."""
    buffer = io.BytesIO()  # torch.save into a full disk raises no OSError; writing bytes does
    torch.save(_plain(content, {}), buffer)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())


def _plain(content, texts: dict):  # noqa: ANN202 - of the type that came in
    """New containers, and one object for equal texts: a pickle tells which were one, and a resumed run's are not."""
    if isinstance(content, Mapping):
        return {_plain(key, texts): _plain(value, texts) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_plain(value, texts) for value in content)
    return texts.setdefault(content, content) if isinstance(content, str) else content


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint without running any code it may carry.

    Raises UserError if the file is missing, damaged, or holds more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return _read_second_form(path)
    with loading(str(path), "expected a checkpoint of weights only, whole; copy or make it anew"):
        check_packed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        check_tensors(content, path.stat().st_size)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a dict of tensors")
    return content


def save_second_form(content: dict, folder: Path, file: str) -> None:
    """Write a checkpoint's tensors to model.safetensors and all else to config.json; equal contents give equal bytes.

    content : dict. Plain values, tensors, and dicts of them; `epoch` among them.
    file : str. Name of the first form, which tells the kind: projection_epoch3.pth.
    """
    tensors: dict[str, torch.Tensor] = {}
    write_json({"format": FORMAT, "file": file} | _taken_apart(content, "", tensors), folder / CONFIG)
    with written_whole(folder / WEIGHTS) as unfinished:
        unfinished.write_bytes(save(tensors, metadata={"epoch": str(content["epoch"])}))


def _taken_apart(content, name: str, tensors: dict[str, torch.Tensor]):  # noqa: ANN202 - as plain as it came in
    """The content with {"tensors": where} in place of a tensor, and of a dict of tensors {"tensors": "where."}."""
    if isinstance(content, torch.Tensor):
        tensors[name] = content.detach().cpu().clone().contiguous()
        return {"tensors": name}
    if isinstance(content, Mapping) and content and all(isinstance(value, torch.Tensor) for value in content.values()):
        for key, value in content.items():
            _taken_apart(value, f"{name}.{key}", tensors)
        return {"tensors": f"{name}."}
    if isinstance(content, Mapping):
        return {k: _taken_apart(value, f"{name}.{k}" if name else k, tensors) for k, value in content.items()}
    return content


def _read_second_form(path: Path) -> dict:
    """The content that `save_second_form` was given; of safetensors without its config.json the tensors by name."""
    config = path.with_name(CONFIG)
    facts = read_json(config) if config.is_file() else {}
    with loading(str(path), "it is damaged, or not of this config.json; copy or make both anew"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if facts.pop("format", None) != FORMAT:
            return tensors
        facts.pop("file", None)
        if metadata.get("epoch") != str(facts.get("epoch")):
            raise ValueError(f"it is of epoch {metadata.get('epoch')}, {CONFIG} of epoch {facts.get('epoch')}")
        content = _joined(facts, tensors)
        if tensors:
            raise ValueError(f"{CONFIG} does not say what {next(iter(tensors))} is")
    return content


def _joined(content, tensors: dict[str, torch.Tensor]):  # noqa: ANN202 - as it was before it was taken apart
    """Undo `_taken_apart`; what is used of `tensors` is taken out."""
    if not isinstance(content, dict):
        return content
    if set(content) != {"tensors"}:
        return {key: _joined(value, tensors) for key, value in content.items()}
    name = content["tensors"]
    if not name.endswith("."):
        return tensors.pop(name)
    if not (names := [key for key in tensors if key.startswith(name)]):
        raise ValueError(f"it has no tensors {name}…")
    return {key.removeprefix(name): tensors.pop(key) for key in names}


# what a checkpoint of weights only may hold beside containers
PLAIN = (torch.Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)


def check_tensors(content: object, n_bytes: int) -> None:
    """Raise ValueError for more than plain values and plain tensors whose numbers are in the file.

    A tensor of another kind is sparse, without data, a huge view. n_bytes : int. Of the file; see `check_plain`.
    """
    check_plain(content, PLAIN, n_bytes, _check_tensor)


def _check_tensor(value: object) -> None:
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            kind = f"{value.layout}, {value.device}, {tuple(value.shape)}"
            raise ValueError(f"it holds a tensor of another kind ({kind})")


def must_be_finite(module: nn.Module) -> None:
    """Raise ValueError where a weight is NaN or infinite."""
    if not all(torch.isfinite(value).all() for value in module.state_dict().values() if value.is_floating_point()):
        raise ValueError("its weights hold NaN or infinity")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; UserError where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is not there")
    with loading(str(path), "it is damaged; make it anew"):
        return load_file(path)


_SAID: set[Path] = set()  # folders that cannot be written: said once


def keep(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Put tensors into a cache with a checksum; a cache that cannot be written is reported, and no error."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(save(tensors, metadata={"checksum": _checksum(tensors, path)}))
    except OSError as error:
        if path.parent not in _SAID:
            _SAID.add(path.parent)
            what = f"{path.parent} cannot be written ({error.strerror}), so nothing is kept there"
            print(f"notice: {what}; --cache_dir names another folder")


def read_kept(path: Path) -> dict[str, torch.Tensor] | None:
    """Tensors from a cache; None where they are not there, damaged, of another file or not finite."""
    if not path.is_file():
        return None
    tensors, found = {}, {}
    with suppress(Exception), safe_open(path, framework="pt") as file:  # a damaged file fails in many ways
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = file.metadata() or {}
    finite = False
    with suppress(NotImplementedError):  # of the smallest kinds of numbers, which nothing here keeps
        finite = all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    if not finite or found != {"checksum": _checksum(tensors, path)}:
        print(f"notice: {path.name} in the cache is damaged or of something else; made anew")
        return None
    return tensors


def _checksum(tensors: dict[str, torch.Tensor], path: Path) -> str:
    """CRC-32 of the file's name, which says what it depends on, and of all tensors' names, kinds and bytes."""
    crc = zlib.crc32(path.name.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(as_bytes(tensor), zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc))
    return f"{crc:08x}"


def as_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, of whatever type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def best_checkpoint(place: Path, pattern: str) -> Path:
    """A checkpoint as it is named, or of a run's folder the best epoch's.

    place : Path. A file, a folder, or a run's address on the hub, OWNER/NAME or OWNER/NAME@revision.
    pattern : str. The checkpoints' names, with {} for the epoch.
    Where the folder has no such file, it is its second form, model.safetensors beside config.json.
    Raises UserError if a folder has no results, or an address cannot be had.
    """
    place = local_folder(place, "results.json")
    if not place.is_dir():
        return place
    results = read_json(place / "results.json") if (place / "results.json").is_file() else {}
    epoch = results.get("best_epoch")
    if type(epoch) is int and (path := place / pattern.format(epoch)).exists():
        return path
    if (place / WEIGHTS).is_file() and (place / CONFIG).is_file():
        about = read_json(place / CONFIG)
        if about.get("file") == pattern.format(about.get("epoch")):
            return place / WEIGHTS
    if type(epoch) is not int:
        raise UserError(f"{place} has no results.json of a finished run; name a {pattern.format('N')} in it")
    return place / pattern.format(epoch)


def weights_file(place: str | Path) -> Path:
    """The file of plain weights behind a file, a folder, or a model's address on the hub.

    Of a folder model.safetensors, as `save_pretrained` and `push_to_hub` leave it, else its only .pth.
    Raises UserError where a folder has neither, or an address cannot be had.
    """
    place = local_folder(place, None, ("config.json", "*.safetensors", "*.pth"))
    if not place.is_dir() or (place / WEIGHTS).is_file():
        return place / WEIGHTS if place.is_dir() else place
    found = sorted(place.glob("*.pth"))
    if len(found) != 1:
        raise UserError(f"{place} has no {WEIGHTS} and {len(found)} files .pth; name a file of weights in it")
    return found[0]


# what PyTorch puts between the parts of a name when it wraps a module: several processes, compiled, sharded, recomputed
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
DEEP = 4  # keys that weights may lie under, and parts of a prefix
LEAST_LOADED = 0.9  # of a module's names, with --allow_partial


def unwrapped(content: Mapping, is_own: Callable[[str], bool], what: str) -> dict[str, torch.Tensor]:
    """A module's weights in a stranger's checkpoint, by their plain names, wherever they lie in it.

    They may lie under keys ("model", "state_dict"), behind a prefix ("backbone."), inside wrappers ("_orig_mod."), and
    beside other parts; the place that holds most of the module's names is taken. What is left out is printed.

    content : mapping. As `read_checkpoint` gives it.
    is_own : callable. Whether a plain name is one of the module's.
    what : str. The file, for the notice.
    Returns dict: all that lies in that place; what is no tensor, and names that are not the module's, too.
    """
    found = []  # (names of the module there, −parts of the place), the place, prefix, its content
    for place, given in _mappings(content):
        counts = Counter()
        for key in given:
            parts = key.split(".")
            counts.update(".".join(parts[:k]) for k in range(DEEP + 1) if is_own(".".join(parts[k:])))
        for prefix, n in counts.items():
            prefix = f"{prefix}." if prefix else ""
            found.append((n, -len(place) - prefix.count("."), place, prefix, given))
    if not found:
        return {_without_wrappers(str(key)): value for key, value in content.items()}
    most, _, place, prefix, given = max(found, key=lambda one: one[:2])
    others = [".".join((*there, start)) for n, _, there, start, _ in found if n == most and there != place]
    if place or prefix:
        where = " ".join([*(f"under {key!r}" for key in place), *([f"behind {prefix!r}"] if prefix else [])])
        aside = [key for key in given if not key.startswith(prefix)]
        left = f"; not of it: {some(aside, 1)}" if aside else ""
        print(f"notice: {what}: its weights lie {where}{left}{f'; not taken: {others[0]}' if others else ''}")
    return {key[len(prefix) :]: value for key, value in given.items() if key.startswith(prefix)}


def _mappings(content: Mapping, place: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Each mapping with tensors in it, where it lies, and its content by names without wrappers."""
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        yield place, {_without_wrappers(str(key)): value for key, value in content.items()}
    for key, value in content.items() if len(place) < DEEP else ():
        if isinstance(value, Mapping):
            yield from _mappings(value, (*place, str(key)))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class Loaded(NamedTuple):
    """How many of a module's names a checkpoint had, of how many, what was left out, in words; and all it holds."""

    loaded: int
    of: int
    faults: Sequence[str] = ()
    content: Mapping = {}

    def __str__(self) -> str:
        return "\n  skipped: ".join([f"{self.loaded}/{self.of} loaded", *self.faults])

    @property
    def pretrained_on(self) -> list[str]:
        """Whose unlabelled trials pretrain_csbrain.py read for these weights, as DATASET/PERSON; empty of others."""
        people = self.content.get("pretrained_on")
        return [one for one in people if isinstance(one, str)] if isinstance(people, list) else []


def load_weights(
    module: nn.Module, path: str | Path, allow_partial: bool = False, without: tuple[str, ...] = ()
) -> Loaded:
    """Load a checkpoint's weights into a module, wherever they lie in it: see `unwrapped`.

    allow_partial : bool. Skip tensors that are missing, unknown or misshapen, and list them; without it each is an
        error.
    without : tuple of str. What names of weights begin with that the module does not have: a head's.
    Raises UserError names every tensor that does not fit; with `allow_partial`, where less than 90 % of the module's
        names would be loaded.
    """
    wanted = module.state_dict()
    content = read_checkpoint(path)
    given = unwrapped(content, wanted.__contains__, str(path))
    given = {key: value for key, value in given.items() if not key.startswith(without)}
    faults = [f"{key} is missing" for key in wanted if key not in given]
    for key, value in given.items():
        if key not in wanted:
            faults.append(f"{key} is unknown")
        elif not isinstance(value, torch.Tensor) or value.shape != wanted[key].shape:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            faults.append(f"{key} is {shape}, expected {tuple(wanted[key].shape)}")
    misshapen = {fault.split(" ")[0] for fault in faults}
    fitting = {key: value for key, value in given.items() if key not in misshapen}
    shown = some(faults, 5, "; ")
    if len(fitting) < LEAST_LOADED * len(wanted):
        few = f"{len(fitting)} of {len(wanted)} names fit, --allow_partial needs {LEAST_LOADED:.0%}"
        raise UserError(f"{path} does not fit: {shown} ({few}: is it another model?)")
    if faults and not allow_partial:
        raise UserError(f"{path} does not fit: {shown} (--allow_partial loads the rest)")
    with loading(str(path), "its tensors do not fit"):
        module.load_state_dict(fitting, strict=False)
    return Loaded(len(fitting), len(wanted), faults, content)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights, names included."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + as_bytes(value))
    return digest.hexdigest()
