"""What EEG of seen images is trained towards. One class a target: its tables, loss, rows and the read-out that chooses.

A target has, beside the constructor of `Target`,
    objectives              what --objective may be; the first is the default
    wants                   what an encoder must give for it: "vector", "states", "latents"
    needs                   fields of `TargetSettings` that must be given
    options                 fields of `TargetSettings` that may be given, and have no part in other targets
    of_sentences            whether sentences' embeddings may stand beside the images' (--lambda_text)
    build(splits, groups)   embed all images of all splits; `groups`: what is trained on
    out                     width that the encoder gives
    loss(output, batch, scale)    of a batch of `datasets.repetitions.Averages`, which holds `tables` by name
    rows(outputs, dataset, groups)    → decoded rows, and measures of what is no answer
    readout                 the read-out or measure whose validation chooses the epoch
`TARGETS` in stages/__init__.py lists them.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.splits import parts_left_out
from datasets.trials import TrialDataset
from models import CONTRASTIVE, choose, clip_targets
from models.clip_targets import image_paths, read_image
from models.contrastive import info_nce
from models.structure import StructuralVAE, as_pixels, structure_map
from readers.captions import captions_of, read_captions
from stages import retrieval
from stages.checkpoints import must_not_have_seen, read_vae
from stages.clip_features import at_hand, identity, image_vectors, sentence_vectors
from stages.retrieval import Groups
from stages.rows import Row
from stages.scores import Measure, measured
from stages.tokens import Splits
from utils.checkpoints import as_bytes, fingerprint
from utils.errors import UserError
from utils.hub import model_identity

FIXED_SCALE = 1 / 0.07  # of similarities, where it is not trained
OPTIONS = ("structure_vae", "clip_layer", "blur", "clip_features")  # that only some targets have
Result = tuple[list[Row], dict[str, Measure]]


@dataclass
class TargetSettings:
    """What a target is made from; flags of the same names."""

    objective: str
    images_dir: Path
    cache_dir: Path  # where embedded targets are kept
    clip_model: str
    image_model: str
    clip_features: Sequence[str] | None = None  # files of embeddings in place of `clip_model`'s
    clip_layer: Sequence[int] | None = None  # layers of `clip_model` that are read, see `models.vision.load_vision`
    blur: Sequence[float] | None = None  # Gaussians by which images are blurred, see `models.vision.over_blurs`
    captions: str | None = None
    structure_vae: str | None = None
    lambda_text: float = 0.0
    mse_share: float = 0.9
    positives: str = "image"
    unit_eeg: bool = True
    train_scale: bool = True  # whether the scale of similarities is trained with the encoder
    device: torch.device | str = "cpu"  # where the image model's VAE works


class Target:
    """What all targets have. `tables`: name → {image: tensor}, for the loss; rows are made of `tables["target"]`."""

    objectives: tuple[str, ...] = ()
    wants, needs, options, of_sentences = "vector", (), (), False
    # whether it embeds images in CLIP's space, whether retrieve.py ranks test images, whether it is made of photos
    in_clip_space, ranks, of_photos = False, False, False

    def __init__(self, settings: TargetSettings):
        self.settings = settings
        self.tables: dict[str, dict[str, Tensor]] = {}
        self.prototypes = self.centre = None

    def build(self, splits: Splits, groups: Groups) -> None:
        """Embed all images of all splits; prototypes and means come from `groups`, the training trials."""
        self.description = splits["train"].description
        self.trained_on = sorted({group.image for group in groups})
        images = images_of(splits)
        embedded = self.embed(images, splits)
        self.tables = {name: dict(zip(images, rows, strict=True)) for name, rows in embedded.items()}
        self.finish(groups)

    def lacking(self, images: Sequence[str]) -> list[str]:
        """The images for which it cannot be made."""
        if not self.of_photos or self.settings.clip_features:
            return []
        return missing_photos(images, self.settings.images_dir)

    def paths(self, images: Sequence[str]) -> list[Path]:
        """Files of images."""
        return image_paths(images, self.settings.images_dir)

    def embed(self, images: list[str], splits: Splits) -> dict[str, Sequence[Tensor]]:
        """Targets by name, in the order of the images."""
        return {}

    def finish(self, groups: Groups) -> None:
        """What is made of the training trials' targets."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's target."""
        return tuple(next(iter(self.tables["target"].values())).shape)

    @property
    def out(self) -> int:
        return math.prod(self.shape)

    @property
    def facts(self) -> dict:
        """What a checkpoint keeps of it."""
        kept = {"clip": "", "clip_width": None, "vae": "", "image_model_identity": ""}
        return kept | {"prototypes": self.prototypes, "centre": self.centre}

    @property
    def digest(self) -> str:
        """Tells these targets from others."""
        digest = hashlib.sha256()
        for table in self.tables.values():
            for image in sorted(table):
                digest.update(as_bytes(table[image]))
        return digest.hexdigest()

    def stacked(self, images: Sequence[str], table: str = "target") -> Tensor:
        """(N, …) targets of images."""
        return torch.stack([self.tables[table][image] for image in images])


class Images(Target):
    """image: CLIP embeddings of the images, contrastive; beside them those of sentences, with a share --lambda_text."""

    objectives, of_sentences, in_clip_space, ranks = (*CONTRASTIVE, "generation", "mse"), True, True, True
    of_photos, options = True, ("blur", "clip_features")

    def embed(self, images: list[str], splits: Splits) -> dict:
        tables = {"target": self.vectors(images, splits)}
        return tables | ({"text": self.sentences(images, splits)} if self.settings.lambda_text else {})

    def vectors(self, images: Sequence[str], splits: Splits) -> Tensor:
        """(N, D) CLIP embeddings of images."""
        s, store = self.settings, next(iter(splits.values())).store
        return image_vectors(images, store, s.images_dir, s.clip_model, s.cache_dir, s.clip_features, s.blur)

    def sentences(self, images: Sequence[str], splits: Splits) -> list[Tensor]:
        """CLIP embeddings of the sentence that stands for each image."""
        store = next(iter(splits.values())).store
        if given := sentence_vectors(images, store, self.settings.clip_features):
            return given
        sentence_of = retrieval.sentences_of(splits.values())
        distinct = sorted({sentence_of[image] for image in images})
        vectors = clip_targets.sentence_targets(self.settings.clip_model, distinct, self.settings.cache_dir)
        vector_of = dict(zip(distinct, vectors, strict=True))
        return [vector_of[sentence_of[image]] for image in images]

    def finish(self, groups: Groups) -> None:
        if self.description.apart != "concept":  # classes that are trained on
            n_classes = len(self.description.classes)
            self.prototypes = retrieval.class_prototypes(groups, self.tables["target"], n_classes)

    def loss(self, output: Tensor, batch: Mapping, scale: Tensor) -> Tensor:
        """NCE with images (1 − λ) and sentences (λ); generation: 10 (0.9 MSE to raw embeddings + 0.1 NCE); or MSE."""
        s, target = self.settings, batch["target"]
        if s.objective == "mse":
            return F.mse_loss(output, target)
        nce = self.nce(output, target, batch, scale)
        if "text" in batch:
            nce = (1 - s.lambda_text) * nce + s.lambda_text * self.nce(output, batch["text"], batch, scale)
        if s.objective == "generation":
            return 10 * (s.mse_share * F.mse_loss(output, target) + (1 - s.mse_share) * nce)
        return nce

    def nce(self, output: Tensor, target: Tensor, batch: Mapping, scale: Tensor) -> Tensor:
        copies = batch["image"] if self.settings.positives == "image" else None
        scale = scale if self.settings.train_scale else FIXED_SCALE
        loss = choose(CONTRASTIVE, self.settings.objective) if self.settings.objective in CONTRASTIVE else info_nce
        return loss(output, target, scale, copies, self.settings.unit_eeg)

    def rows(self, outputs: Tensor, dataset: TrialDataset, groups: Groups) -> Result:
        """Classes that are trained on by the nearest prototype; else retrieval among what nobody trained on."""
        if self.prototypes is not None:
            p = retrieval.prototype_probabilities(outputs, self.prototypes, self.centre)
            return retrieval.class_rows(dataset, groups, p, "prototype"), {}
        if dataset.mode == "val":
            return retrieval.held_out_rows(dataset, groups, outputs, self.tables["target"]), {}
        images = sorted({group.image for group in groups})
        return retrieval.retrieval_rows(dataset, groups, outputs, self.stacked(images), images), {}

    @property
    def readout(self) -> str:
        return "retrieval" if self.prototypes is None else "prototype"

    @property
    def facts(self) -> dict:
        s = self.settings
        return super().facts | {"clip": identity(s.clip_model, s.clip_features), "clip_features": s.clip_features}

    def candidates(self, dataset: TrialDataset, images: list[str]) -> dict[str, Sequence[Tensor]]:
        """Read-out → (K, D), what test images are ranked by: their targets; in CLIP's space their sentences too."""
        candidates = {"retrieval": self.embed(images, {"test": dataset})["target"]}
        if self.in_clip_space and dataset.description.apart == "concept":  # else several images have one sentence
            s = self.settings
            given = not s.clip_features or at_hand(s.clip_model)
            if given or sentence_vectors(images, dataset.store, s.clip_features):
                candidates["classification"] = self.sentences(images, {"test": dataset})
            else:
                print(f"notice: no classification: the features have no sentences, and {s.clip_model} is not at hand")
        return candidates


