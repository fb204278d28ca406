"""What stands between EEG of seen images and a picture: one class a step, each with a checkpoint of its own.

A step decodes tensors that pictures are drawn from. It says what it adds to a picture's recipe and to the generator,
and guides each picture. It says whether it is a shuffled-label control. `generate_eeg2img.py` goes through the steps.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.repetitions import Group
from models.captioner import Captioner
from models.image_generator import image_model_address
from models.structure import map_picture
from stages.checkpoints import (
    check_controlnet,
    controlnet_folder,
    must_not_have_seen,
    read_adapter,
    read_prior,
    read_vae,
)
from stages.clip_features import image_vectors
from stages.clip_runs import ClipRun, clip_part, open_like
from stages.embeddings import Tensors
from stages.guided_pictures import DECODED, Wanted
from stages.pictures import Picture, opened_whole, save_with_recipe
from stages.retrieval import class_rows, embed, prototype_probabilities, retrieval_rows
from stages.rows import Row, used_besides
from stages.targets import decoded_maps
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.hub import fetch_nothing, model_identity
from utils.processes import Processes
from utils.seeds import sample_seed

CAPTIONED = 16  # trials whose captions are read at once


@dataclass
class Decoded:
    """What the encoder gave, and how further runs are opened.

    run : ClipRun. groups : its chosen trials. vectors : (N, D) their embeddings. rows : one a group.
    length : float. Mean length of a training image's embedding.
    """

    run: ClipRun
    groups: list[Group]
    vectors: Tensor
    rows: list[Row]
    length: float
    foundation: str
    cache_dir: str | None
    processes: Processes
    batch_size: int

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.processes.device

    def further(self, place: str, target: str) -> tuple[ClipRun, Callable[[], Tensor]]:
        """A further run on the same trials, see `open_like`; and a function that gives its outputs (N, …) for them."""
        opened = self.foundation, self.cache_dir, self.device
        run, groups = open_like(Path(place), self.run, self.groups, target, *opened)
        used_besides(self.rows, run.dataset.uses)
        shared = self.device, self.batch_size, self.processes
        return run, lambda: embed(run.model, run.dataset, groups, run.people, *shared)


class Step:
    """What all steps have; the parts that a step leaves out do nothing."""

    ways: tuple[str, ...] = (DECODED,)  # of drawing, in which it guides

    def check_first(self) -> None:
        """UserError for what can be known before anything is decoded."""

    def decode(self, decoded: Decoded) -> tuple[Tensors, dict[str, bool]]:
        """Tensors (N, …) by name; {step: whether it is a shuffled-label control}."""
        return {}, {}

    needs: tuple[str, ...] = ()  # tensors without which nothing is drawn

    def check_drawn_for(self, asked: Mapping) -> None:
        """UserError where pictures are drawn with something else than was decoded for."""

    def recipe(self) -> dict:
        """What it adds to a picture's recipe."""
        return {}

    def settings(self, kept: Tensors) -> dict:
        """What it adds to the generator: parameters of `GuidedGenerator`."""
        return {}

    def guidance(self, kept: Tensors, place: int, wanted: Wanted) -> dict:
        """What it adds to the guidance of one picture: fields of `models.guided_generator.Guidance`."""
        return {}

    def lacks(self, folder: Path, wanted: Wanted) -> bool:
        """Whether a picture of the step itself is missing beside a drawn one."""
        return False

    def draw_own(self, folder: Path, wanted: Wanted, generator, kept: Tensors, place: int) -> None:
        """Draw a picture of the step itself."""

    def column(self, folder: Path, kept: Tensors, place: int, row: Row) -> tuple[str, Picture] | None:
        """Its heading and picture in the sheet of steps."""


# ---------------------------------------------------------------- the steps


@dataclass
class Embedding(Step):
    """The decoded embedding, or what a prior makes of it, → IP-Adapter."""

    ip_adapter: str
    ip_scale: float
    prior_dir: str | None
    prior_steps: int
    prior_guidance: float
    samples: int
    seed: int
    ways, needs = (DECODED, "ceiling", "nearest"), ("embedding",)

    def decode(self, decoded: Decoded) -> tuple[Tensors, dict[str, bool]]:
        if not self.prior_dir:  # at the length that embeddings of images have
            return {"embedding": (F.normalize(decoded.vectors, dim=-1) * decoded.length)[:, None]}, {}  # (N, 1, D)
        run, width = decoded.run, decoded.vectors.shape[1]
        prior, shuffled = read_prior(Path(self.prior_dir), fingerprint(run.model), run.checkpoint.get("clip"), width)
        prior.to(decoded.device)
        seeds = [[sample_seed(self.seed, row.index, k) for row in decoded.rows] for k in range(self.samples)]
        condition = decoded.vectors.to(decoded.device)
        drawn = [prior.sample(condition, own, self.prior_steps, self.prior_guidance).cpu() for own in seeds]
        return {"embedding": torch.stack(drawn, dim=1)}, {"prior": shuffled}  # (N, samples, D)

    def recipe(self) -> dict:
        return {"ip_adapter": model_identity(self.ip_adapter), "ip_scale": self.ip_scale, "prior": bool(self.prior_dir)}

    def settings(self, kept: Tensors) -> dict:
        return {"ip_adapter": self.ip_adapter, "width": kept["decoded"].shape[1], "ip_scale": self.ip_scale}

    def guidance(self, kept: Tensors, place: int, wanted: Wanted) -> dict:
        if wanted.way != DECODED:
            return {"embedding": kept[wanted.way][place]}
        of_samples = kept["embedding"][place]
        return {"embedding": of_samples[wanted.sample % len(of_samples)]}


