"""Recordings that come as pickles: equal to what NumPy and PyTorch read, lazily, and without running anything."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from readers.pickles import read_pickled
from readers.stored_array import StoredArray
from tests.conftest import ROOT
from utils.errors import UserError

RNG = np.random.default_rng(0)
CONTENT = {
    "preprocessed_eeg_data": RNG.standard_normal((150, 4, 7, 50)), "ch_names": ["Pz", "Oz"],
    "times": np.linspace(-0.2, 1, 300),
    "sfreq": np.float64(250), "n": np.int64(3), "names": np.array(["a", "bb"]), "mixed": np.array(["x", None], object),
}  # fmt: skip


def same(found, wanted):
    if isinstance(found, StoredArray):
        found = found.all()
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return found == wanted


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle_is_read_as_numpy_reads_it(tmp_path, protocol):
    path = tmp_path / "preprocessed_eeg_training.npy"  # as NICE and ATM call it
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    wanted, found = np.load(path, allow_pickle=True), read_pickled(path)
    assert isinstance(found["preprocessed_eeg_data"], StoredArray)
    assert set(found) == set(wanted) and all(same(found[key], wanted[key]) for key in wanted)
    assert np.array_equal(found["preprocessed_eeg_data"].rows(5, 9), wanted["preprocessed_eeg_data"][5:9])


def test_a_zero_dimensional_object_array_is_read_as_numpy_reads_it(tmp_path):
    np.save(tmp_path / "raw.npy", CONTENT)
    wanted, found = np.load(tmp_path / "raw.npy", allow_pickle=True).item(), read_pickled(tmp_path / "raw.npy")
    assert set(found) == set(wanted) and all(same(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_stretch_of_time_is_read_alone(tmp_path, order):
    signal = np.array(RNG.standard_normal((65, 9000)), order=order)
    np.save(tmp_path / "raw.npy", {"raw_eeg_data": signal})
    found = read_pickled(tmp_path / "raw.npy")["raw_eeg_data"]
    assert np.array_equal(found.lines(100, 2000), signal[:, 100:2000]) and np.array_equal(found.rows(3, 5), signal[3:5])
    assert found.lines(8990, 10_000).shape == (65, 10)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pt_file_of_tensors_and_of_arrays(tmp_path, protocol):
    half = RNG.standard_normal((300, 63, 60)).astype(np.float16)
    content = {"eeg": torch.from_numpy(half), "array": half, "label": torch.arange(5), "img": ["a", "b"]}
    torch.save(content, tmp_path / "train.pt", pickle_protocol=protocol)
    found = read_pickled(tmp_path / "train.pt")
    for key in ("eeg", "array"):
        assert isinstance(found[key], StoredArray) and np.array_equal(found[key].all(), half)
        assert np.array_equal(found[key].rows(299, 300), half[299:300]) and np.array_equal(
            found[key].rows(7, 250), half[7:250]
        )
    assert found["label"].tolist() == [0, 1, 2, 3, 4] and found["img"] == ["a", "b"]


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write(kind, path, content):
    if kind == "npy":
        np.save(path, content)
    elif kind == "pt":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(kind)))


@pytest.mark.parametrize("kind", ["2", "4", "5", "npy", "pt"])
def test_the_malicious_twin_is_refused_and_does_nothing(tmp_path, kind):
    path = tmp_path / "twin.npy"
    write(kind, path, CONTENT | {"subject": Evil(tmp_path / "ran")})
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system.*nothing of it was run"):
        read_pickled(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", [
    b"cbuiltins\neval\n(S'1'\ntR.", b"(ibuiltins\nlist\n.", b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)\x81.",
    b"cnumpy\ndtype\n(S'O'\ntR}S'shape'\nS'x'\nsb.", b"P1\n.", b"\x80\x02cnumpy\nndarray\nq\x00}b.", b"\x80\x05\x97.",
], ids=["eval", "inst", "newobj", "build a dict", "persistent id", "build on a callable", "out of band"])  # fmt: skip
def test_other_ways_to_make_objects_are_refused(tmp_path, text):
    (tmp_path / "x.npy").write_bytes(text)
    with pytest.raises(UserError):
        read_pickled(tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["4", "npy", "pt"])
def test_a_file_that_ends_early_is_one_line(tmp_path, kind):
    write(kind, tmp_path / "whole", CONTENT) if kind != "npy" else np.save(tmp_path / "whole", CONTENT)
    whole = next(tmp_path.glob("whole*")).read_bytes()
    for share in (0.0, 0.3, 0.9, 0.999):
        (tmp_path / "cut.npy").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError) as error:
            read_pickled(tmp_path / "cut.npy")
        assert "\n" not in str(error.value)


def test_a_key_that_is_nested_deep_is_refused_and_does_not_end_the_process(tmp_path):
    """To hash it, Python needs more stack than there is."""
    (tmp_path / "x.npy").write_bytes(b"})" + b"\x85" * 300_000 + b"Ns.")
    code = "import sys; from readers.pickles import read_pickled; read_pickled(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.npy"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "UserError" in done.stderr and "keys are no" in done.stderr


NO_DATA = {
    "function in a tuple": b"]cnumpy\nndarray\na]cnumpy\ndtype\na\x86.",
    "function in a list": b"]cnumpy\ndtype\na.",
    "data type in the making": b"cnumpy\ndtype\n(Vf8\ntR.",
    "long bytes": b"\x80\x04\x8e" + (1 << 20).to_bytes(8, "little") + bytes(1 << 20) + b".",
}


@pytest.mark.parametrize("text", NO_DATA.values(), ids=NO_DATA)
def test_what_is_no_data_is_refused_wherever_it_stands(tmp_path, text):
    (tmp_path / "x.npy").write_bytes(text)
    with pytest.raises(UserError, match="is no data"):
        read_pickled(tmp_path / "x.npy")


@pytest.mark.parametrize("n", [12, 200_000])
def test_a_bare_array_is_read_in_either_order(tmp_path, n):
    array = np.asfortranarray(RNG.standard_normal((n, 3)))
    np.save(tmp_path / "x.npy", array)
    assert same(read_pickled(tmp_path / "x.npy"), array)


@pytest.mark.parametrize("protocol", [1, 2, 5])
def test_an_array_with_its_axes_in_another_order_is_read_whole(tmp_path, protocol):
    array = np.ascontiguousarray(RNG.standard_normal((300, 20, 60))).transpose(1, 2, 0)
    (tmp_path / "x.npy").write_bytes(pickle.dumps({"swapped": array, "columns": np.asfortranarray(array)}, protocol))
    found = read_pickled(tmp_path / "x.npy")
    assert same(found["swapped"], array) and same(found["columns"], array)
    if protocol == 5:
        assert np.array_equal(found["swapped"].rows(2, 4), array[2:4])


@pytest.mark.parametrize("new", ["\u0431", "\u0800"], ids=["another character", "fewer characters"])
def test_text_that_stands_for_no_bytes_is_refused(tmp_path, new):
    raw = pickle.dumps({"eeg": RNG.standard_normal((200, 1000))}, 2)
    at = raw.index("\u00e9".encode(), len(raw) // 2)
    (tmp_path / "x.npy").write_bytes(raw[:at] + new.encode() + raw[at + len(new.encode()) :])
    with pytest.raises(UserError):
        read_pickled(tmp_path / "x.npy")["eeg"].all()


@pytest.mark.parametrize("change", [-5, 1, 1000])
def test_frames_of_another_length_are_refused(tmp_path, change):
    raw = pickle.dumps({"ch_names": ["Pz", "Oz"]}, 4)
    length = int.from_bytes(raw[3:11], "little") + change
    (tmp_path / "x.npy").write_bytes(raw[:3] + length.to_bytes(8, "little") + raw[11:])
    with pytest.raises(UserError):
        read_pickled(tmp_path / "x.npy")


def test_lengths_that_lie_are_refused(tmp_path):
    raw, n = pickle.dumps(CONTENT, protocol=4), CONTENT["preprocessed_eeg_data"].nbytes
    at = raw.index(b"B" + n.to_bytes(4, "little")) + 1  # the length of the long bytes
    for length in (2**32 - 1, n + 8, n - 8):
        (tmp_path / "x.npy").write_bytes(raw[:at] + length.to_bytes(4, "little") + raw[at + 4 :])
        with pytest.raises(UserError):
            read_pickled(tmp_path / "x.npy")


def test_a_persons_trials_take_no_memory(tmp_path):
    """96 MB of float64 are read in pieces in less than a fifth of that."""
    eeg = RNG.standard_normal((200, 4, 60, 250))
    (tmp_path / "x.npy").write_bytes(pickle.dumps({"preprocessed_eeg_data": eeg}, protocol=4))
    code = (
        "import resource, sys; from readers.pickles import read_pickled; import numpy as np\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "eeg = read_pickled(sys.argv[1])['preprocessed_eeg_data']\n"
        "total = sum(float(eeg.rows(k, k + 8).sum()) for k in range(0, 200, 8))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, total)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.npy")], capture_output=True, text=True, cwd=ROOT
    )
    grown, total = done.stdout.split()
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < eeg.nbytes / 5, done.stderr
    assert float(total) == pytest.approx(eeg.sum())
