"""What training and drawing read: where it comes from, whether it is there, and whole. For doctor.py, prepare_demo.py.

A check returns a mark and a text: ok; notice, which hinders nothing; missing; wrong. What it raises, `finding_of` makes
a finding. Libraries are imported inside the checks: that one is missing is a finding as well.
"""

import contextlib
import functools
import os
import re
import struct
from collections import Counter, namedtuple
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.description import SPLITS, DatasetDescription, load_description
from models import IMAGE_FAMILIES
from utils.errors import UserError, loading, reason
from utils.files import read_json, source_record
from utils.hub import address_in, hub_answers
from utils.paths import ROOT

Finding = tuple[str, str]
FINE = ("ok", "notice")  # marks with which a step can begin
NOT_CHECKED = "cannot be looked at"  # then nothing is said against the thing itself
# its kind; what `check` is given, the place or name first; how to get it; whether the step that needs it makes it
Need = namedtuple("Need", "kind check given get made", defaults=["", False])
# kind of model → what its loader must find: a file, or one of several
FILES = {
    "llm": ("config.json", "tokenizer_config.json", "tokenizer.json tokenizer.model"),
    "clip": ("config.json", "preprocessor_config.json"),
    "captioner": ("config.json", "preprocessor_config.json"),
    "image": ("model_index.json",),
}
FETCH = {  # what fetches what its loader reads
    "llm": "hf download {}",
    "clip": "hf download {} config.json preprocessor_config.json model.safetensors",
    "captioner": "hf download {}",
    "image": "python -c \"from diffusers import DiffusionPipeline as D; D.download('{}', use_safetensors=True)\"",
}
HALF = ("stabilityai/sdxl-turbo",)  # fetched in half precision: half of 14 GB
# of a complete dataset: folder in data/, raw files and their GB, GB of its store and of memory a worker, how to get it
Facts = namedtuple("Facts", "folder n_files raw_gb store_gb worker_gb get")

# ---------------------------------------------------------------- sizes and addresses: the tables of docs/


def table(file: str, columns: int) -> list[list[str]]:
    """The rows of the table with so many columns in a file of docs/."""
    with loading(f"docs/{file}", "restore it from the repository"):
        lines = (ROOT / "docs" / file).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return [row for row in rows if len(row) == columns][2:]  # below its head


@functools.cache
def known_models() -> dict[str, tuple[str, float]]:
    """A model's name, its hub address or its file there, and an address that was withdrawn → where it is now, GB."""
    known = {}
    for what, now, before, gb, *_ in table("weights.md", 6):
        known |= dict.fromkeys((what, *re.split("`, [a-z]+ `", now), before), (now, float(gb or 0)))
    return known


def size_of_model(given: Sequence[str]) -> float:
    """GB of a model that a `Need` is given, by the last of its names that the table has; 0 where it has none."""
    return next((known_models()[name][1] for name in reversed(given) if name in known_models()), 0)


@functools.cache
def facts_of(dataset: str) -> Facts:
    """What is said of a dataset, or of one that is not in the table."""
    for name, folder, *numbers, get in table("datasets.md", 7):
        if name == dataset:
            return Facts(folder, *(float(number or 0) for number in numbers), get)
    get = f"python prepare_data.py --downstream_dataset {dataset}"
    return Facts(dataset, len(load_description(dataset).all_files), 0, 0, 0, get)


def need_model(kind: str, name: str, **how) -> Need:
    """A model in a local folder or the hub's cache, under the address that it has now; of an IP-Adapter, its file."""
    if kind == "adapter":
        return Need("image", check_ip_adapter, ("h94/IP-Adapter", name), f"hf download h94/IP-Adapter {name}")
    address, gb = (name, 0) if os.path.isdir(name) else known_models().get(name, (name, 0))
    get = FETCH[kind].format(address) if may_be_address(name) else "name a folder that is there, or a hub address"
    get = get.replace("=True)", "=True, variant='fp16')") if address in HALF else get
    return Need(kind, check_model, (address, kind, gb), **({"get": get} | how))


# ---------------------------------------------------------------- findings


def finding_of(need: Need) -> Finding:
    """What a check finds; whatever it fails with is a finding as well."""
    try:
        mark, text = need.check(*need.given)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged file fails in many ways; what Rust panics with is no Exception
        name = f"{need.kind}, {need.given[0]}: {NOT_CHECKED}"
        absent = next((e for e in (error, error.__cause__) if isinstance(e, ModuleNotFoundError)), None)
        if absent:
            mark, text = "missing", f"{name} ({absent}); pip install -r requirements.txt"
        else:
            mark, text = "wrong", str(error) if isinstance(error, UserError) else f"{name} ({reason(error)})"
    return mark, " ".join(text.split())


