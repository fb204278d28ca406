"""Train the small Stable Diffusion that the demo draws with, on drawn pictures of the classes.

    python train_demo_images.py --output_dir assets/stable-diffusion

A VAE (64×64×3 → 16×16×4), then a UNet of the kind Stable Diffusion uses, conditioned on a frozen random CLIP text
encoder over a byte-level vocabulary. About 35 minutes on one CPU core. The result has the hub's folder layout in half
precision, and the project ships it; nobody needs to run this to run the demo.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from datasets.description import DATASETS, load_dataset
from utils.drawing import DRAWINGS, drawing
from utils.paths import default

IMAGE_SIZE = 64  # pixels


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: one token a byte."""
    letters = sorted(ByteLevel.alphabet())  # the 256 bytes as printable characters
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", default=default("assets/stable-diffusion"), help="folder to write the pipeline to"
    )
    parser.add_argument("--drawings", type=int, default=600, help="training pictures a class")
    parser.add_argument("--vae_steps", type=int, default=1500, help="steps of 16 pictures")
    parser.add_argument("--unet_steps", type=int, default=6000, help="steps of 16 pictures")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of the one-cycle schedule")
    parser.add_argument("--sheet", default=default("outputs/demo_image_model.png"), help="samples to look at")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    # data: drawings and the prompts that the datasets use for them
    prompts = {}
    for name in DATASETS:
        description = load_dataset(name)[0]
        prompts |= {c: description.image_prompts[k] for k, c in enumerate(description.classes) if c in DRAWINGS}
    names = list(prompts)
    pictures = [np.asarray(drawing(name, rng, IMAGE_SIZE)) for name in names for _ in range(args.drawings)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, 64, 64)
    label = torch.arange(len(names)).repeat_interleave(args.drawings)  # (N,)

    # text encoder, frozen
    tokenizer = byte_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, projection_dim=64,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()  # fmt: skip
    ids = tokenizer([*prompts.values(), ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = text_encoder(ids)[0]  # (classes + 1, 77, 64); the last row is the empty prompt

    # VAE
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )  # fmt: skip
    for batch in TrainingBatches(vae, x, label, args.vae_steps, args.lr, "VAE"):
        posterior = vae.encode(batch.x).latent_dist
        restored = vae.decode(posterior.sample()).sample
        batch.step(F.l1_loss(restored, batch.x) + F.mse_loss(restored, batch.x) + 1e-5 * posterior.kl().mean())
    vae.eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(100)])  # (N, 4, 16, 16)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    latents *= vae.config.scaling_factor

    # UNet
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1], in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    average = {k: v.clone() for k, v in unet.state_dict().items()}
    for batch in TrainingBatches(unet, latents, label, args.unet_steps, args.lr, "UNet"):
        noise = torch.randn_like(batch.x)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(batch.x),))
        dropped = torch.rand(len(batch.x)) < 0.1  # prompts left out, for classifier-free guidance
        prompt = text[torch.where(dropped, len(names), batch.label)]
        predicted = unet(scheduler.add_noise(batch.x, noise, t), t, prompt).sample
        batch.step(F.mse_loss(predicted, noise))
        for k, v in unet.state_dict().items():  # averaged weights draw cleaner pictures
            average[k].lerp_(v, 0.005)
    unet.load_state_dict(average)

    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(args.output_dir)
    pipeline.to(dtype=torch.float32)
    sheet = Image.new("RGB", (4 * IMAGE_SIZE, len(names) * IMAGE_SIZE))
    for row, prompt in enumerate(prompts.values()):
        drawn = pipeline(prompt, num_images_per_prompt=4, num_inference_steps=25, guidance_scale=7.5).images
        for column, image in enumerate(drawn):
            sheet.paste(image, (column * IMAGE_SIZE, row * IMAGE_SIZE))
    sheet.save(args.sheet)
    print(f"wrote {args.output_dir} and {args.sheet}")


class TrainingBatches:
    """Iterate over random batches of 16; each has `x`, `label` and `step(loss)` (AdamW, one-cycle)."""

    def __init__(self, model, x, label, steps, lr, name):
        self.model, self.data, self.labels, self.steps, self.name = model.train(), x, label, steps, name
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)

    def __iter__(self):
        self.bar = tqdm(range(self.steps), desc=self.name)
        for _ in self.bar:
            chosen = torch.randint(len(self.data), (16,))
            self.x, self.label = self.data[chosen], self.labels[chosen]
            yield self

    def step(self, loss) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.bar.set_postfix(loss=f"{loss.item():.4f}")


if __name__ == "__main__":
    main()
