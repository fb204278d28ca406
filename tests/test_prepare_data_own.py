"""Recordings of one's own, from files to decoded text, by the real command lines."""

import json
import re
import sys

import numpy as np
import pytest

from datasets.store import description_of_store, open_store
from demo.vi_like import MONTAGE, write_bdf
from tests.conftest import read_jsonl, run_process

RATE, N_TRIALS = 1000, 24


def simulated(rng, gain=30.0):
    """(32, N) microvolts of noise; trials of class 1 have a strong 10 Hz rhythm; events (sample, code)."""
    signal = 10 * rng.standard_normal((32, RATE * (2 + 2 * N_TRIALS)))
    codes = rng.permutation([1, 2] * (N_TRIALS // 2)).tolist()
    events = [(RATE * (1 + 2 * k), code) for k, code in enumerate(codes)]
    for start, code in events:
        if code == 2:
            signal[:10, start : start + RATE] += gain * np.sin(2 * np.pi * 10 * np.arange(RATE) / RATE)
    return signal, events


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    """Four people in BIDS: tables of events above the recordings (inheritance), an EOG channel in channels.tsv."""
    root, rng = tmp_path_factory.mktemp("bids"), np.random.default_rng(0)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "own", "BIDSVersion": "1.8.0"}))
    labels = ("EOG-x", *(f"EEG {name}-Ref" for name in MONTAGE.electrodes[1:]))
    for person in ("P1", "P2", "P3", "P4"):
        folder = root / f"sub-{person}/eeg"
        folder.mkdir(parents=True)
        signal, events = simulated(rng)
        write_bdf(folder / f"sub-{person}_task-imagery_eeg.bdf", signal, events, labels=labels)
        lines = ["onset\tduration\ttrial_type\tstim_file"]
        lines += [
            f"{k / RATE}\t0\t{'fist' if code == 1 else 'left_hand'}\t{code}_{n % 6}.png"
            for n, (k, code) in enumerate(events)
        ]
        (folder / f"sub-{person}_task-imagery_events.tsv").write_text("\n".join([*lines, "0.1\t0\tn/a\tn/a"]) + "\n")
    kinds = ["name\ttype\tunits", "EOG-x\tEOG\tuV", *(f"{name}\tEEG\tuV" for name in labels[1:])]
    (root / "task-imagery_channels.tsv").write_text("\n".join(kinds) + "\n")
    return root


