import json
import zlib

import numpy as np
import pytest
import torch

from datasets.description import load_description
from models.CSBrain import CSBrain
from models.CSBrain_transformer import BrainEmbedEEGLayer, TemEmbedEEGLayer
from models.CSBrain_transformerlayer import CSBrain_TransformerEncoderLayer, region_attention_mask
from models.token_encoders import load_encoder
from utils.errors import UserError

BCIC, VI, FACED = (load_description(name).montage for name in ("BCICIV2a", "VI", "FACED"))


def load(montage, checkpoint, **more):
    """CSBrain by the table's name, for four seconds at 250 Hz."""
    return load_encoder(
        "csbrain", checkpoint, electrodes=montage.electrodes, brain_regions=montage.brain_regions,
        sorted_indices=montage.sorted_indices, n_times=1000, sfreq=250.0, **more,
    )  # fmt: skip


def rule_made(shapes: dict) -> dict:
    """The golden vectors' weights: a normal draw seeded by each tensor's name."""
    state = {}
    for key, shape in shapes.items():
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        if len(shape) > 1:
            z = 0.5 * z / np.sqrt(np.prod(shape[1:]))
        else:
            z = 1 + 0.1 * z if key.endswith("weight") else 0.1 * z
        state[key] = torch.tensor(z, dtype=torch.float32)
    return state


def build(brain_regions, sorted_indices) -> CSBrain:
    model = CSBrain(brain_regions=brain_regions, sorted_indices=sorted_indices)
    model.load_state_dict(rule_made({k: tuple(v.shape) for k, v in model.state_dict().items()}))
    return model.eval()


@pytest.mark.parametrize("name", ["bcic_22ch_4patch", "vi_32ch_4patch"])
def test_outputs_equal_the_published_model_at_every_stage(shared, name):
    golden = np.load(shared / f"golden/{name}.npz")
    model = build(golden["brain_regions"].tolist(), golden["sorted_indices"].tolist())
    seen = {}
    model.patch_embedding.register_forward_hook(lambda m, i, o: seen.update(after_patch_embedding=o))
    model.encoder.layers[0].register_forward_hook(lambda m, i, o: seen.update(after_layer_1=o))
    with torch.no_grad():
        seen["y"] = model(torch.from_numpy(golden["x"]))
    for stage, value in seen.items():
        rms = np.sqrt(np.mean(golden[stage] ** 2))
        assert np.abs(value.numpy() - golden[stage]).max() < 1e-4 * rms, stage


def test_names_and_shapes_are_the_published_ones(shared):
    published = json.loads((shared / "golden/csbrain_state_dict.json").read_text())
    for montage in (BCIC, VI, FACED):
        model = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices)
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == published


def test_it_has_295_tensors_and_8902000_values_whatever_the_montage():
    for montage in (BCIC, VI, FACED):
        state = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices).state_dict()
        assert (len(state), sum(v.numel() for v in state.values())) == (295, 8_902_000)


def test_area_config_lists_regions_in_the_encoders_order():
    model = CSBrain(brain_regions=[4, 0, 4, 1], sorted_indices=[1, 3, 0, 2])
    assert {k: (v["channels"], v["slice"]) for k, v in model.area_config.items()} == {
        "region_0": (1, slice(0, 1)), "region_1": (1, slice(1, 2)), "region_4": (2, slice(2, 4)),
    }  # fmt: skip
    with pytest.raises(ValueError):
        CSBrain(brain_regions=[4, 0], sorted_indices=[0, 1])  # not region by region
    with pytest.raises(ValueError):
        CSBrain(brain_regions=[0, 0], sorted_indices=[0, 0])


