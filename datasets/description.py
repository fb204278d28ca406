"""What a dataset is, in one record: electrodes, people, classes, words, prompts, stimuli, recordings.

Scripts ask this record instead of knowing a dataset. It goes into each store as JSON (`as_record`), and scripts take it
from there (`datasets.store.description_of_store`): so recordings of one's own need no file here, `prepare_data_own.py`
writes the record. A dataset with a reader of its own is a file that defines `DESCRIPTION`, and a line in `DATASETS`.
Nothing here imports a slow library: a script's -h reads it.
"""

import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from datasets.montage import REGION_NAMES, Montage
from utils.errors import Fault, UserError, loading
from utils.limits import check_text

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
    protocol: str = "published"  # of a run that names none
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
    # (file or `Piece`, scale, options, workers): makes what many of them need, before workers are given them
    ahead: Callable | None = None
    moabb: str = ""  # its name in MOABB
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
    everyone: tuple[str, ...] = ()  # the published people
    # (folder of raw files, whether to read them) → what is there, in words, and whose; None: it cannot be said
    raw_people: Callable[..., tuple[str, list[str] | None]] | None = None
    parts: Callable | None = None  # (trials, the store's trials) → "train", "val" or "test" for each, by what was seen
    apart: str = "image"  # what `parts` keeps apart: "concept" (nothing that is tested was trained on) or "image"
    looks_at: tuple[float, float] | None = None  # what models read by default, seconds after the onset; None: all
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name → a set of electrodes
    granularities: Callable[[Mapping], dict[str, list[int]]] | None = None  # store's metadata → {name: labels}
    some_electrodes: bool = False  # whether a store may hold some of the electrodes only
    caution: str = ""  # stands beside every score of a protocol that trains on the tested person (`splits.caution`)
    part_of: Mapping[str, str] = field(default_factory=dict)  # image → "train", "val" or "test", where `parts` reads it
    images_dir: str = ""  # where the pictures lay when an own dataset was prepared; --images_dir names another place

    @property
    def canonical(self) -> list[str]:
        """What stands for each class when likelihoods are compared: its first sentence, or else its name."""
        return [self.phrasings[label][0] if self.phrasings else name for label, name in enumerate(self.classes)]

    @property
    def conversations(self) -> list[tuple[str, str, Sequence[str], Sequence[str]]]:
        """Of each class what a chat model reads and says: system and user prompt, keywords, sentences."""
        prompts = self.system_prompt, self.user_prompt
        return [(*prompts, self.keywords[label], self.phrasings[label]) for label in range(len(self.classes))]

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

    def as_record(self) -> dict:
        """The facts as JSON: electrodes and words, people, images; without what reads raw files."""
        words = {}
        for label, name in enumerate(self.classes):
            facts = {"keywords": list(self.keywords.get(label, ())), "sentences": list(self.phrasings.get(label, ()))}
            words[name] = facts | {"prompt": self.image_prompts.get(label), "stimulus": self.stimuli.get(label)}
        regions = {REGION_NAMES[code]: list(names) for code, names in self.montage.topology.items()}
        record = {field: getattr(self, field) for field in PLAIN}
        record |= {"electrodes": list(self.montage.electrodes), "regions": regions}
        record |= {"mirrored": [list(pair) for pair in self.montage.mirrored], "classes": words}
        record |= {"people": {split: list(people) for split, people in self.people.items()}}
        record |= {field: list(getattr(self, field)) for field in LISTS} | {"part_of": dict(self.part_of)}
        return record | {"apart": self.apart if self.parts else None}

    def own_record(self) -> dict:
        """What a run's record says of a dataset that no file of the project describes: {"dataset": …}; else nothing."""
        return {} if self.name in DATASETS else {"dataset": self.as_record()}

    def with_words(self, words: Mapping, where: str) -> "DatasetDescription":
        """This description with other words, as `--words FILE` has them.

        words : mapping. system_prompt, user_prompt, image_model (texts); classes: {name: {keywords, sentences (lists),
            prompt, stimulus (texts)}}. What is not there stays.
        Raises UserError for another field, an unknown class, or words of another kind.
        """
        fields = {"keywords": "keywords", "sentences": "phrasings", "prompt": "image_prompts", "stimulus": "stimuli"}
        changed = {field: dict(getattr(self, field)) for field in fields.values()}
        texts = {name: value for name, value in words.items() if name != "classes"}
        for name, value in texts.items():
            if name not in ("system_prompt", "user_prompt", "image_model") or not _is_text(value):
                raise UserError(f"{where}: {name} = {str(value)[:60]!r}; expected {WORDS_FORM}")
        if "{eeg}" not in texts.get("user_prompt", "{eeg}"):
            raise UserError(f"{where}: user_prompt must say where the EEG stands: {{eeg}}")
        classes = words.get("classes", {})
        for name, facts in classes.items() if isinstance(classes, Mapping) else [("classes", None)]:
            if name not in self.classes or not isinstance(facts, Mapping):
                known = ", ".join(self.classes)
                raise UserError(f"{where}: it has words for {str(name)[:60]!r}; the store has the classes {known}")
            for key, value in facts.items():
                is_list = key in ("keywords", "sentences")
                items = value if is_list and isinstance(value, list) else [value]
                fits = key in fields and items and all(_is_text(text) and text.strip() for text in items)
                if not fits or is_list != isinstance(value, list):
                    raise UserError(f"{where}: {name}: {key} = {str(value)[:60]!r}; expected {WORDS_FORM}")
                changed[fields[key]][self.classes.index(name)] = tuple(value) if is_list else value
        named = [
            " ".join(word.lower().split()) for words in changed["keywords"].values() for word in dict.fromkeys(words)
        ]
        if twice := sorted(word for word, n in Counter(named).items() if n > 1):
            raise UserError(f"{where}: the keyword {twice[0]!r} names two classes; a text with it would name neither")
        return replace(self, **texts, **changed)

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

        counts = [0] * len(self.classes)
        named = [(keyword, label) for label in range(len(self.classes)) for keyword in self.keywords[label]]
        for keyword, label in sorted(named, key=lambda one: -len(one[0])):  # "left hand" is no "hand": longest first
            words = r"[\s-]+".join(map(re.escape, keyword.split()))
            shorter = [k for k, other in named if other != label and len(k) < len(keyword)]
            pattern = rf"(?<!\w){words}(?!\w)"
            counts[label] += len(re.findall(pattern, text, re.IGNORECASE))
            if any(re.search(rf"(?<!\w){re.escape(k)}(?!\w)", keyword, re.IGNORECASE) for k in shorter):
                text = re.sub(pattern, " ", text, flags=re.IGNORECASE)
        best = max(counts)
        return counts.index(best) if best > 0 and counts.count(best) == 1 else -1

    def image_prompt(self, text: str) -> str:
        """The prompt for a decoded text: its class's prompt, or the text itself where it names no class."""
        label = self.keyword_label(text)
        return self.image_prompts[label] if label >= 0 else text


