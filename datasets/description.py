"""What a dataset is, in one record: electrodes, people, classes, words, prompts, stimuli, recordings.

Scripts ask this record instead of knowing a dataset. Adding a dataset is adding a file that defines `DESCRIPTION`, and
its line in `DATASETS`. Nothing here imports a slow library: a script's -h reads it.
"""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.montage import Montage

# name on the command line → module with a DESCRIPTION (or the description itself)
DATASETS: dict[str, "str | DatasetDescription"] = {
    "BCICIV2a": "datasets.bciciv2a_llm_dataset",
    "BCICIV2b": "datasets.bciciv2b_dataset",
    "VI": "datasets.visual_imagery_llm_dataset",
    "FACED": "datasets.faced_llm_dataset",
    "THINGS": "datasets.things_dataset",
    "EEGImageNet": "datasets.eeg_imagenet_dataset",
}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DatasetDescription:
    """The facts of one dataset. A mapping has labels as keys where nothing else is said."""

    name: str  # as on the command line
    montage: Montage
    classes: tuple[str, ...]  # names by label; empty where the store says them (see `of_store`)

    # words
    keywords: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # that name a class in decoded text
    phrasings: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # texts to train on; scoring uses the first
    image_prompts: Mapping[int, str] = field(default_factory=dict)  # what the image model is asked to draw
    # What the person saw: "arrow left" is drawn, a file name is looked up in the stimuli folder. A trial with an image
    # of its own (`Trial.image`) overrides it.
    stimuli: Mapping[int, str] = field(default_factory=dict)
    system_prompt: str = ""
    user_prompt: str = ""  # the EEG tokens stand at "{eeg}"

    # training and drawing by default
    epochs: int = 0  # of EEG → text training, warm-up included
    warmup_epochs: int = 0
    image_model: str = ""

    # who trains and who tests
    people: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by published split; empty: the store says it
    test_sessions: tuple[str, ...] = ()  # of `--protocol within:PERSON`, the others train; empty: the later half
    tasks: tuple[str, ...] = ()  # by label, the kind of recording with this class; empty: recordings hold all classes

    # preparation
    window: tuple[float, float] = (0.0, 4.0)  # default of --tmin and --tmax, seconds after a trial's reference sample
    window_starts: str = "the trial's start"  # what that sample is
    reference: str = "average"  # or "none"; "average" subtracts the mean over electrodes at each sample
    extra_channels: int = 0  # that stored trials may have behind the electrodes; they are not read
    # Options of `recordings`, flags of prepare_data.py: name → (choices, help); the first choice is the default.
    options: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    files: Callable[[Path], list] | None = None  # folder → its files, in the store's order; None: CBraMod's layout
    recordings: Callable[..., Iterator] | None = None  # (file, options) → `Recording`s, one an uninterrupted run
    addresses: tuple[str, ...] = ()  # of the raw files, tried in this order; empty: a script of its own fetches them
    all_files: tuple[str, ...] = ()  # names of the raw files of the complete dataset
    # (options, sources, counts) → columns {heading: {split: trials}} and lines for the end of preparation: what was
    # expected, and what the user should know
    closing: Callable[..., tuple[dict, list[str]]] | None = None

    # datasets of seen images, which have no words
    # (`Piece`, settings, scale, options) → trials, counts, facts; in place of `recordings`, where raw files are too
    # large to be prepared at once or hold trials that are cut already
    prepare_piece: Callable | None = None
    table: Callable[..., list[str]] | None = None  # (metadata, counts) → lines in place of the closing table by class
    parts: Callable | None = None  # (trials, the store's trials) → "train", "val" or "test" for each, by what was seen
    apart: str = "image"  # what `parts` keeps apart: "concept" (nothing that is tested was trained on) or "image"
    looks_at: tuple[float, float] | None = None  # what models read by default, seconds after the onset; None: all
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name → a set of electrodes
    granularities: Callable[[Mapping], dict[str, list[int]]] | None = None  # store's metadata → {name: labels}
    some_electrodes: bool = False  # whether a store may hold some of the electrodes only
    caution: str = ""  # stands beside every score of a protocol that trains on the tested person (`splits.caution`)

    @property
    def canonical(self) -> list[str]:
        """What stands for each class when likelihoods are compared: its first sentence, or else its name."""
        return [self.phrasings[label][0] if self.phrasings else name for label, name in enumerate(self.classes)]

    def of_store(self, meta: Mapping, labels: Sequence[int] | None = None) -> "DatasetDescription":
        """This description with the classes and electrodes that a store says; `labels`: of these classes only.

        Raises ValueError if the store does not say its classes, or has electrodes that the dataset has not.
        """
        classes, montage = self.classes, self.montage
        if not classes:
            classes = meta.get("classes")
            if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
                raise ValueError("it does not say which classes it has")
        if self.some_electrodes and "electrodes" in meta:
            montage = montage.part(meta["electrodes"])
        kept = classes if labels is None else [classes[label] for label in labels]
        return replace(self, classes=tuple(kept), montage=montage)

    def named_channels(self, asked: Sequence[str]) -> list[str] | None:
        """Regions and electrodes behind what `--channels` names; None for all of them."""
        names = [name for one in asked for name in self.channels.get(one, (one,))]
        return None if names == ["all"] else names

    @property
    def chance(self) -> float:
        return 1 / len(self.classes)

    def split_of(self, subject: str) -> str | None:
        """The published split of a person; None for people it does not name."""
        return next((split for split, people in self.people.items() if subject in people), None)

    def class_name(self, label: int) -> str | None:
        """None for −1, a text that names no class."""
        return self.classes[label] if label >= 0 else None

    def keyword_label(self, text: str) -> int:
        """The class that a text names.

        Keywords match whole words only ("background" is not "round", "start" is not "star"), in any case. The class
        with the most matches wins; a tie or no match is −1. Hyphens or white space may join the words of a keyword.
        """

        def matches(keyword: str) -> int:
            words = r"[\s-]+".join(map(re.escape, keyword.split()))
            return len(re.findall(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE))

        counts = [sum(map(matches, self.keywords[label])) for label in range(len(self.classes))]
        best = max(counts)
        return counts.index(best) if best > 0 and counts.count(best) == 1 else -1

    def image_prompt(self, text: str) -> str:
        """The prompt for a decoded text: its class's prompt, or the text itself where it names no class."""
        label = self.keyword_label(text)
        return self.image_prompts[label] if label >= 0 else text


def with_words() -> list[str]:
    """The datasets whose classes have sentences, which a language model can be trained on."""
    return [name for name in DATASETS if load_description(name).phrasings]


def of_images() -> list[str]:
    """The datasets of seen images, whose trials have an image each."""
    return [name for name in DATASETS if load_description(name).parts]


def load_description(name: str) -> DatasetDescription:
    """The description of a dataset named on the command line."""
    entry = DATASETS[name]
    return importlib.import_module(entry).DESCRIPTION if isinstance(entry, str) else entry
