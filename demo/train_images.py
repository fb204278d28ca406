"""Training of the tiny image models on drawn pictures; train_demo_images.py is its command line."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UVit2DModel,
    VQModel,
)
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

from datasets.description import load_description
from datasets.own import pictures_of
from datasets.store import description_of_store
from demo.drawings import DRAWINGS, drawing
from demo.tiny_models import byte_tokenizer, random_text_encoder
from utils.errors import UserError
from utils.paths import written_whole
from utils.photos import whole_picture
from utils.progress import progress

IMAGE_SIZE = 64  # pixels
BATCH = 16


@dataclass(frozen=True)
class Settings:
    """How much to train: pictures a class, steps of each model, peak learning rate, where samples go, the seed."""

    drawings: int
    autoencoder_steps: int
    unet_steps: int
    uvit_steps: int
    clip_steps: int
    controlnet_steps: int
    captioner_steps: int
    classifier_steps: int
    lr: float
    sheet_dir: str
    seed: int


# ---------------------------------------------------------------- data: drawings and the prompts that datasets use
# for them


def class_prompts(datasets: list[str]) -> dict[str, str]:
    """Class name → image prompt, for the drawn classes of some datasets."""
    prompts = {}
    for name in datasets:
        description = load_description(name)
        prompts |= {c: description.image_prompts[k] for k, c in enumerate(description.classes) if c in DRAWINGS}
    return prompts


def drawn(names: list[str], settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 64, 64) pictures in 0..1 and (N,) labels."""
    rng = np.random.default_rng(settings.seed)
    pictures = [np.asarray(drawing(name, rng, IMAGE_SIZE)) for name in names for _ in range(settings.drawings)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return x, torch.arange(len(names)).repeat_interleave(settings.drawings)


def left_out(label: torch.Tensor, n_classes: int) -> torch.Tensor:
    """A tenth of the labels replaced by the last row, the empty prompt, for classifier-free guidance."""
    return torch.where(torch.rand(len(label)) < 0.1, n_classes, label)


# ---------------------------------------------------------------- Stable Diffusion


def trained_vae(x: torch.Tensor, label: torch.Tensor, settings: Settings) -> tuple[AutoencoderKL, torch.Tensor]:
    """A VAE of pictures (N, 3, 64, 64) from −1 to 1, and their latents (N, 4, 16, 16), scaled."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )
    train_vae(vae, x, label, settings)
    return vae, scaled_latents(vae, x)


def train_vae(vae: AutoencoderKL, x: torch.Tensor, label: torch.Tensor, settings: Settings) -> None:
    """Train a VAE to restore pictures (N, 3, 64, 64) from −1 to 1."""
    for batch in TrainingBatches(vae, x, label, settings.autoencoder_steps, settings.lr, "VAE"):
        posterior = vae.encode(batch.x).latent_dist
        restored = vae.decode(posterior.sample()).sample
        batch.step(F.l1_loss(restored, batch.x) + F.mse_loss(restored, batch.x) + 1e-5 * posterior.kl().mean())
    vae.eval()


def scaled_latents(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """(N, 4, 16, 16) latents of standard deviation 1; the VAE keeps the scale."""
    latents = latents_of(vae, x)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return latents * vae.config.scaling_factor


@torch.no_grad()
def latents_of(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """(N, 4, 16, 16), unscaled."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in x.split(100)])


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 56), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=768, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_stable_diffusion(settings: Settings, folder: Path) -> None:
    prompts = class_prompts(["BCICIV2a", "VI"])
    x, label = drawn(list(prompts), settings)
    x = 2 * x - 1
    vae, latents = trained_vae(x, label, settings)
    pipeline = trained_pipeline(vae, new_unet(), latents, label, prompts, settings)
    finish(pipeline, prompts, folder, Path(settings.sheet_dir), steps=min(25, settings.unet_steps), guidance=7.5)
    for part in ("text_encoder", "tokenizer"):  # made by rule, see demo/tiny_models.py
        shutil.rmtree(folder / part)


