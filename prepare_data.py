"""Motor imagery (BCIC-IV-2a, BCIC-IV-2b): raw recordings → trial store.

    python prepare_data.py                                    # download 2a (about 1.4 GB), then prepare
    python prepare_data.py --skip_download                    # the .mat files (or the competition's .gdf) are there
    python prepare_data.py --downstream_dataset BCICIV2b      # left against right hand, 3 electrodes (about 250 MB)

Per run: EEG electrodes, common average reference (2a), band-pass 0.3–50 Hz, window; stored as (electrodes, samples)
microvolts at 250 Hz. Who trains and who tests is chosen later, by --protocol of the training scripts.
"""

import argparse
from pathlib import Path

from datasets.description import DATASETS, load_description
from utils import flags
from utils.errors import UserError
from utils.locks import lock_beside
from utils.paths import default, make_room
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    known = {name: load_description(name) for name in DATASETS if load_description(name).recordings}
    windows = "; ".join(f"{name} {d.window}, after {d.window_starts}" for name, d in known.items())
    add("--downstream_dataset", choices=list(known), default="BCICIV2a",
        help="which dataset (to download Visual Imagery: prepare_data_vi.py)")
    add("--skip_download", action="store_true", help="use the files that are in --raw_dir")
    add("--raw_dir", help="folder of the raw files (default: data/DATASET/raw)")
    add("--lmdb_dir", help="folder of the store (default: data/DATASET/processed_lmdb)")
    for dataset, description in known.items():
        for name, (choices, what) in description.options.items():
            add(f"--{name}", choices=choices, help=f"{dataset} only. {what} (default: {choices[0]})")
    add("--tmin", type=float, help=f"window start, seconds (default: {windows})")
    add("--tmax", type=float, help="window end, seconds (default: see --tmin)")
    flags.add_prepare_flags(parser, workers=2)
    # fmt: on
    args = parser.parse_args()
    description = known[args.downstream_dataset]
    args.raw_dir = Path(args.raw_dir or default(f"data/{description.name}/raw"))
    args.lmdb_dir = Path(args.lmdb_dir or default(f"data/{description.name}/processed_lmdb")).resolve()
    args.tmin = description.window[0] if args.tmin is None else args.tmin
    args.tmax = description.window[1] if args.tmax is None else args.tmax
    if not args.skip_download and not description.addresses:
        parser.error(
            f"{description.name} cannot be downloaded here; put its files into --raw_dir and say --skip_download"
        )
    for name in {name for d in known.values() for name in d.options} - set(description.options):
        if getattr(args, name) is not None:
            parser.error(f"--{name} does not belong to {description.name}")
    flags.check_window(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.bci_competition import missing_files, other_files
from datasets.prepare import prepare
from datasets.preprocessing import Preprocessing
from datasets.store import is_trial_store
from utils.download import download


def main(args: argparse.Namespace) -> None:
    description = load_description(args.downstream_dataset)
    with make_room(args.lmdb_dir, is_trial_store, args.overwrite):  # asked before anything is downloaded
        # the raw files
        if not args.skip_download:
            for name in description.all_files:
                download([address + name for address in description.addresses], args.raw_dir / name)
        files = description.files(args.raw_dir)
        if not files:
            names = f" {description.all_files[0]} … {description.all_files[-1]}" if description.all_files else ""
            there = other_files(args.raw_dir, description.name) if description.all_files else ""
            raise UserError(
                f"no raw files{names} in {args.raw_dir}; run without --skip_download or set --raw_dir{there}"
            )
        missing = missing_files(description.all_files, files)
        if missing:
            n = len(description.all_files)
            print(f"{n - len(missing)} of {n} files are there; missing: {', '.join(missing)}")

        # recordings → filter → window → trials → store → closing table
        settings = Preprocessing(args.tmin, args.tmax, description.reference)
        options = {name: getattr(args, name) or choices[0] for name, (choices, _) in description.options.items()}
        prepare(description, files, args.lmdb_dir, settings, args.workers, args.scale, options)


if __name__ == "__main__":
    lock = lock_beside(args.lmdb_dir)
    go_on = "files that are prepared are kept; the same command goes on behind them"
    run_script(lambda: main(args), [lock], go_on)
