"""THINGS-EEG2: the authors' recordings, epochs as MNE makes them, whitening, the three layouts, splits, and what is
wrong with files.
"""

import pickle
import shutil

import mne
import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from datasets import things_dataset as things
from datasets.splits import split_trials
from datasets.store import open_store
from demo.things_like import ThingsDemoSize, draw_images, write_things_like
from models.clip_targets import image_paths
from tests.conftest import flat, run_process

SIZE = ThingsDemoSize(people=1, test_concepts=60, images=1, test_repetitions=1, effect=0.5, sfreq=500)
SCRIPT = "prepare_data_things.py"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """One person, 20 training and 60 test concepts, at 500 Hz (the real recordings: 1000)."""
    folder = tmp_path_factory.mktemp("things")
    paths = draw_images(folder / "images", SIZE, 0)
    rng = np.random.default_rng(0)
    drives = ({part: rng.standard_normal((len(of), n)) for part, of in paths.items()} for n in (8, 4))
    write_things_like(folder / "raw", *drives, SIZE, 0)
    return folder


def flags_of(folder, lmdb, raw_dir=None):
    places = {"--raw_dir": raw_dir or folder / "raw", "--images_dir": folder / "images", "--lmdb_dir": lmdb}
    return [
        "--skip_download",
        *(text for pair in places.items() for text in map(str, pair)),
        "--subjects",
        "1",
        "--sessions",
        "1",
        "2",
    ]


def prepare(script, folder, lmdb, *flags, raw_dir=None):
    return script(SCRIPT, *flags_of(folder, lmdb, raw_dir), *flags)


def content_of(path):
    return np.load(path, allow_pickle=True).item()


@pytest.fixture(scope="module")
def mne_epochs(raw):
    """Session 1's training epochs (n, 63, 300), microvolts, and their codes, by MNE's own Epochs and resample."""
    content = content_of(raw / "raw/sub-01/ses-01/raw_eeg_training.npy")
    info = mne.create_info(content["ch_names"], content["sfreq"], content["ch_types"])
    recording = mne.io.RawArray(content["raw_eeg_data"], info, verbose="ERROR")
    events = mne.find_events(recording, stim_channel="stim", min_duration=0, shortest_event=1, verbose="ERROR")
    events = events[events[:, 2] != things.TARGET]
    epochs = mne.Epochs(
        recording, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), picks="eeg", preload=True, verbose="ERROR"
    )
    return 1e6 * epochs.resample(250, verbose="ERROR").get_data(), events[:, 2]


def test_unwhitened_trials_are_mnes_epochs(raw, script, tmp_path, mne_epochs):
    done = prepare(script, raw, tmp_path / "store", "--whiten", "none")
    assert done.code == 0, done.err
    store = open_store(tmp_path / "store")
    assert store.shape == (63, 250) and store.sfreq == 250 and store.meta["units"] == "microvolts"
    wanted, codes = mne_epochs
    of = [t for t in store.trials if t.session == "1" and t.run == 1]
    images = things.image_list(raw / "raw", raw / "images")["training"]
    assert [t.image for t in of] == [images[code - 1] for code in codes]
    for trial, x in zip(of[::3], wanted[::3], strict=True):
        assert np.allclose(store.read(trial), x[:, 50:], atol=1e-4)


def test_whitening_is_scikit_learns_ledoit_wolf_mean_over_repetitions_then_images(raw, mne_epochs):
    path = raw / "raw/sub-01/ses-01/raw_eeg_training.npy"
    x, codes = mne_epochs
    by_image = {}
    for epoch, code in zip(x, codes, strict=True):
        scaler = StandardScaler().fit(epoch.T)
        shrunk = LedoitWolf(assume_centered=False).fit(scaler.transform(epoch.T)).covariance_
        by_image.setdefault(code, []).append(scaler.scale_[:, None] * shrunk * scaler.scale_[None])
    covariance = np.mean([np.mean(of, axis=0) for of in by_image.values()], axis=0)
    found = things.session_whitener(
        path, things.stamp(path), len(things.image_list(raw / "raw", raw / "images")["training"]), 1e6
    )
    assert np.allclose(found @ covariance @ found, np.eye(63), atol=1e-9) and np.allclose(found, found.T)


