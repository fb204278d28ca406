"""What pipelines of seen images need of a machine: recordings, stores whose trials have an image each, photos, adapters. For doctor.py."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stages.machine import amount, opened_store
from utils.errors import UserError, loading


class ImageFacts(NamedTuple):
    """A complete dataset of seen images: folder under data/, people, GB of its raw files and of its store."""

    folder: str
    people: tuple[str, ...]
    raw_gb: float
    store_gb: float


IMAGE_FACTS = {  # docs/datasets.md
    "THINGS": ImageFacts("THINGS", tuple(f"sub-{k:02d}" for k in range(1, 11)), 130, 52),
    "EEGImageNet": ImageFacts("EEGImageNet", tuple(f"S{k:02d}" for k in range(16)), 16, 7.9),
}
ASK = "ask the authors of arXiv 2406.07151 (docs/datasets.md)"


def check_recordings(folder: str, dataset: str, deep: bool, wanted: Sequence[str]) -> tuple[str, str]:
    """People whose files are there, against those that are wanted; deep, and always of EEG-ImageNet: the files are opened."""
    root = Path(folder)
    if not root.exists():
        return "missing", f"{folder}: no recordings of {dataset}"
    if dataset == "EEGImageNet":
        from datasets.eeg_imagenet_dataset import pieces

        paths = sorted(root.glob("*.pth"))
        pieces(paths)
        size = amount(sum(path.stat().st_size for path in paths) / 1e9)
        mark = "ok" if len(paths) > 1 else "notice" if paths else "missing"
        return mark, f"{folder}: {len(paths)} .pth of {dataset}, {size}"
    from datasets.things_dataset import SESSIONS, SUBJECTS, layout_of, pieces

    kinds = {subject: kind for subject in SUBJECTS if (kind := layout_of(root / subject))}
    if deep:
        pieces(root, list(kinds), SESSIONS, None)
    text = f"{folder}: {len(kinds)} of {len(SUBJECTS)} people of {dataset}"
    text += f" ({', '.join(f'{subject} {kind}' for subject, kind in kinds.items())})" if kinds else ""
    return _against(wanted, kinds, text)


def check_image_store(path: str, dataset: str, deep: bool, wanted: Sequence[str]) -> tuple[str, str]:
    """A store's trials, people (against those that are wanted) and images; deep: all samples against their checksums."""
    if not Path(path).exists():
        return "missing", f"{path}: no store of {dataset}"
    store = opened_store(path, dataset)
    for trial in store.trials if deep else ():
        store.verify(trial)
    people = {trial.subject for trial in store.trials}
    images = {trial.image for trial in store.trials}
    of = len(IMAGE_FACTS[dataset].people)
    text = f"{path}: {len(store.trials)} trials of {dataset}, {len(people)} of {of} people, {len(images)} images"
    return _against(wanted, people, f"{text}{'; all samples as written' if deep else ''}")


def _against(wanted: Sequence[str], there: Iterable[str], text: str) -> tuple[str, str]:
    lacking = sorted(set(wanted) - set(there))
    return (
        ("missing", f"{text}, not there: {', '.join(lacking[:4])}{' …' if lacking[4:] else ''}")
        if lacking
        else ("ok", text)
    )


def check_photos(folder: str, dataset: str, store: str) -> tuple[str, str]:
    """The photos that the trials of a store name."""
    if not Path(folder).is_dir():
        return "missing", f"{folder}: no photos of {dataset}"
    if not Path(store).exists():
        return "notice", f"{folder}: which photos are needed there, the store will say"
    from stages.retrieval import image_paths

    images = sorted({trial.image for trial in opened_store(store, dataset).trials})
    absent = [
        image for image, path in zip(images, image_paths(images, Path(folder)), strict=True) if not path.is_file()
    ]
    text = f"{folder}: {len(images) - len(absent)} of {len(images)} photos of {dataset}"
    return (
        ("missing", f"{text}, not there: {', '.join(absent[:3])}{' …' if absent[3:] else ''}")
        if absent
        else ("ok", text)
    )


def check_ip_adapter(name: str, file: str) -> tuple[str, str]:
    """An IP-Adapter's file in a folder of the hub's layout, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from safetensors import safe_open

    path = Path(name) if Path(name).is_file() else Path(name) / file
    if not path.is_file():
        cached = try_to_load_from_cache(name, file) if not Path(name).exists() else None
        if not isinstance(cached, str):
            return "missing", f"{name}: no {file} there, nor in the hub's cache"
        path = Path(cached)
    with loading(str(path), "fetch it again"), safe_open(path, framework="np") as tensors:
        if not any(key.startswith("ip_adapter.") for key in tensors.keys()):  # noqa: SIM118 - no mapping
            raise UserError(f"{path} is no IP-Adapter")
    return "ok", f"{name}: {file}, {amount(path.stat().st_size / 1e9)}"
