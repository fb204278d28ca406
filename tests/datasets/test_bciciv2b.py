import numpy as np
import pytest
import scipy.io
import scipy.signal

from datasets.bciciv2b_dataset import DESCRIPTION, files
from datasets.splits import split_trials
from datasets.store import open_store
from datasets.trials import TrialDataset
from demo.bcic_like import DemoSize, write_bcic2b_like

SOS = scipy.signal.butter(5, [0.3 / 125, 50 / 125], "band", output="sos")


def prepare(process, raw, store, *flags):
    return process(
        "prepare_data.py", "--downstream_dataset", "BCICIV2b", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store,
        *flags
    )  # fmt: skip


def expected_of(trial, raw):
    """Plain SciPy from the raw file: filtered as it is, with no reference, 3 to 7 s after the trial's start."""
    session = int(trial.session)
    name, place = (f"{trial.subject}T.mat", session - 1) if session <= 3 else (f"{trial.subject}E.mat", session - 4)
    run = scipy.io.loadmat(raw / name, squeeze_me=True, struct_as_record=False)["data"][place]
    filtered = scipy.signal.sosfiltfilt(SOS, run.X[:, :3].astype(float), axis=0)
    start = int(run.trial[trial.trial - 1]) - 1 + 750
    return filtered[start : start + 1000].T, int(run.y[trial.trial - 1]) - 1


def table(out, split, fate="kept"):
    return [
        int(v)
        for line in out.splitlines()
        if line.startswith(split) and fate in line
        for v in line.split(fate)[1].split()
    ]


# ---------------------------------------------------------------- recordings as they are published, simulated


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, process):
    """Three people, five sessions of four trials (as many runs as the real files have)."""
    folder = tmp_path_factory.mktemp("2b")
    write_bcic2b_like(folder / "raw", DemoSize(trials_per_run=4), 0, [f"B0{k}{s}.mat" for k in (2, 7, 9) for s in "TE"])
    done = prepare(process, folder / "raw", folder / "store")
    assert done.code == 0, done.err
    return folder, done


def test_a_session_is_a_run_and_sessions_of_both_files_are_counted_on(simulated):
    folder, done = simulated
    store = open_store(folder / "store")
    assert [path.name for path in files(folder / "raw")] == [f"B0{k}{s}.mat" for k in (2, 7, 9) for s in "TE"]
    assert store.shape == (3, 1000) and store.sfreq == 250 and store.meta["dataset"] == "BCICIV2b"
    assert store.meta["electrodes"] == ["C3", "Cz", "C4"] and store.meta["preprocessing"]["reference"] == "none"
    assert store.meta["preprocessing"]["tmin"] == 3 and store.meta["preprocessing"]["tmax"] == 7
    assert [(t.subject, t.session, t.run, t.trial) for t in store.trials] == [
        (f"B0{k}", session, 1, number) for k in (2, 7, 9) for session in "12345" for number in (1, 2, 3, 4)
    ]
    for split, n in (("train", 20), ("val", 20), ("test", 20)):
        assert table(done.out, split)[:3] == [n // 2, n // 2, n]
    assert "B01E.mat" in done.out and "6 of 18 files are there" in done.out


def test_every_trial_equals_an_independent_computation_from_the_raw_file(simulated):
    folder, _ = simulated
    store = open_store(folder / "store")
    for trial in store.trials:
        expected, label = expected_of(trial, folder / "raw")
        assert label == trial.label and np.abs(store.read(trial) - expected).max() < 1e-3


def test_the_simulated_effect_is_at_the_hands_electrodes(simulated):
    """Imagery of a hand dims the 8–13 Hz rhythm over the other side: left over C4, right over C3."""
    store = open_store(simulated[0] / "store")
    x = np.stack([store.read(trial) for trial in store.trials])
    power = np.abs(np.fft.rfft(x))[..., 32:53].mean(axis=-1)  # quarters of a Hz
    side, labels = np.log(power[:, 0] / power[:, 2]), np.array([trial.label for trial in store.trials])
    assert side[labels == 0].mean() > 0.3 > -0.3 > side[labels == 1].mean()


def test_sessions_can_be_split_within_a_person(simulated):
    splits = split_trials(open_store(simulated[0] / "store"), DESCRIPTION, "within:B07")
    assert [sorted({t.session for t in trials}) for trials in splits.values()] == [["1", "2"], ["3"], ["4", "5"]]
    dataset = TrialDataset(simulated[0] / "store", "test", "within:B07", DESCRIPTION)
    assert len(dataset) == 8 and dataset[0]["x"].shape == (3, 1000)


def test_2a_files_and_2a_flags_are_no_2b(simulated, process, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/A01T.mat").write_bytes(b"x")
    done = prepare(process, tmp_path / "raw", tmp_path / "store")
    assert done.code == 2 and "no raw files B01T.mat … B09E.mat" in done.error_line
    done = prepare(process, simulated[0] / "raw", tmp_path / "store", "--trial_set", "all")
    assert (
        done.code == 2 and "--trial_set does not belong to BCICIV2b" in done.err and not (tmp_path / "store").exists()
    )


# ---------------------------------------------------------------- real recordings


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory, process):
    store = tmp_path_factory.mktemp("real") / "store"
    done = prepare(process, shared / "real/bciciv2b_raw", store)
    assert done.code == 0, done.err
    return open_store(store), done


def test_real_recordings_give_all_trials_of_seven_people(real):
    store, done = real
    splits = split_trials(store, DESCRIPTION)
    assert {split: len(trials) for split, trials in splits.items()} == {"train": 3000, "val": 1200, "test": 0}
    assert {t.subject for t in splits["train"]} == {f"B0{k}" for k in range(1, 6)}
    assert {t.subject for t in splits["val"]} == {"B06", "B07"}
    assert table(done.out, "train")[2:] == [3000, 3600] and table(done.out, "val")[2:] == [1200, 1440]
    assert table(done.out, "test")[2:] == [0, 1440] and "notice: no test trials" in done.out
    assert not any("dropped" in key for key in store.meta["counts"])
    per_session = {(t.subject, t.session) for t in store.trials}
    assert per_session == {(f"B0{k}", s) for k in range(1, 8) for s in "12345"}


def test_real_trials_equal_an_independent_computation_from_the_raw_file(shared, real):
    store, _ = real
    chosen = [store.trials[k] for k in (0, 119, 120, 361, 599, 1500, 2650, 4199)]
    assert len({(t.subject, t.session) for t in chosen}) == 7
    for trial in chosen:
        expected, label = expected_of(trial, shared / "real/bciciv2b_raw")
        x = store.read(trial)
        assert label == trial.label and np.abs(x - expected).max() < 1e-3
        shared_part = np.abs(expected.mean(axis=0)).max()  # what a common average reference would take away
        assert shared_part > 1 and np.abs(x - (expected - expected.mean(axis=0))).max() > 0.99 * shared_part
