"""Photos as people have them: turned, transparent, 16-bit, CMYK, moving; and two that are one."""

import hashlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from models.clip_targets import digests_of
from stages.pictures import Stimuli
from utils.errors import UserError
from utils.photos import OddPictures, whole_picture

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 8, 3), np.uint8)


def read(path) -> np.ndarray:
    return np.asarray(whole_picture(path, "photo", "fetch it"))


@pytest.mark.parametrize("orientation, turned", [
    (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud), (5, lambda x: x.swapaxes(0, 1)),
    (6, lambda x: np.rot90(x, -1)), (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)), (8, np.rot90),
])  # fmt: skip
def test_a_photo_is_turned_as_its_camera_says(orientation, turned, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), turned(NOISE))
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").shape == turned(NOISE).shape


def test_a_damaged_exif_block_turns_nothing(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert np.array_equal(read(tmp_path / "a.png"), NOISE)


def saved_transparent(kind: str, path) -> None:
    """Left half red, right half transparent; behind it lies blue."""
    red_and_blue = Image.new("RGB", (8, 8), (255, 0, 0))
    red_and_blue.paste((0, 0, 255), (4, 0, 8, 8))
    alpha = Image.new("L", (8, 8), 255)
    alpha.paste(0, (4, 0, 8, 8))
    picture = red_and_blue.convert({"palette": "P", "two greys": "L"}.get(kind, "RGB"))
    if kind == "two greys":
        picture.putalpha(alpha)  # LA
    elif kind == "palette":
        picture = picture.quantize(2)
        picture.info["transparency"] = picture.getpixel((7, 0))
    elif kind == "one colour":
        picture.info["transparency"] = (0, 0, 255)
    else:
        picture.putalpha(alpha)
    picture.save(path, **({"transparency": picture.info["transparency"]} if "transparency" in picture.info else {}))


@pytest.mark.parametrize("kind", ["alpha", "palette", "one colour", "two greys"])
def test_what_is_transparent_lies_on_white(kind, tmp_path):
    saved_transparent(kind, tmp_path / "a.png")
    seen = read(tmp_path / "a.png")
    assert (seen[:, 4:] == 255).all() and (seen[:, :4] == ([76] * 3 if kind == "two greys" else [255, 0, 0])).all()


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert np.abs(read(tmp_path / "a.webp").astype(int) - 127).max() <= 1


def test_grey_of_16_bits_keeps_its_upper_8(tmp_path):
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    seen = read(tmp_path / "a.png")
    assert np.array_equal(seen[..., 0], np.round(grey / 257)) and np.ptp(seen, axis=2).max() == 0


def test_cmyk_and_palette_have_their_colours(tmp_path):
    colours = Image.new("RGB", (8, 8), (200, 30, 60))
    colours.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    colours.quantize(4).save(tmp_path / "a.gif")
    for name in ("a.jpg", "a.gif"):
        assert np.abs(read(tmp_path / name).astype(int) - [200, 30, 60]).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_a_moving_picture_the_first_frame_is_read(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=50)
    assert (read(tmp_path / f"a.{suffix}") // 250 == [1, 0, 0]).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_ordinary_photos_are_read_as_before(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    assert np.array_equal(read(path), np.asarray(Image.open(path).convert("RGB")))
    assert digests_of([path]) == [hashlib.sha256(path.read_bytes()).hexdigest()]  # what was cached for them stays


def test_a_cache_of_a_photo_that_is_read_otherwise_now_is_left(tmp_path):
    path = tmp_path / "a.png"
    saved_transparent("alpha", path)
    assert digests_of([path]) != [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_what_cannot_be_read_says_what_can(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif is not a picture that can be read; save it as JPEG, PNG"):
        read(tmp_path / "a.tif")


def test_equal_and_one_coloured_stimuli_are_named(tmp_path, capsys):
    Image.fromarray(NOISE).save(tmp_path / "dog.png")
    Image.fromarray(NOISE).save(tmp_path / "cat.webp", lossless=True)
    Image.new("RGB", (8, 6), "grey").save(tmp_path / "cup.png")
    Image.fromarray(NOISE[::-1]).save(tmp_path / "car.png")
    Stimuli({0: "dog.png", 1: "cat.webp", 2: "cup.png", 3: "car.png"}, 4, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(line.startswith("notice: ") for line in said)
    assert said[0].endswith("pixel by pixel: dog.png, cat.webp") and said[1].endswith("of one colour: cup.png")
    Stimuli({0: "dog.png", 1: "car.png"}, 3, tmp_path)  # the third class has none
    assert capsys.readouterr().out == ""


def test_many_equal_pictures_are_one_short_line(capsys):
    odd = OddPictures()
    for k in range(40):
        odd.add(f"{k}.png", Image.fromarray(NOISE))
    odd.report("images")
    assert (
        capsys.readouterr().out
        == "notice: equal images, pixel by pixel: 0.png, 1.png, 2.png, 3.png, 4.png and 35 more\n"
    )
