"""THINGS-EEG2: raw recordings, or arrays that others have cut, → trial store.

    python prepare_data_things.py --subjects 8                     # download a person (13 GB) and the images, prepare
    python prepare_data_things.py --skip_download                  # sub-XX/… is there, in any of the three layouts
    python prepare_data_things.py --skip_download --whiten none    # microvolts, as --encoder csbrain reads them

Raw: 63 electrodes by name, epochs of −0.2 to 1 s, baseline, 250 Hz, whitened by the covariance of the session's
training part (MVNN), stored as (63, 250), 0 to 1 s. The pickles of NICE, ATM and the authors, and UBP's .pt, are stored
as they are, from the onset on. No pickle's code is run. A person takes 5.2 GB. Who trains and who tests is chosen
later, by --setting.
"""

import argparse
import re
from pathlib import Path, PurePosixPath

from datasets.things_dataset import DESCRIPTION, ELECTRODES, EPOCH, SESSIONS, SUBJECTS
from utils import flags
from utils.errors import UserError
from utils.locks import lock_beside
from utils.paths import default, make_room
from utils.script import run_script, start_script

EEG, IMAGES = "anp5v", "jum2f"  # on osf.io, parts of project 3jk45


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--skip_download", action="store_true", help="use what is in --raw_dir and --images_dir")
    add("--raw_dir", default=default("data/THINGS/raw"), help="folder of sub-XX/ses-0Y/raw_eeg_training.npy, or of "
        "sub-XX/preprocessed_eeg_training.npy, or of UBP's sub-XX/train.pt")
    add("--images_dir",
        help="folder of training_images/, test_images/ and image_metadata.npy (default: images beside --raw_dir)")
    add("--lmdb_dir", default=default("data/THINGS/processed_lmdb"), help="folder of the store")
    add("--subjects", nargs="+", help="only these people, e.g. 8 or sub-08, your own (sub-11) as well (default: all "
        "that are there; of a download the published ten)")
    add("--sessions", nargs="+", choices=SESSIONS, default=list(SESSIONS), help="raw: only these sessions")
    add("--layout", choices=("raw", "npy", "pt"),
        help="which files of a person (default: what is there, raw before npy before pt)")
    add("--whiten", choices=("epochs", "none"), default="epochs",
        help="raw: epochs: by the covariance of each session's training epochs; none: microvolts")
    add("--tmin", type=float, default=DESCRIPTION.window[0],
        help=f"window start, seconds after {DESCRIPTION.window_starts}")
    add("--tmax", type=float, default=DESCRIPTION.window[1], help="window end, seconds, likewise")
    flags.add_prepare_flags(parser, workers=1)  # each takes about 1 GB of memory
    # fmt: on
    args = parser.parse_args()
    flags.check_window(parser, args)
    if not EPOCH[0] <= args.tmin < args.tmax <= EPOCH[1]:
        parser.error(f"--tmin {args.tmin:g} --tmax {args.tmax:g} must lie between {EPOCH[0]:g} and {EPOCH[1]:g}")
    flags.check_subjects(parser, args, r"(?:sub-)?(\d+)", "sub-{:02d}", SUBJECTS)
    args.raw_dir, args.lmdb_dir = Path(args.raw_dir), Path(args.lmdb_dir).resolve()
    args.images_dir = Path(args.images_dir or args.raw_dir.parent / "images")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.prepare import prepare
from datasets.preprocessing import Preprocessing
from datasets.store import is_trial_store
from datasets.things_dataset import concepts, electrodes_of, image_list, people_in, pieces
from utils.archives import unpack
from utils.download import download
from utils.osf import list_files


def fetch(args: argparse.Namespace) -> None:
    """Download what osf.io lists of these people, and the images; zips are unpacked; what is there is left alone."""

    def into(folder: Path, member: PurePosixPath) -> Path | None:
        """Below `folder`, from the part of the path on that names a person or the images."""
        parts = [p for p in member.parts if p not in ("..", "/")]
        known = [
            k for k, p in enumerate(parts) if re.fullmatch(r"sub-\d\d|(training|test)_images|image_metadata\.npy", p)
        ]
        if not known or "__MACOSX" in parts or member.name.startswith("."):
            return None
        person = next((p for p in parts if p.startswith("sub-")), None)
        return None if person and person not in args.subjects else folder.joinpath(*parts[known[0] :])

    for node, folder in ((EEG, args.raw_dir), (IMAGES, args.images_dir)):
        for file in list_files(node):
            path = PurePosixPath(file.path)
            person = re.search(r"sub-\d\d", file.path)
            if person and person[0] not in args.subjects:
                continue
            target = folder / path.name if path.suffix == ".zip" else into(folder, path)
            if target is None:
                continue
            if target.exists() and target.stat().st_size != file.size:
                raise UserError(f"{target} has {target.stat().st_size} bytes, osf.io's {file.size}; delete it")
            download([file.url], target, md5=file.md5)
            if path.suffix == ".zip":
                print(
                    f"{unpack(target, lambda member, folder=folder: into(folder, member), folder)} files of "
                    f"{path.name} in place"
                )


def main(args: argparse.Namespace) -> None:
    with make_room(args.lmdb_dir, is_trial_store, args.overwrite):  # asked before anything is downloaded
        # the raw files
        if not args.skip_download:
            fetch(args)
        images = image_list(args.raw_dir, args.images_dir)
        args.subjects = args.subjects or people_in(args.raw_dir)
        if not args.subjects:
            inside = sorted({path.parent for path in args.raw_dir.glob("*/sub-*") if path.is_dir()})
            hint = f"name {inside[0]}" if inside else "docs/datasets.md lists the layouts"
            raise UserError(f"{args.raw_dir} has no sub-XX/ of a known layout; {hint}")
        files = pieces(args.raw_dir, args.subjects, args.sessions, args.layout)

        # pieces → epochs → baseline → 250 Hz → whitened → trials → store → closing table
        settings = Preprocessing(
            args.tmin, args.tmax, DESCRIPTION.reference, l_freq=0.0, h_freq=0.0, order=0
        )  # no filter
        names = concepts(images)
        options = {"whiten": args.whiten, "images": images, "labels": {name: k for k, name in enumerate(names)}}
        raw = any("raw_eeg" in piece.path.name for piece in files)
        if raw and not all("raw_eeg" in piece.path.name for piece in files):
            raise UserError(
                f"{args.raw_dir} has raw recordings of some people and cut arrays of others; say with --layout which "
                "to use"
            )
        facts = {
            "classes": list(names),
            "electrodes": kept_electrodes(files),
            "units": "microvolts" if raw and args.whiten == "none" else "no unit",
        }
        prepare(DESCRIPTION, files, args.lmdb_dir, settings, args.workers, args.scale, options, facts)


def kept_electrodes(files: list) -> list[str]:
    """The electrodes that all files have; UserError where they differ."""
    found = {electrodes_of(path) for path in {piece.path for piece in files}}
    if len(found) > 1:
        raise UserError(
            f"the files have {' and '.join(str(len(names)) for names in found)} electrodes; a store holds one kind"
        )
    return list(found.pop() if found else ELECTRODES)


if __name__ == "__main__":
    lock = lock_beside(args.lmdb_dir)
    go_on = "pieces that are prepared are kept; the same command goes on behind them"
    run_script(lambda: main(args), [lock], go_on)
