"""IP-Adapter, image to image and ControlNet: as diffusers' own calls, alone and in batches, from the hub's layouts, and
refusals.
"""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from demo.tiny_models import byte_tokenizer, complete_image_model
from models.clip_targets import load_vae
from models.guided_generator import Guidance, GuidedGenerator, guidance_pairs, load_controlnet, read_ip_adapter
from models.image_generator import STRIDE, UNSAFE, load_image_model, read_prompts
from tests.conftest import ROOT
from tests.gpu.check import write_adapter
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The shipped Stable Diffusion of shapes and its ControlNet, and an adapter of random weights in the layout of
    h94/IP-Adapter.
    """
    folder = tmp_path_factory.mktemp("guided")
    complete_image_model(ROOT / "demo/assets/stable-diffusion-shapes", folder / "sd")
    unet = UNet2DConditionModel.from_pretrained(folder / "sd/unet").float()
    write_adapter(unet, folder / "ip/models/ip-adapter_sd15.safetensors")
    shutil.copytree(ROOT / "demo/assets/controlnet", folder / "controlnet")
    return folder


@pytest.fixture(scope="module")
def empty(models):
    return read_prompts(str(models / "sd"), ["a photo of a dog"], CPU)


def made(models, empty, **more):
    settings = {"steps": 4, "guidance_scale": 3.0, "image_size": 64} | more
    return GuidedGenerator(str(models / "sd"), CPU, empty[1], **settings)


def as_array(picture):
    return np.asarray(picture, float)


def diffusers_own(models, kind, **more):
    """The pipeline as diffusers makes it, with the sampler that the family uses."""
    pipeline = getattr(diffusers, kind).from_pretrained(models / "sd", dtype=torch.float32, safety_checker=None, **more)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++"
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---------------------------------------------------------------- the same as diffusers


def test_an_images_own_embedding_draws_what_diffusers_draws_for_the_image(models, empty):
    """Pixel by pixel: ip_adapter_image through diffusers' own image encoder, and the embedding through ours."""
    clip = CLIPVisionModelWithProjection.from_pretrained(ROOT / "demo/assets/clip").float().eval()
    processor = CLIPImageProcessorPil.from_pretrained(ROOT / "demo/assets/clip")
    seen = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    pipeline = diffusers_own(models, "StableDiffusionPipeline", image_encoder=clip, feature_extractor=processor)
    pipeline.load_ip_adapter(str(models / "ip"), subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    theirs = pipeline(
        "", ip_adapter_image=seen, num_inference_steps=4, guidance_scale=3.0, height=64, width=64,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    with torch.no_grad():
        embedding = clip(processor(seen, return_tensors="pt").pixel_values).image_embeds[0]
    generator = made(models, empty, ip_adapter=str(models / "ip"), width=768)
    ours = generator.draw([Guidance(empty[1], embedding)], [5])[0]
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1
    other = generator.draw([Guidance(empty[1], -embedding)], [5])[0]
    assert np.abs(as_array(other) - as_array(ours)).mean() > 3  # the embedding says something


def test_zeros_stand_before_the_embeddings_where_guidance_is_used():
    x = torch.arange(6.0).reshape(2, 3)
    assert guidance_pairs(x, False).shape == (2, 1, 3)
    pairs = guidance_pairs(x, True)
    assert pairs.shape == (4, 1, 3) and not pairs[:2].any() and torch.equal(pairs[2:, 0], x)


def test_a_map_draws_what_diffusers_draws_along_it(models, empty):
    edges = Image.new("RGB", (128, 128))
    edges.paste((255, 255, 255), (30, 30, 34, 100))
    net = ControlNetModel.from_pretrained(models / "controlnet", dtype=torch.float32)
    pipeline = diffusers_own(models, "StableDiffusionControlNetPipeline", controlnet=net)
    theirs = pipeline(
        "a photo of a dog", image=edges.resize((64, 64)), num_inference_steps=4, guidance_scale=3.0, height=64,
        width=64,
        controlnet_conditioning_scale=0.5, generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    generator = made(models, empty, controlnet=str(models / "controlnet"))
    prompt = empty[0]["a photo of a dog"]
    ours = generator.draw([Guidance(prompt, structure=edges)], [5])[0]
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1
    other = generator.draw([Guidance(prompt, structure=Image.new("RGB", (128, 128)))], [5])[0]
    assert np.abs(as_array(other) - as_array(ours)).max() > 10


def test_latents_begin_what_diffusers_begins_from_them(models, empty):
    latents = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))
    pipeline = diffusers_own(models, "StableDiffusionImg2ImgPipeline")
    theirs = pipeline(
        "a photo of a dog", image=latents[None], strength=0.6, num_inference_steps=8, guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    generator = made(models, empty, steps=8, strength=0.6)
    ours = generator.draw([Guidance(empty[0]["a photo of a dog"], latents=latents)], [5])[0]
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1
    assert generator.picture_of(latents).size == (64, 64)


@pytest.mark.parametrize("parts", [("embedding",), ("latents",), ("structure",), ("embedding", "latents", "structure")])
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_a_picture_of_a_batch_is_what_it_is_alone(models, empty, parts, scale):
    generator = made(
        models, empty, guidance_scale=scale, ip_adapter=str(models / "ip") if "embedding" in parts else None, width=768,
        controlnet=str(models / "controlnet") if "structure" in parts else None,
        strength=0.8 if "latents" in parts else None,
    )  # fmt: skip
    torch.manual_seed(1)
    edges = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)) for k in range(4)]
    guidance = [
        Guidance(empty[1], torch.randn(768) if "embedding" in parts else None, torch.randn(4, 16,
            16) if "latents" in parts else None,
                 edges[k] if "structure" in parts else None)
        for k in range(4)
    ]  # fmt: skip
    together = generator.draw(guidance, [1, 2, 3, 4])
    alone = [generator.draw([one], [seed])[0] for one, seed in zip(guidance, (1, 2, 3, 4), strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(as_array(a) - as_array(b)).max() <= 2
    assert np.abs(as_array(together[0]) - as_array(together[1])).mean() > 2


def test_of_a_batch_only_what_came_out_black_is_drawn_again(models, empty, monkeypatch):
    generator = made(models, empty, ip_adapter=str(models / "ip"), width=768)
    guidance, drawn, tries = [Guidance(empty[1], torch.randn(768)) for _ in range(3)], generator._drawn, []

    def checked(guidance, seeds):
        pictures = drawn(guidance, seeds)
        for picture in pictures[1:] if len(seeds) > 1 else []:
            picture.info["fault"] = UNSAFE
        tries.append(list(seeds))
        return pictures

    monkeypatch.setattr(generator, "_drawn", checked)
    pictures = generator.draw(guidance, [1, 2, 3])
    assert tries == [[1, 2, 3], [2 + STRIDE], [3 + STRIDE]] and not any("fault" in p.info for p in pictures)
    again = drawn([guidance[2]], [3 + STRIDE])[0]
    assert np.array_equal(as_array(pictures[2]), as_array(again)) and "redrawn" not in pictures[0].info


# ---------------------------------------------------------------- the hub's layouts


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    """A small random model in the layout of stabilityai/sdxl-turbo, with its adapter where h94/IP-Adapter has it."""
    folder, tokenizer = tmp_path_factory.mktemp("turbo"), byte_tokenizer()
    torch.manual_seed(0)
    text = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, projection_dim=32, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=77)  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownBlock2D",
        "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80, cross_attention_dim=64, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4, norm_num_groups=8, sample_size=64,
    )  # fmt: skip
    scheduler = EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1
    )
    pipeline = StableDiffusionXLPipeline(
        vae, CLIPTextModel(CLIPTextConfig(**text)), CLIPTextModelWithProjection(CLIPTextConfig(**text)), tokenizer,
        tokenizer,
        unet, scheduler, force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "sdxl")
    write_adapter(unet, folder / "ip/sdxl_models/ip-adapter_sdxl_vit-h.safetensors", width=96)
    return folder


