"""Recordings of one's own: what is found in them → a description, and their trials. prepare_data_own.py is the command.

What nobody said is chosen by rules that the closing table states: classes (every value of the events), people (dealt
out by name), words (the class's name), electrodes (those that all recordings have), rate (the lowest one).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.description import DATASETS, DatasetDescription, listed_parts
from datasets.electrodes import montage_of, nearest_names, numbered_positions
from datasets.montage import Montage
from datasets.recording import Piece, Recording
from utils.errors import UserError, some
from utils.photos import OddPictures, whole_picture
from utils.signals import resample, resampling_ratio

if TYPE_CHECKING:  # MNE is slow to import
    from readers.any_recording import Found

AVERAGED = 16  # electrodes from which on their mean is taken off by default; of a few it would take the signal with it
LEAST_RATE, MOST_CLASSES = 100.0, 200  # Hz; more classes than that are no classes
SHARES = {"test": 0.2, "val": 0.2}  # of people
IMAGE_SHARES = {"test": 0.2, "val": 0.1}  # of images, or of concepts
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class Recorded(Piece):
    """One recording: its file, and whose it is."""

    subject: str = ""
    session: str = "1"
    run: int = 1
    opened: Callable | None = None  # opens it, where MOABB or another library has it: () → MNE recording
    table: Path | None = None  # of onsets
    not_eeg: tuple[str, ...] = ()  # channels that a table beside it says are no EEG

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Reading:
    """How all recordings of a store are read. Everything is a plain value: a worker gets it."""

    electrodes: tuple[str, ...] = ()
    sfreq: float = 0.0  # Hz, of the store
    class_of: Mapping[str, int] = field(default_factory=dict)  # what an event says → label
    window: tuple[float, float] = (0.0, 4.0)  # seconds after the event
    renamed: Mapping[str, str] = field(default_factory=dict)
    trigger: str | None = None
    class_column: str | None = None
    image_column: str | None = None
    image_of: Mapping[str, str] = field(default_factory=dict)  # what the column says → the picture, below images_dir
    table_rate: float | None = None  # Hz, of tables of samples without times


def recording_facts(file: Recorded, how: Reading, raw=None) -> "Found":
    """What one recording holds, without its signal (`readers.any_recording.Found`).

    Electrodes that are named by number, or by their maker's own system, get the name of the place where they are.
    """
    from readers.any_recording import file_facts  # MNE is slow to import

    raw = file.opened() if file.opened and raw is None else raw
    rules = how.renamed, how.table_rate, how.trigger, file.table, how.class_column
    found = file_facts(file.path, *rules, raw, file.not_eeg)
    positions = {name: xyz for name, xyz in found.positions.items() if name in found.others}
    if len(positions) <= len(found.others) / 2:
        positions = numbered_positions(found.others)
    names = nearest_names(positions) if positions else {}
    names = {channel: place for channel, place in names.items() if place not in found.electrodes}
    found.electrodes |= {place: channel for channel, place in names.items()}
    found.others = [channel for channel in found.others if channel not in names]
    if names:
        known = some([f"{channel} is {place}" for channel, place in names.items()])
        found.notes.append(f"electrodes known by their positions: {known}")
    return found


def recordings(file: Recorded, how: Reading) -> Iterator[Recording]:
    """One recording: electrodes in the store's order, at the store's rate; events of other kinds are counted."""
    from readers.recordings import open_recording, read_signal

    raw = file.opened() if file.opened else open_recording(file.path, how.table_rate, how.trigger, how.renamed)
    found = recording_facts(file, how, raw)
    signal, _ = read_signal(file.path, [found.electrodes[name] for name in how.electrodes], raw)
    signal, ratio = resample(signal, found.sfreq, how.sfreq), resampling_ratio(found.sfreq, how.sfreq)
    kept, images, left_out = [], [], Counter()
    for number, (seconds, said) in enumerate(found.events, start=1):
        if said not in how.class_of:
            left_out["left out: events of other kinds", said[:60]] += 1
            continue
        label, image = how.class_of[said], ""
        if how.image_column:
            shown = found.rows[number - 1].get(how.image_column, "")
            if shown not in how.image_of:
                left_out["dropped: its picture is not there", label] += 1
                continue
            image = how.image_of[shown]
        begins, ends = seconds + how.window[0], seconds + how.window[1]
        faults = {"samples are missing": found.breaks, "marked as bad": found.bad}
        over = [cause for cause, spans in faults.items() if any(a < ends and b > begins for a, b in spans)]
        if over:
            left_out[f"dropped: {over[0]}", label] += 1
            continue
        kept.append((round(seconds * found.sfreq * ratio), label, number))  # its own clock: the rate need not be whole
        images.append(image)
    onsets, labels, numbers = np.array(kept, int).reshape(-1, 3).T
    recording = Recording(signal, how.sfreq, onsets, labels, file.subject, file.session)
    recording.run, recording.numbers, recording.left_out = file.run, numbers, left_out
    recording.images, recording.kind = images if how.image_column else [], "recordings"
    recording.notes = {"events_from": found.events_from, "sfreq_of_file": found.sfreq}
    yield recording


# ---------------------------------------------------------------- what the recordings have in common


def common_electrodes(
    found: Sequence["Found"], files: Sequence[Recorded], asked: Sequence[str] | None
) -> tuple[Montage, list[str]]:
    """The montage of the electrodes that all recordings have (or that were asked for), and what to say about it."""
    lines = []
    everywhere = [name for name in found[0].electrodes if all(name in f.electrodes for f in found)]
    if asked:
        if missing := [name for name in asked if name not in everywhere]:
            lacks = next(file for f, file in zip(found, files, strict=True) if missing[0] not in f.electrodes)
            these = f"{lacks} has no {missing[0]}; in all are {', '.join(everywhere) or 'none'}"
            raise UserError(f"--electrodes {some(missing)}: not in all recordings: {these}")
        everywhere = list(asked)
    montage, unknown = montage_of(everywhere)
    left_out = sorted({*unknown, *(name for f in found for name in f.others)})
    rare = sorted({name for f in found for name in f.electrodes} - set(everywhere))
    channels = left_out or rare or ["(none is EEG)"]
    hint = f"; --rename '{channels[0]}=Cz' says which one a channel is"
    if not montage.electrodes:
        raise UserError(f"{files[0]}: no electrode of the 10-20 system among its channels {some(channels, 30)}{hint}")
    if left_out:
        named = "channels left out, as no electrode of the 10-20 system has their name"
        lines.append(f"{named}: {some(left_out, 12)}{hint}")
    if rare and not asked:
        lines.append(f"electrodes that not all recordings have are left out: {some(rare, 12)}")
    return montage, lines


def classes_of(
    found: Sequence["Found"], asked: Sequence[str] | None, where: str
) -> tuple[list[str], dict[str, int], list[str]]:
    """Class names, {what an event says: label}, and what to say about them.

    asked : sequence of str, optional. --events VALUE=CLASS; several values may mean one class. Else each value is one.
    """
    counts = Counter(said for f in found for _, said in f.events)
    if not counts:
        hint = "--trigger names their channel, or NAME_events.tsv with onset and trial_type lies beside each"
        raise UserError(f"{where}: no events in any of the {len(found)} recordings; {hint}")
    by_count = ", ".join(f"{said} ({n})" for said, n in counts.most_common(12)) + (" …" if len(counts) > 12 else "")
    if asked:
        pairs = [one.rpartition("=")[::2] for one in asked]
        if not all(value and name for value, name in pairs):
            raise UserError(f"--events {' '.join(asked)}: expected VALUE=CLASS, as in 1=face 2=house")
        if missing := [value for value, _ in pairs if value not in counts]:
            raise UserError(f"--events: no recording has {', '.join(missing)}; they have {by_count}")
        names = list(dict.fromkeys(name for _, name in pairs))
        class_of = {value: names.index(name) for value, name in pairs}
        lines = []
    else:
        said = sorted(counts, key=natural)
        names = [re.sub(r"[/\\]+", "_", text) for text in said]  # a name, and no path
        names = names if len(set(names)) == len(names) else said
        class_of = {text: label for label, text in enumerate(said)}
        lines = [f"classes: every value of the events is one: {by_count}; --events VALUE=CLASS … chooses"]
    if len(names) < 2:
        raise UserError(f"{where}: one class, {names[0]!r}; two or more are needed. The events say: {by_count}")
    if len(names) > MOST_CLASSES:
        raise UserError(f"{where}: {len(names)} different events; --events VALUE=CLASS … says which classes they are")
    if wrong := [name for name in names if not name.isprintable() or len(name) > 100 or "/" in name]:
        raise UserError(f"{where}: the class {wrong[0][:60]!r} is no name; --events VALUE=CLASS gives it one")
    return names, class_of, lines


def natural(text: str) -> list:
    """Key that sorts P2 before P10."""
    parts = [part.lstrip("0") if part.isdecimal() else part for part in re.split(r"(\d+)", text) if part]
    return [(0, len(part), part) if part.isdecimal() or not part else (1, 0, part.lower()) for part in parts]


def deal_people(people: Sequence[str], asked: str | None) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Who trains, validates and tests: as --people TRAIN/VAL/TEST says, or by a rule; {} for one or two people."""
    if asked:
        sides = [tuple(name for name in side.split("+") if name) for side in asked.split("/")]
        named = sum(sides, ())
        if len(sides) != 3 or len(set(named)) != len(named) or not sides[0] or not sides[2]:
            raise UserError(f"--people {asked}: expected TRAIN/VAL/TEST, each person once, as in P1+P2+P3/P4/P5")
        if unknown := ", ".join(name for name in named if name not in people):
            raise UserError(f"--people: nobody is called {unknown}; the recordings are of {', '.join(people)}")
        return dict(zip(("train", "val", "test"), sides, strict=True)), []
    if len(people) < 3:
        return {}, []
    n = {split: max(1, round(share * len(people))) for split, share in SHARES.items()}
    test, rest = people[-n["test"] :], people[: -n["test"]]
    dealt = {"train": tuple(rest[: -n["val"]]), "val": tuple(rest[-n["val"] :]), "test": tuple(test)}
    said = ", ".join(f"{split} {'+'.join(names)}" for split, names in dealt.items())
    rule = "the last fifth by name tests, the fifth before it validates"
    return dealt, [f"people: {said} ({rule}); --people TRAIN/VAL/TEST or a run's --protocol says otherwise"]


