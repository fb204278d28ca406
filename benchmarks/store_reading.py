"""Goal: trials come out of the store at least 5 times as fast as out of CBraMod's pickled layout with its loader.

    python benchmarks/store_reading.py

The same 10,000 trials, 22 electrodes and 4 s at 200 Hz, are written once in each layout and read in the same shuffled
order, in turns, from a warm page cache. Needs about 3 GB of disk in the temporary folder. CBraMod's layout: pickled
{"sample": (22, 4, 200) float64 array in microvolts, "label": int}; its loader unpickles and divides by 100, its
collation stacks and converts. Three ways:

reader    the store's mapped, read-only (22, 800) arrays against the loader's arrays: what the goal is about
items     private float32 tensors in microvolts, one by one: here copying 70 kB out of the page cache is most of the
          store's time
batches   64 float32 tensors at a time through PyTorch's DataLoader
"""

import pickle
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset  # noqa: E402
from datasets.recording import Trial
from datasets.store import write_store  # noqa: E402

SHAPE = (22, 4, 200)


class PickledLoader:
    """Reads as CBraMod's BCIC loader does: one transaction, one unpickling and one division a trial."""

    def __init__(self, path: Path):
        self.db = lmdb.open(str(path), readonly=True, lock=False, readahead=True, meminit=False)
        with self.db.begin() as txn:
            self.keys = pickle.loads(txn.get(b"__keys__"))["train"]  # written below, in this process

    def __getitem__(self, index):
        with self.db.begin(write=False) as txn:
            pair = pickle.loads(txn.get(self.keys[index].encode()))
        return pair["sample"] / 100, pair["label"]

    def __len__(self):
        return len(self.keys)

    @staticmethod
    def collate(batch):
        x, y = np.array([x for x, _ in batch]), np.array([y for _, y in batch])
        return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def main():
    parser = common.new_parser(__doc__, 5)
    parser.add_argument("--trials", type=int, default=10_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "store", Path(folder) / "pickled"
        keys = [f"A01T-0-{k}" for k in range(args.trials)]

        def parts():
            with lmdb.open(str(theirs), map_size=args.trials * 200_000) as env:
                for start in range(0, args.trials, 500):
                    part = []
                    with env.begin(write=True) as txn:
                        for k in range(start, min(start + 500, args.trials)):
                            sample = rng.standard_normal(SHAPE) * 20  # microvolts
                            txn.put(keys[k].encode(), pickle.dumps({"sample": sample, "label": k % 4}))
                            trial = Trial(keys[k], k % 4, "A01", "T", 1, k + 1)
                            part.append((trial, sample.reshape(len(sample), -1).astype(np.float32)))
                    yield part
                with env.begin(write=True) as txn:
                    txn.put(b"__keys__", pickle.dumps({"train": keys, "val": [], "test": []}))

        write_store(ours, {"sfreq": 200.0, "dataset": "BCICIV2a"}, parts())
        loaders = {"store": BCICIV2aLLMDataset(ours, "train"), "pickled": PickledLoader(theirs)}
        for k in rng.integers(0, args.trials, 20):  # both hold the same trials
            a, (b, label) = loaders["store"][int(k)], loaders["pickled"][int(k)]
            assert a["label"] == label and np.allclose(a["x"].numpy() / 100, b.reshape(len(b), -1), atol=1e-5)

        store, pickled = loaders.values()

        def batches(loader, collate=None):
            return lambda order: DataLoader(loader, batch_size=64, sampler=order, collate_fn=collate)

        ways = {
            "reader": (
                lambda order: (store.store.read(store.trials[k]) for k in order),
                lambda o: map(pickled.__getitem__, o),
            ),
            "items": (lambda order: map(store.__getitem__, order), lambda order: map(pickled.__getitem__, order)),
            "batches": (batches(store), batches(pickled, PickledLoader.collate)),
        }
        for way, readers in ways.items():
            times = [], []  # µs a trial, the store's and the pickled layout's
            for round_ in range(args.rounds + 1):
                order = rng.permutation(args.trials).tolist()
                for reader, of in zip(readers, times, strict=True):
                    started = time.perf_counter()
                    for _ in reader(order):
                        pass
                    if round_:  # the first round warms the page cache
                        of.append(1e6 * (time.perf_counter() - started) / args.trials)
            print(
                f"{way:8} store {common.spread(times[0], 1)}, pickled {common.spread(times[1], 1)} µs a trial; "
                f"pickled / store {common.ratio(times[1], times[0])}" + (" (goal: ≥ 5)" if way == "reader" else "")
            )


if __name__ == "__main__":
    main()
