import json

import numpy as np
import pytest
import torch

from datasets.alignment import ADAPTATIONS
from datasets.recording import Trial
from datasets.store import write_store
from models import BASELINES
from models.baselines import Data, RecordingOnly, band_power
from stages.adaptation import set_straight
from stages.rows import read_rows
from tests.conftest import flat, read_jsonl

TOKENS = {"linear_probe", "mlp"}


def flags(demo, folder, model, **more):
    return flat({
        "model": model, "datasets_dir": demo.store, "output_dir": folder, "foundation_dir": demo.csbrain, "cuda": -1,
        "epochs": 3, "token_pooling": "hemisphere",
    } | more)  # fmt: skip


@pytest.mark.parametrize("model", BASELINES)
def test_every_baseline_leaves_rows_scores_and_a_record(demo, script, tmp_path, model):
    if model in ("atcnet", "braindecode:"):
        pytest.importorskip("braindecode.models", exc_type=ImportError)
        model = {"braindecode:": "braindecode:EEGNeX"}.get(model, model)
    done = script("baseline.py", *flags(demo, tmp_path / "run", model, **({"epochs": 1} if model == "shallow" else {})))
    assert done.code == 0, done.err
    rows = read_jsonl(tmp_path / "run/decoded_test.jsonl")
    assert len(rows) == 96 and {row["subject"] for row in rows} == {"A08", "A09"}
    for row in rows:
        p = row["readouts"]["classifier"]["probabilities"]
        assert (
            len(p) == 4
            and sum(p) == pytest.approx(1, abs=1e-4)
            and np.argmax(p) == row["readouts"]["classifier"]["label"]
        )
    results, record = (json.loads((tmp_path / "run" / name).read_text()) for name in ("results.json", "run.json"))
    right = sum(row["readouts"]["classifier"]["label"] == row["true_label"] for row in rows)
    assert results["test"]["classifier"]["correct"] == right and ("encoder" in record["depends_on"]) == (
        model in TOKENS
    )
    if model in ("bandpower_lda", "csp_lda", "tangent_space"):
        assert right > 48  # of 96; the simulated effect is strong, and guessing reaches 33
    if model in ("best_constant", "recording_only"):
        assert right == 24
    assert script("evaluate.py", tmp_path / "run").code == 0


def test_the_same_command_twice_gives_the_same_rows_and_another_one_is_refused(demo, script, tmp_path):
    for folder in ("a", "b", "a"):
        assert script("baseline.py", *flags(demo, tmp_path / folder, "eegnet")).code == 0
    a, b = ((tmp_path / folder / "decoded_test.jsonl").read_bytes() for folder in ("a", "b"))
    assert a == b
    done = script("baseline.py", *flags(demo, tmp_path / "a", "eegnet", seed=1))
    assert done.code == 2 and "holds another run" in done.error_line


def test_answers_are_set_straight_where_it_is_asked_for(demo, script, tmp_path):
    for kind in ("none", "prior", "prior_causal"):
        done = script("baseline.py", *flags(demo, tmp_path / kind, "bandpower_lda", adapt=kind))
        assert done.code == 0, done.err
    plain, whole, causal = (
        read_rows(tmp_path / kind / "decoded_test.jsonl") for kind in ("none", "prior", "prior_causal")
    )
    for rows, kind in ((whole, "prior"), (causal, "prior_causal")):
        expected = set_straight(plain, kind)
        assert [row.readouts for row in rows] == [row.readouts for row in expected] != [row.readouts for row in plain]
        assert {row.uses for row in rows} == {ADAPTATIONS[kind].uses}
        sentences = {row.readouts["classifier"].label: row.text for row in rows}
        assert all(row.text == sentences[row.readouts["classifier"].label] for row in rows) and len(sentences) == 4


def test_the_best_validation_epoch_is_the_one_that_is_tested(demo, script, tmp_path):
    assert script("baseline.py", *flags(demo, tmp_path / "run", "linear_probe", epochs=8)).code == 0
    history = read_jsonl(tmp_path / "run/metrics.jsonl")
    best = json.loads((tmp_path / "run/results.json").read_text())["best_epoch"]
    assert (
        best == 1 + int(np.argmax([epoch["val"]["classifier"]["accuracy"] for epoch in history])) and len(history) == 8
    )
    shorter = tmp_path / "shorter"
    assert script("baseline.py", *flags(demo, shorter, "linear_probe", epochs=best)).code == 0
    assert (shorter / "decoded_test.jsonl").read_bytes() == (tmp_path / "run/decoded_test.jsonl").read_bytes()