def trained_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    label: torch.Tensor,
    prompts: dict[str, str],
    settings: Settings,
) -> StableDiffusionPipeline:
    """A pipeline whose UNet has learned the latents (N, 4, 16, 16) of each class under its prompt."""
    tokenizer = byte_tokenizer()
    text_encoder = random_text_encoder(CLIPTextModel, tokenizer)
    ids = tokenizer([*prompts.values(), ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = text_encoder(ids)[0]  # (classes + 1, 77, 768)
    scheduler = new_scheduler()
    for batch in TrainingBatches(unet, latents, label, settings.unet_steps, settings.lr, "UNet", average=True):
        noise = torch.randn_like(batch.x)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,))
        prompt = text[left_out(batch.label, len(prompts))]
        predicted = unet(scheduler.add_noise(batch.x, noise, t), t, prompt).sample
        batch.step(F.mse_loss(predicted, noise))
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def learn_own_pictures(settings: Settings, base: Path, store: str, stimuli_dir: Path, folder: Path) -> None:
    """Teach the shipped small Stable Diffusion, `base`, the pictures of one's own classes, in a few minutes.

    stimuli_dir : Path. Pictures in folders named after the classes of the store; each is used, and its mirror image.
    Raises UserError where a class has no picture.
    """
    description = description_of_store(store)
    of_class = [pictures_of(name, stimuli_dir) for name in description.classes]
    if lacking := [name for name, paths in zip(description.classes, of_class, strict=True) if not paths]:
        raise UserError(f"--stimuli_dir {stimuli_dir}: no picture is named after {', '.join(lacking)}")
    small = [
        np.asarray(ImageOps.fit(whole_picture(path, "picture", "leave it out"), (IMAGE_SIZE, IMAGE_SIZE)))
        for paths in of_class
        for path in paths
    ]
    x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, 64, 64)
    x = torch.cat([x, x.flip(-1)])
    label = torch.arange(len(of_class)).repeat_interleave(torch.tensor([len(paths) for paths in of_class])).repeat(2)
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32)
    train_vae(vae, x, label, settings)
    latents = scaled_latents(vae, x)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
    prompts = {name: description.image_prompts[k] for k, name in enumerate(description.classes)}
    pipeline = trained_pipeline(vae, unet, latents, label, prompts, settings)
    finish(pipeline, prompts, folder, Path(settings.sheet_dir), steps=min(25, settings.unet_steps), guidance=3.0)


# ---------------------------------------------------------------- aMUSEd


def train_amused(settings: Settings, folder: Path) -> None:
    prompts = class_prompts(["VI"])
    x, label = drawn(list(prompts), settings)
    tokenizer = byte_tokenizer()
    text_encoder = random_text_encoder(CLIPTextModelWithProjection, tokenizer)
    ids = tokenizer([*prompts.values(), ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        out = text_encoder(ids, output_hidden_states=True)
    text, pooled = out.hidden_states[-2], out.text_embeds  # (classes + 1, 77, 768), (classes + 1, 768)

    vq = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 32, 32), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=IMAGE_SIZE, num_vq_embeddings=512, vq_embed_dim=8, lookup_from_codebook=True,
        mid_block_add_attention=False,
    )  # fmt: skip
    codes = vq.quantize.embedding.weight
    used = torch.zeros(len(codes))
    plain = settings.autoencoder_steps // 5  # steps without the codebook, which then starts on what the encoder gives
    for step, batch in enumerate(TrainingBatches(vq, x, label, settings.autoencoder_steps, settings.lr, "VQ")):
        z = vq.encode(batch.x).latents  # (16, 8, 8, 8)
        if step >= plain and (step - plain) % 100 == 0 and step < 0.8 * settings.autoencoder_steps:
            with torch.no_grad():  # codes that nothing chose move to where the latents are
                places = z.permute(0, 2, 3, 1).flatten(0, 2)
                idle = used == 0
                codes[idle] = places[torch.randint(len(places), (int(idle.sum()),))]
                used.zero_()
        loss = 0
        if step >= plain:
            z, loss, (_, _, chosen) = vq.quantize(z)
            used += torch.bincount(chosen, minlength=len(codes))
        restored = vq.decoder(vq.post_quant_conv(z))
        batch.step(F.l1_loss(restored, batch.x) + F.mse_loss(restored, batch.x) + 0.25 * loss)
    vq.eval()
    with torch.no_grad():
        tokens = [vq.quantize(vq.encode(part).latents)[2][2].view(-1, 8, 8) for part in x.split(100)]
    tokens = torch.cat(tokens)  # (N, 8, 8)

    # The U-ViT has no positions: it knows a place only by its distance from the edge, through padded convolutions. With
    # 8 × 8 tokens three blocks reach the middle; with 16 × 16 the pictures fell apart.
    mask_id = len(codes)
    uvit = UVit2DModel(
        hidden_size=64, cond_embed_dim=pooled.shape[-1], encoder_hidden_size=text.shape[-1], micro_cond_encode_dim=16,
        micro_cond_embed_dim=5 * 16, vocab_size=len(codes) + 1, codebook_size=len(codes), in_channels=32,
        block_out_channels=48, num_res_blocks=3, block_num_heads=4, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, sample_size=tokens.shape[-1],
    )  # fmt: skip
    micro = torch.tensor([IMAGE_SIZE, IMAGE_SIZE, 0, 0, 6.0]).expand(BATCH, -1)  # as the pipeline fills it in
    for batch in TrainingBatches(uvit, tokens, label, settings.uvit_steps, settings.lr, "U-ViT", average=True):
        share = torch.cos(torch.rand(BATCH) * math.pi / 2)
        masked = torch.rand(batch.x.shape) < share[:, None, None]
        row = left_out(batch.label, len(prompts))
        logits = uvit(batch.x.masked_fill(masked, mask_id), text[row], pooled[row], micro)  # (16, 512, 8, 8)
        batch.step(F.cross_entropy(logits.permute(0, 2, 3, 1)[masked], batch.x[masked]))

    pipeline = AmusedPipeline(vq, tokenizer, text_encoder, uvit, AmusedScheduler(mask_token_id=mask_id))
    finish(pipeline, prompts, folder, Path(settings.sheet_dir), steps=min(12, settings.uvit_steps), guidance=2.0)
    for part in ("text_encoder", "tokenizer"):  # made by rule, see demo/tiny_models.py
        shutil.rmtree(folder / part)


