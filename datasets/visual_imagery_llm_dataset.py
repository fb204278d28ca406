"""EEG Visual Imagery with words: people, tasks, event codes, classes, phrasings, prompts, stimuli; trials with text targets.

Ten pictures, seen and then imagined; 22 people, 32 electrodes, 1000 Hz (Gao et al., Scientific Data 2026, doi
10.1038/s41597-025-06512-5; Figshare article 30227503).
"""

from datasets.description import DatasetDescription
from datasets.text import EEGTextDataset
from utils.montages import VI

SUBJECTS = tuple(f"S{number:02d}" for number in range(1, 23))
SPLIT_OF_SUBJECT = {
    **dict.fromkeys(SUBJECTS[:16], "train"),
    **dict.fromkeys(SUBJECTS[16:19], "val"),
    **dict.fromkeys(SUBJECTS[19:], "test"),
}
N_SESSIONS = {subject: 1 if subject in ("S09", "S10") else 2 for subject in SUBJECTS}
TASKS = {"AVI": 0, "FVI": 3, "OVI": 6}  # animals, figures, objects → label of the task's event code 1
CODES = {"AVI": (1, 2, 3), "FVI": (1, 2, 3), "OVI": (1, 2, 3, 4)}  # local to a task; other codes do occur
TRIALS_PER_CLASS = 40  # in a session: 16,800 trials in all

# The seed's words for a class, several of them broad: "animal" means the dog, "furniture" the chair.
VI_KEYWORDS = {
    0: ["dog", "canine", "golden retriever", "animal"],
    1: ["bird", "avian", "feather", "wing"],
    2: ["fish", "aquatic", "fin", "swim"],
    3: ["pentagram", "star", "five-pointed", "pentagon"],
    4: ["square", "rectangle", "four-sided", "box"],
    5: ["circle", "round", "oval", "sphere"],
    6: ["scissor", "scissors", "cutting", "shears"],
    7: ["watch", "clock", "timepiece", "wristwatch"],
    8: ["cup", "mug", "coffee", "ceramic"],
    9: ["chair", "seat", "furniture", "sitting"],
}

# No phrasing uses another class's keywords.
_IMAGINED = {
    0: ("dog", "a dog", "a golden retriever, a canine with a soft coat"),
    1: ("bird", "a bird", "an avian shape with feather and wing"),
    2: ("fish", "a fish", "an aquatic shape with a fin and a tail"),
    3: ("pentagram", "a pentagram", "a five-pointed star made of lines"),
    4: ("square", "a square", "a four-sided figure with equal edges"),
    5: ("circle", "a circle", "a round figure without corners"),
    6: ("scissor", "a pair of scissors", "shears, a tool for cutting paper"),
    7: ("watch", "a watch", "a timepiece worn on the wrist"),
    8: ("cup", "a cup", "a ceramic mug for coffee"),
    9: ("chair", "a chair", "a piece of furniture with a seat and four legs"),
}

DESCRIPTION = DatasetDescription(
    name="VI",
    montage=VI,
    classes=tuple(name for name, _, _ in _IMAGINED.values()),
    keywords={label: tuple(words) for label, words in VI_KEYWORDS.items()},
    phrasings={
        label: (
            f"The person imagined {thing}.",
            f"This is visual imagery of {thing}.",
            f"The imagined picture shows {detail}.",
        )
        for label, (_, thing, detail) in _IMAGINED.items()
    },
    image_prompts={
        0: "a photo of a dog, a golden retriever",
        1: "a photo of a bird on a branch",
        2: "a photo of a fish under water",
        3: "a pentagram, a five-pointed star drawn with lines",
        4: "a square drawn with lines on a plain background",
        5: "a circle drawn with a line on a plain background",
        6: "a photo of a pair of scissors",
        7: "a photo of a wrist watch",
        8: "a photo of a cup of coffee",
        9: "a photo of a wooden chair",
    },
    stimuli={
        0: "Animal_dog.jpg",
        1: "Animal_bird.jpg",
        2: "Animal_fish.jpg",
        3: "Figure_pentagram.jpg",
        4: "Figure_square.jpg",
        5: "Figure_circle.jpg",
        6: "Object_scissor.jpg",
        7: "Object_watch.jpg",
        8: "Object_cup.jpg",
        9: "Object_chair.jpg",
    },
    system_prompt="You read brain recordings and say which picture a person imagined.",
    user_prompt="This is an EEG recording of one trial: {eeg} Which picture did the person imagine?",
    epochs=10,
    warmup_epochs=3,
    image_model="amused/amused-512",
)


class VisualImageryLLMDataset(EEGTextDataset):
    """Trials of one split with text targets; see `EEGTextDataset`. Signals are (32, 4, 200)."""

    description = DESCRIPTION