def _is_text(value: object) -> bool:
    """Whether decoded rows can hold it."""
    try:
        return bool(check_text(value, "it")) or value == ""
    except ValueError:
        return False


def with_words() -> list[str]:
    """The datasets whose classes have sentences, which a language model can be trained on."""
    return [name for name in DATASETS if load_description(name).phrasings]


def of_images() -> list[str]:
    """The datasets of seen images, whose trials have an image each."""
    return [name for name in DATASETS if load_description(name).parts]


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """The type of --downstream_dataset: one of these, or the name of an own dataset, which its store knows."""

    def name_of(name: str) -> str:
        if name in DATASETS and name not in known:
            raise UserError(f"{name}: expected one of {', '.join(known)}, or the name that an own store has")
        return name

    return name_of


# ---------------------------------------------------------------- records


# fields that go into a record as they are, and as lists
PLAIN = "name system_prompt user_prompt epochs warmup_epochs image_model protocol reference caution images_dir".split()
LISTS = "test_sessions tasks window".split()
WORDS_FORM = (
    "system_prompt, user_prompt, image_model (texts), and for each class keywords, sentences (lists of texts), prompt, "
    "stimulus (texts)"
)


def listed_parts(part_of: Mapping[str, str], trials: Sequence, all_trials: Sequence) -> list[str]:
    """The part of each trial, as a record lists it by image; an image that is not listed trains."""
    return [part_of.get(trial.image, "train") for trial in trials]


def from_record(record: Mapping, where: str) -> DatasetDescription:
    """The description of a dataset that is not in `DATASETS`, from what its store or checkpoint says.

    Raises UserError where the record is damaged, or not of this kind: strangers' stores are read as well.
    """
    with loading(f"{where}: its description of the dataset is damaged", "prepare the store anew"):
        plain = {name: record[name] for name in PLAIN}
        lists = {name: tuple(record[name]) for name in LISTS}
        codes = {name: code for code, name in REGION_NAMES.items()}
        topology = {codes[name]: tuple(names) for name, names in record["regions"].items()}
        montage, words = Montage(tuple(record["electrodes"]), topology), record["classes"]
        people = {split: tuple(names) for split, names in record["people"].items()}
        part_of, apart = dict(record["part_of"]), record["apart"]
        texts = [*words, *montage.electrodes, *sum(people.values(), ()), *part_of, *lists["tasks"]]
        texts += [plain[name] for name in PLAIN if name not in ("epochs", "warmup_epochs")]
        whole = all(isinstance(text, str) for text in texts) and set(people) <= set(SPLITS)
        whole = whole and sorted(sum(topology.values(), ())) == sorted(montage.electrodes)
        whole = whole and set(part_of.values()) <= set(SPLITS) and apart in (None, "image", "concept")
        whole = whole and all(type(plain[name]) is int and plain[name] >= 0 for name in ("epochs", "warmup_epochs"))
        if not whole or len(words) < 2 or len(lists["window"]) != 2:
            raise Fault("a fact of another kind")
        parts = partial(listed_parts, part_of) if apart else None
        made = DatasetDescription(
            **plain, **lists, montage=montage, classes=tuple(words), people=people, part_of=part_of, parts=parts,
            apart=apart or "image",
        )  # fmt: skip
        said = {name: {k: v for k, v in facts.items() if v is not None} for name, facts in words.items()}
    return made.with_words({"classes": said}, where)


def described(name: str | None, record: object, where: str) -> DatasetDescription:
    """A dataset by its name, or where no file of the project has it, by the record of its store, run or checkpoint.

    Raises UserError where neither is there, or the record is damaged or of another dataset.
    """
    if name in DATASETS:
        return load_description(name)
    known = ", ".join(DATASETS)
    if not isinstance(record, Mapping):
        asked = f"the dataset {name} is unknown" if name else f"{where} does not say of which dataset it is"
        raise UserError(f"{asked}; --downstream_dataset is one of {known}, or the name that an own store has")
    if name not in (None, record.get("name")):
        raise UserError(f"{where} is of the dataset {str(record.get('name'))[:60]!r}; expected {name}")
    return from_record(record, where)


def load_description(name: str) -> DatasetDescription:
    """The description of a dataset named on the command line."""
    entry = DATASETS[name]
    return importlib.import_module(entry).DESCRIPTION if isinstance(entry, str) else entry
