import io
import json
import pickle
import shutil
import zlib
from dataclasses import replace

import lmdb
import numpy as np
import pytest
import torch

from datasets.bciciv2a_dataset import BCICIV2aDataset
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset
from datasets.cbramod import CBraModStore, SafeUnpickler
from datasets.faced_llm_dataset import FACEDLLMDataset
from datasets.store import Trial, TrialStore, is_trial_store, open_store, write_store
from utils.errors import UserError
from utils.signals import to_patches

SHAPE = (22, 1000)  # four seconds at 250 Hz
RECORD = (22, 4, 200)  # of CBraMod's layout
META = {"dataset": "BCICIV2a", "sfreq": 250.0}


def trials(n, subject="A01", start=0, shape=SHAPE):
    rng = np.random.default_rng(start)
    return [(Trial(f"{subject}T-r1-t{k:02d}", k % 4, subject, "T", 1, k + 1, f"Object_{k}.jpg" if k == 1 else ""),
             (30 * rng.standard_normal(shape)).astype(np.float32)) for k in range(n)]  # fmt: skip


def write(path, *parts):
    return write_store(path, META, parts)


def write_cbramod(path, records: dict, splits=("train", "val", "test")):
    """Records by "split:key"."""
    keys = {split: [key.split(":", 1)[1] for key in records if key.startswith(f"{split}:")] for split in splits}
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, record in records.items():
            txn.put(key.split(":", 1)[1].encode(), pickle.dumps(record))
        txn.put(b"__keys__", pickle.dumps(keys))
    return path


def test_trials_come_back_as_written_with_their_origin(tmp_path):
    written = trials(5) + trials(3, "A08", start=1)
    meta = write(tmp_path / "store", written[:4], written[4:])
    store = open_store(tmp_path / "store")
    assert isinstance(store, TrialStore) and meta["n_trials"] == 8 and meta["units"] == "microvolts"
    assert store.shape == SHAPE and store.sfreq == 250 and store.meta["dataset"] == "BCICIV2a"
    assert store.trials == [replace(t, checksum=zlib.crc32(x.tobytes())) for t, x in written]
    for trial, (_, x) in zip(store.trials, written, strict=True):
        assert np.array_equal(store.read(trial), x)


def test_samples_are_mapped_and_read_only_and_items_are_private_copies(tmp_path):
    write(tmp_path / "store", trials(2))
    dataset = BCICIV2aDataset(str(tmp_path / "store"), "train")
    view = dataset.store.read(dataset.trials[0])
    assert view.base is not None and not view.flags.writeable and view.dtype == "<f4" and view.shape == SHAPE
    x, label = dataset[0]
    assert x.shape == (22, 4, 200) and x.dtype == torch.float32 and isinstance(label, int)
    assert np.array_equal(x.numpy(), to_patches(view, 250.0))  # 200 Hz, 100 µV
    before = view.copy()
    x.zero_()
    assert np.array_equal(dataset.store.read(dataset.trials[0]), before) and dataset[0][0].any()


def test_the_fingerprint_follows_the_samples_and_not_the_labels(tmp_path):
    written = trials(3)
    relabelled = [(replace(t, label=3 - t.label), x) for t, x in written]
    changed = [*written[:2], (written[2][0], written[2][1] + 1)]
    versions = (written, relabelled, changed, written[::-1])
    prints = [write(tmp_path / str(k), part)["fingerprint"] for k, part in enumerate(versions)]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    opened = [open_store(tmp_path / str(k)).fingerprint for k in range(4)]
    assert opened[0] == opened[1] and len(set(opened)) == 3


def test_writing_into_a_store_later_changes_its_fingerprint(tmp_path):
    write(tmp_path / "store", trials(2))
    before = open_store(tmp_path / "store").fingerprint
    for copy in ("copy", "changed"):
        shutil.copytree(tmp_path / "store", tmp_path / copy)
    with lmdb.open(str(tmp_path / "changed")) as env, env.begin(write=True) as txn:
        txn.put(b"note", b"anything")
    assert open_store(tmp_path / "copy").fingerprint == before != open_store(tmp_path / "changed").fingerprint


