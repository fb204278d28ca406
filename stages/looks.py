"""What drawn pictures look like: the class of the training photo that a CLIP puts nearest to each.

Pictures that are drawn from decoded states belong to no decoded class; so what a reader sees is a read-out of its own.
"""

from collections.abc import Sequence
from pathlib import Path

from torch.nn import functional as F

from datasets.store import description_of_store
from datasets.trials import TrialDataset
from models.clip_targets import image_paths, image_targets
from stages.clip_features import at_hand
from stages.clip_runs import ClipRun
from stages.pictures import fault_of, opened_whole
from stages.rows import PICTURE, Readout, Row
from utils.errors import UserError, loading

VIT_L = "openai/clip-vit-large-patch14"  # judges where no other CLIP is named, if it is at hand
Photos = list[tuple[str, list[str]]]  # by label: a class's name and its training images


def photos_of_classes(run: ClipRun) -> Photos:
    """The photos that a run was trained on, under their own classes, in a shuffled-label control too."""
    store, checkpoint = run.dataset.store, run.checkpoint
    description = description_of_store(str(store.path), checkpoint["dataset"])
    how = checkpoint["protocol"], description, store
    train = TrialDataset(str(store.path), "train", *how, granularity=checkpoint["granularity"])
    of_class: Photos = [(name, []) for name in train.description.classes]
    for image, label in dict(zip((trial.image for trial in train.trials), train.labels, strict=True)).items():
        of_class[label][1].append(image)
    return of_class


def read_photos(record: dict, path: Path, rows: Sequence[Row]) -> Photos:
    """The photos that run.json, `path`, names; none where it is of before. UserError where it is damaged."""
    with loading(str(path), "it is damaged; decode again"):
        photos = [(str(name), [str(image) for image in images]) for name, images in record.get("photos", [])]
    if photos and len(photos) != next(iter(rows[0].readouts.values())).n_classes:
        raise UserError(f"{path} has photos of {len(photos)} classes, and its rows have others; decode again")
    return photos


def judge_pictures(
    rows: Sequence[Row],
    files: Sequence[Path],
    photos: Photos,
    images_dir: Path,
    clip_model: str | None,
    cache_dir: Path,
) -> dict[int, str]:
    """Give each row the read-out "picture"; take it away where nobody can judge, and say so.

    files : sequence of Path. The drawn pictures, in the order of the rows. What came out as no picture has no class.
    clip_model : str, optional. Local folder or hub address; default: `VIT_L`, where it is at hand.
    Returns dict: Row's index → the name of the class; empty where nobody judged.
    """
    clip_model = clip_model or (VIT_L if at_hand(VIT_L) else None)
    paths = [(label, path) for label, (_, of) in enumerate(photos) for path in image_paths(of, images_dir)]
    there = [(label, path) for label, path in paths if path.is_file()]
    for row in rows:
        row.readouts.pop(PICTURE, None)
    if not clip_model or not there:
        lacking = f"no training photo is in {images_dir}" if clip_model else f"{VIT_L} is not at hand; see --clip_model"
        print(f"notice: nobody says what the pictures look like: {lacking}")
        return {}
    vectors = (image_targets(clip_model, of, cache_dir).float() for of in (files, [path for _, path in there]))
    pictures, of_photos = (F.normalize(of, dim=-1) for of in vectors)  # (N, D), (M, D)
    for row, file, nearest in zip(rows, files, (pictures @ of_photos.T).argmax(dim=1).tolist(), strict=True):
        label = -1 if fault_of(opened_whole(file)) else there[nearest][0]
        row.readouts[PICTURE] = Readout(label, 1 / len(photos))
    return {row.index: (*(name for name, _ in photos), "no class")[row.readouts[PICTURE].label] for row in rows}
