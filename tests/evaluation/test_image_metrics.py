"""Metrics of pictures against hand-made cases, scikit-image's numbers, and pictures whose answer is known."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from evaluation import image_metrics
from evaluation.decoded_runs import Run
from evaluation.image_metrics import (
    DRAWN,
    RANDOM,
    TRUE_CLASS,
    Pictures,
    check_steps_of_control,
    correlations,
    difference_line,
    grey,
    identification,
    images_table,
    lines_of,
    mean_and_interval,
    one_of_k,
    pixel_correlation,
    read_pictures,
    scored_pictures,
    ssim,
    ssim_by_column,
    step_between,
    true_class_picture,
    values_of,
)  # fmt: skip
from evaluation.image_networks import TORCHVISION, feature_networks, pixels
from evaluation.statistics import difference
from stages.pictures import PictureFolder, save_with_recipe
from stages.rows import Readout, Row
from tests.conftest import ROOT
from utils.errors import UserError


def row(k, label=None, **more):
    label = k % 3 if label is None else label
    read = {"head": Readout(label, 1 / 3)}
    return Row(k, f"S{k % 2}", "01", 1, k, label, "abc"[label], read, **{"predicted_label": label} | more)


def score_pictures(pictures, networks, control=None):
    return lines_of(pictures, values_of(pictures, networks, control=control), control)


def noise(rng, edge=64):
    return Image.fromarray(rng.integers(0, 255, (edge, edge, 3), dtype=np.uint8))


# ---------------------------------------------------------------- pixels


def test_ssim_is_what_scikit_image_gives():
    rng = np.random.default_rng(1)
    a = rng.random((40, 40))
    b = np.clip(a + 0.2 * rng.standard_normal((40, 40)), 0, 1)
    # structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1) of
    # scikit-image 0.26, and the same with channel_axis=-1, which is what multichannel=True once did to a grey picture
    assert ssim(a, b) == pytest.approx(0.8348757449210837, abs=1e-12)
    assert ssim_by_column(a, b) == pytest.approx(0.7977073520585024, abs=1e-12)
    assert ssim(a, a) == pytest.approx(1) and ssim_by_column(a, a) == pytest.approx(1)
    assert ssim(a, 1 - a) < 0


def test_pixcorr_is_pearsons_correlation_and_grey_is_scikit_images():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 10, 10))
    assert pixel_correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert pixel_correlation(a, 1 - a) == pytest.approx(-1) and pixel_correlation(a, np.ones_like(a)) == 0
    assert grey(np.stack([np.full((2, 2), v) for v in (1.0, 0.5, 0.25)])) == pytest.approx(np.full((2, 2), 0.588225))


def test_pixels_are_between_0_and_1_and_of_the_asked_edge():
    halves = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    x = pixels([halves, Image.new("L", (7, 9), 255)], 12)
    assert x.shape == (2, 3, 12, 12) and x[0].flatten(1).mean(dim=1).tolist() == [1, 0, 0] and (x[1] == 1).all()


# ---------------------------------------------------------------- identification


def test_identification_by_hand():
    real = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 0, 1, 0]])
    assert identification(real, real, "abc").tolist() == [1, 1, 1]
    assert identification(real, real[[1, 0, 2]], "abc").tolist() == [0, 0, 1]
    like = correlations(real, real[[1, 0, 2]])
    assert like[0, 0] == pytest.approx(-1) and like[1, 0] == pytest.approx(1)
    # one colour for all: every correlation is 0, and a tie is no win
    assert identification(real, np.ones_like(real), "abc").tolist() == [0, 0, 0]


def test_trials_of_one_stimulus_are_not_asked_against_each_other():
    rng = np.random.default_rng(0)
    of = rng.standard_normal((2, 50))
    real = of[[0, 0, 0, 1]]
    drawn = real + 0.1 * rng.standard_normal(real.shape)
    assert identification(real, drawn, "aaab").tolist() == [1, 1, 1, 1]
    assert np.isnan(identification(real, drawn, "aaaa")).all()


H = np.array([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])  # of no correlation


def test_forward_asks_for_the_stimulus_of_a_picture_and_backward_for_the_picture_of_a_stimulus():
    drawn = np.array(
        [H[0], H[1], 2 * H[1] + H[2]]
    )  # the last is likest to the second stimulus, and likest of all to its own
    assert one_of_k(drawn, H, "abc").tolist() == [1, 1, 0]
    assert one_of_k(H, drawn, "abc").tolist() == [1, 1, 1]
    assert one_of_k(H, np.array([H[0], H[1], 9 * H[1]]), "abc").tolist() == [1, 0, 0]  # a tie is wrong
    assert np.isnan(one_of_k(H, drawn, "aaa")).all()


def test_of_several_pictures_of_another_stimulus_one_is_asked_at_a_time():
    real, drawn = H[[0, 0, 1, 1]], np.array([H[0], H[1], H[0] + H[1], H[2]])
    assert one_of_k(real, drawn, "aabb").tolist() == [1, 0, 0.5, 0]
    assert one_of_k(drawn, real, "aabb").tolist() == [1, 0, 0, 0]
    rng = np.random.default_rng(0)
    stimuli, pictures = rng.standard_normal((5, 30))[np.arange(500) % 5], rng.standard_normal((500, 30))
    for asked, candidates in ((stimuli, pictures), (pictures, stimuli)):
        assert abs(one_of_k(asked, candidates, np.arange(500) % 5).mean() - 1 / 5) < 0.05


def test_guessing_is_at_one_half():
    rng = np.random.default_rng(0)
    found = identification(rng.standard_normal((200, 30)), rng.standard_normal((200, 30)), range(200))
    assert abs(found.mean() - 0.5) < 0.03


# ---------------------------------------------------------------- lines


def test_true_pictures_stand_above_random_pairs_and_what_was_drawn_for_others_at_their_level():
    rng = np.random.default_rng(0)
    seen = [noise(rng, 30) for _ in range(3)]
    rows = [row(k) for k in range(12)]
    networks = dict.fromkeys(("net", "SwAV", "EffNet-B"), lambda pictures: pixels(pictures, 8).flatten(1))
    stimuli = [seen[k % 3] for k in range(12)]
    right = {line["images"]: line for line in score_pictures(Pictures(rows, stimuli, stimuli, [], "m"), networks)}
    assert set(right) == {DRAWN, RANDOM}
    for name, best in (("PixCorr", 1), ("SSIM", 1), ("SSIM by column", 1), ("net", 1), ("SwAV", 0), ("EffNet-B", 0)):
        assert right[DRAWN][name] == pytest.approx(best, abs=1e-6)
        assert abs(right[RANDOM][name] - best) > 0.2
        assert right[DRAWN][f"{name}, low"] <= right[DRAWN][name] <= right[DRAWN][f"{name}, high"]
    assert (right[DRAWN]["n"], right[DRAWN]["people"], right[DRAWN]["model"]) == (12, 2, "m")
    wrong = [seen[(k + 1) % 3] for k in range(12)]  # somebody else's, with the right ones as the ceiling
    lines = {x["images"]: x for x in score_pictures(Pictures(rows, stimuli, wrong, stimuli, "m"), networks)}
    assert lines[TRUE_CLASS]["net"] == pytest.approx(1) and lines[DRAWN]["net"] < 0.6


def test_what_came_out_as_no_picture_is_never_scored_and_its_number_is_said(tmp_path):
    rng = np.random.default_rng(0)
    seen, networks = [noise(rng, 30) for _ in range(8)], {"net": lambda pictures: pixels(pictures, 8).flatten(1)}
    rows, stimuli = [row(k, image=f"{k}.jpg") for k in range(8)], SimpleNamespace(of=lambda r: seen[r.index])
    names = drawn_folder(tmp_path / "drawn", rows)
    (tmp_path / "drawn/true_class").mkdir()
    for r in rows:
        save(names.path("generated", r), seen[r.index], seed=r.index)
        save(true_class_picture(tmp_path / "drawn", r), seen[r.index], seed=r.index)
    black, unsafe = Image.new("RGB", (16, 16)), noise(rng, 16)
    unsafe.info["fault"] = "blackened by the safety checker"
    save(names.path("generated", rows[2]), black, seed=2)  # of before pictures were marked
    save(names.path("generated", rows[5]), unsafe, seed=5)
    rows[7].picture_fault = "not finite"
    save(true_class_picture(tmp_path / "drawn", rows[1]), black, seed=1)
    none = []
    pictures = scored_pictures(Run("a run", tmp_path / "drawn", rows), stimuli, none)
    assert [r.index for r in pictures.rows] == [0, 1, 3, 4, 6]
    assert none == ["a run, as decoded: 3 of 8 (1 of one colour, 1 blackened by the safety checker, 1 not finite)",
                    "a run, true class's prompt: 1 of 8 (1 of one colour)"]  # fmt: skip
    lines = {line["images"]: line for line in score_pictures(pictures, networks)}
    assert {way: line["n"] for way, line in lines.items()} == {DRAWN: 5, RANDOM: 5, TRUE_CLASS: 4}
    assert all(lines[way][name] == pytest.approx(1) for way in (DRAWN, TRUE_CLASS) for name in ("SSIM", "net"))
    heads, cells = images_table([{"run": "a run"} | line for line in lines.values()])
    assert heads[-1] == "left out" and cells[0][-1].startswith("3 of 8") and cells[1][-1] == ""
    for r in rows:
        save(names.path("generated", r), black, seed=r.index)
    assert scored_pictures(Run("a run", tmp_path / "drawn", rows), stimuli, none) is None


def test_a_trials_own_image_is_its_stimulus():
    rng = np.random.default_rng(0)
    seen = [noise(rng, 30) for _ in range(4)]
    rows = [row(k, label=0, image=f"{k}.jpg") for k in range(4)]
    line = score_pictures(Pictures(rows, seen, seen, [], "m"), {"net": lambda p: pixels(p, 8).flatten(1)})[0]
    assert line["net"] == 1  # of one class, and four stimuli


def test_the_interval_over_trials_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        _, low, high = mean_and_interval(rng.normal(0.3, 0.2, 40), seed=int(rng.integers(1 << 30)))
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 1000 <= 0.98


def test_an_interval_covers_the_mean_and_a_picture_alone_has_no_identification():
    mean, low, high = mean_and_interval(np.r_[np.zeros(50), np.ones(50)])
    assert mean == 0.5 and 0.38 < low < 0.42 and 0.58 < high < 0.62
    rng = np.random.default_rng(0)
    one = noise(rng)
    lines = score_pictures(Pictures([row(0)], [one], [one], [], "m"), {"net": lambda p: pixels(p, 8).flatten(1)})
    assert len(lines) == 1 and np.isnan(lines[0]["net"]) and lines[0]["PixCorr"] == pytest.approx(1)


# ---------------------------------------------------------------- files and networks


def save(path, picture=None, **recipe):
    save_with_recipe(
        picture or Image.new("RGB", (16, 16), "red"), {"model": "tiny", "steps": 2, "prompt": "a"} | recipe, path
    )


def drawn_folder(folder, rows):
    folder.mkdir()
    names = PictureFolder(folder, rows, {}, 0)
    for k, r in enumerate(rows):
        save(names.path("generated", r), seed=k)
    return names


def test_a_folders_pictures_are_read_and_a_missing_or_damaged_one_is_named(tmp_path):
    rows = [row(k) for k in range(3)]
    stimuli = SimpleNamespace(of=lambda r: Image.new("RGB", (8, 8)))
    folder = tmp_path / "drawn"
    names = drawn_folder(folder, rows)
    found = read_pictures(folder, rows, stimuli)
    assert len(found.drawn) == 3 and not found.true_class and found.model == "tiny"
    (folder / "true_class").mkdir()
    for k, r in enumerate(rows):
        save(true_class_picture(folder, r), seed=k, model="moved", prompt="another")
        if k < 2:  # some of them are not there yet
            with pytest.raises(UserError, match="true_class is not of these pictures; run draw_true_class.py .* again"):
                read_pictures(folder, rows, stimuli)
    assert len(read_pictures(folder, rows, stimuli).true_class) == 3
    save(names.path("generated", rows[1]), seed=1, steps=9)  # drawn again, in another way
    with pytest.raises(UserError, match="is not of these pictures"):
        read_pictures(folder, rows, stimuli)
    names.path("generated", rows[1]).write_bytes(b"no picture")
    with pytest.raises(UserError, match="generated_0001.* is no picture"):
        read_pictures(folder, rows, stimuli)
    names.path("generated", rows[1]).unlink()
    with pytest.raises(UserError, match="generated_0001.* is not there; draw first"):
        read_pictures(folder, rows, stimuli)


@pytest.mark.parametrize("recipe", ["[1]", "3", "no json", '{"seed": 1}'])
def test_a_recipe_of_a_strange_kind_is_no_recipe_and_no_error(tmp_path, recipe):
    note = PngImagePlugin.PngInfo()
    note.add_text("recipe", recipe)
    drawn_folder(tmp_path / "drawn", [row(0)])
    Image.new("RGB", (4, 4)).save(
        PictureFolder(tmp_path / "drawn", [row(0)], {}, 0).path("generated", row(0)), pnginfo=note
    )
    stimuli = SimpleNamespace(of=lambda r: Image.new("RGB", (8, 8)))
    assert read_pictures(tmp_path / "drawn", [row(0)], stimuli).model == "unknown"


def test_a_network_that_is_not_there_is_named_and_nothing_takes_its_place(demo, tmp_path):
    found, missing = feature_networks(tmp_path, str(demo.pth / "clip"))
    assert list(found) == ["CLIP (pth/clip)"]
    assert [line.partition(":")[0] for line in missing] == list(TORCHVISION)
    assert all("is not there; docs/weights.md" in line for line in missing)
    x = found["CLIP (pth/clip)"]([Image.new("RGB", (30, 30), c) for c in ("red", "blue")] * 20)
    assert x.shape == (40, 768) and torch.allclose(x[0], x[38], atol=1e-4) and not torch.allclose(x[0], x[1], atol=1e-2)
    found, missing = feature_networks(tmp_path, str(tmp_path / "no clip"))
    assert not found and missing[-1].startswith("CLIP: ")


NO_TORCHVISION = pytest.mark.skipif(not find_spec("torchvision"), reason="there is no build for this torch everywhere")


@NO_TORCHVISION
def test_a_damaged_or_malicious_weights_file_is_no_network(demo, tmp_path, monkeypatch):
    for name, content in (("alexnet-owt-7be5be79.pth", b"no weights"), ("swav_800ep_pretrain.pth.tar", b"PK")):
        (tmp_path / name).write_bytes(content)
    found, missing = feature_networks(tmp_path, str(demo.pth / "clip"))
    assert list(found) == ["CLIP (pth/clip)"] and "cannot be loaded" in missing[0]


@NO_TORCHVISION
def test_torchvisions_networks_give_the_layers_of_the_tables(demo, tmp_path):
    from torchvision import models

    torch.save(models.alexnet().state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save(models.efficientnet_b1().state_dict(), tmp_path / "efficientnet_b1-c27df63c.pth")
    found, _ = feature_networks(tmp_path, str(demo.pth / "clip"))
    picture = [Image.new("RGB", (30, 30), "red")]
    assert found["AlexNet 2"](picture).shape == (1, 192 * 31 * 31) and found["AlexNet 5"](picture).shape == (
        1,
        256 * 15 * 15,
    )
    assert found["EffNet-B"](picture).shape == (1, 1280)


def test_equal_pictures_are_looked_at_once():
    looked = []

    def network(pictures):
        looked.append(len(pictures))
        return pixels(pictures, 8).flatten(1)

    rng = np.random.default_rng(0)
    a, b = noise(rng), noise(rng)
    views = image_metrics._Views([a, b, a, a], {"net": network}, "pictures")
    x = views.of("net", np.array([0, 1, 2, 3]))
    assert looked == [2] and np.array_equal(x[0], x[3]) and not np.array_equal(x[0], x[1])
    assert np.array_equal(views.of("net", np.array([1, 0, 2, 3]))[0], x[1])


def test_pairing_at_random_is_at_chance_whatever_is_drawn():
    """Perfect pictures, paired at random: two-way identification at one half, the likest of K at 1 / K."""
    rng = np.random.default_rng(0)
    seen = [noise(rng, 30) for _ in range(5)]
    rows = [row(k, label=k % 3, image=f"{k % 5}.jpg") for k in range(100)]
    stimuli = [seen[k % 5] for k in range(100)]
    networks = {"CLIP (tiny)": lambda p: pixels(p, 8).flatten(1)}
    lines = {x["images"]: x for x in score_pictures(Pictures(rows, stimuli, stimuli, [], "m"), networks)}
    assert lines[DRAWN]["CLIP (tiny), forward, 1 of 5"] == lines[DRAWN]["CLIP (tiny), backward, 1 of 5"] == 1
    assert lines[DRAWN]["CLIP (tiny)"] == 1 and abs(lines[RANDOM]["CLIP (tiny)"] - 0.5) < 0.06
    assert abs(lines[RANDOM]["CLIP (tiny), forward, 1 of 5"] - 0.2) < 0.06


def test_the_tables_two_directions_are_of_the_pictures_and_of_the_stimuli():
    """The third picture has more of the second stimulus than of its own, and of its own more than the others have."""
    left, right = np.zeros((8, 8)), np.zeros((8, 8))
    left[:, :4], right[:4] = 255, 255
    fields = [left, right, 255 * (np.indices((8, 8)).sum(axis=0) % 2)]
    seen = [Image.fromarray(x.astype(np.uint8)).convert("RGB") for x in fields]
    mixed = Image.fromarray((0.7 * fields[1] + 0.3 * fields[2]).astype(np.uint8)).convert("RGB")
    pictures = Pictures([row(k, label=k) for k in range(3)], seen, [*seen[:2], mixed], [], "m")
    line = score_pictures(pictures, {"CLIP (tiny)": lambda p: pixels(p, 8).flatten(1)})[0]
    assert line["CLIP (tiny), forward, 1 of 3"] == pytest.approx(2 / 3) and line["CLIP (tiny), backward, 1 of 3"] == 1


def test_a_table_of_folders_with_other_metrics_leaves_cells_empty():
    base = {"run": "r", "images": DRAWN, "n": 1, "people": 1}
    lines = [base | {"PixCorr": 0.5, "PixCorr, low": 0.4, "PixCorr, high": 0.6},
             base | {"SwAV": float("nan"), "SwAV, low": 0.1, "SwAV, high": 0.2}]  # fmt: skip
    heads, cells = image_metrics.images_table(lines)
    assert (
        heads[4:] == ["PixCorr", "SwAV"] and cells[0][4:] == ["0.500 (0.400 to 0.600)", ""] and cells[1][4:] == ["", ""]
    )


# ---------------------------------------------------------------- the control, other networks


def test_the_difference_to_a_control_holds_the_true_one_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    held = 0
    for k in range(200):
        a, b = rng.normal(0.5, 0.2, 60), rng.normal(0.4, 0.3, 40)
        mean, low, high = difference(a, b, seed=k)
        assert mean == pytest.approx(a.mean() - b.mean()) and low < mean < high
        held += low <= 0.1 <= high
    assert 0.9 <= held / 200 <= 0.99
    assert np.isnan(difference(np.array([np.nan]), np.ones(3))).all()
    assert difference(np.r_[np.ones(3), np.nan], np.zeros(3))[0] == 1
    easy = rng.normal(0, 1, 50)  # the same trials on both sides: how hard a trial is counts for nothing
    mean, low, high = difference(easy + 0.1, easy)
    assert mean == pytest.approx(0.1) and high - low < 1e-6


def test_a_control_of_the_same_pictures_is_no_better_and_noise_is_worse():
    rng = np.random.default_rng(0)
    stimuli = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(8)]
    noise = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(8)]
    rows = [Row(k, "S", "1", 1, k, k, f"c{k}", {"r": Readout(k, 1 / 8)}, image=f"{k}.png") for k in range(8)]
    good, bad = Pictures(rows, stimuli, stimuli, [], "m"), Pictures(rows, stimuli, noise, [], "m")
    of = {line["images"]: line for line in score_pictures(good, {}, control=bad)}
    over = of["as decoded, above the control"]
    assert over["PixCorr"] > 0.9 and over["PixCorr, low"] > 0.8 and of["shuffled-label control"]["PixCorr"] < 0.1
    assert over["PixCorr"] == pytest.approx(of["as decoded"]["PixCorr"] - of["shuffled-label control"]["PixCorr"])
    same = {line["images"]: line for line in score_pictures(good, {}, control=good)}["as decoded, above the control"]
    assert max(abs(same[f"PixCorr{end}"]) for end in ("", ", low", ", high")) < 1e-12


def test_what_a_step_adds_is_the_difference_of_two_runs_that_differ_in_it_alone():
    run = {"model_dir": "a", "conditioning": ["ip_adapter"], "samples": 1, "seed": 0, "prior_dir": None}
    drew = {"steps": 25, "conditioning": "ip_adapter", "prior": False}

    def between(more, less, recipe=drew):
        return step_between(more, less, recipe, drew)

    assert between(run | {"prior_dir": "p"}, run, drew | {"prior": True}) == "the prior"
    assert between(run, run | {"prior_dir": "p"}) is None and between(run, run) is None
    assert between(run | {"samples": 4}, run) == "the choice among 4"
    both = {"conditioning": ["ip_adapter", "controlnet"], "structure_dir": "s"}
    assert between(run | both, run, drew | {"conditioning": "ip_adapter controlnet", "controlnet": "c"}) == "the map"
    assert between(run | {"prior_dir": "p"}, run, drew | {"steps": 50}) is None  # two things differ, as in these:
    assert between(run | {"prior_dir": "p", "seed": 1}, run) is None
    assert between(run | {"prior_dir": "p", "caption_dir": "c"}, run) is None
    assert between(run | {"prior_dir": "p", "caption_dir": "c"}, run | {"prior_dir": "q"}) is None
    assert between({"conditioning": 3}, {}) is None  # a stranger's record

    check_steps_of_control(run | {"prior_dir": "p"}, run | {"prior_dir": "that of the control"})
    for more in ({"samples": 4}, {"caption_dir": "c"}, {"prior_dir": "p", "prior_steps": 9}):
        with pytest.raises(UserError, match="made by other steps"):
            check_steps_of_control(
                run | {"prior_dir": "p"} | more, run | ({"prior_dir": "q"} if "prior_steps" in more else {})
            )

    rng = np.random.default_rng(0)
    stimuli, drawn = [noise(rng, 32) for _ in range(6)], [noise(rng, 32) for _ in range(6)]
    rows = [row(k, image=f"{k}.png") for k in range(6)]
    order = [3, 1, 0, 5, 4, 2]  # of the other run's trials
    better, worse = (
        Pictures(rows, stimuli, stimuli, [], "m"),
        Pictures([rows[k] for k in order], [stimuli[k] for k in order], [drawn[k] for k in order], [], "m"),
    )
    of = [values_of(pictures, {})[DRAWN] for pictures in (better, worse)]
    line = difference_line("what it adds", better, of[0], worse.rows, of[1])
    expected = of[0]["PixCorr"].mean() - of[1]["PixCorr"].mean()
    assert line["PixCorr"] == pytest.approx(expected) and line["n"] == 6 and line["PixCorr, low"] > 0.5
    fewer = difference_line("what it adds", better, of[0], worse.rows[:5], {k: v[:5] for k, v in of[1].items()})
    other = [row(k, image=f"other {k}.png") for k in range(6)]  # as many, and of other images: nothing to pair
    apart = difference_line("what it adds", better, of[0], other, of[1])
    own = difference(of[0]["PixCorr"], of[1]["PixCorr"], paired=False)
    assert (apart["PixCorr"], apart["PixCorr, low"], apart["PixCorr, high"]) == pytest.approx(own)
    assert fewer["PixCorr"] == pytest.approx(of[0]["PixCorr"].mean() - of[1]["PixCorr"][:5].mean())
    same = difference_line("itself", worse, of[1], worse.rows, of[1])
    assert max(abs(same[f"SSIM{end}"]) for end in ("", ", low", ", high")) < 1e-12


def test_any_resnet_in_the_hubs_layout_judges_and_another_kind_is_refused(tmp_path):
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "red")]
    found, _ = feature_networks(tmp_path, str(ROOT / "demo/assets/clip"), str(ROOT / "demo/assets/classifier"))
    first, last = found["classifier, first stage"](pictures), found["classifier, last stage"](pictures)
    assert first.shape[0] == last.shape[0] == 3 and first.shape[1] > last.shape[1]
    assert torch.equal(last[0], last[2]) and not torch.equal(last[0], last[1])
    with pytest.raises(UserError, match="is a clip; expected one of resnet, convnext"):
        feature_networks(tmp_path, str(ROOT / "demo/assets/clip"), str(ROOT / "demo/assets/clip"))
