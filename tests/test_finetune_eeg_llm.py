import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from utils.records import read_jsonl

from datasets.store import Trial, write_store
from tests.conftest import ROOT


def metrics(model_dir):
    return read_jsonl(model_dir / "metrics.jsonl")


def test_a_run_leaves_checkpoints_metrics_figure_and_results(trained):
    for epoch in (1, 2, 3):
        assert (trained / f"projection_epoch{epoch}.pth").exists()
        assert (trained / f"lora_epoch{epoch}/adapter_model.safetensors").exists()
    rows = metrics(trained)
    assert [row["phase"] for row in rows] == ["warmup", "joint", "joint"]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["lr"] == pytest.approx(1e-6)
    assert (trained / "learning_curve.png").stat().st_size > 10_000
    record = json.loads((trained / "run.json").read_text())
    assert record["environment"]["torch"] == torch.__version__ and record["arguments"]["seed"] == 0
    results = json.loads((trained / "results.json").read_text())
    test = results["test"]["keyword"]
    assert test["n"] == 96 and test["low"] <= test["accuracy"] <= test["high"] and test["chance"] == 0.25
    decoded = read_jsonl(trained / "decoded_test.jsonl")
    assert sum(row["keyword_label"] == row["true_label"] for row in decoded) == test["correct"]
    best = max(rows, key=lambda row: row["val"]["keyword"]["accuracy"])["val"]["keyword"]["accuracy"]
    assert results["val"]["keyword"]["accuracy"] == best


def test_lora_stays_untouched_in_the_warm_up(trained):
    from safetensors.torch import load_file

    first, second = (load_file(trained / f"lora_epoch{e}/adapter_model.safetensors") for e in (1, 2))
    assert all(v.abs().sum() == 0 for k, v in first.items() if "lora_B" in k)
    assert all(v.abs().sum() > 0 for k, v in second.items() if "lora_B" in k)


