"""Claim: pictures of seen images fit into 8 GB: 4 GB with Stable Diffusion 1.5, its IP-Adapter and ControlNet;
SDXL-Turbo fits as it is.

    python benchmarks/memory_of_pictures.py

Computed and not measured: the published sizes are built without weights, on tensors that have a shape and no numbers,
and what is alive during a forward pass (or a training step) is counted by PyTorch's own tracker. CUDA's context (about
0.5 GB), its libraries' workspaces and the allocator's gaps come on top. Each line is a stage of generate_eeg2img.py or
of a training; stages do not add up, for each frees its models.
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIPVision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.eeg_encoders import LowLevel  # noqa: E402
from models.prior import DiffusionPrior  # noqa: E402
from models.structure import StructuralVAE, vae_loss  # noqa: E402

HALF, FULL = torch.float16, torch.float32
LIMIT = 8.0  # GB
SD15 = dict(
    sample_size=64,
    cross_attention_dim=768,
    attention_head_dim=8,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
SDXL = dict(
    sample_size=64, cross_attention_dim=2048, attention_head_dim=(5, 10, 20), block_out_channels=(320, 640, 1280),
    layers_per_block=2, transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816, down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
)  # fmt: skip
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    sample_size=512,
)
TEXT_L = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
TEXT_G = dict(
    vocab_size=49408,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
)
VISION_H = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=1024,
)


def build(kind, dtype, *args, **settings):  # noqa: ANN001, ANN201
    """A module in a precision; made in it, since a fake module cannot be converted."""
    torch.set_default_dtype(dtype)
    made = kind(*args, **settings)
    torch.set_default_dtype(FULL)
    return made


def with_adapter(unet: UNet2DConditionModel, width: int = 1024) -> UNet2DConditionModel:
    """A UNet with the plain IP-Adapter loaded."""
    cross, dtype = unet.config.cross_attention_dim, next(unet.parameters()).dtype
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    sides = {
        f"{2 * k + 1}.to_{side}_ip.weight": torch.empty(
            unet.get_submodule(name.removesuffix(".processor")).to_k.out_features, cross, dtype=dtype
        )
        for k, name in enumerate(names)
        for side in "kv"
    }
    projection = {
        "proj.weight": torch.empty(4 * cross, width, dtype=dtype),
        "proj.bias": torch.empty(4 * cross, dtype=dtype),
        "norm.weight": torch.empty(cross, dtype=dtype),
        "norm.bias": torch.empty(cross, dtype=dtype),
    }
    unet.__dict__["to"] = lambda **_: (
        unet
    )  # loading ends with a conversion, which fake tensors refuse; all is of this type already
    torch.set_default_dtype(dtype)
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": sides}], low_cpu_mem_usage=False)
    torch.set_default_dtype(FULL)
    del unet.__dict__["to"]
    return unet


def draws(unet, batch: int, net=None) -> None:  # noqa: ANN001
    """One denoising step."""
    noisy, states = (
        torch.randn(batch, 4, 64, 64, dtype=HALF),
        torch.randn(batch, 77, unet.config.cross_attention_dim, dtype=HALF),
    )
    added = {"image_embeds": [torch.randn(batch, 1, 1024, dtype=HALF)]}
    if unet.config.addition_embed_type:
        added |= {"text_embeds": torch.randn(batch, 1280, dtype=HALF), "time_ids": torch.randn(batch, 6, dtype=HALF)}
    down = middle = None
    if net:
        down, middle = net(
            noisy, torch.tensor(5), states, torch.randn(batch, 3, 512, 512, dtype=HALF), return_dict=False
        )
    unet(
        noisy,
        torch.tensor(5),
        states,
        added_cond_kwargs=added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    )


def trains(model: torch.nn.Module, loss):  # noqa: ANN001, ANN201
    """An optimiser step as a function; the optimiser's state is there from the second one on."""
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss().backward()
        adam.step()
        adam.zero_grad()

    return step


