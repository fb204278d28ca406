"""BCIC-IV-2b: left against right hand, 9 people, 3 bipolar electrodes. Everything that is particular to it.

BCI Competition IV, data set 2b (Leeb et al., IEEE TNSRE 15, 2007); BNCI Horizon 2020, set 004-2014. `B0xT.mat` holds
sessions 1 to 3, `B0xE.mat` sessions 4 and 5, one struct a session.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from datasets.bci_competition import NAMES, bnci_name, read_competition_gdf, session_files
from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCICIV2A
from datasets.bnci import read_bnci_mat
from datasets.montage import Montage
from datasets.recording import Recording

SFREQ = 250.0  # Hz
FILES = tuple(f"B0{subject}{session}.mat" for subject in range(1, 10) for session in "TE")
HANDS = (0, 1)  # the labels that 2a and 2b share, with their words
SESSIONS_BEFORE = {"T": 0, "E": 3}  # sessions that stand in the person's other file
EXPECTED_TRIALS = {"train": 3600, "val": 1440, "test": 1440}  # 120 in sessions 1 and 2, 160 in 3 to 5; people differ


def files(raw_dir: Path) -> list[Path]:
    """B01T.mat … B09E.mat, or B0101T.gdf …, that are there, however deep; sessions in order."""
    recorded = session_files(raw_dir, NAMES["BCICIV2b"])
    return sorted(recorded, key=lambda path: (bnci_name(path)[:3], bnci_name(path)[3] == "E", path.stem.upper()))


def recordings(path: Path) -> Iterator[Recording]:
    """The sessions of one file, each one run."""
    facts = DESCRIPTION.montage.electrodes, len(DESCRIPTION.classes), SFREQ
    is_gdf = path.suffix.lower() == ".gdf"
    for recording in read_competition_gdf(path, *facts, by_runs=False) if is_gdf else read_bnci_mat(path, *facts):
        recording.subject = path.stem[:3].upper()
        before = int(path.stem[3:5]) - 1 if is_gdf else SESSIONS_BEFORE[path.stem[3].upper()]
        recording.session = str(before + recording.number)
        yield recording


def closing(options: dict, sources: list[dict], counts: Counter) -> tuple[dict, list[str]]:
    """Expected trials by the data set's description."""
    return {"expected": EXPECTED_TRIALS}, ["expected: 120 trials in sessions 1 and 2, 160 in sessions 3 to 5"]


DESCRIPTION = dataclasses.replace(
    BCICIV2A,
    name="BCICIV2b",
    montage=Montage(electrodes=("C3", "Cz", "C4"), topology={4: ("C3", "Cz", "C4")}),
    classes=tuple(BCICIV2A.classes[label] for label in HANDS),
    keywords={label: BCICIV2A.keywords[label] for label in HANDS},
    phrasings={label: BCICIV2A.phrasings[label] for label in HANDS},
    image_prompts={label: BCICIV2A.image_prompts[label] for label in HANDS},
    stimuli={label: BCICIV2A.stimuli[label] for label in HANDS},
    people={"train": ("B01", "B02", "B03", "B04", "B05"), "val": ("B06", "B07"), "test": ("B08", "B09")},
    test_sessions=("4", "5"),
    window=(3.0, 7.0),
    window_starts="the `trial` sample (the cue comes 3 s after it)",
    reference="none",  # three bipolar channels have no common average
    options={},
    moabb="BNCI2014_004",
    files=files,
    recordings=recordings,
    addresses=(
        "https://lampx.tugraz.at/~bci/database/004-2014/",
        "http://bnci-horizon-2020.eu/database/data-sets/004-2014/",
    ),
    all_files=FILES,
    closing=closing,
)