def usual_protocol(files: Sequence[Recorded], dealt: Mapping) -> str:
    """The protocol of a run that names none: people apart where there are three, else sessions, runs, later trials."""
    if dealt:
        return "published"
    people = sorted({file.subject for file in files}, key=natural)
    subject = max(people, key=lambda who: sum(file.subject == who for file in files))
    own = [file for file in files if file.subject == subject]
    if len({file.session for file in own}) > 1:
        return f"within:{subject}"
    return f"run:{subject}/{max(file.run for file in own)}" if len(own) > 1 else f"later:{subject}"


# ---------------------------------------------------------------- words


def spoken(name: str) -> str:
    """A class's name in words: "left_hand" → "left hand", "leftHand" → "left hand", "3" → "class 3"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[_\-.]+", " ", name)).strip().lower()
    return words if re.search(r"[^\W\d]", words) and len(words) > 1 else f"class {words}"


def words_by_default(names: Sequence[str], seen: bool) -> dict:
    """Keywords, sentences and prompts from the classes' names, as `DatasetDescription` has them."""
    words = [spoken(name) for name in names]
    things = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words]
    does, did, asked = ("sees", "saw", "see") if seen else ("imagines", "imagined", "imagine")
    forms = f"The person {does} {{}}.", f"What the person {did} is {{}}.", "This is the brain's answer to {}."
    return {
        "keywords": {label: (word,) for label, word in enumerate(words)},
        "phrasings": {label: tuple(form.format(thing) for form in forms) for label, thing in enumerate(things)},
        "image_prompts": {label: f"a photo of {thing}" for label, thing in enumerate(things)},
        "system_prompt": f"You read brain recordings and say what a person {did}.",
        "user_prompt": f"This is an EEG recording of one trial: {{eeg}} What did the person {asked}?",
    }


