import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.recording import Trial
from datasets.store import open_store, write_store
from stages.pictures import cue_arrow
from tests.conftest import ROOT, interrupted_before, read_jsonl, small_store
from tests.processes import by_forks
from utils.files import read_json

SCRIPT = "finetune_eeg_to_image.py"


def metrics(run):
    return read_jsonl(run / "metrics.jsonl")


def test_a_run_leaves_checkpoints_metrics_figure_and_results(mapped):
    rows = metrics(mapped)
    assert [row["phase"] for row in rows] == ["warmup", "joint", "joint"] and [row["lr"] for row in rows] == [
        1e-3,
        5e-4,
        5e-4,
    ]
    assert all((mapped / f"mapper_epoch{epoch}.pth").exists() for epoch in (1, 2, 3))
    assert (mapped / "learning_curve.png").stat().st_size > 10_000
    results = json.loads((mapped / "results.json").read_text())
    decoded = read_jsonl(mapped / "decoded_test.jsonl")
    for readout in ("head", "prototype"):
        test = results["test"][readout]
        assert test["n"] == 60 and test["chance"] == 0.1 and test["low"] <= test["accuracy"] <= test["high"]
        assert sum(row["readouts"][readout]["label"] == row["true_label"] for row in decoded) == test["correct"]
        assert test["people"] == 3 and test["recording_line"] == pytest.approx(0.3)
        assert test["task"]["n"] == test["within_task"]["n"] == 60 and test["task"]["chance"] == pytest.approx(1 / 3)
        assert test["task"]["accuracy"] >= test["accuracy"]
        assert rows[-1]["val"][readout]["recording_line"] == pytest.approx(0.3)
    best = max(rows, key=lambda row: row["val"]["head"]["accuracy"])
    assert results["best_epoch"] == best["epoch"]
    assert results["test"]["head"]["accuracy"] > 0.3  # the simulated effect, on people never trained on


def test_the_mse_term_enters_after_the_warm_up(mapped):
    warm, joint, _ = metrics(mapped)
    assert warm["loss_parts"]["mse"] == 0 and joint["loss_parts"]["mse"] > 0
    for row in (warm, joint):
        weighted = sum(
            weight * row["loss_parts"][name]
            for name, weight in (("cls", 5), ("contrastive", 2), ("cos", 1), ("mse", 0.1))
        )
        assert row["train_loss"] == pytest.approx(weighted, rel=1e-3)


