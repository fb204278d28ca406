"""EEG Visual Imagery: ten pictures, seen and then imagined; 22 people, 32 electrodes. All that is particular to it.

Gao et al., Scientific Data 2026, doi 10.1038/s41597-025-06512-5; Figshare article 30227503. Each task (animals,
figures, objects) is a recording of its own, so knowing the recording alone is worth 30 % on the ten classes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
    """Person "S01" … "S22" (own: "S23"), session "01" or "02" and task of a file by its name; None for other names."""
    parts = FILE_NAME.fullmatch(path.name)
    return (f"S{int(parts[1]):02d}", f"{int(parts[2]):02d}", parts[3].upper()) if parts else None


def files(raw_dir: Path, subjects: Sequence[str] | None = None) -> list[Path]:
    """The recordings of some people (None: all) under a folder, however deep, in the order of person, session and task.

    Raises UserError if a task was recorded in two files.
    """
    path_of: dict[tuple, Path] = {}
    for path in sorted(raw_dir.rglob("sub-*_eeg.*")):
        if any(part.startswith(".") for part in path.relative_to(raw_dir).parts):
            continue  # what a run that died left behind
        recording = origin(path)
        wanted = recording and (subjects is None or recording[0] in subjects)
        if recording is None and path.suffix.lower() in SUFFIXES:
            print(f"notice: {path} is left out; expected a name like sub-01_ses-01_task-AVI_eeg.bdf")
        elif wanted and path_of.setdefault(recording, path) != path:
            raise UserError(f"{path} and {path_of[recording]} are the same recording; keep one of them")
    return [path_of[recording] for recording in sorted(path_of)]


def recordings(
    path: Path, subjects: Sequence[str] | None = None, renamed: Mapping[str, str] | None = None
) -> Iterator[Recording]:
    """One task of one session; labels from the task's own event codes, codes that it does not know are left out."""
    from readers.recordings import read_recording  # MNE is slow to import

    subject, session, task = origin(path)
    read = read_recording(path, MONTAGE.electrodes, renamed)
    onsets, codes = np.array(read.events, int).reshape(-1, 2).T
    known = np.isin(codes, CODES[task])
    recording = Recording(read.signal, read.sfreq, onsets[known], TASKS[task] + codes[known] - 1, subject, session)
    recording.run, recording.kind = list(TASKS).index(task) + 1, "recordings"
    recording.numbers = np.flatnonzero(known) + 1
    unknown = "dropped: code that the task does not know"
    recording.left_out = Counter((unknown, f"{session} {task} {code}") for code in codes[~known])
    if not read.events:
        words = "dropped: an annotation that is no code, prepare_data_own.py reads words"
        recording.left_out |= Counter((words, text) for text in read.not_understood)
    recording.notes = {"task": task, "names": read.notes, "events_from": read.sources, "corrections": read.corrections}
    yield recording


def import_reader(*_) -> None:
    """Import MNE once, before workers are started: each lives for one file."""
    import readers.recordings  # noqa: F401


def closing(options: dict, sources: list[dict], counts: Counter) -> tuple[dict, list[str]]:
    """Expected trials; units put right, amplitudes, what is missing, what was left out."""
    recorded = [recording | {"name": source["name"]} for source in sources for recording in source["recordings"]]
    tasks = {(r["subject"], r["session"], r["task"]) for r in recorded}
    expected, complete = Counter(), Counter()
    for subject, _, task in tasks:
        expected[DESCRIPTION.split_of(subject)] += len(CODES[task]) * TRIALS_PER_CLASS
    for subject in SUBJECTS:
        complete[DESCRIPTION.split_of(subject)] += N_SESSIONS[subject] * len(DESCRIPTION.classes) * TRIALS_PER_CLASS
    lines = [*_corrections(recorded), *_amplitudes(recorded), *_missing(options.get("subjects", SUBJECTS), tasks)]
    lines += [f"notice: {r['name']} has no events, so it gives no trials" for r in recorded if not r["events_from"]]
    for (fate, subject, event), n in sorted((key, n) for key, n in counts.items() if "code" in key[0]):
        session, task, code = event.split()
        lines.append(f"{fate[:13]} {code}, which {task} does not know, in {subject} session {session}: {n} events")
    total = "complete: with all 22 people, 16,800"
    lines.append(f"expected: {TRIALS_PER_CLASS} trials a class in each of these recordings; {total}")
    return {"expected": {s: expected[s] for s in SPLITS}, "complete": {s: complete[s] for s in SPLITS}}, lines


