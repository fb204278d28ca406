"""What does it cost that a file which was announced is on the disk (fsync of file and folder)?

    python benchmarks/lasting_writes.py

Writes what one epoch of text training writes (a projection of 18 MB, an adapter of 4.5 MB, the state to resume from of
70 MB, two small files) and one drawn picture, with and without waiting for the disk. Prints seconds and ratios.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from utils import paths

EPOCH = {
    "projection.pth": 18_500_000,
    "adapter": 4_500_000,
    "last.pth": 70_000_000,
    "metrics.jsonl": 4_000,
    "curve.png": 60_000,
}
PICTURE = {"generated.png": 400_000}


def main() -> None:
    parser = common.new_parser(__doc__, 9)
    parser.add_argument("--folder", help="where to write (default: the system's folder for temporary files)")
    args = parser.parse_args()
    sync = paths.sync, paths.sync_folder
    for name, files in (("one epoch", EPOCH), ("one picture", PICTURE)):
        contents = {file: np.random.default_rng(0).bytes(size) for file, size in files.items()}
        pairs = []
        for _ in range(args.rounds):
            paths.sync, paths.sync_folder = sync
            lasting = write(contents, args.folder)
            paths.sync = paths.sync_folder = lambda path: None
            pairs.append((lasting, write(contents, args.folder)))
        lasting, plain = zip(*pairs, strict=True)
        print(f"{name}: {common.spread(lasting, 3)} s on the disk, {common.spread(plain, 3)} s without waiting")
        print(f"  with / without {common.ratio(lasting, plain)}")


def write(contents: dict[str, bytes], folder: str | None) -> float:
    """Seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        started = time.perf_counter()
        for name, content in contents.items():
            with paths.written_whole(Path(place) / name) as unfinished:
                unfinished.write_bytes(content)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