class VisionLayers(Images):
    """vision: features of the images in any vision model, what it gives or layers inside it (--clip_layer)."""

    objectives, of_sentences, in_clip_space, options = (*CONTRASTIVE, "mse"), False, False, ("clip_layer", "blur")

    def vectors(self, images: Sequence[str], splits: Splits) -> Tensor:
        s = self.settings
        if s.clip_features:  # of retrieve.py
            raise UserError("--clip_features has no part in --target vision; --clip_model names what embeds the images")
        layers, blur = s.clip_layer or (), s.blur or ()
        return clip_targets.vision_targets(s.clip_model, self.paths(images), s.cache_dir, layers, blur)


class Sentences(Images):
    """text: CLIP embeddings of "This picture is …"."""

    objectives, of_sentences, in_clip_space, of_photos = (*CONTRASTIVE, "mse"), False, False, False
    options = ()

    def embed(self, images: list[str], splits: Splits) -> dict:
        return {"target": self.sentences(images, splits)}

    def candidates(self, dataset: TrialDataset, images: list[str]) -> dict[str, Sequence[Tensor]]:
        """Images and sentences, which lie in one space: those of CLIP."""
        return Images(self.settings).candidates(dataset, images)


class TextStates(Images):
    """text_states: an image's caption as the image model's text encoder reads it, (77, D); mean squared error."""

    objectives, wants, needs, options = ("mse",), "states", ("captions",), ()
    of_sentences, in_clip_space, ranks, of_photos = False, False, False, False

    def lacking(self, images: Sequence[str]) -> list[str]:
        known = captions_of(Path(self.settings.captions))
        return [image for image in images if image not in known]

    def embed(self, images: list[str], splits: Splits) -> dict:
        caption_of = read_captions(Path(self.settings.captions), images)
        distinct = sorted(set(caption_of.values()))
        states = clip_targets.text_state_targets(self.settings.image_model, distinct, self.settings.cache_dir)
        state_of = dict(zip(distinct, states, strict=True))
        return {"target": [state_of[caption_of[image]] for image in images]}

    def finish(self, groups: Groups) -> None:
        super().finish(groups)
        self.centre = None if self.prototypes is None else self.prototypes.mean(dim=0)

    @property
    def facts(self) -> dict:
        return super().facts | {"clip": "", "clip_features": None}


