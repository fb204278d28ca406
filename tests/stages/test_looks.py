"""What pictures look like is read off the pictures, and off no decoded class."""

import numpy as np
import pytest
from PIL import Image

from demo.drawings import drawing
from stages.looks import judge_pictures, read_photos
from stages.rows import Readout, Row, read_rows, write_rows
from tests.conftest import ROOT
from utils.errors import UserError

CLIP = str(ROOT / "demo/assets/clip")
CLASSES = "dog", "fish", "chair"


@pytest.fixture
def photos(tmp_path):
    """Four photos a class, of which the last is never there."""
    of_class = [(name, [f"{name}_{k}.png" for k in range(5)]) for name in CLASSES]
    for label, (name, images) in enumerate(of_class):
        for k, image in enumerate(images[:-1]):
            drawing(name, np.random.default_rng((label, k))).save(tmp_path / image)
    return of_class


def drawn(tmp_path, seed=9):
    """Pictures of a fish, a chair and of nothing; every row says that it decoded a dog, and saw one."""
    pictures = [drawing(name, np.random.default_rng(seed)) for name in CLASSES[1:]] + [Image.new("RGB", (64, 64))]
    files = [tmp_path / f"drawn_{k}.png" for k in range(3)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    rows = [Row(k, "S00", "1", 1, k, 0, "dog", {"prototype": Readout(0, 1 / 3)}, predicted_label=0) for k in range(3)]
    return rows, files


def test_a_picture_is_read_as_the_class_that_it_shows_and_none_as_no_class(photos, tmp_path):
    rows, files = drawn(tmp_path)
    looks = judge_pictures(rows, files, photos, tmp_path, CLIP, tmp_path / "cache")
    assert looks == {0: "fish", 1: "chair", 2: "no class"}
    write_rows(rows, tmp_path / "decoded.jsonl")
    for row, label in zip(read_rows(tmp_path / "decoded.jsonl"), (1, 2, -1), strict=True):
        assert row.readouts == {"prototype": Readout(0, 1 / 3), "picture": Readout(label, 1 / 3)}


def test_where_nobody_can_judge_an_earlier_judgement_goes_and_it_is_said(photos, tmp_path, capsys):
    rows, files = drawn(tmp_path)
    for given, place in (([], tmp_path), (photos, tmp_path / "elsewhere")):
        judge_pictures(rows, files, photos, tmp_path, CLIP, tmp_path / "cache")
        assert judge_pictures(rows, files, given, place, CLIP, tmp_path / "cache") == {}
        assert "nobody says" in capsys.readouterr().out and all(set(row.readouts) == {"prototype"} for row in rows)


def test_photos_of_a_damaged_record_or_of_other_classes_are_refused(photos, tmp_path):
    rows, _ = drawn(tmp_path)
    assert read_photos({"photos": photos}, tmp_path / "run.json", rows) == photos
    assert read_photos({}, tmp_path / "run.json", rows) == []  # of before there were photos
    for record in ({"photos": photos[:2]}, {"photos": 3}, {"photos": [["dog"]]}):
        with pytest.raises(UserError, match="decode again"):
            read_photos(record, tmp_path / "run.json", rows)