def test_the_shrunk_covariance_is_the_formulas():
    """Ledoit and Wolf's s, written out: (1 − s) S + s μ I on standardised channels."""
    x = np.random.default_rng(0).standard_normal((9, 9)) @ np.random.default_rng(1).standard_normal((9, 300))
    z = ((x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)).T
    n, p = z.shape
    s = z.T @ z / n
    mu = np.trace(s) / p
    delta = ((s - mu * np.eye(p)) ** 2).sum() / p
    beta = ((z**2).sum(axis=1) ** 2).sum() / n - (s**2).sum()
    share = min(beta / (n * p), delta) / delta
    wanted = ((1 - share) * s + share * mu * np.eye(p)) * x.std(axis=1)[:, None] * x.std(axis=1)[None]
    assert np.abs(things.shrunk_covariance(x) - wanted).max() < 1e-10 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def whitened(raw):
    done = run_process(SCRIPT, *flags_of(raw, raw / "white"))
    assert done.code == 0, done.err
    return done


def test_whitened_trials_of_both_parts_use_the_training_parts_covariance(raw, whitened, script, tmp_path):
    prepare(script, raw, tmp_path / "plain", "--whiten", "none")
    plain, white = open_store(tmp_path / "plain"), open_store(raw / "white")
    path = raw / "raw/sub-01/ses-02/raw_eeg_training.npy"
    sigma = things.session_whitener(path, things.stamp(path), 20, 1e6)
    for run in (1, 2):
        a, b = ([t for t in store.trials if t.session == "2" and t.run == run][3] for store in (plain, white))
        assert np.allclose(sigma @ plain.read(a), white.read(b), atol=1e-3) and a.image == b.image


def test_two_workers_write_the_same_and_whiten_by_each_epoch_once(raw, whitened, script, tmp_path, monkeypatch):
    """A worker lives for one piece: what it made for itself, the next one would make again."""
    real, calls = things.shrunk_covariance, tmp_path / "calls"

    def counted(x):
        with open(calls, "a") as file:
            file.write("x")
        return real(x)

    monkeypatch.setattr(things, "EVENTS", 16)  # pieces of a session
    monkeypatch.setattr(things, "shrunk_covariance", counted)
    things._whiteners.clear()
    done = prepare(script, raw, tmp_path / "store", "--workers", 2)
    assert done.code == 0, done.err
    a, b = open_store(raw / "white"), open_store(tmp_path / "store")
    assert a.trials and [t.key for t in a.trials] == [t.key for t in b.trials]
    for one, other in zip(a.trials[::7], b.trials[::7], strict=True):
        assert np.allclose(a.read(one), b.read(other), atol=1e-5)
    assert len(calls.read_text()) == sum(t.run == 1 for t in a.trials)


def test_the_closing_table_counts_what_is_expected(raw, whitened):
    lines = [line.split() for line in whitened.out.splitlines() if line.startswith("sub-01")]
    assert [line[:4] for line in lines] == [["sub-01", "training", "40", "40"], ["sub-01", "test", "120", "2400"]]
    assert [int(line[4]) for line in lines] == [2, 6]  # catch targets
    store = open_store(raw / "white")
    assert sum(t.run == 1 for t in store.trials) == 40 and len({t.image for t in store.trials if t.run == 2}) == 60


def test_more_repetitions_than_the_design_has_are_left_out(raw, script, tmp_path):
    shutil.copytree(raw / "raw", tmp_path / "raw")
    path = tmp_path / "raw/sub-01/ses-01/raw_eeg_training.npy"
    content = content_of(path)
    stim = content["raw_eeg_data"][-1]
    at = np.flatnonzero(stim)
    stim[at[stim[at] == things.TARGET]] = stim[at[stim[at] != things.TARGET][0]]
    np.save(path, content)
    done = prepare(script, raw, tmp_path / "store", raw_dir=tmp_path / "raw")
    assert done.code == 0 and "beyond 2 repetitions" in done.out
    store = open_store(tmp_path / "store")
    assert (
        max(np.unique([t.image for t in store.trials if t.session == "1" and t.run == 1], return_counts=True)[1]) == 2
    )


# ---------------------------------------------------------------- layouts that others have cut