def test_a_writer_that_fails_leaves_the_old_store_and_nothing_else(tmp_path):
    write(tmp_path / "store", trials(2))

    def broken():
        yield trials(1, "A06")
        raise RuntimeError("the recorder's cable")

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "store", META, broken())
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert len(open_store(tmp_path / "store").trials) == 2


def test_a_key_that_comes_twice_and_samples_of_another_shape_are_refused(tmp_path):
    for parts, message in (([trials(2), trials(1)], "two trials have the key A01T-r1-t00"),
                           ([trials(2) + trials(1)], "two trials have the key A01T-r1-t00"),
                           ([trials(1), trials(1, "A06", shape=(22, 800))], "one sampling rate and one window"),
                           ([[(t, x.astype(np.float64)) for t, x in trials(1)]], "float64")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            write(tmp_path / "store", *parts)
        assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what is no store, or no whole one


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


@pytest.mark.parametrize("dataset, script", [("BCICIV2a", "prepare_data.py"), ("VI", "prepare_data_vi.py")])
def test_a_store_of_version_1_is_refused_with_the_command_that_makes_it_anew(tmp_path, dataset, script):
    folder = tmp_path / "processed_lmdb"
    row = {"key": "a", "label": 0, "subject": "A01", "session": "T", "run": 1, "trial": 1}
    meta = {"format": "eeg2image-trials", "version": 1, "dataset": dataset, "shape": [22, 4, 200], "dtype": "<f4",
            "splits": {"train": 1, "val": 0, "test": 0}, "fingerprint": "0" * 64}  # fmt: skip
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(b"a", np.zeros((22, 4, 200), "<f4").tobytes())
        for split in ("train", "val", "test"):
            txn.put(f"trials/{split}".encode(), json.dumps([row] if split == "train" else []).encode())
        txn.put(b"meta", json.dumps(meta).encode())
    with pytest.raises(UserError, match="version 1; this code reads version 2") as error:
        open_store(folder)
    assert f"python {script} --skip_download --lmdb_dir {folder} --overwrite" in str(error.value)
    assert is_trial_store(folder)  # so --overwrite replaces it


@pytest.mark.parametrize("keep", [0, 100, 4096, 8192, 0.5, -4096, -1])
def test_a_truncated_store_is_one_line_and_no_crash(tmp_path, keep):
    write(tmp_path / "store", trials(4))
    file = tmp_path / "store/data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else keep])
    with pytest.raises(UserError, match="data.mdb.*(truncated|damaged).*--overwrite") as error:
        open_store(tmp_path / "store")
    assert "\n" not in str(error.value) and not is_trial_store(tmp_path / "store")
    file.write_bytes(whole)
    assert len(open_store(tmp_path / "store").trials) == 4


def test_bytes_that_are_no_lmdb_are_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(np.random.default_rng(0).bytes(100_000))
    with pytest.raises(UserError, match="no LMDB file"):
        open_store(tmp_path)


def test_a_flipped_byte_in_a_sample_is_found_when_the_trial_is_read(tmp_path):
    written = trials(4)
    write(tmp_path / "store", written)
    file = tmp_path / "store/data.mdb"
    content = bytearray(file.read_bytes())
    at = content.find(written[2][1].tobytes()[40_000:40_400])
    assert at > 0
    content[at + 77] ^= 1
    file.write_bytes(content)
    store = open_store(tmp_path / "store")
    for k in (0, 1, 3):
        assert np.array_equal(store.read(store.trials[k]), written[k][1])
    for ask in (store.read, store.verify, store.read):  # and again: a trial that failed is not taken for verified
        with pytest.raises(UserError, match="the samples of trial A01T-r1-t02 are not those that were written"):
            ask(store.trials[2])
    with pytest.raises(UserError, match="A01T-r1-t02"):
        BCICIV2aDataset(tmp_path / "store", "train")[2]
    with pytest.raises(UserError, match="A01T-r1-t02"):
        BCICIV2aLLMDataset(tmp_path / "store", "train")[2]


@pytest.mark.parametrize("key", ["meta", "trials"])
@pytest.mark.parametrize("damage", ["no JSON", "another field"])
def test_damaged_facts_are_one_line(tmp_path, key, damage):
    write(tmp_path / "store", trials(2))
    with lmdb.open(str(tmp_path / "store")) as env, env.begin(write=True) as txn:
        text = txn.get(key.encode())
        field = {"meta": b'"sfreq"', "trials": b'"label"'}[key]
        assert field in text
        txn.put(
            key.encode(), text[:-5] if damage == "no JSON" else text.replace(field, field[:2] + b"\x21" + field[3:])
        )
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path / "store")


