"""EEG of seen images → what pictures are drawn from: text states; an embedding, latents, a map of edges, a caption.

The steps of generate_eeg2img.py's first stage. Those that read a further run say whether it is a shuffled-label control.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from datasets.repetitions import Group, repetitions
from models.captioner import Captioner
from models.clip_targets import image_targets
from models.image_generator import image_model_address
from stages import clip_runs, priors, retrieval, structure
from stages.clip_runs import ClipRun
from stages.embeddings import write_embeddings
from stages.rows import Row
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.hub import model_identity
from utils.seeds import sample_seed

CAPTIONED = 16  # trials whose captions are read at once


def decode_states(
    run: ClipRun, chosen: Sequence[Group], device: torch.device, batch_size: int, path: Path
) -> list[Row]:
    """Decoded text states, written to `path`, and the class of the nearest mean state."""
    checkpoint = run.checkpoint
    outputs = retrieval.embed(run.model, run.dataset, chosen, run.people, device, batch_size)  # (N, 77, D)
    p = retrieval.prototype_probabilities(outputs, checkpoint["prototypes"], checkpoint["centre"])
    rows = retrieval.class_rows(run.dataset, chosen, p, "prototype")
    alone = {
        row.index: (states[None], torch.zeros(1, states.shape[-1])) for row, states in zip(rows, outputs, strict=True)
    }
    write_embeddings(path, rows, alone, checkpoint["image_model"])
    return rows


def nearest_images(
    run: ClipRun, chosen: Sequence[Group], decoded: torch.Tensor, images_dir: Path, clip_model: str | None, cache_dir: Path
) -> tuple[list[Row], dict[str, torch.Tensor], float]:  # fmt: skip
    """Rows of what decoded embeddings are nearest to, among the test images and, for `Row.nearest`, among those of training.

    decoded : (N, D). clip_model : str, optional. The CLIP that was trained towards, where it lies elsewhere now.
    Returns the rows; "ceiling" and "nearest", (N, D) embeddings of the stimuli and of the nearest training images; the mean
    length of a training image's embedding.
    Raises UserError for another CLIP, or a run that was trained on the very images that are asked for.
    """
    checkpoint = run.checkpoint
    if clip_model and checkpoint.get("clip") and model_identity(clip_model) != checkpoint["clip"]:
        raise UserError(f"--clip_model {clip_model} is another one than {run.name} was trained with")

    def embedded(images: list[str]) -> torch.Tensor:  # (n, D)
        paths = retrieval.image_paths(images, images_dir)
        return image_targets(clip_model or checkpoint["clip_model"], paths, cache_dir).float()

    candidates = run.images
    trained_on = sorted(set(checkpoint["seen"]) - set(candidates))  # none of those that are asked for
    if not trained_on:
        raise UserError(
            f"{run.name} was trained on the very images that are decoded; there is no other one to be nearest to"
        )
    among, of_training = embedded(candidates), embedded(trained_on)
    if decoded.shape[1] != among.shape[1]:
        raise UserError(
            f"{run.name} gives embeddings of width {decoded.shape[1]}, --clip_model of width {among.shape[1]}"
        )
    if checkpoint.get("prototypes") is not None:
        p = retrieval.prototype_probabilities(decoded, checkpoint["prototypes"], checkpoint["centre"])
        rows = retrieval.class_rows(run.dataset, chosen, p, "prototype")
    else:
        rows = retrieval.retrieval_rows(run.dataset, chosen, decoded, among, candidates)
    places = (F.normalize(decoded, dim=-1) @ F.normalize(of_training, dim=-1).T).argmax(dim=1).tolist()
    for row, place in zip(rows, places, strict=True):
        row.nearest = trained_on[place]
    own = [candidates.index(group.image) for group in chosen]
    return rows, {"ceiling": among[own], "nearest": of_training[places]}, float(of_training.norm(dim=-1).mean())


def through_prior(
    place: Path, run: ClipRun, decoded: torch.Tensor, rows: Sequence[Row], samples: int, seed: int, steps: int, guidance: float,
    device: torch.device,
) -> tuple[torch.Tensor, bool]:  # fmt: skip
    """(N, samples, D) embeddings that a prior makes of (N, D) decoded ones, each sample from its own seed; whether it is a control."""
    prior, shuffled = priors.read_prior(place, fingerprint(run.model), run.checkpoint.get("clip"), decoded.shape[1])
    prior.to(device)
    seeds = [[sample_seed(seed, row.index, k) for row in rows] for k in range(samples)]
    drawn = [prior.sample(decoded.to(device), of, steps, guidance).cpu() for of in seeds]
    return torch.stack(drawn, dim=1), shuffled


def decode_latents(
    run: ClipRun, groups: Sequence[Group], image_model: str, device: torch.device, batch_size: int
) -> tuple[torch.Tensor, bool]:
    """(N, 4, h, w) latents of a run towards them; whether it is a control. UserError for those of another image model."""
    if run.checkpoint.get("image_model_identity") != model_identity(image_model_address(image_model)):
        raise UserError(f"{run.name} was trained towards the latents of another image model than {image_model}")
    flat = retrieval.embed(run.model, run.dataset, groups, run.people, device, batch_size)
    return flat.unflatten(1, run.checkpoint["settings"]["latents"]), run.checkpoint["shuffled"]


def decode_maps(
    run: ClipRun, groups: Sequence[Group], vae_dir: Path, controlnet: str, image_model: str, candidates: Sequence[str],
    device: torch.device, batch_size: int,
) -> tuple[torch.Tensor, bool]:  # fmt: skip
    """(N, 1, 128, 128) maps of edges of a run towards structure; whether it is a control.

    Raises UserError where the VAE or the ControlNet has seen one of `candidates`, or does not belong to the encoder or the image model.
    """
    vae, about = structure.read_vae(vae_dir)
    structure.must_not_have_seen(about, vae_dir, candidates)
    if fingerprint(vae) != run.checkpoint.get("vae"):
        raise UserError(f"{run.name} was trained towards another VAE than {vae_dir}")
    structure.check_controlnet(controlnet, image_model, candidates)
    outputs = retrieval.embed(run.model, run.dataset, groups, run.people, device, batch_size)
    return structure.decoded_maps(vae, outputs[:, run.checkpoint["clip_width"] :]), run.checkpoint["shuffled"]


def decode_captions(
    place: Path, captioner: str, run: ClipRun, decoded: torch.Tensor, device: torch.device
) -> tuple[list[str], bool]:
    """A caption of each of (N, D) decoded embeddings, by an adapter that was trained on `run`; whether it is a control."""
    adapter, shuffled = priors.read_adapter(place, fingerprint(run.model), captioner, decoded.shape[1])
    adapter.to(device)
    reader = Captioner(captioner, device, flag="--captioner")
    with torch.no_grad():
        parts = [reader.from_tokens(adapter(part.to(device))) for part in decoded.split(CAPTIONED)]
    return sum(parts, []), shuffled


def open_like(
    place: Path, first: ClipRun, wanted: Sequence[Group], target: str, foundation: str, cache_dir: str | None, device: torch.device
) -> tuple[ClipRun, list[Group]]:  # fmt: skip
    """A further run on the trials of the first one, and its groups of them; UserError where it is towards another target or of other trials."""
    split = first.dataset.mode
    run = clip_runs.open_run(place, str(first.dataset.store.path), split, foundation, cache_dir, device)
    if run.checkpoint["target"] != target:
        raise UserError(f"{place} was trained towards {run.checkpoint['target']}; expected --target {target}")
    for what in ("protocol", "granularity"):  # else one may have been trained on whom the other never saw
        if run.checkpoint[what] != first.checkpoint[what]:
            raise UserError(
                f"{place} was trained under {what} {run.checkpoint[what]}, {first.name} under {first.checkpoint[what]}; train both alike"
            )

    def keys(of: ClipRun, group: Group) -> frozenset[str]:  # a control gives trials other images, but no other keys
        return frozenset(of.dataset.trials[k].key for k in group.trials)

    of = {keys(run, group): group for group in repetitions(run.dataset)}
    if lacking := [group for group in wanted if keys(first, group) not in of]:
        raise UserError(
            f"{place} keeps other trials for its {split} than {first.name} ({lacking[0].subject}, {lacking[0].image}); train both alike"
        )
    return run, [of[keys(first, group)] for group in wanted]