@pytest.fixture(scope="module")
def store(bids, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "store"
    done = run_process("prepare_data_own.py", f"bids:{bids}", "--task", "imagery", "--window", 0, 1, "--lmdb_dir", path)
    assert done.code == 0, done.err
    return path, done.out


def test_a_bids_folder_becomes_a_store_that_describes_its_dataset(store):
    path, out = store
    made, opened = description_of_store(path), open_store(path)
    assert made.classes == ("fist", "left_hand")
    assert made.people == {"train": ("P1", "P2"), "val": ("P3",), "test": ("P4",)}
    assert len(made.montage.electrodes) == 31 and made.montage.electrodes == MONTAGE.electrodes[1:]
    assert len(opened.trials) == 4 * N_TRIALS and opened.shape == (31, RATE) and opened.sfreq == RATE
    assert {t.subject for t in opened.trials} == {"P1", "P2", "P3", "P4"}
    for said in ("every value of the events is one", "the last fifth by name tests", "EEG Fp1-Ref is Fp1"):
        assert said in out, said
    sd = np.median([opened.read(t).std() for t in opened.trials])
    assert 2 < sd < 30  # microvolts, whatever the header says


def test_show_prints_and_draws_and_makes_no_store(bids, tmp_path, script):
    from PIL import Image

    done = script("prepare_data_own.py", f"bids:{bids}", "--lmdb_dir", tmp_path / "s", "--window", 0, 1, "--show")
    assert done.code == 0 and "31 electrodes" in done.out and "fist 48, left_hand 48" in done.out
    assert Image.open(tmp_path / "s_first_trials.png").width > 300 and not (tmp_path / "s").exists()


def test_a_baseline_and_the_text_route_need_no_edit_and_no_name(store, tmp_path, script, demo, monkeypatch):
    """The tiny chat model of the demo never read these sentences: one that did is trained, said, and decodes."""
    from models import tiny_llm

    monkeypatch.setattr(tiny_llm, "STEPS", 60)
    path, _ = store
    done = script(
        "baseline.py", "--model", "csp_lda", "--datasets_dir", path, "--output_dir", tmp_path / "csp", "--cuda", -1
    )
    assert done.code == 0 and "published: 48 / 24 / 24" in done.out, done.err
    assert json.loads((tmp_path / "csp/results.json").read_text())["test"]["classifier"]["accuracy"] > 0.9
    flags = ["--protocol", "people:P3/P2", "--encoder", "shallow", "--llm", demo.pth / "TinyLlama-1.1B-Chat-v1.0",
             "--model_dir", tmp_path / "text", "--no_quantize", "--cuda", -1, "--epochs", 8, "--warmup_epochs", 8,
             "--batch_size", 8, "--gradient_accumulation_steps", 1, "--max_new_tokens", 12]  # fmt: skip
    done = script("finetune_eeg_llm.py", "--datasets_dir", path, *flags)
    assert done.code == 0 and "never read the sentences of this dataset" in done.out, done.err
    score = json.loads((tmp_path / "text/results.json").read_text())["test"]
    assert score["likelihood"]["n"] == 24 and score["likelihood"]["accuracy"] > 0.8
    done = script("generate.py", "--datasets_dir", path, "--projection_dir", tmp_path / "text", "--no_quantize",
                  "--cuda", -1, "--num_samples", 4, "--max_new_tokens", 12, "--output_dir",
                  tmp_path / "out")  # fmt: skip
    assert done.code == 0, done.err
    rows = read_jsonl(tmp_path / "out/decoded.jsonl")
    assert {row["subject"] for row in rows} == {"P3"} and {row["true_name"] for row in rows} == {"fist", "left_hand"}
    done = script("evaluate.py", tmp_path / "text", tmp_path / "csp", "--output_dir", tmp_path / "tables")
    assert done.code == 0 and "left_hand" in (tmp_path / "tables/results.md").read_text(), done.err
    done = script("evaluate.py", "--audit", path, tmp_path / "csp")
    assert "4 people; no person in two splits" in done.out and "single samples" in done.out, done.err


def test_pictures_that_were_shown_make_it_a_dataset_of_seen_images(bids, tmp_path, script):
    from PIL import Image

    (bids / "stimuli").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for code in (1, 2):
        for k in range(6):
            picture = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(bids / f"stimuli/{code}_{k}.png")
    done = script("prepare_data_own.py", f"bids:{bids}", "--window", 0, 1, "--image_column", "stim_file", "--lmdb_dir",
                  tmp_path / "s")  # fmt: skip
    assert done.code == 0, done.err
    made, opened = description_of_store(tmp_path / "s"), open_store(tmp_path / "s")
    assert made.parts and {t.image for t in opened.trials} <= set(made.part_of)
    parts = made.parts(opened.trials, opened.trials)
    assert set(parts) == {"train", "val", "test"} and made.phrasings[0][0] == "The person sees a fist."
    flags = ["--datasets_dir", tmp_path / "s", "--output_dir", tmp_path / "r", "--cuda", -1, "--epochs", 1]
    done = script("baseline.py", "--model", "shallow", *flags, "--protocol", "joint")
    assert done.code == 0, done.err
    clip = ["--datasets_dir", tmp_path / "s", "--images_dir", bids / "stimuli", "--output_dir", tmp_path / "c",
            "--cuda", -1, "--epochs", 1, "--encoder", "nice", "--target", "classes", "--batch_size", 16]  # fmt: skip
    done = script("finetune_eeg_to_clip.py", *clip, "--protocol", "people:P3/P2")
    assert "does not keep apart the images" in done.error_line
    done = script("finetune_eeg_to_clip.py", *clip, "--protocol", "joint")
    assert done.code == 0, done.err


def test_what_is_asked_and_not_there_ends_in_one_line(bids, tmp_path, script):
    for flags, message in [
        (["--task", "x"], "--task x:.*has the task imagery"), (["--subjects", "P9"], "--subjects P9: .*has P1, P2"),
        (["--electrodes", "Cz", "X"], "--electrodes X: not in all recordings: .* has no X"),
        (["--events", "a=b"], "no recording has a"),
        (["--people", "P1/P2"], "expected TRAIN/VAL/TEST"), (["--band", 1, 600], "expected a whole number above"),
    ]:  # fmt: skip
        done = script("prepare_data_own.py", f"bids:{bids}", "--window", 0, 1, "--lmdb_dir", tmp_path / "s", *flags)
        assert done.code == 2 and re.search(message, done.error_line), (flags, done.error_line)


def test_moabbs_own_data_become_a_store(tmp_path, script):
    pytest.importorskip("moabb")
    done = script("prepare_data_own.py", "moabb:FakeDataset", "--subjects", 1, 2, 3, "--raw_dir", tmp_path / "raw",
                  "--lmdb_dir", tmp_path / "s")  # fmt: skip
    assert done.code == 0 and len(open_store(tmp_path / "s").trials) == 3 * 2 * 2 * 60, done.err


def test_without_moabb_its_source_says_how_to_install_it(tmp_path, script, monkeypatch):
    monkeypatch.setitem(sys.modules, "moabb", None)
    done = script(
        "prepare_data_own.py", "moabb:BNCI2014_004", "--raw_dir", tmp_path / "raw", "--lmdb_dir", tmp_path / "s"
    )
    assert "pip install -r requirements-moabb.txt" in done.error_line


def test_visual_imagery_read_as_bids_is_what_its_own_reader_gives(shared, tmp_path, script):
    raw = shared / "real/visual_imagery_raw"
    flags = [
        "--task",
        "AVI",
        "--events",
        "1=dog",
        "2=bird",
        "3=fish",
        "--window",
        0.5,
        4.5,
        "--lmdb_dir",
        tmp_path / "a",
    ]
    assert script("prepare_data_own.py", f"bids:{raw}", *flags).code == 0
    done = script(
        "prepare_data_vi.py", "--skip_download", "--raw_dir", raw, "--subjects", 1, 17, 20, "--lmdb_dir", tmp_path / "b"
    )
    assert done.code == 0, done.err
    ours, theirs = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    own = {(f"S{t.subject}", t.trial): t for t in ours.trials}
    vi = {(t.subject, t.trial): t for t in theirs.trials if t.run == 1}
    picks = [list(theirs.meta["electrodes"]).index(name) for name in ours.meta["electrodes"]]
    assert len(own) == 9 and set(own) == set(vi)
    for key, trial in own.items():
        assert trial.label == vi[key].label and np.array_equal(ours.read(trial), theirs.read(vi[key])[picks])


def test_real_people_of_2b_as_a_bids_folder_are_the_same_trials(shared, tmp_path, script):
    """Two people, three electrodes: written as BIDS, prepared without a name, against the data set's own reader."""
    import mne

    from datasets.bciciv2b_dataset import recordings

    (tmp_path / "raw").mkdir()
    for who in ("B01", "B02"):
        path = shared / f"real/bciciv2b_raw/{who}T.mat"
        (tmp_path / "raw" / path.name).symlink_to(path)
        for run in recordings(path):
            folder = tmp_path / f"bids/sub-{who}/ses-{run.session}/eeg"
            folder.mkdir(parents=True)
            stem = f"sub-{who}_ses-{run.session}_task-hands"
            raw = mne.io.RawArray(run.signal * 1e-6, mne.create_info(["C3", "Cz", "C4"], 250.0, "eeg"), verbose="ERROR")
            raw.save(folder / f"{stem}_eeg.fif", fmt="double", verbose="ERROR")
            lines = [
                f"{k / 250}\t{('left_hand', 'right_hand')[label]}"
                for k, label in zip(run.onsets, run.labels, strict=True)
            ]
            (folder / f"{stem}_events.tsv").write_text("\n".join(["onset\ttrial_type", *lines]))
    flags = ["--window", 3, 7, "--lmdb_dir", tmp_path / "a"]
    done = script("prepare_data_own.py", f"bids:{tmp_path / 'bids'}", *flags)
    assert done.code == 0 and "within:B01" in done.out, done.err
    raw = ["--skip_download", "--raw_dir", tmp_path / "raw", "--lmdb_dir", tmp_path / "b"]
    assert script("prepare_data.py", "--downstream_dataset", "BCICIV2b", *raw).code == 0
    ours, theirs = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert len(ours.trials) == len(theirs.trials) == 720
    for mine, other in zip(ours.trials, theirs.trials, strict=True):
        assert (mine.subject, mine.session, mine.label) == (other.subject, other.session, other.label)
        assert np.abs(ours.read(mine) - theirs.read(other)).max() < 1e-5  # microvolts


def test_every_real_container_is_read_or_refused_in_one_line(shared, tmp_path, script):
    """A reader's line says what to do; none is a traceback, and what reads gives electrodes in microvolts."""
    read = 0
    names = [
        "*.edf",
        "*.bdf",
        "*.set",
        "*.vhdr",
        "*.ahdr",
        "*.gdf",
        "*.EEG",
        "*.lay",
        "*.cnt",
        "*.xdf",
        "*.csv",
        "*.EDF",
    ]
    paths = [path for name in names for path in sorted((shared / "real/containers").rglob(name))]
    assert len(paths) > 15
    for path in paths:
        done = script(
            "prepare_data_own.py", f"files:{path}", "--window", 0, 0.5, "--lmdb_dir", tmp_path / "s", "--show"
        )
        if done.code == 0:
            read += 1
        else:
            assert done.code == 2 and len(done.error_line) > 40, (path, done.err[-2000:])
    assert read >= 6
