"""captions.jsonl: a caption an image, as caption_images.py writes it and training reads it."""

import json
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.limits import MAX_ROWS
from utils.paths import written_whole

LONGEST = 1000  # characters


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