def cut_files(folder, layout, n_channels=63, n_times=250, times=None, flat=False):
    rng = np.random.default_rng(0)
    images = things.image_list(folder / "raw", folder / "images")
    names = list(things.ELECTRODES if n_channels == 63 else things.POSTERIOR)[::-1]  # another order
    times = np.arange(-50, 250) / 250 if times is None else times
    out = {}
    for part, repetitions in (("training", 4), ("test", 6)):
        eeg = rng.standard_normal((len(images[part]), repetitions, n_channels, n_times))
        place = folder / layout / "sub-01"
        place.mkdir(parents=True, exist_ok=True)
        if layout == "npy":
            content = {"preprocessed_eeg_data": eeg, "ch_names": names, "times": times}
            (place / f"preprocessed_eeg_{part}.npy").write_bytes(pickle.dumps(content, protocol=4))
        else:
            eeg = eeg.astype(np.float16)
            rows = [f"../{image}" for image in images[part]]
            content = {"eeg": eeg.reshape(-1, n_channels, n_times) if flat else eeg, "ch_names": names, "times": times,
                       "img": [row for row in rows for _ in range(repetitions)] if flat else rows, "text": ["x"],
                       "label": torch.arange(3)}  # fmt: skip
            if flat:
                content["eeg"] = torch.from_numpy(content["eeg"])
            torch.save(content, place / ("train.pt" if part == "training" else "test.pt"))
        out[part] = eeg
    return out


@pytest.mark.parametrize("layout, flat", [("npy", False), ("pt", False), ("pt", True)])
def test_a_layout_that_others_cut_is_stored_as_it_is(raw, script, tmp_path, layout, flat):
    shutil.copytree(raw, tmp_path / "x")
    eeg = cut_files(tmp_path / "x", layout, flat=flat)
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x" / layout)
    assert done.code == 0, done.err
    store = open_store(tmp_path / "store")
    images = things.image_list(raw / "raw", raw / "images")
    assert store.meta["units"] == "no unit" and store.meta["electrodes"] == list(things.ELECTRODES)
    for run, part in ((1, "training"), (2, "test")):
        of = [t for t in store.trials if t.run == run]
        assert len(of) == eeg[part].shape[0] * eeg[part].shape[1]
        for k in (0, 5, len(of) - 1):
            image, repetition = divmod(k, eeg[part].shape[1])
            assert of[k].image == images[part][image]
            assert np.array_equal(store.read(of[k]), eeg[part][image, repetition][::-1].astype(np.float32))


def test_a_flat_file_that_lacks_a_repetition_is_one_line(raw, script, tmp_path):
    shutil.copytree(raw, tmp_path / "x")
    cut_files(tmp_path / "x", "pt", flat=True)
    path = tmp_path / "x/pt/sub-01/test.pt"
    content = torch.load(path, weights_only=False)  # our own file
    content["eeg"], content["img"] = content["eeg"][:-1].clone(), content["img"][:-1]
    torch.save(content, path)
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x/pt")
    assert done.code == 2 and "has 5 rows, other images 6" in done.error_line


def test_the_authors_seventeen_electrodes_are_a_store_of_their_own_kind(raw, script, tmp_path):
    shutil.copytree(raw, tmp_path / "x")
    cut_files(tmp_path / "x", "npy", 17, 100, np.arange(-20, 80) / 100)
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x/npy")
    assert done.code == 0, done.err
    store = open_store(tmp_path / "store")
    assert store.shape == (17, 80) and store.sfreq == 100 and store.meta["electrodes"] == list(things.POSTERIOR)


# ---------------------------------------------------------------- splits


def test_no_concept_is_in_two_splits_and_the_held_out_ones_are_the_same_for_all(raw, whitened):
    store = open_store(raw / "white")
    splits = split_trials(store, things.DESCRIPTION.of_store(store.meta), "within:sub-01")
    concepts = {mode: {things.concept_of(t.image) for t in of} for mode, of in splits.items()}
    assert len(concepts["val"]) == 3 and len(concepts["train"]) == 17 and len(concepts["test"]) == 60
    assert not concepts["train"] & concepts["val"] and not (concepts["train"] | concepts["val"]) & concepts["test"]
    assert split_trials(store, things.DESCRIPTION.of_store(store.meta), "joint")["val"] == splits["val"]


def test_a_concept_that_is_in_both_parts_is_found_out(raw, script, tmp_path):
    shutil.copytree(raw / "images", tmp_path / "x/images")
    shutil.copytree(raw / "raw", tmp_path / "x/raw")
    (tmp_path / "x/images/image_metadata.npy").unlink()
    folder = next((tmp_path / "x/images/test_images").iterdir())
    trained = sorted((tmp_path / "x/images/training_images").iterdir())
    twin = folder.with_name(folder.name[:6] + trained[0].name[6:])
    folder.rename(twin)
    assert prepare(script, tmp_path / "x", tmp_path / "store").code == 0
    done = script(
        "finetune_eeg_to_clip.py",
        "--datasets_dir",
        tmp_path / "store",
        "--subject",
        "sub-01",
        "--output_dir",
        tmp_path / "run",
        "--cuda",
        -1,
    )
    assert done.code == 2 and "a concept may be in one split only" in done.error_line


