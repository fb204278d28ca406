"""EEG Visual Imagery: raw recordings → trial store, and the ten stimulus photos.

    python prepare_data_vi.py                                # download from Figshare, unpack, prepare
    python prepare_data_vi.py --zip_path 30227503.zip        # the whole article, fetched by hand
    python prepare_data_vi.py --skip_download                # sub-XX/ses-0Y/eeg/… is in --raw_dir already

Per recording: 32 EEG electrodes by name, microvolts, common average reference, band-pass 0.3–50 Hz, window, 200 Hz,
(32, 4, 200), units of 100 µV. Train S01–S16, validation S17–S19, test S20–S22.
"""

import argparse
import math
import os
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import requests
from PIL import Image

from datasets.description import SPLITS
from datasets.preprocessing import PATCH, Preprocessing, cut_trial, filter_run, window
from datasets.store import Trial, is_trial_store, write_store
from datasets.visual_imagery_llm_dataset import (
    CODES,
    DESCRIPTION,
    N_SESSIONS,
    SPLIT_OF_SUBJECT,
    SUBJECTS,
    TASKS,
    TRIALS_PER_CLASS,
)
from datasets.visual_imagery_recordings import FIGSHARE, RecordingFile, find_recordings, read_recording
from utils.archives import unpack
from utils.download import download
from utils.errors import UserError, run_script
from utils.flags import check_at_least, check_window
from utils.paths import default, make_room, source_record
from utils.records import environment
from utils.workers import in_order

AMPLITUDES = (1.0, 200.0)  # microvolts, the median electrode's standard deviation after filtering


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--skip_download", action="store_true", help="use the recordings that are in --raw_dir")
    add("--zip_path", help="a subject's zip or the article's zip of zips, unpacked instead of downloading")
    add("--raw_dir", default=default("data/VisualImagery/raw"), help="folder of sub-XX/ses-0Y/eeg/…")
    add("--stimuli_dir", help="folder for the ten photos (default: stimuli beside --raw_dir)")
    add("--lmdb_dir", default=default("data/VisualImagery/processed_lmdb"), help="folder of the store")
    add("--tmin", type=float, default=0.5, help="window start, seconds after the start of imagery")
    add("--tmax", type=float, default=4.5, help="window end, seconds after the start of imagery")
    add("--subjects", nargs="+", default=list(SUBJECTS), help="only these people, e.g. 1 17 or S01 S17 (default: all)")
    add("--scale", type=float,
        help="multiply the microvolts that are read by this, and leave out the check of amplitudes")  # fmt: skip
    add("--workers", type=int, default=min(4, os.cpu_count() or 1),
        help="recordings prepared at the same time; each takes about 1.6 GB of memory")  # fmt: skip
    add("--overwrite", action="store_true", help="replace what is at --lmdb_dir")
    args = parser.parse_args()
    check_window(parser, args)
    check_at_least(parser, args, workers=1)
    if args.scale is not None and not (math.isfinite(args.scale) and args.scale > 0):
        parser.error("--scale must be a positive number")
    named = {name: re.fullmatch(r"(?:S|sub-)?(\d+)", name, re.IGNORECASE) for name in args.subjects}
    args.subjects = sorted({f"S{int(number[1]):02d}" if number else name for name, number in named.items()})
    unknown = set(args.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"--subjects: {', '.join(sorted(unknown))}; expected 1 to {len(SUBJECTS)}")
    args.stimuli_dir = Path(args.stimuli_dir or Path(args.raw_dir).parent / "stimuli")
    return args


# ---------------------------------------------------------------- the raw files


