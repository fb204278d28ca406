"""What training and drawing read: whether it is there, and whole. For doctor.py; prepare_demo.py checks its CSBrain.pth.

A check returns a mark and a text: ok; notice, which hinders nothing; missing; wrong. Or it raises: wrong as well. Libraries are
imported inside the checks, so that one that is not installed is a finding of the check that needs it.
"""

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.description import SPLITS, DatasetDescription, load_description
from models import IMAGE_FAMILIES
from utils.errors import UserError, loading
from utils.files import read_json, source_record
from utils.hub import hub_answers

Finding = tuple[str, str]
# kind of model → what its loader must find: a file, or one of several
FILES = {
    "llm": ("config.json", "tokenizer_config.json", "tokenizer.json tokenizer.model"),
    "clip": ("config.json", "preprocessor_config.json"),
    "captioner": ("config.json", "preprocessor_config.json"),
    "image": ("model_index.json",),
}
SHIPPED = ("stable-diffusion/unet", "stable-diffusion/vae", "amused/transformer", "amused/vqvae", "clip")  # demo/assets


def amount(gb: float) -> str:
    """A size for people."""
    return f"{gb:.3g} GB" if gb >= 0.1 else f"{1e3 * gb:.2g} MB"


def size(files: Iterable[Path]) -> float:
    """GB of some files."""
    return sum(file.stat().st_size for file in files) / 1e9


def compared(text: str, absent: Sequence[str]) -> Finding:
    """Missing where something is absent, the first few by name; else ok."""
    if not absent:
        return "ok", text
    return "missing", f"{text}, not there: {', '.join(absent[:4])}{' …' if absent[4:] else ''}"


# ---------------------------------------------------------------- recordings, stores, photos


def check_raw(folder: str, dataset: str, n_files: int, store: str, deep: bool, some: bool = False) -> Finding:
    """How many recordings, and whether whole; deep: as the store's record of its sources says; some: are enough."""
    description = load_description(dataset)
    if description.files is None or not Path(folder).exists():
        return "missing", f"{folder}: no recordings of {dataset}"
    os.listdir(folder)  # says so where it cannot be read
    files, known, faults = description.files(Path(folder)), {}, []
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
    absent = sorted(set(description.all_files) - {file.name for file in files})
    _, text = compared(f"{folder}: {len(files)} of {n_files} recordings of {dataset}, {amount(size(files))}", absent)
    text += f", {sum(file.name in known for file in files)} checksums as in {store}" if known else ""
    return "ok" if len(files) >= n_files else "notice" if some and files else "missing", text


def check_recording(path: Path, description: DatasetDescription, sha256: str | None, deep: bool) -> None:
    """Raise UserError for what its header, or of MATLAB v5 the sizes of its variables, says against it; deep: its content as well."""
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    if path.suffix.lower() != ".mat":
        from readers.recordings import check_header, companions

        check_header(path, description.montage.electrodes)
        companions(path)
    elif deep:
        from readers.matlab import check_mat

        check_mat(path)
    else:
        at, end = 128, path.stat().st_size  # a header, then variables: type and number of bytes (4 each), content
        with open(path, "rb") as file:
            order = ">" if file.read(128)[126:] == b"MI" else "<"
            while file.seek(at) < end:
                kind, n = struct.unpack(f"{order}II", file.read(8).ljust(8, b"\0"))
                at += 8 + n if kind in (14, 15) else end + 1  # a matrix, plain or packed; nothing else is there
        if at != end or end == 128:
            raise UserError(f"{path} is truncated, or no MATLAB v5 file")
    if sha256 and source_record(path)["sha256"] != sha256:
        raise UserError(f"{path} is not the file that the store was made of")


def check_people(folder: str, dataset: str, deep: bool, wanted: Sequence[str]) -> Finding:
    """Whose recordings of seen images are there, of those wanted; deep, and always of EEG-ImageNet: the files are opened."""
    root = Path(folder)
    if not root.exists():
        return "missing", f"{folder}: no recordings of {dataset}"
    if dataset == "EEGImageNet":
        from datasets.eeg_imagenet_dataset import pieces

        paths = sorted(root.glob("*.pth"))
        pieces(paths)
        mark = "ok" if len(paths) > 1 else "notice" if paths else "missing"
        return mark, f"{folder}: {len(paths)} .pth of {dataset}, {amount(size(paths))}"
    from datasets.things_dataset import SESSIONS, SUBJECTS, layout_of, pieces

    kinds = {subject: kind for subject in SUBJECTS if (kind := layout_of(root / subject))}
    if deep:
        pieces(root, list(kinds), SESSIONS, None)
    named = f" ({', '.join(f'{subject} {kind}' for subject, kind in kinds.items())})" if kinds else ""
    return compared(f"{folder}: {len(kinds)} of {len(SUBJECTS)} people of {dataset}{named}", sorted(set(wanted) - set(kinds)))


def opened_store(path: str, dataset: str):  # noqa: ANN201 - whatever `open_store` makes
    """A store; UserError where it is of another dataset."""
    from datasets.store import open_store

    store = open_store(path)
    if store.meta.get("dataset", dataset) != dataset:
        raise UserError(f"{path} is a store of {store.meta['dataset']}; expected {dataset}")
    return store


