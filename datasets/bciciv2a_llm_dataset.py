"""BCIC-IV-2a: four-class motor imagery, 9 people, 22 electrodes. Everything that is particular to it.

BCI Competition IV, data set 2a (Tangermann et al., Frontiers in Neuroscience 6:55, 2012); BNCI Horizon 2020, set
001-2014. Where the rhythm changes: imagining a hand weakens the 8–13 Hz rhythm over the other side's motor cortex
(Pfurtscheller & Lopes da Silva, Clinical Neurophysiology 110, 1999).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.bci_competition import NAMES, read_competition_gdf, session_files
from datasets.bnci import read_bnci_mat
from datasets.description import SPLITS, DatasetDescription
from datasets.montage import Montage
from datasets.recording import Recording
from datasets.trials import TrialDataset

SFREQ = 250.0  # Hz
MONTAGE = Montage(
    electrodes=tuple("Fz FC3 FC1 FCz FC2 FC4 C5 C3 C1 Cz C2 C4 C6 CP3 CP1 CPz CP2 CP4 P1 Pz P2 POz".split()),
    topology={
        0: ("Fz",),
        1: tuple("P1 Pz P2 POz".split()),
        4: tuple("FC3 FC1 FCz FC2 FC4 C5 C3 C1 Cz C2 C4 C6 CP3 CP1 CPz CP2 CP4".split()),
    },
)
FILES = tuple(f"A0{subject}{session}.mat" for subject in range(1, 10) for session in "TE")
CALIBRATION_STRUCTS = 3  # what the published preprocessing drops from every file, A04T's real runs among them
EXPECTED_TRIALS = {  # by --trial_set
    "published": {"train": 2784, "val": 1152, "test": 1152},
    "all": {"train": 2880, "val": 1152, "test": 1152},
}
FIRST_STRUCTS = "dropped: first three structs"


def files(raw_dir: Path) -> list[Path]:
    """A01T.mat … A09E.mat, or .gdf, that are there, however deep; own people (A10T.mat) as well."""
    return session_files(raw_dir, NAMES["BCICIV2a"])


def recordings(path: Path, trial_set: str = "published") -> Iterator[Recording]:
    """The runs of one file. Calibration runs come without trials, and so do real runs that `trial_set` leaves out.

    trial_set : {"published", "all"}. "published" drops the first three structs of every file, as the published splits
        do; "all" drops runs without trials only.
    """
    task_number, facts = 0, (MONTAGE.electrodes, len(DESCRIPTION.classes), SFREQ)
    is_gdf = path.suffix.lower() == ".gdf"
    runs = read_competition_gdf(path, *facts, by_runs=True) if is_gdf else read_bnci_mat(path, *facts)
    # where calibration is not marked off, and of own people, the rule of the first structs has no part
    in_structs = (not is_gdf or len(runs) > 1) and DESCRIPTION.split_of(path.stem[:3].upper())
    for recording in runs:
        is_calibration = not len(recording.onsets)  # EOG calibration runs have no trials
        task_number += not is_calibration
        recording.subject, recording.session = path.stem[:3].upper(), path.stem[3].upper()
        recording.run = task_number
        if is_calibration:
            recording.kind = "calibration runs"
        elif trial_set == "published" and recording.number <= CALIBRATION_STRUCTS and in_structs:
            recording.kind = "task runs among the first three structs"
            recording.left_out = Counter((FIRST_STRUCTS, int(label)) for label in recording.labels)
            recording.onsets = recording.labels = np.array([], int)
        yield recording


def closing(options: dict, sources: list[dict], counts: Counter) -> tuple[dict, list[str]]:
    """Expected trials, and why the published splits have fewer than there are."""
    sets = {name: "/".join(str(expected[split]) for split in SPLITS) for name, expected in EXPECTED_TRIALS.items()}
    n_lost = sum(n for (fate, *_), n in counts.items() if fate == FIRST_STRUCTS)
    n_runs = counts["recordings", "task runs among the first three structs"]
    asked, advice = options["trial_set"], " Use --trial_set all to keep them." if n_lost else ""
    return {"expected": EXPECTED_TRIALS[asked]}, [
        f"--trial_set {asked}. The complete data give {sets['published']} trials (published) or {sets['all']} (all):",
        "the published splits drop the first three structs of every file as calibration; A04T has one calibration run,",
        f"so two real runs go too. Here that cost {n_lost} trials in {n_runs} runs.{advice}",
    ]


DESCRIPTION = DatasetDescription(
    name="BCICIV2a",
    montage=MONTAGE,
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
    people={"train": ("A01", "A02", "A03", "A04", "A05"), "val": ("A06", "A07"), "test": ("A08", "A09")},
    test_sessions=("E",),
    window=(2.0, 6.0),
    window_starts="the `trial` sample (the fixation cross; the cue comes 2 s after it)",
    options={
        "trial_set": (
            tuple(EXPECTED_TRIALS),
            "published: drop the first three structs of every file, as the published splits do, which costs A04T two "
            "real runs (2784/1152/1152 trials); all: drop only runs without trials (2880/1152/1152)",
        )
    },
    moabb="BNCI2014_001",
    files=files,
    recordings=recordings,
    addresses=(
        "https://lampx.tugraz.at/~bci/database/001-2014/",
        "http://bnci-horizon-2020.eu/database/data-sets/001-2014/",
    ),
    all_files=FILES,
    closing=closing,
)


class BCICIV2aLLMDataset(TrialDataset):
    """Trials of one split, (22, n_times) microvolts; see `TrialDataset`."""

    description = DESCRIPTION
