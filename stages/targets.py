"""What EEG of seen images is trained towards: each image's target, for the kind that a run asks for."""

from pathlib import Path

import torch

from datasets.trials import TrialDataset
from models.clip_targets import image_targets, sentence_targets, text_state_targets, vae_latent_targets
from models.structure import StructuralVAE
from stages import retrieval
from stages.captions import read_captions
from stages.structure import structure_targets


def build_targets(
    target: str, splits: dict[str, TrialDataset], images_dir: Path, cache_dir: Path, clip_model: str, image_model: str,
    captions: str | None = None, sentences: bool = False, vae: StructuralVAE | None = None, device: torch.device | str = "cpu",
) -> dict[str, dict[str, torch.Tensor]]:  # fmt: skip
    """{"main", …} → {image: target}, for all images of all splits; {} for classes.

    target : {"image", "text", "text_states", "classes", "vae_latent", "structure"}
    sentences : bool. Put the sentences' embeddings beside the images', as "text".
    device : torch.device. Where the image model's VAE works.
    vae : StructuralVAE, optional. For "structure": the latents of the images stand beside their CLIP embeddings, as "structure".
    """
    images = sorted({trial.image for dataset in splits.values() for trial in dataset.trials})
    paths = retrieval.image_paths(images, images_dir) if target in ("image", "vae_latent", "structure") else []
    found = {}
    if target in ("image", "structure"):
        found["main"] = dict(zip(images, image_targets(clip_model, paths, cache_dir), strict=True))
    if target == "structure":
        found["structure"] = dict(zip(images, structure_targets(vae, paths, cache_dir), strict=True))
    if target == "vae_latent":
        found["main"] = dict(zip(images, vae_latent_targets(image_model, paths, cache_dir, device), strict=True))
    if target == "text_states":
        told = read_captions(Path(captions), images)
        distinct = sorted(set(told.values()))
        states = dict(zip(distinct, text_state_targets(image_model, distinct, cache_dir), strict=True))
        found["main"] = {image: states[told[image]] for image in images}
    if target == "text" or (target == "image" and sentences):
        said = retrieval.sentences_of(splits.values())
        distinct = sorted(set(said.values()))
        vectors = dict(zip(distinct, sentence_targets(clip_model, distinct, cache_dir), strict=True))
        found["main" if target == "text" else "text"] = {image: vectors[said[image]] for image in images}
    return found
