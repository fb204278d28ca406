import pickle

import lmdb
import numpy as np
import pytest
import torch

from datasets.bciciv2a_dataset import BCICIV2aDataset
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset
from datasets.faced_llm_dataset import FACEDLLMDataset
from datasets.store import CBraModStore, Trial, TrialStore, open_store, write_store
from utils.errors import UserError

SHAPE = (22, 4, 200)


def trials(n, split="train", subject="A01", start=0):
    rng = np.random.default_rng(start)
    return [(split, Trial(f"{subject}T-r1-t{k:02d}", k % 4, subject, "T", 1, k + 1),
             rng.standard_normal(SHAPE).astype(np.float32)) for k in range(n)]  # fmt: skip


def write(path, *parts):
    return write_store(path, {"shape": SHAPE, "dataset": "BCICIV2a"}, parts)


def write_cbramod(path, records: dict, splits=("train", "val", "test")):
    keys = {split: [key for key in records if key.startswith(split)] for split in splits}
    keys = {split: [k.removeprefix(split + ":") for k in v] for split, v in keys.items()}
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, record in records.items():
            txn.put(key.split(":", 1)[1].encode(), pickle.dumps(record))
        txn.put(b"__keys__", pickle.dumps(keys))
    return path


def test_trials_come_back_as_written_with_their_origin(tmp_path):
    written = trials(5) + trials(3, "test", "A08", start=1)
    meta = write(tmp_path / "store", written[:4], written[4:])
    store = open_store(tmp_path / "store")
    assert isinstance(store, TrialStore) and meta["splits"] == {"train": 5, "val": 0, "test": 3}
    for split in ("train", "test"):
        expected = [(t, x) for s, t, x in written if s == split]
        assert store.trials(split) == [t for t, _ in expected]
        for trial, x in expected:
            assert np.array_equal(store.read(trial), x)


def test_samples_are_mapped_and_read_only_and_items_are_private_copies(tmp_path):
    write(tmp_path / "store", trials(2))
    dataset = BCICIV2aDataset(str(tmp_path / "store"), "train")
    view = dataset.store.read(dataset.trials[0])
    assert view.base is not None and not view.flags.writeable and view.dtype == "<f4"
    x, label = dataset[0]
    assert x.shape == SHAPE and x.dtype == torch.float32 and isinstance(label, int)
    before = view.copy()
    x.zero_()
    assert np.array_equal(dataset.store.read(dataset.trials[0]), before)


def test_the_fingerprint_follows_the_samples_and_not_the_labels(tmp_path):
    written = trials(3)
    relabelled = [(s, Trial(t.key, 3 - t.label, *list(vars(t).values())[2:]), x) for s, t, x in written]
    changed = [*written[:2], (written[2][0], written[2][1], written[2][2] + 1)]
    prints = [write(tmp_path / str(k), part)["fingerprint"] for k, part in enumerate((written, relabelled, changed))]
    assert prints[0] == prints[1] != prints[2]


def test_a_writer_that_fails_leaves_the_old_store_and_nothing_else(tmp_path):
    write(tmp_path / "store", trials(2))

    def broken():
        yield trials(1, "val", "A06")
        raise RuntimeError("the recorder's cable")

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "store", {"shape": SHAPE}, broken())
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert len(open_store(tmp_path / "store").trials("train")) == 2


def test_a_person_in_two_splits_is_refused(tmp_path):
    write(tmp_path / "store", trials(2), [("test", Trial("x", 0, "A01", "E", 1, 1), np.zeros(SHAPE, np.float32))])
    with pytest.raises(UserError, match="A01 in both train and test"):
        open_store(tmp_path / "store")


def test_other_folders_and_other_versions_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not an LMDB"):
        open_store(tmp_path)
    with lmdb.open(str(tmp_path / "foreign")) as env, env.begin(write=True) as txn:
        txn.put(b"hello", b"world")
    with pytest.raises(UserError, match="not a trial store"):
        open_store(tmp_path / "foreign")
    monkeypatch.setattr("datasets.store.VERSION", 99)
    write(tmp_path / "future", trials(1))
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 99"):
        open_store(tmp_path / "future")


def test_a_store_works_in_a_loaders_worker_processes(tmp_path):
    write(tmp_path / "store", trials(6))
    dataset = BCICIV2aDataset(str(tmp_path / "store"), "train")
    alone = [x for x, _ in dataset]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert all(torch.equal(a, b) for a, (b, _) in zip(alone, loader, strict=True))


