"""Trials of the same person and image, put together: what is averaged, and in which order."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.recording import Trial
from datasets.trials import TrialDataset, permuted_within_recordings


@dataclass(frozen=True)
class Group:
    """Trials of one person and one image."""

    subject: str
    image: str
    label: int
    trials: tuple[int, ...]  # places in the split; the mean of what they hold is what a model reads
    first: int  # place of the first repetition, used or not: it tells the response, whatever image a control gives it


def repetitions(dataset: TrialDataset) -> list[Group]:
    """Every image of every person of a split with all its repetitions, person by person in the order of their first."""
    places_of = defaultdict(list)
    for place, trial in enumerate(dataset.trials):
        places_of[trial.subject, trial.image].append(place)
    groups = [Group(*key, dataset.labels[places[0]], tuple(places), places[0]) for key, places in places_of.items()]
    return sorted(groups, key=lambda group: (group.subject, group.first))


def averages(dataset: TrialDataset, n: int) -> list[Group]:
    """Groups of `n` repetitions each, none of them used twice; what is left over makes a smaller group."""
    groups = repetitions(dataset)
    return [replace(g, trials=g.trials[k : k + n]) for g in groups for k in range(0, len(g.trials), n)]


def some_repetitions(groups: Sequence[Group], n: int | None, seed: int) -> list[Group]:
    """The same groups with `n` repetitions each, drawn from all sessions; those that have fewer keep all."""
    if n is None:
        return list(groups)
    chosen = []
    for group in groups:
        rng = np.random.default_rng((seed, group.first))
        chosen.append(replace(group, trials=tuple(sorted(rng.permutation(group.trials)[:n].tolist()))))
    return chosen


class Averages:
    """Groups of trials as a map-style dataset of complete items: all that a loss may ask for.

    people : sequence of str. Of the encoder's table; others are strangers to it.
    targets : mapping of name to {image: tensor}, optional. What is trained towards.

    Items are dicts: `x`, the mean over a group's trials; `label`; `image`, its number among the groups' images;
    `subject`, the person's place among `people`, −1 for strangers; `index`; and each target of the image, float32.
    """

    def __init__(
        self, dataset: TrialDataset, groups: Sequence[Group], people: Sequence[str] = (), targets: Mapping | None = None
    ):
        self.dataset, self.groups, self.targets = dataset, list(groups), targets or {}
        self.number = {image: k for k, image in enumerate(sorted({group.image for group in groups}))}
        self.place = {person: k for k, person in enumerate(people)}

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict:
        group = self.groups[index]
        x, *others = (self.dataset[place]["x"] for place in group.trials)
        x = sum(others, x.clone()) / len(group.trials) if others else x
        subject = self.place.get(group.subject, -1)
        item = {"x": x, "label": group.label, "image": self.number[group.image], "subject": subject, "index": index}
        return item | {name: table[group.image].float() for name, table in self.targets.items()}


def with_shuffled_images(dataset: TrialDataset, seed: int) -> TrialDataset:
    """The control of seen images: see `shuffled_images`; in the test an image's trials stay together."""
    return dataset.relabelled(*shuffled_images(dataset.trials, dataset.labels, seed, dataset.mode == "test"))


def shuffled_images(
    trials: Sequence[Trial], labels: Sequence[int], seed: int, whole: bool
) -> tuple[list[Trial], list[int]]:
    """Trials and labels of the control, in which images change places.

    whole : bool. False: over single trials, within each recording, as training and validation of the control. True: an
        image's trials stay together and get another image, so that averages stay averages of one response, as its test.
    """
    if whole:
        images = sorted({trial.image for trial in trials})
        label_of = {trial.image: label for trial, label in zip(trials, labels, strict=True)}
        permuted = np.random.default_rng((seed, len(trials))).permutation(images).tolist()
        other = dict(zip(images, permuted, strict=True))
        return [replace(t, image=other[t.image]) for t in trials], [label_of[other[t.image]] for t in trials]
    sources = permuted_within_recordings(trials, seed)
    new = [replace(trial, image=trials[source].image) for trial, source in zip(trials, sources, strict=True)]
    return new, [labels[source] for source in sources]
