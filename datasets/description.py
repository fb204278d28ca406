"""What a dataset is, in one record: electrodes, splits, classes, words, prompts, stimuli.

Scripts ask this record instead of knowing a dataset. Adding a dataset is adding a file that defines one, and its name
to `DATASETS`.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.montages import Montage

# name on the command line → (module, class of the loader); the module's DESCRIPTION describes the dataset
DATASETS = {
    "BCICIV2a": ("datasets.bciciv2a_llm_dataset", "BCICIV2aLLMDataset"),
    "VI": ("datasets.visual_imagery_llm_dataset", "VisualImageryLLMDataset"),
    "FACED": ("datasets.faced_llm_dataset", "FACEDLLMDataset"),
}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DatasetDescription:
    """The facts of one dataset.

    Attributes
    ----------
    name : str
        As on the command line.
    montage : Montage
    classes : tuple of str
        Names by label.
    keywords : mapping of int to tuple of str
        Words that name a class in decoded text, by label.
    phrasings : mapping of int to tuple of str
        Target texts for training, by label; the first is the canonical one that scoring uses.
    image_prompts : mapping of int to str
        What the image model is asked to draw, by label.
    stimuli : mapping of int to str
        What the person saw, by label: "arrow left" is drawn, a file name is looked up in the stimuli folder.
    system_prompt, user_prompt : str
        The chat; "{eeg}" in the user's turn marks where the EEG tokens stand.
    epochs, warmup_epochs : int
        The seed's numbers of epochs, warm-up included in `epochs`.
    image_model : str
        The seed's image model.
    """

    name: str
    montage: Montage
    classes: tuple[str, ...]
    keywords: Mapping[int, tuple[str, ...]]
    phrasings: Mapping[int, tuple[str, ...]]
    image_prompts: Mapping[int, str]
    stimuli: Mapping[int, str]
    system_prompt: str
    user_prompt: str
    epochs: int
    warmup_epochs: int
    image_model: str

    @property
    def canonical(self) -> list[str]:
        """The sentence that stands for each class when likelihoods are compared."""
        return [self.phrasings[label][0] for label in range(len(self.classes))]

    @property
    def chance(self) -> float:
        return 1 / len(self.classes)

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

    def text_readouts(self, text: str, probabilities: Sequence[float]) -> dict:
        """Both read-outs of a decoded text, for `decoded.jsonl`; no true label comes near them.

        Parameters
        ----------
        text : str
            As generated.
        probabilities : sequence of float
            Of the canonical sentences, by label.
        """
        return {
            "keyword_label": self.keyword_label(text),
            "likelihood_label": max(range(len(probabilities)), key=lambda label: probabilities[label]),
            "probabilities": [round(p, 6) for p in probabilities],
            "text": text,
        }

    def to_draw(self, decoded: Mapping, readout: str) -> dict:
        """Predicted label and image prompt, from the read-outs of one text alone.

        Parameters
        ----------
        decoded : mapping
            From `text_readouts`.
        readout : {"keyword", "likelihood"}
            Draw what the text says, or the class whose sentence is likeliest.
        """
        text = decoded["text"] if readout == "keyword" else self.canonical[decoded["likelihood_label"]]
        label = self.keyword_label(text)
        return {
            "predicted_label": label,
            "predicted_name": self.class_name(label),
            "prompt": self.image_prompt(text),
        }


def load_dataset(name: str) -> tuple[DatasetDescription, type]:
    """The description and the loader class of a dataset named on the command line."""
    module, loader = DATASETS[name]
    module = importlib.import_module(module)
    return module.DESCRIPTION, getattr(module, loader)