class Classes(Target):
    """classes: the labels; cross-entropy."""

    objectives, readout = ("ce",), "classifier"

    @property
    def out(self) -> int:
        return len(self.description.classes)

    def loss(self, output: Tensor, batch: Mapping, scale: Tensor) -> Tensor:
        return F.cross_entropy(output, batch["label"])

    def rows(self, outputs: Tensor, dataset: TrialDataset, groups: Groups) -> Result:
        return retrieval.class_rows(dataset, groups, outputs.softmax(dim=1), "classifier"), {}


class Latents(Target):
    """vae_latent: the image model's own latents of the images, (4, h, w); mean absolute error, as ATM's low level."""

    objectives, wants, readout, of_photos = ("l1",), "latents", "latents", True

    def embed(self, images: list[str], splits: Splits) -> dict:
        s = self.settings
        return {"target": clip_targets.vae_latent_targets(s.image_model, self.paths(images), s.cache_dir, s.device)}

    def finish(self, groups: Groups) -> None:
        self.mean = self.stacked(self.trained_on).float().mean(dim=0).flatten()

    def loss(self, output: Tensor, batch: Mapping, scale: Tensor) -> Tensor:
        return F.l1_loss(output, batch["target"].flatten(1))

    def rows(self, outputs: Tensor, dataset: TrialDataset, groups: Groups) -> Result:
        """No answers; correlation with the image's own. What all images share is left out: it is no knowledge."""
        own = self.stacked([group.image for group in groups]).flatten(1)
        correlations = retrieval.correlation(outputs - self.mean, own - self.mean)
        return [], {"latents": measured("correlation", correlations.tolist())}

    @property
    def facts(self) -> dict:
        return super().facts | {"image_model_identity": model_identity(self.settings.image_model)}