def compared(text: str, absent: Sequence[str]) -> Finding:
    """Missing where something is absent, the first few by name; else ok."""
    names = f", not there: {', '.join(absent[:4])}{' …' if absent[4:] else ''}" if absent else ""
    return "missing" if absent else "ok", f"{text}{names}"


def amount(gb: float) -> str:
    """A size for people."""
    return f"{gb:.3g} GB" if gb >= 0.1 else f"{1e3 * gb:.2g} MB"


def size(files: Iterable[Path]) -> float:
    """GB of some files."""
    return sum(file.stat().st_size for file in files) / 1e9


# ---------------------------------------------------------------- recordings, stores, photos


def check_raw(folder: str, dataset: str, store: str, deep: bool, wanted: Sequence[str], some: bool = False) -> Finding:
    """How many recordings, and whether whole; of seen images, whether those of the people wanted are there.

    deep : bool. Read them, and compare them with a store's record of its sources. some : bool. A part is enough.
    """
    root = Path(folder)
    if not root.exists():
        return "missing", f"{folder}: no recordings of {dataset}"
    os.listdir(root)  # says so where it cannot be read
    description, known, faults = load_description(dataset), {}, []
    if description.raw_people:
        text, people = description.raw_people(root, deep)
        if people is None:
            return "notice", f"{folder}: {text}"
        return compared(f"{folder}: {text}", sorted(set(wanted) - set(people)))

    files, n_files = description.files(root), int(facts_of(dataset).n_files)
    if deep:
        with contextlib.suppress(UserError):  # no store is there, or a damaged one
            known = {of["name"]: of["sha256"] for of in opened_store(store, dataset).meta.get("sources", [])}
    for file in files:
        try:
            check_recording(file, description, known.get(file.name), deep)
        except UserError as error:
            faults.append(error)
    if faults:
        return "wrong", f"{folder}: {len(faults)} of {len(files)} recordings are not whole: {faults[0]}"
    from datasets.bci_competition import missing_files  # needs NumPy, which may be what is missing

    absent = missing_files(description.all_files, files)
    there = (
        n_files - len(absent) if description.all_files else len(files)
    )  # the competition's 2b has five files a person
    _, text = compared(f"{folder}: {there} of {n_files} recordings of {dataset}, {amount(size(files))}", absent)
    text += f", {sum(file.name in known for file in files)} checksums as in {store}" if known else ""
    return "ok" if there >= n_files else "notice" if some and files else "missing", text


def check_recording(path: Path, description: DatasetDescription, sha256: str | None, deep: bool) -> None:
    """Refuse one by its header, or of MATLAB v5 by the sizes of its variables; deep: by its content and checksum."""
    if not (end := path.stat().st_size):
        raise UserError(f"{path} is empty")
    if path.suffix.lower() != ".mat":
        from readers.gdf import check_gdf
        from readers.recordings import check_header, companions

        if path.suffix.lower() == ".gdf":
            check_gdf(path)
        check_header(path, description.montage.electrodes)
        companions(path)
    elif deep:
        from readers.matlab import check_mat

        check_mat(path)
    else:
        at = 128  # a header, then variables: type and number of bytes (4 each), content
        with open(path, "rb") as file:
            order = ">" if file.read(128)[126:] == b"MI" else "<"
            while file.seek(at) < end:
                kind, n = struct.unpack(f"{order}II", file.read(8).ljust(8, b"\0"))
                at += 8 + n if kind in (14, 15) else end + 1  # a matrix, plain or packed; nothing else is there
        if at != end or end == 128:
            raise UserError(f"{path} is truncated, or no MATLAB v5 file")
    if sha256 and source_record(path)["sha256"] != sha256:
        raise UserError(f"{path} is not the file that the store was made of")


def opened_store(path: str, dataset: str):  # noqa: ANN201 - whatever `open_store` makes
    """A store; UserError where it is of another dataset."""
    from datasets.store import open_store

    store = open_store(path)
    if store.meta.get("dataset", dataset) != dataset:
        raise UserError(f"{path} is a store of {store.meta['dataset']}; expected {dataset}")
    return store


