"""Image → caption, by a model in the hub's layout."""

from collections.abc import Sequence

import torch
import transformers
from PIL import Image
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from models.loading import kind_of, load_processor, load_tokenizer, load_whole
from utils.errors import UserError, loading

HINT = "give a local folder in the hub's layout, whole, or a hub address"
# model_type of config.json → class of transformers
CAPTIONERS = {
    "blip": "BlipForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
    "git": "GitForCausalLM",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}
# model_type → where the part stands that turns pixels into tokens, for those whose tokens may come from elsewhere
VISION = {"blip": "vision_model", "git": "git.image_encoder"}


class _Given(nn.Module):
    """Stands where pixels become tokens, and hands on given ones: (B, 1, n, width) → (B, n, width)."""

    def forward(self, pixel_values: torch.Tensor, **_) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values[:, 0])


class Captioner:
    """A captioning model with beam search, so that an image gets the same caption again.

    name : str. A hub address, or a folder laid out like `Salesforce/blip-image-captioning-base` or
        `microsoft/git-large-coco`.
    Raises UserError if it cannot be loaded or is of another kind.
    """

    def __init__(self, name: str, device: torch.device, beams: int = 5, max_tokens: int = 25, flag: str = "--model"):
        self.name, self.device, self.beams, self.max_tokens = name, device, beams, max_tokens
        self.what = f"{flag} {name}"
        self.kind, safe = kind_of(name, flag, HINT, CAPTIONERS)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        model = load_whole(getattr(transformers, CAPTIONERS[self.kind]), name, flag, HINT, **safe, dtype=dtype)
        # a folder's own generation_config.json (penalties, lengths) would change captions; config.json's tokens stay
        model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
        self.model = model.eval().to(device)
        with loading(self.what, HINT):
            self.images = load_processor(transformers.AutoImageProcessor, name, use_fast=False, **safe)
            self.tokenizer = load_tokenizer(name, **safe)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One caption a picture; never empty."""
        return self._captions(self._pixels(pictures))

    @torch.inference_mode()
    def vision_tokens(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(B, n, width) float32: what the captioner's own vision part makes of pictures, on the CPU."""
        with loading(self.what, HINT):
            part = self.model.get_submodule(self._vision())
            return part(self._pixels(pictures)).last_hidden_state.float().cpu()

    def from_tokens(self, tokens: torch.Tensor) -> list[str]:
        """Captions from (B, n, width) tokens, in place of the vision part's."""
        place, _, leaf = self._vision().rpartition(".")
        parent = self.model.get_submodule(place)
        own = getattr(parent, leaf)
        setattr(parent, leaf, _Given())
        try:
            return self._captions(tokens[:, None].to(self.device, self.model.dtype))
        finally:
            setattr(parent, leaf, own)

    def _vision(self) -> str:
        if self.kind not in VISION:
            raise UserError(f"{self.what} is a {self.kind}; tokens can be given to {' and '.join(VISION)} only")
        return VISION[self.kind]

    def _pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        with loading(self.what, HINT):
            pixels = self.images(list(pictures), return_tensors="pt")["pixel_values"]
            return pixels.to(self.device, self.model.dtype)

    @torch.inference_mode()
    def _captions(self, pixels: torch.Tensor) -> list[str]:
        settings = {"num_beams": self.beams, "max_new_tokens": self.max_tokens, "do_sample": False}
        with loading(self.what, HINT):
            ids = self.model.generate(pixel_values=pixels, **settings)
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) or "a picture" for text in texts]