def test_a_store_works_in_a_loaders_worker_processes(tmp_path):
    write(tmp_path / "store", trials(6))
    dataset = BCICIV2aDataset(str(tmp_path / "store"), "train")
    alone = [x for x, _ in dataset]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert all(torch.equal(a, b) for a, (b, _) in zip(alone, loader, strict=True))


def test_loaders_batches_are_right_and_may_be_changed_in_place(tmp_path):
    write(tmp_path / "store", trials(7))
    dataset = BCICIV2aDataset(str(tmp_path / "store"), "train")
    alone = torch.stack([x for x, _ in dataset])

    def doubling(items):
        return torch.utils.data.default_collate([(x.mul_(2), label) for x, label in items])

    for collate, factor in ((None, 1), (doubling, 2)):
        batches = list(torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate))
        assert torch.equal(torch.cat([x for x, _ in batches]), factor * alone)
        assert torch.cat([y for _, y in batches]).tolist() == [t.label for t in dataset.trials]
    assert torch.equal(torch.stack([x for x, _ in dataset]), alone)


# ---------------------------------------------------------------- CBraMod's layout


def test_cbramods_pickles_are_read_in_the_same_units(tmp_path):
    rng = np.random.default_rng(0)
    records = {f"{split}:{person}T-3-{k}": {"sample": rng.standard_normal(RECORD) * 50, "label": k}
               for split, person in (("train", "A01"), ("val", "A06"), ("test", "A08")) for k in range(3)}  # fmt: skip
    write_cbramod(tmp_path / "lmdb", records)
    dataset = BCICIV2aDataset(str(tmp_path / "lmdb"), "val")
    assert isinstance(dataset.store, CBraModStore) and len(dataset) == 3
    x, label = dataset[2]
    assert label == 2 and x.dtype == torch.float32
    assert np.allclose(x.numpy(), records["val:A06T-3-2"]["sample"] / 100, atol=1e-6)
    assert (dataset.trials[2].subject, dataset.trials[2].session) == ("A06", "T")
    item = BCICIV2aLLMDataset(tmp_path / "lmdb", "val")[2]  # microvolts, one second after the other
    assert np.allclose(item["x"].numpy(), records["val:A06T-3-2"]["sample"].reshape(22, 800), atol=1e-4)


def test_faced_takes_the_first_30_of_32_electrodes(tmp_path):
    rng = np.random.default_rng(0)
    records = {f"{split}:sub{p:03d}.pkl-0-0": {"sample": rng.standard_normal((32, 10, 200)), "label": 8}
               for split, p in (("train", 1), ("val", 90), ("test", 110))}  # fmt: skip
    write_cbramod(tmp_path / "lmdb", records)
    dataset = FACEDLLMDataset(str(tmp_path / "lmdb"), "test")
    item = dataset[0]
    assert item["x"].shape == (30, 2000) and item["label"] == 8 and dataset.trials[0].subject == "sub110"
    assert dataset.sfreq == 200
    expected = records["test:sub110.pkl-0-0"]["sample"][:30]
    assert np.allclose(item["x"], expected.reshape(30, 2000), atol=1e-5)
    assert np.allclose(to_patches(item["x"].numpy(), dataset.sfreq), expected / 100, atol=1e-6)


