"""FACED with words: nine emotions felt while watching film clips, 123 people, 30 electrodes.

Chen et al., Scientific Data 10:740, 2023. Trials come as CBraMod's LMDB (32 or 30 electrodes, 10 patches, microvolts);
of 32 electrodes the first 30 are used.
"""

import torch

from datasets.description import DatasetDescription
from datasets.text import EEGTextDataset
from utils.montages import FACED

_WORDS = {
    0: ("anger", ("anger", "angry", "furious"), "angry, with arousal that rises and a pull to confront"),
    1: ("disgust", ("disgust", "disgusted", "revolted"), "disgusted, with a pull to turn away"),
    2: ("fear", ("fear", "afraid", "frightened"), "afraid, with high arousal and attention to threat"),
    3: ("sadness", ("sadness", "sad", "sorrow"), "sad, with low arousal and a sense of loss"),
    4: ("neutral", ("neutral", "indifferent", "unmoved"), "neutral, neither pleased nor displeased"),
    5: ("amusement", ("amusement", "amused", "funny"), "amused, with a light mood and laughter near"),
    6: ("inspiration", ("inspiration", "inspired", "uplifted"), "inspired, lifted by what was shown"),
    7: ("joy", ("joy", "joyful", "happy"), "joyful, with warmth and high spirits"),
    8: ("tenderness", ("tenderness", "tender", "moved"), "tender, with calm affection"),
}

DESCRIPTION = DatasetDescription(
    name="FACED",
    montage=FACED,
    classes=tuple(name for name, _, _ in _WORDS.values()),
    keywords={label: words for label, (_, words, _) in _WORDS.items()},
    phrasings={
        label: (
            f"The person felt {name}.",
            f"The emotion in this recording is {name}.",
            f"While watching the clip the person was {state}.",
        )
        for label, (name, _, state) in _WORDS.items()
    },
    image_prompts={label: f"a portrait of a person who is {state}" for label, (_, _, state) in _WORDS.items()},
    stimuli={},
    system_prompt="You read brain recordings and say which emotion a person felt.",
    user_prompt="This is an EEG recording of ten seconds: {eeg} Which emotion did the person feel?",
    epochs=20,
    warmup_epochs=5,
    image_model="stabilityai/stable-diffusion-2-1",
)


class FACEDLLMDataset(EEGTextDataset):
    """Trials of one split with text targets; see `EEGTextDataset`. Signals are (30, 10, 200)."""

    description = DESCRIPTION

    def signal(self, index: int) -> torch.Tensor:
        return super().signal(index)[: len(self.description.montage.electrodes)]
