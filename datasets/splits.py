"""Protocols: which trials of a store train, validate and test. A run chooses: `--protocol NAME` or `NAME:PERSON`.

published        the people of the published splits
loso:PERSON      leave one subject out: PERSON tests. The others follow in alphabetical order (behind the last comes the
                 first): as many validate as in the published splits (one where there are none), the rest train
within:PERSON    one person across sessions: the dataset's test sessions test; of the earlier ones the last validates
                 where there are three sessions or more in all. With two, nothing validates; the last epoch is tested
people:TEST/VAL  these people test and validate, all others train: people:B06+B07/B05
run:PERSON/RUN   leave one run of PERSON out: it tests, the next one validates (behind the last comes the first), the
                 others train: run:P1/3, or run:P1/02.3 with the session. With two runs nothing validates; nor with
                 run:P1/3/all, where all others train and the last epoch is tested
later:PERSON     the trials of PERSON in the order in which they were recorded: of each run the last fifth tests, the
                 fifth before it validates. For whoever has one run: neighbouring trials are alike for other reasons too

Datasets of seen images say themselves which trials test (`DatasetDescription.parts`): THINGS by concept, EEG-ImageNet
by position in the block. There
within:PERSON    one person's training trials train, the held-out ones validate, the test trials test
cross:PERSON     PERSON's test trials test; training and held-out trials of all others train and validate
joint            all people as in within
day:PERSON       another day of one person tests; of the first day the held-out trials validate and the others train

Nothing that tests is ever used to choose: `check_no_leak` asks what the protocol promises (no person, or no session and
no trial, in two splits). `--setting NAME --subject PERSON` is another spelling of `--protocol NAME:PERSON`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from datasets.description import SPLITS, DatasetDescription
from datasets.recording import Trial
from utils.errors import UserError

Split = dict[str, list[Trial]]


def published(store, description: DatasetDescription, person: str) -> Split:
    """The published people; a file in CBraMod's layout says itself who is where."""
    split_of = store.own_splits or {t.key: description.split_of(t.subject) for t in store.trials}
    return {split: [t for t in store.trials if split_of[t.key] == split] for split in SPLITS}


def leave_one_subject_out(store, description: DatasetDescription, person: str) -> Split:
    """`person` tests, the next ones in alphabetical order validate."""
    people = _people(store, person, at_least=3)
    place = people.index(person)
    others = [*people[place + 1 :], *people[:place]]
    n_val = min(max(len(description.people.get("val", ())), 1), len(others) - 1)
    return _by_person(store, {person: "test"} | dict.fromkeys(others[:n_val], "val"))


def within_person(store, description: DatasetDescription, person: str) -> Split:
    """`person` alone: later sessions test, earlier ones train; of seen images the test trials test."""
    if description.parts:
        return _by_part(_trials_of(store, person), description, store)
    return across_sessions(store, description, person)