def fetch(args: argparse.Namespace) -> None:
    """Download what Figshare lists, unpack it into --raw_dir and --stimuli_dir; what is there is left alone."""
    raw_dir = Path(args.raw_dir)
    photos = set(DESCRIPTION.stimuli.values())

    def destination(member: PurePosixPath) -> Path | None:
        if "__MACOSX" in member.parts or member.name.startswith("."):
            return None
        person = re.match(r"sub-(\d+)\.zip", member.name, re.IGNORECASE)
        if member.suffix.lower() == ".zip":  # a zip in a zip is looked into, unless it is of somebody not asked for
            return None if person and f"S{int(person[1]):02d}" not in args.subjects else raw_dir
        if member.name in photos:
            return args.stimuli_dir / member.name
        recording = re.match(r"(sub-(\d+))_(ses-\d+)_", member.name)
        if recording and f"S{int(recording[2]):02d}" in args.subjects:
            return raw_dir / recording[1] / recording[3] / "eeg" / member.name
        return None

    raw_dir.mkdir(parents=True, exist_ok=True)
    if args.zip_path:
        if not Path(args.zip_path).is_file():
            raise UserError(f"--zip_path {args.zip_path}: no such file")
        print(f"{unpack(Path(args.zip_path), destination, raw_dir)} files of {args.zip_path} in place")
        return
    for file in figshare_files():
        name = PurePosixPath(file["name"]).name
        person = re.match(r"sub-(\d+)", name)
        if person and f"S{int(person[1]):02d}" not in args.subjects:
            continue
        if name in photos:
            target = args.stimuli_dir / name
        elif name.lower().endswith(".zip"):
            target = raw_dir / name
        else:
            continue
        if target.exists() and target.stat().st_size != file["size"]:
            raise UserError(f"{target} has {target.stat().st_size} bytes, Figshare's {file['size']}; delete it")
        download([file["download_url"]], target, md5=file.get("computed_md5") or file.get("supplied_md5") or None)
        if target.suffix.lower() == ".zip":
            print(f"{unpack(target, destination, raw_dir)} files of {name} in place")


def figshare_files() -> list[dict]:
    """The article's files: name, size, download_url and md5 sums.

    Raises
    ------
    UserError
        If Figshare does not answer.
    """
    try:
        answer = requests.get(FIGSHARE, timeout=60)
        answer.raise_for_status()
        files = {file["name"]: file for file in answer.json()["files"]}
        # the article may list its first ten files only; this address lists them all, page by page
        pages = requests.get(f"{FIGSHARE}/files", params={"page_size": 1000}, timeout=60)
        if pages.ok:
            files |= {file["name"]: file for file in pages.json()}
        lacking = [name for name, file in files.items() if not {"size", "download_url"} <= set(file)]
        if lacking:
            raise ValueError(f"no address of {lacking[0]}")
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Figshare's file list cannot be had ({type(error).__name__}); fetch article 30227503 by hand and use "
            "--zip_path, or --skip_download with the recordings in --raw_dir"
        ) from None
    return list(files.values())


def check_stimuli(folder: Path) -> None:
    """Say which of the ten photos are missing or no pictures; only drawing and mapper training need them."""
    missing = [name for name in DESCRIPTION.stimuli.values() if not (folder / name).is_file()]
    if missing:
        print(f"notice: stimulus photos missing in {folder}: {', '.join(missing)}")
    for name in set(DESCRIPTION.stimuli.values()) - set(missing):
        try:
            with Image.open(folder / name) as picture:
                picture.load()
        except Exception:  # whatever a file that is no picture makes Pillow say
            print(f"notice: the stimulus photo {folder / name} is not a picture")


# ---------------------------------------------------------------- one recording


