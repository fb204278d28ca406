import hashlib
import io
import json
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mne
import numpy as np
import pytest
import scipy.signal
from PIL import Image

from datasets.splits import split_trials
from datasets.store import open_store
from datasets.visual_imagery_llm_dataset import DESCRIPTION, VisualImageryLLMDataset
from datasets.visual_imagery_llm_dataset import MONTAGE as VI
from demo.vi_like import VIDemoSize, write_bdf, write_tsv, write_vi_like


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three people, one trial a class: S13 and S22 in blank BDF, S17 in FIF."""
    folder = tmp_path_factory.mktemp("vi") / "raw"
    write_vi_like(folder, VIDemoSize(trials_per_class=1, only=("S13", "S17", "S22")), 0)
    return folder


@pytest.fixture
def prepare(script, tmp_path):
    """prepare_data_vi.py on a folder of recordings; gives what it printed and the store's place."""

    def run(raw, *flags, store=tmp_path / "store"):
        flags = ("--raw_dir", raw, "--lmdb_dir", store, "--workers", 1, *flags)
        return script("prepare_data_vi.py", *flags), store

    return run


def split_of(store):
    return split_trials(open_store(store), DESCRIPTION)


def lengths(store):
    return {split: len(trials) for split, trials in split_of(store).items()}


def one_recording(folder, signal=None, events=((1000, 1), (6000, 2), (11000, 3)), task="AVI", **options):
    """A single 16 s recording of S01; gives its path."""
    if signal is None:
        signal = 20 * np.random.default_rng(0).standard_normal((32, 16000))
    path = folder / f"sub-01/ses-01/eeg/sub-01_ses-01_task-{task}_eeg.bdf"
    write_bdf(path, signal, list(events), **options)
    return path


# ---------------------------------------------------------------- real recordings


