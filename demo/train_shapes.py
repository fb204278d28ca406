"""Training of the tiny models that draw, guide, caption and judge pictures of coloured shapes; train_demo_images.py is
the command line.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertTokenizerFast,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    GitConfig,
    GitForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from demo.drawings import COLOURS, SHAPES, coloured_shape
from demo.tiny_models import byte_tokenizer, random_text_encoder
from demo.train_images import (
    BATCH,
    IMAGE_SIZE,
    Settings,
    TrainingBatches,
    latents_of,
    new_scheduler,
    new_unet,
    trained_vae,
)
from models.structure import map_picture, structure_map

CONCEPTS = [(shape, colour) for shape in SHAPES for colour in COLOURS]
TOKENS, RANK = 4, 48  # of an IP-Adapter as diffusers loads it; of the factors that its projection is shipped as


def prompt_of(concept: tuple[str, str]) -> str:
    """What a drawn shape is called: "a red star"."""
    return f"a {concept[1]} {concept[0]}"


def drawn_shapes(n: int, seed: int) -> tuple[list[Image.Image], torch.Tensor]:
    """n pictures a concept, and their concepts (80 · n,)."""
    rng = np.random.default_rng((seed, 11))
    pictures = [coloured_shape(*concept, rng, IMAGE_SIZE) for concept in CONCEPTS for _ in range(n)]
    return pictures, torch.arange(len(CONCEPTS)).repeat_interleave(n)


def as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """(N, 3, 64, 64) from −1 to 1."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def embedded(clip_dir: Path, pictures: list[Image.Image]) -> torch.Tensor:
    """(N, 768) embeddings of the shipped CLIP."""
    model, processor = (
        CLIPModel.from_pretrained(clip_dir).float().eval(),
        CLIPImageProcessorPil.from_pretrained(clip_dir),
    )
    parts = [pictures[k : k + 100] for k in range(0, len(pictures), 100)]
    return torch.cat([model.get_image_features(**processor(part, return_tensors="pt")).pooler_output for part in parts])


@torch.no_grad()
def text_states() -> torch.Tensor:
    """(81, 77, 768) states of the concepts' prompts, the empty one last."""
    tokenizer = byte_tokenizer()
    ids = tokenizer([*map(prompt_of, CONCEPTS), ""], padding="max_length", return_tensors="pt").input_ids
    return random_text_encoder(CLIPTextModel, tokenizer)(ids)[0]


# ---------------------------------------------------------------- Stable Diffusion and its IP-Adapter