def test_other_samples_under_the_same_keys_have_another_fingerprint(tmp_path):
    prints = []
    for scale in (1.0, 2.0):
        records = {f"{split}:{person}T-0-0": {"sample": np.full(RECORD, scale), "label": 0}
                   for split, person in (("train", "A01"), ("val", "A06"), ("test", "A08"))}  # fmt: skip
        prints.append(open_store(write_cbramod(tmp_path / str(scale), records)).fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("n_chans", [20, 32])
def test_trials_of_another_montage_are_refused(tmp_path, n_chans):
    records = {f"{split}:{person}T-0-0": {"sample": np.zeros((n_chans, 4, 200)), "label": 0}
               for split, person in (("train", "A01"), ("val", "A06"), ("test", "A08"))}  # fmt: skip
    folder = write_cbramod(tmp_path / "lmdb", records)
    with pytest.raises(UserError, match=rf"trials are \({n_chans}, 800\); BCICIV2a has 22"):
        BCICIV2aLLMDataset(str(folder), "train")


@pytest.mark.parametrize("record, message", [
    ({"sample": np.zeros((22, 800)), "label": 0}, "no array"), ({"sample": "text", "label": 0}, "no array"),
    ({"sample": np.zeros(RECORD)}, "the label None"), ({"sample": np.zeros(RECORD), "label": "left"}, "the label .left."),
    ({"sample": np.zeros((22, 4, 100)), "label": 0}, "no array"), ([1, 2], "no array"),
])  # fmt: skip
def test_a_record_that_is_none_is_named(tmp_path, record, message):
    folder = write_cbramod(tmp_path / "lmdb", {"train:A01T-0-0": record})
    with pytest.raises(UserError, match=f"'A01T-0-0' has {message}"):
        BCICIV2aDataset(folder, "train")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("where", ["__keys__", "record"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, where):
    marker = tmp_path / "ran"
    folder = write_cbramod(tmp_path / "lmdb", {f"{s}:{p}T-0-0": {"sample": np.zeros(RECORD), "label": 0}
                                               for s, p in (("train", "A01"), ("val", "A06"), ("test", "A08"))})  # fmt: skip
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        key = b"__keys__" if where == "__keys__" else b"A01T-0-0"
        txn.put(key, pickle.dumps({"sample": Hostile(marker), "label": 0}))
    with pytest.raises(UserError, match="only numpy arrays"):
        BCICIV2aDataset(str(folder), "train")[0]
    assert not marker.exists()


def test_arrays_and_bytes_of_every_pickle_protocol_are_read_and_other_codecs_are_not():
    content = {"sample": np.arange(6.0).reshape(2, 3), "label": np.int64(2), "raw": b"\xff\x00"}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        read = SafeUnpickler(io.BytesIO(pickle.dumps(content, protocol))).load()
        assert np.array_equal(read["sample"], content["sample"]) and read["label"] == 2 and read["raw"] == b"\xff\x00"
    hostile = pickle.dumps(b"\xff\x00", 2).replace(b"latin1", b"rot_13")
    with pytest.raises(pickle.UnpicklingError, match="rot_13"):
        SafeUnpickler(io.BytesIO(hostile)).load()


def test_a_flipped_byte_in_the_stores_facts_is_noticed(tmp_path):
    write(tmp_path / "store", trials(2))
    file = tmp_path / "store/data.mdb"
    content = file.read_bytes()
    assert content.count(b'"sfreq": 200.0') == 1 or content.count(b'"sfreq": 250.0') == 1
    file.write_bytes(content.replace(b'"sfreq": 2', b'"sfreq": 1'))
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path / "store")