def check_store(path: str, dataset: str, deep: bool, wanted: Sequence[str]) -> Finding:
    """A store's trials by published split; of seen images, whether the people wanted are there. deep: all samples."""
    if not Path(path).exists():
        return "missing", f"{path}: no store of {dataset}"
    store, description = opened_store(path, dataset), load_description(dataset)
    for trial in store.trials if deep else ():
        store.verify(trial)
    verified = "; all samples as written" if deep else ""
    if wanted:
        people, images = ({getattr(trial, field) for trial in store.trials} for field in ("subject", "image"))
        text = f"{path}: {len(store.trials)} trials of {dataset}, {len(people)} of {len(description.everyone)} people"
        return compared(f"{text}, {len(images)} images{verified}", sorted(set(wanted) - people))
    own_splits = store.own_splits.values()  # CBraMod's layout says them without reading the trials
    counts = Counter(own_splits or [description.split_of(trial.subject) for trial in store.trials])
    standard = {name: choices[0] for name, (choices, _) in description.options.items()}
    options = standard | (store.meta.get("options") or {})
    columns = description.closing(options, [], Counter())[0] if description.closing else {}
    expected = columns.get("complete") or columns.get("expected") or {}
    told = ", ".join(f"{s} {counts[s]}" + (f" of {expected[s]}" if s in expected else "") for s in SPLITS)
    text = f"{path}: {sum(counts.values())} trials of {dataset}: {told}{verified}"
    if not all(counts[split] for split in SPLITS):
        return "notice", f"{text}; --protocol published needs people of all three"
    return "ok" if all(counts[split] == n for split, n in expected.items()) else "notice", text


def photos_of(dataset: str) -> list[str]:
    """The photos that a description names; those of seen images are named by the trials of a store."""
    return [name for name in load_description(dataset).stimuli.values() if not name.startswith("arrow ")]


def check_photos(folder: str, dataset: str, store: str) -> Finding:
    """The photos that were seen; those that a description names are opened."""
    if names := photos_of(dataset):
        from utils.limits import opened_picture

        absent = [name for name in names if not (Path(folder) / name).is_file()]
        for name in set(names) - set(absent):
            with loading(f"{folder}/{name}", "fetch it again"), opened_picture(Path(folder) / name) as picture:
                picture.load()
        return compared(f"{folder}: {len(names) - len(absent)} of {len(names)} stimulus photos of {dataset}", absent)
    if not Path(folder).is_dir():
        return "missing", f"{folder}: no photos of {dataset}"
    if not Path(store).exists():
        return "notice", f"{folder}: which photos are needed there, the store will say"
    from models.clip_targets import image_paths

    images = sorted({trial.image for trial in opened_store(store, dataset).trials})
    paths = image_paths(images, Path(folder))
    absent = [image for image, path in zip(images, paths, strict=True) if not path.is_file()]
    return compared(f"{folder}: {len(images) - len(absent)} of {len(images)} photos of {dataset}", absent)


# ---------------------------------------------------------------- weights, checkpoints


def check_csbrain(path: str) -> Finding:
    """Whether all tensors fit, and are numbers."""
    if not Path(path).exists() and not address_in(path):
        return "missing", f"{path}: no such file"
    from models.CSBrain import CSBrain
    from utils.checkpoints import load_weights, must_be_finite, weights_file

    montage = load_description("VI").montage
    encoder = CSBrain.build(montage.brain_regions, montage.sorted_indices)
    loaded = load_weights(encoder, weights_file(path))
    with loading(path, "expected the published weights"):
        must_be_finite(encoder)
    return "ok", f"{path}: {loaded}"


