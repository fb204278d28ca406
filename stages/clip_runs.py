"""Checkpoints of finetune_eeg_to_clip.py, and of published repositories, brought back: trials as they were read, the model, its people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets.description import DATASETS, DatasetDescription, load_description
from datasets.repetitions import Group, shuffled_images
from datasets.splits import check_protocol
from datasets.trials import TrialDataset, look_as_trained
from models.eeg_embedding import EEGEmbedding
from models.published import from_published
from stages.retrieval import embed, subject_ids
from stages.tokens import encoder_for, give_tokens
from utils.checkpoints import best_checkpoint, fingerprint, read_checkpoint
from utils.errors import UserError, loading

# what a checkpoint of a run must hold → of which type
KINDS = {
    **dict.fromkeys(("dataset", "target", "objective", "protocol", "granularity", "clip_model", "image_model", "token_pooling",
                     "encoder_fingerprint", "units"), str),
    **dict.fromkeys(("classes", "people", "seen"), list), **dict.fromkeys(("settings", "model"), dict),
    "n_times": int, "sfreq": (int, float), "shuffled": bool, "seed": int, "window": (list, type(None)), "regions": (list, type(None)),
}  # fmt: skip
HINT = "name another checkpoint"


@dataclass
class ClipRun:
    """A trained model and the trials that it is asked about.

    model : EEGEmbedding, or a published network called as it is.
    people : list of str. Of the model's table; others are strangers to it.
    name : str. Of the run's folder.
    """

    name: str
    checkpoint: dict
    model: torch.nn.Module
    dataset: TrialDataset
    people: list[str]

    @property
    def description(self) -> DatasetDescription:
        return self.dataset.description

    @property
    def images(self) -> list[str]:
        """Of its trials, each once, in alphabetical order."""
        return sorted({trial.image for trial in self.dataset.trials})


def open_run(
    place: Path, datasets_dir: str, split: str, foundation: str, cache_dir: str | None, device: torch.device
) -> ClipRun:
    """The best epoch of a run (or a checkpoint that is named), and the trials of a split, read as in training.

    Raises UserError if the checkpoint is damaged or of another kind, the store is of other trials, or a test image was trained on.
    """
    path = best_checkpoint(place, "encoder_epoch{}.pth")
    checkpoint = read_checkpoint(path)
    wrong = [field for field, kind in KINDS.items() if not isinstance(checkpoint.get(field), kind)]
    wrong += [
        field
        for field in ("classes", "people", "seen")
        if field not in wrong and not all(isinstance(v, str) for v in checkpoint[field])
    ]
    if wrong or checkpoint["dataset"] not in list(DATASETS):
        raise UserError(
            f"{path} is no checkpoint of this version's finetune_eeg_to_clip.py (its {', '.join(wrong) or 'dataset'}); {HINT}"
        )
    description = load_description(checkpoint["dataset"])
    if not description.parts:
        raise UserError(f"{path} is of {description.name}, whose trials have no images; {HINT}")
    dataset = TrialDataset(
        datasets_dir, split, check_protocol(checkpoint["protocol"]), description, granularity=checkpoint["granularity"]
    )
    if list(dataset.description.classes) != checkpoint["classes"]:
        raise UserError(f"{path} was trained on other classes than {dataset.store.path} has")
    look_as_trained(dataset, checkpoint, path)
    check_trials(dataset, checkpoint, path)
    if checkpoint["shuffled"]:
        dataset.trials, dataset.labels = shuffled_images(
            dataset.trials, dataset.labels, checkpoint["seed"], split == "test"
        )
    trained_on = {trial.image for trial in dataset.trials} & set(checkpoint["seen"])
    if (
        trained_on and split == "test" and not checkpoint["protocol"].startswith("day:")
    ):  # another day shows the same images
        raise UserError(f"{path} was trained or validated on {sorted(trained_on)[0]}, which would be a test image now")
    with loading(str(path), HINT):
        model = EEGEmbedding(**checkpoint["settings"])
        model.load_state_dict(checkpoint["model"])
    name = checkpoint["settings"]["name"]
    if model.reads == "tokens":
        encoder = encoder_for(dataset, name, foundation, seed=checkpoint["seed"])
        if fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
            raise UserError(f"{path} was trained on the features of another encoder than {foundation}")
        give_tokens([dataset], encoder, True, checkpoint["token_pooling"], cache_dir, device)
    else:
        dataset.prepare = model.prepare
    return ClipRun(place.name or "run", checkpoint, model.eval().to(device), dataset, checkpoint["people"])


def check_trials(dataset: TrialDataset, checkpoint: dict, path: Path) -> None:
    """Raise UserError where the trials, as they are looked at, are others than those that a checkpoint was trained on."""
    now = dataset.n_times, dataset.sfreq, dataset.units, list(dataset.montage.electrodes)
    was = checkpoint["n_times"], checkpoint["sfreq"], checkpoint["units"], checkpoint["settings"].get("electrodes")
    if now != was:
        raise UserError(
            f"{path} was trained on trials of {was[0]} samples at {was[1]} Hz, {was[2]}, {len(was[3] or [])} electrodes; {dataset.store.path} has "
            f"{now[0]} at {now[1]} Hz, {now[2]}, {len(now[3])}"
        )


def clip_part(run: ClipRun, groups: Sequence[Group], device: torch.device, batch_size: int = 256) -> torch.Tensor:
    """(N, D) embeddings of groups in CLIP's space; of a run towards structure the first D of what it gives."""
    outputs = (
        embed(run.model, run.dataset, groups, run.people, device, batch_size)
        if groups
        else torch.zeros(0, run.model.out)
    )
    return outputs[:, : run.checkpoint.get("clip_width", outputs.shape[1])]


def open_published(
    paths: Sequence[Path], name: str, kind: str, dataset: TrialDataset, people: Sequence[str], device: torch.device
) -> torch.nn.Module:
    """A published checkpoint as a model called like `EEGEmbedding`, for the trials of `dataset`, which it prepares.

    paths : sequence of Path. NICE's encoder and projection are two files.
    people : sequence of str. Of the published table, by number.
    Raises UserError if the files are none of that model, or read trials of another shape.
    """
    state = {}
    for path in paths:
        content = read_checkpoint(path)
        inner = content.get("state_dict", content)  # Lightning's, as UBP's
        keys = {
            str(key).removeprefix("module."): value
            for key, value in (inner if isinstance(inner, dict) else content).items()
        }
        part = (
            "enc_eeg."
            if any(key.startswith("0.tsconv") for key in keys)
            else "proj_eeg."
            if any(key.startswith("1.fn.") for key in keys)
            else ""
        )
        state |= {part + key: value for key, value in keys.items()}
    model = _AsEmbedding(from_published(name, state, kind)).eval().to(device)
    dataset.prepare = EEGEmbedding.preparing(name, dataset.units)
    if len(dataset):
        x, ids = dataset[0]["x"][None].to(device), subject_ids([dataset.trials[0].subject], people).to(device)
        hint = "choose --channels, another store, or for a model of joint training one of its people"
        with (
            loading(f"{paths[0]} does not read trials of {tuple(x.shape[1:])} electrodes × samples", hint),
            torch.no_grad(),
        ):
            model(x, ids)
    return model


class _AsEmbedding(torch.nn.Module):
    """A published network, called with people; those that take no people get none."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, subject_ids: torch.Tensor | None = None) -> torch.Tensor:
        return self.net(x, subject_ids) if hasattr(self.net, "keeps") else self.net(x)
