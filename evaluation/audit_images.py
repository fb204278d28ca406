"""Pictures and captions: a test picture among those that were trained on, a caption that names the class."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.splits import Split
from evaluation.findings import Finding, first_of
from models.clip_targets import image_paths
from stages.captions import captions_of
from stages.scores import percent
from utils.errors import UserError
from utils.limits import opened_picture
from utils.photos import as_seen
from utils.progress import progress

EDGE = 24  # pixels of the small pictures that are compared
SAME = 0.995  # their correlation, from which on they are one; drawings of one thing reach 0.991
CROPPED = (1.0, 0.95, 0.9, 0.85, 0.8)  # shares of a picture's edges that are compared, around its middle
NAMED = 0.5  # share of captions that name their image's class, from which on it is worth a notice


def image_findings(splits: Split, images_dir: Path | None, repeats: bool) -> Iterator[Finding]:
    """No test picture in training or validation under another name: by its bytes, or by what it looks like.

    What a picture looks like is its colours on 24 × 24 places, standardised, whatever its size and file format; test
    pictures are also mirrored, turned, and cut to their middle.

    repeats : bool. Whether the protocol tests on pictures that were trained on.
    """
    images = {mode: {trial.image for trial in of_split} - {""} for mode, of_split in splits.items()}
    tested, others = images.get("test", set()), images.get("train", set()) | images.get("val", set())
    if not tested or not others:
        return
    names = sorted({*tested, *others})
    there = {} if images_dir is None else dict(zip(names, image_paths(names, images_dir), strict=True))
    there = {image: path for image, path in there.items() if path.is_file()}
    if missing := [image for image in names if image not in there]:
        where = f"{missing[0]} and {len(missing) - 1} more are not in {images_dir}; --stimuli_dir names their folder"
        yield Finding("cannot", "images", f"whether pictures are the same: {where}")
    tested, others = (sorted(part & set(there)) for part in (tested, others))
    if not tested or not others:
        return
    digest = {image: hashlib.sha256(path.read_bytes()).digest() for image, path in there.items()}
    same = {(a, b) for a, b in product(tested, others) if a != b and digest[a] == digest[b]}
    found = dict.fromkeys(same, 2.0)  # their likeness stands for more than 1
    looks, unread = {}, []
    for image in progress([*tested, *others], desc="pictures", unit="picture", leave=False):
        try:
            looks[image] = _small(there[image])
        except Exception:  # whatever a file that is no picture makes Pillow say
            unread.append(image)
    if unread:
        yield Finding("cannot", "images", f"{unread[0]} and {len(unread) - 1} more are no pictures that can be read")
    for image, other, like in _alike([i for i in tested if i in looks], [i for i in others if i in looks], looks):
        found.setdefault((image, other), like)
    kind, words = "notice" if repeats else "BREACH", []
    for (image, other), like in sorted(found.items(), key=lambda one: -one[1]):
        how = "the same bytes" if like > 1 else f"the same picture (correlation {like:.3f})"
        words.append(f"{image} (test) and {other} (trained on) are {how}")
    yield from first_of(kind, "images", words, "pairs are alike")
    if not found:
        counts = f"{len(tested)} test pictures, {len(others)} trained on"
        yield Finding("ok", "images", f"{counts}: none is another in bytes or looks")


def _small(path: Path) -> list[np.ndarray]:
    """A picture as it is seen, (24, 24, 3), whole and cut to its middle."""
    with opened_picture(path) as picture:
        picture.draft("RGB", (8 * EDGE, 8 * EDGE))  # a JPEG is decoded small
        whole = as_seen(picture)
    made = []
    for share in CROPPED:
        margins = [(1 - share) * size / 2 for size in whole.size]
        box = (*margins, whole.width - margins[0], whole.height - margins[1])
        made.append(np.asarray(whole.resize((EDGE, EDGE), Image.Resampling.BOX, box=box), float))
    return made


def _unit(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 1728), each with mean 0 and length 1; a picture of one colour is 0."""
    rows = np.stack(pictures).reshape(len(pictures), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _alike(tested: Sequence[str], others: Sequence[str], looks: Mapping) -> Iterator[tuple[str, str, float]]:
    """Pairs of pictures that are one and the same, mirrored, turned, or one of them cut to the middle of the other."""
    if not tested or not others:
        return
    whole = _unit([looks[image][0] for image in others])
    cut = [_unit([looks[image][k] for image in others]) for k in range(1, len(CROPPED))]
    best = np.zeros((len(tested), len(others)))
    for flip, turns, k in product((1, -1), range(4), range(len(CROPPED))):
        best = np.maximum(best, _unit([np.rot90(looks[i][k], turns)[:, ::flip] for i in tested]) @ whole.T)
    for part in cut:
        best = np.maximum(best, _unit([looks[image][0] for image in tested]) @ part.T)
    for a, b in np.argwhere(best >= SAME):
        if tested[a] != others[b]:
            yield tested[a], others[b], float(best[a, b])


# ---------------------------------------------------------------- captions


def caption_findings(path: Path, classes: Sequence[str], splits: Split) -> Iterator[Finding]:
    """Whether captions say the class of their image in so many words: then text states are the label.

    A captioner that saw the picture names what is on it, so a name is a notice. It does not know an identifier such as
    n02106662, nor a file's name: one in a caption was written there.
    """
    label_of = {trial.image: trial.label for of_split in splits.values() for trial in of_split if trial.image}
    if not label_of or max(label_of.values()) >= len(classes):
        return
    try:
        caption_of = {image: text for image, text in captions_of(path).items() if image in label_of}
    except UserError as error:
        yield Finding("cannot", "captions", f"they were not looked at: {error}")
        return
    if not caption_of:
        yield Finding("cannot", "captions", f"{path} has no caption of this store's images")
        return
    written, naming, others = [], 0, 0
    for image, text in caption_of.items():
        words, name = _words(text), classes[label_of[image]]
        marks = {part for part in (image.split("/")[0], Path(image).stem, name) if any(c.isdigit() for c in part)}
        written += [image] if any(_words(mark) in words for mark in marks) else []
        naming += _words(name) in words
        others += _words(classes[(label_of[image] + 1) % len(classes)]) in words
    n = len(caption_of)
    words = f"{percent(naming / n)} of {n} captions name the class of their image, {percent(others / n)} another one"
    if written:
        words = f"{len(written)} of {n} captions hold their image's label or file name, {written[0]} first"
        yield Finding("BREACH", "captions", f"{words}: no captioner writes that")
    elif naming - others >= NAMED * n:
        yield Finding("notice", "captions", f"{words}: what is trained towards holds the label")
    else:
        yield Finding("ok", "captions", words)


def _words(text: str) -> str:
    """Words alone, in lower case, between blanks, so that one text is looked for in another word by word."""
    return " " + " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) + " "