def test_encoder_and_targets_are_frozen(vi_demo, script, tmp_path, monkeypatch):
    """After training the mapper's parameters have gradients, and the encoder's and the targets have none."""
    from models import eeg_clip_mapper
    from models.CSBrain import CSBrain

    seen = {"grads": [], "encoders": [], "targets": []}
    loss, init = eeg_clip_mapper.mapper_loss, CSBrain.__init__

    def watched(batch, weights):
        for output in (batch.states, batch.pooled, batch.logits):
            output.register_hook(lambda grad: seen["grads"].append(float(grad.abs().sum())))
        seen["targets"].extend((batch.prototypes, batch.text_states))
        return loss(batch, weights)

    def kept(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen["encoders"].append(self)

    monkeypatch.setattr(eeg_clip_mapper, "mapper_loss", watched)
    monkeypatch.setattr(CSBrain, "__init__", kept)
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", epochs=1, warmup_epochs=0))
    assert done.code == 0, done.err
    assert seen["grads"] and all(grad > 0 for grad in seen["grads"])
    assert seen["encoders"] and all(p.grad is None for encoder in seen["encoders"] for p in encoder.parameters())
    assert seen["targets"] and all(not target.requires_grad and target.grad is None for target in seen["targets"])


def test_an_interrupted_run_resumes_to_the_same_weights(mapped, vi_demo, script, tmp_path, monkeypatch):
    """Killed between its phases, and, when it goes on, interrupted within one."""
    command = [sys.executable, str(ROOT / SCRIPT), *vi_demo.mapping(tmp_path / "run")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "run/last.pth"
    while running.poll() is None and not (last.exists() and len(torch.load(last, weights_only=True)["history"]) == 1):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    with interrupted_before(3, monkeypatch):
        assert script(*command[1:], "--resume").code == 130
    done = script(*command[1:], "--resume")
    assert done.code == 0, done.err
    whole, resumed = (
        torch.load(run / "mapper_epoch3.pth", weights_only=True)["mapper"] for run in (mapped, tmp_path / "run")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert read_jsonl(mapped / "decoded_test.jsonl") == read_jsonl(tmp_path / "run/decoded_test.jsonl")


def test_a_run_is_not_overwritten_or_resumed_with_other_settings(mapped, vi_demo, script):
    done = script(SCRIPT, *vi_demo.mapping(mapped))
    assert done.code == 2 and "--resume" in done.error_line
    done = script(SCRIPT, *vi_demo.mapping(mapped, resume=True, lambda_cos=2.0))
    assert done.code == 2 and "lambda_cos was 1.0 and is 2.0" in done.error_line


def test_a_resumed_run_removes_the_epochs_that_keep_does_not_ask_for(mapped, vi_demo, script, tmp_path):
    """A kill between last.pth and their removal leaves them there."""
    shutil.copytree(mapped, tmp_path / "run")
    best = read_json(mapped / "results.json")["best_epoch"]
    assert script(SCRIPT, *vi_demo.mapping(tmp_path / "run", resume=True, keep="last")).code == 0
    left = {path.name for path in (tmp_path / "run").glob("mapper_epoch*.pth")}
    assert left == {f"mapper_epoch{best}.pth", "mapper_epoch3.pth"} < {p.name for p in mapped.glob("mapper_epoch*.pth")}


@pytest.mark.parametrize("part", ["mapper", "optimizer"])
def test_a_state_that_does_not_fit_is_one_line(mapped, vi_demo, script, tmp_path, part):
    shutil.copytree(mapped, tmp_path / "run")
    state = torch.load(tmp_path / "run/last.pth", weights_only=True)
    torch.save(state | {part: {"x": torch.zeros(2)}}, tmp_path / "run/last.pth")
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", resume=True))
    assert done.code == 2 and "last.pth: cannot be loaded" in done.error_line


def test_a_run_is_not_resumed_towards_other_photos(mapped, vi_demo, script, tmp_path):
    shutil.copytree(mapped, tmp_path / "run")
    shutil.copytree(vi_demo.stimuli, tmp_path / "stimuli")
    shutil.copy(tmp_path / "stimuli/Animal_dog.jpg", tmp_path / "stimuli/Animal_bird.jpg")
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", resume=True, stimuli_dir=tmp_path / "stimuli"))
    assert done.code == 2 and "other photos" in done.error_line


def test_the_shuffled_label_control_is_tested_on_labels_permuted_within_recordings(vi_demo, script, tmp_path, mapped):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run_shuffled", epochs=1, shuffle_labels=True))
    assert done.code == 0 and "SHUFFLED" in done.out
    true, shuffled = (read_jsonl(d / "decoded_test.jsonl") for d in (mapped, tmp_path / "run_shuffled"))
    counts = [
        Counter((r["subject"], r["session"], r["run"], r["true_label"]) for r in rows) for rows in (true, shuffled)
    ]
    assert counts[0] == counts[1]
    same = np.mean([a["true_label"] == b["true_label"] for a, b in zip(true, shuffled, strict=True)])
    assert 0.1 < same < 0.5  # a recording holds three or four of the classes: 30 % stay


@pytest.mark.parametrize("flags", [
    {"mapper": "linear", "image_targets": "text"}, {"mapper": "qformer", "token_positions": "learned",
    "lambda_mse": 0.5},
    {"token_pooling": "hemisphere", "temperature": 0.1}, {"image_model": "amused"},
])  # fmt: skip
def test_every_ablation_trains(vi_demo, script, tmp_path, flags):
    flags = flags | ({"image_model": vi_demo.pth / "amused"} if "image_model" in flags else {})
    done = script(
        SCRIPT, *vi_demo.mapping(tmp_path / "run", **({"epochs": 1, "batch_size": 64, "warmup_epochs": 0} | flags))
    )
    assert done.code == 0, done.err
    assert "mean pairwise cosine of the targets: images" in done.out
    checkpoint = torch.load(tmp_path / "run/mapper_epoch1.pth", weights_only=True)
    assert checkpoint["settings"]["n_tokens"] == (56 if "token_pooling" in flags else 20)


def test_a_warm_start_takes_over_pooling_and_trained_encoder(vi_demo, vi_trained, script, tmp_path):
    projection = vi_trained / "projection_epoch2.pth"
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", epochs=1, warm_start=projection))
    assert done.code == 0 and "warm start: region pooling; the pooling has no weights" in done.out, done.err
    content = torch.load(projection, weights_only=True)
    encoder = {k.removeprefix("module."): v * 1.5 for k, v in torch.load(vi_demo.csbrain, weights_only=True).items()}
    encoder = {k: v for k, v in encoder.items() if not k.startswith("proj_out")}
    torch.save(content | {"encoder": encoder, "token_pooling": "hemisphere"}, tmp_path / "projection_epoch9.pth")
    flags = {"epochs": 1, "warm_start": tmp_path / "projection_epoch9.pth", "protocol": "within:S20"}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "trained", **flags))
    assert done.code == 0 and "hemisphere pooling and the trained encoder" in done.out, done.err
    checkpoint = torch.load(tmp_path / "trained/mapper_epoch1.pth", weights_only=True)
    assert checkpoint["token_pooling"] == "hemisphere" and all(
        torch.equal(checkpoint["encoder"][k], encoder[k]) for k in encoder
    )
    checkpoint = torch.load(tmp_path / "run/mapper_epoch1.pth", weights_only=True)
    torch.save(checkpoint | {"dataset": "BCICIV2a"}, tmp_path / "bcic.pth")
    refused = script(SCRIPT, *vi_demo.mapping(tmp_path / "other", warm_start=tmp_path / "bcic.pth"))
    assert refused.code == 2 and "is not a checkpoint of finetune_eeg_llm.py" in refused.error_line


def test_two_processes_train_the_mapper_that_one_does_on_the_same_batches(vi_demo, vi_few, script, tmp_path):
    def flags(name: str, size: int) -> list[str]:  # linear: without dropout; 40 trials, the last batch has 12
        return vi_demo.mapping(tmp_path / name, epochs=2, mapper="linear", datasets_dir=vi_few, batch_size=size)

    assert "2 process(es)" in by_forks(2, tmp_path / "log", SCRIPT, *flags("two", 7))
    assert script(SCRIPT, *flags("one", 14)).code == 0
    for a, b in zip(*(read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["loss_parts"] == pytest.approx(a["loss_parts"], rel=1e-5)
    assert [row["index"] for row in read_jsonl(tmp_path / "two/decoded_test.jsonl")] == list(range(20))


# ---------------------------------------------------------------- what a user gets wrong


def test_bad_photos_are_one_line(vi_demo, script, tmp_path):
    shutil.copytree(vi_demo.stimuli, tmp_path / "stimuli")
    (tmp_path / "stimuli/Object_cup.jpg").write_bytes(b"no picture")
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", stimuli_dir=tmp_path / "stimuli"))
    assert done.code == 2 and "Object_cup.jpg is not a picture" in done.error_line
    (tmp_path / "stimuli/Animal_fish.jpg").unlink()
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", stimuli_dir=tmp_path / "stimuli"))
    assert done.code == 2 and "Animal_fish.jpg is missing" in done.error_line
    assert not (tmp_path / "run").exists()


def test_a_store_of_another_dataset_is_refused(demo, vi_demo, script, tmp_path):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=demo.store, downstream_dataset="VI"))
    assert done.code == 2 and "is a store of BCICIV2a; expected VI" in done.error_line


def test_a_store_without_people_to_validate_on_or_with_unknown_ones_is_refused(vi_demo, script, tmp_path):
    store = open_store(vi_demo.store)
    rows = [(trial, store.read(trial).copy()) for trial in store.trials if trial.subject == "S01"]
    write_store(tmp_path / "store", {"sfreq": store.sfreq, "dataset": "VI"}, [rows])
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=tmp_path / "store"))
    assert done.code == 2 and "no val trials" in done.error_line
    rows += [(Trial("x", 0, "S23", "01", 1, 1), rows[0][1])]
    write_store(tmp_path / "other", {"sfreq": store.sfreq, "dataset": "VI"}, [rows])
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=tmp_path / "other"))
    assert done.code == 2 and "S23 is in no published split of VI" in done.error_line


