"""EEG-ImageNet: 4,000 ImageNet photos of 80 classes, seen by 16 people; 62 electrodes, 500 ms a photo.

Zhu et al., arXiv 2406.07151. A class's 50 photos were shown one after the other: the first 30 train, the last 20 test,
so that slow drift tells a class (Li et al., TPAMI 2020). The files do not say the electrodes' order, which is that of
the authors' montage, nor the unit.
"""

import reprlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets.description import SPLITS, DatasetDescription
from datasets.electrodes import montage_of
from datasets.prepare import check_amplitude
from datasets.preprocessing import Preprocessing
from datasets.recording import DTYPE, Piece, Prepared, Trial, stamp
from utils.archives import check_packed
from utils.errors import UserError, loading
from utils.files import plain_bytes
from utils.limits import MAX_TEXT, guarded
from utils.paths import is_file_name

ELECTRODES = tuple(
    "FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 "
    "C1 CZ C2 C4 C6 T8 TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 "
    "PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2".split()
)
SFREQ = 1000.0  # Hz
N_TIMES = 501
ITEM = {"eeg_data", "granularity", "subject", "label", "image"}  # of a trial; "stage" too in the file of the second day
TRAIN, VAL = 0.6, 1 / 6  # share of a block that trains; share of that, at its end, that validates: 30 and 5 of 50
GROUP = 8  # classes of a fine group
PEOPLE, MAX_PERSON = 16, 10**6  # codes 0 to 15; of own people
SECOND_DAY = range(PEOPLE, 22)  # codes of some of them on another day; those from 22 on are own people
EVERYONE = tuple(f"S{number:02d}" for number in range(PEOPLE))
TRIALS = {subject: 4000 for subject in range(16)} | {2: 3950, 12: 3900}  # 63,850 in all
ITEMS, REOPENED = 200, 10  # trials of a piece; pieces after which a file is opened anew: 0.5 GB

FINE = 40  # of the 80 published classes; they stand first, and the published code counts its groups so
FEATURES = (".npy", ".npz", ".mat", ".pkl", ".csv")
MISSING = "left out: no photo"  # fate of a trial

UNIT_HINT = "the file does not say its unit; --scale sets a factor and goes on (1e-6: it is microvolts)"

HINT = "expected an EEG-ImageNet .pth of tensors and plain containers, in PyTorch's zip format; fetch it again"

# ---------------------------------------------------------------- the file


@dataclass(frozen=True)
class _Opened:
    """A file with its arrays mapped, and where each of its trials belongs."""

    items: list
    labels: tuple[str, ...]
    marks: frozenset[tuple[str, str]]  # wnid and granularity of trials
    numbers: tuple[int, ...]  # of a trial among its person's in this file, from 1


@lru_cache(maxsize=2)
def opened(path: Path, version: tuple[int, int]) -> _Opened:
    """Open a .pth of the data set: weights only, mapped. `version`: see `datasets.recording.stamp`.

    Raises UserError where it is not what it should be, with the item's number.
    """
    import torch

    from utils.checkpoints import check_tensors  # slow to import, as torch is

    if path.suffix.lower() in FEATURES:
        made = "--encoder de_mlp, mlp, rgnn and baseline.py make it from the raw EEG, as --de says"
        raise UserError(f"{path} is no .pth of raw EEG; differential entropy in a file is not needed: {made}")
    with guarded(path, HINT):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        check_tensors(content, version[0])
    if not isinstance(content, dict) or set(content) != {"dataset", "labels", "images"}:
        wanted = "expected dataset, labels and images, as in the authors' raw file (features are made from it)"
        raise UserError(f"{path} has {_kind(content)}; {wanted}")
    items, labels = content["dataset"], content["labels"]
    if not isinstance(items, list) or not items or not isinstance(labels, list):
        raise UserError(f"{path}: expected lists of trials and of labels")
    if odd := next((name for name in labels if not is_file_name(name)), None):  # each has a folder of photos
        raise UserError(f"{path}: the label {reprlib.repr(odd)} is no name of a class")
    if twice := [name for name, n in Counter(labels).items() if n > 1]:
        raise UserError(f"{path} lists the label {twice[0]} twice; classes are counted by that list")
    marks, numbers, counts = set(), [], Counter()
    for place, item in enumerate(items):
        _check_item(item, labels, f"{path}: item {place}")
        marks.add((item["label"], item["granularity"]))
        counts[item["subject"]] += 1
        numbers.append(counts[item["subject"]])
    return _Opened(items, tuple(labels), frozenset(marks), tuple(numbers))


def _kind(content: object) -> object:
    if isinstance(content, dict):
        return sorted(map(str, content))[:5]
    return f"{type(content).__name__} {tuple(getattr(content, 'shape', ()))}".removesuffix(" ()")


