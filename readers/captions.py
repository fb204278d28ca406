"""captions.jsonl: a caption an image, as caption_images.py writes it and training reads it."""

import json
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import plain_bytes
from utils.limits import MAX_ROWS
from utils.paths import written_whole

LONGEST = 1000  # characters


def read_captions(path: Path, images: Sequence[str]) -> dict[str, str]:
    """Image → caption, for these images; UserError as `captions_of`, or if an image has none."""
    caption_of = captions_of(path)
    if lacking := [image for image in images if image not in caption_of]:
        first = f"{lacking[0]} and {len(lacking) - 1} more of the images"
        raise UserError(f"{path} has no caption of {first}; caption_images.py goes on behind what is there")
    return {image: caption_of[image] for image in images}


def captions_of(path: Path) -> dict[str, str]:
    """Image → caption, for all images of a file.

    Raises UserError if the file is missing or damaged, or an image has two different captions; names it.
    """
    if not path.is_file():
        raise UserError(f"--captions {path} is not there; caption_images.py makes it")
    caption_of: dict[str, str] = {}
    for number, line in enumerate(plain_bytes(path, MAX_ROWS).splitlines(), start=1):
        try:
            content = json.loads(line)
            image, caption = content["image"], content["caption"]
            if not isinstance(image, str) or not isinstance(caption, str) or not 0 < len(caption) <= LONGEST:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            expected = f"an image and a caption of at most {LONGEST} characters"
            raise UserError(f"{path}, line {number} is no caption: expected {expected}") from None
        if caption_of.setdefault(image, caption) != caption:
            raise UserError(f"{path}, line {number}: {image} has two captions")
    return caption_of


def known_captions(path: Path) -> dict[str, str]:
    """Image → caption of a file that is in the making. A line that a kill cut off is removed from it."""
    raw = path.read_bytes() if path.is_file() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    caption_of = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            content = json.loads(line)
            caption_of[str(content["image"])] = str(content["caption"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}, line {number} is no caption; move the file away, or mend the line") from None
    if whole != raw:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(whole)
    return caption_of
