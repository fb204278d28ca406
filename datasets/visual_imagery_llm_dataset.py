"""EEG Visual Imagery: ten pictures, seen and then imagined; 22 people, 32 electrodes. Everything that is particular to it.

Gao et al., Scientific Data 2026, doi 10.1038/s41597-025-06512-5; Figshare article 30227503. Each task (animals, figures,
objects) is a recording of its own, so knowing the recording alone is worth 30 % on the ten classes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.description import SPLITS, DatasetDescription
from datasets.montage import Montage
from datasets.recording import Recording
from datasets.trials import TrialDataset
from utils.errors import UserError

FIGSHARE = "https://api.figshare.com/v2/articles/30227503"  # the article's file list
MONTAGE = Montage(
    electrodes=tuple(
        "Fpz Fp1 Fp2 Fz F3 F4 F7 F8 FCz FC3 FC4 FT7 FT8 Cz C3 C4 T7 T8 "
        "CP3 CP4 TP7 TP8 Pz P3 P4 P7 P8 PO3 PO4 Oz O1 O2".split()
    ),
    topology={
        0: tuple("Fp1 Fpz Fp2 F7 F3 Fz F4 F8".split()),
        1: tuple("P7 P3 Pz P4 P8".split()),
        2: tuple("FT7 T7 TP7 TP8 T8 FT8".split()),
        3: tuple("PO3 O1 Oz O2 PO4".split()),
        4: tuple("FC3 FCz FC4 C3 Cz C4 CP3 CP4".split()),
    },
)
SUBJECTS = tuple(f"S{number:02d}" for number in range(1, 23))
PEOPLE = {"train": SUBJECTS[:16], "val": SUBJECTS[16:19], "test": SUBJECTS[19:]}
N_SESSIONS = {subject: 1 if subject in ("S09", "S10") else 2 for subject in SUBJECTS}
TASKS = {"AVI": 0, "FVI": 3, "OVI": 6}  # animals, figures, objects → label of the task's event code 1
CODES = {"AVI": (1, 2, 3), "FVI": (1, 2, 3), "OVI": (1, 2, 3, 4)}  # local to a task; other codes do occur
TRIALS_PER_CLASS = 40  # in a session: 16,800 trials in all
SUFFIXES = (".bdf", ".fif", ".edf", ".set", ".vhdr")
FILE_NAME = re.compile(
    rf"sub-(\d+)_ses-(\d+)_task-({'|'.join(TASKS)})_eeg({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE
)


def origin(path: Path) -> tuple[str, str, str] | None:
    """Person "S01" … "S22", session "01" or "02" and task of a file by its name; None for other names."""
    parts = FILE_NAME.fullmatch(path.name)
    return (f"S{int(parts[1]):02d}", f"{int(parts[2]):02d}", parts[3].upper()) if parts else None


def files(raw_dir: Path, subjects: Sequence[str] = SUBJECTS) -> list[Path]:
    """The recordings of some people under a folder, however deep, in the order of person, session and task.

    Raises UserError if a task was recorded in two files.
    """
    found: dict[tuple, Path] = {}
    for path in sorted(raw_dir.rglob("sub-*_eeg.*")):
        if any(part.startswith(".") for part in path.relative_to(raw_dir).parts):
            continue  # what a run that died left behind
        where = origin(path)
        if where is None:
            if path.suffix.lower() in SUFFIXES:
                print(f"notice: {path} is left out; expected a name like sub-01_ses-01_task-AVI_eeg.bdf")
        elif where[0] in subjects:
            if where in found:
                raise UserError(f"{path} and {found[where]} are the same recording; keep one of them")
            found[where] = path
    return [found[where] for where in sorted(found)]


def recordings(path: Path, subjects: Sequence[str] = SUBJECTS) -> Iterator[Recording]:
    """One task of one session; labels from the task's own event codes, codes that it does not know are left out."""
    from readers.recordings import read_recording  # MNE is slow to import

    subject, session, task = origin(path)
    read = read_recording(path, MONTAGE.electrodes)
    known = [(number, onset, code) for number, (onset, code) in enumerate(read.events, start=1) if code in CODES[task]]
    left_out = Counter(
        ("dropped: code that the task does not know", f"{session} {task} {code}")
        for _, code in read.events
        if code not in CODES[task]
    )
    yield Recording(
        read.signal, read.sfreq,
        onsets=np.array([onset for _, onset, _ in known], int),
        labels=np.array([TASKS[task] + code - 1 for _, _, code in known], int),
        subject=subject, session=session, run=list(TASKS).index(task) + 1,
        numbers=np.array([number for number, _, _ in known], int),
        left_out=left_out, kind="recordings",
        notes={"task": task, "events_from": read.sources, "corrections": read.corrections},
    )  # fmt: skip


