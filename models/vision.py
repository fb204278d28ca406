"""Features of pictures in any vision model of the hub's layout: its output, or layers inside it; sharp or blurred."""

from collections.abc import Callable, Sequence

import torch
import transformers
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from models.loading import kind_of, load_processor, load_whole
from utils.errors import UserError, loading

# model_type of config.json → class of transformers, its last norm, whether its first token stands for the image, and
# settings: a ViT's pooler is of its classifier, and many folders have none
VISION = {
    **dict.fromkeys(("clip", "clip_vision_model"), ("CLIPVisionModel", "post_layernorm", True, {})),
    **dict.fromkeys(("siglip", "siglip_vision_model"), ("SiglipVisionModel", "post_layernorm", False, {})),
    "dinov2": ("Dinov2Model", "layernorm", True, {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "layernorm", True, {}),
    "vit": ("ViTModel", "layernorm", True, {"add_pooling_layer": False}),
}
HINT = "give a vision model in the hub's layout, such as facebook/dinov2-base"


def load_vision(name: str, layers: Sequence[int] = (), blur: Sequence[float] = ()) -> Callable:
    """A vision model, as a function of pictures → (N, D) features.

    name : str. Local folder or hub address; `VISION` lists the types.
    layers : sequence of int. Blocks whose states are read behind the model's last norm: 1 the first, -1 the last. Of
        each the class token, or the mean of all tokens where the model has no class token (SigLIP). Several are brought
        to unit length and stand side by side. None: what the model itself gives.
    blur : sequence of float. See `over_blurs`.
    Raises UserError for another type, a layer that it lacks, or a model that cannot be loaded.
    """
    transformers.logging.set_verbosity_error()  # a text tower's weights are left out on purpose
    kind, safe = kind_of(name, "--clip_model", HINT, VISION, "--target vision reads")
    of, last_norm, has_class_token, settings = VISION[kind]
    settings = safe | settings | {"dtype": torch.float32}
    model = load_whole(getattr(transformers, of), name, "--clip_model", HINT, **settings).eval()
    norm = next(part for at, part in model.named_modules() if at.split(".")[-1] == last_norm)
    n_layers = model.config.num_hidden_layers
    if lacking := [layer for layer in layers if not 1 <= abs(layer) <= n_layers]:
        there = f"layers 1 to {n_layers}, or -1 (the last) to -{n_layers}"
        raise UserError(f"--clip_layer {lacking[0]}: {name} has {there}")
    with loading(f"--clip_model {name}", HINT):
        processor = load_processor(transformers.AutoImageProcessor, name, use_fast=False, **safe)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        if not layers and not has_class_token:
            return model(pixels).pooler_output
        states = model(pixels, output_hidden_states=True).hidden_states  # (N, tokens, D) each; 0: before block 1
        states = [norm(states[layer]) for layer in layers or (-1,)]
        vectors = [x[:, 0] if has_class_token else x.mean(dim=1) for x in states]
        return vectors[0] if len(vectors) == 1 else torch.cat([F.normalize(x, dim=-1) for x in vectors], dim=-1)

    @torch.inference_mode()
    def embed(pictures: list[Image.Image]) -> torch.Tensor:
        with loading(f"--clip_model {name}", HINT):
            return over_blurs(features, processor(pictures, return_tensors="pt")["pixel_values"], blur).clone()

    return embed


def over_blurs(features: Callable, pixels: torch.Tensor, blur: Sequence[float] = ()) -> torch.Tensor:
    """(N, D) features of pictures; blurred: the mean of those of each blur, brought to unit length.

    pixels : (N, 3, H, W). blur : sequence of float. Deviations of Gaussians in pixels; 0: as it is.
    Raises UserError for a blur that is wider than the pictures.
    """
    if not any(blur):
        return features(pixels)
    edge, vectors = pixels.shape[-1], []
    for radius in blur:
        if not 0 <= radius <= edge:
            raise UserError(f"--blur {radius:g}: the model reads pictures of {edge} pixels; expected 0 to {edge}")
        blurred = gaussian_filter(pixels.numpy(), (0, 0, radius, radius))
        vectors.append(F.normalize(features(torch.from_numpy(blurred)), dim=-1))
    return torch.stack(vectors).mean(dim=0)
