"""Pictures of seen images on a GPU: peak memory at the published sizes with random weights, and the same numbers as on
the CPU; skips without one.
"""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.memory_of_pictures import SD15, SDXL, TEXT_G, TEXT_L, VAE, build
from demo.tiny_models import byte_tokenizer, complete_image_model, complete_ip_adapter
from models import guided_generator
from models.guided_generator import Guidance, GuidedGenerator
from models.image_generator import read_prompts
from models.prior import DiffusionPrior
from tests.conftest import ROOT
from tests.models.test_guided_generator import write_adapter
from utils.device import free_gpu_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GIB, WIDTH = 2**30, 1024  # of CLIP ViT-H's embeddings
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_peak():
    assert free_gpu_memory(CUDA) < 256
    torch.cuda.reset_peak_memory_stats()


def half(kind, *args, **settings):
    return build(kind, torch.float16, *args, **settings)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """Stable Diffusion 1.5, its ControlNet and IP-Adapter: published sizes, random weights."""
    folder, tokenizer = tmp_path_factory.mktemp("sd15"), byte_tokenizer()
    unet = half(UNet2DConditionModel, **SD15)
    ControlNetModel.from_unet(unet).half().save_pretrained(folder / "controlnet")
    write_adapter(unet, folder / "ip/models/ip-adapter_sd15.safetensors", width=WIDTH)
    pipeline = StableDiffusionPipeline(
        vae=half(AutoencoderKL, **VAE), unet=unet, tokenizer=tokenizer, text_encoder=half(CLIPTextModel,
        CLIPTextConfig(**text(TEXT_L, tokenizer))),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1), safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def sdxl_turbo(tmp_path_factory):
    """SDXL-Turbo and its IP-Adapter: published sizes, random weights."""
    folder, tokenizer = tmp_path_factory.mktemp("sdxl"), byte_tokenizer()
    unet = half(UNet2DConditionModel, **SDXL)
    write_adapter(unet, folder / "ip/sdxl_models/ip-adapter_sdxl_vit-h.safetensors", width=WIDTH)
    pipeline = StableDiffusionXLPipeline(
        vae=half(AutoencoderKL, **VAE, scaling_factor=0.13025, force_upcast=True), unet=unet, tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=half(CLIPTextModel, CLIPTextConfig(**text(TEXT_L, tokenizer))),
        text_encoder_2=half(CLIPTextModelWithProjection, CLIPTextConfig(**text(TEXT_G, tokenizer))),
        scheduler=EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder


def text(settings, tokenizer):
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return settings | ids


def draw_one(folder, **more):
    """A picture from an embedding; what the script does, in its order. Returns it and the peak in GiB."""
    told, empty = read_prompts(str(folder / "model"), [""], CUDA)
    free_gpu_memory(CUDA)
    kinds = {"latents": torch.randn(4, 64, 64)} if "strength" in more else {}
    kinds |= {"structure": Image.new("RGB", (128, 128))} if "controlnet" in more else {}
    generator = GuidedGenerator(
        str(folder / "model"), CUDA, empty, steps=3, ip_adapter=str(folder / "ip"), width=WIDTH, **more
    )
    assert generator.dtype == torch.float16
    picture = generator.draw([Guidance(told[""], torch.randn(WIDTH), **kinds)], [0])[0]
    return picture, torch.cuda.max_memory_allocated() / GIB


def test_stable_diffusion_with_all_that_guides_it_fits_into_4_gb(sd15, capsys):
    picture, peak = draw_one(sd15, controlnet=str(sd15 / "controlnet"), strength=0.85)
    with capsys.disabled():
        print(f"\nSD 1.5, IP-Adapter, ControlNet, latents: peak {peak:.2f} GiB (computed: 2.8 GB)")
    assert picture.size == (512, 512) and peak < 4


def test_sdxl_turbo_fits_into_8_gb_whole_and_into_less_in_turns(sdxl_turbo, monkeypatch, capsys):
    monkeypatch.setattr(guided_generator, "OFFLOAD_BELOW", 0.0)
    whole, peak = draw_one(sdxl_turbo)
    free_gpu_memory(CUDA)
    torch.cuda.reset_peak_memory_stats()
    monkeypatch.setattr(guided_generator, "OFFLOAD_BELOW", 1e6)
    in_turns, less = draw_one(sdxl_turbo)
    with capsys.disabled():
        print(
            f"\nSDXL-Turbo and IP-Adapter: peak {peak:.2f} GiB, with offload {less:.2f} GiB (computed: 7.0 and 5.9 GB)"
        )
    assert whole.size == in_turns.size == (512, 512) and peak < 8 and less < peak


def test_a_prior_and_a_picture_are_the_cpus(tmp_path):
    torch.manual_seed(0)
    prior, condition = DiffusionPrior(dim=64, condition_dim=64).eval(), torch.randn(3, 64)
    on_cpu = prior.sample(condition, [0, 1, 2], steps=5)
    on_gpu = prior.to(CUDA).sample(condition.to(CUDA), [0, 1, 2], steps=5).cpu()
    assert torch.allclose(on_cpu, on_gpu, atol=1e-3 * on_cpu.abs().max())

    complete_image_model(ROOT / "demo/assets/stable-diffusion-shapes", tmp_path / "sd")
    complete_ip_adapter(ROOT / "demo/assets/ip-adapter", tmp_path / "ip")
    embedding, drawn = torch.randn(768), []
    for device in (CPU, CUDA):
        told, empty = read_prompts(str(tmp_path / "sd"), [""], device)
        generator = GuidedGenerator(
            str(tmp_path / "sd"), device, empty, steps=4, image_size=64, ip_adapter=str(tmp_path / "ip"), width=768
        )
        drawn.append(np.asarray(generator.draw([Guidance(told[""], embedding)], [0])[0], float))
    assert np.abs(drawn[0] - drawn[1]).mean() < 6  # of 255: half precision there
