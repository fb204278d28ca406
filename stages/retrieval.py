"""Embeddings of EEG against those of what may have been seen: rows of retrieval and of classes, and what they are chosen by."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datasets.repetitions import Averages, Group
from datasets.trials import TrialDataset
from models.contrastive import k_way, retrieval_ranks
from stages.rows import Readout, Row, most_likely, new_row
from stages.scores import FEW_PEOPLE, percent
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
    found = [
        model(batch["x"].to(device), batch["subject"].to(device)).float().cpu()
        for batch in DataLoader(Averages(dataset, groups, people), batch_size)
    ]
    return torch.cat(found)


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(N,) Pearson's correlation of the rows of two (N, D); 0 where one is constant."""
    a, b = (x.double() - x.double().mean(dim=1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b)


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
        row = new_row(dataset, group.first, {readout: Readout(nearest, 1 / len(images), rank=ranks[number])}, "")
        row.index, row.true_label = number, int(own[number])  # candidates are counted, and not classes
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


def class_rows(dataset: TrialDataset, groups: Sequence[Group], probabilities: torch.Tensor, readout: str) -> list[Row]:
    """One row a group, from (N, K) probabilities of the classes."""
    rows, K = [], probabilities.shape[1]  # noqa: N806
    for number, (group, p) in enumerate(zip(groups, probabilities.tolist(), strict=True)):
        label = most_likely(p)
        row = new_row(dataset, group.first, {readout: Readout(label, 1 / K, [round(v, 6) for v in p])}, "")
        row.index = number
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
    return torch.stack(
        [torch.stack([target_of[i].float() for i in sorted(images[k])]).mean(dim=0) for k in range(n_classes)]
    )


def sentences_of(datasets: Iterable[TrialDataset]) -> dict[str, str]:
    """The sentence that stands for each image: "This picture is …" with its concept's name.

    Raises UserError where classes have ImageNet's numbers in place of names.
    """
    name_of = {}
    for dataset in datasets:
        for trial, label in zip(dataset.trials, dataset.labels, strict=True):
            name_of[trial.image] = dataset.description.class_name(label)
    if name_of and all(re.fullmatch(r"n\d{8}", name) for name in name_of.values()):
        raise UserError(
            f"{dataset.store.path} calls its classes by ImageNet's numbers, of which no sentence can be made; prepare it with "
            "--class_names, or say --lambda_text 0"
        )
    return {image: f"This picture is {name.replace('_', ' ')}" for image, name in name_of.items()}


# ---------------------------------------------------------------- what a ranking is worth

WAYS = (2, 4, 10, 50, 100)  # k of the k-way scores, as published
BOOTSTRAPS = 10_000


def scores_of(rows: Sequence[Row], readout: str) -> dict[str, float]:
    """top-1, top-5 among all candidates, and exact top-1 and top-5 of k-way retrieval, means over rows."""
    ranks, n = [row.readouts[readout].rank for row in rows], rows[0].readouts[readout].n_classes
    found = {"top-1": sum(r <= 1 for r in ranks) / len(ranks), "top-5": sum(r <= 5 for r in ranks) / len(ranks)}
    for k in (k for k in WAYS if k <= n):
        of_rank = {r: (k_way(r, n, k), k_way(r, n, k, 5)) for r in set(ranks)}
        found[f"{k}-way"] = sum(of_rank[r][0] for r in ranks) / len(ranks)
        if k > 5:
            found[f"{k}-way top-5"] = sum(of_rank[r][1] for r in ranks) / len(ranks)
    return found


def score_lines(name: str, rows: Sequence[Row]) -> list[dict]:
    """A line a read-out and person, with Wilson's interval of top-1; and their mean, with a bootstrap over people (four or more)."""
    lines = []
    for readout in rows[0].readouts:
        people = defaultdict(list)
        for row in rows:
            people[row.subject].append(row)
        chance, of_person = rows[0].readouts[readout].chance, []
        for person, of in sorted(people.items()):
            found = scores_of(of, readout)
            hits = sum(row.readouts[readout].rank == 1 for row in of)
            interval = binomtest(hits, len(of)).proportion_ci(0.95, method="wilson")
            of_person.append(found)
            lines.append({"run": name, "read-out": readout, "person": person, "n": len(of), "candidates": round(1 / chance),
                          "chance": chance, **found, "low": float(interval.low), "high": float(interval.high), "interval": "Wilson"})  # fmt: skip
        if len(of_person) > 1:
            mean = {key: float(np.mean([found[key] for found in of_person])) for key in of_person[0]}
            line = {"run": name, "read-out": readout, "person": f"mean of {len(of_person)}", "n": len(rows), "candidates": round(1 / chance),
                    "chance": chance, **mean, "low": None, "high": None, "interval": f"{len(of_person)} people"}  # fmt: skip
            if len(of_person) > FEW_PEOPLE:
                line |= dict(zip(("low", "high"), bootstrap([found["top-1"] for found in of_person]), strict=True))
                line["interval"] = "bootstrap over people"
            lines.append(line)
    return lines


NOTE = (
    "top-1 and top-5 among all candidates; k-way: the own one against k − 1 others, exactly, over all sets of others. The interval is of top-1: "
    f"Wilson's of one person's images; of a mean over more than {FEW_PEOPLE} people a bootstrap over people."
)


def table(lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of `score_lines`, in words; of a curve over repetitions the retrieval alone."""
    scores = [
        key for key in dict.fromkeys(k for line in lines for k in line) if key.startswith("top-") or "-way" in key
    ]
    heads = ["run", "read-out", "person", "repetitions", "n", "candidates", "chance", *scores, "95 % of top-1"]
    cells = []
    for line in lines:
        interval = (
            line["interval"]
            if line["low"] is None
            else f"{100 * line['low']:.1f} to {percent(line['high'])} ({line['interval']})"
        )
        cells.append([line["run"], line["read-out"], line["person"], str(line.get("repetitions", "all")), str(line["n"]), str(line["candidates"]),
                      percent(line["chance"]), *(percent(line[key]) if key in line else "" for key in scores), interval])  # fmt: skip
    return heads, cells


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Middle 95 % of the mean over people, when people are drawn again."""
    rng = np.random.default_rng(seed)
    means = rng.choice(np.asarray(values), (BOOTSTRAPS, len(values))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
