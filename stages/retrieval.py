"""Embeddings of EEG against those of what may have been seen: rows of retrieval and of classes, and their scores."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.stats import skew
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datasets.repetitions import Averages, Group
from datasets.trials import TrialDataset
from models import GEOMETRIES, choose
from models.contrastive import k_way, ranks_among, retrieval_ranks
from stages.rows import Readout, Row, most_likely, new_row
from stages.scores import FEW_PEOPLE, mean_and_interval, percent, wilson
from utils.errors import UserError
from utils.processes import Processes

Groups = Sequence[Group]


@torch.no_grad()
def embed(
    model: Module,
    dataset: TrialDataset,
    groups: Groups,
    people: list[str],
    device: torch.device,
    batch_size: int = 256,
    processes: Processes | None = None,
) -> Tensor:
    """(N, …) float32 outputs of a model in evaluation mode for the mean over each group's trials, on the CPU.

    people : list of str. The people of its table; others are strangers to it.
    processes : Processes, optional. Those that share the batches; each gets all outputs.
    """
    model.eval()

    def outputs(groups: Groups) -> Tensor:
        batches = DataLoader(Averages(dataset, groups, people), batch_size)
        return torch.cat([model(batch["x"].to(device), batch["subject"].to(device)).float().cpu() for batch in batches])

    return torch.cat(processes.each(outputs, groups, batch_size)) if processes else outputs(groups)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """(N,) Pearson's correlation of the rows of two (N, D); 0 where one is constant."""
    a, b = (x.double() - x.double().mean(dim=1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b)


def retrieval_rows(
    dataset: TrialDataset,
    groups: Groups,
    embeddings: Tensor,
    targets: Tensor,
    images: Sequence[str],
    readout: str = "retrieval",
    like: Tensor | None = None,
) -> list[Row]:
    """One row a group: which of the candidates is nearest by cosine, and the rank of its own.

    targets : (K, D). images : the candidates' images, in the order of their labels.
    like : (N, K) tensor, optional. Similarities in place of cosines: `similarities`.
    """
    own = torch.tensor([images.index(group.image) for group in groups])
    if like is None:
        like = F.normalize(embeddings.float(), dim=-1) @ F.normalize(targets.float(), dim=-1).T  # (N, K)
        ranks = retrieval_ranks(embeddings.float(), targets.float(), own).tolist()
    else:
        ranks = ranks_among(like, own).tolist()
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


def similarities(groups: Groups, embeddings: Tensor, targets: Tensor, geometry: str) -> Tensor:
    """(N, K) similarities of groups to the candidates, a person at a time. `geometry`: a key of GEOMETRIES."""
    like = torch.zeros(len(groups), len(targets), dtype=torch.double)
    for person in dict.fromkeys(group.subject for group in groups):
        places = [k for k, group in enumerate(groups) if group.subject == person]
        like[places] = choose(GEOMETRIES, geometry)(embeddings[places].float(), targets.float())
    return like


def hubness(nearest: Iterable[Sequence[str]], images: Sequence[str]) -> float:
    """Skewness of how often each candidate is among the nearest of an embedding: 0 where all are as often.

    Radovanović et al., J. Mach. Learn. Res. 11:2487, 2010.
    """
    times = Counter(image for of in nearest for image in of)
    counts = np.array([times[image] for image in images], float)
    return float(skew(counts)) if counts.std() > 0 else 0.0


def held_out_rows(dataset: TrialDataset, groups: Groups, embeddings: Tensor, target_of: dict[str, Tensor]) -> list[Row]:
    """Retrieval among held-out concepts, over their image slots: the j-th image of each concept against one another."""
    images = defaultdict(list)
    for group in groups:
        if group.image not in images[group.label]:
            images[group.label].append(group.image)
    rows = []
    for slot in range(max(map(len, images.values()), default=0)):
        candidates = [of_class[slot] for of_class in images.values() if len(of_class) > slot]
        places = [k for k, group in enumerate(groups) if group.image in candidates]
        targets = torch.stack([target_of[image] for image in candidates])
        rows += retrieval_rows(dataset, [groups[k] for k in places], embeddings[places], targets, candidates)
    for number, row in enumerate(rows):
        row.index = number
    return rows


def class_rows(dataset: TrialDataset, groups: Groups, probabilities: Tensor, readout: str) -> list[Row]:
    """One row a group, from (N, K) probabilities of the classes."""
    rows, chance = [], 1 / probabilities.shape[1]
    for number, (group, p) in enumerate(zip(groups, probabilities.tolist(), strict=True)):
        label = most_likely(p)
        row = new_row(dataset, group.first, {readout: Readout(label, chance, [round(v, 6) for v in p])}, "")
        row.index = number
        row.predicted_label, row.predicted_name = label, dataset.description.class_name(label)
        rows.append(row)
    return rows


def prototype_probabilities(
    outputs: Tensor, prototypes: Tensor, centre: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """(N, K) softmax of cosines to the classes' mean targets (K, …); `centre`, their common part, is taken off both."""
    a, b = outputs.flatten(1).float(), prototypes.flatten(1).float()
    if centre is not None:
        a, b = a - centre.flatten().float(), b - centre.flatten().float()
    return (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature).softmax(dim=-1)


def class_prototypes(groups: Groups, target_of: dict[str, Tensor], n_classes: int) -> Tensor:
    """(K, …) mean target of each class's training images, each image once."""
    images = defaultdict(set)
    for group in groups:
        images[group.label].add(group.image)
    prototypes = []
    for label in range(n_classes):
        if not images[label]:
            raise UserError(f"no training image of class {label}; a class that is never trained on has no prototype")
        prototypes.append(torch.stack([target_of[image].float() for image in sorted(images[label])]).mean(dim=0))
    return torch.stack(prototypes)


def sentences_of(datasets: Iterable[TrialDataset]) -> dict[str, str]:
    """The sentence that stands for each image: "This picture is …"; UserError where classes have numbers for names."""
    name_of = {}
    for dataset in datasets:
        for trial, label in zip(dataset.trials, dataset.labels, strict=True):
            name_of[trial.image] = dataset.description.class_name(label)
    if name_of and all(re.fullmatch(r"n\d{8}", name) for name in name_of.values()):
        numbers = f"{dataset.store.path} calls its classes by ImageNet's numbers, of which no sentence can be made"
        raise UserError(f"{numbers}; prepare it with --class_names, or say --lambda_text 0")
    return {image: f"This picture is {name.replace('_', ' ')}" for image, name in name_of.items()}


# ---------------------------------------------------------------- what a ranking is worth

WAYS = (2, 4, 10, 50, 100)  # k of the k-way scores, as published
BOOTSTRAPS = 10_000


def scores_of(rows: Sequence[Row], readout: str) -> dict[str, float]:
    """top-1, top-5 among all candidates, and exact top-1 and top-5 of k-way retrieval, means over rows."""
    ranks, n = [row.readouts[readout].rank for row in rows], rows[0].readouts[readout].n_classes
    scores = {f"top-{top}": sum(rank <= top for rank in ranks) / len(ranks) for top in (1, 5)}
    for k in (k for k in WAYS if k <= n):
        for top, name in ((1, f"{k}-way"), (5, f"{k}-way top-5")):
            if k > top:
                of_rank = {rank: k_way(rank, n, k, top) for rank in set(ranks)}
                scores[name] = sum(of_rank[rank] for rank in ranks) / len(ranks)
    return scores


def score_lines(name: str, rows: Sequence[Row]) -> list[dict]:
    """A line a read-out and person, with Wilson's interval of top-1; and their mean, with a bootstrap over people."""
    people = defaultdict(list)
    for row in rows:
        people[row.subject].append(row)
    lines = []
    for readout, first in rows[0].readouts.items():
        run, asked = {"run": name, "read-out": readout}, {"candidates": first.n_classes, "chance": first.chance}
        of_person = []
        for person, own in sorted(people.items()):
            scores = scores_of(own, readout)
            low, high = wilson(sum(row.readouts[readout].rank == 1 for row in own), len(own))
            interval = {"low": low, "high": high, "interval": "Wilson"}
            lines.append(run | {"person": person, "n": len(own)} | asked | scores | interval)
            of_person.append(scores)
        if len(of_person) > 1:
            mean = {key: float(np.mean([scores[key] for scores in of_person])) for key in of_person[0]}
            interval = {"low": None, "high": None, "interval": f"{len(of_person)} people"}
            if len(of_person) > FEW_PEOPLE:
                top_1 = np.array([scores["top-1"] for scores in of_person])
                _, low, high = mean_and_interval(top_1, draws=BOOTSTRAPS)
                interval = {"low": low, "high": high, "interval": "bootstrap over people"}
            lines.append(run | {"person": f"mean of {len(of_person)}", "n": len(rows)} | asked | mean | interval)
    return lines


NOTE = (
    "top-1 and top-5 among all candidates; k-way: the own one against k − 1 others, exactly, over all sets of others. "
    "The interval is of top-1: Wilson's of one person's images; of a mean over more than "
    f"{FEW_PEOPLE} people a bootstrap over people."
)


def table(lines: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of `score_lines`, in words; of a curve over repetitions the retrieval alone."""
    keys = dict.fromkeys(key for line in lines for key in line)
    scores = [key for key in keys if key.startswith("top-") or "-way" in key]
    used = ["used of the test person"] if any("used of the test person" in line for line in lines) else []
    hubs = ["hubness"] if any("hubness" in line for line in lines) else []
    heads = ["run", "read-out", *used, *"person repetitions n candidates chance".split(), *scores]
    heads += ["95 % of top-1", *hubs]
    cells = []
    for line in lines:
        interval = line["interval"]
        if line["low"] is not None:
            interval = f"{100 * line['low']:.1f} to {percent(line['high'])} ({interval})"
        shown = {"repetitions": "all", **dict.fromkeys(used, ""), **line, "95 % of top-1": interval}
        shown |= {"hubness": f"{line['hubness']:.2f}" if "hubness" in line else ""}
        shares = {key: percent(line[key]) if key in line else "" for key in ("chance", *scores)}
        cells.append([str((shown | shares)[head]) for head in heads])
    return heads, cells
