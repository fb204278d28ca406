"""EEG Visual Imagery: raw recordings → trial store, and the ten stimulus photos.

    python prepare_data_vi.py                                # download from Figshare, unpack, prepare
    python prepare_data_vi.py --zip_path 30227503.zip        # the whole article, fetched by hand
    python prepare_data_vi.py --skip_download                # sub-XX/ses-0Y/eeg/… is in --raw_dir already

Per recording: 32 EEG electrodes by name, microvolts, common average reference, band-pass 0.3–50 Hz, window; stored as
(32, samples) microvolts at 1000 Hz. Who trains and who tests is chosen later, by --protocol of the training scripts.
"""

import argparse
import re
from pathlib import Path, PurePosixPath

from datasets.visual_imagery_llm_dataset import DESCRIPTION, FIGSHARE, SUBJECTS, origin
from utils import flags
from utils.errors import UserError
from utils.locks import lock_beside
from utils.paths import default, make_room
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--skip_download", action="store_true", help="use the recordings that are in --raw_dir")
    add("--zip_path", help="a subject's zip or the article's zip of zips, unpacked instead of downloading")
    add("--raw_dir", default=default("data/VisualImagery/raw"), help="folder of sub-XX/ses-0Y/eeg/…")
    add("--stimuli_dir", help="folder for the ten photos (default: stimuli beside --raw_dir)")
    add("--lmdb_dir", default=default("data/VisualImagery/processed_lmdb"), help="folder of the store")
    add(
        "--tmin",
        type=float,
        default=DESCRIPTION.window[0],
        help=f"window start, seconds after {DESCRIPTION.window_starts}",
    )
    add("--tmax", type=float, default=DESCRIPTION.window[1], help="window end, seconds, likewise")
    add("--subjects", nargs="+", help="only these people, e.g. 1 17 or S01 S17, your own (S23) as well (default: all)")
    flags.add_rename_flag(parser)
    flags.add_prepare_flags(parser, workers=2)  # each takes about 1.6 GB of memory
    args = parser.parse_args()
    flags.check_window(parser, args)
    flags.check_subjects(parser, args, r"(?i:S|sub-)?(\d+)", "S{:02d}", SUBJECTS)
    args.subjects = list(SUBJECTS) if args.zip_path and args.subjects is None else args.subjects
    args.raw_dir, args.lmdb_dir = Path(args.raw_dir), Path(args.lmdb_dir).resolve()
    args.stimuli_dir = Path(args.stimuli_dir or args.raw_dir.parent / "stimuli")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import requests

from datasets.prepare import prepare
from datasets.preprocessing import Preprocessing
from datasets.store import is_trial_store
from utils.archives import unpack
from utils.download import download
from utils.network import trouble
from utils.photos import OddPictures, whole_picture

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

    Raises UserError if Figshare does not answer.
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
            f"Figshare's file list cannot be had ({trouble(error, FIGSHARE)}); fetch article 30227503 by hand and use "
            "--zip_path, or --skip_download with the recordings in --raw_dir"
        ) from None
    return list(files.values())


def check_stimuli(folder: Path) -> None:
    """Say which of the ten photos are missing, too large or no pictures; only drawing and mapper training need them."""
    missing = [name for name in DESCRIPTION.stimuli.values() if not (folder / name).is_file()]
    if missing:
        print(f"notice: stimulus photos missing in {folder}: {', '.join(missing)}")
    odd = OddPictures()
    for name in sorted(set(DESCRIPTION.stimuli.values()) - set(missing)):
        try:
            odd.add(name, whole_picture(folder / name, "stimulus photo", "fetch it again"))
        except UserError as error:
            print(f"notice: {error}")
    odd.report(f"stimuli in {folder}")


def main(args: argparse.Namespace) -> None:
    with make_room(args.lmdb_dir, is_trial_store, args.overwrite):  # asked before anything is downloaded
        # the raw files
        if not args.skip_download or args.zip_path:
            fetch(args)
        check_stimuli(args.stimuli_dir)
        files = DESCRIPTION.files(args.raw_dir, args.subjects)
        args.subjects = args.subjects or sorted({*SUBJECTS, *(origin(path)[0] for path in files)})
        if not files:
            raise UserError(
                "no recordings sub-XX_ses-0Y_task-AVI_eeg.bdf (or .fif, .edf, .set, .vhdr) of "
                f"{', '.join(args.subjects)} in {args.raw_dir}; run without --skip_download or set --raw_dir"
            )

        # recordings → filter → window → trials → store → closing table
        settings = Preprocessing(args.tmin, args.tmax, DESCRIPTION.reference)
        options = {"subjects": args.subjects} | ({"renamed": dict(args.rename)} if args.rename else {})
        prepare(DESCRIPTION, files, args.lmdb_dir, settings, args.workers, args.scale, options)


if __name__ == "__main__":
    lock = lock_beside(args.lmdb_dir)
    go_on = "files that are prepared are kept; the same command goes on behind them"
    run_script(lambda: main(args), [lock], go_on)