def peak(modules: list[torch.nn.Module], work, grad: bool = False) -> tuple[int, float, float]:  # noqa: ANN001
    """Parameters, GB that they take, and GB at the peak of some work."""
    n = sum(p.numel() for module in modules for p in module.parameters())
    held = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    tracker = MemTracker()
    tracker.track_external(*modules)
    with tracker, torch.set_grad_enabled(grad):
        work()
        if grad:
            tracker.reset_mod_stats()
            work()
    return n, held / 1e9, tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] / 1e9


def reading(line) -> None:  # noqa: ANN001
    """What comes before drawing."""
    ids = torch.ones(1, 77, dtype=torch.long)
    text_l = build(CLIPTextModel, HALF, CLIPTextConfig(**TEXT_L))
    line("SD 1.5: prompts", [text_l], lambda: text_l(ids))
    text_g = build(CLIPTextModelWithProjection, HALF, CLIPTextConfig(**TEXT_G))
    line("SDXL-Turbo: prompts, both text encoders", [text_l, text_g], lambda: (text_l(ids), text_g(ids)))
    vision = build(CLIPVision, FULL, CLIPVisionConfig(**VISION_H))
    line("CLIP ViT-H, 32 images at once, fp32", [vision], lambda: vision(torch.randn(32, 3, 224, 224)))
    prior, t = DiffusionPrior(), torch.zeros(256)
    line("prior, 256 trials", [prior], lambda: prior.net(torch.randn(256, 1024), t, torch.randn(256, 1024)))


def drawing_sd15(line) -> None:  # noqa: ANN001
    latents, vae = torch.randn(1, 4, 64, 64, dtype=HALF), build(AutoencoderKL, HALF, **VAE)
    unet = build(UNet2DConditionModel, HALF, **SD15)
    net = build(ControlNetModel.from_unet, HALF, unet, load_weights_from_unet=False)
    with_adapter(unet)
    line("SD 1.5 and IP-Adapter, guidance: denoise", [unet, vae], lambda: draws(unet, 2))
    line("SD 1.5 and IP-Adapter: decode the picture", [unet, vae], lambda: vae.decode(latents))
    line("SD 1.5, IP-Adapter and ControlNet: denoise", [unet, vae, net], lambda: draws(unet, 2, net))


def drawing_sdxl(line) -> None:  # noqa: ANN001
    latents, vae = torch.randn(1, 4, 64, 64), build(AutoencoderKL, FULL, **VAE)  # in half precision this VAE overflows
    unet = with_adapter(build(UNet2DConditionModel, HALF, **SDXL))
    line("SDXL-Turbo and IP-Adapter: denoise", [unet, vae], lambda: draws(unet, 1))
    line("SDXL-Turbo and IP-Adapter: decode the picture", [unet, vae], lambda: vae.decode(latents))
    line("SDXL-Turbo, offload: the UNet alone", [unet], lambda: draws(unet, 1))
    line("SDXL-Turbo, offload: the VAE alone", [vae], lambda: vae.decode(latents))


def training(line) -> None:  # noqa: ANN001
    low, x, y = LowLevel(), torch.randn(30, 63, 250), torch.randn(30, 4, 64, 64)
    line("train low_level, batch 30", [low], trains(low, lambda: F.l1_loss(low(x), y)), grad=True)
    vae, pictures, maps = StructuralVAE(), torch.rand(32, 3, 128, 128), torch.rand(32, 1, 128, 128)
    line(
        "train SGDM's VAE, batch 32", [vae], trains(vae, lambda: vae_loss(pictures, maps, vae(pictures))[0]), grad=True
    )


def main() -> None:
    print(
        f"| stage (computed, not measured) | parameters | weights, GB | peak, GB | of {LIMIT:g} GB |\n| --- | --- | "
        "--- | --- | --- |"
    )

    def line(name: str, modules: list[torch.nn.Module], work, grad: bool = False) -> None:  # noqa: ANN001
        n, held, most = peak(modules, work, grad)
        print(f"| {name} | {n:,} | {held:.2f} | {most:.2f} | {most / LIMIT:.2f} |", flush=True)

    for stage in (reading, drawing_sd15, drawing_sdxl, training):
        with FakeTensorMode():
            stage(line)


if __name__ == "__main__":
    main()
