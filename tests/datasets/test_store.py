import json
import pickle
import shutil
import struct
import tracemalloc
import zlib
from dataclasses import replace

import lmdb
import numpy as np
import pytest
import torch

from datasets.bciciv2a_dataset import BCICIV2aDataset
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset
from datasets.cbramod import CBraModStore, SafeUnpickler
from datasets.description import load_description
from datasets.faced_llm_dataset import FACEDLLMDataset
from datasets.recording import Trial
from datasets.store import StoreWriter, TrialStore, is_trial_store, open_store, write_store
from tests.conftest import small_store
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


@pytest.mark.parametrize("name", ["A\0", "A\ud800", "A" * 5000])
def test_names_that_decoded_rows_could_not_hold_are_refused_before_anybody_trains(tmp_path, name):
    x = np.zeros((2, 3), np.float32)
    for trial in (Trial("k", 0, name, "T", 0, 1), Trial(name, 0, "A", "T", 0, 1), Trial("k", 0, "A", "T", 0, 1, name)):
        with pytest.raises(UserError, match="name it otherwise"):
            write_store(tmp_path / "store", {"sfreq": 250}, [[(trial, x)]])
    with pytest.raises(UserError, match="a class"):
        write_store(tmp_path / "store", {"sfreq": 250, "classes": ["a", name]}, [[(Trial("k", 0, "A", "T", 0, 1), x)]])
    assert not list(tmp_path.iterdir())


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
    ({"sample": np.zeros(RECORD)}, "no label"), ({"sample": np.zeros(RECORD), "label": "left"}, "the label .left."),
    ({"sample": np.zeros(RECORD), "label": None}, "the label None"), ({"sample": np.zeros(RECORD), "label": 1.0},
    "the label 1"),
    ({"sample": np.zeros(RECORD), "label": np.float64(1)}, "the label np.float64"),
    ({"sample": np.zeros(RECORD), "label": np.arange(400)}, "the label array"),
    ({"sample": np.zeros(RECORD), "label": [[[[[[[[[0]]]]]]]] * 9]}, "the label "),
    ({"sample": np.zeros((22, 4, 100)), "label": 0}, "no array"), ({"sample": np.zeros((0, 4, 200)), "label": 0},
    "no array"),
    ({"sample": np.zeros(RECORD, bool), "label": 0}, "no array"), ({"label": 0}, "no array"),
])  # fmt: skip
def test_a_record_that_is_none_is_named(tmp_path, record, message):
    folder = write_cbramod(tmp_path / "lmdb", {"train:A01T-0-0": record})
    with pytest.raises(UserError, match=f"'A01T-0-0' has {message}") as error:
        BCICIV2aDataset(folder, "train")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("record", [[1, 2], None, 7, "text", np.zeros(RECORD), ({"sample": 1},)])
def test_a_record_that_is_no_dict_is_named(tmp_path, record):
    with pytest.raises(UserError, match="record 'A01T-0-0' is no dict with 'sample' and 'label'"):
        BCICIV2aDataset(write_cbramod(tmp_path / "lmdb", {"train:A01T-0-0": record}), "train")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_a_record_with_nan_or_infinity_is_named(tmp_path, value, dtype):
    samples = np.zeros((2, *RECORD), dtype)
    with np.errstate(over="ignore"):
        samples[1, 3, 2, 150] = value
    records = {f"train:A01T-0-{k}": {"sample": x, "label": k} for k, x in enumerate(samples)}
    store = open_store(write_cbramod(tmp_path / "lmdb", records))
    with pytest.raises(UserError, match="record 'A01T-0-1' has NaN or infinity in its samples"):
        _ = store.trials


@pytest.mark.parametrize("keys", ["A01T-0-0", None, 3, ["A01T-0-0", 5], [None], ["A01T-0-0", ["A01T-0-1"]],
    {"A01T-0-0": 1},
                                  [b"A01T-0-0"], ("A01T-0-0",), np.zeros(3)])  # fmt: skip