def test_files_of_half_precision_are_enough_and_stand_before_the_others_where_half_is_wanted(turbo, tmp_path):
    """As stabilityai/sdxl-turbo lies on the hub: each part in both precisions."""
    shutil.copytree(turbo / "sdxl", tmp_path / "both")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (plain,) = (tmp_path / "both" / name).glob("*.safetensors")
        half = {key: value.half() + (1 if value.dim() == 1 else 0) for key, value in load_file(plain).items()}
        save_file(
            half, plain.with_name(f"{plain.stem}.fp16.safetensors"), metadata={"format": "pt"}
        )  # to be told apart

    def bias(folder, dtype):
        return float(load_image_model(str(folder), dtype).pipeline.unet.conv_in.bias.float().mean())

    shutil.copytree(tmp_path / "both", tmp_path / "halves")
    for path in (tmp_path / "halves").rglob("*model.safetensors"):
        path.unlink()
    plain = bias(turbo / "sdxl", torch.float32)
    assert bias(tmp_path / "both", torch.float32) == plain
    for folder, dtype in (("both", torch.float16), ("halves", torch.float16), ("halves", torch.float32)):
        assert bias(tmp_path / folder, dtype) == pytest.approx(plain + 1, abs=0.01)
    assert load_vae(str(tmp_path / "halves"))[0].dtype == torch.float32


