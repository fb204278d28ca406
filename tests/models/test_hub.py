"""Models that `from_pretrained` and `save_pretrained` know: equal to the bit, and nothing is made up."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.CSBrain import CSBrain
from models.eeg_clip_mapper import LinearMapper, MLPMapper, QFormerMapper
from models.eeg_encoders import ATM
from models.eeg_llm import EEGProjection
from models.hub import OnHub

MAPPER = {"n_classes": 3, "n_tokens": 4, "clip_width": 16, "token_positions": "learned", "in_dim": 8}
MADE = [
    (CSBrain, {"n_layer": 1, "brain_regions": (0, 4, 4, 1), "sorted_indices": [0, 3, 1, 2]}, (2, 4, 2, 200)),
    (ATM, {"n_chans": 5, "n_times": 100, "dim": 8, "parts": ("attention", "tsconv"), "positions": "sinusoid"},
     (2, 5, 100)),
    *((kind, MAPPER, (2, 4, 8)) for kind in (QFormerMapper, MLPMapper, LinearMapper)),
    (EEGProjection, {"hidden": 16, "in_dim": 8}, (2, 4, 8)),
]  # fmt: skip


@pytest.mark.parametrize("kind, settings, shape", MADE, ids=lambda x: getattr(x, "__name__", ""))
def test_a_model_comes_back_to_the_bit_from_a_folder(kind, settings, shape, tmp_path):
    torch.manual_seed(0)
    model = kind(**settings).eval()
    model.save_pretrained(tmp_path)
    again, x = kind.from_pretrained(tmp_path), torch.randn(shape)
    assert list(again.state_dict()) == list(model.state_dict()) and not again.training
    outputs = [net(x) for net in (model, again)]
    for one, other in zip(*(out if isinstance(out, tuple) else (out,) for out in outputs), strict=True):
        assert torch.equal(one, other)
    assert set(settings) <= set(json.loads((tmp_path / "config.json").read_text()))
    assert set(load_file(tmp_path / "model.safetensors")) <= set(model.state_dict())


def test_a_weight_that_is_missing_is_an_error_and_not_random(tmp_path):
    EEGProjection(16, 8).save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    kept.pop("layers.0.weight")
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="layers.0.weight"):
        EEGProjection.from_pretrained(tmp_path)


def test_a_model_goes_to_the_hub_and_comes_back(local_hub):
    model = EEGProjection(16, 8).eval()
    model.push_to_hub("me/projection")
    assert set(local_hub.repos["me/projection"]["main"]) == {"README.md", "config.json", "model.safetensors"}
    again = EEGProjection.from_pretrained("me/projection")
    assert issubclass(EEGProjection, OnHub) and again.layers[0].in_features == 8
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
