"""BCIC-IV-2a: raw recordings → trial store.

    python prepare_data.py                    # download (about 1.4 GB), then prepare
    python prepare_data.py --skip_download    # the .mat files are in --raw_dir already

Per run: 22 EEG electrodes, common average reference, band-pass 0.3–50 Hz, window, 200 Hz, (22, 4, 200), units of
100 µV. Train A01–A05, validation A06–A07, test A08–A09.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

from datasets.bciciv2a_dataset import CALIBRATION_STRUCTS, EXPECTED_TRIALS, SPLIT_OF_SUBJECT
from datasets.bciciv2a_llm_dataset import DESCRIPTION
from datasets.description import SPLITS
from datasets.preprocessing import PATCH, Preprocessing, cut_trial, filter_run, window
from datasets.recordings import BCIC_ADDRESSES, BCIC_FILE, BCIC_FILES, read_bcic_mat
from datasets.store import Trial, is_trial_store, write_store
from utils.download import download
from utils.errors import UserError, run_script
from utils.flags import check_at_least, check_window
from utils.paths import default, make_room, source_record
from utils.records import environment
from utils.workers import in_order


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip_download", action="store_true", help="use the .mat files that are in --raw_dir")
    parser.add_argument("--raw_dir", default=default("data/BCICIV2a/raw"), help="folder of A01T.mat … A09E.mat")
    parser.add_argument("--lmdb_dir", default=default("data/BCICIV2a/processed_lmdb"), help="folder of the store")
    parser.add_argument(
        "--trial_set", choices=("published", "all"), default="published",
        help="published: drop the first three structs of every file, as the published splits do, which costs A04T two "
        "real runs (2784/1152/1152 trials); all: drop only runs without trials (2880/1152/1152)",
    )  # fmt: skip
    parser.add_argument(
        "--tmin", type=float, default=2.0,
        help="window start in seconds after the `trial` sample (the fixation cross; the cue comes 2 s after it)",
    )  # fmt: skip
    parser.add_argument("--tmax", type=float, default=6.0, help="window end, seconds after the `trial` sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="files prepared at the same time")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --lmdb_dir")
    args = parser.parse_args()
    check_window(parser, args)
    check_at_least(parser, args, workers=1)
    return args


def prepare_file(path: Path, trial_set: str, settings: Preprocessing) -> tuple[list, Counter, dict]:
    """All trials of one file: [(split, Trial, samples)], counts of runs and of (fate, split, label), the file's facts."""
    name = path.stem  # A01T
    split = SPLIT_OF_SUBJECT[name[:3]]
    kept, counts = [], Counter(files=1)
    task_number = 0
    for run in read_bcic_mat(path):
        if run.is_calibration:
            counts["calibration runs"] += 1
            continue
        task_number += 1
        counts["task runs"] += 1
        if trial_set == "published" and run.number <= CALIBRATION_STRUCTS:
            counts["task runs among the first three structs"] += 1
            counts.update(("dropped: first three structs", split, int(label)) for label in run.labels)
            continue
        windows = [window(onset, run.sfreq, settings) for onset in run.onsets]
        inside = [w.start >= 0 and w.stop <= run.signal.shape[1] for w in windows]
        filtered = filter_run(run.signal, run.sfreq, settings) if any(inside) else None
        for number, (onset, label, fits) in enumerate(
            zip(run.onsets, run.labels.tolist(), inside, strict=True), start=1
        ):
            if not fits:
                counts["dropped: window leaves the run", split, label] += 1
                continue
            trial = Trial(f"{name}-r{task_number}-t{number:02d}", label, name[:3], name[3], task_number, number)
            kept.append((split, trial, cut_trial(filtered, onset, run.sfreq, settings)))
            counts["kept", split, label] += 1
            counts["of these marked as artifact", split, label] += int(run.artifacts[number - 1])
    return kept, counts, source_record(path)