def test_sdxl_turbo_keeps_its_own_sampler_and_draws_in_four_steps_without_guidance(turbo):
    told, empty = read_prompts(str(turbo / "sdxl"), ["", "a red star"], CPU)
    generator = GuidedGenerator(str(turbo / "sdxl"), CPU, empty, image_size=64, ip_adapter=str(turbo / "ip"), width=96)
    assert (generator.steps, generator.guidance_scale) == (4, 0.0)
    assert type(generator.pipeline.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert generator.pipeline.text_encoder is None and generator.pipeline.text_encoder_2 is None
    torch.manual_seed(0)
    x = torch.randn(2, 96)
    together = generator.draw([Guidance(told[""], x[0]), Guidance(told[""], x[1])], [1, 2])
    alone = [generator.draw([Guidance(told[""], x[k])], [k + 1])[0] for k in (0, 1)]
    assert all(np.abs(as_array(a) - as_array(b)).max() <= 2 for a, b in zip(together, alone, strict=True))
    low = GuidedGenerator(
        str(turbo / "sdxl"), CPU, empty, image_size=64, ip_adapter=str(turbo / "ip"), width=96, strength=0.85
    )
    assert low.draw([Guidance(told["a red star"], x[0], torch.randn(4, 16, 16))], [1])[0].size == (64, 64)


def test_a_single_file_is_an_adapter_too(models, empty):
    file = models / "ip/models/ip-adapter_sd15.safetensors"
    assert made(models, empty, ip_adapter=str(file), width=768).draw([Guidance(empty[1], torch.ones(768))], [0])


# ---------------------------------------------------------------- refusals


def family_of(models):
    return load_image_model(str(models / "sd"), for_drawing=True)


def test_an_adapter_for_another_image_encoder_or_model_is_refused(models, turbo):
    family = family_of(models)
    with pytest.raises(UserError, match="another image encoder"):
        read_ip_adapter(str(models / "ip"), family, 1024)
    with pytest.raises(UserError, match="another image model"):
        read_ip_adapter(str(turbo / "ip/sdxl_models/ip-adapter_sdxl_vit-h.safetensors"), family, 96)
    with pytest.raises(UserError, match="has no models/ip-adapter_sd15.safetensors"):
        read_ip_adapter(str(turbo / "ip"), family, 96)


def test_a_file_that_is_no_plain_adapter_is_refused(models, tmp_path):
    family = family_of(models)
    save_file({"image_proj.latents": torch.zeros(1, 16, 768)}, tmp_path / "plus.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((models / "ip/models/ip-adapter_sd15.safetensors").read_bytes()[:5000])
    (tmp_path / "code.safetensors").write_bytes(b"cposix\nsystem\n(S'touch /tmp/x'\ntR.")
    for name in ("plus", "cut", "code"):
        with pytest.raises(UserError, match="expected the plain IP-Adapter"):
            read_ip_adapter(str(tmp_path / f"{name}.safetensors"), family, 768)
    with pytest.raises(UserError, match="cannot be"):
        read_ip_adapter(str(tmp_path / "nowhere"), family, 768)


def test_a_controlnet_for_another_base_is_refused(models, turbo, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(turbo / "sdxl/unet")
    other = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="for another image model: its cross_attention_dim is 64"):
        load_controlnet(str(tmp_path / "other"), family_of(models), torch.float32)
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"cross_attention_dim": "wide"}))
    with pytest.raises(UserError):
        load_controlnet(str(tmp_path / "other"), family_of(models), torch.float32)


def test_latents_of_another_size_and_too_few_steps_are_refused(models, empty):
    with pytest.raises(UserError, match="less than one step"):
        made(models, empty, steps=2, strength=0.4)
    generator = made(models, empty, strength=0.85)
    with pytest.raises(UserError, match="draws from \\(4, 16, 16\\)"):
        generator.draw([Guidance(empty[1], latents=torch.randn(4, 64, 64))], [0])


def test_amused_takes_no_adapter(tmp_path):
    complete_image_model(ROOT / "demo/assets/amused", tmp_path / "amused")
    family = load_image_model(str(tmp_path / "amused"))
    with pytest.raises(UserError, match="there is none for the family Amused"):
        read_ip_adapter("anything", family, 768)
    with pytest.raises(UserError, match="there is none for the family Amused"):
        load_controlnet("anything", family, torch.float32)
