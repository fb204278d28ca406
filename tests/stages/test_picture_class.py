"""What pictures look like is read off the pictures, and off no decoded class."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.description import load_description
from demo.drawings import drawing
from stages import picture_class
from stages.picture_class import class_vectors, judge_pictures, read_images
from stages.rows import Readout, Row, read_rows, write_rows
from tests.conftest import ROOT
from utils.errors import UserError
from utils.files import write_jsonl

CLIP = str(ROOT / "demo/assets/clip")
CLASSES = "dog", "fish", "chair"


PROMPTS = load_description("VI").image_prompts


@pytest.fixture
def captions(tmp_path):
    """What the small CLIP has learned its classes under."""
    of_class = [(name, [f"{name}_{k}.png" for k in range(2)]) for name in CLASSES]
    lines = [
        {"image": image, "caption": PROMPTS[load_description("VI").classes.index(name)]}
        for name, images in of_class
        for image in images
    ]
    write_jsonl(lines, tmp_path / "captions.jsonl")
    return of_class, CLIP, str(tmp_path / "captions.jsonl"), tmp_path / "cache"


def drawn(tmp_path, seed=9):
    """Pictures of a fish, a chair and of nothing; every row says that it decoded a dog, and saw one."""
    pictures = [drawing(name, np.random.default_rng(seed)) for name in CLASSES[1:]] + [Image.new("RGB", (64, 64))]
    files = [tmp_path / f"drawn_{k}.png" for k in range(3)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    rows = [Row(k, "S00", "1", 1, k, 0, "dog", {"prototype": Readout(0, 1 / 3)}, predicted_label=0) for k in range(3)]
    return rows, files


def test_a_picture_is_read_as_the_class_that_it_shows_and_none_as_no_class(captions, tmp_path):
    rows, files = drawn(tmp_path)
    assert judge_pictures(rows, files, *captions) == {0: "fish", 1: "chair", 2: "no class"}
    write_rows(rows, tmp_path / "decoded.jsonl")
    for row, label in zip(read_rows(tmp_path / "decoded.jsonl"), (1, 2, -1), strict=True):
        assert row.readouts == {"prototype": Readout(0, 1 / 3), "picture": Readout(label, 1 / 3)}


def test_classes_stand_for_their_captions_and_without_captions_for_their_names(captions, tmp_path):
    of_class, clip, path, cache = captions
    told = class_vectors(of_class, clip, path, cache)
    named = class_vectors([("dog", ["unknown.png"]), *of_class[1:]], clip, path, cache)
    assert torch.allclose(told[1:], named[1:]) and not torch.allclose(told[0], named[0])
    assert torch.allclose(named[0], class_vectors(of_class, clip, None, cache)[0], atol=1e-3)
    assert torch.allclose(told.norm(dim=-1), torch.ones(3))


def test_where_nobody_can_judge_an_earlier_judgement_goes_and_it_is_said(captions, tmp_path, capsys, monkeypatch):
    of_class, clip, *more = captions
    monkeypatch.setattr(picture_class, "at_hand", lambda name: False)
    rows, files = drawn(tmp_path)
    for given, model, words in (([], clip, "decode again"), (of_class, None, "--clip_model")):
        judge_pictures(rows, files, *captions)
        assert judge_pictures(rows, files, given, model, *more) == {}
        said = capsys.readouterr().out
        assert "nobody says" in said and words in said and all(set(row.readouts) == {"prototype"} for row in rows)


def test_classes_of_a_damaged_record_or_others_than_the_rows_are_refused(captions, tmp_path):
    (rows, _), of_class = drawn(tmp_path), captions[0]
    assert read_images({"trained_on": of_class}, tmp_path / "run.json", rows) == of_class
    assert read_images({}, tmp_path / "run.json", rows) == []  # of before it was written down
    for record in ({"trained_on": of_class[:2]}, {"trained_on": 3}, {"trained_on": [["dog"]]}):
        with pytest.raises(UserError, match="decode again"):
            read_images(record, tmp_path / "run.json", rows)