def prepare(args: argparse.Namespace) -> None:
    """Raw files to store to closing table."""
    raw_dir, lmdb_dir = Path(args.raw_dir), Path(args.lmdb_dir)

    # the raw files
    if not args.skip_download:
        for name in BCIC_FILES:
            download([address + name for address in BCIC_ADDRESSES], raw_dir / name)
    files = sorted(path for path in raw_dir.glob("*.mat") if BCIC_FILE.fullmatch(path.name))
    if not files:
        raise UserError(f"no raw files A01T.mat … A09E.mat in {raw_dir}; run without --skip_download or set --raw_dir")
    if len(files) < len(BCIC_FILES):
        missing = sorted(set(BCIC_FILES) - {path.name for path in files})
        print(f"{len(files)} of {len(BCIC_FILES)} files are there; missing: {', '.join(missing)}")

    # trials → store, file by file in the order of their names, whichever worker is done first
    settings = Preprocessing(args.tmin, args.tmax)
    shape = (len(DESCRIPTION.montage.electrodes), settings.n_patches, PATCH)
    meta = {
        "dataset": DESCRIPTION.name, "shape": shape, "units": "100 microvolts",
        "electrodes": DESCRIPTION.montage.electrodes, "classes": DESCRIPTION.classes, "trial_set": args.trial_set,
        "preprocessing": settings.as_dict(), "environment": environment(), "sources": [], "counts": {},
    }  # fmt: skip
    totals: Counter = Counter()

    def parts():
        jobs = [(path, args.trial_set, settings) for path in files]
        for kept, counts, source in in_order(prepare_file, jobs, args.workers, "preparing"):
            totals.update(counts)
            meta["sources"].append(source)
            yield kept
        # JSON has no tuples: "kept/train/0"
        meta["counts"] = {k if isinstance(k, str) else "/".join(map(str, k)): n for k, n in totals.items()}

    meta = write_store(lmdb_dir, meta, parts())
    report(args.trial_set, meta, totals)


def report(trial_set: str, meta: dict, totals: Counter) -> None:
    """The closing table: files, runs, trials kept and dropped by cause, per split and class."""
    print(
        f"\nfiles {totals['files']}, task runs {totals['task runs']}, calibration runs {totals['calibration runs']}\n"
    )
    labels = range(len(DESCRIPTION.classes))
    fates = ("kept", "of these marked as artifact", "dropped: first three structs", "dropped: window leaves the run")
    print(f"{'':38}" + "".join(f"{name:>12}" for name in (*DESCRIPTION.classes, "trials", "expected")))
    for split in SPLITS:
        for fate in fates:
            row = [totals[fate, split, label] for label in labels]
            expected = f"{EXPECTED_TRIALS[trial_set][split]:12d}" if fate == "kept" else ""
            print(f"{split:6}{fate:32}" + "".join(f"{n:12d}" for n in (*row, sum(row))) + expected)
    sets = {name: "/".join(str(expected[split]) for split in SPLITS) for name, expected in EXPECTED_TRIALS.items()}
    n_lost = sum(totals["dropped: first three structs", split, label] for split in SPLITS for label in labels)
    print(
        f"\n--trial_set {trial_set}. The complete data give {sets['published']} trials (published) or {sets['all']} (all):\n"
        "the published splits drop the first three structs of every file as calibration; A04T has one calibration run,\n"
        f"so two real runs go too. Here that cost {n_lost} trials in {totals['task runs among the first three structs']} "
        "runs." + (" Use --trial_set all to keep them." if n_lost else "")
    )
    for split in SPLITS:
        if not meta["splits"][split]:
            print(f"notice: no {split} trials; its people are not among the files")
    print(f"fingerprint {meta['fingerprint'][:16]}")


def main() -> None:
    args = parse_args()
    with make_room(Path(args.lmdb_dir), is_trial_store, args.overwrite):  # asked before anything is downloaded
        prepare(args)


if __name__ == "__main__":
    run_script(main)