# ---------------------------------------------------------------- what is wrong with files


def changed(raw, tmp_path, change, name="raw_eeg_training.npy"):
    shutil.copytree(raw / "raw", tmp_path / "raw")
    path = tmp_path / "raw/sub-01/ses-02" / name
    content = content_of(path)
    change(content)
    np.save(path, content)
    return tmp_path / "raw"


def _set(content, key, value):
    content[key] = value


def _nan(content):
    content["raw_eeg_data"][7, 1000] = np.nan


def _nested():
    lists = ["Fp1"]
    for _ in range(28):
        lists = [lists, lists]
    return lists


def _code(content):
    stim = content["raw_eeg_data"][-1]
    stim[np.flatnonzero(stim)[9]] = 9999  # what a comment in the published code says instead of 99999


def test_an_electrode_that_never_changes_is_named(raw, script, tmp_path):
    flat = changed(raw, tmp_path, lambda content: content["raw_eeg_data"][11].fill(0))
    done = prepare(script, raw, tmp_path / "store", raw_dir=flat)
    assert done.code == 0 and "F2 never changes" in done.out and done.out.count("never change") == 1
    store = open_store(tmp_path / "store")
    assert all(np.isfinite(store.read(t)).all() for t in store.trials[::50])


@pytest.mark.parametrize("change, said", [
    (_code, "event code 9999"), (_nan, "F7 holds NaN"),
    (lambda c: c["ch_names"].__setitem__(3, "X"), "AF3 is not among its ch_names"),
    (lambda c: c["ch_names"].__setitem__(3, "Fp1"), "Fp1 is there twice"),
    (lambda c: c.pop("ch_types"), "no raw recording"), (lambda c: _set(c, "sfreq", 333), "at 333.0 Hz"),
    (lambda c: _set(c, "raw_eeg_data", [1, [2]]), "raw_eeg_data is a list"),
    (lambda c: _set(c, "raw_eeg_data", "text"), "raw_eeg_data is a str"),
    (lambda c: _set(c, "raw_eeg_data", c["raw_eeg_data"].astype(np.longdouble)), "the data type 'f16'"),
    (lambda c: _set(c, "raw_eeg_data", np.array([[1.0], [1.0, 2.0]], object)), "raw_eeg_data is object (2,)"),
    (lambda c: _set(c, "ch_types", 5), "ch_types is a int"),
    (lambda c: _set(c, "ch_names", None), "ch_names is a None"),
    (lambda c: _set(c, "sfreq", int("9" * 600)), "a number from 250"), (lambda c: _set(c, "sfreq", "500"), "is a str"),
    (lambda c: _set(c, "ch_names", _nested()), "over and over"),
    (lambda c: _set(c, "more", _nested()), "over and over"),
    (lambda c: _set(c, "ch_types", ["eeg"] * 64), "one channel of type stim"),
    (lambda c: _set(c, "raw_eeg_data", c["raw_eeg_data"] * 1e6 * np.r_[np.ones(63), 1e-6][:, None]),
    "is the unit wrong"),
], ids=["code", "nan", "unknown", "twice", "keys", "rate", "list", "text", "longdouble", "ragged", "types", "names",
    "digits", "rate as text", "nested names", "nested more", "stim", "unit"])  # fmt: skip
def test_a_wrong_recording_is_one_line(raw, script, tmp_path, change, said):
    done = prepare(script, raw, tmp_path / "store", raw_dir=changed(raw, tmp_path, change))
    assert done.code == 2 and said in done.error_line and not (tmp_path / "store").exists()


def test_another_channel_order_is_put_right_by_names(raw, script, tmp_path):
    order = np.random.default_rng(0).permutation(64)

    def shuffle(content):
        content["raw_eeg_data"] = content["raw_eeg_data"][order]
        content["ch_names"] = [content["ch_names"][k] for k in order]
        content["ch_types"] = [content["ch_types"][k] for k in order]

    for name, change in (("a", shuffle), ("b", lambda c: None)):
        (tmp_path / name).mkdir()
        assert prepare(script, raw, tmp_path / name / "store", raw_dir=changed(raw, tmp_path / name, change)).code == 0
    a, b = open_store(tmp_path / "a/store"), open_store(tmp_path / "b/store")
    assert np.allclose(a.read(a.trials[-20]), b.read(b.trials[-20]), atol=1e-4)


