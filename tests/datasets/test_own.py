import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets import own
from datasets.description import from_record, load_description
from datasets.electrodes import montage_of, nearest_names, numbered_positions, region_of
from datasets.own import Recorded
from datasets.own_sources import bids_files, pattern_files, split_source
from datasets.store import open_store
from models.poolings import side_of
from readers.any_recording import Found
from readers.electrode_names import numbered_cap
from utils.errors import UserError


def found(events, electrodes=("C3", "C4"), rows=()):
    return Found({name: name for name in electrodes}, 250.0, 1000, events, "annotations", list(rows))


# ---------------------------------------------------------------- where electrodes are


def test_regions_come_from_letters_whatever_the_case_and_what_is_no_electrode_is_named():
    montage, unknown = montage_of(["Fp1", "FCz", "c3", "TP9", "CP2", "POz", "AFF1h", "X1"])
    regions = dict(zip(montage.electrodes, montage.region_names, strict=True))
    assert unknown == ["X1"] and regions == {
        "Fp1": "frontal", "FCz": "central", "c3": "central", "TP9": "temporal", "CP2": "parietal", "POz": "occipital",
        "AFF1h": "frontal",
    }  # fmt: skip


def test_numbered_caps_and_positions_become_names_of_the_nearest_places():
    cap = numbered_positions([f"E{k}" for k in range(1, 129)])
    names = nearest_names(cap)
    assert len(set(names.values())) == len(cap) == 128  # no place twice
    assert region_of(names["E36"]) == region_of("C3") and side_of(names["E36"]) == "left"
    assert side_of(names["E104"]) == "right" and numbered_positions([f"E{k}" for k in range(1, 20)]) == {}


# ---------------------------------------------------------------- classes, people, words