@dataclass
class LowLevel(Step):
    """Decoded latents of the image model's VAE, which drawing begins from."""

    place: str
    image_model: str
    strength: float
    needs = ("latents",)

    def decode(self, decoded: Decoded) -> tuple[Tensors, dict[str, bool]]:
        run, outputs = decoded.further(self.place, "vae_latent")
        if run.checkpoint.get("image_model_identity") != self._identity():
            other = f"the latents of another image model than {self.image_model}"
            raise UserError(f"{run.name} was trained towards {other}")
        latents = outputs().unflatten(1, run.checkpoint["settings"]["latents"])  # (N, 4, h, w)
        return {"latents": latents}, {"low level": run.checkpoint["shuffled"]}

    def _identity(self) -> str:
        return model_identity(image_model_address(self.image_model))

    def check_drawn_for(self, asked: Mapping) -> None:
        if asked["image_model"] != self._identity():
            other = f"another image model than {self.image_model}"
            raise UserError(f"these are latents of {other}; decode again for this one")

    def recipe(self) -> dict:
        return {"strength": self.strength}

    def settings(self, kept: Tensors) -> dict:
        return {"strength": self.strength}

    def guidance(self, kept: Tensors, place: int, wanted: Wanted) -> dict:
        return {"latents": kept["latents"][place]}

    def _file(self, folder: Path, row: Row) -> Path:
        return folder / "low_level" / f"low_level_{row.index:04d}.png"

    def lacks(self, folder: Path, wanted: Wanted) -> bool:
        return wanted.way == DECODED and wanted.sample == 0 and not self._file(folder, wanted.row).is_file()

    def draw_own(self, folder: Path, wanted: Wanted, generator, kept: Tensors, place: int) -> None:
        if wanted.way == DECODED and wanted.sample == 0:
            picture = generator.picture_of(kept["latents"][place])
            save_with_recipe(picture, wanted.recipe, self._file(folder, wanted.row))

    def column(self, folder: Path, kept: Tensors, place: int, row: Row) -> tuple[str, Picture]:
        return "decoded low level", opened_whole(self._file(folder, row))


@dataclass
class Map(Step):
    """A decoded map of edges → ControlNet."""

    place: str
    vae_dir: str
    controlnet: str
    controlnet_scale: float
    image_model: str
    needs = ("map",)

    @functools.cached_property
    def net(self) -> str:
        """The ControlNet's folder, or its address on the hub."""
        return str(controlnet_folder(self.controlnet))

    def check_first(self) -> None:
        fetch_nothing(self.net, "config.json", "--controlnet")

    def decode(self, decoded: Decoded) -> tuple[Tensors, dict[str, bool]]:
        run, outputs = decoded.further(self.place, "structure")
        vae, about = read_vae(Path(self.vae_dir))
        must_not_have_seen(about, Path(self.vae_dir), decoded.run.images)
        if fingerprint(vae) != run.checkpoint.get("vae"):
            raise UserError(f"{run.name} was trained towards another VAE than {self.vae_dir}")
        check_controlnet(self.net, self.image_model, decoded.run.images)
        maps = decoded_maps(vae, outputs()[:, run.checkpoint["clip_width"] :])  # (N, 1, 128, 128)
        return {"map": maps}, {"map": run.checkpoint["shuffled"]}

    def check_drawn_for(self, asked: Mapping) -> None:
        check_controlnet(self.net, self.image_model, map(str, asked["test_images"]))

    def recipe(self) -> dict:
        return {"controlnet": model_identity(self.net), "controlnet_scale": self.controlnet_scale}

    def settings(self, kept: Tensors) -> dict:
        return {"controlnet": self.net, "controlnet_scale": self.controlnet_scale}

    def guidance(self, kept: Tensors, place: int, wanted: Wanted) -> dict:
        return {"structure": map_picture(kept["map"][place])}

    def column(self, folder: Path, kept: Tensors, place: int, row: Row) -> tuple[str, Picture]:
        return "decoded map", map_picture(kept["map"][place])


