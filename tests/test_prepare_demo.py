import filecmp

from datasets.recordings import read_bcic_mat


def test_demo_recordings_have_the_real_files_structure(demo):
    for name, calibration in (("A01T", 3), ("A04T", 1), ("A04E", 3)):
        runs = read_bcic_mat(demo.raw / f"{name}.mat")
        assert [run.is_calibration for run in runs] == [True] * calibration + [False] * 6
        assert all(sorted(run.labels) == [0, 1, 2, 3] for run in runs[calibration:])
    assert len(list(demo.raw.glob("A0?[TE].mat"))) == 18


def test_people_differ_and_the_effect_is_where_it_was_planted(demo):
    """8–13 Hz power at C3 and C4 during imagery: a hand dims the other side, and people differ in gain."""
    import numpy as np

    from datasets.bciciv2a_dataset import BCICIV2aDataset
    from utils.montages import BCIC

    dataset = BCICIV2aDataset(str(demo.store), "train")
    c3, c4 = (BCIC.electrodes.index(name) for name in ("C3", "C4"))
    power = np.array([np.abs(np.fft.rfft(x.numpy()))[..., 8:14].mean(axis=(1, 2)) for x, _ in dataset])
    labels = np.array([label for _, label in dataset])
    side = np.log(power[:, c3] / power[:, c4])
    assert side[labels == 0].mean() > 0.3 > -0.3 > side[labels == 1].mean()
    people = np.array([trial.subject for trial in dataset.trials])
    typical = [power[people == person].mean() for person in np.unique(people)]
    assert max(typical) > 1.15 * min(typical)


def test_a_second_run_changes_nothing_and_other_settings_are_refused(demo, script):
    data, pth = demo.raw.parent.parent, demo.csbrain.parent
    flags = ["--data_dir", data, "--pth_dir", pth, "--trials_per_run", 4, "--llm_steps", 120]
    before = demo.csbrain.stat().st_mtime_ns, (demo.raw / "A01T.mat").stat().st_mtime_ns
    assert script("prepare_demo.py", *flags).code == 0
    assert before == (demo.csbrain.stat().st_mtime_ns, (demo.raw / "A01T.mat").stat().st_mtime_ns)
    refused = script("prepare_demo.py", *flags, "--seed", 1)
    assert refused.code == 2 and "was made with" in refused.error_line


def test_the_same_seed_writes_the_same_recordings(demo, tmp_path):
    from datasets.synthetic import DemoSize, write_bcic_like

    write_bcic_like(tmp_path, DemoSize(runs=6, trials_per_run=4), 0, ["A07E.mat"])
    a, b = (read_bcic_mat(folder / "A07E.mat") for folder in (tmp_path, demo.raw))
    assert all((x.signal == y.signal).all() and (x.labels == y.labels).all() for x, y in zip(a, b, strict=True))
    assert not filecmp.cmp(demo.raw / "A07E.mat", demo.raw / "A07T.mat", shallow=False)