def test_every_value_is_a_class_unless_events_are_named_and_nothing_unknown_passes():
    both = [found([(1.0, "10"), (2.0, "2"), (3.0, "rest")])]
    names, class_of, lines = own.classes_of(both, None, "source")
    assert names == ["2", "10", "rest"] and class_of["10"] == 1 and "every value" in lines[0]
    names, class_of, _ = own.classes_of(both, ["10=face", "rest=face", "2=house"], "source")
    assert names == ["face", "house"] and class_of == {"10": 0, "rest": 0, "2": 1}
    for asked, message in [(["7=a"], "no recording has 7; they have 10"), (["x"], "expected VALUE=CLASS"),
                           (["2=a", "10=a"], "one class, 'a'")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            own.classes_of(both, asked, "source")
    with pytest.raises(UserError, match="no events in any of the 1 recordings"):
        own.classes_of([found([])], None, "source")


def test_people_are_dealt_out_by_a_rule_that_is_said_or_as_asked():
    people = [f"P{k}" for k in range(1, 11)]
    dealt, lines = own.deal_people(people, None)
    assert dealt["test"] == ("P9", "P10") and dealt["val"] == ("P7", "P8") and "last fifth" in lines[0]
    assert own.deal_people(["a", "b"], None) == ({}, []) and sum(own.deal_people(["a", "b", "c"], None)[0].values(), ())
    assert own.deal_people(people, "P1+P2/P3/P4")[0] == {"train": ("P1", "P2"), "val": ("P3",), "test": ("P4",)}
    for asked in ("P1/P2", "P1/P1/P2", "P1/P2/P11"):
        with pytest.raises(UserError, match="--people"):
            own.deal_people(people, asked)


def test_a_run_that_names_no_protocol_keeps_apart_what_there_is():
    def files(*places):
        return [Recorded(None, 0, 1, (), *place) for place in places]

    assert own.usual_protocol(files(("a", "1", 1)), {"train": ("a",)}) == "published"
    assert own.usual_protocol(files(("a", "1", 1), ("a", "2", 1)), {}) == "within:a"
    assert own.usual_protocol(files(("a", "1", 1), ("a", "1", 2)), {}) == "run:a/2"
    assert own.usual_protocol(files(("a", "1", 1)), {}) == "later:a"


def test_words_come_from_names_and_the_longer_keyword_wins():
    assert own.spoken("left_hand") == own.spoken("leftHand") == "left hand" and own.spoken("3") == "class 3"
    names = ["hand", "left_hand"]
    how = own.Reading(electrodes=("C3",), sfreq=250.0, class_of={})
    made = own.describe("mine", montage_of(["C3", "C4"])[0], names, how, seen=True)
    assert made.phrasings[1][0] == "The person sees a left hand." and made.image_prompts[0] == "a photo of a hand"
    assert made.keyword_label("The person sees a left hand.") == 1 and made.keyword_label("a hand") == 0


def test_a_record_brings_back_the_description_and_damage_is_one_line():
    how = own.Reading(window=(0.0, 1.0))
    part_of = {"a.png": "train", "b.png": "test"}
    facts = {"people": {"train": ("x",)}, "part_of": part_of, "stimuli": {0: "a.png"}, "protocol": "later:x"}
    made = own.describe("mine", montage_of(["C3", "C4", "Cz"])[0], ["dog", "bird"], how, **facts)
    record = json.loads(json.dumps(made.as_record()))
    back = from_record(record, "store")
    assert back.as_record() == made.as_record() and record["mirrored"] == [["C3", "C4"]]
    assert back.keyword_label("It is a bird.") == 1 and back.protocol == "later:x"
    for field in set(record) - {"mirrored"}:  # which follows from the electrodes
        with pytest.raises(UserError, match="its description of the dataset is damaged"):
            from_record({k: v for k, v in record.items() if k != field}, "store")
    bci = load_description("BCICIV2a")
    assert from_record(bci.as_record(), "store").phrasings == bci.phrasings


@pytest.mark.parametrize(
    "words, message",
    [
        ({"classes": {"z": {}}}, "the store has the classes a, b"),
        ({"classes": {"a": {"keywords": "dog"}}}, "keywords = 'dog'"),
        ({"classes": {"a": {"sentences": []}}}, "sentences = "),
        ({"classes": {"a": {"colour": "red"}}}, "colour = 'red'"),
        ({"user_prompt": "no place"}, "{eeg}"),
        ({"name": "x"}, "name = 'x'"),
    ],
)
def test_words_of_another_kind_are_refused(words, message):
    made = own.describe("mine", montage_of(["C3"])[0], ["a", "b"], own.Reading())
    with pytest.raises(UserError, match=message):
        made.with_words(words, "words.toml")
    changed = made.with_words({"classes": {"a": {"keywords": ["dog"], "prompt": "a dog"}}}, "words.toml")
    assert changed.keyword_label("dog") == 0 and changed.keyword_label("class b") == 1


# ---------------------------------------------------------------- pictures


def test_pictures_are_found_by_the_names_of_files_and_folders(tmp_path, capsys):
    for name in ("faces/Don_1.jpg", "x/house12.PNG", "._house.jpg", "left hand_3.webp", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        if "_" not in name[:2] and not name.endswith("txt"):
            Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (8, 8, 3), np.uint8)).save(
                tmp_path / name
            )
    chosen, lines = own.stimuli_of(["face", "house", "left_hand", "tongue"], tmp_path)
    assert chosen == {0: "faces/Don_1.jpg", 1: "x/house12.PNG", 2: "left hand_3.webp"}
    assert "named after tongue" in lines[0] and "3 of 4 classes" in lines[1]
    assert "notice" not in capsys.readouterr().out
    shutil.copy(tmp_path / "faces/Don_1.jpg", tmp_path / "x/house12.PNG")  # the same picture under two classes
    Image.new("RGB", (8, 8)).save(tmp_path / "left hand_3.webp")
    own.stimuli_of(["face", "house", "left_hand"], tmp_path)
    said = capsys.readouterr().out
    assert "equal pictures" in said and "of one colour: left hand_3.webp" in said
    (tmp_path / "faces/Don_1.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="Don_1.jpg is not a picture"):
        own.stimuli_of(["face"], tmp_path)


def test_shown_pictures_are_looked_up_by_path_or_name_and_doubt_is_an_error(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def shown(*texts):
        return own.shown_pictures([found([], rows=[{"file": text} for text in texts])], "file", tmp_path)

    assert shown("b/1.png", "2.png", "3.png")[0] == {"b/1.png": "b/1.png", "2.png": "b/2.png"}
    assert "3.png" in shown("2.png", "3.png")[1][0]
    with pytest.raises(UserError, match="may be a/1.png or b/1.png"):
        shown("1.png")
    with pytest.raises(UserError, match="no table of events has it"):
        own.shown_pictures([found([])], "file", tmp_path)


@pytest.mark.parametrize("by_concept", [False, True])
def test_images_are_dealt_out_so_that_nothing_is_in_two_parts(by_concept):
    label_of = {f"{label}/{k}.png": label for label in range(10) for k in range(10)}
    part_of = own.deal_images(label_of, by_concept)
    assert part_of == own.deal_images(dict(reversed(label_of.items())), by_concept) and len(part_of) == 100
    labels = {part: {label_of[i] for i, p in part_of.items() if p == part} for part in ("train", "val", "test")}
    assert len(labels["test"]) == (2 if by_concept else 10)
    assert bool(labels["test"] & labels["train"]) != by_concept


# ---------------------------------------------------------------- sources


def test_names_of_files_say_whose_they_are_and_runs_are_counted(tmp_path):
    for name in ("P10/a_2.edf", "P2/a_1.edf", "P2/a_2.edf", "P2/b_1.edf", "P2/notes.dat", "P2/.b_1.edf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "P2/a_1_events.tsv").write_text("onset\ttrial_type\n1\tx\n")
    files = pattern_files(f"{tmp_path}/{{subject}}/{{session}}_{{run}}.edf")
    assert [(f.subject, f.session, f.run) for f in files] == [
        ("P2", "a", 1),
        ("P2", "a", 2),
        ("P2", "b", 1),
        ("P10", "a", 1),
    ]
    assert files[0].table.name == "a_1_events.tsv" and files[1].table is None
    assert [f.run for f in pattern_files(f"{tmp_path}/{{subject}}/*.edf") if f.subject == "P2"] == [1, 2, 3]
    for pattern, message in [
        ("{who}.edf", "{who} is unknown"),
        ("*.bdf", "no file fits"),
        ("{subject}/*", "is no recording"),
    ]:
        with pytest.raises(UserError, match=message):
            pattern_files(f"{tmp_path}/{pattern}")


def test_a_folder_or_another_word_is_no_source(tmp_path):
    with pytest.raises(UserError, match="a folder is given as bids:"):
        split_source(str(tmp_path))
    with pytest.raises(UserError, match="has no recording sub-"):
        bids_files(tmp_path, None, None, None)
    assert split_source("moabb:X") == ("moabb", "X")


def test_positions_stand_for_names_in_a_recording_without_them():
    """An electrode named by its maker is where it lies, and so has a side."""
    rng = np.random.default_rng(0)
    places = {name: xyz for name, xyz in numbered_positions([f"E{k}" for k in range(1, 129)]).items()}
    moved = {name: xyz + 0.002 * rng.standard_normal(3) for name, xyz in places.items()}
    same = sum(nearest_names(moved)[name] == nearest_names(places)[name] for name in places)
    assert same > 0.6 * len(places)


# ---------------------------------------------------------------- clocks, numbered caps, what is marked as bad


def impulses(path, sfreq, minutes=6, electrodes=("C3", "Cz", "C4"), **info):
    """A recording with an impulse 1 s after each event, one event every 8 s."""
    import mne

    n = round(60 * minutes * sfreq)
    rng = np.random.default_rng(0)
    x = 1e-5 * rng.standard_normal((len(electrodes), n))
    onsets = np.arange(8.0, 60 * minutes - 8, 8.0)
    for onset in onsets:
        x[:, round((onset + 1) * sfreq)] += 2e-3
    raw = mne.io.RawArray(x, mne.create_info(list(electrodes), sfreq, "eeg"), verbose="error")
    raw.set_annotations(
        mne.Annotations(onsets, 0.0, ["left", "right"] * (len(onsets) // 2) + ["left"] * (len(onsets) % 2))
    )
    raw.save(path, verbose="error")
    return onsets


@pytest.mark.parametrize("sfreq", [249.91, 250.01, 250.0, 499.91])
def test_trials_follow_the_recorders_own_clock(script, tmp_path, sfreq):
    """A rate that is not whole: the last trial's impulse lies where the first one's does."""
    impulses(tmp_path / "A_raw.fif", sfreq)
    done = script("prepare_data_own.py", f"files:{tmp_path}/{{subject}}_raw.fif", "--window", 0, 4, "--lmdb_dir",
                  tmp_path / "store", "--scale", 1)  # fmt: skip
    assert done.code == 0, done.err
    store = open_store(tmp_path / "store")
    places = [np.abs(store.read(trial)[0]).argmax() / store.sfreq for trial in store.trials]
    assert len(places) > 30 and np.allclose(places, 1.0, atol=0.012)


@pytest.mark.parametrize(
    "n, name, place",
    [(64, "A13", "C3"), (32, "A8", "C3"), (128, "D19", "C3"), (128, "A23", "Oz"), (160, "A1", "Cz"), (256, "A1", "Cz")],
)
def test_a_numbered_caps_c3_is_not_that_of_the_10_20_system(n, name, place):
    letters = "ABCDEFGH"
    channels = [f"{letters[k // 32]}{k % 32 + 1}" for k in range(n)]
    assert numbered_cap(channels) == channels and numbered_cap(["A1", "A2", "C3", "C4", "Cz", "F5"]) == []
    names = nearest_names(numbered_positions(channels))
    assert len(names) == n and names[name] == place
    if n == 128:
        assert names["C3"] not in ("C3", "C1", "C5")


def test_what_is_marked_as_bad_is_left_out_or_said(script, tmp_path):
    import mne

    impulses(tmp_path / "A_raw.fif", 250.0)
    raw = mne.io.read_raw_fif(tmp_path / "A_raw.fif", preload=True, verbose="error")
    raw.set_annotations(raw.annotations + mne.Annotations([15.0, 100.0], [12.0, 0.5], ["BAD_muscle", "bad"]))
    raw.info["bads"] = ["Cz"]
    raw.save(tmp_path / "A_raw.fif", overwrite=True, verbose="error")
    done = script("prepare_data_own.py", f"files:{tmp_path}/{{subject}}_raw.fif", "--window", 0, 4, "--lmdb_dir",
                  tmp_path / "store", "--scale", 1)  # fmt: skip
    assert done.code == 0, done.err
    assert "dropped: marked as bad" in done.out and "marked as bad and read all the same: Cz" in done.out
    assert "BAD" not in done.out and len(open_store(tmp_path / "store").trials) in (40, 41)
    done = script("prepare_data_own.py", f"files:{tmp_path}/{{subject}}_raw.fif", "--rename", "XX=C1", "--lmdb_dir",
                  tmp_path / "no")  # fmt: skip
    assert done.code == 2 and "--rename XX=C1: no recording has a channel of that name" in done.error_line


def test_numbers_in_names_are_sorted_by_their_size_however_many_digits_they_have():
    long = "1" * 5000
    names = [f"P{long}", "P10", "P2", "P02", "p1\u00b2", "P"]
    assert sorted(names, key=own.natural) == ["P", "p1\u00b2", "P2", "P02", "P10", f"P{long}"]
