"""What tells a model from another: the same before and after its weights are fetched."""

import os
from pathlib import Path

import huggingface_hub
import pytest

from utils import hub
from utils.errors import UserError


@pytest.fixture
def a_hub(monkeypatch, tmp_path):
    """A hub with one model, of which nothing is on this machine yet; a list of what was fetched."""
    cached, fetched = {}, []

    def download(name, file, **_):
        if (name, file) != ("someone/model", "model_index.json"):
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        fetched.append(file)
        cached[name, file] = str(tmp_path / "snapshots/0123abc" / file)
        return cached[name, file]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: cached.get((name, file)))
    return fetched


def test_an_address_is_the_same_model_before_and_after_its_first_use(a_hub, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    assert hub.model_identity("someone/model") == "someone/model 0123abc"
    assert hub.model_identity("someone/model") == "someone/model 0123abc" and a_hub == ["model_index.json"]


def test_what_was_not_known_offline_is_asked_again(a_hub, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    assert hub.model_identity("someone/model") == "someone/model " and not a_hub
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    assert hub.model_identity("someone/model") == "someone/model 0123abc"
    assert hub.model_identity("no address at all") == "no address at all "


def test_a_folder_is_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = hub.model_identity(str(tmp_path))
    hub._of_files.cache_clear()
    assert hub.model_identity(str(tmp_path)) == before
    (tmp_path / "config.json").write_text("[]")
    hub._of_files.cache_clear()
    assert hub.model_identity(str(tmp_path)) != before != hub.model_identity(str(tmp_path / "config.json"))
    now = hub.model_identity(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.json")  # to read either would never end
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    hub._of_files.cache_clear()
    assert hub.model_identity(str(tmp_path)) == now


# ---------------------------------------------------------------- a run's address where a path is asked for


RUN = {"results.json": b"{}", "config.json": b"{}", "lora_epoch1/adapter_config.json": b"{}", "last.pth": b"x",
       "model.safetensors": b"1", "code.py": b"raise SystemExit", "precious.pkl": b"x"}  # fmt: skip


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_address_becomes_a_folder_of_plain_files_and_is_there_without_the_hub(local_hub, monkeypatch):
    local_hub.add("me/run", RUN)
    local_hub.add("me/run", RUN | {"model.safetensors": b"2"}, "v2")
    for place, weights in (("me/run", b"1"), ("me/run@v2", b"2"), ("me/run@main", b"1")):
        folder = hub.local_folder(place, "results.json")
        assert names(folder) == {"results.json", "config.json", "lora_epoch1/adapter_config.json", "model.safetensors"}
        assert (folder / "model.safetensors").read_bytes() == weights
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    local_hub.asked.clear()
    assert (hub.local_folder("me/run@v2", "results.json") / "model.safetensors").read_bytes() == b"2"
    assert not local_hub.asked
    with pytest.raises(UserError, match="me/other: no such folder here, not in the hub's cache"):
        hub.local_folder("me/other", "results.json")


def test_a_path_that_is_there_always_wins_and_a_mistyped_one_is_not_sent_to_the_hub(local_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me/run").mkdir(parents=True)
    local_hub.add("me/run", RUN)
    for place in (
        "me/run",
        "me/rum",
        "me/run/x",
        "elsewhere/projection_epoch3.pth",
        "/abs/run",
        "run",
        "a/b/c",
        "../x",
    ):
        assert hub.local_folder(place, "results.json") == Path(place)
    assert not local_hub.asked
    assert hub.local_folder("me/run@main", "results.json") != Path("me/run@main")  # said so


@pytest.mark.parametrize("place, message", [
    ("me/nobody", "me/nobody: no such folder here, no such model on http.*HF_TOKEN"),
    ("me/secret", "me/secret: no such folder here, no such model on http.*HF_TOKEN"),
    ("me/run@v9", "me/run has no revision v9"),
    ("lab/llm", "lab/llm: has no results.json, so share.py did not send it"),
])  # fmt: skip
def test_what_cannot_be_had_is_one_line(local_hub, monkeypatch, place, message):
    for repo, files in (
        ("me/run", RUN),
        ("me/secret", RUN),
        ("lab/llm", {"config.json": b"{}", "x.safetensors": b"x"}),
    ):
        local_hub.add(repo, files)
    local_hub.private.add("me/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match=message):
        hub.local_folder(place, "results.json")
    assert not any("x.safetensors" in path for path in local_hub.asked)


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_an_ill_hub_is_one_line(local_hub, monkeypatch, code):
    local_hub.fails_with = code
    monkeypatch.setattr("time.sleep", lambda _: None)  # it is asked again some times
    with pytest.raises(UserError, match="me/run"):
        hub.local_folder("me/run", "results.json")
