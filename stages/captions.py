"""captions.jsonl: a caption an image, as caption_images.py writes it and training reads it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.scores import Measure, measured
from utils.errors import UserError
from utils.limits import MAX_ROWS
from utils.paths import written_whole

LONGEST = 1000  # characters
PAIRINGS = 20  # random pairings of decoded captions with those of other images


def read_captions(path: Path, images: Sequence[str]) -> dict[str, str]:
    """Image → caption, for these images.

    Raises UserError if the file is missing or damaged, an image has no caption, or two different ones; names it.
    """
    if not path.is_file():
        raise UserError(f"--captions {path} is not there; caption_images.py makes it")
    if path.stat().st_size > MAX_ROWS:
        raise UserError(f"--captions {path} has {path.stat().st_size} bytes; captions take at most {MAX_ROWS}")
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            content = json.loads(line)
            image, caption = content["image"], content["caption"]
            if not isinstance(image, str) or not isinstance(caption, str) or not 0 < len(caption) <= LONGEST:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}, line {number} is no caption: expected an image and a caption of at most {LONGEST} characters"
            ) from None
        if found.setdefault(image, caption) != caption:
            raise UserError(f"{path}, line {number}: {image} has two captions")
    lacking = [image for image in images if image not in found]
    if lacking:
        raise UserError(
            f"{path} has no caption of {lacking[0]} and {len(lacking) - 1} more of the images; caption_images.py goes on behind what is there"
        )
    return {image: found[image] for image in images}


def known_captions(path: Path) -> dict[str, str]:
    """Image → caption of all whole lines of a file that is in the making; a line that a kill cut off is removed from it."""
    if not path.is_file():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            content = json.loads(line)
            found[str(content["image"])] = str(content["caption"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}, line {number} is no caption; move the file away, or mend the line") from None
    if whole != raw:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(whole)
    return found


def word_overlap(a: str, b: str) -> float:
    """F1 of the words that two captions share, each counted as often as both have it."""
    one, other = Counter(a.lower().split()), Counter(b.lower().split())
    shared = sum((one & other).values())
    return 2 * shared / max(1, sum(one.values()) + sum(other.values()))


def caption_measures(
    decoded: Sequence[str], true: Sequence[str], images: Sequence[str], seed: int = 0
) -> dict[str, Measure]:
    """Word overlap of decoded captions with those of the images that were seen; and with those of other images, drawn at random."""
    rng, order, of_pairings = np.random.default_rng(seed), np.arange(len(decoded)), []
    for _ in range(PAIRINGS):
        others = rng.permutation(order)
        of_pairings.append(
            [word_overlap(decoded[k], true[j]) if images[j] != images[k] else np.nan for k, j in enumerate(others)]
        )
    at_random = np.asarray(of_pairings)
    known = np.isfinite(at_random).any(axis=0)
    found = {"words shared": measured("F1 of words", [word_overlap(a, b) for a, b in zip(decoded, true, strict=True)])}
    if known.any():
        found["words shared, another image"] = measured("F1 of words", np.nanmean(at_random[:, known], axis=0))
    return found