# ---------------------------------------------------------------- CBraMod's layout


def test_cbramods_pickles_are_read_in_the_same_units(tmp_path):
    rng = np.random.default_rng(0)
    records = {f"{split}:{person}T-3-{k}": {"sample": rng.standard_normal(SHAPE) * 50, "label": k}
               for split, person in (("train", "A01"), ("val", "A06"), ("test", "A08")) for k in range(3)}  # fmt: skip
    write_cbramod(tmp_path / "lmdb", records)
    dataset = BCICIV2aDataset(str(tmp_path / "lmdb"), "val")
    assert isinstance(dataset.store, CBraModStore) and len(dataset) == 3
    x, label = dataset[2]
    assert label == 2 and x.dtype == torch.float32
    assert np.allclose(x.numpy(), records["val:A06T-3-2"]["sample"] / 100, atol=1e-6)
    assert (dataset.trials[2].subject, dataset.trials[2].session) == ("A06", "T")


def test_faced_takes_the_first_30_of_32_electrodes(tmp_path):
    rng = np.random.default_rng(0)
    records = {f"{split}:sub{p:03d}.pkl-0-0": {"sample": rng.standard_normal((32, 10, 200)), "label": 8}
               for split, p in (("train", 1), ("val", 90), ("test", 110))}  # fmt: skip
    write_cbramod(tmp_path / "lmdb", records)
    dataset = FACEDLLMDataset(str(tmp_path / "lmdb"), "test")
    item = dataset[0]
    assert item["x"].shape == (30, 10, 200) and item["label"] == 8 and dataset.trials[0].subject == "sub110"
    assert np.allclose(item["x"], records["test:sub110.pkl-0-0"]["sample"][:30] / 100, atol=1e-6)


def test_other_samples_under_the_same_keys_have_another_fingerprint(tmp_path):
    prints = []
    for scale in (1.0, 2.0):
        records = {f"{split}:{person}T-0-0": {"sample": np.full(SHAPE, scale), "label": 0}
                   for split, person in (("train", "A01"), ("val", "A06"), ("test", "A08"))}  # fmt: skip
        prints.append(open_store(write_cbramod(tmp_path / str(scale), records)).fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("n_chans", [20, 32])
def test_trials_of_another_montage_are_refused(tmp_path, n_chans):
    records = {f"{split}:{person}T-0-0": {"sample": np.zeros((n_chans, 4, 200)), "label": 0}
               for split, person in (("train", "A01"), ("val", "A06"), ("test", "A08"))}  # fmt: skip
    folder = write_cbramod(tmp_path / "lmdb", records)
    with pytest.raises(UserError, match=rf"trials are \({n_chans}, 4, 200\); BCICIV2a has \(22"):
        BCICIV2aLLMDataset(str(folder), "train")


def test_loaders_batches_are_right_and_may_be_changed_in_place(tmp_path):
    write(tmp_path / "store", trials(7))
    dataset = BCICIV2aDataset(str(tmp_path / "store"), "train")
    alone = torch.stack([x for x, _ in dataset])

    def doubling(items):
        return dataset.collate([(x.mul_(2), label) for x, label in items])

    for collate, factor in ((None, 1), (dataset.collate, 1), (doubling, 2)):
        batches = list(torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate))
        assert torch.equal(torch.cat([x for x, _ in batches]), factor * alone)
        assert torch.cat([y for _, y in batches]).tolist() == [t.label for t in dataset.trials]
    x, y = dataset.collate([dataset[2], dataset[0]])  # items that were never in one batch
    assert torch.equal(x, alone[[2, 0]])
    assert torch.equal(torch.stack([x for x, _ in dataset]), alone)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("where", ["__keys__", "record"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, where):
    marker = tmp_path / "ran"
    folder = write_cbramod(tmp_path / "lmdb", {f"{s}:{p}T-0-0": {"sample": np.zeros(SHAPE), "label": 0}
                                               for s, p in (("train", "A01"), ("val", "A06"), ("test", "A08"))})  # fmt: skip
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        key = b"__keys__" if where == "__keys__" else b"A01T-0-0"
        txn.put(key, pickle.dumps({"sample": Hostile(marker), "label": 0}))
    with pytest.raises(UserError, match="only numpy arrays"):
        BCICIV2aDataset(str(folder), "train")[0]
    assert not marker.exists()
