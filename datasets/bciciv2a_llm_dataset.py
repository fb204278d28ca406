"""BCIC-IV-2a with words: classes, phrasings, prompts, cues; trials with text targets.

Four-class motor imagery, 9 people, 22 electrodes (BCI Competition IV, data set 2a; BNCI Horizon 2020 001-2014).
Where the rhythm changes: imagining a hand weakens the 8–13 Hz rhythm over the other side's motor cortex
(Pfurtscheller & Lopes da Silva, Clinical Neurophysiology 110, 1999).
"""

from datasets.description import DatasetDescription
from datasets.text import EEGTextDataset
from utils.montages import BCIC

DESCRIPTION = DatasetDescription(
    name="BCICIV2a",
    montage=BCIC,
    classes=("left hand", "right hand", "feet", "tongue"),
    keywords={
        0: ("left hand", "left fist", "left fingers"),
        1: ("right hand", "right fist", "right fingers"),
        2: ("feet", "foot", "toes"),
        3: ("tongue", "mouth"),
    },
    # No phrasing uses another class's keywords, and the side of the scalp is never written next to "hand".
    phrasings={
        0: (
            "The person imagined moving the left hand. The rhythm weakens over the right central scalp.",
            "This is imagery of the left hand, with mu desynchronisation at right central electrodes.",
            "Left hand imagery: the 8 to 13 Hz rhythm drops over right central areas.",
        ),
        1: (
            "The person imagined moving the right hand. The rhythm weakens over the left central scalp.",
            "This is imagery of the right hand, with mu desynchronisation at left central electrodes.",
            "Right hand imagery: the 8 to 13 Hz rhythm drops over left central areas.",
        ),
        2: (
            "The person imagined moving both feet. The rhythm weakens over the midline of the scalp.",
            "This is imagery of the feet, with mu desynchronisation at midline electrodes.",
            "Feet imagery: the 8 to 13 Hz rhythm drops along the midline.",
        ),
        3: (
            "The person imagined moving the tongue. The rhythm weakens laterally on both sides of the scalp.",
            "This is imagery of the tongue, with mu desynchronisation at lateral electrodes on both sides.",
            "Tongue imagery: the 8 to 13 Hz rhythm drops on both sides, laterally.",
        ),
    },
    image_prompts={
        0: "a picture of a left hand with the fingers spread",
        1: "a picture of a right hand with the fingers spread",
        2: "a picture of two bare feet side by side",
        3: "a picture of an open mouth with the tongue out",
    },
    stimuli={0: "arrow left", 1: "arrow right", 2: "arrow down", 3: "arrow up"},
    system_prompt="You read brain recordings and say which movement a person imagined.",
    user_prompt="This is an EEG recording of one trial: {eeg} Which movement did the person imagine?",
    epochs=20,
    warmup_epochs=5,
    image_model="stabilityai/stable-diffusion-2-1",
)


class BCICIV2aLLMDataset(EEGTextDataset):
    """Trials of one split with text targets; see `EEGTextDataset`."""

    description = DESCRIPTION
