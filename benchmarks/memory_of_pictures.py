"""Goal: every line of the hardware table in docs/training.md fits: 8 GB for training on text and for pictures, 4 GB
with Stable Diffusion 1.5, its IP-Adapter and ControlNet; SDXL-Turbo fits as it is; training a ControlNet takes 16 GB.

    python benchmarks/memory_of_pictures.py

Computed and not measured: the published sizes are built without weights, on tensors that have a shape and no numbers,
and what is alive during a forward pass (or a training step) is counted, operation by operation. CUDA's context (about
0.5 GB), its libraries' workspaces and the allocator's gaps come on top. Each line is a stage of generate_eeg2img.py or
of a training; stages do not add up, for each frees its models.
"""

import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers import CLIPVisionModelWithProjection as CLIPVision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.tiny_models import byte_tokenizer  # noqa: E402
from models.eeg_clip_mapper import EEGCLIPMapper, MapperBatch, mapper_loss  # noqa: E402
from models.eeg_encoders import LowLevel  # noqa: E402
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora  # noqa: E402
from models.prior import DiffusionPrior  # noqa: E402
from models.structure import StructuralVAE, vae_loss  # noqa: E402
from models.tiny_llm import CHAT_TEMPLATE  # noqa: E402

PROMPTS = "You read brain recordings.", "A recording: {eeg} What was it?"
TINYLLAMA = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
                 num_attention_heads=32, num_key_value_heads=4, bos_token_id=1, eos_token_id=2)  # fmt: skip
# libraries end with a conversion to the type that weights have already, which tensors without numbers refuse
AS_THEY_ARE = mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module)
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
    torch.set_default_dtype(dtype)
    with AS_THEY_ARE:
        unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": sides}], low_cpu_mem_usage=False)
    torch.set_default_dtype(FULL)
    return unet


def draws(unet, batch: int, net=None) -> None:  # noqa: ANN001
    """One denoising step."""
    noisy, states = (
        torch.randn(batch, 4, 64, 64, dtype=HALF),
        torch.randn(batch, 77, unet.config.cross_attention_dim, dtype=HALF),
    )
    added = {"image_embeds": [torch.randn(batch, 1, 1024, dtype=HALF)]} if unet.encoder_hid_proj else {}
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


