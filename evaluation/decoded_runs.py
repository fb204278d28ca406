"""Folders of decoded trials, as `evaluate.py` takes them: runs, their controls, and which of them belong together."""

import gzip
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets.alignment import ALIGNMENTS, LABELLED, METHODS, USES
from datasets.description import DATASETS, DatasetDescription, from_record, load_description
from datasets.recording import origin
from datasets.splits import PROTOCOLS
from stages.rows import PICTURE, Row, read_rows, signed
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.hub import PLAIN_FILES, local_folder
from utils.limits import MAX_WORDS
from utils.paths import ROOT, written_whole

# files of decoded trials; the last one is kept under docs/results/
DECODED = "decoded_test.jsonl", "decoded.jsonl", "retrieval.jsonl", "decoded_test.jsonl.gz"

USED = "used of the test person"  # a column of every table of scores
# arguments in a run.json that more is made of than a comparison → what they must be, in words, and whether they are
PAIR = ("two numbers", lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))
TEXT = (f"a text of at most {MAX_WORDS} characters", lambda value: isinstance(value, str) and len(value) <= MAX_WORDS)
ARGUMENTS = {
    **dict.fromkeys(("window", "band"), PAIR),
    **dict.fromkeys("downstream_dataset datasets_dir images_dir stimuli_dir captions protocol".split(), TEXT),
    "regions": ("names", lambda value: isinstance(value, list) and value and all(isinstance(v, str) for v in value)),
    "align": (f"one of {', '.join(ALIGNMENTS)}", list(ALIGNMENTS).__contains__),
    "align_method": (f"one of {', '.join(METHODS)}", list(METHODS).__contains__),
}
LEAST_TRIALS = 10  # shuffled labels of fewer may be the same by chance


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN is not


# ---------------------------------------------------------------- a run


@dataclass
class Run:
    """Decoded trials, and how they came about."""

    name: str  # the folder's, with as many of its parents as tell it from the others
    place: Path  # the folder, or the file of decoded trials
    rows: list[Row]
    record: dict = field(default_factory=dict)  # its run.json; empty without one

    @property
    def folder(self) -> Path:
        return self.place if self.place.is_dir() else self.place.parent

    @property
    def trials(self) -> list[tuple]:
        """What was decoded, and its label; a control has other labels."""
        return [(row.index, *origin(row), row.true_label) for row in self.rows]

    @property
    def argument(self) -> dict:
        return self._recorded("arguments")

    @property
    def depends_on(self) -> dict:
        """Fingerprints of what it was made from, as its record says; empty where it says nothing."""
        return self._recorded("depends_on")

    def _recorded(self, name: str) -> dict:
        return content if isinstance(content := self.record.get(name), dict) else {}

    def left_out(self, split: str) -> int:
        """How many trials of a split the run lacks, as its record says: their images had no target."""
        n = self._recorded("left_out").get(split)
        return n if type(n) is int else 0

    def recorded_place(self, argument: str) -> Path | None:
        """A place that the run's record names, relative to where the run was started or to the project."""
        place = self.argument.get(argument)
        return recorded_at(place) if place else None

    @property
    def encoder_note(self) -> str:
        """What its encoder's checkpoint lacked (--allow_partial), in words; empty where it was loaded whole."""
        loaded = self.record.get("encoder_loaded")
        if isinstance(loaded, dict) and all(type(loaded.get(name)) is int for name in ("loaded", "of")):
            return "" if loaded["loaded"] == loaded["of"] else f"{loaded['loaded']} of {loaded['of']} loaded"
        silent = "encoder_loaded" not in self.record and self.argument.get("use_pretrained_weights")
        return "nobody knows how much was loaded" if silent and self.argument.get("allow_partial") else ""

    @property
    def seed(self) -> str:
        return str(self.argument.get("seed"))

    @property
    def protocol(self) -> str:
        """Under which it was made, as its record says, or that of the encoder before it; "None" where nobody says."""
        return str(self.argument.get("protocol") or self._recorded("data").get("protocol"))

    @property
    def uses(self) -> str:
        """What was used of the test person besides the trial that is decoded; of old rows as the protocol says."""
        return self.rows[0].uses or (LABELLED if self.protocol_is("trains_on_tested") else USES[0])

    def protocol_is(self, what: str) -> bool:
        """Whether the protocol has a property; False of one that there is not."""
        return bool(getattr(PROTOCOLS.get(self.protocol.partition(":")[0]), what, False))

    @property
    def is_control(self) -> bool:
        return bool(self.argument.get("shuffle_labels"))

    @property
    def later_steps(self) -> list[str]:
        """The steps behind the encoder that are controls, where the encoder itself read true labels; else empty."""
        steps = self.record.get("shuffled")  # of generate_eeg2img.py
        return list(map(str, steps)) if isinstance(steps, list) and "encoder" not in steps else []

    def right(self, readout: str) -> list[bool]:
        return [row.readouts[readout].label == row.true_label for row in self.rows]

    @property
    def n_classes(self) -> int:
        return self.rows[0].readouts[self.main_readout].n_classes

    @property
    def main_readout(self) -> str:
        return next(iter(self.rows[0].readouts))


