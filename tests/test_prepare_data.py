import json
import resource
import shutil
import subprocess
import sys

import lmdb
import numpy as np
import pytest
import scipy.io
import scipy.signal

from datasets.bciciv2a_dataset import BCICIV2aDataset
from datasets.bciciv2a_llm_dataset import DESCRIPTION
from datasets.splits import split_trials
from datasets.store import open_store
from demo.bcic_like import DemoSize, write_bcic_like
from tests.conftest import ROOT
from utils.errors import UserError


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three files of two runs with four trials."""
    folder = tmp_path_factory.mktemp("raw")
    write_bcic_like(folder, DemoSize(runs=2, trials_per_run=4), 0, ["A01T.mat", "A06E.mat", "A09T.mat"])
    return folder


@pytest.fixture
def prepare(script, tmp_path):
    """prepare_data.py on a folder of raw files; gives what it printed and the store's place."""

    def run(raw, *flags, store=tmp_path / "store"):
        done = script(
            "prepare_data.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store, "--workers", 2, *flags
        )
        return done, store

    return run


def split_of(store):
    return split_trials(open_store(store), DESCRIPTION)


def total(done, fate, split="", column=4):
    """A column of the closing table (by default all classes together), over its lines of one fate."""
    lines = [
        line for line in done.out.splitlines() if line.startswith(split or ("train", "val", "test")) and fate in line
    ]
    return sum(int(line.split(fate)[1].split()[column]) for line in lines)


# ---------------------------------------------------------------- real recordings


@pytest.mark.parametrize("trial_set, counts", [("published", [21, 14, 14]), ("all", [35, 14, 14])])
def test_real_recordings_give_the_expected_trials(shared, prepare, trial_set, counts):
    done, store = prepare(shared / "real/bciciv2a_raw", "--trial_set", trial_set)
    assert done.code == 0, done.err
    assert [len(BCICIV2aDataset(store, split)) for split in ("train", "val", "test")] == counts
    assert "2784/1152/1152" in done.out and "2880/1152/1152" in done.out
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        assert total(done, "kept", split) == n


def test_real_trials_equal_an_independent_computation_from_the_raw_file(shared, prepare):
    done, store = prepare(shared / "real/bciciv2a_raw", "--trial_set", "all")
    assert done.code == 0, done.err
    sos = scipy.signal.butter(5, [0.3 / 125, 50 / 125], "band", output="sos")
    compared = 0
    for split in ("train", "val", "test"):
        dataset = BCICIV2aDataset(store, split)
        for k, trial in enumerate(dataset.trials):
            x, label = dataset[k]
            path = shared / f"real/bciciv2a_raw/{trial.subject}{trial.session}.mat"
            mat = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
            run = [run for run in mat["data"] if np.size(run.trial)][trial.run - 1]
            signal = run.X[:, :22]
            filtered = scipy.signal.sosfiltfilt(sos, signal - signal.mean(axis=1, keepdims=True), axis=0)
            start = int(np.atleast_1d(run.trial)[trial.trial - 1]) - 1 + 500
            microvolts = dataset.store.read(trial)
            assert microvolts.shape == (22, 1000) and np.abs(microvolts - filtered[start : start + 1000].T).max() < 1e-3
            expected = scipy.signal.resample_poly(filtered[start : start + 1000], 4, 5, axis=0).T / 100
            assert np.abs(x.numpy().reshape(22, 800) - expected).max() < 1e-5
            assert label == np.atleast_1d(run.y)[trial.trial - 1] - 1
            compared += 1
    assert compared == 63


# ---------------------------------------------------------------- stores


def test_a04ts_missing_calibration_runs_cost_two_real_runs(prepare, tmp_path):
    write_bcic_like(tmp_path / "raw", DemoSize(runs=6, trials_per_run=4), 0, ["A04E.mat", "A04T.mat"])
    published, store = prepare(tmp_path / "raw")
    assert published.code == 0, published.err
    assert len(split_of(store)["train"]) == 24 + 16
    assert "cost 8 trials in 2 runs" in published.out and total(published, "dropped: first three structs") == 8
    done, everything = prepare(tmp_path / "raw", "--trial_set", "all", store=tmp_path / "all")
    assert len(split_of(everything)["train"]) == 24 + 24 and "cost 0 trials" in done.out
    # runs are counted among the task runs, whatever is dropped, so a trial is the same in both stores
    a, b = open_store(store), open_store(everything)
    keys = {trial.key: trial for trial in b.trials}
    assert all(np.array_equal(a.read(trial), b.read(keys[trial.key])) for trial in a.trials)
    assert {trial.run for trial in a.trials if trial.session == "T"} == {3, 4, 5, 6}


