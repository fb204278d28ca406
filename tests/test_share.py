"""A run goes to the hub when it is asked for, whole and without what is private, and comes back from there."""

import json
import os
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from tests.conftest import read_jsonl, run_process
from tests.hub_server import LocalHub, serving
from tests.stages.test_cards import SCORE, a_run
from utils.checkpoints import save_second_form

SENT = {
    "README.md", "config.json", "model.safetensors", "results.json", "run.json", "metrics.jsonl", "learning_curve.png",
}  # fmt: skip


@pytest.fixture
def run(trained, tmp_path):
    """A finished text run, in a folder of its own."""
    return shutil.copytree(trained, tmp_path / "text")


def test_a_run_that_was_sent_is_read_by_its_address(script, local_hub, demo, run, tmp_path):
    """What is decoded is the same, from the run's folder and from the hub; and --revision and --lora_dir work."""
    (run / "precious.pth").write_bytes(b"x")
    shown = script("share.py", run, "me/text", "--show")
    assert shown.code == 0 and "nothing was sent" in shown.out and not local_hub.repos and not local_hub.asked
    done = script("share.py", run, "me/text", "--private")
    assert done.code == 0 and "sent: http" in done.out, done.err
    files = local_hub.repos["me/text"]["main"]
    best = json.loads((run / "results.json").read_text())["best_epoch"]
    adapter = {f"lora_epoch{best}/adapter_config.json", f"lora_epoch{best}/adapter_model.safetensors"}
    llm = {f"language_model/{path.name}" for path in demo.llm.iterdir()}
    assert set(files) == SENT | adapter | llm and "me/text" in local_hub.private
    texts = b"".join(content for name, content in files.items() if name.endswith((".json", ".md")))
    assert str(demo.folder).encode() not in texts and b"TinyLlama-1.1B-Chat-v1.0" in texts

    flags = {"stage": "decode", "generate_images": None, "num_samples": 2}  # the language model comes along
    assert script("generate.py", *demo.generation(run, tmp_path / "here", **flags)).code == 0
    local_hub.add("me/text", files, "v1")
    local_hub.repos["me/text"]["main"] = {"README.md": b"emptied"}
    local_hub.add("lab/csbrain", {"CSBrain.pth": demo.csbrain.read_bytes(), "config.json": b"{}"})
    flags |= {"foundation_dir": "lab/csbrain"}
    far = script("generate.py", *demo.generation("me/text@v1", tmp_path / "far", **flags))
    assert far.code == 0, far.err
    assert read_jsonl(tmp_path / "far/decoded.jsonl") == read_jsonl(tmp_path / "here/decoded.jsonl")
    local_hub.add("me/text", files | {"decoded_test.jsonl": (run / "decoded_test.jsonl").read_bytes()}, "rows")
    table = script("evaluate.py", "me/text@rows")
    assert table.code == 0 and "me/text" in table.out, table.err
    without = script("evaluate.py", "me/text@v1")
    assert without.code == 2 and "no decoded_test.jsonl" in without.error_line
    gone = script("generate.py", *demo.generation("me/text", tmp_path / "gone", **flags))
    assert gone.code == 2 and "me/text: has no results.json" in gone.error_line


@pytest.fixture
def small(tmp_path):
    """What share.py looks at of a finished run, without the run."""
    folder, _ = a_run(tmp_path / "small", {"llm": "/home/me/models/tiny llm", "regions": ["frontal/left", "~/x/y"]})
    save_second_form(
        {"epoch": 2, "llm": "/home/me/models/TinyLlama", "seen": ["A01/T"]}, folder, "projection_epoch2.pth"
    )
    for name in ("last.pth", "decoded_test.jsonl", "timing.jsonl", "notes.txt"):
        (folder / name).write_bytes(b"/home/me/x")
    return folder