def may_be_address(name: str) -> bool:
    """Whether a name looks like "owner/model"; as a folder it may still be there."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def folder_of(name: str, file: str) -> Path | None:
    """A model's folder, or else the snapshot in the hub's cache that has this file of it; None: there is neither."""
    if Path(name).is_dir() or not may_be_address(name):
        return Path(name) if Path(name).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file)
    return Path(cached.removesuffix(file)) if isinstance(cached, str) else None


def check_model(name: str, kind: str, gb: float) -> Finding:
    """Whether a model's loader finds what it reads, in a folder or in the hub's cache; gb: of what would be fetched."""
    needed = FILES[kind]
    if (root := folder_of(name, needed[0])) is None:
        from huggingface_hub import constants

        if not may_be_address(name):
            return "missing", f"{name}: no such folder"
        hub = "was not asked" if constants.HF_HUB_OFFLINE else "answers" if hub_answers() else "cannot be reached"
        where = f"{name} ({gb:g} GB)" if gb else name
        return "missing", f"{where}: no such folder, and not in the hub's cache; the hub {hub}"
    absent = [files.split()[0] for files in needed if not any((root / file).is_file() for file in files.split())]
    if kind == "llm" and not absent and not (root / "chat_template.jinja").is_file():
        absent = [] if "chat_template" in read_json(root / "tokenizer_config.json") else ["chat_template.jinja"]
    if absent:
        raise UserError(f"{name}: cannot be loaded, {root} has no {', '.join(absent)}")
    parts = [root]
    if kind == "llm":
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        if (of := read_json(root / "config.json").get("model_type")) not in KNOWN:
            none = "no language model that transformers knows without code of the folder's"
            raise UserError(f"{name} is a {of!r}, which is {none}")
    elif kind == "image":
        index = read_json(root / "model_index.json")
        if index.get("_class_name") not in IMAGE_FAMILIES:
            raise UserError(f"{name} is a {index.get('_class_name')}; expected one of {', '.join(IMAGE_FAMILIES)}")
        parts = [root / part for part, of in index.items() if isinstance(of, list) and of[0]]
        if absent := [part.name for part in parts if not part.is_dir()]:
            raise UserError(f"{name}: cannot be loaded, {root} has no folder {', '.join(absent)}")
        parts = [part for part in parts if (part / "config.json").is_file()]  # the others have no weights
    where = "" if root == Path(name) else f" in {root}"
    return "ok", f"{name}: {amount(sum(map(weights_gb, parts)))} of safetensors{where}"


def weights_gb(folder: Path, stems: Sequence[str] = ("model", "diffusion_pytorch_model")) -> float:
    """GB of the safetensors that a loader reads in a folder; UserError where they are missing or cut off."""
    from safetensors import safe_open

    for stem in [*stems, *(f"{stem}.fp16" for stem in stems)]:
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file() or index.is_file():
            names = [whole.name] if whole.is_file() else sorted(set(read_json(index)["weight_map"].values()))
            for name in names:
                with loading(f"{folder}/{name}", "fetch it again"), safe_open(folder / name, framework="np"):
                    pass  # compares the file's size with its table
            return size(folder / name for name in names)
    pickled = [file.name for file in folder.glob("*.bin")]
    why = f"; {pickled[0]} is a pickle, which may run code, and is not read" if pickled else ""
    raise UserError(f"{folder} has no {stems[0]}.safetensors{why}")


def check_ip_adapter(name: str, file: str) -> Finding:
    """An IP-Adapter's file: alone, in a folder of the hub's layout, or in the hub's cache."""
    from safetensors import safe_open

    path = Path(name) if Path(name).is_file() else (folder_of(name, file) or Path(name)) / file
    if not path.is_file():
        return "missing", f"{name}: no {file} there, nor in the hub's cache"
    with loading(str(path), "fetch it again"), safe_open(path, framework="np") as tensors:
        if not any(key.startswith("ip_adapter.") for key in tensors.keys()):  # noqa: SIM118 - no mapping
            raise UserError(f"{path} is no IP-Adapter")
    return "ok", f"{name}: {file}, {amount(size([path]))}"


def check_assets(folder: str) -> Finding:
    """The shipped weights of the tiny models."""
    parts = ("stable-diffusion/unet", "stable-diffusion/vae", "amused/transformer", "amused/vqvae", "clip")
    return "ok", f"{folder}: {amount(sum(weights_gb(Path(folder) / part) for part in parts))} of shipped tiny models"


def check_run(place: str, trains: str, dataset: str) -> Finding:
    """A run's best checkpoint, of the kind that it trains, and the adapter that belongs to it."""
    if not Path(place).exists() and not address_in(place):
        return "missing", f"{place}: no trained checkpoint"
    from stages.checkpoints import check_dataset, find_text_checkpoint, read_run_checkpoint

    path, checkpoint = read_run_checkpoint(Path(place), trains)
    check_dataset(path, checkpoint, load_description(dataset))
    if trains == "text":
        from models.eeg_llm import read_lora_settings

        _, adapter = find_text_checkpoint(path, None)
        read_lora_settings(adapter)
        weights_gb(adapter, ("adapter_model",))
    return "ok", f"{path}: trained on {dataset}"