def recorded_at(place: str) -> Path:
    """A place that a record names, relative to where the run was started or to the project."""
    return Path(place) if Path(place).exists() else ROOT / place


def decoded_with(record: Mapping) -> tuple[str, object]:
    """ "text" or "mapper", and the checkpoint that a generating script's record names, a list of several runs'; empty
    where it names none.
    """
    kinds = {"text": record.get("projection"), "mapper": record.get("mapper")}
    return next(((kind, place) for kind, place in kinds.items() if place), ("", ""))


def decoded_file(place: Path) -> Path | None:
    """The file of decoded trials that a place is (by its name: .jsonl or .jsonl.gz) or holds."""
    if place.is_file():
        return place if place.name.endswith((".jsonl", ".jsonl.gz")) else None
    return next((place / name for name in DECODED if (place / name).is_file()), None)


def read_run(place: Path) -> Run:
    """UserError if the place holds no decoded trials, or damaged ones."""
    path = decoded_file(place)
    if path is None:
        raise UserError(f"{place} has no {' or '.join(DECODED)}; train or decode first")
    record = path.parent / "run.json"
    content = read_json(record) if record.is_file() else {}
    run = Run(place.name or "run", place, read_rows(path), content if isinstance(content, dict) else {})
    for name, (what, fits) in ARGUMENTS.items():
        if run.argument.get(name) is not None and not fits(run.argument[name]):
            raise UserError(f"{record}: {name} is {str(run.argument[name])[:80]!r}; expected {what}")
    return run


def read_runs(places: Sequence[Path]) -> list[Run]:
    """All runs of a mixture of folders and files; a folder of runs means each of them; what holds no rows is skipped.

    places : sequence of Path. OWNER/NAME on the hub is a folder as well, where rows were sent with the run.
    Raises UserError if a place is not there, or none of them holds rows.
    """
    places = [local_folder(place, "results.json", (*PLAIN_FILES, "*.jsonl")) for place in places]
    for place in places:
        if not place.exists():
            raise UserError(f"{place} is not there")
    named = [Path(os.path.normpath(place.absolute())) for place in places]
    places = list(dict.fromkeys(inner for place in named for inner in runs_in(place)))
    skipped = [place for place in places if decoded_file(place) is None]
    if len(skipped) == len(places):
        raise UserError(f"{', '.join(map(str, places))}: no {' or '.join(DECODED)} there; train or decode first")
    for place in skipped:
        print(f"notice: {place} holds no decoded trials; skipped")
    runs = [read_run(place) for place in places if place not in skipped]
    tell_apart(runs)
    return runs


def tell_apart(runs: Sequence[Run]) -> None:
    """Name runs after their folders, with as many parents as tell one from the others.

    A folder in the hub's cache, models--OWNER--NAME/snapshots/COMMIT, is OWNER/NAME.
    """
    for run in runs:
        address = re.search(r"/models--([^/]+)--([^/]+)/snapshots/[^/]+$", run.place.as_posix())
        run.name = "/".join(address.groups()) if address else run.place.name or "run"
    for depth in range(2, 1 + max((len(run.place.parts) for run in runs), default=0)):
        twice = [name for name, n in Counter(run.name for run in runs).items() if n > 1]
        for run in runs:
            if run.name in twice:
                run.name = "/".join(run.place.parts[-depth:])


def runs_in(place: Path) -> list[Path]:
    """The place itself; of a folder's rows the folder; of a folder without rows those in it that have some."""
    if place.is_file() and decoded_file(place.parent) == place:
        return [place.parent]
    if decoded_file(place) is not None or not place.is_dir():
        return [place]
    return [inner for inner in sorted(place.iterdir()) if inner.is_dir() and decoded_file(inner) is not None] or [place]