@pytest.mark.parametrize("finished", [1, 2], ids=["between phases", "within a phase"])
def test_an_interrupted_run_resumes_to_the_same_weights(trained, demo, tmp_path, finished):
    command = [sys.executable, str(ROOT / "finetune_eeg_llm.py"), *demo.training(tmp_path / "run", epochs=3)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "run/last.pth"
    while running.poll() is None and not (
        last.exists() and len(torch.load(last, weights_only=True)["history"]) == finished
    ):
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and len(metrics(tmp_path / "run")) == finished
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("projection_epoch3.pth", "last.pth"):
        whole, resumed = (torch.load(d / name, weights_only=True)["projection"] for d in (trained, tmp_path / "run"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    lora = "lora_epoch3/adapter_model.safetensors"
    assert (trained / lora).read_bytes() == (tmp_path / "run" / lora).read_bytes()
    assert read_jsonl(trained / "decoded_test.jsonl") == read_jsonl(tmp_path / "run/decoded_test.jsonl")


def test_a_run_is_not_resumed_with_other_settings(trained, demo, script):
    done = script("finetune_eeg_llm.py", *demo.training(trained, epochs=3, resume=True, lr=1e-3))
    assert done.code == 2 and "lr was 0.0002 and is 0.001" in done.error_line


def test_a_finished_run_resumes_to_its_own_test(trained, demo, script, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", epochs=3, resume=True))
    assert done.code == 0, done.err
    assert read_jsonl(trained / "decoded_test.jsonl") == read_jsonl(tmp_path / "run/decoded_test.jsonl")


def test_the_encoder_runs_once_and_the_cache_gives_what_encoding_anew_gives(
    trained, demo, script, tmp_path, monkeypatch
):
    from models.CSBrain import CSBrain

    encoded = []
    original = CSBrain.forward
    monkeypatch.setattr(
        CSBrain, "forward", lambda self, x, mask=None: encoded.append(len(x)) or original(self, x, mask)
    )
    cached = script("finetune_eeg_llm.py", *demo.training(tmp_path / "cached", epochs=1))
    assert cached.code == 0, cached.err
    assert "232 train trials from the cache" in cached.out and encoded == []
    other_pooling = script("finetune_eeg_llm.py", *demo.training(tmp_path / "region", epochs=1, token_pooling="region"))
    assert other_pooling.code == 0 and encoded == []  # comparing poolings costs no second pass
    anew = script("finetune_eeg_llm.py", *demo.training(tmp_path / "anew", epochs=1, no_cache_features=True))
    assert anew.code == 0 and sum(encoded) == 232 + 96 + 96  # one epoch, validation, test
    a, b = metrics(tmp_path / "cached")[0], metrics(tmp_path / "anew")[0]
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


def test_the_encoder_can_be_trained_in_the_joint_phase(demo, script, tmp_path):
    flags = demo.training(tmp_path / "run", train_encoder=True, gradient_accumulation_steps=16)
    done = script("finetune_eeg_llm.py", *flags)
    assert done.code == 0, done.err
    warm, joint = (torch.load(tmp_path / f"run/projection_epoch{e}.pth", weights_only=True)["encoder"] for e in (1, 2))
    published = {k.removeprefix("module."): v for k, v in torch.load(demo.csbrain, weights_only=True).items()}
    assert all(torch.equal(warm[k], published[k]) for k in warm)  # frozen in the warm-up
    changed = [k for k in joint if not torch.equal(joint[k], published[k])]
    assert len(changed) > 250 and "patch_embedding.mask_encoding" not in changed
    decoded = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", generate_images=None))
    assert decoded.code == 0, decoded.err
    ours = {row["index"]: row for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")}
    for row in read_jsonl(tmp_path / "out/decoded.jsonl"):  # the trained encoder, and not the published one, decodes
        assert row["text"] == ours[row["index"]]["text"]
        assert row["probabilities"] == pytest.approx(ours[row["index"]]["probabilities"], abs=1e-3)


def test_the_twin_is_trained_and_tested_on_shuffled_labels(demo, script, tmp_path, trained):
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "twin", epochs=1, shuffle_labels=True))
    assert done.code == 0 and "SHUFFLED" in done.out
    true, twin = (read_jsonl(d / "decoded_test.jsonl") for d in (trained, tmp_path / "twin"))
    same = sum(a["true_label"] == b["true_label"] for a, b in zip(true, twin, strict=True))
    assert same == len(true) / 4


@pytest.mark.parametrize("flags", [{"epochs": 2}, {"epochs": 1, "warmup_epochs": 0, "train_encoder": True}])
def test_two_processes_train_together(demo, tmp_path, flags):
    training = demo.training(tmp_path / "run", gradient_accumulation_steps=1, **flags)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--main_process_port", "29611", str(ROOT / "finetune_eeg_llm.py"), *training]  # fmt: skip
    done = subprocess.run(launch, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/run.json").read_text())["num_processes"] == 2
    assert "2 process(es)" in done.stdout and done.stdout.count("best epoch") == 1
    rows = metrics(tmp_path / "run")
    assert len(rows) == flags["epochs"] and rows[-1]["train_loss"] < 1
    decoded = read_jsonl(tmp_path / "run/decoded_test.jsonl")
    assert [row["index"] for row in decoded] == list(range(96))  # every trial once


def test_a_launch_that_starts_one_process_instead_of_two_is_said(demo, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
              str(ROOT / "finetune_eeg_llm.py"), *demo.training(tmp_path / "run", datasets_dir="nowhere")]  # fmt: skip
    done = subprocess.run(launch, capture_output=True, text=True)
    assert "notice: accelerate started one process" in done.stdout


def test_a_full_disk_is_one_line(demo, tmp_path):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, str(ROOT / "finetune_eeg_llm.py"), *demo.training(tmp_path / "run", epochs=1)]
    for more in ([], ["--cache_dir", str(tmp_path / "cache")]):  # a checkpoint, and the token cache
        done = subprocess.run([*command, *more], capture_output=True, text=True, preexec_fn=small_files_only)
        assert done.returncode == 2 and "free some disk space" in done.stderr and "Traceback" not in done.stderr
        assert not list((tmp_path / "run").glob("*.pth")) and not list(tmp_path.glob("**/*.part-*"))


def test_training_and_decoding_run_on_real_recordings(shared, demo, script, tmp_path):
    store = tmp_path / "store"
    raw = shared / "real/bciciv2a_raw"
    assert script("prepare_data.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store).code == 0
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", datasets_dir=store))
    assert done.code == 0 and "n = 14" in done.out, done.err
    images = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", datasets_dir=store))
    assert images.code == 0 and (tmp_path / "out/summary_grid.png").exists(), images.err


def test_faced_trains_from_cbramods_lmdb(demo, script, tmp_path):
    import pickle

    import lmdb
    import numpy as np

    keys = {
        split: [f"sub{p:03d}.pkl-{k}-0" for k in range(9)] for split, p in (("train", 1), ("val", 90), ("test", 110))
    }
    rng = np.random.default_rng(0)
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for names in keys.values():
            for label, name in enumerate(names):
                record = {"sample": rng.standard_normal((32, 10, 200)) * 20, "label": label}
                txn.put(name.encode(), pickle.dumps(record))
        txn.put(b"__keys__", pickle.dumps(keys))
    flags = demo.training(
        tmp_path / "run", downstream_dataset="FACED", datasets_dir=tmp_path / "lmdb", token_pooling="region"
    )
    done = script("finetune_eeg_llm.py", *flags)
    assert done.code == 0, done.err
    assert "5 groups × 10 patches" in done.out and "n = 9" in done.out and "chance 11 %" in done.out


# ---------------------------------------------------------------- what a user gets wrong


@pytest.mark.parametrize(
    "flags, message",
    [({"datasets_dir": "nowhere"}, "not an LMDB"), ({"foundation_dir": "nowhere.pth"}, "no such checkpoint"),
     ({"llm": "no/model"}, "--llm no/model"),
     ({"downstream_dataset": "FACED"}, "store of BCICIV2a; expected FACED")],
)  # fmt: skip
def test_wrong_arguments_are_one_line(demo, script, tmp_path, flags, message):
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", **flags))
    assert done.code == 2 and message in done.error_line


def test_a_finished_run_is_not_overwritten(trained, demo, script):
    before = (trained / "metrics.jsonl").read_bytes()
    done = script("finetune_eeg_llm.py", *demo.training(trained))
    assert done.code == 2 and "--resume" in done.error_line
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resuming_where_nothing_was_finished_starts_anew_and_foreign_checkpoints_stay(demo, script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")  # died before its first epoch ended
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", epochs=1, resume=True))
    assert done.code == 0 and "starting anew" in done.out, done.err
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/projection_epoch6.pth").write_bytes(b"a night's work")
    refused = script("finetune_eeg_llm.py", *demo.training(tmp_path / "theirs"))
    assert refused.code == 2 and "another run" in refused.error_line
    assert (tmp_path / "theirs/projection_epoch6.pth").read_bytes() == b"a night's work"


def test_a_random_encoder_is_used_only_when_asked_for(demo, script, tmp_path):
    flags = demo.training(tmp_path / "run", epochs=1, foundation_dir=tmp_path / "CSBrain.pth")
    refused = script("finetune_eeg_llm.py", *flags)
    assert refused.code == 2 and "CSBrain.pth: no such checkpoint" in refused.error_line
    asked = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run2", epochs=1), "--no-use_pretrained_weights")
    assert asked.code == 0 and "RANDOM weights" in asked.out


def test_a_checkpoint_that_runs_code_or_has_other_shapes_is_refused(demo, script, tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"a": Hostile()}))
    torch.save({"module.patch_embedding.mask_encoding": torch.zeros(100)}, tmp_path / "other.pth")
    for name in ("hostile.pth", "other.pth"):
        done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", foundation_dir=tmp_path / name))
        assert done.code == 2 and name in done.error_line
        assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ran").exists()


def test_a_store_without_validation_trials_is_refused(demo, script, tmp_path):
    import numpy as np

    rows = [("train", Trial("a", 0, "A01", "T", 1, 1), np.zeros((22, 4, 200), np.float32))]
    write_store(tmp_path / "store", {"shape": (22, 4, 200), "dataset": "BCICIV2a"}, [rows])
    done = script("finetune_eeg_llm.py", *demo.training(tmp_path / "run", datasets_dir=tmp_path / "store"))
    assert done.code == 2 and "no val trials" in done.error_line and not (tmp_path / "run").exists()
