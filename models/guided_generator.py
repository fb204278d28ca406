"""Pictures from embeddings of images, from latents to begin with, along maps of edges: IP-Adapter, image to image, ControlNet.

Each alone or together, for Stable Diffusion 1.x, 2.x and XL, by diffusers' own pipelines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file

from models.image_generator import HINT, Conditioning, EEGImageGenerator, StableDiffusion
from models.loading import load_whole
from utils.errors import UserError, loading
from utils.hub import fetch_nothing

TOKENS = 4  # of an image, as diffusers loads the plain IP-Adapter
OFFLOAD_BELOW = 10.0  # GB of GPU memory: with less, Stable Diffusion XL's parts take turns on the GPU


@dataclass(frozen=True)
class Guidance:
    """What one picture is drawn from.

    prompt : Conditioning. Of the caption, or of the empty prompt.
    embedding : (D,) tensor, optional. An image's embedding, for the IP-Adapter.
    latents : (4, h, w) tensor, optional. Scaled latents that drawing begins from.
    structure : PIL.Image, optional. Map of edges, for the ControlNet.
    """

    prompt: Conditioning
    embedding: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    structure: Image.Image | None = None


def guidance_pairs(embeddings: torch.Tensor, guided: bool) -> torch.Tensor:
    """(B, D) embeddings → what the denoiser takes: (B, 1, D), with guidance (2B, 1, D), zeros first.

    Guidance cuts in two what it gets; half of B embeddings would be used in silence if the zeros were not there.
    """
    x = embeddings[:, None]  # (B, 1, D)
    return torch.cat([torch.zeros_like(x), x]) if guided else x


def read_ip_adapter(name: str, family: StableDiffusion, width: int) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of an IP-Adapter as diffusers takes them: {"image_proj", "ip_adapter"} → tensors.

    name : str. A folder laid out like `h94/IP-Adapter`, a hub address, or a .safetensors file.
    width : int. Of the embeddings that it is to read.
    Raises UserError if it is not there, or for another image encoder, another image model, or of another kind.
    """
    if family.ip_adapter is None:
        raise UserError(f"--ip_adapter: there is none for the family {type(family).__name__}; use Stable Diffusion")
    path = Path(name)
    if not path.is_file():
        local = fetch_nothing(name, family.ip_adapter, "--ip_adapter")
        if path.is_dir():
            path = path / family.ip_adapter
        else:
            from huggingface_hub import hf_hub_download

            with loading(f"--ip_adapter {name}", HINT):
                path = Path(hf_hub_download(name, family.ip_adapter, local_files_only=local))
    with loading(f"--ip_adapter {path}", "expected the plain IP-Adapter as safetensors"):
        content = load_file(path)
        state = {part: {key.removeprefix(f"{part}."): value for key, value in content.items() if key.startswith(f"{part}.")}
                 for part in ("image_proj", "ip_adapter")}  # fmt: skip
        if not all(torch.isfinite(value).all() for value in content.values()):
            raise ValueError("it holds NaN or infinity")
        if set(state["image_proj"]) != {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}:
            raise ValueError("it is no plain IP-Adapter (image_proj of proj and norm)")
    unet = family.pipeline.unet
    given, reads = state["image_proj"]["proj.weight"].shape
    if reads != width:
        raise UserError(
            f"--ip_adapter {path} reads embeddings of width {reads}, those that were decoded have {width}: it is for another image encoder"
        )
    wide = unet.config.cross_attention_dim
    sizes = [unet.get_submodule(key.removesuffix(".processor")).to_k.out_features
             for key in unet.attn_processors if key.endswith("attn2.processor")]  # fmt: skip
    wanted = {f"{2 * k + 1}.to_{side}_ip.weight": (size, wide) for k, size in enumerate(sizes) for side in "kv"}
    if given != TOKENS * wide or {key: tuple(v.shape) for key, v in state["ip_adapter"].items()} != wanted:
        raise UserError(
            f"--ip_adapter {path} is for another image model: it does not fit the {len(sizes)} cross-attentions of width {wide}"
        )
    return state


def load_controlnet(name: str, family: StableDiffusion, dtype: torch.dtype) -> ControlNetModel:
    """A ControlNet from a folder laid out like `lllyasviel/sd-controlnet-scribble`, or a hub address; UserError for another base."""
    if not family.guided:
        raise UserError(f"--controlnet: there is none for the family {type(family).__name__}; use Stable Diffusion")
    local = {"local_files_only": fetch_nothing(name, "config.json", "--controlnet")}
    net = load_whole(ControlNetModel, name, "--controlnet", HINT, dtype=dtype, **local)
    for field in ("cross_attention_dim", "block_out_channels", "in_channels", "addition_embed_type"):
        mine, base = (getattr(of.config, field, None) for of in (net, family.pipeline.unet))
        if (list(mine) if isinstance(mine, tuple) else mine) != (list(base) if isinstance(base, tuple) else base):
            raise UserError(
                f"--controlnet {name} is for another image model: its {field} is {mine}, the image model's {base}"
            )
    return net


