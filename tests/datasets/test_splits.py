from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.bciciv2b_dataset import DESCRIPTION as BCIC2B
from datasets.recording import Trial
from datasets.splits import PROTOCOLS, check_no_leak, split_trials
from datasets.store import open_store, write_store
from datasets.trials import load_splits
from datasets.visual_imagery_llm_dataset import DESCRIPTION as VI
from tests.datasets.test_store import write_cbramod
from utils.errors import UserError

NINE = [f"A0{k}" for k in range(1, 10)]


def store_of(path, people, sessions=("T", "E"), description=BCIC, trials=2):
    """A store with two runs of `trials` trials in every session of every person, in the order given."""
    rng = np.random.default_rng(0)
    shape = len(description.montage.electrodes), 4
    parts = [
        [(Trial(f"{who}-{session}-r{run}-t{k}", k % 2, who, session, run, k + 1),
        rng.standard_normal(shape).astype("<f4"))
         for run in (1, 2) for k in range(trials)]
        for who in people for session in sessions
    ]  # fmt: skip
    meta = {"dataset": description.name, "sfreq": 250.0, "electrodes": description.montage.electrodes}
    write_store(path, meta, parts)
    return open_store(path)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """Nine people, two sessions; in the files' order, which puts E before T, and people in no order."""
    return store_of(tmp_path_factory.mktemp("nine") / "store", [*NINE[4:], *NINE[:4]], ("E", "T"))


def people(trials):
    return sorted({trial.subject for trial in trials})


# ---------------------------------------------------------------- published


def test_published_puts_people_where_the_published_splits_have_them(nine):
    splits = split_trials(nine, BCIC)
    assert {split: people(trials) for split, trials in splits.items()} == {
        "train": NINE[:5], "val": NINE[5:7], "test": NINE[7:],
    }  # fmt: skip
    assert sum(map(len, splits.values())) == len(nine.trials) == 72
    order = [trial.key for trial in nine.trials]
    assert all(
        [order.index(t.key) for t in trials] == sorted(order.index(t.key) for t in trials) for trials in splits.values()
    )


def test_published_refuses_people_whom_it_does_not_name(tmp_path):
    with pytest.raises(UserError, match="A10, A11 is in no published split of BCICIV2a"):
        split_trials(store_of(tmp_path / "store", ["A11", "A01", "A10"]), BCIC)
    with pytest.raises(UserError, match="published takes no person"):
        split_trials(store_of(tmp_path / "other", ["A01"]), BCIC, "published:A01")


def test_a_file_in_cbramods_layout_says_itself_who_is_where(tmp_path):
    sample = {"sample": np.zeros((22, 4, 200)), "label": 0}
    people_of = {"train": "A09", "val": "A01", "test": "A03"}  # not as published
    folder = write_cbramod(
        tmp_path / "lmdb", {f"{split}:{who}T-0-{k}": sample for split, who in people_of.items() for k in (0, 1)}
    )
    splits = split_trials(open_store(folder), BCIC)
    assert {split: people(trials) for split, trials in splits.items()} == {k: [v] for k, v in people_of.items()}
    assert [len(trials) for trials in splits.values()] == [2, 2, 2]


# ---------------------------------------------------------------- leave one subject out


@pytest.mark.parametrize("person, val", [("A01", ["A02", "A03"]), ("A03", ["A04", "A05"]), ("A07", ["A08", "A09"]),
                                         ("A08", ["A01", "A09"]), ("A09", ["A01", "A02"])])  # fmt: skip
def test_the_next_two_people_validate_and_after_the_last_comes_the_first(nine, person, val):
    splits = split_trials(nine, BCIC, f"loso:{person}")
    assert people(splits["test"]) == [person] and people(splits["val"]) == val
    assert people(splits["train"]) == sorted(set(NINE) - {person, *val})
    assert sum(map(len, splits.values())) == len(nine.trials)


def test_the_nine_folds_test_every_trial_once_and_never_use_it_otherwise(nine):
    tested = Counter()
    for person in NINE:
        splits = split_trials(nine, BCIC, f"loso:{person}")
        tested.update(trial.key for trial in splits["test"])
        groups = [set(people(splits[split])) for split in ("train", "val", "test")]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 9
        assert all(groups) and person not in groups[0] | groups[1]
    assert tested == Counter(trial.key for trial in nine.trials)