# ---------------------------------------------------------------- pictures


def photos_below(folder: Path) -> list[Path]:
    """All photos of a folder, however deep, by name; hidden files are none."""
    inside = [path for path in folder.rglob("*") if path.suffix.lower() in PHOTOS and path.is_file()]
    shown = [path for path in inside if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: natural(str(path)))


def pictures_of(name: str, folder: Path) -> list[Path]:
    """The pictures below a folder that are named after a class: by their file, or by a folder above them.

    Any suffix, any depth; plural and numbers behind the name are allowed: face.jpg, faces/Don_1.jpg, face_03.png.
    """
    word = re.escape(spoken(name)).replace(r"\ ", r"[ _-]*")
    named = re.compile(rf"(?i){word}(e?s)?[ _.-]*\d*")
    below = [(path, path.relative_to(folder)) for path in photos_below(folder)]
    return [path for path, p in below if any(named.fullmatch(part) for part in (p.stem, *p.parts[:-1]))]


def stimuli_of(names: Sequence[str], folder: Path) -> tuple[dict[int, str], list[str]]:
    """A picture for each class, the first of its pictures: label → path below the folder; and what to say about it."""
    if not folder.is_dir():
        raise UserError(f"--stimuli_dir {folder} is no folder")
    fits = {label: pictures_of(name, folder) for label, name in enumerate(names)}
    chosen = {label: paths[0].relative_to(folder).as_posix() for label, paths in fits.items() if paths}
    odd = OddPictures()
    for path in dict.fromkeys(chosen.values()):
        odd.add(path, whole_picture(folder / path, "stimulus photo", "replace it, or name another folder"))
    odd.report(f"pictures in {folder}")
    lacking = [name for label, name in enumerate(names) if label not in chosen]
    lines = [f"no picture in {folder} is named after {some(lacking)}"] if lacking else []
    return chosen, [*lines, f"pictures: {len(chosen)} of {len(names)} classes have one in {folder}"]


