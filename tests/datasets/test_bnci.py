import os
import resource
import struct as struct_of
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.bnci import read_bnci_mat
from utils import limits
from utils.errors import UserError


def read(path, electrodes=BCIC.montage.electrodes, n_classes=4):
    return read_bnci_mat(path, electrodes, n_classes, 250.0)


def struct(**changes):
    run = {
        "X": np.random.default_rng(0).standard_normal((5000, 25)), "trial": np.array([[101.0], [2101.0]]),
        "y": np.array([[1.0], [4.0]]), "fs": 250.0, "artifacts": np.array([[0.0], [1.0]]),
    }  # fmt: skip
    return {k: v for k, v in (run | changes).items() if v is not None}


def save(path, *structs, name="data"):
    cell = np.empty((1, len(structs)), dtype=object)
    cell[0] = structs
    scipy.io.savemat(path, {name: cell})
    return path


def test_a_file_becomes_runs_with_0_based_samples_and_labels(tmp_path):
    empty = np.zeros((0, 1))
    calibration = struct(trial=empty, y=empty, artifacts=empty)
    first, second = read(save(tmp_path / "A01T.mat", calibration, struct()))
    assert not len(first.onsets) and len(second.onsets) and (first.number, second.number) == (1, 2)
    assert second.onsets.tolist() == [100, 2100] and second.labels.tolist() == [0, 3]
    assert second.artifacts.tolist() == [False, True] and second.sfreq == 250
    assert np.array_equal(second.signal, struct()["X"][:, :22].T)


def test_electrodes_and_classes_are_as_many_as_asked_for(tmp_path):
    path = save(tmp_path / "B01T.mat", struct(X=np.arange(5000 * 6.0).reshape(5000, 6), y=np.array([[2.0], [1.0]])))
    (run,) = read(path, ("C3", "Cz", "C4"), 2)
    assert (
        run.labels.tolist() == [1, 0] and np.array_equal(run.signal[:, 0], [0, 1, 2]) and run.signal.shape == (3, 5000)
    )
    with pytest.raises(UserError, match="label 4; expected 1 to 2"):
        read(save(tmp_path / "B02T.mat", struct()), ("C3", "Cz", "C4"), 2)


def with_nan():
    x = struct()["X"].copy()
    x[700, 3] = np.nan
    return x


