"""What EEG of seen images is trained towards, image by image: CLIP embeddings, text states of captions, latents.

Everything is kept in half precision, 256 images a file, keyed by the images' bytes and the model's files, never by
names: 16,740 images of CLIP ViT-H take 34 MB, and a run that dies loses one file's work.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageOps
from safetensors import safe_open
from transformers import CLIPTextModelWithProjection

from models.eeg_clip_mapper import HINT, CLIPImageTargetBuilder, CLIPTextTargetBuilder
from models.loading import load_tokenizer, load_whole
from models.vision import load_vision
from utils.checkpoints import keep, read_kept
from utils.errors import UserError, loading
from utils.hub import fetch_nothing, model_identity
from utils.paths import image_path, remove_leftovers
from utils.photos import OddPictures, reads_plainly, whole_picture
from utils.progress import progress
from utils.seeds import some_of

FILE = 256  # images, sentences or captions a file of the cache
BATCH = 32  # embedded at once
SAME_TARGETS = 2e-2  # of their RMS: half precision and other devices differ by less
FETCH = "--images_dir names the folder of the images that were seen"

# ---------------------------------------------------------------- targets
# Each has a `build` for some of its items; the model is loaded when the first of them is not in the cache.


def image_targets(name: str, paths: Sequence[Path], cache_dir: Path, blur: Sequence[float] = ()) -> torch.Tensor:
    """(N, D) float16 projected CLIP embeddings of image files, as they are: not brought to unit length.

    Resized and cropped in the middle, as the model's own preprocessor says.

    name : str. A folder laid out like `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, or a hub address.
    blur : sequence of float. The mean over blurred pictures, see `models.vision.over_blurs`.
    Raises UserError if a file is missing or no picture, or the model cannot be loaded.
    """
    load = functools.partial(CLIPImageTargetBuilder(name, cache_dir).load, blur)
    return _of_pictures("image", name, load, paths, cache_dir, {"blur": blur} if any(blur) else {})


def vision_targets(
    name: str, paths: Sequence[Path], cache_dir: Path, layers: Sequence[int] = (), blur: Sequence[float] = ()
) -> torch.Tensor:
    """(N, D) float16 features of image files in any vision model; `models.vision.load_vision` says which."""
    load = functools.partial(load_vision, name, layers, blur)
    return _of_pictures("vision", name, load, paths, cache_dir, {"layers": layers, "blur": blur if any(blur) else []})


def _of_pictures(
    what: str, name: str, load: Callable, paths: Sequence[Path], cache_dir: Path, how: dict
) -> torch.Tensor:
    """Targets of image files. load : callable. Gives a function of pictures. how : what else they depend on."""
    embedder, odd = functools.cache(load), OddPictures()

    def build(part: Sequence[Path]) -> torch.Tensor:
        pictures = [read_image(path) for path in part]
        for path, picture in zip(part, pictures, strict=True):
            odd.add(f"{path.parent.name}/{path.name}", picture)
        return embedder()(pictures)

    identity = f"{model_identity(name)} {json.dumps(how)}" if how else None
    targets = in_parts(what, name, paths, digests_of(paths), cache_dir, build, identity=identity)
    odd.report("images")
    return targets


def sentence_targets(name: str, sentences: Sequence[str], cache_dir: Path) -> torch.Tensor:
    """(N, D) float16 projected CLIP embeddings of sentences."""

    @functools.cache
    def load() -> tuple:
        transformers.logging.set_verbosity_error()
        safe = {"local_files_only": fetch_nothing(name, "config.json", "--clip_model"), "trust_remote_code": False}
        model = load_whole(CLIPTextModelWithProjection, name, "--clip_model", HINT, **safe, dtype=torch.float32)
        with loading(f"--clip_model {name}", HINT):
            return model.eval(), load_tokenizer(name, **safe)

    @torch.inference_mode()
    def build(part: Sequence[str]) -> torch.Tensor:
        model, tokenizer = load()
        with loading(f"--clip_model {name}", HINT):
            ids = tokenizer(list(part), padding=True, truncation=True, max_length=77, return_tensors="pt")
            return model(ids.input_ids, ids.attention_mask).text_embeds.clone()

    return in_parts("sentence", name, sentences, list(sentences), cache_dir, build)


def text_state_targets(image_model: str, captions: Sequence[str], cache_dir: Path) -> torch.Tensor:
    """(N, 77, D) float16 states of captions, as the image model's own text encoder gives them."""
    reader = CLIPTextTargetBuilder(image_model, cache_dir)
    digests = list(captions)
    return in_parts("caption", image_model, captions, digests, cache_dir, lambda part: reader.encode(part)["states"])


def vae_latent_targets(
    image_model: str, paths: Sequence[Path], cache_dir: Path, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(N, 4, h, w) float16 latents of images at the size that the image model draws, times its VAE's scaling factor.

    The mean of the encoder's Gaussian. For Stable Diffusion XL-Turbo and 1.5: images of 512², latents of 64².
    """

    @functools.cache
    def load() -> tuple[AutoencoderKL, int]:
        vae, edge = load_vae(image_model)
        return vae.to(device), edge

    @torch.inference_mode()
    def build(part: Sequence[Path]) -> torch.Tensor:
        vae, edge = load()
        x = torch.stack([_square(read_image(path), edge) for path in part])
        with loading(f"--image_model {image_model}", HINT):
            # four at once: an image of 512² takes 0.5 GB
            latents = [vae.encode(four.to(device)).latent_dist.mean.cpu() for four in x.split(4)]
            return torch.cat(latents) * vae.config.scaling_factor

    return in_parts("latent", image_model, paths, digests_of(paths), cache_dir, build)


def load_vae(image_model: str) -> tuple[AutoencoderKL, int]:
    """The VAE of an image model in float32, and the edge of the pictures that the model draws, in pixels."""
    local = {"local_files_only": fetch_nothing(image_model, "model_index.json", "--image_model")}
    vae = load_whole(AutoencoderKL, image_model, "--image_model", HINT, subfolder="vae", dtype=torch.float32, **local)
    with loading(f"--image_model {image_model}", HINT):
        config = UNet2DConditionModel.load_config(image_model, subfolder="unet", **local)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        edge = min(512, int(config["sample_size"]) * factor)
        if not factor <= edge:
            raise ValueError(f"its unet draws {config['sample_size']} latents")
    return vae.eval(), edge


def _square(picture: Image.Image, edge: int) -> torch.Tensor:
    """(3, edge, edge) from −1 to 1, the middle of the picture."""
    fitted = ImageOps.fit(picture, (edge, edge), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


def vision_token_targets(captioner, images: Sequence[str], paths: Sequence[Path], cache_dir: Path) -> "OnDisk":
    """Image → (n, width) tokens of a captioner's vision part, left on the disk: GIT's of 16,740 images take 8.8 GB.

    captioner : models.captioner.Captioner
    """

    def build(part: Sequence[Path]) -> torch.Tensor:
        return captioner.vision_tokens([read_image(path) for path in part])

    digests = digests_of(paths)
    return OnDisk(images, in_parts("vision token", captioner.name, paths, digests, cache_dir, build, on_disk=True))


class OnDisk:
    """Targets by image, each read from its file when it is asked for."""

    def __init__(self, images: Sequence[str], files: Sequence[Path]):
        self.place, self.files, self._open = {image: k for k, image in enumerate(images)}, list(files), {}

    def __getitem__(self, image: str) -> torch.Tensor:
        number, within = divmod(self.place[image], FILE)
        if number not in self._open:
            self._open[number] = safe_open(self.files[number], framework="pt").get_slice("targets")
        return self._open[number][within]


# ---------------------------------------------------------------- images, and the cache


def image_paths(images: Sequence[str], folder: Path) -> list[Path]:
    """Where images lie; UserError for a name that leaves the folder."""
    root, paths = folder.resolve(), [image_path(folder, image) for image in images]
    for image, path in zip(images, paths, strict=True):
        if not path.resolve().is_relative_to(root):
            raise UserError(f"the image {image!r} is outside {folder}")
    return paths


def read_image(path: Path) -> Image.Image:
    """An image in RGB; UserError where it is missing or no picture."""
    return whole_picture(path, "image", FETCH)


def digests_of(paths: Sequence[Path]) -> list[str]:
    """What tells each image from another: its file's SHA-256; of one that is not read as it lies there, that as well.

    Raises UserError where one is missing.
    """
    if missing := next((path for path in paths if not path.is_file()), None):
        raise UserError(f"the image {missing} is missing; {FETCH}")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return [d if reads_plainly(path) else f"{d} as seen" for d, path in zip(digests, paths, strict=True)]


def in_parts(
    what: str,
    name: str,
    items: Sequence,
    digests: Sequence,
    cache_dir: Path,
    build: Callable,
    on_disk=False,
    identity=None,
) -> torch.Tensor | list[Path]:
    """Targets of all items, from the cache or built now, FILE at a time; `on_disk`: the files that hold them.

    what : str. Kind of target.
    name : str. The model that gives them, for messages, and by its files for the cache.
    digests : sequence of str. What tells an item from another.
    build : callable. Up to 32 items → (n, …) tensor.
    identity : str, optional. In place of the model's files.
    """
    remove_leftovers(Path(cache_dir))  # of runs that died
    identity, parts, files, built = identity or model_identity(name), [], [], 0
    with progress(total=len(items), desc=f"{what} targets", unit=what, leave=False) as bar:
        for start in range(0, len(items), FILE):
            part, own = items[start : start + FILE], digests[start : start + FILE]
            key = hashlib.sha256(json.dumps([what, identity, own]).encode()).hexdigest()[:24]
            path = Path(cache_dir) / f"{what.replace(' ', '_')}_targets-{key}.safetensors"
            kept = read_kept(path)
            if _COMPARED is not None:
                if kept is None:
                    raise UserError(f"{path.name} is not in the cache of targets")
                _COMPARED.append((path, _agrees(kept, part, build)))
            if kept is None or set(kept) != {"targets"} or len(kept["targets"]) != len(own):
                made = torch.cat([build(part[k : k + BATCH]).half() for k in range(0, len(part), BATCH)])
                if not torch.isfinite(made).all():
                    fault = "gives NaN, infinity or more than half precision holds"
                    raise UserError(f"{name} {fault}; its weights are damaged")
                kept = {"targets": made}
                keep(kept, path)
                built += len(part)
            if on_disk and not path.is_file():
                unwritten = f"{path.parent} cannot be written, and {what}s are read from there"
                raise UserError(f"{unwritten}; --cache_dir names another folder")
            files.append(path) if on_disk else parts.append(kept["targets"])
            bar.update(len(own))
    if _COMPARED is None:
        print(f"{what} targets: {len(items)}, {f'{built} embedded now' if built else 'from the cache'}")
    return files if on_disk else torch.cat(parts)


# ---------------------------------------------------------------- whether kept targets are right

_COMPARED: list[tuple[Path, bool]] | None = None  # inside `compared`: files, and whether they agree


@contextmanager
def compared(files: list[tuple[Path, bool]]) -> Iterator[None]:
    """Inside, targets come from the cache alone, and some of each file are made anew; UserError where one is missing.

    files : list. Gets each file that is there, and whether what the model makes now agrees with it.
    """
    global _COMPARED
    _COMPARED = files
    try:
        yield
    finally:
        _COMPARED = None


MADE_ANEW = 16  # targets of a file that are made anew


def _agrees(kept: dict, items: Sequence, build: Callable) -> bool:
    """Whether some of a file's targets are those that the model gives, but for another device's rounding."""
    targets, chosen = kept.get("targets"), some_of(range(len(items)), MADE_ANEW)
    made = build([items[k] for k in chosen]).float()
    same = targets is not None and targets.shape == (len(items), *made.shape[1:])
    return same and bool((targets[chosen].float() - made).abs().max() <= SAME_TARGETS * made.square().mean().sqrt())
