"""EEG-ImageNet: 4,000 ImageNet photos of 80 classes, seen by 16 people; 62 electrodes, 500 ms a photo. Everything particular to it.

Zhu et al., arXiv 2406.07151. A class's 50 photos were shown one after the other: the first 30 train, the last 20 test, so that slow drift
tells a class (Li et al., TPAMI 2020). The files do not say the electrodes' order, which is that of the authors' montage, nor the unit.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets.description import DatasetDescription
from datasets.montage import Montage
from datasets.prepare import AMPLITUDES
from datasets.preprocessing import Preprocessing
from datasets.recording import DTYPE, Piece, Trial
from utils.errors import UserError, loading

ELECTRODES = tuple(
    "FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 C1 CZ C2 C4 C6 T8 TP7 CP5 CP3 CP1 "
    "CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2".split()
)
SFREQ = 1000.0  # Hz
N_TIMES = 501
ITEM = {"eeg_data", "granularity", "subject", "label", "image"}  # of a trial; "stage" too in the file of the second day
TRAIN, VAL = 0.6, 1 / 6  # share of a block that trains; share of that, at its end, that validates: 30 and 5 of 50
GROUP = 8  # classes of a fine group
PEOPLE = 16  # codes 0 to 15; the second day counts on
TRIALS = {subject: 4000 for subject in range(16)} | {2: 3950, 12: 3900}  # 63,850 in all
ITEMS, REOPENED = 200, 10  # trials of a piece; pieces after which a file is opened anew: 0.5 GB

# ---------------------------------------------------------------- the file


@dataclass(frozen=True)
class _Opened:
    """A file with its arrays mapped, and where each of its trials belongs."""

    items: list
    labels: tuple[str, ...]
    coarse: frozenset[str]
    numbers: tuple[int, ...]  # of a trial among its person's in this file, from 1


@lru_cache(maxsize=2)
def opened(path: Path, stamp: tuple[int, int]) -> _Opened:
    """Open a .pth of the data set: weights only, mapped. UserError where it is not what it should be, with the item's number."""
    import torch

    with loading(
        str(path),
        "expected an EEG-ImageNet .pth of tensors and plain containers, in PyTorch's zip format; fetch it again",
    ):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or set(content) != {"dataset", "labels", "images"}:
        said = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has {said}; expected dataset, labels and images")
    items, labels = content["dataset"], content["labels"]
    if not isinstance(items, list) or not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise UserError(f"{path}: expected lists of trials and of labels")
    coarse, numbers, seen = set(), [], Counter()
    for place, item in enumerate(items):
        if not isinstance(item, dict) or not ITEM <= set(item) <= ITEM | {"stage"}:
            keys = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise UserError(f"{path}: item {place} has {keys}; expected {sorted(ITEM)}")
        x = item["eeg_data"]
        if not isinstance(x, torch.Tensor) or x.shape != (len(ELECTRODES), N_TIMES) or not x.is_floating_point():
            raise UserError(
                f"{path}: item {place}: eeg_data is {tuple(getattr(x, 'shape', ()))}; expected ({len(ELECTRODES)}, {N_TIMES})"
            )
        if item["label"] not in labels or type(item["subject"]) is not int or item["subject"] < 0:
            raise UserError(f"{path}: item {place} has the label {item['label']!r} and subject {item['subject']!r}")
        if item["granularity"] not in ("coarse", "fine") or not _plain(item["image"]):
            raise UserError(
                f"{path}: item {place} has the granularity {item['granularity']!r} and image {item['image']!r}"
            )
        if item["granularity"] == "coarse":
            coarse.add(item["label"])
        seen[item["subject"]] += 1
        numbers.append(seen[item["subject"]])
    return _Opened(items, tuple(labels), frozenset(coarse), tuple(numbers))


def _plain(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) < 200 and not set(name) & set("/\\\0") and name not in (".", "..")


