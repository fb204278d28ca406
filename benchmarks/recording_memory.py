"""Goal: preparing a full Visual Imagery recording (32 electrodes, 1000 Hz, 40 minutes) takes under 2.5 GB a worker.

    python benchmarks/recording_memory.py

Writes such a recording (noise and 120 events, 240 MB) in BDF and in FIF, prepares each in a process of its own, and
prints that process's peak memory beside the size of the signal in double precision.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from benchmarks import common
from datasets.prepare import prepare_file  # noqa: E402
from datasets.preprocessing import Preprocessing  # noqa: E402
from datasets.visual_imagery_llm_dataset import DESCRIPTION  # noqa: E402
from demo.vi_like import write_bdf, write_fif  # noqa: E402


def prepared(path: Path) -> int:
    """Trials."""
    return len(prepare_file(DESCRIPTION, path, Preprocessing(*DESCRIPTION.window), None, {})[0])


def main() -> None:
    parser = common.new_parser(__doc__, None)
    parser.add_argument("--minutes", type=int, default=40, help="length of the recording")
    args = parser.parse_args()
    n_times = args.minutes * 60_000
    rng = np.random.default_rng(0)
    signal = 20 * rng.standard_normal((32, n_times), dtype=np.float32)  # microvolts
    events = [(int(k), 1 + i % 3) for i, k in enumerate(np.linspace(5_000, n_times - 10_000, 120))]
    print(f"signal in double precision: {32 * n_times * 8 / 1e9:.2f} GB; limit 2.5 GB a worker")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, write in ((".bdf", write_bdf), (".fif", write_fif)):
            path = Path(folder) / f"sub-01_ses-01_task-AVI_eeg{suffix}"
            common.apart(write, path, signal, events)
            n, peak = common.apart(prepared, path)
            print(
                f"{suffix}: {path.stat().st_size / 1e6:.0f} MB, {n} trials, peak {peak:.2f} GB: {peak / 2.5:.2f} of "
                "the limit"
            )


if __name__ == "__main__":
    main()