def closing(options: dict, sources: list[dict], counts: Counter) -> tuple[dict, list[str]]:
    """Expected trials; units put right, amplitudes, what is missing, what was left out."""
    found = [recording | {"name": source["name"]} for source in sources for recording in source["recordings"]]
    have = {(r["subject"], r["session"], r["task"]) for r in found}
    of_these, complete = Counter(), Counter()
    for subject, _, task in have:
        of_these[DESCRIPTION.split_of(subject)] += len(CODES[task]) * TRIALS_PER_CLASS
    for subject in SUBJECTS:
        complete[DESCRIPTION.split_of(subject)] += N_SESSIONS[subject] * len(DESCRIPTION.classes) * TRIALS_PER_CLASS
    lines = [*_corrections(found), *_missing(options.get("subjects", SUBJECTS), have)]
    lines += [f"notice: {r['name']} has no events, so it gives no trials" for r in found if not r["events_from"]]
    for (fate, subject, where), n in sorted((key, n) for key, n in counts.items() if "code" in key[0]):
        session, task, code = where.split()
        lines.append(f"{fate[:13]} {code}, which {task} does not know, in {subject} session {session}: {n} events")
    lines.append(
        f"expected: {TRIALS_PER_CLASS} trials a class in each of these recordings; complete: with all 22 people, 16,800"
    )
    return {"expected": {s: of_these[s] for s in SPLITS}, "complete": {s: complete[s] for s in SPLITS}}, lines


def _corrections(found: list[dict]) -> list[str]:
    """Units that were put right, and a line a person on amplitudes and sources of events."""
    corrected, lines = defaultdict(list), []
    for recording in found:
        for what in recording["corrections"]:
            corrected[what].append(recording["name"])
    for what, names in corrected.items():
        more = " and others" if names[1:] else ""
        lines.append(f"units put right in {len(names)} recordings ({what}): {names[0]}{more}")
    for subject in sorted({recording["subject"] for recording in found}):
        of = [recording for recording in found if recording["subject"] == subject]
        sds = [r["median_sd_microvolts"] for r in of if r["median_sd_microvolts"] is not None] or [0.0]
        origins = sorted(
            {name.replace("_", " ").split(" ")[-1] for recording in of for name in recording["events_from"]}
        )
        lines.append(f"{subject}: {len(of)} recordings, median standard deviation {min(sds):.1f} to {max(sds):.1f} "
                     f"microvolts, events from {', '.join(origins) or 'nowhere'}")  # fmt: skip
    return lines


def _missing(subjects: Sequence[str], have: set) -> list[str]:
    """People, sessions and tasks that are not there."""
    sessions = {subject: sorted({session for who, session, _ in have if who == subject}) for subject in subjects}
    nobody = [subject for subject in subjects if not sessions[subject]]
    lines = [f"missing: all recordings of {', '.join(nobody)}"] if nobody else []
    for subject in sorted(set(subjects) - set(nobody)):
        if len(sessions[subject]) < N_SESSIONS[subject]:
            lines.append(f"missing: {subject} has session {sessions[subject][0]} only")
        for session in sessions[subject]:
            tasks = [task for task in TASKS if (subject, session, task) not in have]
            if tasks:
                lines.append(f"missing: {subject} session {session}, {', '.join(tasks)}")
    return lines


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
# label → class, as a thing, in detail (no phrasing uses another class's keywords), what the image model is asked to draw
_WORDS = {
    0: ("dog", "a dog", "a golden retriever, a canine with a soft coat", "a photo of a dog, a golden retriever"),
    1: ("bird", "a bird", "an avian shape with feather and wing", "a photo of a bird on a branch"),
    2: ("fish", "a fish", "an aquatic shape with a fin and a tail", "a photo of a fish under water"),
    3: (
        "pentagram",
        "a pentagram",
        "a five-pointed star made of lines",
        "a pentagram, a five-pointed star drawn with lines",
    ),
    4: (
        "square",
        "a square",
        "a four-sided figure with equal edges",
        "a square drawn with lines on a plain background",
    ),
    5: ("circle", "a circle", "a round figure without corners", "a circle drawn with a line on a plain background"),
    6: ("scissor", "a pair of scissors", "shears, a tool for cutting paper", "a photo of a pair of scissors"),
    7: ("watch", "a watch", "a timepiece worn on the wrist", "a photo of a wrist watch"),
    8: ("cup", "a cup", "a ceramic mug for coffee", "a photo of a cup of coffee"),
    9: ("chair", "a chair", "a piece of furniture with a seat and four legs", "a photo of a wooden chair"),
}
_KIND = {"AVI": "Animal", "FVI": "Figure", "OVI": "Object"}
_TASK = [task for task, codes in CODES.items() for _ in codes]  # by label

DESCRIPTION = DatasetDescription(
    name="VI",
    montage=MONTAGE,
    classes=tuple(name for name, *_ in _WORDS.values()),
    keywords={label: tuple(words) for label, words in VI_KEYWORDS.items()},
    phrasings={
        label: (
            f"The person imagined {thing}.",
            f"This is visual imagery of {thing}.",
            f"The imagined picture shows {detail}.",
        )
        for label, (_, thing, detail, _) in _WORDS.items()
    },
    image_prompts={label: prompt for label, (*_, prompt) in _WORDS.items()},
    stimuli={label: f"{_KIND[_TASK[label]]}_{name}.jpg" for label, (name, *_) in _WORDS.items()},
    system_prompt="You read brain recordings and say which picture a person imagined.",
    user_prompt="This is an EEG recording of one trial: {eeg} Which picture did the person imagine?",
    epochs=10,
    warmup_epochs=3,
    image_model="amused/amused-512",
    people=PEOPLE,
    test_sessions=("02",),
    tasks=tuple(_TASK),
    window=(0.5, 4.5),
    window_starts="the start of imagery",
    files=files,
    recordings=recordings,
    closing=closing,
)


class VisualImageryLLMDataset(TrialDataset):
    """Trials of one split, (32, n_times) microvolts; see `TrialDataset`."""

    description = DESCRIPTION