class _LowRank(nn.Module):
    """A linear layer as two factors, so that it can be shipped; their product is what is loaded."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.narrow, self.wide = nn.Linear(linear.in_features, rank, bias=False), nn.Linear(rank, linear.out_features)

    @property
    def weight(self) -> torch.Tensor:  # diffusers asks it for its type
        return self.narrow.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.narrow(x))


def train_shapes(settings: Settings, folder: Path) -> None:
    """A VAE, then a UNet and an IP-Adapter together: half of the steps with the adapter and mostly no prompt, half
    without it.
    """
    pictures, concept = drawn_shapes(max(1, settings.drawings // 4), settings.seed)
    x = as_tensor(pictures)
    vae, latents = trained_vae(x, concept, settings)

    text, clip = text_states(), embedded(folder.parent / "clip", pictures)
    unet = new_unet()
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    sides = {
        f"{2 * k + 1}.to_{side}_ip.weight": torch.randn(_width(unet, name), 768) * 0.02
        for k, name in enumerate(names)
        for side in "kv"
    }
    projection = {
        "proj.weight": torch.randn(TOKENS * 768, clip.shape[1]) * 0.02,
        "proj.bias": torch.zeros(TOKENS * 768),
        "norm.weight": torch.ones(768),
        "norm.bias": torch.zeros(768),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": sides}], low_cpu_mem_usage=False)
    layer = unet.encoder_hid_proj.image_projection_layers[0]
    layer.image_embeds = _LowRank(layer.image_embeds, RANK)
    unet.requires_grad_(True)

    scheduler = new_scheduler()
    for step, batch in enumerate(
        TrainingBatches(unet, latents, torch.arange(len(x)), settings.unet_steps, settings.lr, "UNet", average=True)
    ):
        with_adapter = step % 5 < 3
        set_scale(unet, float(with_adapter))
        noise, t = torch.randn_like(batch.x), torch.randint(0, 1000, (BATCH,))
        told = torch.rand(BATCH) > (0.8 if with_adapter else 0.1)
        states = text[torch.where(told, concept[batch.label], len(CONCEPTS))]
        embeds = clip[batch.label] * (torch.rand(BATCH, 1) > 0.1)
        predicted = unet(
            scheduler.add_noise(batch.x, noise, t), t, states, added_cond_kwargs={"image_embeds": [embeds[:, None]]}
        ).sample
        batch.step(F.mse_loss(predicted, noise))

    plain = new_unet()
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if k in plain.state_dict()})
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=random_text_encoder(CLIPTextModel, byte_tokenizer()), tokenizer=byte_tokenizer(),
        unet=plain,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for part in ("text_encoder", "tokenizer"):  # made by rule, see demo/tiny_models.py
        shutil.rmtree(folder / part)
    factors = unet.encoder_hid_proj.image_projection_layers[0]
    kept = {
        "narrow": factors.image_embeds.narrow.weight,
        "wide": factors.image_embeds.wide.weight,
        "image_proj.proj.bias": factors.image_embeds.wide.bias,
        "image_proj.norm.weight": factors.norm.weight,
        "image_proj.norm.bias": factors.norm.bias,
    }
    for k, name in enumerate(names):
        for side in "kv":
            kept[f"ip_adapter.{2 * k + 1}.to_{side}_ip.weight"] = getattr(unet.attn_processors[name], f"to_{side}_ip")[
                0
            ].weight
    (folder.parent / "ip-adapter").mkdir(exist_ok=True)
    kept = {name: value.detach().half().contiguous() for name, value in kept.items()}
    save_file(kept, folder.parent / "ip-adapter/factors.safetensors", metadata={"format": "pt"})
    print(f"wrote {folder} and {folder.parent / 'ip-adapter'}")


def _width(unet: UNet2DConditionModel, name: str) -> int:
    return unet.get_submodule(name.removesuffix(".processor")).to_k.out_features


def set_scale(unet: UNet2DConditionModel, scale: float) -> None:
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]


# ---------------------------------------------------------------- ControlNet


def train_controlnet(settings: Settings, folder: Path) -> None:
    """A ControlNet for the shipped model of shapes, which stays as it is: edges → where things are drawn."""
    base = folder.parent / "stable-diffusion-shapes"
    vae = AutoencoderKL.from_pretrained(base / "vae").float().eval()
    unet = UNet2DConditionModel.from_pretrained(base / "unet").float().eval().requires_grad_(False)
    pictures, concept = drawn_shapes(max(1, settings.drawings // 8), settings.seed + 1)
    maps = torch.stack(
        [
            as_tensor([map_picture(torch.from_numpy(structure_map(p)[None])).resize((IMAGE_SIZE,) * 2)])[0]
            for p in pictures
        ]
    )
    maps = (maps + 1) / 2
    latents, text = latents_of(vae, as_tensor(pictures)) * vae.config.scaling_factor, text_states()
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    scheduler = new_scheduler()
    for batch in TrainingBatches(
        net, latents, torch.arange(len(maps)), settings.controlnet_steps, settings.lr / 2, "ControlNet"
    ):
        noise, t = torch.randn_like(batch.x), torch.randint(0, 1000, (BATCH,))
        noisy, told = scheduler.add_noise(batch.x, noise, t), torch.rand(BATCH) > 0.5
        states = text[torch.where(told, concept[batch.label], len(CONCEPTS))]
        down, middle = net(noisy, t, states, maps[batch.label], return_dict=False)
        predicted = unet(
            noisy, t, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        batch.step(F.mse_loss(predicted, noise))
    net.half().save_pretrained(folder)
    print(f"wrote {folder}")


# ---------------------------------------------------------------- a captioner and a classifier


def train_captioner(settings: Settings, folder: Path) -> None:
    """A small GIT: picture → "a red star"."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *COLOURS, *SHAPES]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    model = GitForCausalLM(GitConfig(
        vision_config=tower | dict(image_size=IMAGE_SIZE, patch_size=16), vocab_size=len(words),
        max_position_embeddings=32, **tower,
        bos_token_id=2, eos_token_id=3, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))  # fmt: skip
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    pictures, concept = drawn_shapes(max(1, settings.drawings // 8), settings.seed + 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    x = ((as_tensor(pictures) + 1) / 2 - mean) / std
    ids = tokenizer([prompt_of(concept) for concept in CONCEPTS], return_tensors="pt").input_ids  # (80, 5)
    for batch in TrainingBatches(model, x, concept, settings.captioner_steps, settings.lr, "captioner"):
        batch.step(model(pixel_values=batch.x, input_ids=ids[batch.label], labels=ids[batch.label]).loss)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    print(f"wrote {folder}")


def train_classifier(settings: Settings, folder: Path) -> None:
    """A small convolutional network in ResNet's layout that tells the concepts apart; its layers judge pictures."""
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
            num_labels=len(CONCEPTS),
                     id2label=dict(enumerate(map(prompt_of, CONCEPTS))))
    )  # fmt: skip
    processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    pictures, concept = drawn_shapes(max(1, settings.drawings // 8), settings.seed + 3)
    x = as_tensor(pictures)
    for batch in TrainingBatches(model, x, concept, settings.classifier_steps, settings.lr * 3, "classifier"):
        batch.step(F.cross_entropy(model(batch.x).logits, batch.label))
    model.eval()
    test, of = drawn_shapes(3, settings.seed + 4)
    with torch.no_grad():
        right = (model(as_tensor(test)).logits.argmax(dim=1) == of).float().mean()
    print(f"classifier: {100 * float(right):.0f} % of {len(of)} new pictures right")
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"wrote {folder}")
