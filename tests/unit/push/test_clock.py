"""The clock: whatever drips, a request ends in its time; content has a least rate instead."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import httpx2
import pytest
from huggingface_hub import get_session
from strange_servers import Asked, StrangeServer, answered

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.push import clock as clocks
from hf_mpwriter.push import transport as transports
from hf_mpwriter.push.classify import AnswerError, classify
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.clock import Clock, OverdueError
from hf_mpwriter.push.transport import Transport

LIMIT = 0.4  # seconds
SLACK = 30.0  # seconds more, on a busy machine; what drips here would do so for minutes
FIELDS = {"etag": '"0"', "x-repo-commit": "1" * 40}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No proxy but those of a test."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture
def ends() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A block that ends by the clock, in time."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        began = time.monotonic()
        with pytest.raises(OverdueError) as raised:
            yield
        assert time.monotonic() - began < LIMIT + SLACK
        assert classify(raised.value).cause is Cause.TIMEOUT

    return block


def hub_at(server: StrangeServer, clock: Clock) -> Hub:
    """A run on that server."""
    return Hub(Destination(server.endpoint, "me/run", path_in_repo="tensorboard/exp1"), clock)


def drips(begin: bytes, data: bytes) -> Callable[[StrangeServer, Asked], Iterable[bytes]]:
    """Answers that begin, and then never end."""

    def answer(server: StrangeServer, _: Asked) -> Iterator[bytes]:
        yield begin
        yield from server.drip(data)

    return answer


DRIPPING = {
    "nothing": (b"", b""),
    "the status": (b"HTTP/1.1 2", b"0"),
    "a header": (HEAD + b"x-long: ", b"a"),
    "headers": (HEAD, b"x-more: 1\r\n"),
    "answers before the answer": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a body": (HEAD + b"content-length: 1000000\r\n\r\n", b" "),
    "a body in pieces": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a body to its end": (HEAD + b"connection: close\r\n\r\n", b" "),
    "a page of an error": (b"HTTP/1.1 403 No\r\ncontent-length: 1000000\r\n\r\n", b"<"),
    "what is thrown away": (b"HTTP/1.1 302 There\r\nlocation: /x\r\ncontent-length: 100000\r\n\r\n", b"a"),
}


@pytest.mark.parametrize("where", DRIPPING)
def test_a_question_ends_in_its_time_wherever_the_answer_drips(ends, where):
    """Each byte comes well within the limit of a read."""
    with StrangeServer(drips(*DRIPPING[where])) as server, ends():
        hub_at(server, Clock(LIMIT)).head()


def test_a_hub_that_never_ends_its_handshake_ends_in_its_time_too(ends):
    """TLS waits for the first byte of an answer that never comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ends():
        where = f"https://127.0.0.1:{silent.getsockname()[1]}"
        Hub(Destination(where, "me/run"), Clock(LIMIT)).head()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_drips_ends_in_its_time_too(ends, monkeypatch, scheme):
    """Whether it answers for the Hub, or to CONNECT."""
    monkeypatch.delenv("NO_PROXY")
    with StrangeServer(drips(*DRIPPING["a header"])) as server, ends():
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", server.endpoint)
        Hub(Destination(f"{scheme}://hub.invalid", "me/run"), Clock(LIMIT)).head()
    assert server.asked[0].method == ("GET" if scheme == "http" else "CONNECT")


