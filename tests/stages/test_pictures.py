import json
import os
import resource
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import prepare_data_vi
from stages.pictures import (
    AMBER,
    GREEN,
    GREY,
    HEADER,
    PANEL,
    RED,
    PictureFolder,
    Stimuli,
    comparison,
    cue_arrow,
    drawn_with,
    is_drawn,
    judged_class,
    judged_picture,
    read_photo,
    save_with_recipe,
    summary_grid,
)
from stages.rows import Readout, Row, read_rows, write_rows
from utils.errors import UserError


@pytest.mark.parametrize("direction, toward", [("left", (0, -1)), ("right", (0, 1)), ("up", (-1, 0)), ("down", (1, 0))])
def test_cue_arrows_point_where_they_say(direction, toward):
    white = np.asarray(cue_arrow(direction)).min(axis=2) > 200
    rows, columns = np.nonzero(white)
    centre = np.array([rows.mean(), columns.mean()]) - (white.shape[0] - 1) / 2
    assert np.dot(centre, toward) > 30 and abs(np.cross([*toward, 0], [*centre, 0])[2]) < 3


def of_class(decoded):
    return Row(0, "A08", "", 0, 0, 2, "feet", {}, predicted_name=decoded)


def test_headers_are_green_when_right_and_red_when_wrong():
    picture = Image.new("RGB", (64, 64), "blue")
    for decoded, colour in (("feet", GREEN), ("tongue", RED), (None, RED)):
        assert comparison(picture, picture, *judged_class(of_class(decoded))).getpixel((2, 2)) == colour


def test_a_picture_of_states_is_judged_by_what_it_looks_like_and_by_nothing_where_nobody_looked():
    for decoded, looks_like, colour in (("feet", "tongue", RED), ("tongue", "feet", GREEN), ("feet", None, GREY)):
        text, found = judged_picture(of_class(decoded), looks_like)
        assert found == colour and f"nearest caption: {decoded}" in text
        assert ("looks like" in text) == (looks_like is not None) and (looks_like or "true: feet") in text


def test_the_grid_has_four_columns(tmp_path):
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.png")
        comparison(*[Image.new("RGB", (9, 9), (50 * k, 0, 0))] * 2, "feet", GREEN).save(paths[-1])
    grid = summary_grid(paths)
    assert grid.size == (4 * 264 + 8, 2 * 156 + 8)
    assert grid.getpixel((8 + 64, 8 + 156 + 100)) == (200, 0, 0)  # the fifth begins the second row


# ---------------------------------------------------------------- stimuli


def row(index=0, true=0, **changes):
    return Row(index, "S20", "01", 1, 1, true, "feet", {"head": Readout(0, 0.25)}, prompt="two feet", predicted_label=0,
               predicted_name="feet", **changes)  # fmt: skip


def test_a_stimulus_is_drawn_read_or_grey_and_a_trials_own_image_wins(tmp_path):
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "a.png")
    (tmp_path / "of trials").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "of trials/7.png")
    stimuli = Stimuli({0: "arrow left", 1: "a.png"}, 3, tmp_path)
    assert stimuli.of(row(true=0)).tobytes() == cue_arrow("left").tobytes()
    assert stimuli.of(row(true=1)).getpixel((4, 4)) == (0, 0, 255)
    assert len(stimuli.of(row(true=2)).getcolors()) == 1
    assert stimuli.of(row(true=1, image="of trials/7.png")).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("image", ["../secret.png", "of trials/../../secret.png", "/tmp/secret.png"])
def test_a_trials_image_outside_the_folder_is_refused(tmp_path, image):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "secret.png")
    (tmp_path / "stimuli").mkdir()
    with pytest.raises(UserError, match="is outside"):
        Stimuli({}, 1, tmp_path / "stimuli").of(row(image=image))


