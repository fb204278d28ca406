"""EEG-ImageNet: the authors' .pth → trial store.

    python prepare_data_imagenet.py --pth_path EEG-ImageNet_1.pth EEG-ImageNet_2.pth --images_dir imageNet_images
    python prepare_data_imagenet.py --pth_path … day2.pth --same_person 16=0 17=3     # codes of the second day's file

The files have no open address: ask the authors of arXiv 2406.07151 (docs/datasets.md), and put them anywhere. They are
read weights only and mapped. Stored: (62, 501) microvolts at 1000 Hz, 0 to 0.5 s after the image's onset; models read
0.04 to 0.44 s unless told otherwise.
"""

import argparse
import re
from pathlib import Path

from utils import flags
from utils.errors import UserError
from utils.locks import lock_beside
from utils.paths import default, make_room
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--pth_path", nargs="+",
        help="the .pth files, or their folder (default: data/EEGImageNet/raw/EEG-ImageNet_1.pth and _2.pth)")
    add("--images_dir", default=default("data/EEGImageNet/images"),
        help="your ImageNet photos, WNID/WNID_N.JPEG; looked through where it is there")
    add("--class_names",
        help="lines of a wnid and its name, as ImageNet's synset maps have: what tables call the classes (default: "
        "wnids)")
    add("--lmdb_dir", default=default("data/EEGImageNet/processed_lmdb"), help="folder of the store")
    add("--same_person", nargs="+", default=[], metavar="CODE=PERSON",
        help="the person behind a code of the second day, whose trials become session 2: 16=0 17=3")
    flags.add_prepare_flags(parser, workers=1)
    # fmt: on
    args = parser.parse_args()
    args.pth_path = [
        Path(path) for path in args.pth_path or [default(f"data/EEGImageNet/raw/EEG-ImageNet_{k}.pth") for k in (1, 2)]
    ]
    pairs = [re.fullmatch(r"(\d+)=(\d+)", text) for text in args.same_person]
    if not all(pairs):
        parser.error("--same_person: expected CODE=PERSON, as in 16=3")
    args.same_person = {str(int(pair[1])): [f"S{int(pair[2]):02d}", "2"] for pair in pairs}
    args.tmin, args.tmax = 0.0, 0.501
    args.lmdb_dir, args.images_dir = Path(args.lmdb_dir).resolve(), Path(args.images_dir)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.eeg_imagenet_dataset import (
    DESCRIPTION,
    check_people,
    facts,
    fine_classes,
    left_out,
    opened,
    pieces,
    stamp,
)
from datasets.prepare import prepare
from datasets.preprocessing import Preprocessing
from datasets.store import is_trial_store


def files_of(paths: list[Path]) -> list[Path]:
    """The files themselves, and the .pth of folders; UserError for a folder without."""
    files = []
    for path in paths:
        inside = sorted(p for p in path.glob("*.pth") if p.name[0] != ".") if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"--pth_path {path} is a folder without .pth; name the authors' EEG-ImageNet_1.pth and _2.pth"
            )
        files += inside
    return files


def missing_images(folder: Path, paths: list[Path]) -> list[str]:
    """The photos that are not there, WNID/WNID_N.JPEG, which training towards images and pictures needs.

    Says how many they are. Without the folder nothing is missing, and all trials are kept.
    Raises UserError where two have one name, or not one is there.
    """
    wanted = {f"{item['label']}/{item['image']}" for path in paths for item in opened(path, stamp(path)).items}
    if not folder.is_dir():
        print(
            f"notice: {folder} is not there; {len(wanted)} photos of ImageNet are needed there to train towards "
            "images, and to draw"
        )
        return []
    for sub in sorted({name.split("/")[0] for name in wanted}):
        there: dict[str, Path] = {}
        for path in sorted(p for p in (folder / sub).glob("*") if p.name[0] != "."):
            if (other := there.setdefault(path.stem.lower(), path)) != path:
                raise UserError(f"{other} and {path} are two files for one image; keep one of them")
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    if len(missing) == len(wanted):
        inside = next((p for p in sorted(folder.iterdir()) if any((p / name).is_file() for name in missing)), None)
        hint = f"name {inside}" if inside else "name another --images_dir, or none that is there"
        raise UserError(f"{folder / missing[0]} is missing, and all others of {len(wanted)}; {hint}")
    if missing:
        print(
            f"notice: {folder}: {len(missing)} of {len(wanted)} photos are missing ({missing[0]} is one); their trials "
            "are left out (to keep them, for --target classes: an --images_dir that is not there)"
        )
    else:
        print(f"{folder}: all {len(wanted)} photos are there")
    return missing


def main(args: argparse.Namespace) -> None:
    with make_room(args.lmdb_dir, is_trial_store, args.overwrite):
        paths = files_of(args.pth_path)
        files = pieces(paths)
        check_people(paths, args.same_person)
        missing, fine = missing_images(args.images_dir, paths), fine_classes(paths)
        names = Path(args.class_names) if args.class_names else None
        said = facts(paths, names, fine) | {"left_out": left_out(paths, missing, args.same_person)}
        settings = Preprocessing(
            args.tmin, args.tmax, DESCRIPTION.reference, l_freq=0.0, h_freq=0.0, order=0
        )  # no filter
        options = {"same_person": args.same_person, "missing": missing, "fine": fine}
        prepare(DESCRIPTION, files, args.lmdb_dir, settings, args.workers, args.scale, options, said)


if __name__ == "__main__":
    lock = lock_beside(args.lmdb_dir)
    go_on = "pieces that are prepared are kept; the same command goes on behind them"
    run_script(lambda: main(args), [lock], go_on)