def test_a_hub_that_takes_what_is_sent_in_drips_ends_too(ends):
    """The rest of a body waits in the buffers of both; then each write takes long."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        Transport(url, clock := Clock(LIMIT))
        with ends(), contextlib.ExitStack() as taken:

            def take() -> None:
                connection = taken.enter_context(listening.accept()[0])
                with contextlib.suppress(OSError):
                    while clock.left > 0 and connection.recv(1):
                        time.sleep(0.01)

            thread = threading.Thread(target=take, daemon=True)
            thread.start()
            get_session().put(f"{url}/content", content=bytes(1 << 25))
        thread.join(SLACK)


def pages(server: StrangeServer, asked: Asked) -> Iterable[bytes]:
    """Empty pages of a tree; that of the branch `long` has no last one, and that of `slow` comes slowly, too."""
    server.over.wait(0.02 if "/tree/slow" in asked.path else 0.0)
    link = {} if "/tree/main" in asked.path else {"link": f'<{server.endpoint}{asked.path}>; rel="next"'}
    return answered([], **link)


def test_pages_without_end_end(ends):
    """Each page answers soon and names the next one: the pages of one question share its time."""
    with StrangeServer(pages) as server, ends():
        hub_at(server, Clock(LIMIT)).tree("slow")


def test_answers_to_one_question_are_bounded_together(monkeypatch):
    """Pages that come quickly would fill the memory; of a next question the count begins anew."""
    monkeypatch.setattr(transports, "QUESTION_LIMIT", 8 * transports.LEAST_ANSWER)
    with StrangeServer(pages) as server:
        hub = hub_at(server, Clock(30.0))
        for _ in range(10):
            assert hub.tree("main") == {}
        with pytest.raises(AnswerError, match="longer than those of any Hub"):
            hub.tree("long")


@pytest.mark.parametrize("status", [302, 403, 500])
def test_only_a_content_may_have_its_size(monkeypatch, tmp_path, status):
    """What is said in its place is held in memory: a redirect, an error."""
    monkeypatch.setattr(transports, "ANSWER_LIMIT", 1 << 16)

    def answer(server: StrangeServer, asked: Asked) -> Iterator[bytes]:
        if asked.method == "GET":
            yield from answered(bytes(1 << 18), status, location=f"{server.endpoint}/x", **FIELDS)
        else:
            yield from answered(b"", **FIELDS | {"content-length": str(1 << 20)})

    with StrangeServer(answer) as server, pytest.raises(AnswerError):
        hub_at(server, Clock(20.0)).copy("a", "main", 1 << 30, str(tmp_path / "scratch")).__enter__()


def test_a_pause_of_the_client_counts(ends):
    """It tries again after each 503, for half a minute in all."""
    with StrangeServer(lambda *_: answered({}, 503)) as server, ends():
        hub_at(server, Clock(LIMIT)).tree("main")


def test_a_name_that_is_never_resolved_ends_in_its_time(ends, monkeypatch):
    """`getaddrinfo` obeys no timeout."""
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait())
    with ends():
        Hub(Destination("http://hub.invalid", "me/run"), Clock(LIMIT)).head()
    over.set()


def test_the_first_address_that_can_be_reached_is_taken(monkeypatch):
    """A name may have addresses that no way leads to."""
    with StrangeServer(lambda *_: answered({"sha": "1" * 40, "id": "me/run"})) as server:
        port = int(server.endpoint.rpartition(":")[2])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.9.9.9", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        where = Destination(f"http://hub.invalid:{port}", "me/run")
        assert Hub(where, Clock(30.0)).head() == "1" * 40
        monkeypatch.undo()
        with pytest.raises(httpx2.ConnectError):
            Hub(Destination("http://127.0.0.1:9", "me/run"), Clock(30.0)).head()


def content(size: int, pieces: int) -> Callable[[StrangeServer, Asked], Iterable[bytes]]:
    """Answers of a file whose pieces come one after the other."""
    head = FIELDS | {"content-length": str(size)}

    def answer(server: StrangeServer, asked: Asked) -> Iterator[bytes]:
        yield from answered(b"", **head)
        for _ in range(pieces if asked.method == "GET" else 0):
            server.over.wait(0.1)
            yield bytes(size // pieces)

    return answer


def test_content_has_no_end_but_a_least_rate(ends, monkeypatch, tmp_path):
    """What comes at that rate may take many times what a question may; a stop costs what a stop may."""
    monkeypatch.setattr(clocks, "LEAST_RATE", 5e4)  # bytes per second: a quick piece gives all of the time back
    monkeypatch.setattr(transports, "QUESTION", 0.0)
    for size, is_quick in ((2_400_000, True), (2_400, False)):
        with StrangeServer(content(size, 24)) as server, contextlib.ExitStack() as stack:
            if not is_quick:
                stack.enter_context(ends())
            with hub_at(server, Clock(2.0)).copy("a", "main", size, str(tmp_path / "scratch")) as copy:
                assert os.path.getsize(copy) == size


def test_what_has_come_quickly_pays_for_no_stop():
    """The clock never has more than its limit, and a pause that a person is asked for costs nothing."""
    clock = Clock(2.0)
    clock.give(-1.5)
    clock.give(1e9)
    assert clock.left == pytest.approx(2.0)
    clock.pause(0.1, is_wished=True)
    assert clock.left == pytest.approx(1.9, abs=0.01)
    patient = Clock(2.0, is_patient=True)
    patient.pause(0.1, is_wished=True)
    assert patient.left == pytest.approx(2.0, abs=0.01)


def test_content_that_goes_is_told_now_and_then(monkeypatch):
    """So the process of a push is not given up while it goes; a request without content does not count."""
    monkeypatch.setattr(clocks, "SENDS_EVERY", 0.0)
    told = list[bool]()
    with StrangeServer(lambda *_: answered({})) as server:
        Transport(server.endpoint, Clock(30.0, sends=lambda: told.append(True)))
        get_session().post(f"{server.endpoint}/x", content=b"x")
        assert told == []
        get_session().put(f"{server.endpoint}/x", content=bytes(3 * transports.SENT_AT_ONCE))
        assert len(told) == 3
