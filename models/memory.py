"""What of an image model lies on a GPU at once, and how many pictures are drawn together: chosen by what is free.

The choice is arithmetic on bytes, so it can be tested without a GPU. Two means of diffusers have no place here.
Slicing of attention takes more memory than PyTorch's own attention, which keeps no matrix of all pairs
(`benchmarks/memory_of_pictures.py` computes both), and it would replace an IP-Adapter's. Tiling of the VAE begins above
the size that a model draws at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from utils.errors import UserError

GB = 1e9
MARGIN = 1.2  # workspaces of CUDA's libraries and gaps of the allocator, over what is computed
MOST = 8  # pictures drawn together where nobody says how many: a kill loses no more than these
# bytes of activations a byte of the widest feature map, of 34 and 6 that memory_of_pictures.py computes at most
OF_DENOISER, OF_VAE = 36, 6.5
MEANS = {  # cheapest first, in words
    "whole": "all parts of the image model lie there",
    "parts": "its parts take turns there (model offload)",
    "layers": "its layers take turns there (sequential offload), which is slow",
}


@dataclass(frozen=True)
class Needs:
    """Bytes that an image model takes.

    weights : of each part. turns : the parts of which one is needed at a time. layer : of the largest layer.
    denoise : activations of a picture in the denoiser. decode : of one in the VAE, which decodes one after the other.
    """

    weights: Mapping[str, int]
    turns: tuple[str, ...]
    layer: int
    denoise: float
    decode: float

    def peak(self, means: str, pictures: int) -> float:
        """Bytes at the peak of drawing so many pictures together."""
        vae = sum(self.weights.get(name, 0) for name in ("vae", "vqvae"))
        staying = sum(size for name, size in self.weights.items() if name not in self.turns)
        largest = max((size for name, size in self.weights.items() if name in self.turns), default=0)
        work = max(pictures * self.denoise, self.decode)
        return (
            MARGIN
            * {
                "whole": sum(self.weights.values()) + work,
                "parts": staying + max(largest + pictures * self.denoise, vae + self.decode),
                "layers": self.layer + vae + self.weights.get("safety_checker", 0) + work,  # these two stay whole
            }[means]
        )


def needs_of(pipeline, backbone: nn.Module, edge: int, guided: bool) -> Needs:
    """What a diffusers pipeline takes to draw `edge` × `edge` pixels; guided: each picture is denoised twice."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    vae = parts.get("vae") or parts["vqvae"]
    size, wide = next(vae.parameters()).element_size(), next(backbone.parameters()).element_size()
    weights = {name: n_bytes(part.parameters()) for name, part in parts.items()}
    if size < 4 and vae.config.get("force_upcast"):  # Stable Diffusion XL's decodes in float32
        weights["vae"], size = weights["vae"] * 4 // size, 4
    latents = (edge // pipeline.vae_scale_factor) ** 2
    channels = backbone.config.block_out_channels  # of aMUSEd's transformer one number
    channels = channels if isinstance(channels, int) else channels[0]
    layers = (n_bytes(layer.parameters(recurse=False)) for part in parts.values() for layer in part.modules())
    return Needs(
        weights,
        tuple(pipeline.model_cpu_offload_seq.split("->")),
        max(layers),
        denoise=OF_DENOISER * (1 + guided) * latents * channels * wide,
        decode=OF_VAE * edge**2 * vae.config.block_out_channels[0] * size,
    )


def n_bytes(parameters: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors take together."""
    return sum(p.numel() * p.element_size() for p in parameters)


def choose_means(needs: Needs, memory: float, pictures: int | None, most: int = MOST) -> tuple[str, int]:
    """The cheapest of MEANS that so many bytes allow, and how many pictures are drawn together.

    pictures : int, optional. So many together; None: as many as fit, up to `most`.
    Raises UserError where nothing helps.
    """
    for means in MEANS:
        for together in [pictures] if pictures else range(most, 0, -1):
            if needs.peak(means, together) <= memory:
                return means, together
    least = needs.peak("layers", pictures or 1)
    raise UserError(
        f"{memory / GB:.1f} GB of GPU memory (--max_memory_gb, else what is free), and drawing {pictures or 1} at once "
        f"takes {least / GB:.1f} GB with all means; allow more, lower --image_batch_size or --image_size, or --cuda -1"
    )


def memory_for(device: torch.device, limit_gb: float | None) -> float:
    """Bytes that a GPU has free, or a limit; PyTorch then asks for no more."""
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    if limit_gb is None:
        return free
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_gb * GB + held) / total), device)
    return min(free, limit_gb * GB)
