"""A run goes to the hub when it is asked for, whole and without what is private, and comes back from there."""

import json
import shutil

import pytest

from tests.conftest import read_jsonl

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
    shutil.copytree(run, run.with_name("text_shuffled"))
    shown = script("share.py", run, "me/text", "--show")
    assert shown.code == 0 and "nothing was sent" in shown.out and not local_hub.repos and not local_hub.asked
    done = script("share.py", run, "me/text", "--private")
    assert done.code == 0 and "sent: http" in done.out, done.err
    files = local_hub.repos["me/text"]["main"]
    best = json.loads((run / "results.json").read_text())["best_epoch"]
    adapter = {f"lora_epoch{best}/adapter_config.json", f"lora_epoch{best}/adapter_model.safetensors"}
    assert set(files) == SENT | adapter and "me/text" in local_hub.private
    texts = b"".join(content for name, content in files.items() if name.endswith((".json", ".md")))
    assert str(demo.folder).encode() not in texts and b"TinyLlama-1.1B-Chat-v1.0" in texts

    flags = {"llm": demo.llm, "stage": "decode", "generate_images": None, "num_samples": 2}
    assert script("generate.py", *demo.generation(run, tmp_path / "here", **flags)).code == 0
    local_hub.add("me/text", files, "v1")
    local_hub.repos["me/text"]["main"] = {"README.md": b"emptied"}
    shutil.copytree(demo.csbrain.parent, tmp_path / "foundation", ignore=lambda _, names: set(names) - {"CSBrain.pth"})
    local_hub.add("lab/csbrain", {"CSBrain.pth": demo.csbrain.read_bytes(), "config.json": b"{}"})
    flags |= {"foundation_dir": "lab/csbrain"}
    far = script("generate.py", *demo.generation("me/text@v1", tmp_path / "far", **flags))
    assert far.code == 0, far.err
    assert read_jsonl(tmp_path / "far/decoded.jsonl") == read_jsonl(tmp_path / "here/decoded.jsonl")
    gone = script("generate.py", *demo.generation("me/text", tmp_path / "gone", **flags))
    assert gone.code == 2 and "me/text: has no results.json" in gone.error_line