def stamp(path: Path) -> tuple[int, int]:
    """What tells a file from one that takes its place; UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path} is not there; docs/datasets.md says where it comes from")
    return path.stat().st_size, path.stat().st_mtime_ns


def pieces(paths: Sequence[Path]) -> list[Piece]:
    """The files, in pieces of some hundred trials. UserError where two files count classes in another order."""
    found, first = [], None
    for path in paths:
        here = opened(path, stamp(path))
        first = first or here
        if here.labels != first.labels:
            raise UserError(f"{path} has other labels, or in another order, than {paths[0]}; are both of EEG-ImageNet?")
        n = len(here.items)
        found += [Piece(path, start, min(start + ITEMS, n)) for start in range(0, n, ITEMS)]
    return found


def facts(paths: Sequence[Path], names: Path | None = None) -> dict:
    """Classes, and which of them are coarse, or of which fine group, for the store's metadata.

    names : Path, optional. Lines "WNID name, …", as ImageNet's synset maps have; else classes are called by their wnids.
    """
    files = [opened(path, stamp(path)) for path in paths]
    labels, coarse = files[0].labels, frozenset().union(*(file.coarse for file in files))
    fine = [k for k, name in enumerate(labels) if name not in coarse]
    groups = {f"fine{g}": fine[GROUP * g : GROUP * (g + 1)] for g in range(-(-len(fine) // GROUP))}
    whole = {"coarse": [k for k, name in enumerate(labels) if name in coarse]} | groups
    called = {}
    if names is not None:
        with loading(str(names), "expected lines of a wnid and a name"):
            lines = [line.split(maxsplit=1) for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
            called = {wnid: name.split(",")[0].strip() for wnid, name in lines}
        if lacking := [label for label in labels if label not in called]:
            raise UserError(f"{names} has no name of {lacking[0]} and {len(lacking) - 1} more of the classes")
    return {
        "classes": [called.get(label, label) for label in labels],
        "electrodes": list(ELECTRODES),
        "granularities": {k: v for k, v in whole.items() if v},
    }


def check_people(paths: Sequence[Path], same_person: Mapping[str, Sequence[str]]) -> None:
    """UserError where a code of the second day has no person, who would be taken for a new one; or where a named code is not there."""
    items = [item for path in paths for item in opened(path, stamp(path)).items]
    second = {str(item["subject"]) for item in items if item["subject"] >= PEOPLE or "stage" in item}
    if lacking := sorted(second - set(same_person), key=int):
        raise UserError(
            f"the codes {', '.join(lacking)} are of the second day: say whose they are, as in --same_person {lacking[0]}=3, or the same "
            "person would train and test"
        )
    if unknown := sorted(set(same_person) - {str(item["subject"]) for item in items}, key=int):
        raise UserError(f"--same_person {unknown[0]}=…: no trial has the code {unknown[0]}")


def granularities(meta: Mapping) -> dict[str, list[int]]:
    """Labels of the coarse classes and of each fine group, as the store says."""
    found = meta.get("granularities")
    n = len(meta.get("classes", []))
    fits = isinstance(found, dict) and all(
        isinstance(of, list) and of and all(type(k) is int and 0 <= k < n for k in of) for of in found.values()
    )
    if not fits:
        raise ValueError("it does not say which of its classes are coarse")
    return found


# ---------------------------------------------------------------- a piece → trials


def prepare_piece(
    piece: Piece, settings: Preprocessing, scale: float | None, options: dict
) -> tuple[list[tuple[Trial, np.ndarray]], Counter, list[dict]]:
    """The trials of a piece, microvolts; counts by (fate, subject, granularity); facts. `options`: same_person."""
    if piece.start % (ITEMS * REOPENED) == 0:
        opened.cache_clear()  # what was read of a mapped file counts as the process's memory until it is closed
    file, path = opened(piece.path, stamp(piece.path)), piece.path
    microvolts = 1e6 * (1.0 if scale is None else scale)
    kept, counts, sds = [], Counter(), defaultdict(list)
    start, stop = round(settings.tmin * SFREQ), round(settings.tmax * SFREQ)
    for place in range(piece.start, piece.stop):
        item = file.items[place]
        x = item["eeg_data"].double().numpy() * microvolts
        if not np.isfinite(x).all():
            bad = ELECTRODES[int(np.argmin(np.isfinite(x).all(axis=1)))]
            raise UserError(f"{path}: item {place}: {bad} holds NaN or infinity; fetch the file again")
        subject, session = options["same_person"].get(str(item["subject"]), [f"S{item['subject']:02d}", "1"])
        sds[subject].append(float(np.median(x.std(axis=1))))
        key = f"{subject}-{session}-r1-t{file.numbers[place]:05d}"
        trial = Trial(
            key,
            file.labels.index(item["label"]),
            subject,
            session,
            1,
            file.numbers[place],
            f"{item['label']}/{item['image']}",
        )
        kept.append((trial, x[:, start:stop].astype(DTYPE)))
        counts["kept", subject, f"{item['granularity']} session {session}"] += 1
    for subject, of in sds.items():
        amplitude = float(np.median(of))
        if scale is None and not AMPLITUDES[0] <= amplitude <= AMPLITUDES[1]:
            raise UserError(
                f"{path}: taken for volts, the median standard deviation of {subject}'s trials is {amplitude:.4g} microvolts; expected "
                f"{AMPLITUDES[0]:g} to {AMPLITUDES[1]:g}: the file does not say its unit; --scale sets a factor and goes on (1e-6: it is microvolts)"
            )
    found = [{"subject": subject, "session": "1", "run": 1, "kind": "pth", "sfreq": SFREQ,
              "median_sd_microvolts": round(float(np.median(of)), 3)} for subject, of in sds.items()]  # fmt: skip
    return kept, counts, found


# ---------------------------------------------------------------- what is expected, who trains and who tests


def table(meta: dict, counts: Counter) -> list[str]:
    """A line a person: trials kept, by granularity, and expected."""
    kept = defaultdict(Counter)
    for key, n in counts.items():
        if key[0] == "kept":
            kept[key[1]][key[2]] += n
    kinds = sorted({kind for of in kept.values() for kind in of})
    sds = defaultdict(list)
    for source in meta["sources"]:
        for r in source["recordings"]:
            sds[r["subject"]].append(r["median_sd_microvolts"])
    lines = [
        f"{'':8}" + "".join(f"{kind:>20}" for kind in kinds) + f"{'trials':>10}{'complete':>10}{'median SD (µV)':>16}"
    ]
    for subject, of in sorted(kept.items()):
        complete = TRIALS.get(int(subject.removeprefix("S")), 4000)
        cells = "".join(f"{of[kind]:20d}" for kind in kinds)
        lines.append(f"{subject:8}{cells}{sum(of.values()):10d}{complete:10d}{np.median(sds[subject]):16.1f}")
    n = sum(sum(of.values()) for of in kept.values())
    lines += [
        "",
        f"{n} trials of {len(meta['classes'])} classes; complete: 63,850 of 80, by 16 people (3,950 of S02, 3,900 of S12)",
    ]
    lines.append("classes: " + ", ".join(f"{name} {len(of)}" for name, of in meta["granularities"].items()))
    lines.append(DESCRIPTION.caution)
    return lines


def parts(trials: Sequence[Trial], of_store: Sequence[Trial]) -> list[str]:
    """By position in the block of a person's class: the first 60 % train, of which the last sixth validates; the rest tests.

    Trials of another day have no part: `--protocol day:PERSON` tests on them.
    """
    blocks = defaultdict(list)
    for trial in trials:
        blocks[trial.subject, trial.session, trial.label].append(trial)
    part_of = {}
    for (_, session, _), of in blocks.items():
        of = sorted(of, key=lambda trial: trial.trial)
        n_train = round(TRAIN * len(of))
        n_val = max(1, round(VAL * n_train)) if n_train > 1 else 0
        for place, trial in enumerate(of):
            part = "train" if place < n_train - n_val else "val" if place < n_train else "test"
            part_of[trial.key] = part if session == "1" else ""
    return [part_of[trial.key] for trial in trials]


DESCRIPTION = DatasetDescription(
    name="EEGImageNet",
    montage=Montage.by_letters(ELECTRODES),
    classes=(),  # the store says them: ImageNet's wnids
    window=(0.0, N_TIMES / SFREQ),
    window_starts="the image's onset",
    reference="none",
    prepare_piece=prepare_piece,
    table=table,
    parts=parts,
    apart="image",
    looks_at=(0.04, 0.44),
    granularities=granularities,
    caution="EEGImageNet shows a class's images in one block: where the tested person is trained on (within, joint), slow drift alone tells the "
    "class, and the shuffled-label control does not show it; --setting cross and day have no such help.",
)