def test_a_file_where_a_folder_should_be_is_one_line(vi_demo, script, tmp_path):
    (tmp_path / "afile").write_text("x")
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "afile/run", epochs=1))
    assert done.code == 2 and "afile" in done.error_line


def test_a_loss_that_is_no_number_ends_the_run(vi_demo, script, tmp_path):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", epochs=1, lambda_mse=1e38, warmup_epochs=0))
    assert done.code == 2 and "the loss of epoch 1 is" in done.error_line


@pytest.mark.parametrize("flags, message", [
    ({"clip_model": "no/clip"}, "--clip_model no/clip"), ({"image_model": "no/model"}, "--image_model no/model"),
    ({"foundation_dir": "nowhere.pth"}, "nowhere.pth"), ({"temperature": 0}, "--temperature"), ({"epochs": 0},
    "--epochs"), ({"lr": -1}, "--lr"),
        ({"temperature": "nan"}, "--temperature"), ({"lambda_cls": "nan"}, "--lambda_cls"), ({"seed": -1}, "--seed"),
        ({"warmup_epochs": 9}, "--warmup_epochs 9"), ({"dropout": 1}, "argument --dropout: 1 must lie"),
        ({"label_smoothing": -0.1}, "--label_smoothing"),
        ({"protocol": "lopo:S03"}, "--protocol lopo:S03"), ({"protocol": "loso:Z9"}, "no person Z9"),
        ({"downstream_dataset": "FACED"}, "FACED has no stimuli"), ({"warm_start": "nowhere.pth"},
        "no such checkpoint"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(vi_demo, script, tmp_path, flags, message):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", **flags))
    assert done.code == 2 and message in done.err and "Traceback" not in done.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["clip_model", "image_model", "warm_start", "stimuli_dir"])
def test_the_encoder_does_not_run_before_models_and_photos_are_there(vi_demo, script, tmp_path, monkeypatch, flag):
    from models.CSBrain import CSBrain

    def never(self, x, mask=None):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(CSBrain, "forward", never)
    flags = {"cache_dir": tmp_path / "cache", flag: "no/such_place"}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", **flags))
    assert done.code == 2 and "no/such_place" in done.error_line and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- other encoders, other people, other datasets


def test_an_encoder_from_scratch_trains_and_its_checkpoint_maps_alike(vi_demo, vi_few, script, tmp_path):
    nowhere = {"foundation_dir": tmp_path / "nowhere.pth", "datasets_dir": vi_few}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", encoder="shallow", epochs=1, **nowhere))
    assert done.code == 0, done.err
    assert "encoder: shallow, trained from scratch" in done.out
    checkpoint = torch.load(tmp_path / "run/mapper_epoch1.pth", weights_only=True)
    assert checkpoint["encoder_name"] == "shallow" and checkpoint["settings"]["in_dim"] == 160
    flags = {"mapper_path": tmp_path / "run", "stage": "decode", **nowhere}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "out", **flags))
    assert done.code == 0, done.err
    ours = {row["index"]: row for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")}
    for row in read_jsonl(tmp_path / "out/decoded.jsonl"):
        for name, readout in row["readouts"].items():
            expected = ours[row["index"]]["readouts"][name]
            assert readout["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


@pytest.mark.parametrize("flags", [{"encoder": "eegnet"}, {"encoder_lora": 2, "layer_decay": 0.75}])
def test_a_trained_encoder_resumes_to_the_same_weights_and_maps_alike(vi_demo, script, tmp_path, monkeypatch, flags):
    from datasets.visual_imagery_llm_dataset import DESCRIPTION

    flags |= {"datasets_dir": small_store(tmp_path / "store", DESCRIPTION, ["S01", "S02", "S17", "S20"])}
    assert script(SCRIPT, *vi_demo.mapping(tmp_path / "whole", **flags)).code == 0
    with interrupted_before(3, monkeypatch):
        assert script(SCRIPT, *vi_demo.mapping(tmp_path / "run", **flags)).code == 130
    assert script(SCRIPT, *vi_demo.mapping(tmp_path / "run", **flags), "--resume").code == 0
    whole, resumed = (torch.load(tmp_path / d / "mapper_epoch3.pth", weights_only=True) for d in ("whole", "run"))
    for part in ("mapper", "encoder"):
        assert all(torch.equal(whole[part][key], resumed[part][key]) for key in whole[part]), part
    decoding = {"mapper_path": tmp_path / "whole", "stage": "decode", "datasets_dir": flags["datasets_dir"]}
    assert script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "out", **decoding)).code == 0
    ours, rows = (read_jsonl(tmp_path / name) for name in ("whole/decoded_test.jsonl", "out/decoded.jsonl"))
    for a, b in zip(ours, rows, strict=True):
        assert a["readouts"]["head"]["probabilities"] == pytest.approx(b["readouts"]["head"]["probabilities"], abs=1e-5)


