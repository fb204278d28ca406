"""EEG of seen images → what pictures are drawn from: text states; an embedding, latents, a map of edges, a caption.

Each function is one step of generate_eeg2img.py's first stage, takes its flags, and says whether a shuffled-label control had a part.
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch.nn import functional as F

from datasets.repetitions import Group, repetitions
from models.captioner import Captioner
from models.clip_targets import image_targets
from models.image_generator import image_model_address
from stages import clip_runs, priors, retrieval, structure
from stages.clip_runs import ClipRun
from stages.embeddings import write_embeddings, write_guidance
from stages.rows import Row
from utils.checkpoints import fingerprint
from utils.errors import UserError, loading
from utils.files import read_json
from utils.hub import model_identity
from utils.paths import cache_folder
from utils.seeds import sample_seed

CAPTIONED = 16  # trials whose captions are read at once


def decode_states(
    args: Namespace, run: ClipRun, chosen: list[Group], device: torch.device, path: Path
) -> tuple[list[Row], bool]:
    """Decoded text states, written to `path`, and the class of the nearest mean state; whether the run is a shuffled-label control."""
    checkpoint = run.checkpoint
    outputs = retrieval.embed(run.model, run.dataset, chosen, run.people, device, args.batch_size)  # (N, 77, D)
    p = retrieval.prototype_probabilities(outputs, checkpoint["prototypes"], checkpoint["centre"])
    rows = retrieval.class_rows(run.dataset, chosen, p, "prototype")
    alone = {
        row.index: (states[None], torch.zeros(1, states.shape[-1])) for row, states in zip(rows, outputs, strict=True)
    }
    write_embeddings(path, rows, alone, checkpoint["image_model"])
    return rows, checkpoint["shuffled"]


def decode_guidance(
    args: Namespace, run: ClipRun, chosen: list[Group], device: torch.device, path: Path
) -> tuple[list[Row], bool]:
    """Decoded embeddings, latents, maps and captions, as far as they are asked for, written to `path`; retrieval among the test images.

    Returns the rows, and whether any part is a shuffled-label control.
    """
    decoded = clip_runs.clip_part(run, chosen, device, args.batch_size)  # (N, D)
    rows, kept, control = decode_embedding(args, run, chosen, decoded, device)
    controls = [run.checkpoint["shuffled"], control]
    if args.low_level_dir:
        kept["latents"], control = decode_latents(args, chosen, device)
        controls.append(control)
    if "controlnet" in args.conditioning:
        candidates = sorted({trial.image for trial in run.dataset.trials})
        kept["map"], control = decode_maps(args, chosen, candidates, device)
        controls.append(control)
    if args.caption_dir:
        captions, control = decode_captions(args, fingerprint(run.model), decoded, device)
        controls.append(control)
        for row, caption in zip(rows, captions, strict=True):
            row.text = row.prompt = caption
    write_guidance(path, rows, kept)
    return rows, any(controls)


def decode_embedding(
    args: Namespace, run: ClipRun, chosen: list[Group], decoded: torch.Tensor, device: torch.device
) -> tuple[list[Row], dict[str, torch.Tensor], bool]:
    """Rows of what (N, D) embeddings are nearest to; what pictures are drawn from: `embedding` (N, samples, D), and (N, D) compared with."""
    checkpoint, cache_dir = run.checkpoint, cache_folder(args.cache_dir, run.dataset.store.path)
    if args.clip_model and checkpoint.get("clip") and model_identity(args.clip_model) != checkpoint["clip"]:
        raise UserError(f"--clip_model {args.clip_model} is another one than {args.model_dir} was trained with")

    def targets(images: list[str]) -> torch.Tensor:  # (n, D)
        paths = retrieval.image_paths(images, Path(args.stimuli_dir))
        return image_targets(args.clip_model or checkpoint["clip_model"], paths, cache_dir).float()

    candidates = sorted({trial.image for trial in run.dataset.trials})
    trained_on = sorted(set(checkpoint["seen"]) - set(candidates))  # none of those that are asked for
    if not trained_on:
        raise UserError(
            f"{args.model_dir} was trained on the very images of --split {args.split}; there is no other one to be nearest to"
        )
    among, of_training = targets(candidates), targets(trained_on)
    if decoded.shape[1] != among.shape[1]:
        raise UserError(
            f"{args.model_dir} gives embeddings of width {decoded.shape[1]}, --clip_model of width {among.shape[1]}"
        )
    if checkpoint.get("prototypes") is not None:
        p = retrieval.prototype_probabilities(decoded, checkpoint["prototypes"], checkpoint["centre"])
        rows = retrieval.class_rows(run.dataset, chosen, p, "prototype")
    else:
        rows = retrieval.retrieval_rows(run.dataset, chosen, decoded, among, candidates)
    nearest = (F.normalize(decoded, dim=-1) @ F.normalize(of_training, dim=-1).T).argmax(dim=1).tolist()
    for row, place in zip(rows, nearest, strict=True):
        row.nearest = trained_on[place]

    kept, shuffled = {"decoded": decoded}, False
    if "ip_adapter" in args.conditioning:
        # without a prior, the embedding at the length that embeddings of images have
        kept["embedding"] = (F.normalize(decoded, dim=-1) * of_training.norm(dim=-1).mean())[:, None]  # (N, 1, D)
        if args.prior_dir:
            prior, shuffled = priors.read_prior(
                Path(args.prior_dir), fingerprint(run.model), checkpoint.get("clip"), decoded.shape[1]
            )
            prior.to(device)
            seeds = [[sample_seed(args.seed, row.index, k) for row in rows] for k in range(args.samples)]
            drawn = [prior.sample(decoded.to(device), of, args.prior_steps, args.prior_guidance).cpu() for of in seeds]
            kept["embedding"] = torch.stack(drawn, dim=1)  # (N, samples, D)
        if "ceiling" in args.compare:
            kept["ceiling"] = among[[candidates.index(group.image) for group in chosen]]
        if "nearest" in args.compare:
            kept["nearest"] = of_training[nearest]
    return rows, kept, shuffled


def decode_latents(args: Namespace, chosen: list[Group], device: torch.device) -> tuple[torch.Tensor, bool]:
    """(N, 4, h, w) latents of --low_level_dir; whether it is a control."""
    run, groups = open_like(args, args.low_level_dir, "vae_latent", device, chosen)
    if run.checkpoint.get("image_model_identity") != model_identity(image_model_address(args.image_model)):
        raise UserError(
            f"{args.low_level_dir} was trained towards the latents of another image model than {args.image_model}"
        )
    flat = retrieval.embed(run.model, run.dataset, groups, run.people, device, args.batch_size)
    return flat.unflatten(1, run.checkpoint["settings"]["latents"]), run.checkpoint["shuffled"]


def decode_maps(
    args: Namespace, chosen: list[Group], candidates: list[str], device: torch.device
) -> tuple[torch.Tensor, bool]:
    """(N, 1, 128, 128) maps of edges of --structure_dir; whether it is a control.

    Raises UserError where the VAE or the ControlNet has seen one of `candidates`, or does not belong to the encoder or the image model.
    """
    place = args.structure_dir or args.model_dir
    vae, about = structure.read_vae(Path(args.structure_vae))
    structure.must_not_have_seen(about, Path(args.structure_vae), candidates)
    run, groups = open_like(args, place, "structure", device, chosen)
    if fingerprint(vae) != run.checkpoint.get("vae"):
        raise UserError(f"{place} was trained towards another VAE than {args.structure_vae}")
    if (facts := Path(args.controlnet) / "facts.json").is_file():  # one of train_structure.py
        trained = read_json(facts)
        with loading(str(facts), "train the ControlNet again"):
            structure.must_not_have_seen(trained, Path(args.controlnet), candidates)
            if trained["image_model"] != model_identity(image_model_address(args.image_model)):
                raise UserError(
                    f"--controlnet {args.controlnet} was trained for another image model than {args.image_model}"
                )
    outputs = retrieval.embed(run.model, run.dataset, groups, run.people, device, args.batch_size)
    return structure.decoded_maps(vae, outputs[:, run.checkpoint["clip_width"] :]), run.checkpoint["shuffled"]


def decode_captions(
    args: Namespace, encoder: str, decoded: torch.Tensor, device: torch.device
) -> tuple[list[str], bool]:
    """A caption of each of (N, D) embeddings by --caption_dir, which belongs to the encoder of that fingerprint; whether it is a control."""
    adapter, shuffled = priors.read_adapter(Path(args.caption_dir), encoder, args.captioner, decoded.shape[1])
    adapter.to(device)
    captioner = Captioner(args.captioner, device, flag="--captioner")
    with torch.no_grad():
        parts = [captioner.from_tokens(adapter(part.to(device))) for part in decoded.split(CAPTIONED)]
    return sum(parts, []), shuffled


def open_like(
    args: Namespace, place: str, target: str, device: torch.device, wanted: list[Group]
) -> tuple[ClipRun, list[Group]]:
    """A further run on the same trials, and its groups of them; UserError where it is towards another target or of other trials."""
    run = clip_runs.open_run(Path(place), args.datasets_dir, args.split, args.foundation_dir, args.cache_dir, device)
    if run.checkpoint["target"] != target:
        raise UserError(f"{place} was trained towards {run.checkpoint['target']}; expected --target {target}")
    of = {(group.subject, group.first): group for group in repetitions(run.dataset)}
    if lacking := [group for group in wanted if (group.subject, group.first) not in of]:
        raise UserError(
            f"{place} keeps other trials for its {args.split} than {args.model_dir} ({lacking[0].subject}, {lacking[0].image}); train both under one protocol"
        )
    return run, [of[group.subject, group.first] for group in wanted]