def shown_pictures(found: Sequence["Found"], column: str, folder: Path) -> tuple[dict[str, str], list[str]]:
    """{what the image column says: path below the folder}, of pictures that are there; and what to say about them."""
    said = sorted({row.get(column, "") for f in found for row in f.rows} - {"", "n/a"})
    if not said:
        columns = ", ".join(sorted({name for f in found for row in f.rows[:1] for name in row}))
        raise UserError(f"--image_column {column}: no table of events has it; they have {columns or 'no tables'}")
    photos = [path.relative_to(folder) for path in photos_below(folder)] if folder.is_dir() else []
    by_name: dict[str, list[Path]] = {}
    for path in photos:
        for name in (path.as_posix(), path.name, path.stem):
            by_name.setdefault(name, []).append(path)
    image_of = {}
    for text in said:
        tail = text.replace("\\", "/").lstrip("./")
        fits = by_name.get(tail) or by_name.get(Path(tail).name) or by_name.get(Path(tail).stem) or []
        if len(fits) == 1 or (fits and fits[0].as_posix() == tail):
            image_of[text] = fits[0].as_posix()
        elif fits:
            raise UserError(f"--image_column {column}: {text!r} may be {fits[0]} or {fits[1]}; name the folder as well")
    if not image_of:
        raise UserError(f"--images_dir {folder} has none of the {len(said)} pictures; {said[0]!r} is the first")
    missing = [text for text in said if text not in image_of]
    lines = [f"pictures that are not there, their trials are left out: {some(missing)}"] if missing else []
    return image_of, [*lines, f"pictures shown: {len(image_of)} of {len(said)} are in {folder}"]


def deal_images(label_of: Mapping[str, int], by_concept: bool) -> dict[str, str]:
    """The part of each image: a fifth tests and a tenth validates, of each class; or of the classes, by concept."""
    groups: dict[int, list[str]] = {}
    for image, label in label_of.items():
        groups.setdefault(0 if by_concept else label, []).append(image)
    part_of, rng = {}, np.random.default_rng(0)
    for _, images in sorted(groups.items()):
        units = sorted({label_of[image] for image in images}) if by_concept else sorted(images)
        order = [units[k] for k in rng.permutation(len(units))]
        n = {part: max(1, round(share * len(units))) if len(units) > 2 else 0 for part, share in IMAGE_SHARES.items()}
        parts = ["test"] * n["test"] + ["val"] * n["val"]
        of_unit = dict(zip(order, parts + ["train"] * (len(units) - len(parts)), strict=True))
        part_of |= {image: of_unit[label_of[image] if by_concept else image] for image in images}
    return part_of


# ---------------------------------------------------------------- the description