def test_the_encoder_runs_once_and_encoding_anew_gives_the_same(vi_demo, mapped, script, tmp_path, monkeypatch):
    from models.CSBrain import CSBrain

    encoded, original = [], CSBrain.forward
    monkeypatch.setattr(
        CSBrain, "forward", lambda self, x, mask=None: encoded.append(len(x)) or original(self, x, mask)
    )
    within = {"protocol": "within:S20", "epochs": 1}  # 10 / 0 / 10 trials
    cached = script(SCRIPT, *vi_demo.mapping(tmp_path / "cached", **within))
    assert cached.code == 0 and "10 train trials, from the cache" in cached.out and sum(encoded) == 3, cached.err
    encoded.clear()
    anew = script(SCRIPT, *vi_demo.mapping(tmp_path / "anew", **within, no_cache_features=True))
    assert anew.code == 0 and sum(encoded) == 1 + 10 + 10, anew.err  # how many tokens; one epoch, test
    a, b = (metrics(tmp_path / run)[0] for run in ("cached", "anew"))
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4) and a["val"] == {}
    rows = read_jsonl(tmp_path / "anew/decoded_test.jsonl")
    assert {(row["subject"], row["session"]) for row in rows} == {("S20", "02")}


def test_leaving_one_subject_out_tests_that_person_alone(vi_demo, mapped, script, tmp_path):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", epochs=1, protocol="loso:S03", select_by="prototype"))
    assert done.code == 0 and "loso:S03: 340 / 60 / 20 train / val / test" in done.out, done.err
    assert {row["subject"] for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")} == {"S03"}
    assert json.loads((tmp_path / "run/results.json").read_text())["selected_by"] == "prototype"


def test_the_best_epoch_is_chosen_by_the_read_out_that_is_asked_for(vi_demo, mapped, script, tmp_path):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", select_by="prototype"))
    assert done.code == 0, done.err
    best = max(metrics(tmp_path / "run"), key=lambda row: (row["val"]["prototype"]["accuracy"], -row["epoch"]))
    assert json.loads((tmp_path / "run/results.json").read_text())["best_epoch"] == best["epoch"]


def test_motor_imagery_maps_to_the_arrows_that_were_shown(few, vi_demo, script, tmp_path):
    flags = {"downstream_dataset": "BCICIV2a", "datasets_dir": few, "stimuli_dir": tmp_path / "no_photos"}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", epochs=1, **flags))
    assert done.code == 0, done.err
    rows = read_jsonl(tmp_path / "run/decoded_test.jsonl")
    assert len(rows) == 16 and {row["true_name"] for row in rows} == {"left hand", "right hand", "feet", "tongue"}
    results = json.loads((tmp_path / "run/results.json").read_text())["test"]["head"]
    assert results["chance"] == 0.25 and results["recording_line"] is None
    flags |= {"mapper_path": tmp_path / "run", "num_samples": 4}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "out", **flags))
    assert done.code == 0, done.err
    directions = {"left hand": "left", "right hand": "right", "feet": "down", "tongue": "up"}
    for row in read_jsonl(tmp_path / "out/decoded.jsonl"):
        pair = np.asarray(next(Image.open(p) for p in (tmp_path / "out").glob(f"comparison_{row['index']:04d}_*")))
        assert np.array_equal(pair[40:, :256], np.asarray(cue_arrow(directions[row["true_name"]])))


