import numpy as np
import pytest
from PIL import Image
from utils.drawing import DRAWINGS, GREEN, RED, comparison, cue_arrow, drawing, summary_grid


@pytest.mark.parametrize("direction, toward", [("left", (0, -1)), ("right", (0, 1)), ("up", (-1, 0)), ("down", (1, 0))])
def test_cue_arrows_point_where_they_say(direction, toward):
    white = np.asarray(cue_arrow(direction)).min(axis=2) > 200
    rows, columns = np.nonzero(white)
    centre = np.array([rows.mean(), columns.mean()]) - (white.shape[0] - 1) / 2
    assert np.dot(centre, toward) > 30 and abs(np.cross([*toward, 0], [*centre, 0])[2]) < 3


def test_drawings_vary_and_repeat_with_the_generator():
    for name in DRAWINGS:
        a, b, c = (np.asarray(drawing(name, np.random.default_rng(seed))) for seed in (0, 0, 1))
        assert a.shape == (64, 64, 3) and np.array_equal(a, b) and not np.array_equal(a, c)


def test_headers_are_green_when_right_and_red_when_wrong():
    picture = Image.new("RGB", (64, 64), "blue")
    assert comparison(picture, picture, "feet", "feet").getpixel((2, 2)) == GREEN
    assert comparison(picture, picture, "feet", "tongue").getpixel((2, 2)) == RED
    assert comparison(picture, picture, "feet", None).getpixel((2, 2)) == RED


def test_the_grid_has_four_columns(tmp_path):
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.png")
        comparison(*[Image.new("RGB", (9, 9), (50 * k, 0, 0))] * 2, "feet", "feet").save(paths[-1])
    grid = summary_grid(paths)
    assert grid.size == (4 * 264 + 8, 2 * 156 + 8)
    assert grid.getpixel((8 + 64, 8 + 156 + 100)) == (200, 0, 0)  # the fifth begins the second row
