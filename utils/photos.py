"""Photos as people have them → RGB pictures as people see them; and which of them cannot be what they are named."""

import hashlib
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from utils.errors import UserError, some
from utils.limits import PICTURES, opened_picture

ONE_COLOUR = "of one colour"  # what a drawn picture is then, in words
PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr")  # modes that Pillow's own conversion reads right


def whole_picture(path: Path, what: str, hint: str) -> Image.Image:
    """A picture in RGB, in memory: see `as_seen`.

    what, hint : str. What it is, and where it comes from, for the message.
    Raises UserError where it is missing, too large, truncated or no picture.
    """
    if not path.is_file():
        raise UserError(f"the {what} {path} is missing; {hint}")
    try:
        with opened_picture(path) as picture:
            return as_seen(picture)
    except UserError as error:
        raise UserError(f"the {what} {error}") from None
    except Exception:  # whatever a file that is no picture makes Pillow say
        kinds = f"{', '.join(PICTURES[:-1])} or {PICTURES[-1]}"
        raise UserError(f"the {what} {path} is not a picture that can be read; save it as {kinds}") from None


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture in RGB, as a viewer shows it.

    Turned as its EXIF says; what is transparent lies on white; grey of 16 bits keeps its upper 8. Of a moving picture
    the first frame.
    """
    if picture.mode.startswith("I"):  # Pillow would clip all above 255
        transparent, values = picture.info.get("transparency"), np.asarray(picture).astype(np.int64)
        eight = np.clip((values + 128) // 257, 0, 255)
        eight = np.where(values == transparent, 255, eight) if isinstance(transparent, int) else eight
        grey = Image.fromarray(eight.astype(np.uint8))
        grey.info = {name: value for name, value in picture.info.items() if name != "transparency"}
        picture = grey
    elif picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.info = coloured.info
        picture = Image.alpha_composite(white, coloured)
        picture.info = coloured.info
    with suppress(Exception), warnings.catch_warnings():  # a damaged EXIF block turns nothing
        warnings.simplefilter("ignore")
        picture = ImageOps.exif_transpose(picture)
    return picture.convert("RGB")


def reads_plainly(path: Path) -> bool:
    """Whether Pillow's own conversion to RGB already shows a file as it is seen; so do most. Reads the header alone."""
    try:
        with opened_picture(path) as picture, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return picture.mode in PLAIN and not picture.has_transparency_data and not turned
    except Exception:  # damaged: whoever reads it says so
        return True


def one_colour(picture: Image.Image) -> bool:
    """Whether all pixels of a picture are the same."""
    return all(least == most for least, most in picture.convert("RGB").getextrema())


class OddPictures:
    """What pictures tell against their names: two with the same pixels, or one that is of one colour."""

    def __init__(self) -> None:
        self.names: dict[bytes, list[str]] = {}  # digest of the pixels → names
        self.flat: list[str] = []

    def add(self, name: str, picture: Image.Image) -> None:
        """Look at one more RGB picture; `name`: of its file, its class or both."""
        digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()
        self.names.setdefault(digest, []).append(name)
        if one_colour(picture):
            self.flat.append(name)

    def report(self, what: str) -> None:
        """Print what was found, in a line each; nothing of pictures as they should be."""
        for names in self.names.values():
            if len(names) > 1:
                print(f"notice: equal {what}, pixel by pixel: {some(names, 5)}")
        if self.flat:
            print(f"notice: {what} of one colour: {some(self.flat, 5)}")