@pytest.mark.parametrize(
    "changes, message",
    [({"fs": 256.0}, "256 Hz; expected 250 Hz"), ({"X": np.zeros((5000, 21))}, "21 channels; expected 22"),
     ({"X": with_nan()}, "NaN or infinity in FCz at sample 700"), ({"y": np.array([[1.0], [5.0]])},
     "label 5; expected 1 to 4"),
     ({"y": np.array([[0.0], [1.0]])}, "label 0"), ({"y": np.array([[1.0]])}, "2 trials and 1 labels"),
     ({"trial": np.array([[0.0], [5.0]])}, "trial at sample 0"), ({"fs": None}, "no field fs"),
     ({"X": "text"}, "something else than numbers")],
)  # fmt: skip
def test_what_cannot_be_right_is_named_with_file_and_run(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        read(save(tmp_path / "A03E.mat", struct(), struct(**changes)))
    assert "A03E.mat: run 2" in str(error.value)


def test_nan_in_the_eog_or_in_calibration_does_not_matter(tmp_path):
    x = struct()["X"].copy()
    x[5, 23] = np.nan
    empty = np.zeros((0, 1))
    runs = read(save(tmp_path / "A01T.mat", struct(X=with_nan(), trial=empty, y=empty), struct(X=x)))
    assert len(runs) == 2


@pytest.mark.parametrize("keep", [0, 100, 1000, 0.5, 0.99])
def test_a_truncated_file_is_said_to_be_damaged(tmp_path, keep):
    whole = save(tmp_path / "A01T.mat", struct()).read_bytes()
    (tmp_path / "A01T.mat").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(UserError, match="A01T.mat"):
        read(tmp_path / "A01T.mat")


def test_a_file_without_data_and_a_file_that_is_no_mat_are_refused(tmp_path):
    with pytest.raises(UserError, match="no variable 'data'"):
        read(save(tmp_path / "A01T.mat", struct(), name="eeg"))
    (tmp_path / "A02T.mat").write_text("<html>404</html>" * 50)
    with pytest.raises(UserError, match="A02T.mat: cannot be read"):
        read(tmp_path / "A02T.mat")


# ---------------------------------------------------------------- files made to take memory or time


def megabytes_taken(function):
    """By how much a process of its own grows when it calls the function, and whether that raised UserError."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
        try:
            function()
        except UserError:
            refused = 1
        finally:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(theirs, f"{grown >> 10} {refused}".encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    with open(ours) as answer:
        return tuple(map(int, answer.read().split()))


def bomb(variable, n_more):
    """A packed variable that goes on with so many megabytes of zeros; one is packed here, and then repeated."""
    deflate = zlib.compressobj(9)
    first = deflate.compress(variable) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return struct_of.pack("<II", 15, len(first) + n_more * len(zeros)) + first + zeros * n_more


def variable(cls, dims, content, n_more=0):
    """Tag, class, size and name of a variable "data", then its content, of which `n_more` bytes are still to come."""
    body = struct_of.pack("<IIII", 6, 8, cls, 0) + struct_of.pack("<II2i", 5, 8, *dims) + b"\x01\0\x04\0data" + content
    return struct_of.pack("<II", 14, len(body) + n_more) + body


@pytest.mark.parametrize("content", [
    bomb(variable(6, (1, 3700 << 17), struct_of.pack("<II", 9, 3700 << 20), 3700 << 20), 3700),
    variable(1, (50_000, 30_000), struct_of.pack("<II", 14, 0) * 1000),
    bomb(variable(9, (1, 140 << 20), struct_of.pack("<II", 2, 140 << 20), 140 << 20), 140),
], ids=["3.7 GB of doubles", "1.5 thousand million cells", "bytes that become doubles"])  # fmt: skip
def test_a_file_that_asks_for_gigabytes_is_refused_before_it_gets_them(tmp_path, content):
    path = tmp_path / "A01T.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content)
    assert path.stat().st_size < 4 << 20
    grown, refused = megabytes_taken(lambda: read(path))
    assert refused and grown < 50
    with pytest.raises(UserError, match="A01T.mat"):
        read(path)


def test_reading_ends_when_its_time_is_over(tmp_path, monkeypatch):
    def endless(*args, **options):
        while True:
            pass

    monkeypatch.setattr(limits, "READING_SECONDS", 0.2)
    monkeypatch.setattr(scipy.io, "loadmat", endless)
    with pytest.raises(UserError, match="A01T.mat: not read after"):
        read(save(tmp_path / "A01T.mat", struct(X=np.zeros((10, 25)))))


@pytest.mark.parametrize("data", [scipy.sparse.csc_array(np.eye(3)), "text", np.arange(3.0)])
def test_data_that_is_no_cell_of_structs_is_refused(tmp_path, data):
    scipy.io.savemat(tmp_path / "A01T.mat", {"data": data})
    with pytest.raises(UserError, match="A01T.mat.*(no cell|no field)"):
        read(tmp_path / "A01T.mat")


@pytest.mark.parametrize("sample", [np.nan, np.inf, 1e300, 0.5])
def test_a_trial_at_no_sample_is_refused(tmp_path, sample):
    with pytest.raises(UserError, match="run 1 has a trial at sample"):
        read(save(tmp_path / "A01T.mat", struct(trial=np.array([[101.0], [sample]]))))


def test_other_versions_of_matlab_files_are_told_apart(tmp_path):
    (tmp_path / "A01T.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(UserError, match="a MATLAB v7.3 file; expected v5"):
        read(tmp_path / "A01T.mat")
    scipy.io.savemat(tmp_path / "A02T.mat", {"data": np.ones(3)}, format="4")
    with pytest.raises(UserError, match="run 1 has no field"):
        read(tmp_path / "A02T.mat")