def test_lists_of_keys_that_are_none_are_refused(tmp_path, keys):
    folder = write_cbramod(tmp_path / "lmdb", {"train:A01T-0-0": {"sample": np.zeros(RECORD), "label": 0}})
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(b"__keys__", pickle.dumps({"train": [], "val": keys, "test": []}))
    with pytest.raises(UserError, match="__keys__ has .* as val; expected a list of strings"):
        open_store(folder)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("where", ["__keys__", "record"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, where):
    marker = tmp_path / "ran"
    folder = write_cbramod(tmp_path / "lmdb", {f"{s}:{p}T-0-0": {"sample": np.zeros(RECORD), "label": 0}
                                               for s, p in (("train", "A01"), ("val", "A06"), ("test",
                                                   "A08"))})  # fmt: skip
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        key = b"__keys__" if where == "__keys__" else b"A01T-0-0"
        txn.put(key, pickle.dumps({"sample": Hostile(marker), "label": 0}))
    with pytest.raises(UserError, match="only numpy arrays"):
        BCICIV2aDataset(str(folder), "train")[0]
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_bytes_of_every_pickle_protocol_are_read_and_other_codecs_are_not(protocol):
    content = {"sample": np.arange(6.0).reshape(2, 3), "label": np.int64(2), "raw": b"\xff\x00", "long": b"\xff" * 300,
               "list": [1, 2**70, -3, 300, 70_000, 1.5, True, False, None, "ä", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3,
               4)],
               "dict": {"a": {}}, "again": "list", "array": np.arange(6.0)}  # fmt: skip
    read = SafeUnpickler(pickle.dumps(content, protocol)).load()
    assert np.array_equal(read.pop("sample"), content.pop("sample")) and type(read["label"]) is np.int64
    assert np.array_equal(read.pop("array"), content.pop("array")) and read == content
    with pytest.raises(pickle.UnpicklingError, match="rot_13"):
        SafeUnpickler(pickle.dumps(b"\xff\x00", 2).replace(b"latin1", b"rot_13")).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<f2", "<i2", ">i2", "<i4", ">i8", "i1", "u1", "<u2"])
def test_records_are_read_whatever_their_numbers_order_and_numpy(tmp_path, protocol, dtype):
    x = np.random.default_rng(0).integers(-100 if "u" not in dtype else 0, 100, (2, 3, 200)).astype(dtype)
    ways = {"C": x, "F": np.asfortranarray(x), "swapped": np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1),
            "strided": np.repeat(x, 2, axis=2)[:, :, ::2]}  # fmt: skip
    keys = {"train": list(ways) + ["numpy 1"], "val": [], "test": []}
    with lmdb.open(str(tmp_path), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for label, (key, array) in enumerate(ways.items()):
            txn.put(
                key.encode(), pickle.dumps({"sample": array, "label": [label, np.int32(label)][label % 2]}, protocol)
            )
        txn.put(b"numpy 1", as_numpy_1(pickle.dumps({"sample": x, "label": np.int64(7)}, protocol)))
        txn.put(b"__keys__", pickle.dumps(keys, protocol))
    store = open_store(tmp_path)
    assert [t.label for t in store.trials] == [0, 1, 2, 3, 7] and store.shape == (2, 600)
    for trial in store.trials:
        read = store.read(trial)
        assert read.dtype == np.float32 and read.flags.aligned and np.array_equal(read, x.reshape(2, 600).astype("f4"))


def as_numpy_1(raw: bytes) -> bytes:
    """The pickle that numpy 1 writes: other names of modules, and so other lengths of strings and frames."""
    renamed = raw.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    renamed = renamed.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
    if renamed[2:3] == pickle.FRAME:  # these records are one frame
        renamed = renamed[:3] + struct.pack("<Q", len(renamed) - 11) + renamed[11:]
    renamed = renamed.replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in renamed and b"_core" not in renamed
    return renamed


def test_records_that_differ_around_their_samples_are_not_taken_for_each_other(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 2, 200)) for _ in range(40)]
    records = {f"train:A01T-0-{k}": {"sample": [x, x.astype("f4"), np.asfortranarray(x), x[:, ::-1]][k % 4], "label": k}
               for k, x in enumerate(arrays)}  # fmt: skip
    records["train:A01T-1-0"] = {"label": 1000, "note": "x" * 5000, "other": arrays[0], "sample": arrays[1]}
    records["train:A01T-1-1"] = {"label": 1001, "note": "x" * 5000, "other": arrays[2], "sample": arrays[3]}
    store = open_store(write_cbramod(tmp_path / "lmdb", records))
    assert [t.label for t in store.trials] == [record["label"] for record in records.values()]
    for k in rng.permutation(len(records)).tolist() * 2:
        expected = list(records.values())[k]["sample"].reshape(3, 400).astype("f4")
        assert np.array_equal(store.read(store.trials[k]), expected)
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.read(again.trials[5]), store.read(store.trials[5]))