class FourBits(torch.nn.Linear):
    """A linear layer as bitsandbytes keeps it in NF4, double quantisation: half a byte a weight, a byte for 64 of them.

    Each product makes the whole weight anew and keeps none. Its numbers mean nothing.
    """

    def __init__(self, linear: torch.nn.Linear):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, None
        n = linear.weight.numel()
        self.weight = torch.nn.Parameter(torch.empty(n // 2, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("absmax", torch.empty(n // 64, dtype=torch.uint8))

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ProductOfFourBits.apply(x, self)


class ProductOfFourBits(torch.autograd.Function):
    """Keeps nothing for the way back but the layer."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: FourBits) -> torch.Tensor:
        ctx.layer = layer
        return x @ layer.whole(x).T

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.whole(gradient), None


def trains(parameters: Iterable[torch.nn.Parameter], loss, optimizer: type = torch.optim.AdamW):  # noqa: ANN001, ANN201
    """An optimiser step as a function, with the optimiser's state, which is there from the second step on."""
    parameters = list(parameters)
    adam = optimizer(parameters, lr=1e-4)

    def step() -> None:
        if not adam.state:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            adam.step()
            adam.zero_grad()
        loss().backward()
        adam.step()
        adam.zero_grad()

    return step


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.alive = set()  # addresses of what tensors keep their numbers in, which views share

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        made = func(*args, **kwargs or {})
        tree_map_only(torch.Tensor, self.see, made)
        return made

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

    def gone(self, address: int, n: int) -> None:
        self.alive.discard(address)
        self.now -= n


def peak(modules: list[torch.nn.Module], work, grad: bool = False) -> tuple[int, float, float]:  # noqa: ANN001
    """Parameters, GB that they and buffers take, and GB at the peak of some work."""
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with Alive() as alive, torch.set_grad_enabled(grad):
        for tensor in held:
            alive.see(tensor)
        weights = alive.now
        work()
    n = sum(tensor.numel() for module in modules for tensor in module.parameters())
    return n, weights / 1e9, alive.most / 1e9


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
    line("SD 1.5 and IP-Adapter, guidance: denoise", [unet, vae], lambda: draws(unet, 2), limit=4)
    line("SD 1.5 and IP-Adapter: decode the picture", [unet, vae], lambda: vae.decode(latents), limit=4)
    line("SD 1.5, IP-Adapter and ControlNet: denoise", [unet, vae, net], lambda: draws(unet, 2, net), limit=4)
    line("the same: decode the picture", [unet, vae, net], lambda: vae.decode(latents), limit=4)
    line("the same, 8 pictures together: denoise", [unet, vae, net], lambda: draws(unet, 16, net))


def slicing(line) -> None:  # noqa: ANN001
    """What attention in slices would take: a matrix of all pairs of pixels."""
    unet = build(UNet2DConditionModel, HALF, **SD15)
    unet.set_attention_slice("max")
    line("SD 1.5, guidance, attention in slices: denoise", [unet], lambda: draws(unet, 2), limit=4)


def drawing_sdxl(line) -> None:  # noqa: ANN001
    latents, vae = torch.randn(1, 4, 64, 64), build(AutoencoderKL, FULL, **VAE)  # in half precision this VAE overflows
    unet = with_adapter(build(UNet2DConditionModel, HALF, **SDXL))
    line("SDXL-Turbo and IP-Adapter: denoise", [unet, vae], lambda: draws(unet, 1))
    line("SDXL-Turbo and IP-Adapter: decode the picture", [unet, vae], lambda: vae.decode(latents))
    line("SDXL-Turbo, offload: the UNet alone", [unet], lambda: draws(unet, 1))
    line("SDXL-Turbo, offload: the VAE alone", [vae], lambda: vae.decode(latents))


def training(line) -> None:  # noqa: ANN001
    low, x, y = LowLevel(), torch.randn(30, 63, 250), torch.randn(30, 4, 64, 64)
    line("train low_level, batch 30", [low], trains(low.parameters(), lambda: F.l1_loss(low(x), y)), grad=True)
    vae, pictures, maps = StructuralVAE(), torch.rand(32, 3, 128, 128), torch.rand(32, 1, 128, 128)
    work = trains(vae.parameters(), lambda: vae_loss(pictures, maps, vae(pictures))[0])
    line("train SGDM's VAE, batch 32", [vae], work, grad=True)


def text(line) -> None:  # noqa: ANN001
    """EEG → text: the joint phase, batch 4, targets of 64 tokens; reading. Weights in NF4, arithmetic in fp16."""
    llm = build(LlamaForCausalLM, HALF, LlamaConfig(**TINYLLAMA))
    for name, linear in [(n, m) for n, m in llm.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]:
        llm.set_submodule(name, FourBits(linear))
    with AS_THEY_ARE:
        llm = add_lora(llm.requires_grad_(False))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = EEGLanguageModel(llm, tokenizer, *PROMPTS, EEGProjection(2048))
    trained, *_ = model.set_phase(joint=True)
    tokens, ids = torch.randn(4, 28, 200), torch.ones(4, 64, dtype=torch.long)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", HALF):
            return model(tokens, ids, torch.ones(4, 64, dtype=torch.bool))

    line("train EEG → text, NF4 and LoRA, batch 4", [model], trains(trained, loss), grad=True)

    def reads() -> None:
        with torch.autocast("cpu", HALF):
            model.read_prefix()
            _, _, first, states = model._read_prompt(torch.randn(16, 28, 200))
            model._score(first[:6], states, ["The person imagined a dog."] * 10)  # so many at once; the others follow

    line("EEG → text, NF4, 16 trials read, 10 sentences scored", [model], reads, limit=2)


def training_mapper(line) -> None:  # noqa: ANN001
    mapper, weights = EEGCLIPMapper(), {"cls": 5.0, "contrastive": 2.0, "cos": 1.0, "mse": 0.1}
    x, label, targets = torch.randn(16, 20, 200), torch.ones(16, dtype=torch.long), [torch.randn(10, 768)]
    targets.append(torch.randn(10, 77, 768))

    def loss() -> torch.Tensor:
        return mapper_loss(MapperBatch(*mapper(x), label, *targets), weights)[0]

    line("train the mapper, batch 16", [mapper], trains(mapper.parameters(), loss), grad=True, limit=6)


def training_controlnet(line) -> None:  # noqa: ANN001
    """As train_structure.py does it on a GPU: float32, the ControlNet's activations computed twice."""
    unet = build(UNet2DConditionModel, FULL, **SD15).requires_grad_(False)
    net = build(ControlNetModel.from_unet, FULL, unet, load_weights_from_unet=False)
    net.enable_gradient_checkpointing()

    def loss() -> torch.Tensor:
        noisy, t, states = torch.randn(4, 4, 64, 64), torch.tensor(5), torch.randn(4, 77, 768)
        down, middle = net(noisy, t, states, torch.randn(4, 3, 512, 512), return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(noisy, t, states, **more).sample.square().mean()

    work = trains(net.parameters(), loss)
    line("train a ControlNet for SD 1.5, AdamW, batch 4", [net, unet], work, grad=True, limit=16)


def without_numbers() -> FakeTensorMode:
    """A mode in which tensors have a shape and no numbers, and copies of modules stay in it."""
    mode = FakeTensorMode()
    FakeTensorMode.__deepcopy__ = lambda mode, _: mode
    return mode


HARDWARE = text, training_mapper, drawing_sd15, training_controlnet  # of the table in docs/training.md
STAGES = (*HARDWARE, slicing, reading, drawing_sdxl, training)


def main() -> None:
    print("| stage (computed, not measured) | parameters | weights, GB | peak, GB | limit, GB |")
    print("| --- | --- | --- | --- | --- |")
    over = []

    def line(name: str, modules: list, work, grad: bool = False, limit: float = LIMIT) -> None:  # noqa: ANN001
        n, held, most = peak(modules, work, grad)
        print(f"| {name} | {n:,} | {held:.2f} | {most:.2f} | {limit:g} |", flush=True)
        if most > limit:
            over.append(name)

    for stage in STAGES:
        with without_numbers():
            stage(line)
    if over:
        sys.exit(f"over the limit: {', '.join(over)}")


if __name__ == "__main__":
    main()