# ---------------------------------------------------------------- CLIP


def train_clip(settings: Settings, folder: Path, datasets: tuple[str, ...] = ("VI",)) -> None:
    """A small CLIP of the drawn classes of some datasets and their prompts."""
    prompts = class_prompts(list(datasets))
    x, label = drawn(list(prompts), settings)
    tokenizer = byte_tokenizer()
    tower = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    model = CLIPModel(
        CLIPConfig(
            text_config=tower
            | dict(
                vocab_size=len(tokenizer),
                max_position_embeddings=77,
                projection_dim=768,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            ),
            vision_config=tower | dict(image_size=IMAGE_SIZE, patch_size=8, projection_dim=768),
            projection_dim=768,
        )
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    text = tokenizer(list(prompts.values()), padding=True, return_tensors="pt")
    for batch in TrainingBatches(model, (x - mean) / std, label, settings.clip_steps, settings.lr, "CLIP"):
        logits = model(text.input_ids, batch.x, text.attention_mask).logits_per_image  # (16, classes)
        batch.step(F.cross_entropy(logits, batch.label))
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"wrote {folder}")


# ---------------------------------------------------------------- what all share


def finish(pipeline, prompts: dict[str, str], folder: Path, sheet_dir: Path, steps: int, guidance: float) -> None:
    """Save in half precision, and draw four pictures a class to look at."""
    sheet = Image.new("RGB", (4 * IMAGE_SIZE, len(prompts) * IMAGE_SIZE))
    pipeline.set_progress_bar_config(disable=True)
    for row, prompt in enumerate(prompts.values()):
        images = pipeline(
            prompt,
            num_images_per_prompt=4,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(row),
        ).images
        for column, image in enumerate(images):
            sheet.paste(image, (column * IMAGE_SIZE, row * IMAGE_SIZE))
    sheet_dir.mkdir(parents=True, exist_ok=True)
    sheet.save(sheet_dir / f"{folder.name}.png")
    with written_whole(folder) as unfinished:
        pipeline.to(dtype=torch.float16).save_pretrained(unfinished)
    print(f"wrote {folder} and {sheet_dir / folder.name}.png")


class TrainingBatches:
    """Iterate over random batches of 16; each has `x`, `label` and `step(loss)` (AdamW, one-cycle).

    With `average`, the model ends with weights averaged over the last steps, which draw cleaner pictures.
    """

    def __init__(self, model, x, label, steps, lr, name, average=False):
        self.model, self.data, self.labels, self.steps, self.name = model.train(), x, label, steps, name
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)
        self.average = {k: v.clone() for k, v in model.state_dict().items()} if average else None

    def __iter__(self):
        self.bar = progress(range(self.steps), desc=self.name)
        for _ in self.bar:
            chosen = torch.randint(len(self.data), (BATCH,))
            self.x, self.label = self.data[chosen], self.labels[chosen]
            yield self
        if self.average:
            self.model.load_state_dict(self.average)

    def step(self, loss) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.bar.set_postfix(loss=f"{loss.item():.4f}")
        if self.average:
            for k, v in self.model.state_dict().items():
                self.average[k].lerp_(v, 0.005) if v.is_floating_point() else self.average[k].copy_(v)
