"""Embeddings of EEG against those of what may have been seen: rows of retrieval and of classes, and what they are chosen by."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datasets.repetitions import Averages, Group
from datasets.trials import TrialDataset
from models.contrastive import retrieval_ranks
from stages.rows import Readout, Row, most_likely
from utils.errors import UserError


@torch.no_grad()
def embed(
    model: torch.nn.Module, dataset: TrialDataset, groups: Sequence[Group], people: Sequence[str], device: torch.device,
    batch_size: int = 256,
) -> torch.Tensor:  # fmt: skip
    """(N, …) float32 outputs of a model in evaluation mode for the mean over each group's trials, on the CPU.

    people : sequence of str. The people of its table; others are strangers to it.
    """
    model.eval()
    items, found = Averages(dataset, groups), []
    for batch in DataLoader(items, batch_size):
        ids = subject_ids([groups[index].subject for index in batch["index"].tolist()], people).to(device)
        found.append(model(batch["x"].to(device), ids).float().cpu())
    return torch.cat(found)


def subject_ids(subjects: Sequence[str], people: Sequence[str]) -> torch.Tensor:
    """(N,) places of people in a table; −1 for strangers."""
    place = {person: k for k, person in enumerate(people)}
    return torch.tensor([place.get(subject, -1) for subject in subjects])


def retrieval_rows(
    dataset: TrialDataset, groups: Sequence[Group], embeddings: torch.Tensor, targets: torch.Tensor, images: Sequence[str],
    readout: str = "retrieval",
) -> list[Row]:  # fmt: skip
    """One row a group: which of the candidates is nearest by cosine, and the rank of its own.

    targets : (K, D). images : the candidates' images, in the order of their labels.
    """
    own = torch.tensor([images.index(group.image) for group in groups])
    like = F.normalize(embeddings.float(), dim=-1) @ F.normalize(targets.float(), dim=-1).T  # (N, K)
    ranks = retrieval_ranks(embeddings.float(), targets.float(), own).tolist()
    names = {group.image: dataset.description.class_name(group.label) for group in groups}
    rows = []
    for number, (group, nearest) in enumerate(zip(groups, like.argmax(dim=1).tolist(), strict=True)):
        if ranks[number] > 1 and nearest == own[number]:  # of equal candidates one's own comes last
            nearest = int(like[number].index_fill(0, own[number], -2).argmax())
        row = Row(
            number, group.subject, "", 0, int(own[number]) + 1, int(own[number]), names[group.image],
            {readout: Readout(nearest, 1 / len(images), rank=ranks[number])}, image=group.image, simulated=dataset.simulated,
        )  # fmt: skip
        row.predicted_label, row.predicted_name = nearest, names.get(images[nearest])
        rows.append(row)
    return rows


def held_out_rows(
    dataset: TrialDataset, groups: Sequence[Group], embeddings: torch.Tensor, target_of: dict[str, torch.Tensor]
) -> list[Row]:
    """Retrieval among held-out concepts, over their image slots: the j-th image of each concept against one another."""
    images = defaultdict(list)
    for group in groups:
        if group.image not in images[group.label]:
            images[group.label].append(group.image)
    rows = []
    for slot in range(max(map(len, images.values()), default=0)):
        candidates = [of[slot] for of in images.values() if len(of) > slot]
        places = [k for k, group in enumerate(groups) if group.image in candidates]
        targets = torch.stack([target_of[image] for image in candidates])
        rows += retrieval_rows(dataset, [groups[k] for k in places], embeddings[places], targets, candidates)
    for number, row in enumerate(rows):
        row.index = number
    return rows


def class_rows(
    dataset: TrialDataset, groups: Sequence[Group], probabilities: torch.Tensor, readout: str
) -> list[Row]:
    """One row a group, from (N, K) probabilities of the classes."""
    rows, K = [], probabilities.shape[1]  # noqa: N806
    for number, (group, p) in enumerate(zip(groups, probabilities.tolist(), strict=True)):
        trial, label = dataset.trials[group.trials[0]], most_likely(p)
        row = Row(
            number, group.subject, trial.session, trial.run, trial.trial, group.label,
            dataset.description.class_name(group.label), {readout: Readout(label, 1 / K, [round(v, 6) for v in p])},
            image=group.image, simulated=dataset.simulated,
        )  # fmt: skip
        row.predicted_label, row.predicted_name = label, dataset.description.class_name(label)
        rows.append(row)
    return rows


def prototype_probabilities(
    outputs: torch.Tensor, prototypes: torch.Tensor, centre: torch.Tensor | None = None, temperature: float = 0.1
) -> torch.Tensor:
    """(N, K) softmax of cosines to the classes' mean targets (K, …); `centre`, their common part, is taken off both."""
    a, b = outputs.flatten(1).float(), prototypes.flatten(1).float()
    if centre is not None:
        a, b = a - centre.flatten().float(), b - centre.flatten().float()
    return (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature).softmax(dim=-1)


def class_prototypes(groups: Sequence[Group], target_of: dict[str, torch.Tensor], n_classes: int) -> torch.Tensor:
    """(K, …) mean target of each class's training images, each image once."""
    images = defaultdict(set)
    for group in groups:
        images[group.label].add(group.image)
    lacking = [label for label in range(n_classes) if not images[label]]
    if lacking:
        raise UserError(f"no training image of class {lacking[0]}; a class that is never trained on has no prototype")
    return torch.stack([torch.stack([target_of[i].float() for i in sorted(images[k])]).mean(dim=0) for k in range(n_classes)])


def image_paths(images: Sequence[str], folder: Path) -> list[Path]:
    """Where images lie; UserError for a name that leaves the folder."""
    root = folder.resolve()
    paths = [(folder / image) for image in images]
    for image, path in zip(images, paths, strict=True):
        if not path.resolve().is_relative_to(root):
            raise UserError(f"the image {image!r} is outside {folder}")
    return paths
