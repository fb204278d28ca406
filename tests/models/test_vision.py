"""Features of any vision model against what transformers gives of the same pictures; blurs against Gaussians."""

import pytest
import torch
import transformers
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from models.clip_targets import image_targets, vision_targets
from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.vision import load_vision
from tests.conftest import ROOT
from tests.seen_images import TINY, draw, save_model
from utils.errors import UserError

CLIP = str(ROOT / "demo/assets/clip")
# what is saved, its image processor, and what stands for the image in (N, tokens, D)
FAMILIES = {
    "clip_vision_model": ("CLIPVision", "CLIPImageProcessorPil", lambda x: x[:, 0]),
    "siglip_vision_model": ("SiglipVision", "SiglipImageProcessorPil", lambda x: x.mean(dim=1)),
    "dinov2": ("Dinov2", "BitImageProcessorPil", lambda x: x[:, 0]),
    "dinov2_with_registers": ("Dinov2WithRegisters", "BitImageProcessorPil", lambda x: x[:, 0]),
    "vit": ("ViT", "ViTImageProcessorPil", lambda x: x[:, 0]),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{k}.png" for k in range(4)]
    for k, path in enumerate(paths):
        draw(path, k, k % 2)
    return paths


def opened(paths):
    return [Image.open(path).convert("RGB") for path in paths]


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_a_layer_is_what_transformers_gives_behind_the_last_norm(kind, pictures, tmp_path):
    name, processor, of_tokens = FAMILIES[kind]
    model, processor = save_model(tmp_path / "model", name, processor)
    out = model(processor(opened(pictures), return_tensors="pt")["pixel_values"], output_hidden_states=True)
    norm = getattr(model, "vision_model", model)
    norm = norm.post_layernorm if hasattr(norm, "post_layernorm") else norm.layernorm
    one, last = (of_tokens(norm(out.hidden_states[k])) for k in (1, 3))

    def read(*layers):
        return load_vision(str(tmp_path / "model"), layers)(opened(pictures))

    assert torch.allclose(read(1), one, atol=1e-5) and torch.allclose(read(-3), one, atol=1e-5)
    assert torch.allclose(read(-1), last, atol=1e-5) and not torch.allclose(one, last, atol=0.1)
    both = torch.cat([F.normalize(one, dim=1), F.normalize(last, dim=1)], dim=1)
    assert torch.allclose(read(1, 3), both, atol=1e-5)
    pooled = last if kind == "vit" else out.pooler_output  # a ViT's pooler is of its classifier
    assert torch.allclose(read(), pooled, atol=1e-5)
    for layer in (0, 4, -4):
        with pytest.raises(UserError, match=f"--clip_layer {layer}: .* has layers 1 to 3"):
            read(layer)


def test_the_vision_part_of_a_whole_siglip_or_clip_is_read_and_another_kind_is_refused(pictures, tmp_path):
    vision = transformers.SiglipVisionConfig(**TINY).to_dict()
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    whole.save_pretrained(tmp_path / "whole")
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "whole")
    assert load_vision(str(tmp_path / "whole"), [2])(opened(pictures)).shape == (4, 16)
    tower = transformers.CLIPVisionModel.from_pretrained(CLIP, dtype=torch.float32).eval()
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(CLIP)(
        opened(pictures), return_tensors="pt"
    ).pixel_values
    assert torch.allclose(load_vision(CLIP)(opened(pictures)), tower(pixels).pooler_output, atol=1e-5)
    with pytest.raises(UserError, match="is a resnet; --target vision reads clip, .*dinov2"):
        load_vision(str(ROOT / "demo/assets/classifier"))


def test_blurs_are_gaussians_of_the_models_input_and_their_mean_is_the_target(pictures, tmp_path):
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(CLIP, dtype=torch.float32).eval()
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(CLIP)(opened(pictures), return_tensors="pt")
    pixels = pixels["pixel_values"]

    def expected(radius):
        blurred = torch.stack([torch.from_numpy(gaussian_filter(x.numpy(), radius)) for x in pixels.flatten(0, 1)])
        return F.normalize(model(blurred.view_as(pixels)).image_embeds.detach(), dim=1)

    embed = CLIPImageTargetBuilder(CLIP, tmp_path).load
    plain = embed()(opened(pictures))
    assert torch.equal(embed([0])(opened(pictures)), plain)
    assert torch.allclose(embed([3])(opened(pictures)), expected(3), atol=1e-5)
    two = embed([0, 3])(opened(pictures))
    assert torch.allclose(two, (F.normalize(plain, dim=1) + expected(3)) / 2, atol=1e-5)
    assert not torch.allclose(two, F.normalize(plain, dim=1), atol=1e-2)
    with pytest.raises(UserError, match="--blur 1000: .* expected 0 to"):
        embed([1000])(opened(pictures))


def test_what_is_kept_is_found_again_by_layer_and_blur(pictures, tmp_path, capsys):
    save_model(tmp_path / "model", "Dinov2", "BitImageProcessorPil")

    def built(*layers, blur=(), read=vision_targets):
        how = {"blur": blur} | ({"layers": layers} if read is vision_targets else {})
        read(CLIP if read is image_targets else str(tmp_path / "model"), pictures, tmp_path / "cache", **how)
        return "4 embedded now" in capsys.readouterr().out

    assert built() and built(1) and built(2) and built(1, 2) and built(2, blur=[2.0]) and built(2, blur=[0.0, 2.0])
    assert not any((built(), built(1), built(2), built(1, 2), built(2, blur=[0.0]), built(2, blur=[2.0])))
    assert built(read=image_targets) and built(read=image_targets, blur=[2.0])
    assert not built(read=image_targets, blur=[0.0]) and not built(read=image_targets, blur=[2.0])
