"""Why an address cannot be reached: a proxy without its package, one that does not answer, an address that is none."""

from importlib.util import find_spec

import pytest
import requests

from utils import hub
from utils.download import download
from utils.errors import UserError
from utils.network import trouble

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
NO_SOCKS = pytest.mark.skipif(bool(find_spec("socks") or find_spec("socksio")), reason="SOCKS packages are installed")


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@NO_SOCKS
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_download_through_a_socks_proxy_says_which_package_is_missing(variable, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, "socks5h://me:secret@127.0.0.1:9")
    with pytest.raises(
        UserError, match=rf"SOCKS proxy is set in {variable} .*pip install 'requests\[socks\]'"
    ) as error:
        download(["https://127.0.0.1:9/A01T.mat"], tmp_path / "A01T.mat", attempts=1)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_proxy_that_does_not_answer_is_named_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    with pytest.raises(
        UserError, match="ProxyError through the proxy http://127.0.0.1:9 that HTTPS_PROXY sets"
    ) as error:
        download(["https://127.0.0.2:9/A01T.mat"], tmp_path / "A01T.mat", attempts=1)
    assert "secret" not in str(error.value)


def test_without_a_proxy_or_around_it_the_error_alone_is_said(monkeypatch):
    assert trouble(requests.ConnectionError("no"), "https://example.org/x") == "ConnectionError"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert trouble(requests.ConnectionError("no"), "https://example.org/x") == "ConnectionError"
    assert "localhost:8000' is no address" in trouble(requests.exceptions.InvalidSchema("no"), "localhost:8000")
    untrusted = requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert "REQUESTS_CA_BUNDLE" in trouble(untrusted, "https://example.org/x")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:no_port")  # is no reason for another error
    assert (
        trouble(ValueError("no"), "https://other.org")
        == "ValueError through the proxy http://proxy:no_port that HTTPS_PROXY sets"
    )
    answer = requests.Response()
    answer.status_code = 404
    assert trouble(requests.HTTPError("no", response=answer), "https://other.org/x") == "HTTPError 404"


@pytest.fixture
def asks(monkeypatch):
    """The hub is asked, although tests are offline, at an address of this machine."""
    from huggingface_hub import close_session, constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def ask(endpoint: str) -> str:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        hub.hub_trouble.cache_clear()
        close_session()
        return hub.hub_trouble()

    yield ask
    hub.hub_trouble.cache_clear()
    close_session()


def test_the_hub_says_why_it_cannot_be_reached(asks, monkeypatch, capsys):
    assert asks("http://127.0.0.1:9") == "ConnectError" and not hub.hub_answers()
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    said = "'hf-mirror.com' is no address; expected https://hf-mirror.com; HF_ENDPOINT names it"
    assert asks("hf-mirror.com") == said
    assert f"hf-mirror.com cannot be reached ({said})" in capsys.readouterr().out
    with pytest.raises(UserError, match="--llm a/model: .* cannot be reached .*expected https://hf-mirror.com"):
        hub.fetch_nothing("a/model", "config.json", "--llm")


@NO_SOCKS
def test_the_hub_behind_a_socks_proxy_says_which_package_is_missing(asks, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert "pip install 'requests[socks]' 'httpx[socks]'" in asks("https://127.0.0.1:9")
