"""The transport: one reading of the certificates serves all clients, and no text has the password of a proxy."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Iterator

import httpcore2
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent
from strange_servers import COMMIT, StrangeServer, answered, as_hub

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.push import transport
from hf_mpwriter.push.classify import ClientError, plain, text_of
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.clock import Clock
from hf_mpwriter.push.transport import Transport


def made() -> Transport:
    """A transport for some Hub."""
    return Transport("https://hub", Clock())


class Readings:
    """The readings of the certificates of the system."""

    def __init__(self) -> None:
        self.error: Exception | None = None  # what the next one raises
        self.count = 0  # of those that went well
        self._read = httpcore2.default_ssl_context

    def __call__(self, **options: bool) -> ssl.SSLContext:
        """Read them."""
        error, self.error = self.error, None
        if error:
            raise error
        self.count += 1
        return self._read(**options)


@pytest.fixture
def readings(monkeypatch) -> Iterator[Readings]:
    """Counts them; nothing was read before."""
    monkeypatch.setattr(httpcore2, "default_ssl_context", counted := Readings())
    transport._certificates.cache_clear()
    yield counted
    transport._certificates.cache_clear()


def test_a_process_reads_the_certificates_once(readings, monkeypatch):
    """A push that lingers makes a client for each job, and a client has a transport for each proxy."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    for _ in range(3):
        made()._client().close()
    assert readings.count == 1


def test_certificates_that_cannot_be_read_are_read_again(readings):
    """What is wrong with the environment is a ClientError, of the client that needs it and no later one."""
    readings.error = FileNotFoundError("no certificates")
    with pytest.raises(ClientError, match="FileNotFoundError: no certificates"):
        made()._client()
    made()._client().close()
    assert readings.count == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy", ["http://u:PASS#x@h", "u:PASS#x@h", "http://u:PASS/x@h", "http://u:PASS?x@h", "socks9://u:PASS@h:1"]
)
def test_a_proxy_that_is_no_url_is_named_without_its_password(monkeypatch, name, proxy):
    """An error of the parser quotes it: what it takes for a port may be the password."""
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ClientError) as raised:
        made()._client()
    verdict = plain(raised.value, Destination("https://hub", "me/run"), {})
    told = [*traceback.format_exception(raised.value), text_of(raised.value), repr(verdict)]
    assert [text for text in told if "PASS" in text] == []
    assert name in text_of(raised.value)


def test_no_list_of_agents_that_a_hub_answers_is_kept_and_spoils_later_requests(tmp_path, monkeypatch):
    """The client believes it for a day, at every Hub, and fails at each request if it is not as it should be."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"))
    monkeypatch.setattr(_detect_agent, "_registry", None)
    monkeypatch.setenv("NO_PROXY", "*")
    is_list = "/api/agent-harnesses"
    with StrangeServer(lambda _, asked: answered(["x"]) if asked.path == is_list else as_hub(asked, {})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        assert Hub(Destination(server.endpoint, "me/run")).head() == COMMIT
    assert is_list not in [asked.path for asked in server.asked]
    assert not (tmp_path / "agents.json").exists()