def test_a_missing_session_is_one_line_unless_it_is_left_out_by_name(raw, script, tmp_path):
    shutil.copytree(raw / "raw", tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw/sub-01/ses-02")
    done = prepare(script, raw, tmp_path / "store", raw_dir=tmp_path / "raw")
    assert (
        done.code == 2
        and "ses-02/raw_eeg_training.npy is missing" in done.error_line
        and "--sessions" in done.error_line
    )
    assert prepare(script, raw, tmp_path / "store", "--sessions", 1, raw_dir=tmp_path / "raw").code == 0


def test_a_missing_image_and_two_images_for_one_code_are_one_line(raw, script, tmp_path):
    shutil.copytree(raw / "images", tmp_path / "images")
    folder = sorted((tmp_path / "images/test_images").iterdir())[2]
    image = next(folder.iterdir())
    shutil.copy(image, image.with_name("other.jpg"))
    args = (
        "--skip_download",
        "--raw_dir",
        raw / "raw",
        "--images_dir",
        tmp_path / "images",
        "--lmdb_dir",
        tmp_path / "s",
        "--subjects",
        1,
    )
    done = script(SCRIPT, *args)
    assert done.code == 2 and "has 2 images; expected 1" in done.error_line
    image.with_name("other.jpg").unlink()
    image.rename(image.with_name("other.jpg"))
    done = script(SCRIPT, *args)
    assert done.code == 2 and image.name in done.error_line and "is missing" in done.error_line


@pytest.mark.parametrize("n", [299, 251])
def test_times_of_another_length_than_the_data_are_one_line(raw, script, tmp_path, n):
    shutil.copytree(raw, tmp_path / "x")
    cut_files(tmp_path / "x", "npy", times=np.arange(-50, n - 50) / 250)
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x/npy")
    assert done.code == 2 and f"times has {n} values" in done.error_line


@pytest.mark.parametrize("times", [np.zeros(300), np.r_[np.arange(299.0), 1e308], np.arange(300.0)[::-1], "x", None])
def test_times_that_cannot_be_are_one_line(raw, script, tmp_path, times):
    shutil.copytree(raw, tmp_path / "x")
    cut_files(tmp_path / "x", "npy")
    path = tmp_path / "x/npy/sub-01/preprocessed_eeg_training.npy"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | {"times": times}, protocol=4))
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x/npy")
    assert done.code == 2 and "times" in done.error_line


def test_an_array_without_samples_is_one_line_however_many_it_says_to_have(raw, script, tmp_path):
    shutil.copytree(raw, tmp_path / "x")
    cut_files(tmp_path / "x", "npy")
    path = tmp_path / "x/npy/sub-01/preprocessed_eeg_training.npy"
    content = pickle.loads(path.read_bytes()) | {"preprocessed_eeg_data": np.empty((2 * 10**8, 1, 63, 0))}
    path.write_bytes(pickle.dumps(content | {"times": np.arange(-5, 0) / 250}, protocol=4))
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x/npy")
    assert done.code == 2 and "preprocessed_eeg_data" in done.error_line and "there are none" in done.error_line


@pytest.mark.parametrize("value", [5, [["x"]], None, {"a": 1}, [_nested()]])
def test_lists_of_images_that_are_none_are_one_line(raw, script, tmp_path, value):
    shutil.copytree(raw / "raw", tmp_path / "raw")
    path = tmp_path / "raw/image_metadata.npy"
    names = {f"{short}_img_{what}": ["x"] for short in ("train", "test") for what in ("concepts", "files")}
    np.save(path, np.array(names | {"test_img_files": value}, object))
    done = prepare(script, raw, tmp_path / "store", raw_dir=tmp_path / "raw")
    assert done.code == 2 and ("test_img_files" in done.error_line or "over and over" in done.error_line)


def test_a_damaged_byte_of_ubps_file_is_found_by_its_checksum(raw, script, tmp_path):
    shutil.copytree(raw, tmp_path / "x")
    cut_files(tmp_path / "x", "pt")
    path = tmp_path / "x/pt/sub-01/train.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a sample's bit: the store would be another one, and nobody would know
    path.write_bytes(content)
    done = prepare(script, tmp_path / "x", tmp_path / "store", raw_dir=tmp_path / "x/pt")
    assert done.code == 2 and "checksum" in done.error_line and "train.pt" in done.error_line