class Structure(Images):
    """structure: CLIP embeddings of images, then latents of SGDM's VAE; NCE of both, MSE / variance of the latter."""

    objectives, needs, of_sentences, ranks = tuple(CONTRASTIVE), ("structure_vae",), False, False

    def lacking(self, images: Sequence[str]) -> list[str]:
        return missing_photos(images, self.settings.images_dir)

    def __init__(self, settings: TargetSettings):
        super().__init__(settings)
        self.vae, self.about = read_vae(Path(settings.structure_vae))

    def build(self, splits: Splits, groups: Groups) -> None:
        must_not_have_seen(self.about, Path(self.settings.structure_vae), [t.image for t in splits["test"].trials])
        super().build(splits, groups)

    def embed(self, images: list[str], splits: Splits) -> dict:
        @torch.inference_mode()
        def build(part: Sequence[Path]) -> Tensor:  # (n, latent) means, as they are
            return self.vae.encode(as_pixels([read_image(path) for path in part]))[0]

        paths = self.paths(images)
        how = clip_targets.digests_of(paths), self.settings.cache_dir, build
        latents = clip_targets.in_parts("structure", "the VAE", paths, *how, identity=fingerprint(self.vae))
        return super().embed(images, splits) | {"structure": latents}

    def finish(self, groups: Groups) -> None:
        super().finish(groups)
        self.variance = self.stacked(self.trained_on, "structure").float().var()

    @property
    def out(self) -> int:
        return self.shape[0] + len(next(iter(self.tables["structure"].values())))

    def loss(self, output: Tensor, batch: Mapping, scale: Tensor) -> Tensor:
        (clip, decoded), latent = output.tensor_split([self.shape[0]], dim=1), batch["structure"]
        copies = batch["image"] if self.settings.positives == "image" else None
        extra = info_nce(decoded, latent, FIXED_SCALE, copies) + F.mse_loss(decoded, latent) / self.variance
        return self.nce(clip, batch["target"], batch, scale) + extra

    def rows(self, outputs: Tensor, dataset: TrialDataset, groups: Groups) -> Result:
        clip, latents = outputs.tensor_split([self.shape[0]], dim=1)
        rows, _ = super().rows(clip, dataset, groups)
        return rows, map_measures(decoded_maps(self.vae, latents), self.paths([group.image for group in groups]))

    @property
    def facts(self) -> dict:
        return super().facts | {"clip_width": self.shape[0], "vae": fingerprint(self.vae)}


