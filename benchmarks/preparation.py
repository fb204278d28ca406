"""Goal: two workers prepare recordings at least 5 times as fast as the published way, and 1.8 times as fast as one.

    python benchmarks/preparation.py                                     # a part of each data set, both sides
    python benchmarks/preparation.py --scale 1 --rounds 1 --sides ours   # full sizes: time and memory
    python benchmarks/preparation.py --only things --scale 0.02 --rounds 1

Synthetic raw files of noise in the real containers. At --scale 1: BCIC-IV-2a's 18 files of 288 trials; a person of
Visual Imagery, two sessions of 400 trials; a session of THINGS-EEG2, 16,540 and 4,000 events at 1000 Hz; a file of
EEG-ImageNet of 4,000 trials. Ours writes the store that training reads, whole, checked and on the disk. The published
ways, written anew from their descriptions, run in one process:

bcic, vi    CBraMod's: a file is read; each trial is cut, filtered, resampled to 200 Hz, pickled and put in a
            transaction of its own
things      the authors': MNE's epochs of the whole session in memory, resampled, whitened, written as pickled arrays
imagenet    there is none: the authors' file is what their code reads

Seconds are those of the work, in a process of its own: Python's start and imports are left out.
"""

import contextlib
import io
import pickle
import shutil
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import torch
from scipy import signal as dsp
from scipy.io import loadmat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets import bciciv2a_llm_dataset, eeg_imagenet_dataset, things_dataset, visual_imagery_llm_dataset
from datasets.prepare import prepare
from datasets.preprocessing import Preprocessing
from datasets.store import open_store
from demo.bcic_like import DemoSize, write_bcic_like
from demo.vi_like import VIDemoSize, write_vi_like

UNFILTERED = dict(reference="none", l_freq=0.0, h_freq=0.0, order=0)

# ---------------------------------------------------------------- raw files


def write_bcic(folder: Path, scale: float) -> None:
    """One file of noise under the names of several."""
    names = bciciv2a_llm_dataset.FILES[: max(2, round(18 * scale))]
    write_bcic_like(folder, DemoSize(trials_per_run=48), 0, names[:1])
    for name in names[1:]:
        (folder / name).write_bytes((folder / names[0]).read_bytes())


def write_vi(folder: Path, scale: float) -> None:
    size = VIDemoSize(trials_per_class=max(2, round(40 * scale)), trial_seconds=11.5, only=("S03",))
    write_vi_like(folder, size, 0)


