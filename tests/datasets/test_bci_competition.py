"""2a and 2b as people have them: BNCI's .mat in any folder and case, the competition's .gdf with labels, and others."""

import shutil

import numpy as np
import pytest
import scipy.io

from datasets import bciciv2a_llm_dataset as bciciv2a
from datasets import bciciv2b_dataset as bciciv2b
from datasets.store import open_store
from demo.bcic_like import DemoSize, write_bcic2b_like, write_bcic_like
from tests.copies import write_gdf
from utils.errors import UserError

SIZE = DemoSize(runs=2, trials_per_run=4)
GAP = 100  # samples between runs


def as_gdf(mat, folder, gap=GAP, version=2, labels="events", step=0.01):
    """Write BNCI's .mat as the competition's .gdf: a file, or of 2b one a struct. Returns the .gdf."""
    two_b, written = mat.stem[0] == "B", []
    structs = scipy.io.loadmat(mat, squeeze_me=True, struct_as_record=False)["data"]
    parts = [[s] for s in structs] if two_b else [list(structs)]
    for number, runs in enumerate(parts, start=1 if mat.stem[3] == "T" else 4):
        x, events, y = [], [], []
        for run in runs:
            start = sum(len(part) for part in x)
            events.append((start, 32766))
            for k, (at, label) in enumerate(zip(np.atleast_1d(run.trial), np.atleast_1d(run.y), strict=True)):
                at = start + int(at) - 1
                cue = 783 if labels == "file" else 768 + int(label)
                events += [(at, 768), (at + (750 if two_b else 500), cue)] + [(at, 1023)] * (k == 1)
                y.append(int(label))
            x += [run.X, np.full((gap, run.X.shape[1]), np.nan)]
        x = np.concatenate(x)
        x = np.concatenate([x, np.full((-len(x) % 250, x.shape[1]), np.nan)]).T
        stem = f"{mat.stem[:3]}{number:02d}{mat.stem[3]}" if two_b else mat.stem
        written.append(write_gdf(folder / f"{stem}.gdf", x, sorted(events), version=version, step=step))
        if labels == "file":
            scipy.io.savemat(folder / f"{stem}.mat", {"classlabel": np.array(y, float)[:, None]})
    return written


def all_runs(module, raw):
    return [run for path in module.files(raw) for run in module.recordings(path)]


def compare(ours, theirs, step):
    """The same runs: rows, labels, samples within half a step."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.subject, a.session, a.run, a.number, a.kind) == (b.subject, b.session, b.run, b.number, b.kind)
        assert a.onsets.tolist() == b.onsets.tolist() and a.labels.tolist() == b.labels.tolist()
        assert np.abs(a.signal - b.signal[:, : a.signal.shape[1]]).max() <= 0.5001 * step


@pytest.fixture(scope="module")
def mat(tmp_path_factory):
    """One person's two sessions as BNCI has them: 3 calibration runs and 2 of 4 trials."""
    folder = tmp_path_factory.mktemp("mat")
    write_bcic_like(folder, SIZE, 0, ("A01T.mat", "A01E.mat"))
    return folder


@pytest.fixture(scope="module")
def mat_2b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mat2b")
    write_bcic2b_like(folder, SIZE, 0, ("B02T.mat", "B02E.mat"))
    return folder


@pytest.mark.parametrize("version, labels", [(1, "events"), (2, "file")])
def test_gdf_files_hold_the_trials_of_bncis(tmp_path, mat, version, labels):
    for path in mat.iterdir():
        as_gdf(path, tmp_path, version=version, labels=labels)
    theirs = all_runs(bciciv2a, tmp_path)
    assert [run.artifacts.tolist() for run in theirs if len(run.onsets)] == [[False, True, False, False]] * 4
    compare(all_runs(bciciv2a, mat), theirs, 0.01)