def _check_item(item: object, labels: list[str], where: str) -> None:
    """Raise UserError where an item is no trial of the data set."""
    import torch

    if not isinstance(item, dict) or not ITEM <= set(item) <= ITEM | {"stage"}:
        raise UserError(f"{where} has {_kind(item)}; expected {sorted(ITEM)}")
    x, shape = item["eeg_data"], (len(ELECTRODES), N_TIMES)
    if not isinstance(x, torch.Tensor) or x.shape != shape or not x.is_floating_point():
        raise UserError(f"{where}: eeg_data is {tuple(getattr(x, 'shape', ()))}; expected {shape}")
    label, subject, granularity, image = (item[key] for key in ("label", "subject", "granularity", "image"))
    if not isinstance(label, str) or label not in labels or type(subject) is not int or not 0 <= subject <= MAX_PERSON:
        raise UserError(f"{where} has the label {reprlib.repr(label)} and subject {reprlib.repr(subject)}")
    if granularity not in ["coarse", "fine"] or not is_file_name(image):
        raise UserError(f"{where} has the granularity {reprlib.repr(granularity)} and image {reprlib.repr(image)}")


def pieces(paths: Sequence[Path]) -> list[Piece]:
    """The files, in pieces of some hundred trials.

    Raises UserError where a checksum in a file is wrong, or two files count classes in another order.
    """
    for path in paths:
        with loading(str(path), HINT):
            check_packed(path)
    files = [opened(path, stamp(path)) for path in paths]
    cut = []
    for path, file in zip(paths, files, strict=True):
        if file.labels != files[0].labels:
            raise UserError(f"{path} has other labels, or in another order, than {paths[0]}; are both of EEG-ImageNet?")
        cut += Piece.all_of(path, len(file.items), ITEMS)
    return cut


def raw_people(folder: Path, deep: bool) -> tuple[str, list[str] | None]:
    """How many files are there, in words, and whose trials they hold, which one of two does not say. Opens them."""
    paths = sorted(path for path in folder.glob("*.pth") if path.name[0] != ".")
    pieces(paths)
    gb = sum(path.stat().st_size for path in paths) / 1e9
    there = f"{len(paths)} .pth of EEGImageNet, {gb:.3g} GB"
    if len(paths) == 1:
        return there, None
    return there, list(EVERYONE if paths else ())


def fine_classes(paths: Sequence[Path]) -> list[str]:
    """The wnids of the fine classes: a class has one granularity, though some trials of 19 of them are marked coarse.

    A class is coarse where no trial of it is marked fine; where that leaves others than 40 fine of 80, the order says.
    Prints how many trials are marked otherwise, and whose.
    Raises UserError where neither marks nor order fit.
    """
    files = [opened(path, stamp(path)) for path in paths]
    labels, marks = files[0].labels, frozenset().union(*(file.marks for file in files))
    fine = [wnid for wnid in labels if (wnid, "fine") in marks or (wnid, "coarse") not in marks]
    if len(labels) == 2 * FINE and len(fine) != FINE:
        if wrong := [wnid for wnid in labels[FINE:] if (wnid, "fine") in marks]:
            marked = f"{len(fine)} of 80 classes are marked fine, {', '.join(wrong[:3])} among the last 40"
            raise UserError(f"{paths[0]}: {marked}; expected 40 fine classes, which stand first")
        fine = list(labels[:FINE])
    others, among = Counter(), set(fine)
    for item in (item for file in files for item in file.items):
        if (item["granularity"] == "fine") != (item["label"] in among):
            others[f"S{item['subject']:02d}"] += 1
    if others:
        classes = [wnid for wnid in fine if (wnid, "coarse") in marks]
        whose = ", ".join(f"{who} {n}" for who, n in sorted(others.items()))
        kept = "they are kept with their class, which has one granularity"
        print(f"notice: {others.total()} trials of {len(classes)} fine classes are marked coarse ({whose}); {kept}")
    return fine


def facts(paths: Sequence[Path], names: Path | None, fine: Sequence[str]) -> dict:
    """Classes, and which of them are coarse, or of which fine group, for the store's metadata.

    names : Path, optional. Lines "WNID name, …", as ImageNet's synset maps have; else classes are called by their
        wnids.
    fine : sequence of str. What `fine_classes` gave.
    """
    labels, fine = opened(paths[0], stamp(paths[0])).labels, set(fine)
    parts = {"coarse": [k for k, wnid in enumerate(labels) if wnid not in fine]}
    of_fine = [k for k, wnid in enumerate(labels) if wnid in fine]
    parts |= {f"fine{start // GROUP}": of_fine[start : start + GROUP] for start in range(0, len(of_fine), GROUP)}
    name_of = dict(zip(labels, labels, strict=True))
    if names is not None:
        with loading(str(names), "expected lines of a wnid and a name"):
            lines = [
                line.split(maxsplit=1) for line in plain_bytes(names, MAX_TEXT).decode().splitlines() if line.strip()
            ]
            name_of = {wnid: name.split(",")[0].strip() for wnid, name in lines}
        if lacking := [wnid for wnid in labels if wnid not in name_of]:
            raise UserError(f"{names} has no name of {lacking[0]} and {len(lacking) - 1} more of the classes")
    granularities = {name: members for name, members in parts.items() if members}
    classes = [name_of[wnid] for wnid in labels]
    return {"classes": classes, "electrodes": list(ELECTRODES), "granularities": granularities}