def test_keys_that_look_odd_are_read(tmp_path):
    keys = ["A01T-²-3", "with\nline", "ä-1-2", "x-٣-4", "-"]
    store = open_store(
        write_cbramod(tmp_path / "lmdb", {f"test:{key}": {"sample": np.zeros(RECORD), "label": 0} for key in keys})
    )
    assert [t.key for t in store.trials] == keys and len(store.fingerprint) == 64
    assert [(t.subject, t.run, t.trial) for t in store.trials][0] == ("A01", 3, 1)


# ---------------------------------------------------------------- pickles that were made to do harm


def hidden_objects(where: str) -> bytes:
    """A record whose bytes numpy would take for pointers to objects: its type's flags deny that it holds any."""
    record = {"label": np.float64(1.5)} if where == "label" else {"sample": np.full(RECORD, 1.5), "label": 0}
    raw = pickle.dumps(record, 4)
    assert b"\x8c\x02f8" in raw and b"\x8c\x01<" in raw
    return raw.replace(b"\x8c\x02f8", b"\x8c\x02O8").replace(b"\x8c\x01<", b"\x8c\x01|")


def hidden_in_a_field() -> bytes:
    """The same in a field of a structured data type."""
    raw = pickle.dumps({"sample": np.zeros(RECORD, [("x", "f8")]), "label": 0}, 4)
    assert b"\x8c\x02f8" in raw and b"\x8c\x02V8" in raw
    return raw.replace(b"\x8c\x02f8", b"\x8c\x02O8").replace(b"\x8c\x01<", b"\x8c\x01|")


@pytest.mark.parametrize("raw, message", [
    (hidden_objects("label"), "only plain numbers"), (hidden_objects("sample"), "only plain numbers"),
    (hidden_in_a_field(), "only plain numbers"),
    (pickle.dumps(np.array([object], object), 4).replace(b"builtins", b"builtinz"), "only plain numbers"),
    (pickle.dumps(np.array(["text"])), "only plain numbers"), (pickle.dumps(np.zeros(2, complex)),
    "only plain numbers"),
    (pickle.dumps(np.zeros(2, np.longdouble)), "only plain numbers"), (pickle.dumps(np.datetime64(1, "s")),
    "plain numbers"),
    (pickle.dumps(np.zeros(2, np.dtype("f8", metadata={"a": 1}))), "only plain numbers|damaged"),
    (pickle.dumps({1, 2}), "opcode"), (pickle.dumps({1: 2}), "keys are no strings"), (pickle.dumps(print),
    "it asks for"),
    (pickle.dumps(np.float64), "it asks for"), (b"", "damaged"), (b".", "damaged"), (b"\x80\x04", "damaged"),
    (b"cnumpy\ndtype\n}b.", "damaged"), (b"c_codecs\nencode\nN}\x86b.", "damaged"), (b"]R.", "damaged"), (b"]}}b.",
    "damaged"),
    (b"Nq\x00h\x01.", "damaged"), (b"\x8a\xff\x00.", "damaged"), (b"I" + b"9" * 100_000 + b"\n.", "damaged"),
    (b"(i__builtin__\nopen\n.", "opcode"), (b"\x82\x01.", "opcode"), (b"Pid\n.", "opcode"), (b"]e.", "damaged"),
    (b")" + b"\x85" * 300_000 + b"N\x93.", "it asks for|damaged"),
    (b"N)" + b"\x85" * 300_000 + b"}q\x000h\x00q\x01.", "opcode"),
    (b"})" + b"\x85" * 300_000 + b"Ns.", "keys are no strings"),
])  # fmt: skip
def test_pickles_that_were_made_to_do_harm_are_refused(raw, message):
    with pytest.raises(pickle.UnpicklingError, match=message):
        SafeUnpickler(raw).load()


