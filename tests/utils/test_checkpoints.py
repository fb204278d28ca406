"""A checkpoint's second form, model.safetensors beside config.json, holds what the first one holds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from utils.checkpoints import best_checkpoint, read_checkpoint, save_checkpoint, save_second_form, weights_file
from utils.errors import UserError

CONTENT = {
    "dataset": "BCICIV2a", "seen": ["A01/T", "A02/T"], "window": None, "sfreq": 250.0, "epoch": 3, "shuffled": False,
    "settings": {"dim": 4, "components": torch.eye(2), "widths": [1, 2]},
    "projection": {"layers.0.weight": torch.randn(3, 2), "layers.0.n": torch.tensor(7), "half": torch.ones(2).half()},
    "encoder": None, "lora": {"r": 8, "digest": "é"}, "prototypes": torch.randn(4, 3).T, "empty": {},
}  # fmt: skip


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    else:
        assert one == other


def test_both_forms_hold_the_same_and_equal_contents_give_equal_bytes(tmp_path):
    save_checkpoint(CONTENT, tmp_path / "x_epoch3.pth")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_second_form(read_checkpoint(tmp_path / "x_epoch3.pth"), tmp_path / name, "x_epoch3.pth")
    assert_equal(read_checkpoint(tmp_path / "a/model.safetensors"), CONTENT)
    assert "projection.layers.0.weight" in load_file(tmp_path / "a/model.safetensors")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("change", [
    {"epoch": 4}, {"encoder": {"tensors": "encoder."}}, {"prototypes": {"tensors": "nothing"}}, {"projection": None},
    {"lora": {"tensors": 3}},
], ids=str)  # fmt: skip
def test_settings_of_other_weights_are_refused_in_a_line(tmp_path, change):
    save_second_form(CONTENT, tmp_path, "x_epoch3.pth")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="model.safetensors: cannot be loaded"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("file, content", [("model.safetensors", b"\xff" * 40), ("config.json", b"{"),
                                           ("config.json", b"[]"), ("model.safetensors", b"")])  # fmt: skip
def test_damaged_files_are_a_line_that_names_them(tmp_path, file, content):
    save_second_form(CONTENT, tmp_path, "x_epoch3.pth")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        read_checkpoint(tmp_path / "model.safetensors")


def test_a_folder_gives_its_best_epoch_or_else_the_second_form(tmp_path):
    with pytest.raises(UserError, match="has no results.json"):
        best_checkpoint(tmp_path, "x_epoch{}.pth")
    save_second_form(CONTENT, tmp_path, "x_epoch3.pth")
    assert best_checkpoint(tmp_path, "x_epoch{}.pth") == tmp_path / "model.safetensors"
    (tmp_path / "results.json").write_text('{"best_epoch": 3}')
    assert best_checkpoint(tmp_path, "x_epoch{}.pth") == tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no such checkpoint"):  # it is of another kind
        read_checkpoint(best_checkpoint(tmp_path, "y_epoch{}.pth"))
    (tmp_path / "x_epoch3.pth").write_bytes(b"x")
    assert best_checkpoint(tmp_path, "x_epoch{}.pth") == tmp_path / "x_epoch3.pth"


def test_plain_weights_are_found_in_a_folder(tmp_path):
    assert weights_file(tmp_path / "x.pth") == tmp_path / "x.pth"
    with pytest.raises(UserError, match="has no model.safetensors and 0 files"):
        weights_file(tmp_path)
    save_checkpoint({"w": torch.ones(1)}, tmp_path / "any.pth")
    assert weights_file(tmp_path) == tmp_path / "any.pth"
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"n_layer": 12}')  # as save_pretrained leaves it
    assert read_checkpoint(weights_file(tmp_path))["w"] == 0
