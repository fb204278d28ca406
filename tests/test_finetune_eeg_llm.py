import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from datasets.bciciv2a_llm_dataset import DESCRIPTION
from datasets.recording import Trial
from datasets.store import open_store, write_store
from datasets.trials import shuffled_labels
from evaluation.audit_models import decoded_findings
from evaluation.decoded_runs import read_run
from tests.conftest import ROOT, interrupted_before, read_jsonl, run_process, small_store

SCRIPT = "finetune_eeg_llm.py"


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
    assert test["people"] == 2 and test["recording_line"] is None and rows[-1]["val"]["keyword"]["people"] == 2
    decoded = read_jsonl(trained / "decoded_test.jsonl")
    assert sum(row["readouts"]["keyword"]["label"] == row["true_label"] for row in decoded) == test["correct"]
    best = max(rows, key=lambda row: row["val"]["keyword"]["accuracy"])["val"]["keyword"]["accuracy"]
    assert results["val"]["keyword"]["accuracy"] == best


def test_lora_stays_untouched_in_the_warm_up(trained):
    from safetensors.torch import load_file

    first, second = (load_file(trained / f"lora_epoch{e}/adapter_model.safetensors") for e in (1, 2))
    assert all(v.abs().sum() == 0 for k, v in first.items() if "lora_B" in k)
    assert all(v.abs().sum() > 0 for k, v in second.items() if "lora_B" in k)