def test_a_trial_that_is_too_short_is_one_line(vi_demo, script, tmp_path):
    from datasets.visual_imagery_llm_dataset import DESCRIPTION

    store = small_store(tmp_path / "store", DESCRIPTION, [f"S{k:02d}" for k in range(1, 23)], seconds=0.2)
    for encoder in ("csbrain", "eegnet", "shallow"):
        done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=store, encoder=encoder))
        assert done.code == 2 and encoder in done.error_line


def test_an_encoder_that_has_seen_the_test_people_is_no_warm_start(vi_demo, vi_trained, script, tmp_path):
    content = torch.load(vi_trained / "projection_epoch2.pth", weights_only=True)
    encoder = {k.removeprefix("module."): v for k, v in torch.load(vi_demo.csbrain, weights_only=True).items()}
    encoder = {k: v for k, v in encoder.items() if not k.startswith("proj_out")}
    torch.save(content | {"encoder": encoder}, tmp_path / "projection_epoch2.pth")
    flags = vi_demo.mapping(
        tmp_path / "run", epochs=1, warm_start=tmp_path / "projection_epoch2.pth", protocol="loso:S03"
    )
    done = script(SCRIPT, *flags)
    assert done.code == 2 and "was trained or validated on S03/01, S03/02" in done.error_line
    weights = torch.load(vi_demo.csbrain, weights_only=True)  # the same ones
    torch.save({"model": weights, "what": "csbrain", "pretrained_on": ["VI/S20"]}, tmp_path / "csbrain.pth")
    brought = {"warm_start": vi_trained, "foundation_dir": tmp_path / "csbrain.pth"}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", **brought))
    assert done.code == 2 and "was pretrained on trials of VI/S20, who is tested" in done.error_line
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_part_of_the_trials_is_decoded_on_the_same_part(vi_demo, script, tmp_path):
    """Of the time, the electrodes, the band; and aligned as it was."""
    part = {"window": [0, 2], "regions": ["occipital", "parietal"], "band": [4, 40], "align": "causal", "epochs": 1}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "part", **part))
    assert done.code == 0, done.err
    flags = {"mapper_path": tmp_path / "part", "stage": "decode", "num_samples": 60}
    done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "decoded", **flags))
    assert done.code == 0, done.err
    tested, decoded = read_jsonl(tmp_path / "part/decoded_test.jsonl"), read_jsonl(tmp_path / "decoded/decoded.jsonl")
    assert len(decoded) == 60
    assert {row["uses"] for row in [*tested, *decoded]} == {"earlier trials, unlabelled (causal)"}
    for a, b in zip(tested, decoded, strict=True):
        assert a["readouts"]["head"]["probabilities"] == pytest.approx(b["readouts"]["head"]["probabilities"], abs=2e-6)
    checkpoint = torch.load(tmp_path / "part/mapper_epoch1.pth", weights_only=True)
    assert (checkpoint["window"], checkpoint["regions"]) == ([0.0, 2.0], ["occipital", "parietal"])
    assert (checkpoint["band"], checkpoint["align"]) == ([4.0, 40.0], "causal")
    for field, damaged in (("window", [0.0]), ("window", ["a", "b"]), ("regions", [3]), ("regions", ["nowhere"])):
        torch.save(checkpoint | {field: damaged}, tmp_path / "part/mapper_epoch1.pth")
        done = script("generate_vi_eeg2img.py", *vi_demo.vi_generation(tmp_path / "again", **flags))
        assert done.code == 2 and (
            "is damaged: its window, regions" in done.err or "no region or electrode nowhere" in done.err
        )