def test_as_many_validate_as_in_the_published_splits_and_somebody_is_left_to_train(tmp_path):
    vi = store_of(tmp_path / "vi", [f"S{k:02d}" for k in range(1, 23)], ("01",), VI, trials=1)
    splits = split_trials(vi, VI, "loso:S21")
    assert people(splits["val"]) == ["S01", "S02", "S22"] and len(people(splits["train"])) == 18
    three = store_of(tmp_path / "three", ["A02", "A05", "A09"])
    splits = split_trials(three, BCIC, "loso:A05")
    assert (people(splits["test"]), people(splits["val"]), people(splits["train"])) == (["A05"], ["A09"], ["A02"])
    with pytest.raises(UserError, match="2 people; leaving one out needs 3"):
        split_trials(store_of(tmp_path / "two", ["A02", "A05"]), BCIC, "loso:A05")


# ---------------------------------------------------------------- within one person


def sessions(trials):
    return sorted({trial.session for trial in trials})


def test_of_five_sessions_the_last_two_test_and_the_third_validates(tmp_path):
    store = store_of(tmp_path / "store", ["B01", "B02"], "12345", BCIC2B)
    splits = split_trials(store, BCIC2B, "within:B02")
    assert [sessions(splits[split]) for split in ("train", "val", "test")] == [["1", "2"], ["3"], ["4", "5"]]
    assert people([*splits["train"], *splits["val"], *splits["test"]]) == ["B02"]
    assert [len(trials) for trials in splits.values()] == [8, 4, 8]


def test_of_two_sessions_the_later_one_tests_and_nothing_validates(nine, capsys):
    splits = split_trials(nine, BCIC, "within:A04")  # the store has E before T
    assert [sessions(splits[split]) for split in ("train", "val", "test")] == [["T"], [], ["E"]]
    assert people([*splits["train"], *splits["test"]]) == ["A04"]
    loaded = load_splits(nine.path, BCIC, "within:A04")
    assert [len(loaded[split]) for split in ("train", "val", "test")] == [4, 0, 4]
    assert "notice: within:A04 leaves no session to validate on" in capsys.readouterr().out


def test_without_test_sessions_of_its_own_the_later_half_tests(tmp_path):
    description = replace(BCIC, test_sessions=())
    for names, expected in (
        ("abcd", [["a"], ["b"], ["c", "d"]]),
        ("abc", [["a"], ["b"], ["c"]]),
        ("ab", [["a"], [], ["b"]]),
    ):
        splits = split_trials(store_of(tmp_path / names, ["A01"], names), description, "within:A01")
        assert [sessions(splits[split]) for split in ("train", "val", "test")] == expected


@pytest.mark.parametrize("session", ["T", "E"])
def test_one_session_cannot_be_split(tmp_path, session):
    with pytest.raises(UserError, match=f"A01 has session {session} only; within needs two"):
        split_trials(store_of(tmp_path / "store", ["A01"], (session,)), BCIC, "within:A01")


# ---------------------------------------------------------------- what a user gets wrong


@pytest.mark.parametrize("protocol, message", [
    ("kfold", "--protocol kfold: expected one of published, loso, within"), ("", "expected one of"), ("LOSO:A03",
    "expected one of"),
    ("loso", "as in loso:A03"), ("loso:A10", "has no person A10"), ("within:", "as in loso:A03"),
    ("within:S01", "has no person S01"), ("loso:a03", "has no person a03"),
])  # fmt: skip
def test_an_unknown_protocol_or_person_is_one_line_that_says_what_there_is(nine, protocol, message):
    with pytest.raises(UserError, match=message) as error:
        split_trials(nine, BCIC, protocol)
    assert "\n" not in str(error.value)


def test_training_needs_people_to_train_on_and_to_validate_on(tmp_path):
    for k, missing in enumerate(("train", "val")):
        there = [who for split, of in BCIC.people.items() if split != missing for who in of]
        store = store_of(tmp_path / str(k), there)
        with pytest.raises(UserError, match=f"no {missing} trials under --protocol published"):
            load_splits(store.path, BCIC, "published")


# ---------------------------------------------------------------- leaks


def trial(key, who="A01", session="T"):
    return Trial(key, 0, who, session, 1, 1)


@pytest.mark.parametrize("a, b", [("train", "val"), ("train", "test"), ("val", "test")])
@pytest.mark.parametrize("promise, one, other, message", [
    ("person", trial("x"), trial("y", session="E"), "A01 in both {} and {}; a person may"),
    ("session", trial("x"), trial("y"), "A01 session T in both {} and {}; a session may"),
    ("session", trial("x"), trial("x", session="E"), "x in both {} and {}; a trial may"),
    ("person", trial("x"), trial("x", who="A02"), "x in both {} and {}; a trial may"),
])  # fmt: skip
def test_what_may_be_in_one_split_only_is_found_in_two(a, b, promise, one, other, message):
    splits = {"train": [trial("p", "A07")], "val": [trial("q", "A08")], "test": [trial("r", "A09")]}
    check_no_leak(splits, promise, "store")
    splits[a].append(one)
    check_no_leak(splits, promise, "store")
    splits[b].append(other)
    with pytest.raises(UserError, match=message.format(a, b)):
        check_no_leak(splits, promise, "store")