def file_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run that can be a file's, and is no other run's."""
    names: list[str] = []
    for run in runs:
        plain = name = re.sub(r"[/\\\0]", "_", run.name).lstrip(".") or "run"
        while name in names:
            name = f"{plain}-{sum(n.startswith(plain) for n in names) + 1}"
        names.append(name)
    return names


def keep_rows(run: Run, place: Path) -> None:
    """Copy a run's rows, packed, and its record. UserError where that is the run's own place."""
    if place.resolve() == run.place.resolve():
        raise UserError(f"--keep_rows: {place} is the run's own folder; choose another one")
    lines = "".join(json.dumps(content) + "\n" for content in signed(map(asdict, run.rows)))
    with written_whole(place / "decoded_test.jsonl.gz") as unfinished:
        unfinished.write_bytes(gzip.compress(lines.encode(), mtime=0))
    if run.record:
        write_json(run.record, place / "run.json")


def read_control(run: Run, suffix: str) -> Run | None:
    """The control of a run: the folder of its name with the suffix; or, where the folder around it is there with the
    suffix, that of its name there, as `retrieve.py --geometry` leaves them. UserError where it is no control of it.
    """
    name = run.place.name
    places = run.place.with_name(name + suffix), Path(f"{run.place.parent}{suffix}") / name
    place = next((place for place in places if place.exists()), None)
    if place is None or not run.place.is_dir():
        return None
    if decoded_file(place) is None:
        print(f"notice: the control {place} holds no decoded trials yet")
        return None
    control = read_run(place)
    if control.record and not control.is_control:
        raise UserError(f"{place} is not a shuffled-label control: it was made without --shuffle_labels; move it away")
    if [t[:-1] for t in control.trials] != [t[:-1] for t in run.trials]:
        raise UserError(f"{place} is not the control of this run: it was tested on other trials; move it away")
    its, own = control.rows[0].uses, run.rows[0].uses  # old rows do not say it
    if its and own and its != own:
        used = f"it used {its!r} of the test person, the run {own!r}"
        raise UserError(f"{place} is not the control of this run: {used}; move it away")
    several_classes = len({row.true_label for row in run.rows}) > 1
    if steps := control.later_steps:
        print(f"notice: {place} is a control of {', '.join(steps)} alone: its encoder read true labels")
    elif place != run.place and several_classes and len(run.rows) >= LEAST_TRIALS and control.trials == run.trials:
        raise UserError(f"{place} is not a shuffled-label control: its labels are the run's own; move it away")
    if not control.record:
        print(f"notice: {place} has no run.json: nobody can tell whether it was trained on shuffled labels")
    if not set(control.rows[0].readouts) ^ set(run.rows[0].readouts) <= {PICTURE}:
        raise UserError(f"{place} is not the control of this run: it has other read-outs; move it away")
    return control


def runs_and_controls(places: Sequence[Path], suffix: str) -> tuple[list[Run], dict[Path, Run | None]]:
    """The runs of these places, and each one's control by its place; another run's control is no run of its own."""
    runs = read_runs(places)
    controls = {run.place: read_control(run, suffix) for run in runs}
    beside = {control.place for control in controls.values() if control}  # stands in the line of its run
    return [run for run in runs if run.place not in beside], controls


def whole_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """Another run whose test trials hold all of this one's with the same answers: this one was drawn from them."""
    own = _answers(run).items()
    return next((other for other in runs if other is not run and own <= _answers(other).items()), None)


def _answers(run: Run) -> dict[tuple, dict[str, int]]:
    """Trial → read-out → label."""
    labels = [{name: readout.label for name, readout in row.readouts.items()} for row in run.rows]
    return dict(zip(run.trials, labels, strict=True))


# ---------------------------------------------------------------- several runs


def belong_together(runs: Sequence[Run]) -> list[list[Run]]:
    """Seeds of one command, and folds of leave-one-subject-out, in one group; the order of the first ones stays."""
    groups = defaultdict(list)
    for number, run in enumerate(runs):
        key = number
        if isinstance(run.record.get("fixed"), dict):
            n_trials, depends = None if is_fold(run) else len(run.rows), dict(run.depends_on)
            if run.record.get("encoder_loaded", "") is None:  # random at first: each seed has its own
                depends.pop("encoder", None)
            key = settings_but_for(run), repr(depends), tuple(run.rows[0].readouts), n_trials
        groups[key].append(run)
    return [part for group in groups.values() for part in _parts(group)]


