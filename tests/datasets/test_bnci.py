import numpy as np
import pytest
import scipy.io

from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.bnci import read_bnci_mat
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
     ({"X": with_nan()}, "NaN or infinity in FCz at sample 700"), ({"y": np.array([[1.0], [5.0]])}, "label 5; expected 1 to 4"),
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