def test_a_person_may_have_sessions_in_several_splits_where_sessions_are_what_is_kept_apart():
    splits = {"train": [trial("x", session="1")], "val": [trial("y", session="2")], "test": [trial("z", session="3")]}
    check_no_leak(splits, "session", "store")


def test_a_person_whom_cbramods_own_splits_have_twice_is_refused(tmp_path):
    sample = {"sample": np.zeros((22, 4, 200)), "label": 0}
    folder = write_cbramod(
        tmp_path / "lmdb", {"train:A01T-0-0": sample, "val:A06T-0-0": sample, "test:A01E-0-0": sample}
    )
    with pytest.raises(UserError, match="A01 in both train and test"):
        split_trials(open_store(folder), BCIC)


def test_a_record_that_cbramods_own_splits_have_twice_is_refused(tmp_path):
    sample = {"sample": np.zeros((22, 4, 200)), "label": 0}
    folder = write_cbramod(
        tmp_path / "lmdb", {"train:A01T-0-0": sample, "val:A06T-0-0": sample, "test:A01T-0-0": sample}
    )
    with pytest.raises(UserError, match="A01"):
        split_trials(open_store(folder), BCIC)


# ---------------------------------------------------------------- people named


def test_people_who_are_named_test_and_validate_and_the_others_train(nine):
    splits = split_trials(nine, BCIC, "people:A08+A02/A05")
    assert people(splits["test"]) == ["A02", "A08"] and people(splits["val"]) == ["A05"]
    assert people(splits["train"]) == ["A01", "A03", "A04", "A06", "A07", "A09"]
    assert sum(map(len, splits.values())) == len(nine.trials)


@pytest.mark.parametrize("named, message", [
    ("A01", "expected people:TEST/VAL"), ("A01/", "expected people:TEST/VAL"), ("A01+/A02", "expected people:TEST/VAL"),
    ("A01/A02/A03", "expected people:TEST/VAL"), ("A01+A02/A02", "names A02 twice"), ("A10/A02", "has no person A10"),
    ("", "expected one of published, loso, within, people"),
])  # fmt: skip
def test_people_who_are_named_wrongly_are_one_line(nine, named, message):
    with pytest.raises(UserError, match=message) as error:
        split_trials(nine, BCIC, f"people:{named}")
    assert "\n" not in str(error.value)


def test_nobody_left_to_train_is_one_line(tmp_path):
    store = store_of(tmp_path / "store", ["A01", "A02", "A03"])
    with pytest.raises(UserError, match="no train trials under --protocol people:"):
        load_splits(store.path, BCIC, "people:A01+A03/A02")


# ---------------------------------------------------------------- every protocol, on datasets of seen images


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_protocol_trains_on_an_image_that_it_tests_but_where_it_says_so(tmp_path, name):
    """People who all saw the same images: what keeps people apart alone is refused."""
    images = replace(
        BCIC,
        parts=lambda trials, _: [("train", "val", "test")[t.trial % 3] for t in trials],
        people={},
        apart="image",
        phrasings={},  # of classes with words people may be kept apart: text is not asked for images
    )
    rng = np.random.default_rng(0)
    part = [
        (
            Trial(f"{who}-{session}-{k}", k % 2, who, session, 1, k, f"{k}.png"),
            rng.standard_normal((22, 4)).astype("<f4"),
        )
        for who in NINE[:4]
        for session in "12"
        for k in range(1, 10)
    ]
    write_store(tmp_path / "store", {"dataset": "BCICIV2a", "sfreq": 250.0}, [part])
    protocol = {"people": "people:A01/A02"}.get(name, f"{name}:A01" if PROTOCOLS[name].takes_person else name)
    if PROTOCOLS[name].apart_of_images is None:
        with pytest.raises(UserError, match="does not keep apart the images of BCICIV2a, which all people saw"):
            split_trials(open_store(tmp_path / "store"), images, protocol)
        return
    splits = split_trials(open_store(tmp_path / "store"), images, protocol)
    shared = {t.image for t in splits["train"]} & {t.image for t in splits["test"]}
    assert splits["train"] and splits["test"] and bool(shared) == PROTOCOLS[name].repeats_images