def test_photos_that_are_missing_or_no_pictures_are_named(tmp_path):
    with pytest.raises(UserError, match="a.jpg is missing.*--stimuli_dir"):
        Stimuli({0: "a.jpg"}, 1, tmp_path)
    (tmp_path / "a.jpg").write_text("<html>")
    with pytest.raises(UserError, match="a.jpg is not a picture"):
        Stimuli({0: "a.jpg"}, 1, tmp_path)
    with pytest.raises(UserError, match="b.jpg is missing"):
        Stimuli({}, 1, tmp_path).of(row(image="b.jpg"))


def bomb(path, size):
    """A picture of so many pixels in a few kilobytes: a PNG of one colour, or a JPEG whose header lies."""
    if path.suffix == ".png":
        Image.new("1", size).save(path)
        return path
    Image.new("RGB", (64, 64), "red").save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", size[1], size[0])
    path.write_bytes(content)
    return path


def megabytes_taken(function):
    """By how much a process of its own grows when it calls the function."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            function()
        except UserError:
            pass
        finally:
            os.write(theirs, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10).encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    with open(ours) as answer:
        return int(answer.read())


# Pillow warns of the first by itself, and raises an error of its own for the second
@pytest.mark.parametrize("size", [(17_000, 10_000), (20_000, 10_000)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_photo_of_too_many_pixels_is_refused_before_it_takes_memory(tmp_path, capsys, monkeypatch, size, suffix):
    path = bomb(tmp_path / f"a{suffix}", size)
    assert path.stat().st_size < 100_000 and megabytes_taken(lambda: read_photo(path)) < 15
    monkeypatch.setattr(prepare_data_vi, "DESCRIPTION", replace(prepare_data_vi.DESCRIPTION, stimuli={0: path.name}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=f"stimulus photo .*a{suffix} has .* pixels; at most 50 million are read"):
            read_photo(path)
        assert drawn_with(path) is None
        with pytest.raises(UserError, match="pixels; at most 50 million"):
            summary_grid([path])
        prepare_data_vi.check_stimuli(tmp_path)
    said = capsys.readouterr()
    assert said.err == "" and said.out.count("notice: ") == 1 and "at most 50 million" in said.out


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_photo_is_refused(tmp_path, capsys, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    monkeypatch.setattr(prepare_data_vi, "DESCRIPTION", replace(prepare_data_vi.DESCRIPTION, stimuli={0: path.name}))
    assert read_photo(path).size == (90, 90)
    for share in (0.05, 0.5, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="is not a picture"):
            read_photo(path)
        prepare_data_vi.check_stimuli(tmp_path)
        assert "is not a picture" in capsys.readouterr().out


def test_a_file_that_pillow_would_hand_to_a_program_is_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UserError, match="a.jpg is not a picture"):
        read_photo(tmp_path / "a.jpg")


# ---------------------------------------------------------------- the folder of drawn pictures


def draw(folder, rows, recipe=(("steps", 4),), seed=0, black=()):
    """Draw what is missing, those of seeds in `black` as one in place of a picture; gives the seeds that were drawn."""
    pictures, seeds = PictureFolder(folder, rows, dict(recipe), seed), []

    def of_seed(own_seed):
        seeds.append(own_seed)
        drawn = Image.new("RGB", (32, 32))
        if own_seed in black:
            drawn.info["fault"] = "not finite"
        else:
            drawn.paste((255, own_seed, 0), (4, 4, 12, 12))
        return drawn

    pictures.draw_missing(lambda rows, own_seeds: list(map(of_seed, own_seeds)), 2)
    pictures.finish(lambda row: Image.new("RGB", (32, 32), "white"))
    return seeds


def test_a_picture_carries_its_recipe_and_is_drawn_once(tmp_path):
    rows = [row(3), row(11)]
    assert draw(tmp_path, rows, seed=100) == [103, 111]
    with Image.open(tmp_path / "generated_0003_true0_pred0.png") as picture:
        assert json.loads(picture.info["recipe"]) == {"prompt": "two feet", "seed": 103, "steps": 4}
    assert draw(tmp_path, rows, seed=100) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "summary_grid.png", *(f"{kind}_{k}_true0_pred0.png" for kind in ("generated", "comparison") for k in ("0003",
        "0011")),
    }  # fmt: skip


def test_another_recipe_a_damaged_picture_and_another_prompt_are_drawn_anew(tmp_path):
    rows = [row(3), row(11)]
    draw(tmp_path, rows)
    assert draw(tmp_path, rows, recipe=(("steps", 5),)) == [3, 11] and draw(
        tmp_path, rows, (("steps", 5),), seed=1
    ) == [4, 12]
    (tmp_path / "generated_0011_true0_pred0.png").write_bytes(b"half")
    assert draw(tmp_path, rows, (("steps", 5),), seed=1) == [12]
    rows[0].prompt = "a hand"
    assert draw(tmp_path, rows, (("steps", 5),), seed=1) == [4]


def test_a_picture_of_what_was_decoded_otherwise_before_is_removed(tmp_path):
    draw(tmp_path, [row(3), row(30)])
    again = [row(3), row(30)]
    again[0].predicted_label, again[0].predicted_name = 2, "tongue"
    assert draw(tmp_path, again) == [3]
    assert {path.name for path in tmp_path.glob("*_0003_*")} == {
        "generated_0003_true0_pred2.png",
        "comparison_0003_true0_pred2.png",
    }
    assert len(list(tmp_path.glob("*_0030_*"))) == 2


def test_what_came_out_in_place_of_a_picture_is_marked_shown_marked_and_drawn_again(tmp_path, capsys):
    rows, place = [row(3), row(11)], tmp_path / "decoded.jsonl"
    write_rows(rows, place)
    before = place.read_bytes()
    assert draw(tmp_path, rows, black=[11]) == [3, 11]
    assert [r.picture_fault for r in read_rows(place)] == ["", "not finite"]
    assert "1 of them came out as no picture" in (said := capsys.readouterr().out)
    assert "generated_0011_true0_pred0.png (not finite)" in said
    good, black = (np.asarray(Image.open(tmp_path / f"comparison_{k}_true0_pred0.png")) for k in ("0003", "0011"))
    amber = [(picture[HEADER:, PANEL:] == AMBER).all(axis=-1).any() for picture in (good, black)]
    assert amber == [False, True] and not (black[HEADER:, :PANEL] == AMBER).all(axis=-1).any()
    kept = (tmp_path / "generated_0003_true0_pred0.png").read_bytes()
    assert draw(tmp_path, read_rows(place)) == [11]  # the good one is left as it is
    assert (tmp_path / "generated_0003_true0_pred0.png").read_bytes() == kept and place.read_bytes() == before
    assert draw(tmp_path, read_rows(place)) == []


def test_a_fault_that_somebody_wrote_into_a_picture_is_text(tmp_path):
    write_rows(rows := [row(3)], tmp_path / "decoded.jsonl")
    draw(tmp_path, rows)
    path = tmp_path / "generated_0003_true0_pred0.png"
    with Image.open(path) as picture:
        picture.info["fault"] = "\x1b[2J" + "a" * 5000
        save_with_recipe(picture, {"prompt": "two feet", "seed": 3, "steps": 4}, path)
    assert not is_drawn(path, {"prompt": "two feet", "seed": 3, "steps": 4})
    PictureFolder(tmp_path, rows, {"steps": 4}, 0).finish(lambda row: Image.new("RGB", (32, 32)))
    assert read_rows(tmp_path / "decoded.jsonl")[0].picture_fault == "[2J" + "a" * 97


def test_a_black_picture_of_before_pictures_were_marked_is_drawn_again(tmp_path):
    rows = [row(3)]
    draw(tmp_path, rows)
    black = Image.new("RGB", (32, 32))
    save_with_recipe(black, {"prompt": "two feet", "seed": 3, "steps": 4}, tmp_path / "generated_0003_true0_pred0.png")
    assert draw(tmp_path, rows) == [3] and rows[0].picture_fault == ""


def test_neither_prompt_nor_seed_depends_on_the_true_label(tmp_path):
    recipes = [PictureFolder(tmp_path, [row(3, true=true)], {"steps": 4}, 0).recipes[3] for true in (0, 1)]
    assert recipes[0] == recipes[1]