def array_pickle(shape, data=bytes(48)) -> bytes:
    """Of an array of float64, with any shape and bytes."""
    raw = pickle.dumps(np.zeros((2, 3)), 3)
    before, behind = raw.split(b"K\x02K\x03\x86")
    between, behind = behind.split(b"C\x30" + bytes(48))
    return before + pickle.dumps(shape, 2)[2:-1] + between + b"B" + struct.pack("<I", len(data)) + data + behind


@pytest.mark.parametrize("shape, data", [((2, 3), bytes(47)), ((2, 3), bytes(56)), ((2, 4), bytes(48)), ((-2, -3),
    bytes(48)),
                                         ((2.0, 3), bytes(48)), ((1,) * 9 + (6,), bytes(48)), ((2**62, 4), b""),
                                         ((2**70, 0), b""), ("ab", bytes(48)), (6, bytes(48)), ((True, 6), bytes(48)),
                                         ((2**32, 2**32), bytes(0)), ((2, 3), bytes(400)), (((2,), 3),
                                         bytes(48))])  # fmt: skip
def test_arrays_have_as_many_bytes_as_their_shape_says(shape, data):
    assert SafeUnpickler(array_pickle((2, 3))).load().shape == (2, 3) and SafeUnpickler(
        array_pickle([6])
    ).load().shape == (6,)
    with pytest.raises(pickle.UnpicklingError, match="do not belong together|damaged"):
        SafeUnpickler(array_pickle(shape, data)).load()


