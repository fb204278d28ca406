"""CLIP embeddings that others have computed: ATM's .pt, NICE's .npy, UBP's by image; checked against the images.

A row an image, in the order of the data set's codes, unless the file names its images. ATM: `img_features`
(16,540, D) in ViT-H-14_features_train.pt, (200, D) in _test.pt, `text_features` beside them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from models.clip_targets import image_paths, image_targets
from readers.pickles import field, read_pickled, texts
from readers.stored_array import StoredArray, whole
from utils.errors import UserError, loading
from utils.files import source_record
from utils.hub import model_identity

KEYS = ("img_features", "image_features", "clip_features", "features")
NAMES = ("img", "images", "image_names", "paths", "files")
PERMUTATIONS = 20  # of rows, against which their own order must stand out
COMPARED = 16  # images that the model embeds anew, where it is there


def image_vectors(
    images: Sequence[str],
    store,
    images_dir: Path,
    clip_model: str,
    cache_dir: Path,
    files: Sequence[str] | None,
    blur: Sequence[float] | None = None,
) -> torch.Tensor:
    """(N, D) float16 CLIP embeddings of images: out of `files`, or by the model. `store`: whose images they are."""
    if not files:
        return image_targets(clip_model, image_paths(images, images_dir), cache_dir, blur or ())
    if any(blur or ()):
        raise UserError("--blur goes with the model itself, and not with --clip_features that others have computed")
    vector_of, _ = read_clip_features(files, orders(store))
    if lacking := [image for image in images if image not in vector_of]:
        raise UserError(
            f"--clip_features {' '.join(files)}: no row of {lacking[0]} and {len(lacking) - 1} more of the images; "
            "name the files of training and of test images"
        )
    compare_with_model(vector_of, images, images_dir, clip_model, cache_dir, files)
    return torch.stack([vector_of[image] for image in images])


def sentence_vectors(images: Sequence[str], store, files: Sequence[str] | None) -> list[torch.Tensor] | None:
    """CLIP embeddings of the sentence of each image, out of `files`; None where they have none."""
    _, sentence_of = read_clip_features(files, orders(store)) if files else ({}, {})
    return [sentence_of[image] for image in images] if all(image in sentence_of for image in images) else None


def identity(clip_model: str, files: Sequence[str] | None) -> str:
    """What a checkpoint keeps of where its targets come from: the model's files, or those of the features."""
    if not files:
        return model_identity(clip_model)
    sums = "".join(sorted(source_record(Path(file))["sha256"] for file in files))
    return f"features {hashlib.sha256(sums.encode()).hexdigest()}"


def orders(store) -> dict[str, list[str]]:
    """A store's images by part, in the order of their codes; empty where codes have none."""
    images = store.meta.get("options", {}).get("images")
    return images if isinstance(images, dict) else {}


def read_clip_features(files: Sequence[str], order: Mapping[str, Sequence[str]]) -> tuple[dict, dict]:
    """Image → (D,) float16 of the image, and of its sentence where a file has any.

    order : mapping of part to images, in the order of rows. Empty: the files must name their images.
    Raises UserError where a file is none of these layouts, its number of rows is not that of the images, its rows are
        in another order as far as can be told, or files have several widths.
    """
    found: dict[str, torch.Tensor] = {}
    sentences: dict[str, torch.Tensor] = {}
    for file in map(Path, files):
        with loading(f"--clip_features {file}", "expected a row an image"):
            rows, names, text = _content(file)
        images = [image for part in order.values() for image in part]
        if names is None:
            names = _by_number(file, len(rows), order)
            _check_order(file, rows, names, text)
        else:
            known = {_tail(image): image for image in images}
            if order and (strange := next((name for name in names if _tail(name) not in known), None)):
                raise UserError(f"--clip_features {file} has a row of {strange}, which is none of the store's images")
            names = [known.get(_tail(name), name) for name in names]
        found |= dict(zip(names, rows, strict=True))
        concepts = {folder: k for k, folder in enumerate(dict.fromkeys(_tail(name).split("/")[0] for name in names))}
        if text is not None and len(text) in (len(rows), len(concepts)):
            places = range(len(rows)) if len(text) == len(rows) else [concepts[_tail(n).split("/")[0]] for n in names]
            sentences |= {name: text[k] for name, k in zip(names, places, strict=True)}
    if len(widths := {len(row) for row in found.values()}) > 1:
        raise UserError(
            f"--clip_features: rows of {' and '.join(map(str, sorted(widths)))} numbers; are both of one CLIP?"
        )
    return found, sentences


def _tail(image: str) -> str:
    return "/".join(image.replace("\\", "/").split("/")[-2:])


def _content(file: Path) -> tuple[torch.Tensor, list[str] | None, torch.Tensor | None]:
    """Rows (N, D), the images' names where it says them, and rows of sentences where it has any."""
    content = read_pickled(file)
    names, text = None, None
    if isinstance(content, dict):
        key = next((key for key in KEYS if key in content), None)
        names = next((field(file, content, name, texts) for name in NAMES if name in content), None)
        text = _rows(file, content["text_features"]) if _is_array(content.get("text_features")) else None
        content = content if key is None else content[key]
    if isinstance(content, dict):
        if not content or not all(isinstance(k, str) and _is_array(v) for k, v in content.items()):
            some = ", ".join(map(str, list(content)[:5]))
            raise UserError(f"--clip_features {file} has {some or 'nothing'}; expected {KEYS[0]}, or a row an image")
        names, content = list(content), np.stack([np.asarray(whole(v), np.float32).ravel() for v in content.values()])
    rows = _rows(file, content)
    if names is not None and len(names) != len(rows):
        raise UserError(f"--clip_features {file} has {len(rows)} rows and {len(names)} names of images")
    return rows, names, text