def write_things(folder: Path, scale: float) -> None:
    rng, electrodes, metadata = np.random.default_rng(0), things_dataset.ELECTRODES, {}
    place = folder / "sub-01/ses-01"
    place.mkdir(parents=True)
    for part, short, n_images, each in (("training", "train", 16_540, 2), ("test", "test", 200, 20)):
        n = max(20, round(n_images * scale))
        folders = [f"{k // 10 + 1:05d}_c{k // 10}" if each == 2 else f"{k + 1:05d}_u{k}" for k in range(n)]
        files = [f"{name[6:]}_{k:05d}.jpg" for k, name in enumerate(folders)]
        metadata |= {f"{short}_img_concepts": folders, f"{short}_img_files": files}
        shown = rng.permutation(np.repeat(np.arange(n // 2 if each == 2 else n), each))  # half of them, in a session
        onsets = 1000 + 200 * np.arange(len(shown))
        x = 1e-5 * rng.standard_normal((len(electrodes) + 1, onsets[-1] + 2000))  # volts
        x[-1] = 0
        x[-1, onsets] = shown + 1
        kinds = ["eeg"] * len(electrodes) + ["stim"]
        content = {"raw_eeg_data": x, "ch_names": [*electrodes, "stim"], "ch_types": kinds, "sfreq": 1000}
        np.save(place / f"raw_eeg_{part}.npy", content)
    np.save(folder / "image_metadata.npy", metadata)


def write_imagenet(folder: Path, scale: float) -> None:
    rng, n, labels = np.random.default_rng(0), max(100, round(4000 * scale)), [f"n{k:08d}" for k in range(80)]
    items = [
        {
            "eeg_data": torch.from_numpy(1e-5 * rng.standard_normal((62, 501))),
            "granularity": "fine" if 80 * k // n < 40 else "coarse", "subject": 0, "label": labels[80 * k // n],
            "image": f"{labels[80 * k // n]}_{k}.JPEG",
        }
        for k in range(n)
    ]  # fmt: skip
    folder.mkdir()
    torch.save({"dataset": items, "labels": labels, "images": [i["image"] for i in items]}, folder / "data.pth")


# ---------------------------------------------------------------- ours


def ours(name: str, raw: Path, store: Path, workers: int) -> float:
    """Seconds."""
    module = {"bcic": bciciv2a_llm_dataset, "vi": visual_imagery_llm_dataset, "things": things_dataset}
    description = module.get(name, eeg_imagenet_dataset).DESCRIPTION
    settings, options, facts = Preprocessing(*description.window), {}, {}
    started = time.perf_counter()
    if name == "things":
        images = things_dataset.image_list(raw, None)
        files = things_dataset.pieces(raw, ["sub-01"], ["1"], None)
        labels = {concept: k for k, concept in enumerate(things_dataset.concepts(images))}
        options = {"whiten": "epochs", "images": images, "labels": labels}
        facts = {"classes": list(labels), "electrodes": things_dataset.ELECTRODES, "units": "no unit"}
        settings = Preprocessing(*description.window, **UNFILTERED)
    elif name == "imagenet":
        files = eeg_imagenet_dataset.pieces([raw / "data.pth"])
        options = {"same_person": {}, "missing": [], "fine": eeg_imagenet_dataset.fine_classes([raw / "data.pth"])}
        facts = eeg_imagenet_dataset.facts([raw / "data.pth"], None, options["fine"])
        settings = Preprocessing(*description.window, **UNFILTERED)
    else:
        files, options = description.files(raw), {option: of[0][0] for option, of in description.options.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # the closing table
        prepare(description, files, store, settings, workers, None, options, facts)
    return time.perf_counter() - started


# ---------------------------------------------------------------- the published ways


def put_alone(db: lmdb.Environment, key: str, x: np.ndarray, label: int) -> None:
    """A trial in a transaction of its own."""
    with db.begin(write=True) as txn:
        txn.put(key.encode(), pickle.dumps({"sample": x, "label": label}))


def cut_filter_put(db: lmdb.Environment, eeg: np.ndarray, sfreq: float, window: tuple, trials: list) -> None:
    """Trials (key, onset in samples, label) of a run (C, n): cut, filtered, resampled and stored one by one."""
    eeg = eeg - eeg.mean(axis=0)
    for key, onset, label in trials:
        x = eeg[:, onset + round(window[0] * sfreq) : onset + round(window[1] * sfreq)]
        sos = dsp.butter(5, (0.3, 50), "bandpass", fs=sfreq, output="sos")
        x = dsp.resample(dsp.sosfiltfilt(sos, x), 800, axis=-1)
        put_alone(db, key, x.reshape(len(x), 4, 200), label)


def published_bcic(raw: Path, store: Path) -> None:
    with lmdb.open(str(store), map_size=16 << 30) as db:
        for path in sorted(raw.glob("*.mat")):
            for number, run in enumerate(loadmat(path, squeeze_me=True, struct_as_record=False)["data"]):
                pairs = zip(np.atleast_1d(run.trial), np.atleast_1d(run.y), strict=True)
                trials = [(f"{path.stem}-{number}-{k}", int(t) - 1, int(y) - 1) for k, (t, y) in enumerate(pairs)]
                cut_filter_put(db, np.asarray(run.X, float).T[:22], 250.0, (2.0, 6.0), trials)


def published_vi(raw: Path, store: Path) -> None:
    import mne

    with lmdb.open(str(store), map_size=16 << 30) as db:
        for path in sorted(raw.rglob("*_eeg.bdf")):
            recording = mne.io.read_raw_bdf(path, preload=True, verbose="ERROR")
            events = mne.find_events(recording, initial_event=True, min_duration=0, mask=255, verbose="ERROR")
            trials = [(f"{path.stem}-{k}", int(t), int(code) - 1) for k, (t, _, code) in enumerate(events)]
            cut_filter_put(db, 1e6 * recording.get_data(picks="eeg")[:32], 1000.0, (0.5, 4.5), trials)


def published_things(raw: Path, store: Path) -> None:
    import mne
    from sklearn.covariance import ledoit_wolf

    epochs_of = {}
    for part in ("training", "test"):
        content = np.load(raw / f"sub-01/ses-01/raw_eeg_{part}.npy", allow_pickle=True).item()  # written above
        info = mne.create_info(content["ch_names"], content["sfreq"], content["ch_types"])
        recording = mne.io.RawArray(content["raw_eeg_data"], info, verbose="ERROR")
        events = mne.find_events(recording, stim_channel="stim", verbose="ERROR")
        recording.pick("eeg")
        epochs = mne.Epochs(
            recording, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, verbose="ERROR"
        )  # fmt: skip
        epochs.resample(250, verbose="ERROR")
        epochs_of[part] = epochs.get_data(copy=False), epochs.events[:, 2]
    x, codes = epochs_of["training"]
    total, distinct = np.zeros((x.shape[1], x.shape[1])), np.unique(codes)
    for code in distinct:
        covariances = []
        for repetition in x[codes == code]:
            sd = repetition.std(axis=1)
            standard = (repetition - repetition.mean(axis=1, keepdims=True)) / sd[:, None]
            covariances.append(ledoit_wolf(standard.T)[0] * np.outer(sd, sd))
        total += np.mean(covariances, axis=0)
    values, vectors = np.linalg.eigh(total / len(distinct))
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    store.mkdir()
    for part, (x, codes) in epochs_of.items():
        whitened = (x.swapaxes(1, 2) @ inverse).swapaxes(1, 2)[..., 50:]
        np.save(store / f"{part}.npy", {"data": whitened, "codes": codes})


PUBLISHED = {"bcic": published_bcic, "vi": published_vi, "things": published_things}


def published(name: str, raw: Path, store: Path, workers: int) -> float:
    """Seconds."""
    started = time.perf_counter()
    PUBLISHED[name](raw, store)
    return time.perf_counter() - started


WRITERS = {"bcic": write_bcic, "vi": write_vi, "things": write_things, "imagenet": write_imagenet}


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--scale", type=float, default=0.12, help="share of the full size")
    parser.add_argument("--only", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--sides", choices=("both", "ours"), default="both")
    args = parser.parse_args()
    print(common.machine())
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            common.apart(WRITERS[name], Path(folder) / "raw", args.scale)
            sides = {"1 worker": (ours, 1), "2 workers": (ours, 2)}
            if args.sides == "both" and name in PUBLISHED:
                sides["published"] = (published, 1)
            seconds, peaks = {side: [] for side in sides}, {}
            for number in range(args.rounds):
                for side, (work, workers) in sides.items():
                    store = Path(folder) / f"{side}-{number}"
                    took, peaks[side] = common.apart(work, name, Path(folder) / "raw", store, workers)
                    seconds[side].append(took)
                    if work is ours:
                        n = len(open_store(store).trials)
                    shutil.rmtree(store)
            report(name, n, seconds, peaks)


def report(name: str, n: int, seconds: dict, peaks: dict) -> None:
    print(f"{name}, {n:,} trials")
    for side, of in seconds.items():
        print(f"  {side}: {common.spread([n / s for s in of], 1)} trials/s, largest process {peaks[side]:.2f} GB")
    print(f"  1 worker / 2 workers {common.ratio(seconds['1 worker'], seconds['2 workers'])} (goal: ≥ 1.8)")
    if "published" in seconds:
        print(f"  published / 2 workers {common.ratio(seconds['published'], seconds['2 workers'])} (goal: ≥ 5)")


if __name__ == "__main__":
    main()