def settings_but_for(run: Run, *loose: str) -> str:
    """What a run was asked for, in one text, but for its seeds, for which fold it is, and for what is named."""
    left_out = {"seed", "encoder_seed", *loose} | ({"protocol", "subject"} if is_fold(run) else set())
    kind = run.protocol.partition(":")[0]
    return repr([kind, *sorted((k, repr(v)) for k, v in run.record["fixed"].items() if k not in left_out)])


def _parts(group: list[Run]) -> list[list[Run]]:
    """A group as it is; or each run alone where a seed and fold is there twice (another folder of the same run).

    Seeds whose folds are other people are parts of their own: a mean over them would mean nothing.
    """
    if len({(run.seed, run.protocol) for run in group}) < len(group):
        return [[run] for run in group]
    people = defaultdict(set)
    for run in group:
        people[run.seed].add(run.protocol if is_fold(run) else "all")
    folds = list(dict.fromkeys(map(frozenset, people.values())))
    if len(folds) > 1:
        print(f"notice: the seeds of {group_name(group)} have different folds; they stand in lines of their own")
    return [[run for run in group if people[run.seed] == of_seed] for of_seed in folds]


def is_fold(run: Run) -> bool:
    """Whether a run is one of several, each of which tests on one person: left out, or alone."""
    return run.protocol_is("fold")


def description_of(run: Run) -> DatasetDescription:
    """The dataset whose classes a run's rows have. UserError where it is none, or several."""
    asked = run.argument.get("downstream_dataset")
    if "dataset" in run.record:  # one that no file of the project describes
        return from_record(run.record["dataset"], str(run.place))
    if asked in DATASETS and load_description(asked).parts:  # its store says its classes
        return load_description(asked)
    names = [asked] if asked in DATASETS else list(DATASETS)
    described = {name: load_description(name).classes for name in names}
    named = {row.true_label: row.true_name for row in run.rows}.items()
    fit = [k for k, known in described.items() if len(known) == run.n_classes and named <= set(enumerate(known))]
    if len(fit) != 1:
        raise UserError(f"{run.place}: its classes are those of {' and of '.join(fit) or 'no dataset here'}")
    return load_description(fit[0])


def group_name(group: Sequence[Run]) -> str:
    """The common name of seeds or folds."""
    if len(group) == 1:
        return group[0].name
    names = [run.name for run in group]
    people = [run.protocol.partition(":")[2] for run in group]
    if is_fold(group[0]) and all(map(str.startswith, names, people)):  # they all lie in the method's folder
        names = [f"{run.place.parent.name}/{run.name}" for run in group]
    if is_fold(group[0]) and all("/" in name for name in names):  # METHOD/PERSON: the folder's name is the method
        names = [name.replace(person, "") for name, person in zip(names, people, strict=True)]
    before = os.path.commonprefix(names)
    after = os.path.commonprefix([name[len(before) :][::-1] for name in names])[::-1]
    number = r"((^|[-_./])(seed|s|loso|fold|sub-?)0*)?[-_.:]?$"  # what stands before a seed or a person
    common = re.sub(number, "", before, flags=re.IGNORECASE).rstrip("/-_.") + after or group[0].name
    folds = {run.protocol for run in group if is_fold(group[0])}
    counts = {"folds": len(folds), "seeds": len({run.seed for run in group})}
    return f"{common} ({', '.join(f'{n} {kind}' for kind, n in counts.items() if n > 1)})"


def group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each group, and no name twice."""
    names = [group_name(group) for group in groups]
    first = [group[0].name for group in groups]
    return [name if names.count(name) == 1 else f"{name}, {run}" for name, run in zip(names, first, strict=True)]


def families(groups: Sequence[Sequence[Run]], by: str) -> list[list[int]]:
    """Places of the groups that differ in one flag alone, such as --window, where there are two or more of them."""
    alike = defaultdict(list)
    first = [group[0] for group in groups]
    for place, run in enumerate(first):
        if isinstance(run.record.get("fixed"), dict):
            settings = settings_but_for(run, by, "model_dir", "output_dir")
            alike[settings, repr(run.depends_on.get("store")), run.main_readout].append(place)
    return [places for places in alike.values() if len({repr(first[k].argument.get(by)) for k in places}) > 1]