class GuidedGenerator(EEGImageGenerator):
    """An image model that draws from `Guidance`; its text encoders are not loaded.

    empty : Conditioning. The empty prompt, read before (see `read_prompts`).
    ip_adapter : str, optional. See `read_ip_adapter`; `width`: of the embeddings; `ip_scale`: of its part.
    controlnet : str, optional. See `load_controlnet`; `controlnet_scale`: of its part.
    strength : float, optional. Begin from latents, with this share of the steps.
    Other parameters as `EEGImageGenerator`.
    """

    def __init__(
        self, name: str, device: torch.device, empty: Conditioning, steps: int | None = None, guidance_scale: float | None = None,
        image_size: int = 512, scheduler: str = "dpm", ip_adapter: str | None = None, width: int = 0, ip_scale: float = 1.0,
        controlnet: str | None = None, controlnet_scale: float = 0.5, strength: float | None = None,
    ):  # fmt: skip
        self.controlnet_scale, self.strength, self.has_adapter = controlnet_scale, strength, bool(ip_adapter)
        super().__init__(name, device, steps, guidance_scale, image_size, scheduler, empty)
        dtype = next(self.pipeline.unet.parameters()).dtype
        if ip_adapter:
            state = read_ip_adapter(ip_adapter, self.family, width)
            with loading(f"--ip_adapter {ip_adapter}", HINT):
                diffusers.logging.set_verbosity_error()
                self.pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
                self.pipeline.set_ip_adapter_scale(ip_scale)
        parts = {"controlnet": load_controlnet(controlnet, self.family, dtype)} if controlnet else {}
        if strength is not None and int(self.steps * strength) < 1:
            raise UserError(f"--strength {strength:g} of {self.steps} steps is less than one step")
        kind = type(self.pipeline).__name__.removesuffix("Pipeline")
        kind += ("ControlNet" if controlnet else "") + ("Img2Img" if strength is not None else "") + "Pipeline"
        with loading(f"--image_model {name}", HINT):
            if kind != type(self.pipeline).__name__:
                self.pipeline = getattr(diffusers, kind)(**(self._components() | parts))
            self._place(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.device = device

    def _components(self) -> dict:
        """What another pipeline of the same family is made of."""
        optional = {"requires_safety_checker": False} if "safety_checker" in self.pipeline.components else {}
        return self.pipeline.components | optional

    def _place(self, device: torch.device) -> None:
        """Put the parts where they work; where the GPU is small, those of Stable Diffusion XL take turns."""
        if device.type != "cuda":
            self.pipeline.to(device)
            return
        free = torch.cuda.mem_get_info(device)[0] / 1e9
        if self.family.large and free < OFFLOAD_BELOW:
            print(f"{free:.1f} GB of GPU memory are free: the image model's parts take turns there (offload)")
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            print(f"{free:.1f} GB of GPU memory are free: the whole image model goes there")
            self.pipeline.to(device)

    @torch.inference_mode()
    def draw(self, guidance: Sequence[Guidance], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each, from its own seed; what else is in the batch changes rounding only.

        All of a batch have the same kinds of guidance. Raises UserError where shapes do not fit.
        """
        first, empty = guidance[0], self.empty
        for one in guidance:
            one.prompt.must_be_as_wide_as(empty)
        n = len(guidance)
        prompt = Conditioning(*(None if part is None else torch.cat([getattr(one.prompt, name) for one in guidance]).to(self.device)
                                for name, part in (("states", first.prompt.states), ("pooled", first.prompt.pooled))))  # fmt: skip
        negative = Conditioning(*(None if part is None else part.expand(n, *part.shape[1:]).to(self.device, self.dtype)
                                  for part in (empty.states, empty.pooled)))  # fmt: skip
        told = self.family.inputs(prompt, negative)
        if self.has_adapter:
            embeddings = torch.stack([one.embedding for one in guidance])
            pairs = guidance_pairs(embeddings, self.guidance_scale > 1).to(self.device, self.dtype)
            expected = (n * (2 if self.guidance_scale > 1 else 1), 1)
            if pairs.shape[:2] != expected:
                raise ValueError(f"image embeddings are {tuple(pairs.shape)}; expected {expected} and a width")
            told["ip_adapter_image_embeds"] = [pairs]
            # diffusers means one image for the whole batch: it would repeat the pairs B times, and each picture would be drawn from all
            # of them, in silence. They have the shape that the denoiser takes, so they go there as they are.
            self.pipeline.prepare_ip_adapter_image_embeds = lambda *_, **__: [pairs]
        size = {"height": self.drawn_size, "width": self.drawn_size}
        if first.structure is not None:
            told["control_image" if self.strength is not None else "image"] = [
                one.structure.resize((self.drawn_size,) * 2) for one in guidance
            ]
            told |= {"controlnet_conditioning_scale": self.controlnet_scale} | size
        if self.strength is not None:
            latents = torch.stack([one.latents for one in guidance])
            edge = self.drawn_size // self.pipeline.vae_scale_factor
            if latents.shape[1:] != (self.pipeline.unet.config.in_channels, edge, edge):
                raise UserError(f"--low_level_dir gives latents {tuple(latents.shape[1:])}; {self.name} draws from "
                                f"({self.pipeline.unet.config.in_channels}, {edge}, {edge}) at this size")  # fmt: skip
            told |= {"image": latents.to(self.device, self.dtype), "strength": self.strength}
        elif first.structure is None:
            told |= size
        with loading(f"--image_model {self.name}", HINT):
            drawn = self.pipeline(
                **told, num_inference_steps=self.steps, guidance_scale=self.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            )  # fmt: skip
        if any(getattr(drawn, "nsfw_content_detected", None) or []):
            print("notice: the image model's safety checker blackened a picture")
        if len(drawn.images) != n:
            raise ValueError(f"{len(drawn.images)} pictures of {n}")
        return [
            picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC) for picture in drawn.images
        ]

    @torch.inference_mode()
    def picture_of(self, latents: torch.Tensor) -> Image.Image:
        """What the VAE alone makes of scaled (4, h, w) latents."""
        vae, dtype = self.pipeline.vae, self.pipeline.vae.dtype
        vae.to(
            self.device, torch.float32
        )  # Stable Diffusion XL's overflows in half precision; with offload it waits on the CPU
        decoded = vae.decode(latents[None].to(self.device) / vae.config.scaling_factor).sample
        vae.to(dtype=dtype)
        picture = self.pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        return picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.unet.dtype