def _is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, StoredArray))


def _rows(file: Path, value: object) -> torch.Tensor:
    """(N, D) float16; axes of ones, and those of concepts and their images, become one."""
    array = np.asarray(whole(value))
    if array.dtype.kind != "f" or array.ndim < 2 or not array.size:
        what = f"{array.dtype} {array.shape}" if _is_array(value) else type(value).__name__
        raise UserError(f"--clip_features {file} holds {what}; expected an array of a row an image")
    rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
    good = np.isfinite(rows).all(axis=1) & (np.abs(rows).max(axis=1) > 0)
    if not good.all():
        raise UserError(f"--clip_features {file}: row {int(np.argmin(good)) + 1} is NaN, infinite or all zero")
    return torch.from_numpy(rows).half()


def _by_number(file: Path, n: int, order: Mapping[str, Sequence[str]]) -> list[str]:
    """The images of a file that does not name them: of the part that has as many."""
    fits = {part: list(images) for part, images in order.items() if len(images) == n}
    if len(fits) > 1:
        fits = {part: images for part, images in fits.items() if part.startswith("test") == ("test" in file.name)}
    if not fits:
        sizes = " or ".join(f"{len(images)} ({part})" for part, images in order.items())
        raise UserError(
            f"--clip_features {file} has {n} rows, and names no images; expected {sizes or 'names'}, a row an image"
        )
    return next(iter(fits.values()))


def _check_order(file: Path, rows: torch.Tensor, images: Sequence[str], text: torch.Tensor | None) -> None:
    """Raise UserError where rows are in another order, as far as they tell.

    Images of one concept are more alike than others, and an image is more like its own sentence than like others.
    """
    folders = [image.split("/")[-2] for image in images]
    place = torch.tensor([list(dict.fromkeys(folders)).index(folder) for folder in folders])
    n_concepts, unit, found = int(place.max()) + 1, _centred(rows), []
    if text is not None and len(text) not in (len(rows), n_concepts):
        raise UserError(f"--clip_features {file} has {len(rows)} images and {len(text)} sentences; expected as many")
    if 1 < n_concepts < len(rows):

        def alike(order: torch.Tensor) -> float:
            sums = torch.zeros(n_concepts, unit.shape[1]).index_add_(0, place[order], unit)
            return float((sums**2).sum())

        found.append(("the rows of a concept's images are no more alike than any others", alike))
    if text is not None and n_concepts > 1:
        own = _centred(text)[torch.arange(len(rows)) if len(text) == len(rows) else place]
        found.append(("images are no more like their sentences than others", lambda k: float((unit * own[k]).sum())))
    if len(rows) < 4 or not found:
        print(f"notice: {file}: its rows are taken in the order of the images' codes; it does not name them")
        return
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(rows), generator=generator) for _ in range(PERMUTATIONS)]
    for what, measure in found:
        most = max(map(measure, orders))  # of a few rows, their own order may be among them
        if measure(torch.arange(len(rows))) < most - 1e-6 * abs(most):
            raise UserError(
                f"--clip_features {file}: {what}; expected the order of codes, {images[0]} first, or names of images "
                "in the file"
            )


def _centred(rows: torch.Tensor) -> torch.Tensor:
    """(N, D) of unit length, what all rows share taken off."""
    return F.normalize(rows.float() - rows.float().mean(dim=0), dim=1)


def at_hand(model: str) -> bool:
    """Whether a model lies on this machine: a folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return Path(model).is_dir() or isinstance(try_to_load_from_cache(model, "model.safetensors"), str)


def compare_with_model(
    vector_of: Mapping[str, torch.Tensor],
    images: Sequence[str],
    images_dir: Path,
    clip_model: str,
    cache_dir: Path,
    files,
) -> None:
    """Embed some images anew, where the model and the photos are at hand: their own rows must be the nearest.

    Raises UserError where they are not: another order, or another model.
    """
    there = [(i, p) for i, p in zip(images, image_paths(images, images_dir), strict=True) if p.is_file()]
    some, anew = there[:: max(1, len(there) // COMPARED)][:COMPARED], None
    if some and at_hand(clip_model):  # else nothing is fetched: that is why somebody else's are taken
        anew = image_targets(clip_model, [path for _, path in some], cache_dir).float()
    every = F.normalize(torch.stack([vector_of[image] for image in images]).float(), dim=1)
    if anew is None or anew.shape[1] != every.shape[1]:
        why = (
            f"not compared with --clip_model {clip_model}: it, or the photos, are not at hand, or it has another width"
        )
        print(f"notice: {' '.join(map(str, files))}: {why}")
        return
    nearest = (F.normalize(anew, dim=1) @ every.T).argmax(dim=1).tolist()
    for (image, _), k in zip(some, nearest, strict=True):
        if not torch.allclose(every[k], every[images.index(image)], atol=1e-2):
            raise UserError(
                f"--clip_features {' '.join(map(str, files))}: --clip_model {clip_model} gives for {image} what is the "
                f"row of {images[k]}; the rows are in another order, or of another model"
            )