def _corrections(recorded: list[dict]) -> list[str]:
    """A line a kind of unit that was put right, or of names that were understood."""
    corrected = defaultdict(list)
    for recording in recorded:
        for correction in recording["corrections"]:
            corrected["units put right", correction].append(recording["name"])
        for note in recording.get("names", ()):
            corrected["names", note].append(recording["name"])
    lines = []
    for (what, correction), names in corrected.items():
        more = " and others" if names[1:] else ""
        lines.append(f"{what} in {len(names)} recordings ({correction}): {names[0]}{more}")
    return lines


def _amplitudes(recorded: list[dict]) -> list[str]:
    """A line a person on amplitudes and sources of events."""
    lines = []
    for subject in sorted({recording["subject"] for recording in recorded}):
        own = [recording for recording in recorded if recording["subject"] == subject]
        sds = [r["median_sd_microvolts"] for r in own if r["median_sd_microvolts"] is not None] or [0.0]
        sources = {re.split("[_ ]", name)[-1] for recording in own for name in recording["events_from"]}
        events = f"events from {', '.join(sorted(sources)) or 'nowhere'}"
        spread = f"median standard deviation {min(sds):.1f} to {max(sds):.1f} microvolts"
        lines.append(f"{subject}: {len(own)} recordings, {spread}, {events}")
    return lines


def _missing(subjects: Sequence[str], tasks: set) -> list[str]:
    """People, sessions and tasks that are not there."""
    sessions = {subject: sorted({session for who, session, _ in tasks if who == subject}) for subject in subjects}
    nobody = [subject for subject in subjects if not sessions[subject]]
    lines = [f"missing: all recordings of {', '.join(nobody)}"] if nobody else []
    for subject in sorted(set(subjects) - set(nobody)):
        if len(sessions[subject]) < N_SESSIONS.get(subject, 1):
            lines.append(f"missing: {subject} has session {sessions[subject][0]} only")
        for session in sessions[subject]:
            if lacking := [task for task in TASKS if (subject, session, task) not in tasks]:
                lines.append(f"missing: {subject} session {session}, {', '.join(lacking)}")
    return lines


# The seed's words for a class, several of them broad: "animal" means the dog, "furniture" the chair.
_KEYWORDS = {
    0: ("dog", "canine", "golden retriever", "animal"),
    1: ("bird", "avian", "feather", "wing"),
    2: ("fish", "aquatic", "fin", "swim"),
    3: ("pentagram", "star", "five-pointed", "pentagon"),
    4: ("square", "rectangle", "four-sided", "box"),
    5: ("circle", "round", "oval", "sphere"),
    6: ("scissor", "scissors", "cutting", "shears"),
    7: ("watch", "clock", "timepiece", "wristwatch"),
    8: ("cup", "mug", "coffee", "ceramic"),
    9: ("chair", "seat", "furniture", "sitting"),
}
# label → class, in detail (no phrasing uses another class's keywords), what the image model is asked to draw
_WORDS = {
    0: ("dog", "a golden retriever, a canine with a soft coat", "a photo of a dog, a golden retriever"),
    1: ("bird", "an avian shape with feather and wing", "a photo of a bird on a branch"),
    2: ("fish", "an aquatic shape with a fin and a tail", "a photo of a fish under water"),
    3: ("pentagram", "a five-pointed star made of lines", "a pentagram, a five-pointed star drawn with lines"),
    4: ("square", "a four-sided figure with equal edges", "a square drawn with lines on a plain background"),
    5: ("circle", "a round figure without corners", "a circle drawn with a line on a plain background"),
    6: ("scissor", "shears, a tool for cutting paper", "a photo of a pair of scissors"),
    7: ("watch", "a timepiece worn on the wrist", "a photo of a wrist watch"),
    8: ("cup", "a ceramic mug for coffee", "a photo of a cup of coffee"),
    9: ("chair", "a piece of furniture with a seat and four legs", "a photo of a wooden chair"),
}
_THINGS = {label: f"a {name}" for label, (name, *_) in _WORDS.items()} | {6: "a pair of scissors"}
_KIND = {"AVI": "Animal", "FVI": "Figure", "OVI": "Object"}
_TASK = [task for task, codes in CODES.items() for _ in codes]  # by label

DESCRIPTION = DatasetDescription(
    name="VI",
    montage=MONTAGE,
    classes=tuple(name for name, *_ in _WORDS.values()),
    keywords=_KEYWORDS,
    phrasings={
        label: (
            f"The person imagined {_THINGS[label]}.",
            f"This is visual imagery of {_THINGS[label]}.",
            f"The imagined picture shows {detail}.",
        )
        for label, (_, detail, _) in _WORDS.items()
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
    ahead=import_reader,
    closing=closing,
)


class VisualImageryLLMDataset(TrialDataset):
    """Trials of one split, (32, n_times) microvolts; see `TrialDataset`."""

    description = DESCRIPTION
