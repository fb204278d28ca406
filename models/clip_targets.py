"""What EEG of seen images is trained towards, image by image: CLIP embeddings of images and sentences, text states of captions.

Everything is kept in half precision, 256 images a file, keyed by the images' bytes and the model's files, never by names: 16,740
images of CLIP ViT-H take 34 MB, and a run that dies loses one file's work.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from models.eeg_clip_mapper import HINT, CLIPImageTargetBuilder, CLIPTextTargetBuilder
from models.loading import load_whole
from utils.checkpoints import keep, read_kept
from utils.errors import UserError, loading
from utils.hub import fetch_nothing, model_identity
from utils.limits import opened_picture
from utils.progress import progress

FILE = 256  # images, sentences or captions a file of the cache
BATCH = 32  # embedded at once


def image_targets(name: str, paths: Sequence[Path], cache_dir: Path) -> torch.Tensor:
    """(N, D) float16 projected CLIP embeddings of image files, as they are: not brought to unit length.

    Resized and cropped in the middle, as the model's own preprocessor says.

    name : str. A folder laid out like `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, or a hub address.
    Raises UserError if a file is missing or no picture, or the model cannot be loaded.
    """
    builder, embed = CLIPImageTargetBuilder(name, cache_dir), []

    def build(part: Sequence[Path]) -> torch.Tensor:
        if not embed:
            embed.append(builder.load())
        return embed[0]([read_image(path) for path in part])

    digests = [hashlib.sha256(_bytes(path)).hexdigest() for path in paths]
    return _in_parts("image", name, paths, digests, cache_dir, build)


def sentence_targets(name: str, sentences: Sequence[str], cache_dir: Path) -> torch.Tensor:
    """(N, D) float16 projected CLIP embeddings of sentences."""
    loaded = []

    @torch.inference_mode()
    def build(part: Sequence[str]) -> torch.Tensor:
        if not loaded:
            transformers.logging.set_verbosity_error()
            safe = {"local_files_only": fetch_nothing(name, "config.json", "--clip_model"), "trust_remote_code": False}
            model = load_whole(CLIPTextModelWithProjection, name, "--clip_model", HINT, **safe, dtype=torch.float32)
            with loading(f"--clip_model {name}", HINT):
                loaded.append((model.eval(), AutoTokenizer.from_pretrained(name, **safe)))
        model, tokenizer = loaded[0]
        with loading(f"--clip_model {name}", HINT):
            ids = tokenizer(list(part), padding=True, truncation=True, max_length=77, return_tensors="pt")
            return model(ids.input_ids, ids.attention_mask).text_embeds.clone()

    return _in_parts("sentence", name, sentences, list(sentences), cache_dir, build)


def text_state_targets(image_model: str, captions: Sequence[str], cache_dir: Path) -> torch.Tensor:
    """(N, 77, D) float16 states of captions, as the image model's own text encoder gives them."""
    reader = CLIPTextTargetBuilder(image_model, cache_dir)
    return _in_parts(
        "caption", image_model, captions, list(captions), cache_dir, lambda part: reader.encode(part)["states"]
    )


def read_image(path: Path) -> "Image.Image":  # noqa: F821
    """An image in RGB; UserError where it is missing or no picture."""
    if not path.is_file():
        raise UserError(f"the image {path} is missing; --images_dir names the folder of the images that were seen")
    try:
        with opened_picture(path) as picture:
            return picture.convert("RGB")
    except UserError as error:
        raise UserError(f"the image {error}") from None
    except Exception:  # whatever a file that is no picture makes Pillow say
        raise UserError(f"the image {path} is not a picture; fetch it again") from None


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"the image {path} is missing; --images_dir names the folder of the images that were seen")
    return path.read_bytes()


def _in_parts(
    what: str, name: str, items: Sequence, digests: Sequence[str], cache_dir: Path, build: Callable
) -> torch.Tensor:
    """Targets of all items, from the cache or built now, FILE at a time."""
    identity, found, built = model_identity(name), [], 0
    with progress(total=len(items), desc=f"{what} targets", unit=what, leave=False) as bar:
        for start in range(0, len(items), FILE):
            key = json.dumps([what, identity, digests[start : start + FILE]])
            path = Path(cache_dir) / f"{what}_targets-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
            kept = read_kept(path)
            if kept is None or set(kept) != {"targets"} or len(kept["targets"]) != len(digests[start : start + FILE]):
                part = items[start : start + FILE]
                made = [build(part[k : k + BATCH]).half() for k in range(0, len(part), BATCH)]
                kept = {"targets": torch.cat(made)}
                if not torch.isfinite(kept["targets"]).all():
                    raise UserError(
                        f"{name} gives NaN, infinity or more than half precision holds; its weights are damaged"
                    )
                keep(kept, path)
                built += len(part)
            found.append(kept["targets"])
            bar.update(len(kept["targets"]))
    print(f"{what} targets: {len(items)}, {f'{built} embedded now' if built else 'from the cache'}")
    return torch.cat(found)