def test_the_store_does_not_depend_on_the_number_of_workers(prepare, raw, tmp_path):
    _, one = prepare(raw, "--workers", 1, store=tmp_path / "one")
    _, three = prepare(raw, "--workers", 3, store=tmp_path / "three")
    assert open_store(one).meta == open_store(three).meta and open_store(one).trials == open_store(three).trials
    meta = open_store(one).meta
    assert meta["sources"][0]["name"] == "A01T.mat" and len(meta["sources"][0]["sha256"]) == 64
    assert meta["preprocessing"]["tmin"] == 2 and meta["electrodes"][0] == "Fz"


def test_the_window_moves_with_its_flags(prepare, raw, tmp_path):
    _, store = prepare(raw, "--tmin", 1, "--tmax", 3)
    _, later = prepare(raw, "--tmin", 2, "--tmax", 4, store=tmp_path / "later")
    a, b = open_store(store), open_store(later)
    assert a.shape == b.shape == (22, 500)
    for one, other in zip(a.trials, b.trials, strict=True):
        assert np.array_equal(a.read(one)[:, 250:], b.read(other)[:, :250])


def test_a_window_need_not_last_whole_seconds_until_csbrain_reads_it(prepare, raw):
    done, store = prepare(raw, "--tmax", 6.5)
    assert done.code == 0 and open_store(store).shape == (22, 1125)
    with pytest.raises(UserError, match="trials last 4.5 s"):
        BCICIV2aDataset(store, "train")[0]


def test_a_window_past_a_runs_end_is_dropped_and_counted(prepare, raw):
    done, store = prepare(raw, "--tmax", 10)  # at most 9 s of a run follow the last trial's start
    assert done.code == 0
    assert len(open_store(store).trials) == 24 - 6 and total(done, "dropped: window leaves the run") == 6
    early, store = prepare(raw, "--tmin", -3, "--tmax", 1, "--overwrite")  # before the first trial's run begins
    assert len(open_store(store).trials) == 24 - 6 and total(early, "dropped: window leaves the run") == 6
    counts = open_store(store).meta["counts"]
    for person, split in (("A01", "train"), ("A06", "val"), ("A09", "test")):
        for label in range(4):
            assert counts.get(f"kept/{person}/{label}", 0) == total(early, "kept", split=split, column=label)
    assert counts["recordings/calibration runs"] == 9 and counts["recordings/task runs"] == 6


# ---------------------------------------------------------------- what is there already


def test_a_folder_that_is_there_is_overwritten_only_when_asked(prepare, raw, tmp_path):
    _, store = prepare(raw)
    again, _ = prepare(raw)
    assert again.code == 2 and "--overwrite" in again.error_line
    replaced, _ = prepare(raw, "--overwrite", "--tmin", 1)
    assert replaced.code == 0 and open_store(store).meta["preprocessing"]["tmin"] == 1


