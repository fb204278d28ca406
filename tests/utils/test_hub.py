"""What tells a model from another: the same before and after its weights are fetched."""

import huggingface_hub
import pytest

from utils import hub


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