def test_preparing_goes_on_behind_what_a_run_that_died_had_done(raw, whitened, script, tmp_path):
    calls, real = [], things.prepare_piece

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    object.__setattr__(things.DESCRIPTION, "prepare_piece", dies)
    try:
        assert prepare(script, raw, tmp_path / "store").code == 130
    finally:
        object.__setattr__(things.DESCRIPTION, "prepare_piece", real)
    done = prepare(script, raw, tmp_path / "store")
    assert done.code == 0 and "going on behind them" in done.out
    a, b = open_store(raw / "white"), open_store(tmp_path / "store")
    assert a.meta["fingerprint"] == b.meta["fingerprint"] and a.trials == b.trials


# ---------------------------------------------------------------- copies of it, and own people

FOLDERS = {
    "training": ([f"{k + 1:05d}_thing{k}" for k in range(3)], 2, 4),
    "test": (["00001_test0", "00002_test1"], 1, 80),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The same arrays in UBP's, NeuroBridge's and NICE's layout; photos in train_images/, with their macOS doubles."""
    folder, rng = tmp_path_factory.mktemp("copies"), np.random.default_rng(0)
    times = np.linspace(-0.2, 1, 300, endpoint=False)
    for layout in ("ubp", "bridge", "nice"):
        (folder / layout / "sub-11").mkdir(parents=True)
    for part, (names, n, repetitions) in FOLDERS.items():
        there, short = {"training": ("train_images", "train"), "test": ("test_images", "test")}[part]
        images = [f"{there}/{name}/{name[6:]}_{j:02d}b.jpg" for name in names for j in range(n)]
        for image in images:
            photo = folder / "images" / image
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(b"photo")
            photo.with_name(f"._{photo.name}").write_bytes(b"macOS")
        x = rng.standard_normal((len(images), repetitions, 63, 250)).astype("f2")
        about = {"ch_names": list(things.ELECTRODES), "times": times}
        sessions = np.tile(np.arange(repetitions) // (repetitions // 4), (len(images), 1)).astype(float)
        ubp = {"eeg": x, "img": np.tile(np.array(images)[:, None], (1, repetitions)), "session": sessions} | about
        torch.save(ubp, folder / f"ubp/sub-11/{short}.pt", pickle_protocol=5)
        (folder / f"ubp/sub-11/._{short}.pt").write_bytes(b"macOS")
        bridge = {"data": x.reshape(len(names), n, *x.shape[1:])} | about
        (folder / f"bridge/sub-11/{short}.npy").write_bytes(pickle.dumps(bridge, 4))
        nice = {"preprocessed_eeg_data": x} | about
        (folder / f"nice/sub-11/preprocessed_eeg_{part}.npy").write_bytes(pickle.dumps(nice, 4))
    return folder


def test_layouts_of_others_hold_the_same_trials_of_a_person_who_is_not_published(copies, script, tmp_path):
    stores = []
    for layout in ("nice", "ubp", "bridge"):
        places = {"raw_dir": copies / layout, "images_dir": copies / "images", "lmdb_dir": tmp_path / layout}
        done = script(SCRIPT, "--skip_download", *flat(places), *(("--subjects", 11) if layout == "ubp" else ()))
        assert done.code == 0 and "sub-11    training        24        24" in done.out, done.err
        stores.append(open_store(tmp_path / layout))
    assert {t.session for t in stores[1].trials} == {"0", "1", "2", "3"}
    for store in stores[1:]:
        assert [t.image for t in store.trials] == [t.image for t in stores[0].trials]
        for a, b in zip(store.trials, stores[0].trials, strict=True):
            assert np.array_equal(store.read(a), stores[0].read(b))
    image = stores[0].trials[0].image
    assert image == "training_images/00001_thing0/thing0_00b.jpg"
    assert image_paths([image], copies / "images")[0].read_bytes() == b"photo"


def test_a_folder_above_the_photos_and_a_person_who_is_nowhere_are_one_line(copies, script, tmp_path):
    places = {"raw_dir": copies / "nice", "images_dir": copies, "lmdb_dir": tmp_path / "store"}
    done = script(SCRIPT, "--skip_download", *flat(places))
    assert done.code == 2 and f"name {copies}/images" in done.error_line
    places["images_dir"] = copies / "images"
    done = script(SCRIPT, "--skip_download", *flat(places), "--subjects", "12")
    assert done.code == 2 and "sub-12 has neither" in done.error_line
    assert "numbers, as in 1" in script(SCRIPT, "--skip_download", *flat(places), "--subjects", "Anna").error_line
    assert "with --skip_download" in script(SCRIPT, *flat(places), "--subjects", "11").error_line
