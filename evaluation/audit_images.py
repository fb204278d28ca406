"""Pictures and captions: a test picture among those that were trained on, a caption that names the class."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.splits import Split
from evaluation.findings import Finding, first_of
from models.clip_targets import image_paths
from readers.captions import captions_of
from stages.scores import percent
from utils.errors import UserError
from utils.limits import opened_picture
from utils.photos import as_seen
from utils.progress import progress

EDGE = 16  # pixels of the small pictures that are compared
LIKE = 0.99  # their correlation, from which on they are compared closely
SHARES = np.linspace(1, 0.8, 11)  # of a picture's edges, around its middle; cuts between two of them reach LIKE
FINE_EDGE, FINE_STEPS = 32, np.linspace(-0.012, 0.012, 9)  # of a close look: pixels, and shares about those above
SAME, MAY_BE = 0.995, 0.98  # correlation of a close look: they are one, or in doubt; different photos reach 0.97
MOST_PAIRS = 2000  # looked at closely
LEAST_GLUED = 5  # characters of an identifier that is looked for inside words
NAMED = 0.5  # share of captions that name their image's class, from which on it is worth a notice


def image_findings(splits: Split, images_dir: Path | None, repeats: bool) -> Iterator[Finding]:
    """No test picture in training or validation under another name: by its bytes, or by what it looks like.

    What a picture looks like is its colours on 16 × 16 places, standardised, whatever its size and file format. Either
    of two pictures is also cut to its middle, and the test picture mirrored and turned. What is alike then is compared
    again on 32 × 32 places, or as many as the smaller picture has, with cuts that differ less.
    False alarms: none among 5,565 pairs of 106 real photos, whose most alike reached 0.97. Of 196 drawings of the
    demo's 14 things 2 pairs of 19,110, drawings of one thing.

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
    tested_looks, others_looks = ({i: looks[i] for i in part if i in looks} for part in (tested, others))
    for image, other, like in _alike(tested_looks, others_looks, there):
        found.setdefault((image, other), like)
    words, doubt = [], []
    for (image, other), like in sorted(found.items(), key=lambda one: -one[1]):
        how = "the same bytes" if like > 1 else f"the same picture (correlation {like:.3f})"
        (words if like >= SAME else doubt).append(f"{image} (test) and {other} (trained on) are {how}")
    yield from first_of("notice" if repeats else "BREACH", "images", words, "pairs are alike")
    yield from first_of("notice", "images", [f"perhaps {pair}" for pair in doubt], "pairs are perhaps alike")
    if not found:
        counts = f"{len(tested)} test pictures, {len(others)} trained on"
        yield Finding("ok", "images", f"{counts}: none is another in bytes or looks")


def _seen(path: Path, edge: int) -> Image.Image:
    """A picture in RGB as it is seen, with at most eight times the pixels that are compared, to cut it quickly."""
    with opened_picture(path) as picture:
        picture.draft("RGB", (8 * edge, 8 * edge))  # a JPEG is decoded small
        whole = as_seen(picture)
    return whole.resize([min(size, 8 * edge) for size in whole.size], Image.Resampling.BICUBIC)


def _cut(whole: Image.Image, share: float, edge: int) -> np.ndarray:
    """A picture's middle, of a share of its edges: (edge, edge, 3) of uint8."""
    margins = [(1 - share) * size / 2 for size in whole.size]
    box = (*margins, whole.width - margins[0], whole.height - margins[1])
    return np.asarray(whole.resize((edge, edge), Image.Resampling.BICUBIC, box=box))


def _small(path: Path) -> np.ndarray:
    """A picture whole and cut to its middle, (11, 16, 16, 3) of uint8."""
    whole = _seen(path, EDGE)
    return np.stack([_cut(whole, share, EDGE) for share in SHARES])