def test_a_language_models_row_has_the_linear_probe_on_its_tokens_beside_it(demo, trained, script, tmp_path):
    pooling = json.loads((trained / "run.json").read_text())["arguments"]["token_pooling"]
    done = script("baseline.py", *flags(demo, tmp_path / "probe", "linear_probe", token_pooling=pooling))
    assert done.code == 0, done.err
    accuracy = json.loads((tmp_path / "probe/results.json").read_text())["test"]["classifier"]["accuracy"]
    out = script("evaluate.py", trained, tmp_path / "probe").out
    line = next(line for line in out.splitlines() if line.startswith("| trained | keyword"))
    heads = next(line for line in out.splitlines() if line.startswith("| run |"))
    cells = dict(zip(heads.split("|"), line.split("|"), strict=True))
    assert cells[" linear probe "].strip() == f"{100 * accuracy:.1f} %"


def test_the_control_is_trained_and_tested_on_permuted_labels(demo, script, tmp_path):
    for name, more in (("run", {}), ("run_shuffled", {"shuffle_labels": True})):
        assert script("baseline.py", *flags(demo, tmp_path / name, "bandpower_lda", **more)).code == 0
    out = script("evaluate.py", tmp_path / "run").out
    assert "at its level" in out or "below its level" in out
    true, shuffled = (read_jsonl(tmp_path / name / "decoded_test.jsonl") for name in ("run", "run_shuffled"))
    assert [r["true_label"] for r in true] != [r["true_label"] for r in shuffled]


def test_the_recording_tells_what_its_kind_held_in_training():
    def data(labels, sessions):
        return Data(None, np.array(labels), [(session, 1) for session in sessions], 200.0)

    baseline = RecordingOnly(3)
    baseline.fit(data([0, 0, 1, 2, 2, 2], "aabbbb"), data([], ""))
    found = baseline.predict(data([0, 0, 0], "abc"))
    assert np.allclose(found, [[1, 0, 0], [0, 0.25, 0.75], [2 / 6, 1 / 6, 3 / 6]])


def test_band_power_of_a_sine_is_in_its_band():
    t = np.arange(0, 4, 1 / 200)
    power = band_power(np.sin(2 * np.pi * 10 * t)[None, None], 200.0)  # one electrode
    assert power.shape == (1, 5) and np.argmax(power) == 1


@pytest.mark.parametrize("more, message", [
    ({"model": "nonsense"}, "invalid choice"), ({"epochs": 0}, "--epochs"), ({"datasets_dir": "nowhere"},
    "not an LMDB"),
    ({"model": "mlp", "foundation_dir": "nowhere.pth"}, "nowhere.pth"), ({"protocol": "loso"}, "--protocol"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(demo, script, tmp_path, more, message):
    done = script("baseline.py", *flags(demo, tmp_path / "run", "eegnet") if "model" not in more
                  else flags(demo, tmp_path / "run", more["model"]), *flat({k: v for k,
                  v in more.items() if k != "model"}))  # fmt: skip
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "run/decoded_test.jsonl").exists()


def test_networks_are_the_ones_of_the_encoders_table_and_gradients_reach_all(demo):
    from models.baselines import eegnet, shallow

    for make, x in ((eegnet, torch.randn(3, 22, 512)), (shallow, torch.randn(3, 22, 1000))):
        trained = make(4, 0, 1, torch.device("cpu"))
        net = trained.net(tuple(x.shape[1:]), 4, trained.sfreq).train()
        net(x).square().sum().backward()
        assert net(x).shape == (3, 4) and all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("model", ["csp_lda", "tangent_space"])
def test_trials_that_no_decoder_can_be_made_of_are_one_line(script, tmp_path, model):
    trials = [(Trial(f"A0{k % 9 + 1}-{k}", k % 4, f"A0{k % 9 + 1}", "T", 1, k), np.zeros((22, 200))) for k in range(72)]
    write_store(
        tmp_path / "store", {"sfreq": 200.0, "dataset": "BCICIV2a"}, [[(t, x.astype("<f4")) for t, x in trials]]
    )
    flags = ("--datasets_dir", tmp_path / "store", "--output_dir", tmp_path / "run", "--cuda", -1)
    done = script("baseline.py", "--model", model, *flags)
    assert done.code == 2 and f"{model} cannot be trained on these trials" in done.error_line, done.err


def test_a_store_that_holds_nothing_or_labels_of_no_class_is_said_to(script, tmp_path):
    write_store(tmp_path / "empty", {"sfreq": 200.0, "dataset": "BCICIV2a"}, [])
    done = script("evaluate.py", "--audit", tmp_path / "empty", "--cuda", -1)
    assert done.code == 2 and "has no trials" in done.error_line
    rng = np.random.default_rng(0)
    trials = [(Trial(f"A01-{k}", 90 + k % 2, "A01", "T", 1, k), rng.standard_normal((22, 200))) for k in range(8)]
    write_store(tmp_path / "odd", {"sfreq": 200.0, "dataset": "BCICIV2a"}, [[(t, x.astype("<f4")) for t, x in trials]])
    done = script("evaluate.py", "--audit", tmp_path / "odd", "--protocol", "later:A01", "--cuda", -1)
    assert done.code == 2 and "8 trials have a label of none of the 4 classes" in done.out