@pytest.mark.parametrize("raw", [
    b"Nr\xff\xff\xff\x0f.", b"Np268435455\n.", b"Np-1\n.", b"N\x8e\x00\x00\x00\x00\x02\x00\x00\x00.",
    b"N\x96\x00\x00\x00\x00\x02\x00\x00\x00.", b"N\x8d\x00\x00\x00\x00\x02\x00\x00\x00.", b"NB\xff\xff\xff\x7f.",
    b"NX\xff\xff\xff\x7f.", b"N\x8b\xff\xff\xff\x7f.", b"NT\xff\xff\xff\x7f.",
    b"\x80\x04\x95" + b"\xff" * 7 + b"\x0fN.",
    b"N\x8e" + b"\xff" * 8 + b".",
    b"c_codecs\nencode\nq\x00(X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"X\x06\x00\x00\x00latin1\x86q\x01"
    + b"0" + b"h\x00h\x01R" * 1000 + b".",
    b"c_codecs\nencode\nq\x00X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"X\x06\x00\x00\x00latin1\x86q\x01"
    + b"h\x00h\x01R" * 1000 + b".",
])  # fmt: skip
def test_a_short_pickle_allocates_no_gigabytes(raw):
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError):
            SafeUnpickler(raw).load()
        assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_flipped_bytes_of_a_record_end_in_one_line_or_in_a_record(tmp_path, protocol):
    rng = np.random.default_rng(protocol)
    raw = pickle.dumps({"sample": rng.standard_normal((2, 1, 200)), "label": np.int64(3), "more": ["a", 1.5]}, protocol)
    places = [k for k in range(len(raw)) if k < 350 or k > len(raw) - 250]
    store = open_store(write_cbramod(tmp_path / "lmdb", {"train:A01T-0-0": {"sample": np.zeros(RECORD), "label": 0}}))
    refused = 0
    for _ in range(3000):
        changed = bytearray(raw)
        for at in rng.choice(places, rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        try:
            read = SafeUnpickler(bytes(changed)).load()
            store._samples("A01T-0-0", read)
        except (pickle.UnpicklingError, UserError) as error:
            refused += 1
            assert "it is damaged (Recursion" not in str(error) and len(str(error)) < 500
    assert refused > 1000


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("shape", [(2, 10), (22, 250)])  # inside the leaves; in overflow pages
def test_flipped_bytes_of_a_stores_pages_end_in_one_line_or_change_nothing(tmp_path, shape):
    written = trials(120, shape=shape)
    write(tmp_path / "store", written)
    expected = [x for _, x in written]
    file = tmp_path / "store/data.mdb"
    whole = file.read_bytes()
    pages = [at for at in range(0, len(whole), 4096) if struct.unpack_from("<H", whole, at + 10)[0] in (1, 2, 8)]
    chains = [at for at in range(0, len(whole), 4096) if struct.unpack_from("<QHH", whole, at) == (at // 4096, 0, 4)]
    places = [at + k for at in pages for k in range(4096)] + [at + k for at in chains + pages for k in range(48)] * 8
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        changed = bytearray(whole)
        for at in rng.choice(places, rng.integers(1, 3)):
            changed[at] = rng.integers(256)
        file.write_bytes(changed)
        try:
            store = open_store(tmp_path / "store")
            read = [store.read(trial) for trial in store.trials]
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert [t.key for t in store.trials] == [t.key for t, _ in written]
            assert all(np.array_equal(a, b) for a, b in zip(read, expected, strict=True))
        assert is_trial_store(tmp_path / "store") in (True, False)
    assert refused > 30


def test_a_folder_whose_meta_is_no_dict_is_no_trial_store(tmp_path):
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        txn.put(b"meta", b"[1, 2]")
    assert not is_trial_store(tmp_path)
    with pytest.raises(UserError, match="not a trial store"):
        open_store(tmp_path)


def test_a_flipped_byte_in_the_stores_facts_is_noticed(tmp_path):
    write(tmp_path / "store", trials(2))
    file = tmp_path / "store/data.mdb"
    content = file.read_bytes()
    assert content.count(b'"sfreq": 200.0') == 1 or content.count(b'"sfreq": 250.0') == 1
    file.write_bytes(content.replace(b'"sfreq": 2', b'"sfreq": 1'))
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path / "store")


# ---------------------------------------------------------------- stores of strangers, and unfinished ones


def forged(path, meta=(), trial=()):
    """A store whose checksums are right and whose facts are not."""
    small_store(path, load_description("BCICIV2a"), ["A01"])
    with lmdb.open(str(path), lock=False, map_size=1 << 26) as env, env.begin(write=True) as txn:
        facts, rows = json.loads(txn.get(b"meta")), json.loads(txn.get(b"trials"))
        rows[0] |= dict(trial)
        listed = json.dumps(rows).encode()
        facts = json.dumps(facts | dict(meta) | {"trials_checksum": zlib.crc32(listed)}).encode()
        for key, value in ((b"trials", listed), (b"meta", facts), (b"meta_checksum", str(zlib.crc32(facts)).encode())):
            txn.put(key, value)


@pytest.mark.parametrize("meta, trial", [
    ({}, {"subject": []}), ({}, {"subject": 3}), ({}, {"run": []}), ({}, {"label": "0"}), ({}, {"label": 0.5}), ({},
    {"label": True}),
    ({}, {"key": None}), ({}, {"label": -1}), ({"shape": ["a", "b"]}, {}), ({"shape": [2200]}, {}), ({"shape": 3}, {}),
    ({"electrodes": 5}, {}), ({"electrodes": None}, {}), ({"sfreq": float("nan")}, {}), ({"sfreq": 1e300}, {}),
    ({"fingerprint": None}, {}), ({}, {"label": 10**30}), ({}, {"label": 300_000_000}), ({}, {"run": 10**30}),
    ({"sfreq": 1e-300}, {}), ({"sfreq": 0}, {}),
])  # fmt: skip
def test_facts_of_another_kind_are_refused_however_right_their_checksums(tmp_path, meta, trial):
    forged(tmp_path / "store", meta, trial)
    with pytest.raises(UserError, match="are not what was written"):
        open_store(tmp_path / "store")


def writer_with_a_part(path, plan=None):
    rng = np.random.default_rng(0)
    writer = StoreWriter(path, plan or {"code": "1"})
    if not writer.notes:
        writer.add([(Trial("a", 1, "A01", "T", 1, 1), rng.standard_normal((2, 50)).astype("<f4"))], {"file": 1})
    return writer


def test_a_store_is_gone_on_with_behind_its_parts_and_another_plan_begins_anew(tmp_path):
    writer_with_a_part(tmp_path / "store")
    assert StoreWriter(tmp_path / "store", {"code": "1"}).notes == [{"file": 1}]
    assert StoreWriter(tmp_path / "store", {"code": "2"}).notes == [] and not list(tmp_path.iterdir())


def test_a_label_that_changed_in_an_unfinished_store_is_noticed(tmp_path):
    writer_with_a_part(tmp_path / "store")
    file = tmp_path / ".store.unfinished/data.mdb"
    raw = file.read_bytes()
    assert raw.count(b'"label": 1') == 1
    file.write_bytes(raw.replace(b'"label": 1', b'"label": 3'))
    assert StoreWriter(tmp_path / "store", {"code": "1"}).notes == []


def test_an_unfinished_store_that_is_a_link_is_not_written_into(tmp_path):
    small_store(tmp_path / "other", load_description("BCICIV2a"), ["A01"])
    before = (tmp_path / "other/data.mdb").read_bytes()
    (tmp_path / ".store.unfinished").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="is in the way"):
        StoreWriter(tmp_path / "store", {})
    assert (tmp_path / "other/data.mdb").read_bytes() == before


# ---------------------------------------------------------------- copies of stores


def test_a_store_is_opened_by_its_data_mdb_and_kept_beside_its_folder(tmp_path):
    write(tmp_path / "store", trials(3))
    by_file, by_folder = open_store(tmp_path / "store/data.mdb"), open_store(tmp_path / "store")
    assert by_file.path == tmp_path / "store" and by_file.trials == by_folder.trials


@pytest.mark.parametrize("factor, said", [
    (1, None), (1e-6, "taken for volts, multiplied by 1e+06"), (0.01, "taken for hundreds of microvolts, multiplied"),
    (1e-3, "is the unit wrong?"),
])  # fmt: skip
def test_the_unit_of_cbramods_records_is_told_by_their_amplitude(tmp_path, capsys, factor, said):
    rng = np.random.default_rng(0)
    records = {f"train:A01T-{k}": {"sample": 20 * rng.standard_normal(RECORD), "label": 0} for k in range(3)}
    microvolts = records["train:A01T-0"]["sample"].reshape(22, 800)
    scaled = {key: record | {"sample": factor * record["sample"]} for key, record in records.items()}
    store = open_store(write_cbramod(tmp_path / "lmdb", scaled))
    assert np.allclose(store.read(store.trials[0]), microvolts * (factor if factor == 1e-3 else 1), rtol=1e-5)
    store.verify(store.trials[2])
    out = capsys.readouterr().out
    assert said in out if said else not out