@pytest.fixture(scope="module")
def real_store(shared, tmp_path_factory, process):
    store = tmp_path_factory.mktemp("real") / "store"
    raw = shared / "real/visual_imagery_raw"
    done = process("prepare_data_vi.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store, "--workers", 2)
    assert done.code == 0, done.err
    return store, done


def test_real_recordings_give_nine_trials_a_person_in_microvolts(real_store):
    store, done = real_store
    amplitudes = {}
    for split in ("train", "val", "test"):
        dataset = VisualImageryLLMDataset(str(store), split)
        assert len(dataset) == 9 and {trial.subject for trial in dataset.trials} == {
            {"train": "S01", "val": "S17", "test": "S20"}[split]
        }
        amplitudes[split] = np.median([np.median(dataset[k]["x"].numpy().std(axis=1)) for k in range(9)])
    assert max(amplitudes.values()) < 2 * min(amplitudes.values())  # a plain reader gives a factor of 256
    assert min(amplitudes.values()) > 10 and max(amplitudes.values()) < 100  # microvolts
    assert open_store(store).shape == (32, 4000) and open_store(store).sfreq == 1000
    assert "units put right in 6 recordings (24-bit samples" in done.out
    assert "units put right in 3 recordings (no physical dimension" in done.out
    assert "missing: S01 has session 01 only" in done.out and "missing: all recordings of S02" in done.out


def test_real_trials_equal_an_independent_computation_from_the_raw_file(shared, real_store):
    """Plain SciPy on what MNE reads, all channels at once, units by hand."""
    files = {"S01": ("01/ses-01/eeg/sub-01_ses-01", "bdf", 1e6 / 256), "S17": ("17/ses-01/eeg/sub-17_ses-01", "fif",
        1e6),
             "S20": ("20/ses-01/eeg/sub-20_ses-01", "bdf", 1 / 256)}  # fmt: skip
    sos = scipy.signal.butter(5, (0.3, 50), "bandpass", fs=1000, output="sos")
    checked = 0
    for split in ("train", "val", "test"):
        dataset = VisualImageryLLMDataset(str(real_store[0]), split)
        for k, trial in enumerate(dataset.trials):
            stem, kind, factor = files[trial.subject]
            task = ("AVI", "FVI", "OVI")[trial.run - 1]
            path = shared / f"real/visual_imagery_raw/sub-{stem}_task-{task}_eeg.{kind}"
            read = {"bdf": mne.io.read_raw_bdf, "fif": mne.io.read_raw_fif}[kind]
            x = read(path, verbose="ERROR").get_data(picks=list(VI.electrodes)) * factor
            x = scipy.signal.sosfiltfilt(sos, x - x.mean(axis=0), axis=-1)
            start = (4200, 12500, 20800)[trial.trial - 1] + 500
            assert np.abs(dataset[k]["x"].numpy() - x[:, start : start + 4000]).max() < 1e-3  # microvolts
            assert dataset[k]["label"] == trial.label and trial.session == "01"
            checked += 1
    assert checked == 27


def test_the_trials_are_the_same_without_the_tsv(shared, real_store, prepare, tmp_path):
    for path in (shared / "real/visual_imagery_raw").rglob("*_eeg.*"):
        link = tmp_path / "raw" / path.relative_to(shared / "real/visual_imagery_raw")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    done, store = prepare(tmp_path / "raw", "--skip_download")
    assert done.code == 0, done.err
    assert open_store(store).meta["fingerprint"] == open_store(real_store[0]).meta["fingerprint"]


# ---------------------------------------------------------------- what is kept, dropped, missing


def test_labels_are_local_to_a_task_and_strange_codes_are_dropped_and_counted(raw, prepare):
    done, store = prepare(raw, "--skip_download")
    assert done.code == 0, done.err
    meta = open_store(store).meta
    assert lengths(store) == {"train": 20, "val": 20, "test": 20}
    for trials in split_of(store).values():
        for trial in trials:
            assert trial.label // 3 == trial.run - 1 or (trial.run == 3 and trial.label == 9)
        assert sorted(trial.label for trial in trials) == sorted([*range(10)] * 2)
    assert "dropped: code 5, which AVI does not know, in S13 session 02: 1 events" in done.out
    assert meta["preprocessing"]["tmin"] == 0.5 and meta["preprocessing"]["tmax"] == 4.5
    assert len(meta["sources"]) == 18 and all(len(source["sha256"]) == 64 for source in meta["sources"])
    kept = next(line for line in done.out.splitlines() if line.startswith("train kept")).split()
    assert kept[2:] == ["2"] * 10 + ["20", "800", "12000"]


def test_the_window_and_the_people_can_be_chosen(raw, prepare):
    done, store = prepare(raw, "--skip_download", "--subjects", "22", "sub-17", "--tmin", 0, "--tmax", 4)
    assert done.code == 0, done.err
    assert lengths(store) == {"train": 0, "val": 20, "test": 20}
    assert "notice: no train trials" in done.out
    half, store = prepare(raw, "--skip_download", "--subjects", "22", "--tmin", 0, "--tmax", 0.5, "--overwrite")
    assert half.code == 0 and open_store(store).shape == (32, 500)  # no whole second is asked for


def test_a_file_without_events_is_reported_and_the_others_count(prepare, tmp_path):
    one_recording(tmp_path / "raw")
    one_recording(tmp_path / "raw", events=(), task="FVI")
    done, store = prepare(tmp_path / "raw", "--skip_download")
    assert done.code == 0 and "task-FVI_eeg.bdf has no events" in done.out
    assert lengths(store)["train"] == 3
    assert "missing: S01 session 01, OVI" in done.out


def test_a_window_that_leaves_the_recording_is_dropped_and_counted(prepare, tmp_path):
    one_recording(tmp_path / "raw", events=((1000, 1), (12000, 2)))
    done, store = prepare(tmp_path / "raw", "--skip_download")
    assert done.code == 0 and open_store(store).meta["counts"] == {
        "recordings/recordings": 1, "kept/S01/0": 1, "dropped: window leaves the run/S01/1": 1,
    }  # fmt: skip


# ---------------------------------------------------------------- what a user gets wrong


def refused(done, store, message):
    assert done.code == 2 and message in done.error_line, done.err
    assert not store.exists() and not list(store.parent.glob(".store*"))


def test_amplitudes_out_of_range_stop_with_the_value_and_the_flag(prepare, tmp_path):
    signal = 400 * np.random.default_rng(0).standard_normal((32, 16000))
    path = one_recording(tmp_path / "raw", signal * 10)
    done, store = prepare(tmp_path / "raw", "--skip_download")
    refused(done, store, "--scale")
    assert path.name in done.error_line and "microvolts; expected 1 to 200" in done.error_line
    done, store = prepare(tmp_path / "raw", "--skip_download", "--scale", 0.01)
    assert done.code == 0 and "--scale 0.01 was applied" in done.out
    assert 5 < open_store(store).read(open_store(store).trials[0]).std() < 50


@pytest.mark.parametrize("sfreq, n_times, message", [(333.33, 4000, "333.33 Hz"), (1000, 2000, "less than one window")])
def test_odd_rates_and_short_recordings_are_one_line(prepare, tmp_path, sfreq, n_times, message):
    info = mne.create_info(list(VI.electrodes), sfreq, "eeg")
    raw = mne.io.RawArray(2e-5 * np.random.default_rng(0).standard_normal((32, n_times)), info, verbose="ERROR")
    raw.set_annotations(mne.Annotations([0.5], 0.001, ["1"]))
    (tmp_path / "raw").mkdir()
    raw.save(tmp_path / "raw/sub-01_ses-01_task-AVI_eeg.fif", verbose="ERROR")
    refused(*prepare(tmp_path / "raw", "--skip_download"), message)


def test_bad_recordings_are_one_line_and_leave_no_store(prepare, tmp_path):
    folder = tmp_path / "raw"
    path = one_recording(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    done, store = prepare(folder, "--skip_download")
    refused(done, store, "is truncated")
    write_tsv(path.with_name("sub-01_ses-01_task-AVI_events.tsv"), [(1000, 1), (6000, 3), (11000, 2)])
    path.write_bytes(whole)
    refused(*prepare(folder, "--skip_download"), "code 3 at sample 6000")
    path.with_name("sub-01_ses-01_task-AVI_events.tsv").unlink()
    one_recording(folder, labels=tuple("X1" if label == "Pz" else label for label in VI.electrodes))
    refused(*prepare(folder, "--skip_download"), "has no electrode Pz")
    one_recording(folder, events=())
    refused(*prepare(folder, "--skip_download"), "no events")


@pytest.mark.parametrize("flags, message", [
    (("--tmin", "1", "--tmax", "1"), "must end after it begins"), (("--subjects", "23"), "S23"), (("--workers", "0"),
    "--workers"),
    (("--scale", "-1"), "--scale"), (("--zip_path", "nowhere.zip"), "no such file"),
])  # fmt: skip
def test_wrong_arguments_are_refused(prepare, tmp_path, flags, message):
    done, store = prepare(tmp_path, "--skip_download", *flags)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err and not store.exists()


def test_no_recordings_and_a_store_that_is_there(raw, prepare, tmp_path):
    refused(*prepare(tmp_path / "empty", "--skip_download"), "no recordings")
    done, store = prepare(raw, "--skip_download", "--subjects", "22")
    assert done.code == 0
    again, _ = prepare(raw, "--skip_download")
    assert again.code == 2 and "--overwrite" in again.error_line
    assert lengths(store) == {"train": 0, "val": 0, "test": 20}


# ---------------------------------------------------------------- zips and Figshare


def photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def article(raw, tmp_path_factory):
    """A folder like Figshare's article: a zip a person, the photos; and all of it as one zip."""
    folder = tmp_path_factory.mktemp("article")
    for person in ("sub-13", "sub-22"):
        with zipfile.ZipFile(folder / f"{person}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((raw / person).rglob("*_eeg.*")):
                archive.write(path, path.relative_to(raw))
    for name in DESCRIPTION.stimuli.values():
        (folder / name).write_bytes(photo())
    with zipfile.ZipFile(folder.parent / "30227503.zip", "w") as archive:
        archive.writestr("__MACOSX/._sub-13.zip", b"what a Mac adds")
        for path in sorted(folder.iterdir()):
            archive.write(path, f"stimuli/{path.name}" if path.suffix == ".jpg" else path.name)
    return folder


def test_the_articles_zip_of_zips_is_unpacked_and_prepared(raw, article, prepare, tmp_path):
    flags = ("--zip_path", article.parent / "30227503.zip", "--subjects", 13, 22)
    done, store = prepare(tmp_path / "VisualImagery/raw", *flags)
    assert done.code == 0, done.err
    assert lengths(store) == {"train": 20, "val": 0, "test": 20}
    assert sorted(p.name for p in (tmp_path / "VisualImagery/stimuli").iterdir()) == sorted(
        DESCRIPTION.stimuli.values()
    )
    assert "stimulus photo" not in done.out
    assert {p.name for p in (tmp_path / "VisualImagery/raw").iterdir()} == {"sub-13", "sub-22"}


def test_a_zip_that_leaves_its_folder_is_refused(prepare, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("sub-01/../../../sub-01/escaped.bdf", b"x")
    done, store = prepare(tmp_path / "VisualImagery/raw", "--zip_path", tmp_path / "bad.zip")
    refused(done, store, "leaves the folder")
    assert not list(tmp_path.rglob("escaped.bdf"))


class Figshare(SimpleHTTPRequestHandler):
    """Serves the article's folder, and its file list under /list."""

    damaged: set = set()

    def do_GET(self):
        address = f"http://127.0.0.1:{self.server.server_port}"
        if not self.path.startswith("/list"):
            return super().do_GET()
        files = []
        for path in sorted(Path(self.directory).iterdir()):
            md5 = "0" * 32 if path.name in self.damaged else hashlib.md5(path.read_bytes()).hexdigest()
            files.append({"name": path.name, "size": path.stat().st_size, "download_url": f"{address}/{path.name}",
                          "computed_md5": md5})  # fmt: skip
        # as Figshare does: the article lists ten files, its /files all of them
        content = json.dumps(files if "/files" in self.path else {"files": files[:10]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def figshare(article, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Figshare, directory=str(article)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("datasets.visual_imagery_llm_dataset.FIGSHARE", f"http://127.0.0.1:{server.server_port}/list")
    Figshare.damaged = set()
    yield Figshare
    server.shutdown()


def test_figshares_list_is_downloaded_checked_and_unpacked(figshare, prepare, tmp_path):
    raw = tmp_path / "VisualImagery/raw"
    figshare.damaged = {"sub-22.zip"}
    done, store = prepare(raw, "--subjects", "22")
    refused(done, store, "md5")
    assert not (raw / "sub-22.zip").exists()
    figshare.damaged = set()
    done, store = prepare(raw, "--subjects", "22")
    assert done.code == 0, done.err
    assert lengths(store) == {"train": 0, "val": 0, "test": 20}
    assert not (raw / "sub-13.zip").exists()  # not asked for
    assert (tmp_path / "VisualImagery/stimuli/Animal_dog.jpg").exists()


def test_an_unreachable_figshare_says_what_to_do_instead(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.visual_imagery_llm_dataset.FIGSHARE", "http://127.0.0.1:9/list")
    done, store = prepare(tmp_path / "raw")
    refused(done, store, "--zip_path")


def test_missing_and_damaged_photos_are_said(raw, prepare, tmp_path):
    (tmp_path / "stimuli").mkdir()
    (tmp_path / "stimuli/Animal_bird.jpg").write_text("no picture")
    done, _ = prepare(raw, "--skip_download", "--subjects", "22", "--stimuli_dir", tmp_path / "stimuli")
    assert done.code == 0 and "photos missing" in done.out and "Animal_dog.jpg" in done.out
    assert "Animal_bird.jpg is not a picture" in done.out