def test_an_interrupted_run_resumes_to_the_same_weights(trained, demo, script, tmp_path, monkeypatch):
    """Killed between its phases, and, when it goes on, interrupted within one."""
    command = [sys.executable, str(ROOT / SCRIPT), *demo.training(tmp_path / "run", epochs=3)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "run/last.pth"
    while running.poll() is None and not (last.exists() and len(torch.load(last, weights_only=True)["history"]) == 1):
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and len(metrics(tmp_path / "run")) == 1
    with interrupted_before(3, monkeypatch):
        assert script(*command[1:], "--resume").code == 130
    assert len(metrics(tmp_path / "run")) == 2
    done = script(*command[1:], "--resume")
    assert done.code == 0, done.err
    for name in ("projection_epoch3.pth", "last.pth"):
        whole, resumed = (torch.load(d / name, weights_only=True)["projection"] for d in (trained, tmp_path / "run"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    lora = "lora_epoch3/adapter_model.safetensors"
    assert (trained / lora).read_bytes() == (tmp_path / "run" / lora).read_bytes()
    assert read_jsonl(trained / "decoded_test.jsonl") == read_jsonl(tmp_path / "run/decoded_test.jsonl")


def test_a_run_is_not_resumed_with_other_settings(trained, demo, script):
    done = script(SCRIPT, *demo.training(trained, epochs=3, resume=True, lr=1e-3))
    assert done.code == 2 and "lr was 0.0002 and is 0.001" in done.error_line


def test_a_finished_run_resumes_to_its_own_test(trained, demo, script, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    done = script(SCRIPT, *demo.training(tmp_path / "run", epochs=3, resume=True))
    assert done.code == 0, done.err
    assert read_jsonl(trained / "decoded_test.jsonl") == read_jsonl(tmp_path / "run/decoded_test.jsonl")


def test_the_encoder_runs_once_and_the_cache_gives_what_encoding_anew_gives(demo, few, script, tmp_path, monkeypatch):
    from models.CSBrain import CSBrain

    encoded = []
    original = CSBrain.forward
    monkeypatch.setattr(
        CSBrain, "forward", lambda self, x, mask=None: encoded.append(len(x)) or original(self, x, mask)
    )
    flags = {"epochs": 1, "datasets_dir": few, "cache_dir": tmp_path / "cache"}
    first = script(SCRIPT, *demo.training(tmp_path / "first", **flags))
    assert first.code == 0, first.err
    assert "encoder: 40 train trials, 40 trials of 5 people encoded" in first.out and sum(encoded) == 72 + 3
    encoded.clear()  # three more than there are trials: each run encodes its noise trials
    cached = script(SCRIPT, *demo.training(tmp_path / "cached", **flags))
    assert cached.code == 0 and "encoder: 40 train trials, from the cache" in cached.out and sum(encoded) == 3
    encoded.clear()
    other_pooling = script(SCRIPT, *demo.training(tmp_path / "region", **flags, token_pooling="region"))
    assert other_pooling.code == 0 and sum(encoded) == 3  # comparing poolings costs no second pass
    encoded.clear()
    anew = script(SCRIPT, *demo.training(tmp_path / "anew", **flags, no_cache_features=True))
    assert anew.code == 0 and sum(encoded) == 1 + 40 + 16 + 16  # how many tokens it gives, one epoch, validation, test
    a, b = metrics(tmp_path / "cached")[0], metrics(tmp_path / "anew")[0]
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


def test_the_encoder_can_be_trained_in_the_joint_phase(demo, few, script, tmp_path):
    flags = demo.training(tmp_path / "run", train_encoder=True, gradient_accumulation_steps=16, datasets_dir=few)
    done = script(SCRIPT, *flags)
    assert done.code == 0, done.err
    warm, joint = (torch.load(tmp_path / f"run/projection_epoch{e}.pth", weights_only=True)["encoder"] for e in (1, 2))
    published = {k.removeprefix("module."): v for k, v in torch.load(demo.csbrain, weights_only=True).items()}
    assert all(torch.equal(warm[k], published[k]) for k in warm)  # frozen in the warm-up
    changed = [k for k in joint if not torch.equal(joint[k], published[k])]
    assert len(changed) > 250 and "patch_embedding.mask_encoding" not in changed
    flags = {"generate_images": None, "datasets_dir": few}
    decoded = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", **flags))
    assert decoded.code == 0, decoded.err
    ours = {row["index"]: row for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")}
    for row in read_jsonl(tmp_path / "out/decoded.jsonl"):  # the trained encoder, and not the published one, decodes
        assert row["text"] == ours[row["index"]]["text"]
        a, b = (r["readouts"]["likelihood"]["probabilities"] for r in (row, ours[row["index"]]))
        assert a == pytest.approx(b, abs=1e-3)


def test_adapters_on_the_encoder_are_merged_in_checkpoints_and_a_resumed_run_goes_on_with_them(
    demo, script, tmp_path, monkeypatch
):
    store = small_store(tmp_path / "store", DESCRIPTION, ["A01", "A02", "A06", "A08"], seconds=2)
    flags = {"encoder_lora": 2, "encoder_lr": 1e-2, "layer_decay": 0.75, "warmup_epochs": 0, "datasets_dir": store}
    flags |= {"batch_size": 4, "gradient_accumulation_steps": 1}
    done = script(SCRIPT, *demo.training(tmp_path / "whole", **flags))
    assert done.code == 0, done.err
    assert "low-rank adapters of 57,600 parameters" in done.out and not list(tmp_path.rglob("tokens-*"))
    published = {k.removeprefix("module."): v for k, v in torch.load(demo.csbrain, weights_only=True).items()}
    checkpoint = torch.load(tmp_path / "whole/projection_epoch2.pth", weights_only=True)
    assert set(checkpoint["encoder"]) == {k for k in published if not k.startswith("proj_out")}
    changed = {k for k, value in checkpoint["encoder"].items() if not torch.equal(value, published[k])}
    assert changed == {k for k in published if k.endswith(("attn.in_proj_weight", "attn.out_proj.weight"))}

    again = {"generate_images": None, "datasets_dir": store}
    decoded = script("generate.py", *demo.generation(tmp_path / "whole", tmp_path / "out", **again))
    assert decoded.code == 0, decoded.err
    ours, rows = (read_jsonl(tmp_path / name) for name in ("whole/decoded_test.jsonl", "out/decoded.jsonl"))
    for a, b in zip(ours, rows, strict=True):
        assert (a["index"], a["text"]) == (b["index"], b["text"])
        for name in ("likelihood", "head"):
            pair = (row["readouts"][name]["probabilities"] for row in (a, b))
            assert next(pair) == pytest.approx(next(pair), abs=1e-5)

    audit = script("evaluate.py", "--audit", store, tmp_path / "whole", "--cuda", "-1").out
    assert "is of this run's encoder" in audit and "no tokens" not in audit  # which it never kept

    with interrupted_before(2, monkeypatch):
        assert script(SCRIPT, *demo.training(tmp_path / "broken", **flags)).code == 130
    done = script(SCRIPT, *demo.training(tmp_path / "broken", **flags), "--resume")
    assert done.code == 0, done.err
    for name in ("projection_epoch2.pth", "last.pth", "decoded_test.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_shuffled_label_control_is_trained_and_tested_on_labels_permuted_within_recordings(
    demo, script, tmp_path, trained
):
    done = script(SCRIPT, *demo.training(tmp_path / "control", epochs=1, shuffle_labels=True))
    assert done.code == 0 and "SHUFFLED" in done.out
    true, control = (read_jsonl(d / "decoded_test.jsonl") for d in (trained, tmp_path / "control"))
    counts = [
        Counter((r["subject"], r["session"], r["run"], r["true_label"]) for r in rows) for rows in (true, control)
    ]
    assert counts[0] == counts[1]
    assert 0.1 < np.mean([a["true_label"] == b["true_label"] for a, b in zip(true, control, strict=True)]) < 0.4
    assert [row["index"] for row in true] == [row["index"] for row in control]


def test_the_controls_accuracy_scatters_around_chance(demo):
    """A plain permutation: a perfect decoder of the true labels scores at chance on the control, more or less."""
    trials = [t for t in open_store(demo.store).trials if t.subject in ("A08", "A09")]
    shares = [np.mean([t.label == k for t, k in zip(trials, shuffled_labels(trials, seed), strict=True)])
              for seed in range(60)]  # fmt: skip
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03) and 0.02 < np.std(shares) < 0.08


def test_a_launch_that_starts_one_process_instead_of_two_is_said(demo, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
              str(ROOT / SCRIPT), *demo.training(tmp_path / "run", datasets_dir="nowhere")]  # fmt: skip
    done = subprocess.run(launch, capture_output=True, text=True)
    assert "notice: accelerate started one process" in done.stdout


def test_a_full_disk_is_one_line(demo, few, script, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for more in ([], ["--cache_dir", tmp_path / "cache"]):  # a checkpoint, and the token cache
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
        try:
            done = script(SCRIPT, *demo.training(tmp_path / "run", epochs=1, datasets_dir=few), *more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert done.code == 2 and "free some disk space" in done.error_line
        assert not list((tmp_path / "run").glob("*.pth")) and not list(tmp_path.glob("**/*.part-*"))


def test_training_and_decoding_run_on_real_recordings(shared, demo, script, tmp_path):
    store = tmp_path / "store"
    raw = shared / "real/bciciv2a_raw"
    assert script("prepare_data.py", "--skip_download", "--raw_dir", raw, "--lmdb_dir", store).code == 0
    done = script(SCRIPT, *demo.training(tmp_path / "run", datasets_dir=store))
    assert done.code == 0 and "n = 14" in done.out, done.err
    images = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", datasets_dir=store))
    assert images.code == 0 and (tmp_path / "out/summary_grid.png").exists(), images.err


def test_faced_trains_from_cbramods_lmdb(demo, script, tmp_path, monkeypatch):
    monkeypatch.setattr("models.tiny_llm.STEPS", 20)  # the demo's tiny model never read FACED's sentences
    import pickle

    import lmdb

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
    done = script(SCRIPT, *flags)
    assert done.code == 0, done.err
    assert "5 groups × 200 features" in done.out and "n = 9" in done.out and "chance 11.1 %" in done.out


# ---------------------------------------------------------------- what a user gets wrong


@pytest.mark.parametrize(
    "flags, message",
    [({"datasets_dir": "nowhere"}, "not an LMDB"), ({"foundation_dir": "nowhere.pth"}, "no such checkpoint"),
     ({"llm": "no/model"}, "--llm no/model"), ({"protocol": "loso:Z9"}, "no person Z9; it has A01, A02"),
     ({"downstream_dataset": "FACED"}, "store of BCICIV2a; expected FACED"),
     ({"downstream_dataset": "VI"}, "store of BCICIV2a; expected VI"), ({"protocol": "published:A03"},
     "takes no person"), ({"encoder_lora": 2, "encoder": "eegnet"}, "--encoder csbrain"),
     ({"encoder_lora": 2, "train_encoder": True}, "give one")],
)  # fmt: skip
def test_wrong_arguments_are_one_line(demo, script, tmp_path, flags, message):
    done = script(SCRIPT, *demo.training(tmp_path / "run", **flags))
    assert done.code == 2 and message in done.error_line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [
    {"protocol": "lopo:A03"}, {"encoder": "none"}, {"token_pooling": "none"}, {"label_smoothing": 1}, {"lora_r": 0},
    {"label_smoothing": "nan"}, {"encoder_lr": -1}, {"lora_alpha": "inf"}, {"warmup_epochs": 9}, {"epochs": 0},
    {"layer_decay": 1.5}, {"layer_decay": 0}, {"encoder_lora": -1},
])  # fmt: skip
def test_flags_out_of_range_are_named(demo, script, tmp_path, flags):
    done = script(SCRIPT, *demo.training(tmp_path / "run", **flags))
    assert done.code == 2 and f"--{next(iter(flags))}" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("flags, message", [
    ({"llm": "no/model"}, "--llm no/model: cannot be loaded"), ({"lora_targets": ["no_such_layer"]}, "--lora_targets"),
])  # fmt: skip
def test_the_encoder_does_not_run_before_the_language_model_is_there(
    demo, script, tmp_path, monkeypatch, flags, message
):
    from models.CSBrain import CSBrain

    def never(self, x, mask=None):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(CSBrain, "forward", never)
    done = script(SCRIPT, *demo.training(tmp_path / "run", cache_dir=tmp_path / "cache", **flags))
    assert done.code == 2 and message in done.error_line and not (tmp_path / "run").exists()


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(demo, tmp_path):
    """HF_HUB_OFFLINE is not set, and nothing listens where the hub should be: no retries, no traceback."""
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")
    }  # fmt: skip
    done = run_process(SCRIPT, *demo.training(tmp_path / "run", llm="no/model"), env=env)
    assert done.code == 2 and "--llm no/model: cannot be loaded" in done.error_line
    assert "hub cannot be reached" in done.error_line and "127.0.0.1:9 cannot be reached" in done.out
    assert "Retry" not in done.err and "retry" not in done.err


def test_a_gpu_that_is_not_there_is_a_notice(demo, script, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = script(SCRIPT, *demo.training(tmp_path / "run", cuda=0, llm="no/model"))
    assert "notice: --cuda 0" in done.out and "the CPU is used" in done.out
    done = script(SCRIPT, *demo.training(tmp_path / "run", cuda=-1, llm="no/model"))
    assert "notice: --cuda" not in done.out


def test_a_finished_run_is_not_overwritten(trained, demo, script):
    before = (trained / "metrics.jsonl").read_bytes()
    done = script(SCRIPT, *demo.training(trained))
    assert done.code == 2 and "--resume" in done.error_line
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resuming_where_nothing_was_finished_starts_anew_and_foreign_checkpoints_stay(demo, script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")  # died before its first epoch ended
    done = script(SCRIPT, *demo.training(tmp_path / "run", epochs=1, resume=True))
    assert done.code == 0 and "starting anew" in done.out, done.err
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/projection_epoch6.pth").write_bytes(b"a night's work")
    refused = script(SCRIPT, *demo.training(tmp_path / "theirs"))
    assert refused.code == 2 and "another run" in refused.error_line
    assert (tmp_path / "theirs/projection_epoch6.pth").read_bytes() == b"a night's work"


def test_a_random_encoder_is_used_only_when_asked_for(demo, few, script, tmp_path):
    flags = demo.training(tmp_path / "run", epochs=1, foundation_dir=tmp_path / "CSBrain.pth")
    refused = script(SCRIPT, *flags)
    assert refused.code == 2 and "CSBrain.pth: no such checkpoint" in refused.error_line
    flags = demo.training(tmp_path / "run2", epochs=1, datasets_dir=few)
    asked = script(SCRIPT, *flags, "--no-use_pretrained_weights")
    assert asked.code == 0 and "RANDOM weights" in asked.out


def test_a_checkpoint_that_runs_code_or_has_other_shapes_is_refused(demo, script, tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"a": Hostile()}))
    torch.save({"module.patch_embedding.mask_encoding": torch.zeros(100)}, tmp_path / "other.pth")
    for name in ("hostile.pth", "other.pth"):
        done = script(SCRIPT, *demo.training(tmp_path / "run", foundation_dir=tmp_path / name))
        assert done.code == 2 and name in done.error_line
        assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ran").exists()


def test_a_store_without_validation_trials_is_refused(demo, script, tmp_path):
    rows = [(Trial("a", 0, "A01", "T", 1, 1), np.zeros((22, 1000), np.float32))]
    write_store(tmp_path / "store", {"sfreq": 250.0, "dataset": "BCICIV2a"}, [rows])
    done = script(SCRIPT, *demo.training(tmp_path / "run", datasets_dir=tmp_path / "store"))
    assert done.code == 2 and "no val trials" in done.error_line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("encoder", ["csbrain", "eegnet", "shallow"])
def test_trials_that_an_encoder_cannot_read_are_one_line(demo, script, tmp_path, encoder):
    store = small_store(tmp_path / "store", DESCRIPTION, [f"A0{k}" for k in range(1, 10)], seconds=0.2)
    done = script(SCRIPT, *demo.training(tmp_path / "run", datasets_dir=store, encoder=encoder))
    assert done.code == 2 and encoder in done.error_line


def test_a_store_of_version_1_is_refused_with_the_command_that_makes_it_anew(demo, script, tmp_path):
    import lmdb

    with lmdb.open(str(tmp_path / "store")) as env, env.begin(write=True) as txn:
        txn.put(b"meta", json.dumps({"format": "eeg2image-trials", "version": 1, "dataset": "BCICIV2a"}).encode())
    done = script(SCRIPT, *demo.training(tmp_path / "run", datasets_dir=tmp_path / "store"))
    assert done.code == 2 and "version 1" in done.error_line and "--overwrite" in done.error_line


# ---------------------------------------------------------------- other encoders, other people


def test_an_encoder_from_scratch_trains_from_the_first_epoch_and_decodes_from_its_checkpoint(
    demo, few, script, tmp_path
):
    """Without CSBrain.pth; what the run tested and what its checkpoint decodes is the same."""
    nowhere = {"foundation_dir": tmp_path / "nowhere.pth", "datasets_dir": few}
    done = script(SCRIPT, *demo.training(tmp_path / "run", encoder="eegnet", **nowhere))
    assert done.code == 0, done.err
    assert "encoder: eegnet, trained from scratch" in done.out and not list(tmp_path.rglob("token_cache"))
    first, second = (torch.load(tmp_path / f"run/projection_epoch{e}.pth", weights_only=True) for e in (1, 2))
    assert (first["encoder_name"], first["n_times"], first["sfreq"]) == ("eegnet", 1000, 250.0)
    trained = [k for k in first["encoder"] if k.endswith("weight")]
    assert all(not torch.equal(first["encoder"][k], second["encoder"][k]) for k in trained)
    decoded = script(
        "generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", generate_images=None, **nowhere)
    )
    assert decoded.code == 0, decoded.err
    ours = {row["index"]: row for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")}
    rows = read_jsonl(tmp_path / "out/decoded.jsonl")
    assert len(rows) == 4
    for row in rows:
        assert row["text"] == ours[row["index"]]["text"]
        a, b = (r["readouts"]["likelihood"]["probabilities"] for r in (row, ours[row["index"]]))
        assert a == pytest.approx(b, abs=1e-3)


def test_an_interrupted_run_with_an_encoder_from_scratch_resumes_to_the_same_weights(
    demo, few, script, tmp_path, monkeypatch
):
    """Between phases, and within a phase."""
    flags, run = {"epochs": 3, "encoder": "eegnet", "datasets_dir": few}, tmp_path / "broken"
    done = script(SCRIPT, *demo.training(tmp_path / "whole", **flags))
    assert done.code == 0, done.err
    for epoch in (2, 3):
        with interrupted_before(epoch, monkeypatch):
            assert script(SCRIPT, *demo.training(run, **flags), *(["--resume"] if epoch == 3 else [])).code == 130
        assert len(metrics(run)) == epoch - 1
    done = script(SCRIPT, *demo.training(run, **flags), "--resume")
    assert done.code == 0, done.err
    for part in ("projection", "encoder"):
        whole, resumed = (
            torch.load(d / "projection_epoch3.pth", weights_only=True)[part] for d in (tmp_path / "whole", run)
        )
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), part
    assert read_jsonl(tmp_path / "whole/decoded_test.jsonl") == read_jsonl(run / "decoded_test.jsonl")


def test_leaving_one_subject_out_tests_that_person_alone(demo, script, tmp_path):
    done = script(SCRIPT, *demo.training(tmp_path / "run", epochs=1, protocol="loso:A03"))
    assert done.code == 0 and "loso:A03: 288 / 88 / 48 train / val / test" in done.out, done.err
    rows = read_jsonl(tmp_path / "run/decoded_test.jsonl")
    assert {row["subject"] for row in rows} == {"A03"} and len(rows) == 48
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["test"]["keyword"]["people"] == 1 and results["val"]["keyword"]["people"] == 2
    flags = {"generate_images": None, "protocol": "loso:A03", "num_samples": 3}
    decoded = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", **flags))
    assert decoded.code == 0, decoded.err
    ours = {row["index"]: row["text"] for row in rows}
    for row in read_jsonl(tmp_path / "out/decoded.jsonl"):
        assert row["subject"] == "A03" and row["text"] == ours[row["index"]]


def test_within_a_person_of_two_sessions_nothing_validates_and_the_last_epoch_is_tested(demo, script, tmp_path):
    done = script(SCRIPT, *demo.training(tmp_path / "run", protocol="within:A03"))
    assert done.code == 0 and "24 / 0 / 24 train / val / test" in done.out, done.err
    assert "leaves no session to validate on" in done.out
    rows = read_jsonl(tmp_path / "run/decoded_test.jsonl")
    assert {(row["subject"], row["session"]) for row in rows} == {("A03", "E")} and len(rows) == 24
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["best_epoch"] == 2 and results["val"] == {} and results["selected_by"] == "none: the last epoch"
    assert [row["val"] for row in metrics(tmp_path / "run")] == [{}, {}]
    assert (tmp_path / "run/learning_curve.png").exists()


def test_the_encoders_learning_rate_is_its_own_unless_it_is_said(demo, script, tmp_path, monkeypatch):
    rates, optimizers = [], []
    original = torch.optim.AdamW.__init__

    def watched(self, groups, *args, **kwargs):
        original(self, groups, *args, **kwargs)
        rates.append([group["lr"] for group in self.param_groups])
        optimizers.append(self)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", watched)
    few = {"datasets_dir": small_store(tmp_path / "store", DESCRIPTION, ["A01", "A06", "A08"]), "warmup_epochs": 0,
           "epochs": 1, "lr": 2e-4}  # fmt: skip
    for flags in ({"train_encoder": True}, {"encoder": "eegnet"}, {"encoder": "eegnet", "encoder_lr": 3e-5}, {},
                  {"train_encoder": True, "layer_decay": 0.1}):  # fmt: skip
        run = tmp_path / f"run{len(rates)}"
        done = script(SCRIPT, *demo.training(run, **few, **flags))
        assert done.code == 0, done.err
    of_head = 2e-4
    assert rates[:4] == [[2e-4, 1e-4, of_head], [2e-4, 1e-3, of_head], [2e-4, 3e-5, of_head], [2e-4, of_head]]
    assert rates[4] == pytest.approx([2e-4, *(1e-4 * 0.1 ** (12 - k) for k in range(13)), of_head])
    at_the_end = [group["lr"] for group in optimizers[4].param_groups]
    assert all(0 < end <= start for start, end in zip(rates[4], at_the_end, strict=True)), at_the_end  # none rises


def test_lora_and_label_smoothing_are_what_the_flags_say(demo, script, tmp_path):
    few = {
        "datasets_dir": small_store(tmp_path / "store", DESCRIPTION, ["A01", "A06", "A08"]),
        "warmup_epochs": 0,
        "epochs": 1,
    }
    flags = {"lora_r": 2, "lora_alpha": 6, "lora_targets": ["k_proj", "o_proj"], "label_smoothing": 0.5}
    done = script(SCRIPT, *demo.training(tmp_path / "run", **few, **flags))
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run/lora_epoch1/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (2, 6, ["k_proj", "o_proj"])
    plain = script(SCRIPT, *demo.training(tmp_path / "plain", **few, **flags | {"label_smoothing": 0.0}))
    assert plain.code == 0 and metrics(tmp_path / "plain")[0]["train_loss"] < metrics(tmp_path / "run")[0]["train_loss"]
    few = {"datasets_dir": few["datasets_dir"], "generate_images": None, "num_samples": 2}
    decoded = script("generate.py", *demo.generation(tmp_path / "run", tmp_path / "out", **few))
    assert decoded.code == 0, decoded.err  # with the adapter's own rank and layers


def test_with_a_frozen_encoder_the_head_changes_nothing_of_the_text(demo, few, script, tmp_path):
    for name, weight in (("with", 1.0), ("without", 0.0)):
        done = script(SCRIPT, *demo.training(tmp_path / name, datasets_dir=few, lambda_cls=weight))
        assert done.code == 0, done.err
    a, b = (torch.load(tmp_path / name / "projection_epoch2.pth", weights_only=True) for name in ("with", "without"))
    assert set(a) - set(b) == {"head"} and all(
        torch.equal(a["projection"][k], b["projection"][k]) for k in a["projection"]
    )
    with_head, without = (read_jsonl(tmp_path / name / "decoded_test.jsonl") for name in ("with", "without"))
    for row, other in zip(with_head, without, strict=True):
        head = row["readouts"].pop("head")
        assert head["label"] == int(np.argmax(head["probabilities"]))
        assert {**row, "checksum": 0} == {**other, "checksum": 0}


def test_what_was_trained_with_a_mixer_mirrored_trials_and_adaptation_decodes_alike(demo, few, script, tmp_path):
    nowhere = {"foundation_dir": tmp_path / "nowhere.pth", "datasets_dir": few}
    more = {
        "encoder": "eegnet",
        "augment": ["mirror", "cutmix"],
        "mirror_average": True,
        "adapt": "im",
        "band": [4, 40],
    }
    flags = demo.training(
        tmp_path / "run", epochs=1, warmup_epochs=0, adapter="mixer", align="causal", **more, **nowhere
    )
    done = script(SCRIPT, *flags)
    assert done.code == 0, done.err
    again = demo.generation(tmp_path / "run", tmp_path / "out", generate_images=None, **nowhere)
    assert script("generate.py", *again).code == 0
    ours = {row["index"]: row for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")}
    rows = read_jsonl(tmp_path / "out/decoded.jsonl")
    assert {row["uses"] for row in (*rows, *ours.values())} == {"all trials, unlabelled (transductive)"}  # the most
    for row in rows:
        for name in ("likelihood", "head"):
            a, b = (of["readouts"][name]["probabilities"] for of in (row, ours[row["index"]]))
            assert a == pytest.approx(b, abs=1e-3)
    cached = script(SCRIPT, *demo.training(tmp_path / "no", datasets_dir=few, mirror_average=True))
    assert cached.code == 2 and "--mirror_average changes the signal of a trial" in cached.error_line
    for why, flags in (("tokens are kept", {}), ("--lambda_cls 0", nowhere | {"encoder": "eegnet", "lambda_cls": 0})):
        early = script(SCRIPT, *demo.training(tmp_path / "no", **{"datasets_dir": few, "adapt": "im"} | flags))
        assert early.code == 2 and why in early.error_line and not (tmp_path / "no/metrics.jsonl").exists()


def test_the_mirror_average_of_an_encoder_that_could_be_cached_is_decoded_again(demo, few, script, tmp_path):
    flags = {"datasets_dir": few, "epochs": 1, "warmup_epochs": 1, "mirror_average": True, "no_cache_features": True}
    done = script(SCRIPT, *demo.training(tmp_path / "run", **flags))
    assert done.code == 0, done.err
    again = demo.generation(tmp_path / "run", tmp_path / "out", generate_images=None, datasets_dir=few)
    assert script("generate.py", *again).code == 0
    ours = {row["index"]: row for row in read_jsonl(tmp_path / "run/decoded_test.jsonl")}
    for row in read_jsonl(tmp_path / "out/decoded.jsonl"):
        a, b = (of["readouts"]["head"]["probabilities"] for of in (row, ours[row["index"]]))
        assert a == pytest.approx(b, abs=1e-4)


def test_answers_that_earlier_trials_set_straight_are_decoded_anew_by_the_audit(demo, few, script, tmp_path):
    more = {"encoder": "eegnet", "foundation_dir": tmp_path / "nowhere.pth", "adapt": "prior_causal"}
    flags = demo.training(tmp_path / "run", datasets_dir=few, epochs=1, warmup_epochs=0, **more)
    assert script(SCRIPT, *flags).code == 0
    run, device = read_run(tmp_path / "run"), torch.device("cpu")
    (finding,) = decoded_findings(run, DESCRIPTION, open_store(few), None, device)
    assert finding.words == "its checkpoint decoded 16 trials anew, and 16 answers agree"
    run.argument["adapt"] = "im"  # the checkpoint knows better
    (finding,) = decoded_findings(run, DESCRIPTION, open_store(few), None, device)
    assert finding.words == "its checkpoint decoded 16 trials anew, and 16 answers agree"
    path = tmp_path / "run/projection_epoch1.pth"
    torch.save(torch.load(path, weights_only=True) | {"adapt": "im"}, path)
    (finding,) = decoded_findings(run, DESCRIPTION, open_store(few), None, device)
    assert finding.kind == "cannot" and "--adapt im" in finding.words