def prepare_file(file: RecordingFile, settings: Preprocessing, scale: float | None) -> tuple[list, Counter, dict]:
    """All trials of one recording: [(split, Trial, samples)], counts by (fate, split, label), the recording's facts."""
    recording = read_recording(file.path)
    if settings.h_freq >= recording.sfreq / 2 or recording.sfreq != round(recording.sfreq):
        raise UserError(
            f"{file.path} is sampled at {recording.sfreq:g} Hz; expected a whole number above {2 * settings.h_freq:g}"
        )
    if recording.signal.shape[1] < recording.sfreq * (settings.tmax - settings.tmin):
        raise UserError(f"{file.path} has {recording.signal.shape[1]} samples, less than one window; fetch it again")
    recording.signal *= scale or 1.0
    filtered = filter_run(recording.signal, recording.sfreq, settings)
    amplitude = float(np.median([chan.std() for chan in filtered]))  # microvolts
    if scale is None and not AMPLITUDES[0] <= amplitude <= AMPLITUDES[1]:
        raise UserError(
            f"{file.path}: the median electrode's standard deviation after filtering is {amplitude:.4g} microvolts; expected "
            f"{AMPLITUDES[0]:g} to {AMPLITUDES[1]:g}: is the unit wrong? --scale sets a factor and goes on (--scale 1: as it is)"
        )

    split = SPLIT_OF_SUBJECT[file.subject]
    kept, counts = [], Counter()
    for number, (onset, code) in enumerate(recording.events, start=1):
        if code not in CODES[file.task]:
            counts[
                "dropped: code that the task does not know", split, f"{file.subject} {file.session} {file.task} {code}"
            ] += 1
            continue
        label = TASKS[file.task] + code - 1
        samples = window(onset, recording.sfreq, settings)
        if samples.start < 0 or samples.stop > filtered.shape[1]:
            counts["dropped: window leaves the recording", split, label] += 1
            continue
        key = f"{file.subject}-{file.session}-{file.task}-t{number:03d}"
        trial = Trial(key, label, file.subject, file.session, list(TASKS).index(file.task) + 1, number)
        kept.append((split, trial, cut_trial(filtered, onset, recording.sfreq, settings)))
        counts["kept", split, label] += 1
    facts = {
        "subject": file.subject, "session": file.session, "task": file.task, "events_from": recording.sources,
        "corrections": recording.corrections, "median_sd_microvolts": round(amplitude, 3), "sfreq": recording.sfreq,
    }  # fmt: skip
    return kept, counts, source_record(file.path) | facts


# ---------------------------------------------------------------- all of them


def prepare(args: argparse.Namespace) -> None:
    """Raw files to store to closing table."""
    if not args.skip_download or args.zip_path:
        fetch(args)
    check_stimuli(args.stimuli_dir)
    files = find_recordings(Path(args.raw_dir), args.subjects)
    if not files:
        raise UserError(
            f"no recordings sub-XX_ses-0Y_task-AVI_eeg.bdf (or .fif, .edf, .set, .vhdr) of {', '.join(args.subjects)} in "
            f"{args.raw_dir}; run without --skip_download or set --raw_dir"
        )

    settings = Preprocessing(args.tmin, args.tmax)
    meta = {
        "dataset": DESCRIPTION.name, "shape": (len(DESCRIPTION.montage.electrodes), settings.n_patches, PATCH),
        "units": "100 microvolts", "electrodes": DESCRIPTION.montage.electrodes, "classes": DESCRIPTION.classes,
        "preprocessing": settings.as_dict(), "scale_flag": args.scale, "environment": environment(), "sources": [],
        "counts": {},
    }  # fmt: skip
    totals: Counter = Counter()

    def parts():
        jobs = [(file, settings, args.scale) for file in files]
        for kept, counts, source in in_order(prepare_file, jobs, args.workers, "preparing"):
            totals.update(counts)
            meta["sources"].append(source)
            yield kept
        if not any(fate == "kept" for fate, _, _ in totals):
            raise UserError(
                f"none of the {len(files)} recordings in {args.raw_dir} gives a trial: "
                + (
                    "no events in events.tsv, Status or annotations"
                    if not totals
                    else f"{sum(totals.values())} were dropped"
                )
                + f"; {files[0].path} is the first"
            )
        # JSON has no tuples: "kept/train/0"
        meta["counts"] = {"/".join(map(str, k)): n for k, n in totals.items()}

    meta = write_store(Path(args.lmdb_dir), meta, parts())
    report(args.subjects, meta, totals)


