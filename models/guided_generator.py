"""Pictures from embeddings of images, latents to begin with, maps of edges: IP-Adapter, image to image, ControlNet.

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


@dataclass(frozen=True)
class Guidance:
    """What one picture is drawn from."""

    prompt: Conditioning  # of the caption, or of the empty prompt
    embedding: torch.Tensor | None = None  # (D,) of an image, for the IP-Adapter
    latents: torch.Tensor | None = None  # (4, h, w), scaled: drawing begins from them
    structure: Image.Image | None = None  # map of edges, for the ControlNet


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
    path = _ip_adapter_file(name, family.ip_adapter)
    with loading(f"--ip_adapter {path}", "expected the plain IP-Adapter as safetensors"):
        content = load_file(path)
        state = {"image_proj": {}, "ip_adapter": {}}
        for key, value in content.items():
            part, _, inner = key.partition(".")
            if part in state:
                state[part][inner] = value
        if not all(torch.isfinite(value).all() for value in content.values()):
            raise ValueError("it holds NaN or infinity")
        if set(state["image_proj"]) != {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}:
            raise ValueError("it is no plain IP-Adapter (image_proj of proj and norm)")
    unet = family.pipeline.unet
    given, reads = state["image_proj"]["proj.weight"].shape
    if reads != width:
        widths = f"reads embeddings of width {reads}, those that were decoded have {width}"
        raise UserError(f"--ip_adapter {path} {widths}: it is for another image encoder")
    wide = unet.config.cross_attention_dim
    cross = [key.removesuffix(".processor") for key in unet.attn_processors if key.endswith("attn2.processor")]
    sizes = [unet.get_submodule(key).to_k.out_features for key in cross]
    wanted = {f"{2 * k + 1}.to_{side}_ip.weight": (size, wide) for k, size in enumerate(sizes) for side in "kv"}
    if given != TOKENS * wide or {key: tuple(v.shape) for key, v in state["ip_adapter"].items()} != wanted:
        fault = f"it does not fit the {len(sizes)} cross-attentions of width {wide}"
        raise UserError(f"--ip_adapter {path} is for another image model: {fault}")
    return state


def _ip_adapter_file(name: str, inside: str) -> Path:
    """The file of an IP-Adapter: `name` itself, or the one `inside` a folder or a hub repository."""
    path = Path(name)
    if path.is_file():
        return path
    local = fetch_nothing(name, inside, "--ip_adapter")
    if path.is_dir():
        return path / inside
    from huggingface_hub import hf_hub_download

    with loading(f"--ip_adapter {name}", HINT):
        return Path(hf_hub_download(name, inside, local_files_only=local))


def load_controlnet(name: str, family: StableDiffusion, dtype: torch.dtype) -> ControlNetModel:
    """A ControlNet from a folder laid out like `lllyasviel/sd-controlnet-scribble`, or a hub address.

    Raises UserError if it cannot be loaded, or is for another image model.
    """
    if not family.guided:
        raise UserError(f"--controlnet: there is none for the family {type(family).__name__}; use Stable Diffusion")
    local = {"local_files_only": fetch_nothing(name, "config.json", "--controlnet")}
    net = load_whole(ControlNetModel, name, "--controlnet", HINT, dtype=dtype, **local)
    for field in ("cross_attention_dim", "block_out_channels", "in_channels", "addition_embed_type"):
        mine, base = (getattr(model.config, field, None) for model in (net, family.pipeline.unet))
        if (list(mine) if isinstance(mine, tuple) else mine) != (list(base) if isinstance(base, tuple) else base):
            fault = f"its {field} is {mine}, the image model's {base}"
            raise UserError(f"--controlnet {name} is for another image model: {fault}")
    return net


class GuidedGenerator(EEGImageGenerator):
    """An image model that draws from `Guidance`; its text encoders are not loaded.

    empty : Conditioning. The empty prompt, read before (see `read_prompts`).
    how, settings : steps, guidance_scale, image_size, scheduler, batch_size, …: as `EEGImageGenerator`.
    ip_adapter : str, optional. See `read_ip_adapter`; `width`: of the embeddings; `ip_scale`: of its part.
    controlnet : str, optional. See `load_controlnet`; `controlnet_scale`: of its part.
    strength : float, optional. Begin from latents, with this share of the steps.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        empty: Conditioning,
        *how,
        ip_adapter: str | None = None,
        width: int = 0,
        ip_scale: float = 1.0,
        controlnet: str | None = None,
        controlnet_scale: float = 0.5,
        strength: float | None = None,
        **settings,
    ):
        self.ip_adapter, self.width, self.ip_scale = ip_adapter, width, ip_scale
        self.controlnet, self.controlnet_scale, self.strength = controlnet, controlnet_scale, strength
        super().__init__(name, device, *how, empty=empty, **settings)

    def _add_parts(self) -> None:
        """IP-Adapter, ControlNet, and the pipeline that draws with them."""
        if self.ip_adapter:
            state = read_ip_adapter(self.ip_adapter, self.family, self.width)
            with loading(f"--ip_adapter {self.ip_adapter}", HINT):
                diffusers.logging.set_verbosity_error()
                self.pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
                self.pipeline.set_ip_adapter_scale(self.ip_scale)
        net, begins = self.controlnet, self.strength is not None
        added = {"controlnet": load_controlnet(net, self.family, self.dtype)} if net else {}
        if begins and int(self.steps * self.strength) < 1:
            raise UserError(f"--strength {self.strength:g} of {self.steps} steps is less than one step")
        own = type(self.pipeline).__name__
        kind = own.removesuffix("Pipeline") + ("ControlNet" if net else "") + ("Img2Img" if begins else "") + "Pipeline"
        if kind != own:
            with loading(f"--image_model {self.name}", HINT):
                if "safety_checker" in self.pipeline.components:
                    added["requires_safety_checker"] = False
                self.pipeline = getattr(diffusers, kind)(**(self.pipeline.components | added))

    def _inputs(self, wanted: Sequence[Guidance]) -> dict:
        """In diffusers' words. All of a batch have the same kinds of guidance; UserError where shapes do not fit."""
        prompts = self._text_inputs([one.prompt for one in wanted])
        return prompts | self._embedding_inputs(wanted) | self._image_inputs(wanted)

    def _embedding_inputs(self, guidance: Sequence[Guidance]) -> dict:
        if not self.ip_adapter:
            return {}
        embeddings = torch.stack([one.embedding for one in guidance])
        pairs = guidance_pairs(embeddings, self.guidance_scale > 1).to(self.device, self.dtype)
        # diffusers means one image for the whole batch: it would repeat the pairs B times, and each picture would be
        # drawn from all of them, in silence. They have the shape that the denoiser takes, so they go there as they are.
        self.pipeline.prepare_ip_adapter_image_embeds = lambda *_, **__: [pairs]
        return {"ip_adapter_image_embeds": [pairs]}

    def _image_inputs(self, guidance: Sequence[Guidance]) -> dict:
        inputs = {}
        if guidance[0].structure is not None:
            maps = [one.structure.resize((self.drawn_size, self.drawn_size)) for one in guidance]
            inputs = self.size | {"image" if self.strength is None else "control_image": maps}
            inputs["controlnet_conditioning_scale"] = self.controlnet_scale
        if self.strength is None:
            return inputs | self.size
        latents = torch.stack([one.latents for one in guidance])
        edge = self.drawn_size // self.pipeline.vae_scale_factor
        wanted = self.pipeline.unet.config.in_channels, edge, edge
        if latents.shape[1:] != wanted:
            given = tuple(latents.shape[1:])
            raise UserError(f"--low_level_dir gives latents {given}; {self.name} draws from {wanted} at this size")
        return inputs | {"image": latents.to(self.device, self.dtype), "strength": self.strength}

    @torch.inference_mode()
    def picture_of(self, latents: torch.Tensor) -> Image.Image:
        """What the VAE alone makes of scaled (4, h, w) latents."""
        vae, dtype = self.pipeline.vae, self.pipeline.vae.dtype
        # Stable Diffusion XL's VAE overflows in half precision; with offload it waits on the CPU
        vae.to(self.device, torch.float32)
        decoded = vae.decode(latents[None].to(self.device) / vae.config.scaling_factor).sample
        vae.to(dtype=dtype)
        return self.resized(self.pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