@dataclass
class Caption(Step):
    """A decoded caption → the prompt."""

    place: str
    captioner: str

    def decode(self, decoded: Decoded) -> tuple[Tensors, dict[str, bool]]:
        width, of_encoder = decoded.vectors.shape[1], fingerprint(decoded.run.model)
        adapter, shuffled = read_adapter(Path(self.place), of_encoder, self.captioner, width)
        adapter.to(decoded.device)
        reader = Captioner(self.captioner, decoded.device, flag="--captioner")

        @torch.no_grad()
        def captions(vectors: Tensor) -> list[str]:
            return reader.from_tokens(adapter(vectors.to(decoded.device)))

        parts = decoded.processes.each(captions, decoded.vectors, CAPTIONED, "captions")
        for row, caption in zip(decoded.rows, sum(parts, []), strict=True):
            row.text = row.prompt = caption
        return {}, {"caption": shuffled}


# ---------------------------------------------------------------- the encoder's own part


def nearest_images(
    run: ClipRun, chosen: Sequence[Group], decoded: Tensor, images_dir: Path, clip_model: str | None, cache_dir: Path
) -> tuple[list[Row], Tensors, float]:
    """Rows of what decoded embeddings are nearest to: among test images and, for `Row.nearest`, training images.

    decoded : (N, D). clip_model : str, optional. The CLIP that was trained towards, where it lies elsewhere now.
    Returns the rows; "ceiling" and "nearest", (N, D) embeddings of the stimuli and of the nearest training images; the
    mean length of a training image's embedding.
    Raises UserError for another CLIP, or a run that was trained on the very images that are asked for.
    """
    checkpoint = run.checkpoint
    if clip_model and checkpoint.get("clip") and model_identity(clip_model) != checkpoint["clip"]:
        raise UserError(f"--clip_model {clip_model} is another one than {run.name} was trained with")
    candidates = run.images
    trained_on = sorted(set(checkpoint["seen"]) - set(candidates))  # none of those that are asked for
    if not trained_on:
        same = "the very images that are decoded"
        raise UserError(f"{run.name} was trained on {same}; there is no other one to be nearest to")
    clip = clip_model or checkpoint["clip_model"]
    files = None if clip_model else checkpoint.get("clip_features")
    how = run.dataset.store, images_dir, clip, cache_dir, files
    among, of_training = (image_vectors(images, *how).float() for images in (candidates, trained_on))  # (n, D) each

    def trained_towards(vectors: Tensor, images: Sequence[str]) -> Tensor:  # pictures are drawn from sharp ones
        blur = checkpoint.get("blur")
        return image_vectors(images, *how, blur).float() if blur else vectors

    width, expected = decoded.shape[1], among.shape[1]
    if width != expected:
        raise UserError(f"{run.name} gives embeddings of width {width}, --clip_model of width {expected}")
    if checkpoint.get("prototypes") is not None:
        p = prototype_probabilities(decoded, checkpoint["prototypes"], checkpoint["centre"])
        rows = class_rows(run.dataset, chosen, p, "prototype")
    else:
        rows = retrieval_rows(run.dataset, chosen, decoded, trained_towards(among, candidates), candidates)
    near = trained_towards(of_training, trained_on)
    places = (F.normalize(decoded, dim=-1) @ F.normalize(near, dim=-1).T).argmax(dim=1).tolist()
    for row, place in zip(rows, places, strict=True):
        row.nearest = trained_on[place]
    own = [candidates.index(group.image) for group in chosen]
    return rows, {"ceiling": among[own], "nearest": of_training[places]}, float(of_training.norm(dim=-1).mean())


def decode_embedding(
    runs: Sequence[tuple[ClipRun, list[Group]]], images_dir: Path, clip_model: str | None, cache: Path, **how
) -> tuple[Decoded, Tensors]:
    """`Decoded`, and what the same trials may be drawn from for comparison. how : the rest of `Decoded`.

    Of several runs the embeddings are the means of theirs, each of length one.
    """
    (run, groups), processes = runs[0], how["processes"]
    of_runs = [clip_part(*one, processes.device, how["batch_size"], processes) for one in runs]  # (N, D) each
    vectors = of_runs[0] if len(runs) == 1 else torch.stack([F.normalize(v, dim=-1) for v in of_runs]).mean(dim=0)
    with processes.first_ahead():  # which keeps the embeddings of images
        rows, others, length = nearest_images(run, groups, vectors, images_dir, clip_model, cache)
    used_besides(rows, *(one.dataset.uses for one, _ in runs))
    return Decoded(run, groups, vectors, rows, length, **how), others
