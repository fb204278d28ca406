import filecmp
import json

import numpy as np
import pytest
from PIL import Image

from datasets.bciciv2a_dataset import BCICIV2aDataset
from datasets.bciciv2a_llm_dataset import MONTAGE as BCIC
from datasets.bnci import read_bnci_mat
from datasets.description import load_description
from datasets.splits import split_trials
from datasets.store import open_store
from datasets.trials import TrialDataset
from datasets.visual_imagery_llm_dataset import DESCRIPTION, SUBJECTS, files, origin
from datasets.visual_imagery_llm_dataset import MONTAGE as VI
from demo import things_like
from demo.bcic_like import DemoSize, write_bcic2b_like, write_bcic_like
from demo.drawings import DRAWINGS, drawing
from demo.vi_like import EFFECT, REGIONS, VIDemoSize, write_vi_like
from readers.recordings import read_header, read_recording
from stages.rows import Readout, new_row
from tests.conftest import SIZES


def read_bcic_mat(path):
    return read_bnci_mat(path, BCIC.electrodes, 4, 250.0)


def test_demo_recordings_have_the_real_files_structure(demo):
    for name, calibration in (("A01T", 3), ("A04T", 1), ("A04E", 3)):
        runs = read_bcic_mat(demo.raw / f"{name}.mat")
        assert [not len(run.onsets) for run in runs] == [True] * calibration + [False] * 6
        assert all(sorted(run.labels) == [0, 1, 2, 3] for run in runs[calibration:])
    assert len(list(demo.raw.glob("A0?[TE].mat"))) == 18


def test_people_differ_and_the_effect_is_where_it_was_simulated(demo):
    """8–13 Hz power at C3 and C4 during imagery: a hand dims the other side, and people differ in gain."""
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
    write_bcic_like(tmp_path, DemoSize(runs=6, trials_per_run=4, effect=1, spread=0), 0, ["A07E.mat"])
    a, b = (read_bcic_mat(folder / "A07E.mat") for folder in (tmp_path, demo.raw))
    assert all((x.signal == y.signal).all() and (x.labels == y.labels).all() for x, y in zip(a, b, strict=True))
    assert not filecmp.cmp(demo.raw / "A07E.mat", demo.raw / "A07T.mat", shallow=False)


def test_2b_recordings_have_three_sessions_in_one_file_and_two_in_the_other(tmp_path):
    write_bcic2b_like(tmp_path, DemoSize(trials_per_run=4), 0, ["B03T.mat", "B03E.mat"])
    for name, n in (("B03T", 3), ("B03E", 2)):
        runs = read_bnci_mat(tmp_path / f"{name}.mat", ("C3", "Cz", "C4"), 2, 250.0)
        assert len(runs) == n and all(sorted(run.labels) == [0, 0, 1, 1] for run in runs)
        assert all(run.signal.shape[0] == 3 and run.signal.shape[1] >= run.onsets[-1] + 8 * 250 for run in runs)


# ---------------------------------------------------------------- Visual Imagery


def test_vi_recordings_have_the_real_tree_with_its_faults(vi_demo):
    found = files(vi_demo.raw)
    assert len(found) == 3 * (20 * 2 + 2) and {origin(path)[0] for path in found} == set(SUBJECTS)
    assert {origin(path)[1] for path in found if origin(path)[0] in ("S09", "S10")} == {"01"}
    assert {path.suffix for path in found} == {".bdf", ".fif"}
    bdf = [path for path in found if path.suffix == ".bdf"]
    assert all(read_header(path)["digital_max"][0] == 32767 for path in bdf)
    assert {read_header(path)["dimensions"][0] for path in bdf} == {"", "uV"}
    with_tsv = {path for path in bdf if list(path.parent.glob(path.name.replace("_eeg.bdf", "_events.tsv")))}
    assert with_tsv and with_tsv != set(bdf)
    stray = next(path for path in found if origin(path) == ("S13", "02", "AVI"))
    assert 5 in [code for _, code in read_recording(stray, VI.electrodes).events]


def test_vi_people_differ_and_the_effect_is_where_it_was_simulated(vi_demo):
    """A class's rhythm grows in its region: dog 8–13 Hz frontally, circle 18–24 Hz frontally, and so on."""
    store = open_store(vi_demo.store)
    trials = split_trials(store, DESCRIPTION)["train"]
    seconds = (store.read(trial).reshape(32, 4, 1000).transpose(1, 0, 2) for trial in trials)
    power = np.array([np.abs(np.fft.rfft(second)).mean(axis=0)[:, :101] for second in seconds])  # (N, 32, 101), by Hz
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
    write_vi_like(tmp_path, VIDemoSize(trials_per_class=1, effect=1, spread=0, only=("S03",)), 0)
    for path in tmp_path.rglob("*.bdf"):
        assert filecmp.cmp(path, vi_demo.raw / path.relative_to(tmp_path), shallow=False)


def test_drawings_vary_and_repeat_with_the_generator():
    for name in DRAWINGS:
        a, b, c = (np.asarray(drawing(name, np.random.default_rng(seed))) for seed in (0, 0, 1))
        assert a.shape == (64, 64, 3) and np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize(
    "name, parts", [("stable-diffusion", ("unet", "vae")), ("amused", ("transformer", "vqvae"))]
)  # fmt: skip
def test_the_tiny_image_models_have_the_hubs_layouts(demo, name, parts):
    index = json.loads((demo.pth / name / "model_index.json").read_text())
    for part in (*parts, "text_encoder", "tokenizer", "scheduler"):
        assert part in index and (demo.pth / name / part).is_dir()