def check_people(paths: Sequence[Path], same_person: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError where a code of the second day has no person, or where a named code is not there.

    Without a person, the second day's would be taken for somebody new.
    """
    items = [item for path in paths for item in opened(path, stamp(path)).items]
    second = {str(item["subject"]) for item in items if item["subject"] in SECOND_DAY or "stage" in item}
    if lacking := sorted(second - set(same_person), key=int):
        hint = f"say whose they are, as in --same_person {lacking[0]}=3, or the same person would train and test"
        raise UserError(f"the codes {', '.join(lacking)} are of the second day: {hint}")
    if unknown := sorted(set(same_person) - {str(item["subject"]) for item in items}, key=int):
        raise UserError(f"--same_person {unknown[0]}=…: no trial has the code {unknown[0]}")


def granularities(meta: Mapping) -> dict[str, list[int]]:
    """Labels of the coarse classes and of each fine group, as the store says."""
    parts, n = meta.get("granularities"), len(meta.get("classes", []))
    lists = list(parts.values()) if isinstance(parts, dict) else [None]
    if not all(isinstance(part, list) and part and all(type(k) is int and 0 <= k < n for k in part) for part in lists):
        raise ValueError("it does not say which of its classes are coarse")
    return parts


# ---------------------------------------------------------------- a piece → trials


def _trial(item: dict, number: int, labels: Sequence[str], same_person: Mapping[str, Sequence[str]]) -> Trial:
    subject, session = same_person.get(str(item["subject"]), [f"S{item['subject']:02d}", "1"])
    image, key = f"{item['label']}/{item['image']}", f"{subject}-{session}-r1-t{number:05d}"
    return Trial(key, labels.index(item["label"]), subject, session, 1, number, image)


def left_out(paths: Sequence[Path], missing: Sequence[str], same_person: Mapping[str, Sequence[str]]) -> list[dict]:
    """The rows of trials whose photos are missing. Prints how many they are, by person and part.

    They stand in the store's metadata as `left_out`, so that the others keep their place in the block, and their part.
    """
    if not missing:
        return []
    files = [opened(path, stamp(path)) for path in paths]
    pairs = [(file, place) for file in files for place in range(len(file.items))]
    trials = [_trial(file.items[k], file.numbers[k], file.labels, same_person) for file, k in pairs]
    absent, counts, images = set(missing), defaultdict(Counter), defaultdict(set)
    for trial, part in zip(trials, parts(trials, trials), strict=True):
        if trial.image in absent:
            counts[trial.subject][part or "another day"] += 1
            images[part or "another day"].add(trial.image)
    for subject, by_part in sorted(counts.items()):
        cells = ", ".join(f"{by_part[part]} {part}" for part in (*SPLITS, "another day") if by_part[part])
        print(f"notice: {subject}: {by_part.total()} trials are left out, whose photos are missing ({cells})")
    if images["test"]:
        print(f"notice: {len(images['test'])} test photos are missing: n and chance are not those of the complete set")
    return [asdict(trial) for trial in trials if trial.image in absent]


def prepare_piece(piece: Piece, settings: Preprocessing, scale: float | None, options: dict) -> Prepared:
    """The trials of a piece, microvolts; counts by (fate, subject, granularity); facts.

    options : dict. same_person; missing: the photos whose trials are left out; fine: the fine classes.
    """
    if piece.start % (ITEMS * REOPENED) == 0:
        opened.cache_clear()  # what was read of a mapped file counts as the process's memory until it is closed
    path, file = piece.path, opened(piece.path, stamp(piece.path))
    microvolts = 1e6 * (scale or 1.0)
    trials, counts, sds = [], Counter(), defaultdict(list)
    missing, fine = set(options["missing"]), set(options["fine"])
    start, stop = round(settings.tmin * SFREQ), round(settings.tmax * SFREQ)
    for place in range(piece.start, piece.stop):
        item = file.items[place]
        trial = _trial(item, file.numbers[place], file.labels, options["same_person"])
        if trial.image in missing:
            counts[MISSING, trial.subject, "trials"] += 1
            continue
        x = item["eeg_data"].detach().double().numpy() * microvolts
        if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=1))):
            raise UserError(f"{path}: item {place}: {ELECTRODES[bad[0]]} holds NaN or infinity; fetch the file again")
        sds[trial.subject].append(float(np.median(x.std(axis=1))))
        trials.append((trial, x[:, start:stop].astype(DTYPE)))
        granularity = "fine" if item["label"] in fine else "coarse"
        counts["kept", trial.subject, f"{granularity} session {trial.session}"] += 1
    recordings = []
    for subject, amplitudes in sds.items():
        sd = float(np.median(amplitudes))
        what = f"{path}: taken for volts, the median standard deviation of {subject}'s trials"
        check_amplitude(what, sd, scale, UNIT_HINT)
        origin = {"subject": subject, "session": "1", "run": 1, "kind": "pth"}
        recordings.append(origin | {"sfreq": SFREQ, "median_sd_microvolts": round(sd, 3)})
    return trials, counts, recordings


# ---------------------------------------------------------------- what is expected, who trains and who tests


def table(meta: dict, counts: Counter) -> list[str]:
    """A line a person: trials kept, by granularity, and expected."""
    kept, sds = defaultdict(Counter), defaultdict(list)
    for (fate, subject, kind), n in counts.items():
        if fate == "kept":
            kept[subject][kind] += n
    for recording in (recording for source in meta["sources"] for recording in source["recordings"]):
        sds[recording["subject"]].append(recording["median_sd_microvolts"])
    kinds = sorted({kind for by_kind in kept.values() for kind in by_kind})
    heads = "".join(f"{kind:>20}" for kind in kinds)
    no_photo = {subject: n for (fate, subject, _), n in counts.items() if fate == MISSING}
    last = f"{'no photo':>10}" if no_photo else ""
    lines = [f"{'':8}{heads}{'trials':>10}{'complete':>10}{'median SD (µV)':>16}{last}"]
    for subject, by_kind in sorted(kept.items()):
        cells = "".join(f"{by_kind[kind]:20d}" for kind in kinds)
        complete = TRIALS.get(int(subject.removeprefix("S")), 4000)
        last = f"{no_photo.get(subject, 0):10d}" if no_photo else ""
        lines.append(f"{subject:8}{cells}{by_kind.total():10d}{complete:10d}{np.median(sds[subject]):16.1f}{last}")
    n = sum(by_kind.total() for by_kind in kept.values())
    complete = "complete: 63,850 of 80, by 16 people (3,950 of S02, 3,900 of S12)"
    sizes = ", ".join(f"{name} {len(labels)}" for name, labels in meta["granularities"].items())
    summary = f"{n} trials of {len(meta['classes'])} classes; {complete}"
    if no_photo:
        n_missing = len(meta["options"]["missing"])
        summary += f"\n{sum(no_photo.values())} trials are left out: {n_missing} photos are missing"
    return [*lines, "", summary, f"classes: {sizes}", DESCRIPTION.caution]


def parts(trials: Sequence[Trial], of_store: Sequence[Trial]) -> list[str]:
    """By position in the block of a person's class: the first 60 % train, but for their last sixth; the rest tests.

    That sixth validates. Trials of another day have no part: `--protocol day:PERSON` tests on them.
    """
    blocks = defaultdict(list)
    for trial in trials:
        blocks[trial.subject, trial.session, trial.label].append(trial)
    part_of = {}
    for (_, session, _), block in blocks.items():
        n_train = round(TRAIN * len(block))
        n_val = max(1, round(VAL * n_train)) if n_train > 1 else 0
        block_parts = ["train"] * (n_train - n_val) + ["val"] * n_val + ["test"] * (len(block) - n_train)
        for trial, part in zip(sorted(block, key=lambda trial: trial.trial), block_parts, strict=True):
            part_of[trial.key] = part if session == "1" else ""
    return [part_of[trial.key] for trial in trials]


DESCRIPTION = DatasetDescription(
    name="EEGImageNet",
    montage=montage_of(ELECTRODES)[0],
    classes=(),  # the store says them: ImageNet's wnids
    window=(0.0, N_TIMES / SFREQ),
    window_starts="the image's onset",
    reference="none",
    prepare_piece=prepare_piece,
    table=table,
    everyone=EVERYONE,
    raw_people=raw_people,
    parts=parts,
    apart="image",
    looks_at=(0.04, 0.44),
    granularities=granularities,
    caution="EEGImageNet shows a class's images in one block: where the tested person is trained on (within, joint), "
    "slow drift alone tells the class, and the shuffled-label control does not show it; --setting cross and day have "
    "no such help.",
)
