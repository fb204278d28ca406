"""What drawn pictures look like: the class whose caption a CLIP puts nearest to each, zero-shot.

Pictures that are drawn from decoded states belong to no decoded class; so what a reader sees is a read-out of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from datasets.store import description_of_store
from datasets.trials import TrialDataset
from models.clip_targets import image_targets, sentence_targets
from readers.captions import captions_of
from stages.clip_features import at_hand
from stages.clip_runs import ClipRun
from stages.pictures import fault_of, opened_whole
from stages.rows import PICTURE, Readout, Row
from utils.errors import UserError, loading

VIT_L = "openai/clip-vit-large-patch14"  # judges where no other CLIP is named, if it is at hand
Images = list[tuple[str, list[str]]]  # by label: a class's name, and its images


def images_of_classes(run: ClipRun) -> Images:
    """The images that a run was trained on, under their own classes, in a shuffled-label control too."""
    store, checkpoint = run.dataset.store, run.checkpoint
    description = description_of_store(str(store.path), checkpoint["dataset"])
    how = checkpoint["protocol"], description, store
    train = TrialDataset(str(store.path), "train", *how, granularity=checkpoint["granularity"])
    of_class: Images = [(name, []) for name in train.description.classes]
    for image, label in dict(zip((trial.image for trial in train.trials), train.labels, strict=True)).items():
        of_class[label][1].append(image)
    return of_class


def read_images(record: dict, path: Path, rows: Sequence[Row]) -> Images:
    """The images that run.json, `path`, names; none where it is of before. UserError where it is damaged."""
    with loading(str(path), "it is damaged; decode again"):
        of_class = [(str(name), [str(image) for image in images]) for name, images in record.get("trained_on", [])]
    if of_class and len(of_class) != next(iter(rows[0].readouts.values())).n_classes:
        raise UserError(f"{path} has images of {len(of_class)} classes, and its rows have others; decode again")
    return of_class


def class_vectors(of_class: Images, clip_model: str, captions: str | None, cache_dir: Path) -> torch.Tensor:
    """(K, D) CLIP embeddings of classes: the mean of their images' captions, else "This picture is …"."""
    caption_of = captions_of(Path(captions)) if captions else {}
    sentences = [sorted({caption_of[image] for image in images if image in caption_of}) for _, images in of_class]
    sentences = [
        known or [f"This picture is {name.replace('_', ' ')}"]
        for known, (name, _) in zip(sentences, of_class, strict=True)
    ]
    vectors = sentence_targets(clip_model, [text for known in sentences for text in known], cache_dir).float()
    parts = F.normalize(vectors, dim=-1).split(list(map(len, sentences)))
    return torch.stack([F.normalize(part.mean(dim=0), dim=-1) for part in parts])


def judge_pictures(
    rows: Sequence[Row],
    files: Sequence[Path],
    of_class: Images,
    clip_model: str | None,
    captions: str | None,
    cache: Path,
) -> dict[int, str]:
    """Give each row the read-out "picture"; take it away where nobody can judge, and say so.

    files : sequence of Path. The drawn pictures, in the order of the rows. What came out as no picture has no class.
    clip_model : str, optional. Local folder or hub address; default: `VIT_L`, where it is at hand.
    Returns dict: Row's index → the name of the class; empty where nobody judged.
    """
    clip_model = clip_model or (VIT_L if at_hand(VIT_L) else None)
    for row in rows:
        row.readouts.pop(PICTURE, None)
    if not clip_model or not of_class:
        lacking = "decode again" if clip_model else f"{VIT_L} is not at hand; --clip_model names another one"
        print(f"notice: nobody says what the pictures look like: {lacking}")
        return {}
    vectors = F.normalize(image_targets(clip_model, files, cache).float(), dim=-1)  # (N, D)
    like = vectors @ class_vectors(of_class, clip_model, captions, cache).T  # (N, K)
    for row, file, nearest in zip(rows, files, like.argmax(dim=1).tolist(), strict=True):
        row.readouts[PICTURE] = Readout(-1 if fault_of(opened_whole(file)) else nearest, 1 / len(of_class))
    return {row.index: (*(name for name, _ in of_class), "no class")[row.readouts[PICTURE].label] for row in rows}