@pytest.mark.parametrize("patches", [1, 4, 5, 7, 10, 12])
def test_window_attention_runs_over_the_windows_of_each_slot(patches):
    torch.manual_seed(0)
    model = build([0, 0, 4], [0, 1, 2])
    layer = model.encoder.layers[0]
    h = torch.randn(2, 3, patches, 200)
    w = min(patches, 5)
    expected = torch.zeros_like(h)
    for b in range(2):
        for c in range(3):
            for slot in range(w):
                places = list(range(slot, -(-patches // w) * w, w))
                rows = [h[b, c, p] if p < patches else torch.zeros(200) for p in places]
                sequence = torch.stack(rows)[None]
                out = layer.inter_window_attn(sequence, sequence, sequence)[0][0]
                for p, row in zip(places, out, strict=True):
                    if p < patches:
                        expected[b, c, p] = row
    with torch.no_grad():
        assert torch.allclose(layer._window_attention(h), expected, atol=1e-5)


def test_region_attention_adds_the_region_mean_and_obeys_the_mask():
    torch.manual_seed(0)
    model = build([0, 1, 1, 4, 4, 4], range(6))
    layer = model.encoder.layers[0]
    h = torch.randn(1, 6, 4, 200)
    groups = [{0, 1, 3}, {0, 2, 4}, {0, 1, 5}]  # one electrode of each region, by number modulo the region's size
    mask = region_attention_mask(model.area_config)
    for i in range(6):
        for j in range(6):
            assert mask[i, j].item() == (not any({i, j} <= group for group in groups))
    region = [[0], [1, 2], [1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]]
    x = torch.stack([h[0, c] + layer.global_fc(h[0, region[c]].mean(0)) for c in range(6)])  # (6, P, 200)
    attended = layer.inter_region_attn(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), attn_mask=mask)[0]
    with torch.no_grad():
        assert torch.allclose(layer._region_attention(h)[0], attended.transpose(0, 1), atol=1e-5)


def test_temporal_embedding_reinterprets_memory_and_does_not_transpose():
    torch.manual_seed(0)
    layer = TemEmbedEEGLayer(200, [(1,), (3,), (5,)])
    h = torch.randn(1, 2, 4, 200)
    with torch.no_grad():
        out = layer(h)
        block = torch.from_numpy(np.frombuffer(h[0, 1].numpy().tobytes(), np.float32).reshape(1, 200, 4, 1).copy())
        expected = torch.cat([conv(block) for conv in layer.convs], dim=1)[0, :, :, 0]  # (200, P)
    assert np.allclose(out[0, 1].numpy().ravel(), expected.numpy().ravel(), atol=1e-6)


def test_brain_embedding_is_circular_inside_a_region_and_ignores_other_codes():
    torch.manual_seed(0)
    areas = {"region_0": slice(0, 1), "region_3": slice(1, 5), "region_7": slice(5, 6)}
    config = {name: {"channels": s.stop - s.start, "slice": s} for name, s in areas.items()}
    layer = BrainEmbedEEGLayer(200, [(1,), (3,), (5,)], config)
    h = torch.randn(1, 6, 2, 200)
    with torch.no_grad():
        out = layer(h)
        rolled = h.clone()
        rolled[:, 1:5] = h[:, 1:5].roll(1, dims=1)
        assert torch.allclose(layer(rolled)[:, 1:5], out[:, 1:5].roll(1, dims=1), atol=1e-5)
        block = layer.region_blocks["region_0"]  # one electrode: only the middle of each kernel sees something
        alone = torch.cat(
            [conv.weight[:, :, conv.kernel_size[0] // 2, 0] @ h[0, 0].T + conv.bias[:, None] for conv in block]
        )
    assert torch.allclose(out[0, 0], alone.T, atol=1e-5)
    assert (out[:, 5] == 0).all()


def test_masked_patches_are_not_seen():
    model = build(BCIC.brain_regions, BCIC.sorted_indices)
    model.patch_embedding.mask_encoding.data.fill_(0.3)
    torch.manual_seed(0)
    x, mask = torch.randn(2, 22, 7, 200), torch.zeros(2, 22, 7)
    mask[:, 3, 2] = 1  # the fourth electrode in region order
    other = x.clone()
    other[:, model.sorted_indices[3], 2] = 99.0
    replaced = x.clone()
    replaced[:, model.sorted_indices[3], 2] = 0.3
    with torch.no_grad():
        assert torch.equal(model(x, mask), model(other, mask))
        assert torch.allclose(model(x, mask), model(replaced), atol=1e-6)
        assert not torch.allclose(model(x, mask), model(x), atol=1e-3)


@pytest.mark.parametrize("patches", [1, 7, 12])
@pytest.mark.parametrize("montage", [BCIC, VI], ids=["some regions", "all regions"])
def test_gradients_reach_every_trainable_weight_and_no_other(montage, patches):
    model = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices, n_layer=1)
    y = model(torch.randn(1, len(montage.electrodes), patches, 200))
    assert y.shape == (1, len(montage.electrodes), patches, 200)
    y.square().sum().backward()
    trainable = {id(p) for p in model.trainable_parameters()}
    assert {n for n, p in model.named_parameters() if (p.grad is None) != (id(p) not in trainable)} == set()
    assert not model.patch_embedding.mask_encoding.requires_grad
    unused = sum(name not in model.area_config for name in model.BrainEmbedEEGLayer.region_blocks)
    n_left_out = sum(1 for _ in model.parameters()) - len(trainable)
    assert n_left_out == 1 + unused * 6  # the mask token; three kernels and their biases a region without electrodes


def test_checkpoints_load_with_and_without_module_prefix(tmp_path, capsys):
    model = build(BCIC.brain_regions, BCIC.sorted_indices)
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "CSBrain.pth")
    encoder = load(BCIC, tmp_path / "CSBrain.pth")
    assert "295/295 loaded" in capsys.readouterr().out
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    x = torch.randn(1, 22, 4, 200)
    with torch.no_grad():
        assert torch.allclose(model.proj_out(encoder(x)), model(x), atol=1e-5)


def test_a_tensor_that_does_not_fit_is_named_and_skipped_only_when_asked(tmp_path, capsys):
    state = build(BCIC.brain_regions, BCIC.sorted_indices).state_dict()
    del state["proj_out.0.bias"]
    state["surprise"] = torch.zeros(1)
    state["encoder.layers.3.norm1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "CSBrain.pth")
    with pytest.raises(UserError) as error:
        load(BCIC, tmp_path / "CSBrain.pth")
    for name in ("proj_out.0.bias is missing", "surprise is unknown", "encoder.layers.3.norm1.weight is (7,)"):
        assert name in str(error.value)
    load(BCIC, tmp_path / "CSBrain.pth", allow_partial=True)
    out = capsys.readouterr().out
    assert "293/295 loaded" in out and out.count("skipped") == 3


def test_the_layer_works_alone():
    config = {"region_0": {"channels": 2, "slice": slice(0, 2)}}
    layer = CSBrain_TransformerEncoderLayer(200, 8, 800, config).eval()
    assert layer(torch.randn(3, 2, 6, 200)).shape == (3, 2, 6, 200)