def test_a_session_of_2b_is_a_file_and_a_run_whose_gaps_are_bridged(tmp_path, mat_2b):
    for path in mat_2b.iterdir():
        as_gdf(path, tmp_path, gap=0, labels="file")
    theirs = all_runs(bciciv2b, tmp_path)
    assert [run.session for run in theirs] == ["1", "2", "3", "4", "5"]
    for a, b in zip(all_runs(bciciv2b, mat_2b), theirs, strict=True):
        n = b.signal.shape[1]
        assert a.onsets.tolist() == b.onsets.tolist() and a.labels.tolist() == b.labels.tolist()
        assert a.signal.shape[1] - n < 250 and np.abs(a.signal[:, :n] - b.signal).max() <= 0.00501
    x = 20 * np.random.default_rng(0).standard_normal((6, 5000))
    x[:, 2000:2100] = np.nan
    events = [(0, 32766), (100, 768), (850, 769), (2100, 32766), (2500, 768), (3250, 770)]
    (run,) = bciciv2b.recordings(write_gdf(tmp_path / "B1005E.gdf", x, events))
    assert run.subject == "B10" and run.session == "5" and run.labels.tolist() == [0, 1]
    assert np.ptp(np.diff(run.signal[:, 1999:2101], axis=1)) < 3 and np.isfinite(run.signal).all()


def test_folders_may_be_deep_and_names_in_any_case(tmp_path, mat, script):
    deep = tmp_path / "mne_data/MNE-bnci-data/~bci/database/001-2014"
    deep.mkdir(parents=True)
    shutil.copy(mat / "A01T.mat", deep / "a01t.MAT")
    shutil.copy(mat / "A01E.mat", deep / "A01E.mat")
    for name in ("A01T (1).mat", "._A01T.mat", "A01T.mat.part"):
        (deep / name).write_bytes(b"no recording")
    assert [path.name for path in bciciv2a.files(tmp_path)] == ["A01E.mat", "a01t.MAT"]
    done = script("prepare_data.py", "--skip_download", "--raw_dir", tmp_path, "--lmdb_dir", tmp_path / "store")
    assert done.code == 0 and "2 of 18 files are there; missing: A02E.mat" in done.out, done.err
    assert {(t.subject, t.session) for t in open_store(tmp_path / "store").trials} == {("A01", "E"), ("A01", "T")}


def test_two_files_of_a_session_are_refused_and_copies_taken_once(tmp_path, mat, capsys):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(mat / "A01T.mat", tmp_path / folder / "A01T.mat")
    assert [path.parent.name for path in bciciv2a.files(tmp_path)] == ["one"]
    assert "two/A01T.mat is a copy of" in capsys.readouterr().out
    shutil.copy(mat / "A01E.mat", tmp_path / "two/A01T.mat")
    with pytest.raises(UserError, match="the same recording with different contents; keep one"):
        bciciv2a.files(tmp_path)


def test_bncis_files_are_taken_where_both_are_there(tmp_path, mat, mat_2b, capsys):
    for folder in (mat, mat_2b):
        shutil.copytree(folder, tmp_path / "bnci", dirs_exist_ok=True)
    (tmp_path / "official").mkdir()
    for path in (mat / "A01E.mat", mat_2b / "B02T.mat"):
        as_gdf(path, tmp_path / "official", labels="file")
    assert {path.parent.name for module in (bciciv2a, bciciv2b) for path in module.files(tmp_path)} == {"bnci"}
    assert capsys.readouterr().out.count("are the same recording; BNCI's .mat is read") == 2


def test_a_person_whom_the_published_set_lacks_is_read(tmp_path, mat):
    runs = np.array(
        [s for s in scipy.io.loadmat(mat / "A01T.mat")["data"].ravel() if s["trial"].item().size] + [0], object
    )
    scipy.io.savemat(tmp_path / "A10T.mat", {"data": runs[None, :-1]})  # without calibration runs
    (first, second) = all_runs(bciciv2a, tmp_path)
    assert first.subject == "A10" and len(first.onsets) == len(second.onsets) == 4


def test_labels_that_are_missing_or_of_another_file_are_named(tmp_path, mat):
    (gdf,) = as_gdf(mat / "A01E.mat", tmp_path, labels="file")
    labels = tmp_path / "A01E.mat"
    (tmp_path / "true_labels").mkdir()
    labels.rename(tmp_path / "true_labels/a01e.mat")
    assert len(all_runs(bciciv2a, tmp_path)) == 5
    (tmp_path / "true_labels/a01e.mat").unlink()
    with pytest.raises(UserError, match=r"A01E.mat with classlabel is not beside it; fetch it"):
        all_runs(bciciv2a, tmp_path)
    scipy.io.savemat(labels, {"classlabel": np.ones((3, 1))})
    with pytest.raises(UserError, match="has 3 labels, .* 8 trials"):
        all_runs(bciciv2a, tmp_path)
    scipy.io.savemat(labels, {"classlabel": np.full((8, 1), 7.0)})
    with pytest.raises(UserError, match="none of numbers from 1 to 4"):
        all_runs(bciciv2a, tmp_path)
    (gdf,) = as_gdf(mat / "A01T.mat", tmp_path, labels="events")
    labels.unlink()
    (tmp_path / "A01E.gdf").unlink()
    scipy.io.savemat(tmp_path / "A01T.mat", {"classlabel": np.ones((8, 1))})
    with pytest.raises(UserError, match="label 1 is 1, .*A01T.gdf says|label 2 is 1, .*A01T.gdf says"):
        all_runs(bciciv2a, tmp_path)
    gdf.unlink()
    with pytest.raises(UserError, match="the competition's labels .* put A01T.gdf beside it"):
        all_runs(bciciv2a, tmp_path)


