import filecmp
import json

import numpy as np
from datasets.recordings import read_bcic_mat
from datasets.synthetic_vi import VIDemoSize, write_vi_like
from datasets.visual_imagery_recordings import find_recordings, read_header, read_recording
from PIL import Image

from datasets.store import open_store
from datasets.visual_imagery_llm_dataset import DESCRIPTION, SUBJECTS
from tests.conftest import SIZES


def test_demo_recordings_have_the_real_files_structure(demo):
    for name, calibration in (("A01T", 3), ("A04T", 1), ("A04E", 3)):
        runs = read_bcic_mat(demo.raw / f"{name}.mat")
        assert [run.is_calibration for run in runs] == [True] * calibration + [False] * 6
        assert all(sorted(run.labels) == [0, 1, 2, 3] for run in runs[calibration:])
    assert len(list(demo.raw.glob("A0?[TE].mat"))) == 18


def test_people_differ_and_the_effect_is_where_it_was_planted(demo):
    """8–13 Hz power at C3 and C4 during imagery: a hand dims the other side, and people differ in gain."""
    from utils.montages import BCIC

    from datasets.bciciv2a_dataset import BCICIV2aDataset

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
    flags = ["--data_dir", demo.folder / "data", "--pth_dir", demo.pth, "--datasets", "BCICIV2a", *SIZES]
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


# ---------------------------------------------------------------- Visual Imagery


def test_vi_recordings_have_the_real_tree_with_its_faults(vi_demo):
    files = find_recordings(vi_demo.raw, SUBJECTS)
    assert len(files) == 3 * (20 * 2 + 2) and {file.subject for file in files} == set(SUBJECTS)
    assert {file.session for file in files if file.subject in ("S09", "S10")} == {"01"}
    assert {file.path.suffix for file in files} == {".bdf", ".fif"}
    bdf = [file.path for file in files if file.path.suffix == ".bdf"]
    assert all(read_header(path)["digital_max"][0] == 32767 for path in bdf)
    assert {read_header(path)["dimensions"][0] for path in bdf} == {"", "uV"}
    with_tsv = {path for path in bdf if list(path.parent.glob(path.name.replace("_eeg.bdf", "_events.tsv")))}
    assert with_tsv and with_tsv != set(bdf)
    stray = next(file for file in files if (file.subject, file.session, file.task) == ("S13", "02", "AVI"))
    assert 5 in [code for _, code in read_recording(stray.path).events]


def test_vi_people_differ_and_the_effect_is_where_it_was_planted(vi_demo):
    """A class's rhythm grows in its region: dog 8–13 Hz frontally, circle 18–24 Hz frontally, and so on."""
    from datasets.synthetic_vi import EFFECT, REGIONS
    from utils.montages import VI

    store = open_store(vi_demo.store)
    trials = store.trials("train")
    power = np.array([np.abs(np.fft.rfft(store.read(trial))).mean(axis=1) for trial in trials])  # (N, 32, 101)
    bands = np.stack([power[..., 9:12].mean(axis=-1), power[..., 19:23].mean(axis=-1)], axis=-1)  # (N, 32, 2)
    region = np.array([REGIONS.index(code) for code in VI.brain_regions])
    by_region = np.log(np.stack([bands[:, region == r].mean(axis=1) for r in range(5)], axis=1))  # (N, 5, 2)
    by_region -= by_region.mean(axis=0)
    labels = np.array([trial.label for trial in trials])
    for label, (r, band) in EFFECT.items():
        mean = by_region[labels == label].mean(axis=0)
        assert np.unravel_index(mean.argmax(), mean.shape) == (r, band), label
    people = np.array([trial.subject for trial in trials])
    typical = [power[people == person].mean() for person in np.unique(people)]
    assert max(typical) > 1.15 * min(typical)


def test_ten_stimuli_are_drawn_under_the_published_names(vi_demo):
    assert {path.name for path in vi_demo.stimuli.iterdir()} == set(DESCRIPTION.stimuli.values())
    pictures = [np.asarray(Image.open(vi_demo.stimuli / name)).astype(float) for name in DESCRIPTION.stimuli.values()]
    assert all(picture.shape == (256, 256, 3) and picture.std() > 20 for picture in pictures)


def test_the_same_seed_writes_the_same_vi_recordings(vi_demo, tmp_path):
    write_vi_like(tmp_path, VIDemoSize(trials_per_class=1, only=("S03",)), 0)
    for path in tmp_path.rglob("*.bdf"):
        assert filecmp.cmp(path, vi_demo.raw / path.relative_to(tmp_path), shallow=False)


def test_the_stand_ins_have_the_hubs_layouts(vi_pth):
    for name, parts in (("stable-diffusion", ("unet", "vae")), ("amused", ("transformer", "vqvae"))):
        index = json.loads((vi_pth / name / "model_index.json").read_text())
        for part in (*parts, "text_encoder", "tokenizer", "scheduler"):
            assert part in index and (vi_pth / name / part).is_dir()
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= {
        p.name for p in (vi_pth / "clip").iterdir()
    }