def check_store(path: str, dataset: str, deep: bool, wanted: Sequence[str] = (), n_people: int = 0) -> Finding:
    """A store's trials, by published split against the complete dataset's, or of seen images people and images.

    deep : bool. Compare all samples with their checksums. wanted, n_people : of seen images, who has to be there, and of how many.
    """
    if not Path(path).exists():
        return "missing", f"{path}: no store of {dataset}"
    store, description = opened_store(path, dataset), load_description(dataset)
    for trial in store.trials if deep else ():
        store.verify(trial)
    verified = "; all samples as written" if deep else ""
    if wanted:
        people, images = ({getattr(trial, of) for trial in store.trials} for of in ("subject", "image"))
        told = f"{len(people)} of {n_people} people, {len(images)} images{verified}"
        return compared(f"{path}: {len(store.trials)} trials of {dataset}, {told}", sorted(set(wanted) - people))
    own_splits = store.own_splits.values()  # CBraMod's layout says them without reading the trials
    counts = Counter(own_splits or [description.split_of(trial.subject) for trial in store.trials])
    expected = expected_trials(description, store.meta.get("options") or {})
    told = ", ".join(f"{s} {counts[s]}" + (f" of {expected[s]}" if s in expected else "") for s in SPLITS)
    text = f"{path}: {sum(counts.values())} trials of {dataset}: {told}{verified}"
    if not all(counts[split] for split in SPLITS):
        return "notice", f"{text}; --protocol published needs people of all three"
    return "ok" if all(counts[split] == n for split, n in expected.items()) else "notice", text


def expected_trials(description: DatasetDescription, options: dict) -> dict[str, int]:
    """Trials of the complete dataset by published split; {} where its description does not say."""
    standard = {name: choices[0] for name, (choices, _) in description.options.items()}
    columns = description.closing(standard | options, [], Counter())[0] if description.closing else {}
    return columns.get("complete") or columns.get("expected") or {}


def check_photos(folder: str, dataset: str, store: str) -> Finding:
    """The photos that were seen: those that a description names, opened; or those that the trials of a store name."""
    names = [name for name in load_description(dataset).stimuli.values() if not name.startswith("arrow ")]
    if names:
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
    there = [path.is_file() for path in image_paths(images, Path(folder))]
    absent = [image for image, found in zip(images, there, strict=True) if not found]
    return compared(f"{folder}: {sum(there)} of {len(images)} photos of {dataset}", absent)


# ---------------------------------------------------------------- weights, checkpoints


def check_csbrain(path: str) -> Finding:
    """Whether all tensors fit, and are numbers."""
    if not Path(path).is_file():
        return "missing", f"{path}: no such file"
    from models.CSBrain import CSBrain
    from utils.checkpoints import load_weights, must_be_finite

    montage = load_description("VI").montage
    encoder = CSBrain.build(montage.brain_regions, montage.sorted_indices)
    loaded = load_weights(encoder, path)
    with loading(path, "put the published file there"):
        must_be_finite(encoder)
    return "ok", f"{path}: {loaded}"


def check_model(name: str, kind: str, gb: float) -> Finding:
    """A model's folder, or its snapshot in the hub's cache: whether its loader finds there what it reads; gb: of a download."""
    if (root := found_at(name, FILES[kind][0])) is None:
        from huggingface_hub import constants

        if not may_be_address(name):
            return "missing", f"{name}: no such folder"
        hub = "was not asked" if constants.HF_HUB_OFFLINE else "answers" if hub_answers() else "cannot be reached"
        download = f" ({gb:g} GB)" if gb else ""
        return "missing", f"{name}{download}: no such folder, and not in the hub's cache; the hub {hub}"
    absent = [files.split()[0] for files in FILES[kind] if not any((root / file).is_file() for file in files.split())]
    if kind == "llm" and not absent and not (root / "chat_template.jinja").is_file():
        absent = [] if "chat_template" in read_json(root / "tokenizer_config.json") else ["chat_template.jinja"]
    if absent:
        raise UserError(f"{name}: cannot be loaded, {root} has no {', '.join(absent)}")
    parts = [root]
    if kind == "llm":
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        if (is_a := read_json(root / "config.json").get("model_type")) not in KNOWN:
            raise UserError(f"{name} is a {is_a!r}, which is no language model that transformers knows without code of the folder's")
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


def may_be_address(name: str) -> bool:
    """Whether a name looks like "owner/model"; as a folder it may still be there."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def found_at(name: str, file: str) -> Path | None:
    """A model's folder, or else the snapshot in the hub's cache that has a file of it; None where there is neither."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file) if may_be_address(name) else None
    return Path(cached.removesuffix(file)) if isinstance(cached, str) else None


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
            return size(folder / file for file in files)
    pickled = [file.name for file in folder.glob("*.bin")]
    why = f"; {pickled[0]} is a pickle, which may run code, and is not read" if pickled else ""
    raise UserError(f"{folder} has no {stems[0]}.safetensors{why}")


def check_ip_adapter(name: str, file: str) -> Finding:
    """An IP-Adapter's file, alone, in a folder of the hub's layout, or in the hub's cache."""
    from safetensors import safe_open

    path = Path(name) if Path(name).is_file() else (found_at(name, file) or Path()) / file
    if not path.is_file():
        return "missing", f"{name}: no {file} there, nor in the hub's cache"
    with loading(str(path), "fetch it again"), safe_open(path, framework="np") as tensors:
        if not any(key.startswith("ip_adapter.") for key in tensors.keys()):  # noqa: SIM118 - no mapping
            raise UserError(f"{path} is no IP-Adapter")
    return "ok", f"{name}: {file}, {amount(size([path]))}"


def check_assets(folder: str) -> Finding:
    """The shipped weights of the tiny models."""
    return "ok", f"{folder}: {amount(sum(weights_gb(Path(folder) / part) for part in SHIPPED))} of shipped tiny models"


def check_run(place: str, trains: str, dataset: str) -> Finding:
    """A run's best checkpoint, of the kind that was trained."""
    if not Path(place).exists():
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