def report(subjects: list[str], meta: dict, totals: Counter) -> None:
    """The closing table: recordings, units, trials kept and dropped by cause, found against expected."""
    sources = meta["sources"]
    have = {(source["subject"], source["session"], source["task"]) for source in sources}
    print(f"\nrecordings {len(sources)}, people {len({subject for subject, _, _ in have})}")

    # units and amplitudes
    corrected = defaultdict(list)
    for source in sources:
        for what in source["corrections"]:
            corrected[what].append(source["name"])
    for what, names in corrected.items():
        print(f"units put right in {len(names)} recordings ({what}): {names[0]}" + (" and others" if names[1:] else ""))
    if meta["scale_flag"] is not None:
        print(f"--scale {meta['scale_flag']:g} was applied to all recordings; amplitudes were not checked")
    for subject in sorted({subject for subject, _, _ in have}):
        sds = [source["median_sd_microvolts"] for source in sources if source["subject"] == subject]
        origins = sorted(
            {
                origin.replace("_", " ").split(" ")[-1]
                for s in sources
                if s["subject"] == subject
                for origin in s["events_from"]
            }
        )
        print(f"{subject}: {len(sds)} recordings, median standard deviation {min(sds):.1f} to {max(sds):.1f} microvolts, "
              f"events from {', '.join(origins) or 'nowhere'}")  # fmt: skip

    # what is missing
    sessions = {subject: sorted({session for who, session, _ in have if who == subject}) for subject in subjects}
    nobody = [subject for subject in subjects if not sessions[subject]]
    if nobody:
        print(f"missing: all recordings of {', '.join(nobody)}")
    for subject in sorted(set(subjects) - set(nobody)):
        if len(sessions[subject]) < N_SESSIONS[subject]:
            print(f"missing: {subject} has session {sessions[subject][0]} only")
        for session in sessions[subject]:
            tasks = [task for task in TASKS if (subject, session, task) not in have]
            if tasks:
                print(f"missing: {subject} session {session}, {', '.join(tasks)}")
    for source in sources:
        if not source["events_from"]:
            print(f"notice: {source['name']} has no events, so it gives no trials")

    # trials
    labels = range(len(DESCRIPTION.classes))
    print(f"\n{'':44}" + "".join(f"{name:>10}" for name in (*DESCRIPTION.classes, "trials", "expected", "complete")))
    for split in SPLITS:
        of_these = sum(
            len(CODES[s["task"]]) * TRIALS_PER_CLASS for s in sources if SPLIT_OF_SUBJECT[s["subject"]] == split
        )
        complete = sum(N_SESSIONS[s] * len(labels) * TRIALS_PER_CLASS for s in SUBJECTS if SPLIT_OF_SUBJECT[s] == split)
        for fate in ("kept", "dropped: window leaves the recording"):
            row = [totals[fate, split, label] for label in labels]
            expected = f"{of_these:10d}{complete:10d}" if fate == "kept" else ""
            print(f"{split:6}{fate:38}" + "".join(f"{n:10d}" for n in (*row, sum(row))) + expected)
    unknown = {where: n for (fate, _, where), n in totals.items() if fate.startswith("dropped: code")}
    for where, n in sorted(unknown.items()):
        subject, session, task, code = where.split()
        print(f"dropped: code {code}, which {task} does not know, in {subject} session {session}: {n} events")
    print(
        f"expected: {TRIALS_PER_CLASS} trials a class in each of these recordings; complete: with all 22 people, 16,800"
    )
    for split in SPLITS:
        if not meta["splits"][split]:
            print(f"notice: no {split} trials; its people are not among the recordings")
    print(f"fingerprint {meta['fingerprint'][:16]}")


def main() -> None:
    args = parse_args()
    with make_room(Path(args.lmdb_dir), is_trial_store, args.overwrite):  # asked before anything is downloaded
        prepare(args)


if __name__ == "__main__":
    run_script(main)