def test_the_tiny_clip_has_the_hubs_layout(demo):
    names = {path.name for path in (demo.pth / "clip").iterdir()}
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= names


def test_a_weaker_effect_and_other_people_change_the_recordings(tmp_path):
    def written(name, **how):
        write_bcic_like(tmp_path / name, DemoSize(runs=1, trials_per_run=4, **how), 0, ["A01T.mat"])
        return read_bcic_mat(tmp_path / name / "A01T.mat")[3].signal

    strong = {"effect": 1.0, "spread": 0.0}
    plain, weak, other = (
        written(str(k), **strong | how) for k, how in enumerate(({}, {"effect": 0.3}, {"spread": 0.9}))
    )
    assert np.array_equal(plain, written("again", **strong))
    assert not np.allclose(plain, weak) and not np.allclose(plain, other)
    c4 = BCIC.electrodes.index("C4")  # dimmed less, so louder
    assert weak[c4].std() > plain[c4].std()


def test_the_demo_leaves_decoders_room_unless_it_is_said(script, tmp_path):
    said = " ".join(script("prepare_demo.py", "-h").out.split())
    assert f"{DemoSize().effect:g} for motor imagery, {VIDemoSize().effect:g} for visual imagery" in said
    assert f"a half of it (default: {DemoSize().spread:g})" in said and DemoSize().spread == VIDemoSize().spread
    assert max(DemoSize().effect, VIDemoSize().effect) < 1  # at 1 decoders reach the ceiling
    for wrong in (("--effect", "nan"), ("--effect", -1), ("--effect", 3), ("--spread", 2)):
        done = script("prepare_demo.py", "--data_dir", tmp_path / "data", "--pth_dir", tmp_path / "pth", *wrong)
        assert done.code == 2 and "--effect goes from 0 to 2" in done.err and not any(tmp_path.iterdir())


def test_what_is_simulated_says_so_from_the_raw_folder_to_the_row(demo):
    assert "simulated" in (demo.raw / "SIMULATED.txt").read_text()
    dataset = TrialDataset(demo.store, "test", description=load_description("BCICIV2a"))
    assert dataset.simulated and new_row(dataset, 0, {"keyword": Readout(0, 0.25)}, "").simulated


# ---------------------------------------------------------------- seen images


def test_a_drawn_layout_says_where_a_thing_is_how_large_and_how_bright():
    def made(box, ink):
        picture = Image.new("RGB", (100, 100), "white")
        picture.paste(ink, box)
        return things_like.layout(picture)

    small, right, low = (
        made((10, 20, 30, 40), "black"),
        made((60, 20, 80, 40), "black"),
        made((10, 70, 30, 90), "black"),
    )
    assert np.allclose(right - small, [0.5, 0, 0, 0]) and np.allclose(low - small, [0, 0.5, 0, 0])
    large, bright = made((0, 10, 40, 50), "black"), made((10, 20, 30, 40), (255, 255, 0))
    assert np.allclose(large[:2], small[:2]) and large[2] > 1.9 * small[2] and bright[3] > small[3] + 0.5


def test_things_stand_in_different_places_and_sizes(tmp_path):
    paths = things_like.draw_images(tmp_path, things_like.ThingsDemoSize(test_concepts=40, images=2), 0)
    of = np.stack([things_like.layout(picture) for picture in things_like.read_pictures(paths["training"])])
    assert (of.std(axis=0) > [0.06, 0.06, 0.03, 0.1]).all()


def test_early_responses_hold_the_layout_and_nothing_else_does(tmp_path):
    """A linear readout of a person's first session, asked about images of another one that it never saw."""
    layouts = {"training": np.random.default_rng(0).standard_normal((120, 4)), "test": np.zeros((20, 4))}
    components = {part: np.zeros((len(of), 8)) for part, of in layouts.items()}
    size = things_like.ThingsDemoSize(people=1, test_concepts=20, images=2)
    things_like.write_things_like(tmp_path, components, layouts, size, 0)

    def epochs(session, window):
        content = np.load(tmp_path / f"sub-01/ses-0{session}/raw_eeg_training.npy", allow_pickle=True).item()
        x, codes = content["raw_eeg_data"][:-1] * 1e5, content["raw_eeg_data"][-1].astype(int)
        of = {}
        for onset in np.flatnonzero((codes > 0) & (codes <= 120)):
            of.setdefault(codes[onset], []).append(
                x[:, onset : onset + 125] - x[:, onset - 10 : onset].mean(1)[:, None]
            )
        cut = slice(*(round(250 * seconds) for seconds in window))
        return np.stack([np.mean(of[code], axis=0)[:, cut].ravel() for code in of]), layouts["training"][
            np.array([*of]) - 1
        ]

    def correlations(window):
        (x, y), (x2, y2) = epochs(1, window), epochs(2, window)
        weights = np.linalg.solve(x @ x.T + 100 * np.eye(len(x)), y)
        return [np.corrcoef(a, b)[0, 1] for a, b in zip((x2 @ x.T @ weights).T, y2.T, strict=True)]

    assert min(correlations((0.03, 0.15))) > 0.5
    assert max(map(abs, correlations((0.4, 0.5)))) < 0.4