def across_sessions(store, description: DatasetDescription, person: str) -> Split:
    """The sessions of `person`: later ones test, earlier ones train."""
    trials = _trials_of(store, person)
    sessions = sorted({t.session for t in trials})
    test = [s for s in sessions if s in description.test_sessions] or sessions[(len(sessions) + 1) // 2 :]
    earlier = [s for s in sessions if s not in test]
    if not test or not earlier:
        raise UserError(f"{store.path}: {person} has session {', '.join(sessions)} only; within needs two")
    n_train = max(len(earlier) - 1, 1)
    sessions_of = {"train": earlier[:n_train], "val": earlier[n_train:], "test": test}
    return {split: [t for t in trials if t.session in sessions_of[split]] for split in SPLITS}


def leave_one_run_out(store, description: DatasetDescription, person: str) -> Split:
    """A run of a person tests, the next one validates, the others train."""
    person, all_train = person.removesuffix("/all"), person.endswith("/all")
    who, _, named = person.rpartition("/")
    trials = _trials_of(store, who or named)
    runs = sorted({(t.session, t.run) for t in trials})
    fits = [place for place, (session, run) in enumerate(runs) if named in (str(run), f"{session}.{run}")]
    if not who or len(fits) != 1 or len(runs) < 2:
        known = ", ".join(f"{session}.{run}" for session, run in runs)
        raise UserError(f"--protocol run:{person}: expected run:PERSON/RUN; {who or named} has the runs {known}")
    order = [*runs[fits[0] :], *runs[: fits[0]]]  # the one that tests, then those behind it
    split_of = dict.fromkeys(order, "train") | {order[0]: "test"}
    if len(runs) > 2 and not all_train:
        split_of[order[1]] = "val"
    return {split: [t for t in trials if split_of[t.session, t.run] == split] for split in SPLITS}


def later_trials(store, description: DatasetDescription, person: str) -> Split:
    """Of each run of a person the last fifth of its trials tests, the fifth before it validates."""
    splits, by_run = {split: [] for split in SPLITS}, {}
    for trial in _trials_of(store, person):
        by_run.setdefault((trial.session, trial.run), []).append(trial)
    for trials in by_run.values():
        ordered = sorted(trials, key=lambda t: t.trial)
        fifth = len(ordered) // 5
        splits["train"] += ordered[: len(ordered) - 2 * fifth]
        splits["val"] += ordered[len(ordered) - 2 * fifth : len(ordered) - fifth]
        splits["test"] += ordered[len(ordered) - fifth :]
    return splits


def named_people(store, description: DatasetDescription, person: str) -> Split:
    """The people that are named test and validate; the others train."""
    named = [side.split("+") for side in person.split("/")]
    if len(named) != 2 or not all(all(side) for side in named):
        raise UserError(f"--protocol people:{person}: expected people:TEST/VAL, as in people:B06+B07/B05")
    split_of = {}
    for split, people in zip(("test", "val"), named, strict=True):
        for one in people:
            _people(store, one, at_least=3)
            if one in split_of:
                raise UserError(f"--protocol people:{person} names {one} twice; a person may be in one split only")
            split_of[one] = split
    return _by_person(store, split_of)


def other_people(store, description: DatasetDescription, person: str) -> Split:
    """Test trials of `person`; training and held-out trials of all others."""
    _people(store, person, at_least=2)
    splits = _by_part(store.trials, description, store)
    splits = {split: [t for t in splits[split] if (t.subject == person) == (split == "test")] for split in SPLITS}
    return _unseen(splits, description)


def joint(store, description: DatasetDescription, person: str) -> Split:
    """All people, split by what they saw."""
    return _unseen(_by_part(store.trials, description, store), description)


def across_days(store, description: DatasetDescription, person: str) -> Split:
    """Another day of `person` tests; all trials of the first day train, but for those that validate."""
    if not description.parts:
        return across_sessions(store, description, person)
    trials = _trials_of(store, person)
    first = min(t.session for t in trials)
    later = [t for t in trials if t.session != first]
    if not later:
        raise UserError(f"{store.path}: {person} has session {first} only; day needs two")
    parts = _parts_of(trials, description, store)
    val = [t for t, part in zip(trials, parts, strict=True) if part == "val" and t.session == first]
    train = [t for t, part in zip(trials, parts, strict=True) if part != "val" and t.session == first]
    return {"train": train, "val": val, "test": later}


_NOTICES: set[tuple] = set()  # printed already: every split of a run asks for them


def _unseen(splits: Split, description: DatasetDescription) -> Split:
    """Leave out the images that test or validate from the splits that come before.

    Where people saw the images in different orders, an image that tests one of them trains another.
    """
    if description.apart != "image":
        return splits
    tested = {t.image for t in splits["test"]}
    val = [t for t in splits["val"] if t.image not in tested]
    train = [t for t in splits["train"] if t.image not in tested | {t.image for t in val}]
    left_out = len(splits["train"]) + len(splits["val"]) - len(train) - len(val)
    notice = (len(splits["test"]), left_out)
    if left_out and notice not in _NOTICES:
        _NOTICES.add(notice)
        shown = "another person's test trials show the same images"
        print(f"notice: {left_out} training and validation trials are left out: {shown}")
    return {"train": train, "val": val, "test": splits["test"]}


def _people(store, person: str, at_least: int = 1) -> list[str]:
    """All people of a store; UserError where `person` is none of them, or they are too few."""
    people = sorted({t.subject for t in store.trials})
    if person not in people:
        raise UserError(f"{store.path} has no person {person or '(none named)'}; it has {', '.join(people)}")
    if len(people) < at_least:
        raise UserError(f"{store.path} has {len(people)} people; leaving one out needs {at_least} or more")
    return people


def _trials_of(store, person: str) -> list[Trial]:
    _people(store, person)
    return [t for t in store.trials if t.subject == person]


def _by_person(store, split_of: Mapping[str, str]) -> Split:
    """All trials by their person's split; who is not named trains."""
    return {split: [t for t in store.trials if split_of.get(t.subject, "train") == split] for split in SPLITS}


def _parts_of(trials: Sequence[Trial], description: DatasetDescription, store) -> list[str]:
    """What the dataset says of each trial; what preparation left out of the store keeps its place among them."""
    return description.parts([*trials, *store.left_out], store.trials)[: len(trials)]


def parts_left_out(store, description: DatasetDescription, part: str, people: Collection[str]) -> int:
    """How many of these people's trials of a part preparation has left out."""
    absent = list(store.left_out)
    parts = description.parts([*store.trials, *absent], store.trials)[len(store.trials) :] if absent else []
    return sum(p == part and t.subject in people for t, p in zip(absent, parts, strict=True))


def _by_part(trials: Sequence[Trial], description: DatasetDescription, store) -> Split:
    """Trials by what the dataset says of what was seen; the held-out ones are the same in every run."""
    if not description.parts:
        raise UserError(f"{description.name} has no trials of seen images; --protocol cross and joint need them")
    parts = _parts_of(trials, description, store)
    return {split: [t for t, part in zip(trials, parts, strict=True) if part == split] for split in SPLITS}


@dataclass(frozen=True)
class Protocol:
    """How trials are dealt out, and what a score under it means."""

    split: Callable[..., Split]  # (store, description, person) → trials by split
    # What may not be in two splits: "person", "session", "run"; "tested person", "tested session" (neither trained nor
    # validated on); "seen": what the dataset of seen images keeps apart, concepts or images.
    apart: tuple[str, ...]
    apart_of_images: tuple[str, ...] | None = None  # the same for datasets of seen images; None: it is none for them
    takes_person: bool = True  # whether a name stands behind it, as in loso:A03
    complete: bool = False  # whether each trial of the store has to be in a split
    fold: bool = False  # whether it is one of several that test on one person each: their rows make a line of a table
    may_lack_val: bool = False  # whether nothing may be left to validate on; the last epoch is tested then
    trains_on_tested: bool = False  # whether the tested person's other trials are trained on
    seen_by: str = "session"  # what a checkpoint notes of the trials that it has seen: their sessions, runs or trials
    repeats_images: bool = False  # whether the test shows the images that were trained on

    @property
    def tests_strangers(self) -> bool:
        """Whether nobody who is trained on tests."""
        return bool({"person", "tested person"} & set(self.apart))


# name on the command line, for all pipelines
PROTOCOLS = {
    "published": Protocol(published, ("person",), takes_person=False, complete=True),
    "loso": Protocol(leave_one_subject_out, ("person",), fold=True),
    "within": Protocol(within_person, ("session",), ("seen",), fold=True, may_lack_val=True, trains_on_tested=True),
    "people": Protocol(named_people, ("person",)),
    "run": Protocol(leave_one_run_out, ("run",), fold=True, may_lack_val=True, trains_on_tested=True, seen_by="run"),
    "later": Protocol(later_trials, ("trial",), fold=True, trains_on_tested=True, seen_by="trial"),
    "cross": Protocol(other_people, ("tested person", "seen"), ("tested person", "seen"), fold=True),
    "joint": Protocol(joint, ("seen",), ("seen",), takes_person=False, trains_on_tested=True),
    "day": Protocol(
        across_days, ("tested session",), ("tested session",), fold=True, may_lack_val=True, repeats_images=True
    ),
}


def protocol_named(protocol: str) -> tuple[Protocol, str]:
    """The record of "loso:A03", and its person; UserError for an unknown name, or where its person is missing."""
    name, _, person = protocol.partition(":")
    if name not in PROTOCOLS or (PROTOCOLS[name].takes_person and not person):
        raise UserError(f"--protocol {protocol}: expected one of {', '.join(PROTOCOLS)}, as in loso:A03")
    if person and not PROTOCOLS[name].takes_person:
        raise UserError(f"--protocol {protocol}: {name} takes no person")
    return PROTOCOLS[name], person


def check_protocol(protocol: str) -> str:
    """The protocol itself; UserError where it is none."""
    protocol_named(protocol)
    return protocol


def split_trials(store, description: DatasetDescription, protocol: str = "published") -> Split:
    """The trials of a store by split, in the store's order.

    store : TrialStore or CBraModStore
    protocol : str. "published", "loso:A03", "within:A03", …
    Raises UserError if the protocol or the person is unknown, or what it promises does not hold.
    """
    named, person = protocol_named(protocol)
    if description.parts and named.apart_of_images is None and not description.phrasings:
        suits = ", ".join(name for name, other in PROTOCOLS.items() if other.apart_of_images)
        words = f"--protocol {protocol} does not keep apart the images of {description.name}"
        raise UserError(f"{words}, which all people saw; expected one of {suits}")
    splits = named.split(store, description, person)
    if named.complete and (left_out := without_split(store, splits)):
        people = ", ".join(sorted({t.subject for t in left_out}))
        where = f"no {protocol} split of {description.name}"
        raise UserError(f"{store.path}: {people} is in {where}; choose another --protocol")
    for promise in promises(description, protocol):
        check_no_leak(splits, promise, store.path)
    return splits


def of_images(description: DatasetDescription, protocol: Protocol) -> bool:
    """Whether a protocol deals out the trials of a dataset by what was seen. Of classes with words it need not."""
    return bool(description.parts and protocol.apart_of_images is not None)


def without_split(store, splits: Split) -> list[Trial]:
    """The trials of a store that are in none of the splits."""
    inside = {t.key for trials in splits.values() for t in trials}
    return [t for t in store.trials if t.key not in inside]


def promises(description: DatasetDescription, protocol: str) -> tuple[str, ...]:
    """What a protocol keeps apart: person, tested person (from all others), session, concept, image."""
    named, _ = protocol_named(protocol)
    kinds = named.apart_of_images if of_images(description, named) else named.apart
    return tuple(description.apart if kind == "seen" else kind for kind in kinds or ())


def caution(description: DatasetDescription, protocol: str) -> str:
    """What must stand beside a score under this protocol; empty where nothing must."""
    named = PROTOCOLS.get(protocol.partition(":")[0])  # of a stranger's run it may be any text
    return description.caution if named and named.trains_on_tested else ""


def print_caution(description: DatasetDescription, protocol: str) -> None:
    """Print it, where there is one."""
    if words := caution(description, protocol):
        print(words)


def check_no_leak(splits: Split, promise: str, path) -> None:
    """Raise UserError where a trial, or what the protocol promises to keep apart, is in two splits."""
    value_of = {
        "person": lambda t: t.subject,
        "session": lambda t: f"{t.subject} session {t.session}",
        "run": lambda t: f"{t.subject} session {t.session} run {t.run}",
        "concept": lambda t: f"label {t.label}",
        "image": lambda t: t.image,
        "trial": lambda t: t.key,
    }
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        for kind in dict.fromkeys((promise, "trial")):
            if kind.startswith("tested") and b == "val":
                continue
            value = value_of[kind.removeprefix("tested ")]
            both = ", ".join(sorted({value(t) for t in splits[a]} & {value(t) for t in splits[b]} - {""})[:5])
            if both:
                raise UserError(f"{path}: {both} in both {a} and {b}; a {kind} may be in one split only")