def _unit(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(N, values), each with mean 0 and length 1; a picture of one colour is 0."""
    rows = np.stack(pictures).reshape(len(pictures), -1).astype(np.float32)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _turned(picture: np.ndarray) -> list[np.ndarray]:
    """A picture in eight ways: as it is, mirrored, and either turned by quarters."""
    return [np.rot90(picture, turns)[:, ::flip] for flip, turns in product((1, -1), range(4))]


def _alike(tested: Mapping, others: Mapping, there: Mapping[str, Path]) -> Iterator[tuple[str, str, float]]:
    """Pairs of pictures that are one and the same, mirrored, turned, or one of them cut to the middle of the other.

    tested, others : dict. Their small pictures by name. there : dict. The files by name.
    """
    if not tested or not others:
        return
    best = np.zeros((len(tested), len(others)), np.float32)
    cuts = np.zeros(best.shape, np.int8)  # which share of the test picture is like the other; below 0: of the other
    turned = [_turned(look[0]) for look in tested.values()]
    for k in range(-len(SHARES) + 1, len(SHARES)):
        theirs = _unit([look[max(-k, 0)] for look in others.values()])
        ours = turned if k <= 0 else [_turned(look[k]) for look in tested.values()]
        for way in zip(*ours, strict=True):
            like = _unit(way) @ theirs.T
            better = like > best
            best[better], cuts[better] = like[better], k
    images, names = list(tested), list(others)
    pairs = [(a, b) for a, b in np.argwhere(best >= LIKE) if images[a] != names[b]]
    for a, b in sorted(pairs, key=lambda pair: -best[pair[0], pair[1]])[:MOST_PAIRS]:
        if (like := _closely(there[images[a]], there[names[b]], int(cuts[a, b]))) >= MAY_BE:
            yield images[a], names[b], like


def _closely(path: Path, other: Path, cut: int) -> float:
    """Correlation of two pictures on more places, where it is largest among shares about one; `cut` as in `_alike`."""
    one, two = (_seen(file, FINE_EDGE) for file in ((path, other) if cut >= 0 else (other, path)))
    edge = max(EDGE, min(FINE_EDGE, *one.size, *two.size))  # what is larger is made as coarse as the other
    best = 0.0
    for share in SHARES[abs(cut)] + FINE_STEPS:
        ours, theirs = _cut(one, min(share, 1), edge), _cut(two, min(2 - share, 1), edge)
        best = max(best, float((_unit(_turned(ours)) @ _unit([theirs]).T).max()))
    return best


# ---------------------------------------------------------------- captions


def caption_findings(path: Path, classes: Sequence[str], splits: Split) -> Iterator[Finding]:
    """Whether captions say the class of their image in so many words: then text states are the label.

    A captioner that saw the picture names what is on it, one or several, so a name is a notice. It does not know an
    identifier such as n02106662, nor a file's name, nor a label's number: one in a caption was written there.
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
        written += [image] if _identified(text, image, label_of[image], name) else []
        naming += _named(name, words)
        others += _named(classes[(label_of[image] + 1) % len(classes)], words)
    n = len(caption_of)
    words = f"{percent(naming / n)} of {n} captions name the class of their image, {percent(others / n)} another one"
    if written:
        words = f"{len(written)} of {n} captions hold their image's label or file name, {written[0]} first"
        yield Finding("BREACH", "captions", f"{words}: no captioner writes that")
    elif naming - others >= NAMED * n:
        yield Finding("notice", "captions", f"{words}: what is trained towards holds the label")
    else:
        yield Finding("ok", "captions", words)


def _identified(text: str, image: str, label: int, name: str) -> bool:
    """Whether a caption holds what only files say: the image's folder or name, their numbers, or the class's number.

    As words of their own; those of five characters or more also glued to others, or cut by what is no letter. A label's
    number counts behind "class" or "label" alone.
    """
    text, (folder, stem) = _plain(text), (Path(image).parent.name.lower(), Path(image).stem.lower())
    marks = [part for part in (folder, stem, name) if any(c.isdigit() for c in part)]
    glued = [_joined(part) for part in (folder, stem) if part in marks]
    numbers = {digits for part in (folder, stem) for digits in re.findall(r"\d{5,}", part)}
    return (
        any(_words(mark) in _words(text) for mark in marks)
        or any(re.search(rf"{mark}(?!\d)", _joined(text)) for mark in glued if len(mark) >= LEAST_GLUED)
        or not numbers.isdisjoint(re.findall(r"\d+", text))
        or re.search(rf"(?<![a-z])(class|label|category|concept|id)s?(id|no)?[\W_]*(id|no)?[\W_]*0*{label}(?!\d)", text)
        is not None
    )


def _named(name: str, words: str) -> bool:
    """Whether words (see `_words`) hold a class's name, or its plural."""
    name = _words(name).rstrip()
    plurals = [f"{name}s", f"{name}es"] + ([f"{name[:-1]}ies"] if name.endswith("y") else [])
    return any(f"{form} " in words for form in (name, *plurals, f" {_joined(name)}"))


def _plain(text: str) -> str:
    """A text in lower case, wide letters as plain ones, without what nobody sees."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf").lower()


def _joined(text: str) -> str:
    """Letters and digits alone."""
    return "".join(c for c in text if c.isalnum())


def _words(text: str) -> str:
    """Words alone, in lower case, between blanks, so that one text is looked for in another word by word."""
    return " " + " ".join("".join(c if c.isalnum() else " " for c in _plain(text)).split()) + " "