def test_paths_of_this_machine_stay_here_and_nothing_else_is_changed(script, local_hub, small):
    assert script("share.py", small, "me/small", "--rows", "--license", "mit").code == 0
    files = local_hub.repos["me/small"]["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "results.json", "run.json",
                          "decoded_test.jsonl"}  # fmt: skip
    config, record = (json.loads(files[name]) for name in ("config.json", "run.json"))
    assert config["llm"] == "TinyLlama" and config["seen"] == ["A01/T"]
    assert record["arguments"]["llm"] == "tiny llm" and record["arguments"]["regions"] == ["frontal/left", "y"]
    assert record["command"] == "python finetune_eeg_llm.py --encoder eegnet --model_dir run"
    assert files["decoded_test.jsonl"] == b"/home/me/x"  # rows are signed
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.license_name is None and b"<!--" not in files["README.md"]
    assert json.loads((small / "config.json").read_text())["llm"] == "/home/me/models/TinyLlama"
    assert not (small / "README.md").exists()  # looking and sending write nothing here


def test_a_control_that_is_finished_later_and_what_somebody_wrote_are_sent(script, local_hub, small):
    a_run(small.with_name("small_shuffled"), {"shuffle_labels": True}, SCORE | {"accuracy": 0.24})
    assert script("share.py", small, "me/small").code == 0
    assert b"shuffled-label control | keyword | 24.0 %" in local_hub.repos["me/small"]["main"]["README.md"]
    (small / "README.md").write_text("---\nlicense: mit\n---\n\n# Ours\n")
    assert script("share.py", small, "me/small").code == 0
    assert b"# Ours" in local_hub.repos["me/small"]["main"]["README.md"]


@pytest.mark.parametrize("token, fails_with, said", [
    ("", None, "no token for the hub; run `hf auth login`"),
    ("hf_wrong", None, "the token may not write there"),
    ("hf_right", 403, "the token may not write there"),
    ("hf_right", 500, "try again later"),
])  # fmt: skip
def test_what_the_hub_refuses_is_one_line(script, local_hub, small, monkeypatch, token, fails_with, said):
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", token)
    local_hub.fails_with = fails_with
    done = script("share.py", small, "me/small")
    assert done.code == 2 and said in done.error_line
    assert not local_hub.repos.get("me/small")


def test_a_public_repository_is_no_private_one(script, local_hub, small):
    local_hub.add("me/small", {"README.md": b"x"})
    done = script("share.py", small, "me/small", "--private")
    assert done.code == 2 and "is there and public; nothing was sent" in done.error_line
    assert local_hub.repos["me/small"]["main"] == {"README.md": b"x"}


@pytest.mark.parametrize("change, said", [
    (lambda run: (run / "results.json").unlink(), "has no results.json"),
    (lambda run: (run / "run.json").write_text("{"), "run.json"),
    (lambda run: (run / "results.json").write_text('{"best_epoch": 2}'), "run.json|results.json"),
    (lambda run: (run / "model.safetensors").unlink(), "has no model.safetensors"),
    (lambda run: (run / "config.json").write_bytes(b"\xff"), "config.json"),
    (lambda run: (run / "README.md").write_bytes(b"\xff"), "README.md"),
    (lambda run: (run / "README.md").write_text("---\nlicense: [\n---\n"), "README.md.*mend its head"),
    (lambda run: save_second_form({"epoch": 1}, run, "x"), "weights are of epoch 1, its results of epoch 2"),
])  # fmt: skip
def test_a_run_that_is_not_whole_is_not_sent(script, local_hub, small, change, said):
    change(small)
    done = script("share.py", small, "me/small")
    assert done.code == 2 and re.search(said, done.error_line) and not local_hub.repos


def test_the_script_finds_the_hub_that_the_environment_names(small, tmp_path):
    hub = LocalHub()
    with serving(hub) as address:
        env = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.token}
        env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = run_process("share.py", small, "me/small", env=env)
    assert done.code == 0, done.err
    assert "config.json" in hub.repos["me/small"]["main"]
    gone = run_process("share.py", small, "me/small", env=env)
    assert gone.code == 2 and "cannot be reached" in gone.error_line