def images_of(splits: Splits) -> list[str]:
    """The images of all splits, each once."""
    return sorted({trial.image for dataset in splits.values() for trial in dataset.trials})


def missing_photos(images: Sequence[str], images_dir: Path) -> list[str]:
    """The images whose files are not there."""
    return [image for image, path in zip(images, image_paths(images, images_dir), strict=True) if not path.is_file()]


def without_lacking(splits: Splits, lacking: Sequence[str]) -> tuple[Splits, list[str], dict[str, int]]:
    """The splits without the trials of some images; those images; how many trials each split lacks in all.

    Where more than half of the images are lacking, they stay, and whoever needs them says what is missing: a folder is
    wrong.
    Raises UserError where a split loses all its trials.
    """
    lacking = lacking if 2 * len(lacking) <= len(images_of(splits)) else []
    absent, counts = set(lacking), {}
    for mode, dataset in splits.items():
        people = {trial.subject for trial in dataset.trials}
        before = parts_left_out(dataset.store, dataset.description, mode, people)
        by_person = Counter(trial.subject for trial in dataset.trials if trial.image in absent)
        counts[mode] = before + by_person.total()
        if by_person:
            whose = ", ".join(f"{who} {n}" for who, n in sorted(by_person.items()))
            print(f"notice: {by_person.total()} {mode} trials are left out, whose images have no target ({whose})")
    if absent:
        print(f"notice: {len(absent)} images have no target: {lacking[0]} is one; n and chance are those of the others")
        there = {mode: dataset.without(absent) for mode, dataset in splits.items()}
        if empty := [mode for mode, dataset in splits.items() if len(dataset) and not len(there[mode])]:
            why = f"the images of all are missing, or have no caption; {lacking[0]} is one"
            raise UserError(f"no {empty[0]} trials are left: {why}")
        splits = there
    return splits, list(lacking), {mode: n for mode, n in counts.items() if n}


@torch.no_grad()
def decoded_maps(vae: StructuralVAE, latents: Tensor) -> Tensor:
    """(N, latent) → (N, 1, 128, 128) maps from 0 to 1."""
    device = next(vae.parameters()).device
    return torch.cat([vae.map_logits(part.float().to(device)).sigmoid().cpu() for part in latents.split(64)])


def map_measures(maps: Tensor, paths: Sequence[Path]) -> dict[str, Measure]:
    """Correlation of (1, 128, 128) maps with their images'; and with other images': all have edges in the middle."""
    own = torch.stack([torch.from_numpy(structure_map(read_image(path))) for path in paths]).flatten(1)
    drawn = maps.flatten(1)
    measures = {"map": measured("correlation", retrieval.correlation(drawn, own).tolist())}
    # the next one: it is another image, but for the last of a person perhaps
    if apart := [k for k in range(len(paths)) if paths[k] != paths[k + 1 - len(paths)]]:
        others = retrieval.correlation(drawn[apart], own.roll(-1, dims=0)[apart])
        measures["map, another image"] = measured("correlation", others.tolist())
    return measures


def check_fits(target: str, kind: type, encoder: str, net: type, given: Mapping) -> None:
    """Raise UserError where a target and an encoder do not go together, or a flag is missing or has no part.

    kind, net : class. The target's and the encoder's. given : mapping. The script's flags.
    """
    if lacking := [name for name in kind.needs if not given[name]]:
        raise UserError(f"--target {target} needs --{lacking[0]}")
    gives = ("vector",) if "tokens" in net.gives else net.gives
    if kind.wants not in gives:
        both = f"--target {target} and --encoder {encoder} do not go together"
        raise UserError(f"{both}: the target needs {kind.wants}, the encoder gives {' or '.join(gives)}")
    unfit = [name for name in OPTIONS if given[name] and name not in (*kind.needs, *kind.options)]
    unfit += ["lambda_text"] if given["lambda_text"] and not kind.of_sentences else []
    if unfit:
        raise UserError(f"--{unfit[0]} has no part in --target {target}")
    if given["objective"] not in kind.objectives:
        raise UserError(f"--target {target} goes with --objective {' or '.join(kind.objectives)}")
