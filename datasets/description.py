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
    """The facts of one dataset.

    name : str. As on the command line.
    classes : tuple of str. Names by label. Empty where the store says them (see `of_store`).
    keywords : mapping of int to tuple of str. Words that name a class in decoded text, by label.
    phrasings : mapping of int to tuple of str. Target texts for training, by label; the first is the canonical one
        that scoring uses.
    image_prompts : mapping of int to str. What the image model is asked to draw, by label.
    stimuli : mapping of int to str. What the person saw, by label: "arrow left" is drawn, a file name is looked up in
        the stimuli folder. A trial with an image of its own (`Trial.image`) overrides it.
    system_prompt, user_prompt : str. The chat; "{eeg}" in the user's turn marks where the EEG tokens stand.
    epochs, warmup_epochs : int. Epochs of EEG → text training, warm-up included in `epochs`.
    image_model : str. The image model that pictures are drawn with by default.
    people : mapping of split to tuple of str. Who is in which split as published. Empty where the stored file itself
        says it (CBraMod's layout).
    test_sessions : tuple of str. The sessions that `--protocol within:PERSON` tests on; the others train. Empty: the
        later half.
    tasks : tuple of str. By label, the kind of recording that the class occurs in, where recordings do not hold all
        classes; else empty.
    window : (float, float). Default of --tmin and --tmax, seconds after a trial's reference sample.
    window_starts : str. What that sample is.
    reference : {"average", "none"}. "average" subtracts the mean over electrodes at each sample.
    extra_channels : int. Channels that stored trials may have behind the electrodes; they are not read.
    options : mapping of name to (choices, help). What `recordings` can be told, as flags of prepare_data.py; the first
        choice is the default.
    files : callable, optional. Folder → its recordings' files, in the store's order. None: the dataset comes in
        CBraMod's layout.
    recordings : callable, optional. (file, options) → `Recording`s, one an uninterrupted run.
    addresses : tuple of str. Where the raw files are, tried in this order; empty where a script of its own fetches
        them.
    all_files : tuple of str. Names of the raw files of the complete dataset.
    closing : callable, optional. (options, sources, counts) → columns {heading: {split: trials}} and lines for the
        end of preparation: what was expected, and what the user should know.

    Of datasets of seen images, which have no words:
    prepare_piece : callable, optional. (`Piece`, settings, scale, options) → trials, counts, facts; in place of
        `recordings`, where raw files are too large to be prepared at once or hold trials that are cut already.
    table : callable, optional. (metadata, counts) → lines in place of the closing table by class.
    parts : callable, optional. (trials, seed) → "train", "val" or "test" for each: splits by what was seen.
    apart : str. What such splits keep apart: "concept" (nothing that is tested was trained on) or "image".
    looks_at : (float, float), optional. What models read by default, seconds after the image's onset (default: all).
    channels : mapping of name to tuple of str. Sets of electrodes with a name of their own.
    granularities : callable, optional. Store's metadata → {name: labels}: parts of the classes.
    some_electrodes : bool. Whether a store may hold some of the electrodes only.
    caution : str. What must stand beside every score of a protocol that trains on the tested person (`splits.caution`).
    """

    name: str
    montage: Montage
    classes: tuple[str, ...]
    keywords: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    phrasings: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    image_prompts: Mapping[int, str] = field(default_factory=dict)
    stimuli: Mapping[int, str] = field(default_factory=dict)
    system_prompt: str = ""
    user_prompt: str = ""
    epochs: int = 0
    warmup_epochs: int = 0
    image_model: str = ""
    people: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    test_sessions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    window: tuple[float, float] = (0.0, 4.0)
    window_starts: str = "the trial's start"
    reference: str = "average"
    extra_channels: int = 0
    options: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    files: Callable[[Path], list] | None = None
    recordings: Callable[..., Iterator] | None = None
    addresses: tuple[str, ...] = ()
    all_files: tuple[str, ...] = ()
    closing: Callable[..., tuple[dict, list[str]]] | None = None
    prepare_piece: Callable | None = None
    table: Callable[..., list[str]] | None = None
    parts: Callable | None = None
    apart: str = "image"
    looks_at: tuple[float, float] | None = None
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    granularities: Callable[[Mapping], dict[str, list[int]]] | None = None
    some_electrodes: bool = False
    caution: str = ""

    @property
    def canonical(self) -> list[str]:
        """The sentence that stands for each class when likelihoods are compared; its name where there are no sentences."""
        return [self.phrasings[label][0] if self.phrasings else name for label, name in enumerate(self.classes)]

    def of_store(self, meta: Mapping, labels: Sequence[int] | None = None) -> "DatasetDescription":
        """This description with the classes and electrodes that a store says; `labels`: of these classes only.

        Raises ValueError if the store does not say its classes, or has electrodes that the dataset has not.
        """
        made = self
        if not self.classes:
            classes = meta.get("classes")
            if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
                raise ValueError("it does not say which classes it has")
            made = replace(made, classes=tuple(classes))
        if self.some_electrodes and "electrodes" in meta:
            made = replace(made, montage=self.montage.part(meta["electrodes"]))
        return made if labels is None else replace(made, classes=tuple(made.classes[label] for label in labels))

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
        with the most matches wins; a tie or no match is −1. The words of a keyword may be joined by hyphens or white space.
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
