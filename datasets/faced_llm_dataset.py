"""FACED: nine emotions felt while watching film clips, 123 people, 30 electrodes.

Chen et al., Scientific Data 10:740, 2023. Trials come as CBraMod's LMDB (32 or 30 electrodes, 10 patches, microvolts);
of 32 electrodes the first 30 are used.
"""

from datasets.description import DatasetDescription
from datasets.montage import Montage
from datasets.trials import TrialDataset

MONTAGE = Montage(
    electrodes=tuple(
        "Fp1 Fp2 Fz F3 F4 F7 F8 FC1 FC2 FC5 FC6 Cz C3 C4 T7 T8 CP1 CP2 CP5 CP6 Pz P3 P4 P7 P8 PO3 PO4 Oz O1 O2".split()
    ),
    topology={
        0: tuple("Fp1 FC5 FC1 F7 F3 Fz F4 F8 FC2 FC6 Fp2".split()),
        1: tuple("P7 P3 Pz P4 P8".split()),
        2: tuple("T7 T8".split()),
        3: tuple("PO3 O1 Oz O2 PO4".split()),
        4: tuple("CP5 CP1 C3 Cz C4 CP2 CP6".split()),
    },
)

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
    montage=MONTAGE,
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
    extra_channels=2,  # the files have 32 or 30 channels
)


class FACEDLLMDataset(TrialDataset):
    """Trials of one split, (30, 2000) microvolts at 200 Hz; see `TrialDataset`."""

    description = DESCRIPTION