def own_name(text: str) -> str:
    """A dataset's name from a folder's or a flag's; never one that the project has."""
    name = re.sub(r"\W+", "_", text).strip("_")[:60] or "own"
    return f"{name}_own" if name in DATASETS else name


def describe(name: str, montage, names: Sequence[str], how: Reading, **facts) -> DatasetDescription:
    """The description of recordings of one's own; `facts`: people, protocol, stimuli, part_of, apart, images_dir, …"""
    words, part_of = words_by_default(names, facts.pop("seen", False)), facts.get("part_of")
    return DatasetDescription(
        name=name, montage=montage, classes=tuple(names), window=how.window, window_starts="the event",
        epochs=20, warmup_epochs=5, image_model="stabilityai/stable-diffusion-2-1",
        parts=partial(listed_parts, part_of) if part_of else None,
        recordings=partial(recordings, how=how), **words, **facts,
    )  # fmt: skip


def as_known(known: DatasetDescription, how: Reading) -> DatasetDescription:
    """A dataset of the project, read through another source: its words and people; its classes by name."""
    labels = {spoken(name): label for label, name in enumerate(known.classes)}
    unknown = [said for said in how.class_of if spoken(said) not in labels]
    if unknown:
        raise UserError(f"{known.name} has the classes {', '.join(known.classes)}; the events say {some(unknown)}")
    how = replace(how, class_of={said: labels[spoken(said)] for said in how.class_of})
    return replace(known, window=how.window, options={}, recordings=partial(recordings, how=how))


# ---------------------------------------------------------------- what is said


def print_found(description: DatasetDescription, files: Sequence[Recorded], found: Sequence["Found"], settings) -> None:
    """Print what the recordings hold and how they will be read."""
    electrodes, sources = description.montage.electrodes, Counter(f.events_from or "nowhere" for f in found)
    people = sorted({file.subject for file in files}, key=natural)
    minutes = sum(f.n_times / f.sfreq for f in found) / 60
    sessions = len({(file.subject, file.session) for file in files})
    whose = f"{sessions} sessions of {len(people)} people: {some(people, 12)}"
    print(f"\n{description.name}: {len(files)} recordings, {minutes:.1f} minutes, {whose}")
    by_region = ", ".join(f"{name} {n}" for name, n in Counter(description.montage.region_names).items())
    print(f"{len(electrodes)} electrodes ({by_region}): {some(electrodes, 16)}")
    how = description.recordings.keywords["how"]
    counts = Counter(description.classes[how.class_of[s]] for f in found for _, s in f.events if s in how.class_of)
    where = ", ".join(f"{name} ({n})" for name, n in sources.items())
    print(f"events from {where}: {', '.join(f'{name} {counts[name]}' for name in description.classes)}")
    print(
        f"read as: {how.sfreq:g} Hz, {settings.l_freq:g} to {settings.h_freq:g} Hz, reference {settings.reference}, "
        f"{settings.tmin:g} to {settings.tmax:g} s after the event; a run without --protocol: {description.protocol}\n"
    )
    for note, n in Counter(note for f in found for note in f.notes).items():
        print(f"notice: {note}" + (f" (in {n} of {len(found)} recordings)" if n < len(found) else ""))


def closing(said: Sequence[str], store: Path) -> Callable:
    """What the closing table says of recordings of one's own (`DatasetDescription.closing`)."""
    return partial(_closing, tuple(said), str(store))


def _closing(said: Sequence[str], store: str, options: dict, sources: list, counts: Counter) -> tuple[dict, list[str]]:
    lines = list(said)
    flat = sorted({name for s in sources for r in s["recordings"] for name in r.get("flat_electrodes", ())})
    if flat:
        lines.append(f"electrodes that never change in some recording: {', '.join(flat)}")
    others = Counter()
    for (fate, *_, event), n in counts.items():
        if fate.startswith("left out"):
            others[event] += n
    if others:
        lines.append("events of other kinds: " + ", ".join(f"{event} ({n})" for event, n in others.most_common(12)))
    n_people = len({r["subject"] for s in sources for r in s["recordings"]})
    kept = sum(n for key, n in counts.items() if key[0] == "kept")
    lines.append(f"{kept} trials of {n_people} people: docs/own_data.md says what a score on so many can mean")
    lines.append(f"next: python baseline.py --model csp_lda --datasets_dir {store} --output_dir RUN")
    return {}, lines
