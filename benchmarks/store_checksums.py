"""Does checking each trial's checksum at its first reading cost at most 5 % of an epoch's reading?

    python benchmarks/store_checksums.py

An epoch's reading is what training does with each trial the first time: read the samples, and prepare them for the
encoder. The rival is the same without the check. Prints the ratio of a first epoch, and what the bare reading costs.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.description import load_description
from datasets.recording import Trial
from datasets.store import write_store
from datasets.trials import TrialDataset
from models import ENCODERS, choose


def main() -> None:
    parser = common.new_parser(__doc__, 11)
    parser.add_argument("--trials", type=int, default=400, help="trials of the store")
    args = parser.parse_args()
    description, rng = load_description("BCICIV2a"), np.random.default_rng(0)
    montage = description.montage
    with tempfile.TemporaryDirectory() as folder:
        rows = (
            (Trial(f"A01-T-r1-t{k}", k % 4, "A01", "T", 1, k + 1), (20 * rng.standard_normal((22, 1000))).astype("<f4"))
            for k in range(args.trials)
        )
        write_store(Path(folder) / "store", {"sfreq": 250.0}, ([row] for row in rows))
        bare = TrialDataset(Path(folder) / "store", "train", "published", description)
        for name in ("csbrain", "eegnet", "no encoder"):
            dataset = bare
            if name != "no encoder":
                encoder = choose(ENCODERS, name).build(
                    electrodes=montage.electrodes,
                    brain_regions=montage.brain_regions,
                    sorted_indices=montage.sorted_indices,
                    n_times=1000,
                    sfreq=250.0,
                )
                dataset = bare.prepared(encoder.prepare)
            epoch(dataset, checks=True)
            pairs = [(epoch(dataset, checks=True), epoch(dataset, checks=False)) for _ in range(args.rounds)]
            with_check, without = zip(*pairs, strict=True)
            print(f"{name:10}: {common.spread(without, 0)} µs a trial without the check")
            goal = "" if name == "no encoder" else " (goal: ≤ 1.05)"
            print(f"            with / without {common.ratio(with_check, without)}{goal}")


def epoch(dataset: TrialDataset, checks: bool) -> float:
    """Microseconds a trial of a first epoch."""
    dataset._kept.clear()
    dataset.store._verified = set() if checks else {trial.key for trial in dataset.trials}
    started = time.perf_counter()
    for index in range(len(dataset)):
        dataset[index]
    return (time.perf_counter() - started) / len(dataset) * 1e6


if __name__ == "__main__":
    main()