def test_what_is_not_ours_is_never_deleted(prepare, raw, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("years of work")
    refused, _ = prepare(raw, store=tmp_path / "thesis")
    assert refused.code == 2 and "not made by this script" in refused.error_line
    assert (tmp_path / "thesis/chapter1.txt").read_text() == "years of work"
    done, store = prepare(raw, "--overwrite", store=tmp_path / "thesis")
    assert done.code == 0 and len(split_of(store)["train"]) == 8
    assert (tmp_path / "thesis.old/chapter1.txt").read_text() == "years of work"
    again, _ = prepare(raw, "--overwrite", store=tmp_path / "thesis")  # a store of ours is not moved aside
    assert again.code == 0 and not (tmp_path / "thesis.old2").exists()


def test_a_store_is_made_where_a_link_or_a_dot_leads(prepare, raw, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    done, _ = prepare(raw, store=tmp_path / "link")
    assert done.code == 0 and (tmp_path / "link").is_symlink() and len(open_store(tmp_path / "disk").trials) == 24
    monkeypatch.chdir(tmp_path)
    again, _ = prepare(raw, "--overwrite", store="disk/.")
    assert again.code == 0 and len(open_store(tmp_path / "disk").trials) == 24


def test_what_was_moved_aside_comes_back_when_nothing_was_made(prepare, raw, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("years of work")
    broken("nan", raw, tmp_path / "raw")
    done, _ = prepare(tmp_path / "raw", "--overwrite", store=tmp_path / "thesis")
    assert done.code == 2 and (tmp_path / "thesis/chapter1.txt").read_text() == "years of work"
    assert {p.name for p in tmp_path.iterdir()} == {"thesis", "raw"}


def test_a_truncated_store_is_moved_aside_and_made_anew_when_asked(prepare, raw, tmp_path):
    _, store = prepare(raw)
    whole = open_store(store).meta
    for aside in ("store.old", "store.old2"):
        half = (store / "data.mdb").read_bytes()[:-50_000]
        (store / "data.mdb").write_bytes(half)
        with pytest.raises(UserError, match="truncated"):
            open_store(store)
        refused, _ = prepare(raw)
        assert refused.code == 2 and "--overwrite" in refused.error_line
        done, _ = prepare(raw, "--overwrite")
        assert done.code == 0, done.err
        assert open_store(store).meta == whole and (tmp_path / aside / "data.mdb").read_bytes() == half


def test_a_store_of_version_1_is_replaced_by_the_command_that_its_message_names(prepare, raw, tmp_path):
    meta = {"format": "eeg2image-trials", "version": 1, "dataset": "BCICIV2a"}
    with lmdb.open(str(tmp_path / "store")) as env, env.begin(write=True) as txn:
        txn.put(b"meta", json.dumps(meta).encode())
    with pytest.raises(UserError, match="--skip_download .* --overwrite"):
        open_store(tmp_path / "store")
    done, store = prepare(raw, "--overwrite")
    assert done.code == 0 and len(open_store(store).trials) == 24
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


# ---------------------------------------------------------------- bad input


def broken(kind, raw, folder):
    """A copy of the raw files with the second one broken."""
    shutil.copytree(raw, folder)
    path = folder / "A06E.mat"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
        return
    mat = scipy.io.loadmat(path, struct_as_record=True)
    run = mat["data"][0, 4]
    if kind == "nan":
        run["X"][0, 0][300, 5] = np.nan
    elif kind == "label":
        run["y"][0, 0][1] = 7
    elif kind == "rate":
        run["fs"][0, 0][:] = 512
    elif kind == "channels":
        run["X"][0, 0] = run["X"][0, 0][:, :21]
    elif kind == "volts":
        run["X"][0, 0] = run["X"][0, 0] * 1e-6
    scipy.io.savemat(path, {"other" if kind == "data" else "data": mat["data"]})


@pytest.mark.parametrize("kind", ["truncated", "data", "nan", "label", "rate", "channels", "volts"])
def test_a_bad_file_stops_with_one_line_that_names_it_and_leaves_nothing(prepare, raw, tmp_path, kind):
    broken(kind, raw, tmp_path / "raw")
    done, store = prepare(tmp_path / "raw")
    assert done.code == 2 and "A06E.mat" in done.error_line
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_a_scale_puts_another_unit_right(prepare, raw, tmp_path):
    (tmp_path / "raw").mkdir()
    for path in raw.glob("*.mat"):
        mat = scipy.io.loadmat(path, struct_as_record=True)
        for run in mat["data"][0]:
            run["X"][0, 0] = run["X"][0, 0].astype(float) * 1e-6
        scipy.io.savemat(tmp_path / "raw" / path.name, {"data": mat["data"]})
    refused, _ = prepare(tmp_path / "raw")
    assert (
        refused.code == 2 and "microvolts; expected 1 to 200" in refused.error_line and "--scale" in refused.error_line
    )
    done, volts = prepare(tmp_path / "raw", "--scale", 1e6)
    assert done.code == 0 and "--scale 1e+06 was applied" in done.out
    _, microvolts = prepare(raw, store=tmp_path / "microvolts")
    a, b = open_store(volts), open_store(microvolts)
    assert all(np.allclose(a.read(x), b.read(y), atol=1e-3) for x, y in zip(a.trials, b.trials, strict=True))


def test_no_raw_files_is_one_line(prepare, tmp_path):
    (tmp_path / "raw").mkdir()
    done, store = prepare(tmp_path / "raw")
    assert done.code == 2 and "no raw files" in done.error_line and not store.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(raw, tmp_path):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = subprocess.run(
        [sys.executable, str(ROOT / "prepare_data.py"), "--skip_download", "--raw_dir", str(raw), "--lmdb_dir",
         str(tmp_path / "store")], capture_output=True, text=True, preexec_fn=small_files_only,
    )  # fmt: skip
    assert done.returncode == 2 and "disk space" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--tmin", "3", "--tmax", "3"],
        ["--tmin", "nan"],
        ["--tmax", "inf"],
        ["--workers", "0"],
        ["--scale", "0"],
        ["--scale", "nan"],
        ["--downstream_dataset", "FACED"],
    ],
)
def test_flags_that_make_no_sense_are_refused(prepare, raw, flags):
    done, store = prepare(raw, *flags)
    assert done.code == 2 and not store.exists() and "Traceback" not in done.err


def test_all_18_files_are_asked_for():
    files = DESCRIPTION.all_files
    assert len(set(files)) == 18 and files[0] == "A01T.mat" and files[-1] == "A09E.mat"