def test_electrodes_are_taken_by_name_and_never_from_another_place(tmp_path):
    x = 20 * np.random.default_rng(0).standard_normal((5, 2500))
    events = [(100, 768), (850, 769)]

    def read(names):
        return list(bciciv2b.recordings(write_gdf(tmp_path / "B0101T.gdf", x[: len(names)], events, names=names)))

    (run,) = read(["EOG:ch01", "EEG:Cz", "EEG:C4", "EEG:C3", "EOG:ch02"])
    assert np.abs(run.signal - x[[3, 1, 2]]).max() <= 0.0501
    (run,) = read(["EEG-0", "EEG-Cz", "EEG-1", "EOG-left"])
    assert np.abs(run.signal - x[:3]).max() <= 0.0501
    for names, said in (
        (["EEG-Cz", "EEG-0", "EEG-1"], "channel 1 is EEG-Cz; expected C3"),
        (["EEG-0", "EEG-1", "EOG-left", "EEG-2"], "channel 3 is EOG-left; expected C4"),
        (["EEG-0", "EEG-1"], "2 channels; expected 3 EEG"),
    ):
        with pytest.raises(UserError, match=said):
            read(names)


def test_the_other_data_set_is_named(tmp_path, mat_2b, script):
    flags = "prepare_data.py", "--skip_download", "--lmdb_dir", tmp_path / "store", "--raw_dir", mat_2b
    assert "is of BCICIV2b: say --downstream_dataset BCICIV2b" in script(*flags).error_line
    scipy.io.savemat(tmp_path / "B0104E.mat", {"classlabel": np.ones((8, 1))})
    line = script(*flags[:-1], tmp_path, "--downstream_dataset", "BCICIV2b").error_line
    assert "B0104E.mat has the labels of B0104E.gdf, which belongs beside it" in line


def test_trials_that_others_have_cut_are_called_so(tmp_path, script):
    raw = tmp_path / "raw"
    raw.mkdir()
    flags = "prepare_data.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", tmp_path / "store"
    np.savez(raw / "A01T.npz", data=np.zeros((3, 22, 1000)), label=np.zeros(3))
    line = script(*flags).error_line
    assert "no raw files A01T.mat" in line and "what is there: 1 .npz" in line and "others have cut" in line
    scipy.io.savemat(raw / "A01T.mat", {"data": np.ones((1000, 22, 3)), "label": np.ones((3, 1))})
    line = script(*flags).error_line
    assert "A01T.mat holds trials that are cut already ('data' is an array of 1000 × 22 × 3)" in line
    assert not (tmp_path / "store").exists()


def test_published_trials_are_the_same_by_gdf_of_the_real_files(tmp_path, shared):
    """Real EEG: labels, trials that the rule of structs drops, and samples within half a step."""
    for name in ("A01T.mat", "A04T.mat"):
        path = shared / "real/bciciv2a_raw" / name
        as_gdf(path, tmp_path, step=0.1)
        (gdf,) = [p for p in bciciv2a.files(tmp_path) if p.stem == path.stem]
        compare(list(bciciv2a.recordings(path)), list(bciciv2a.recordings(gdf)), 0.1)
    path = shared / "real/bciciv2b_raw/B03E.mat"
    for gdf, ours in zip(as_gdf(path, tmp_path, gap=0, labels="file"), bciciv2b.recordings(path), strict=True):
        (theirs,) = bciciv2b.recordings(gdf)
        n = theirs.signal.shape[1]
        assert theirs.labels.tolist() == ours.labels.tolist() and theirs.onsets.tolist() == ours.onsets.tolist()
        assert np.abs(theirs.signal - ours.signal[:, :n]).max() <= 0.00501
