"""Encoders of the image-decoding systems: golden vectors of published classes, counts, gradients, bad checkpoints."""

import json
import re
import zlib

import numpy as np
import pytest
import torch

from models import eeg_encoders as nets
from models.published import ATM_KINDS, PUBLISHED, from_published
from utils.errors import UserError

GAINS = {"query_projection.weight": 6, "key_projection.weight": 6, "attn_layers.0.conv1.weight": 4, "model.0.weight": 4,
         "proj_eeg.0.weight": 16}  # fmt: skip
OF_NET = {
    "atm": (nets.ATM, (63, 250)), "nice": (nets.NICE, (63, 250)), "ubp": (nets.UBP, (17, 250)), "sgdm": (nets.SGDM, (63,
    250)),
    "eegnet": (nets.ImageNetEEGNet, (62, 400)), "mlp": (nets.DEClassifier, (310,)), "rgnn": (nets.RGNN, (310,)),
}  # fmt: skip


def weight(name, shape):
    """The rule of the golden vectors."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "subject_embedding" in name:
        value = z
    elif len(shape) >= 2:
        gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1)
        value = gain * 0.5 * z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * abs(z)
    elif name.endswith("weight") and not name.endswith("edge_weight"):
        value = 1 + 0.1 * z
    else:
        value = 0.1 * z
    return torch.from_numpy(np.asarray(value, np.float32))


@pytest.fixture(scope="module")
def golden(shared):
    shapes = json.loads((shared / "golden/image_decoding.json").read_text())

    def of(name):
        vectors = dict(np.load(shared / f"golden/image_decoding/{name}.npz"))
        state = {key: weight(key, shape) for key, shape in shapes[name].items()}
        return state, {key: torch.from_numpy(value) for key, value in vectors.items()}

    return of


def agree(found, wanted):
    return (found - wanted).abs().max().item() <= 1e-5


@torch.no_grad()
def test_atm_is_the_published_one_in_all_its_states(golden):
    state, v = golden("atm")
    ways = {
        "develop": "y",
        "develop_sinusoid": "y_sinusoid",
        "paper": "y_keeps_subject_token",
        "main": "y_keeps_subject_token_sinusoid",
    }
    assert set(ways) == set(ATM_KINDS)
    for kind, key in ways.items():
        assert agree(from_published("atm", state, kind)(v["x"], v["subject_ids"]), v[key]), kind
    model = from_published("atm", state)
    assert agree(model.tokens(v["x"], v["subject_ids"]), v["tokens"])
    assert agree(model.tsconv(v["tokens"]), v["tsconv"])
    assert agree(model(v["x"], v["strangers"]), v["y_shared_token"]) and agree(model(v["x"]), v["y_shared_token"])
    mixed = model(v["x"], torch.tensor([0, 11]))  # trial by trial: one stranger makes nobody else a stranger
    assert agree(mixed[0], v["y"][0]) and agree(mixed[1], v["y_shared_token"][1])


@pytest.mark.parametrize("name", ["nice", "nice_768", "ubp", "eegnet", "mlp", "de_mlp", "rgnn", "low_level"])
@torch.no_grad()
def test_the_others_are_the_published_ones(golden, name):
    state, v = golden(name)
    assert agree(from_published(name.partition("_768")[0], state)(v["x"]), v["y"])


@pytest.mark.parametrize("net, settings, count", [
    # and one more, the logit scale of the loss
    (nets.ATM, {}, 3_075_412), (nets.NICE, {}, 2_630_912), (nets.UBP, {}, 5_404_672),
    (nets.SGDM, {"dim": 512}, 3_741_312), (nets.SGDM, {"dim": 1536}, 4_790_912), (nets.SGDM, {"n_chans": 64,
    "n_times": 500, "dim": 512}, 3_839_360),
    (nets.DEMapper, {}, 123_593_472), (nets.LowLevel, {}, 143_333_268),
    *((nets.ImageNetEEGNet, {"n_classes": k}, n) for k, n in ((80, 16_064), (40, 9_624), (8, 4_472))),
    *((nets.DEClassifier, {"n_classes": k}, n) for k, n in ((80, 123_600), (40, 118_440), (8, 114_312))),
    *((nets.RGNN, {"n_classes": k}, n) for k, n in ((80, 20_253), (40, 12_213), (8, 5_781))),
])  # fmt: skip
def test_parameters_are_as_many_as_published(net, settings, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in net(**settings).parameters()) == count


@pytest.mark.parametrize("name", OF_NET)
def test_a_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    net, shape = OF_NET[name]
    model = net().train()
    x = torch.randn(4, *shape)
    out = model(x, torch.tensor([0, 3, 9, 10])) if name == "atm" else model(x)
    out.square().sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.parameters()
    )


@pytest.mark.parametrize(
    "name, shape", [("atm", (17, 100)), ("nice", (17, 100)), ("ubp", (5, 60)), ("sgdm", (20, 120)), ("nice", (3, 30))]
)
def test_other_electrodes_and_lengths_fit(name, shape):
    model = OF_NET[name][0](n_chans=shape[0], n_times=shape[1], dim=32).eval()
    with torch.no_grad():
        x = torch.randn(5, *shape)
        assert model(x).shape == (5, 32) and torch.allclose(
            model(x)[:2], model(x[:2]), atol=1e-5
        )  # whatever else is in the batch


def test_too_few_samples_are_said():
    with pytest.raises(ValueError, match="24 samples are too few; expected 25 or more"):
        nets.TSConv(4, 24)


def small_atm(n_linear=1):
    """A state dict under published names, of 5 electrodes, 40 samples, 3 people."""
    model = nets.ATM(5, 100, dim=16, n_subjects=3, n_linear=n_linear)
    ours = {k: v for k, v in model.state_dict().items() if not k.endswith("tracked")}
    table = PUBLISHED["atm"][0]
    plain = {re.sub(r"\(\?[=!].*?\)|[\\$]", "", p): r for p, r in table.items() if r"\d" not in p}
    back = {r: p for p, r in plain.items()}
    state = {}
    for key, value in ours.items():
        if key.startswith("embed."):
            person = "" if n_linear == 1 else key.split(".")[1] + "."
            state[f"encoder.enc_embedding.value_embedding.{person}{key.split('.')[-1]}"] = value
            continue
        start = max((r for r in back if key.startswith(r)), key=len)
        name = back[start] + key[len(start) :]
        state[name] = value[..., None] if re.search(r"conv[12]\.weight", name) and "attn" in name else value
    return model.eval(), state


@torch.no_grad()
def test_a_checkpoint_of_joint_training_has_a_linear_a_person():
    model, state = small_atm(n_linear=3)
    x = torch.randn(3, 5, 100)
    loaded = from_published(
        "atm", state | {"logit_scale": torch.tensor(2.0), "encoder.enc_embedding.mask_token": torch.zeros(1, 100)}
    )
    ids = torch.tensor([2, 0, 1])
    assert torch.allclose(loaded(x, ids), model(x, ids), atol=1e-6)
    assert not torch.allclose(loaded(x, ids), loaded(x, ids.flip(0)), atol=1e-3)
    with pytest.raises(ValueError, match="outside the 3 of joint training"):
        loaded(x, torch.tensor([0, 1, 7]))


@pytest.mark.parametrize("saved", [
    lambda s: {"model_state_dict": s, "epoch": 3}, lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}},
    lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    lambda s: {f"encoder.{k}": v for k, v in s.items()} | {"head.weight": torch.zeros(2, 2)},
    lambda s: {"model": {f"backbone.{k}": v for k, v in s.items()}, "optimizer": {"state": {}}},
], ids=["key", "key and prefix", "wrappers", "encoder", "backbone"])  # fmt: skip
def test_a_published_checkpoint_is_found_wherever_it_lies(saved):
    model, state = small_atm()
    x, loaded = torch.randn(3, 5, 100), from_published("atm", saved(state))
    with torch.no_grad():
        assert torch.allclose(loaded(x, torch.zeros(3, dtype=int)), model(x, torch.zeros(3, dtype=int)), atol=1e-6)


@pytest.mark.parametrize("change, message", [
    (lambda s: s | {"decoder.weight": torch.zeros(2)}, "has no 'decoder.weight'"),
    (lambda s: {k: v for k, v in s.items() if "norm2" not in k}, "norm2.bias is none; expected"),
    (lambda s: {k: v for k, v in s.items() if "subject_embedding" not in k}, "lacks a weight"),
    (lambda s: s | {"proj_eeg.2.bias": torch.zeros(3)}, r"project.norm.bias is \(3,\); expected \(16,\)"),
    (lambda s: s | {"proj_eeg.0.weight": torch.zeros(3)}, "project.first.* is|do not fit together"),
    (lambda s: s | {"proj_eeg.2.bias": "text"}, "is no tensor"),
    (lambda s: {}, "lacks a weight"),
])  # fmt: skip
def test_a_checkpoint_that_is_another_model_or_damaged_is_one_line(change, message):
    _, state = small_atm()
    from_published("atm", state)
    with pytest.raises(UserError, match=message) as error:
        from_published("atm", change(state))
    assert "\n" not in str(error.value)


def test_unknown_models_and_kinds_are_one_line():
    with pytest.raises(UserError, match="no published model here; there are atm, nice"):
        from_published("eegformer", {})
    with pytest.raises(UserError, match="--checkpoint_kind older: expected one of develop, paper"):
        from_published("atm", {}, "older")
