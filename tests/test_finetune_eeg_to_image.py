import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from utils.records import read_jsonl

from datasets.store import Trial, open_store, write_store
from tests.conftest import ROOT

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
        assert sum(row[f"{readout}_label"] == row["true_label"] for row in decoded) == test["correct"]
    best = max(rows, key=lambda row: row["val"]["head"]["accuracy"])
    assert results["best_epoch"] == best["epoch"]
    assert results["test"]["head"]["accuracy"] > 0.3  # the planted effect, on people never trained on


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

    def watched(outputs, label, *targets_and_settings):
        for output in outputs:
            output.register_hook(lambda grad: seen["grads"].append(float(grad.abs().sum())))
        seen["targets"].extend(targets_and_settings[:2])
        return loss(outputs, label, *targets_and_settings)

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


@pytest.mark.parametrize("finished", [1, 2], ids=["between phases", "within a phase"])
def test_an_interrupted_run_resumes_to_the_same_weights(mapped, vi_demo, tmp_path, finished):
    command = [sys.executable, str(ROOT / SCRIPT), *vi_demo.mapping(tmp_path / "run")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "run/last.pth"
    while running.poll() is None and not (
        last.exists() and len(torch.load(last, weights_only=True)["history"]) == finished
    ):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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


def test_a_run_is_not_resumed_towards_other_photos(mapped, vi_demo, script, tmp_path):
    shutil.copytree(mapped, tmp_path / "run")
    shutil.copytree(vi_demo.stimuli, tmp_path / "stimuli")
    shutil.copy(tmp_path / "stimuli/Animal_dog.jpg", tmp_path / "stimuli/Animal_bird.jpg")
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", resume=True, stimuli_dir=tmp_path / "stimuli"))
    assert done.code == 2 and "other photos" in done.error_line


def test_shuffled_labels_are_shuffled_in_every_split(vi_demo, script, tmp_path, mapped):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run_shuffled", epochs=1, shuffle_labels=True))
    assert done.code == 0 and "SHUFFLED" in done.out
    true = [row["true_label"] for row in read_jsonl(mapped / "decoded_test.jsonl")]
    shuffled = [row["true_label"] for row in read_jsonl(tmp_path / "run_shuffled/decoded_test.jsonl")]
    assert (
        sorted(true) == sorted(shuffled) and 0.02 < sum(a == b for a, b in zip(true, shuffled, strict=True)) / 60 < 0.25
    )


@pytest.mark.parametrize("flags", [
    {"mapper": "linear", "image_targets": "text"}, {"mapper": "qformer", "token_positions": "learned", "lambda_mse": 0.5},
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
    assert done.code == 0 and "warm start: region pooling; the reducer has no weights" in done.out, done.err
    content = torch.load(projection, weights_only=True)
    encoder = {k.removeprefix("module."): v * 1.5 for k, v in torch.load(vi_demo.csbrain, weights_only=True).items()}
    encoder = {k: v for k, v in encoder.items() if not k.startswith("proj_out")}
    torch.save(content | {"encoder": encoder, "token_pooling": "hemisphere"}, tmp_path / "projection_epoch9.pth")
    flags = {"epochs": 1, "warm_start": tmp_path / "projection_epoch9.pth"}
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "trained", **flags))
    assert done.code == 0 and "hemisphere pooling and the trained encoder" in done.out, done.err
    checkpoint = torch.load(tmp_path / "trained/mapper_epoch1.pth", weights_only=True)
    assert checkpoint["token_pooling"] == "hemisphere" and all(
        torch.equal(checkpoint["encoder"][k], encoder[k]) for k in encoder
    )
    checkpoint = torch.load(tmp_path / "run/mapper_epoch1.pth", weights_only=True)
    torch.save(checkpoint | {"dataset": "BCICIV2a"}, tmp_path / "bcic.pth")
    refused = script(SCRIPT, *vi_demo.mapping(tmp_path / "other", warm_start=tmp_path / "bcic.pth"))
    assert refused.code == 2 and "no text checkpoint of VI" in refused.error_line


def test_two_processes_train_one_mapper(vi_demo, tmp_path):
    command = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", "0", str(ROOT / SCRIPT)]  # fmt: skip
    flags = vi_demo.mapping(tmp_path / "run", epochs=2, mapper="mlp")
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, *flags], capture_output=True, text=True, env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 process(es)" in done.stdout and len(read_jsonl(tmp_path / "run/decoded_test.jsonl")) == 60


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


def test_a_store_of_another_dataset_or_without_people_is_refused(demo, vi_demo, script, tmp_path):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=demo.store))
    assert done.code == 2 and "is a store of BCICIV2a; expected VI" in done.error_line
    store = open_store(vi_demo.store)
    rows = [("train", trial, store.read(trial)) for trial in store.trials("train")[:10]]
    write_store(tmp_path / "store", {"shape": (32, 4, 200), "dataset": "VI"}, [rows])
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=tmp_path / "store"))
    assert done.code == 2 and "no val trials" in done.error_line
    rows += [("test", Trial("x", 0, rows[0][1].subject, "01", 1, 1), rows[0][2])]
    write_store(tmp_path / "leak", {"shape": (32, 4, 200), "dataset": "VI"}, [rows])
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", datasets_dir=tmp_path / "leak"))
    assert done.code == 2 and "in both train and test" in done.error_line


def test_a_file_where_a_folder_should_be_is_one_line(vi_demo, script, tmp_path):
    (tmp_path / "afile").write_text("x")
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "afile/run", epochs=1))
    assert done.code == 2 and "afile" in done.error_line


def test_a_loss_that_is_no_number_ends_the_run(vi_demo, script, tmp_path):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", epochs=1, lambda_mse=1e38, warmup_epochs=0))
    assert done.code == 2 and "the loss of epoch 1 is" in done.error_line


@pytest.mark.parametrize("flags, message", [
    ({"clip_model": "no/clip"}, "--clip_model no/clip"), ({"image_model": "no/model"}, "--image_model no/model"),
    ({"foundation_dir": "nowhere.pth"}, "nowhere.pth"), ({"temperature": 0}, "--temperature"), ({"epochs": 0}, "--epochs"), ({"lr": -1}, "--lr"),
        ({"temperature": "nan"}, "--temperature"), ({"lambda_cls": "nan"}, "--lambda_cls"), ({"seed": -1}, "--seed"),
        ({"warmup_epochs": 9}, "--warmup_epochs 9"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(vi_demo, script, tmp_path, flags, message):
    done = script(SCRIPT, *vi_demo.mapping(tmp_path / "run", **flags))
    assert done.code == 2 and message in done.err and "Traceback" not in done.err and not (tmp_path / "run").exists()
