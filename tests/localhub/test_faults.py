"""Faults of the local Hub: what a client sees, what the Hub has done by then, and that other requests are unharmed."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import time

import pytest
from hub_clients import REPO, SECONDS, ask, commit, file, offer, popen_client
from programs import wait_for

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.endpoints.routing import API_THREADS
from hf_mpwriter.localhub.faults import GRAMMAR, Fault, FaultError, from_json, parse

WHOAMI = "/api/whoami-v2"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A Hub without Xet, with one repository."""
    with LocalHub(tmp_path_factory.mktemp("hub"), xet=False) as server:
        assert ask(server, "POST", "/api/repos/create", {"name": "r"})[0] == 200
        yield server


@pytest.fixture
def hub(running):
    """The same, without faults."""
    running.clear_faults()
    return running


def begin(hub: LocalHub, path: str = WHOAMI) -> socket.socket:
    """Send a request without waiting for its answer."""
    sock = socket.create_connection(("127.0.0.1", hub.port), timeout=SECONDS)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return sock


def held(hub: LocalHub) -> int:
    """How many requests the faults hold."""
    return sum(standing.held for standing in hub.faults())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("POST /commit/ 503 times=3", Fault("/commit/", "status", "POST", "before", 3, status=503)),
        ("/commit/ hang when=after", Fault("/commit/", "hang", when="after")),
        ("/lfs/ reset skip=1", Fault("/lfs/", "reset", skip=1)),
        (r"/lfs/\d+$ close times=0", Fault(r"/lfs/\d+$", "close", times=0)),
        ("/preupload/ slow seconds=0.5", Fault("/preupload/", "slow", when="after", seconds=0.5)),
        ("/preupload/ bomb size=3", Fault("/preupload/", "bomb", size=3)),
        (
            "/commit/ 429 header=Retry-After:2 'header=X: y:z' message=\"too many\" code=C body=<b/>",
            Fault(
                "/commit/",
                "status",
                status=429,
                headers=(("Retry-After", "2"), ("X", "y:z")),
                message="too many",
                code="C",
                body="<b/>",
            ),
        ),
    ],
)
def test_a_line_of_text_and_json_mean_the_same_fault(text, fault):
    """Every option can be written in one line; a fault survives JSON; the grammar's own examples are faults."""
    assert parse(text) == fault
    assert from_json(json.loads(json.dumps(dataclasses.asdict(fault)))) == fault
    examples = [line.split("'")[1::2] for line in GRAMMAR.splitlines()[-3:]]
    assert all(parse(example) for line in examples for example in line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "POST 503",
        "/commit/ explode",
        "/commit/ 99",
        "/commit/ 503 times=x",
        "/commit/ 503 times=-1",
        "/commit/ 503 time=1",
        "/commit/ 503 when=later",
        "/commit/ 503 header=x",
        "/commit/ 503 seconds=1",
        "/commit/ close message=x",
        "/commit/ slow",
        "/commit/ bomb",
        "/commit/ close size=3",
        "/commit/ slow seconds=1 when=before",
        "/commit( 503",
        "/commit/ 503 message='open",
    ],
)
def test_what_is_no_fault_is_refused_and_the_message_shows_the_grammar(hub, text):
    """A typo never becomes a fault without effect: not in the process, not over the wire, not on the line."""
    with pytest.raises(FaultError, match="A fault is:"):
        hub.fault(text)
    with open(os.path.join(hub.root, "secret")) as secret:
        status, _, answer = ask(hub, "POST", "/-/faults", text.encode(), {"Authorization": f"Bearer {secret.read()}"})
    assert status == 400
    assert "A fault is:" in json.loads(answer)["error"]
    assert hub.faults() == []


def test_a_fault_skips_hits_and_is_over(hub):
    """`skip` requests pass, `times` are hit, the rest pass; other paths and methods are left alone."""
    hub.fault(f"GET {WHOAMI} 503 skip=1 times=2")
    hub.fault(Fault(WHOAMI, "status", "GET", times=0, status=500))
    assert ask(hub, "GET", "/api/models/local-user/r")[0] == 200
    assert ask(hub, "POST", WHOAMI, {})[0] == 404
    assert [ask(hub, "GET", WHOAMI)[0] for _ in range(4)] == [500, 503, 503, 500]
    assert [(standing.seen, standing.hits) for standing in hub.faults()] == [(4, 2), (2, 2)]
    hub.clear_faults()
    assert hub.faults() == []
    assert ask(hub, "GET", WHOAMI)[0] == 200


def test_a_status_has_the_content_of_its_fault(hub):
    """Headers, message, code and a body that is no JSON reach the client."""
    hub.fault(f"{WHOAMI} 429 header=Retry-After:2 message='too many' code=Enough")
    status, headers, body = ask(hub, "GET", WHOAMI)
    assert (status, json.loads(body)) == (429, {"error": "too many"})
    assert [headers[name] for name in ("Retry-After", "X-Error-Message", "X-Error-Code")] == ["2", "too many", "Enough"]
    hub.fault(f"{WHOAMI} 502 when=arrive body='<h1>Bad Gateway</h1>'")
    status, headers, body = ask(hub, "GET", WHOAMI)
    assert (status, body) == (502, b"<h1>Bad Gateway</h1>")


@pytest.mark.parametrize("kind", ["503", "close", "reset"])
@pytest.mark.parametrize("when", ["arrive", "before", "after"])
def test_the_hub_has_a_change_if_and_only_if_the_fault_came_after_it(hub, when, kind):
    """A commit is applied before a fault `after`, and not at all before the others; the client sees the same."""
    before = hub.store.resolve(*REPO)
    hub.fault(f"POST /commit/ {kind} when={when}")
    if kind == "503":
        assert commit(hub, file("x", f"{when}{kind}".encode()))[0] == 503
    else:
        wanted = ConnectionResetError if kind == "reset" else http.client.RemoteDisconnected
        with pytest.raises(wanted) as seen:
            commit(hub, file("x", f"{when}{kind}".encode()))
        assert seen.type is wanted
    assert (hub.store.resolve(*REPO) != before) is (when == "after")
    assert [standing.hits for standing in hub.faults()] == [1]


def test_a_fault_after_strikes_no_request_that_was_refused(hub):
    """A hit of `after` means that the Hub has the change: a stale commit gets its 412 and is not counted."""
    hub.fault("POST /commit/ 500 when=after")
    assert commit(hub, file("x", b"stale"), parent="0" * 40)[0] == 412
    assert hub.faults()[0].hits == 0
    assert commit(hub, file("x", b"fresh"))[0] == 500


def test_a_commit_that_hangs_is_applied_when_it_goes_on_though_its_client_was_killed(hub, tmp_path):
    """The late request: released long after its client is dead, the real client's commit still becomes history."""
    before = hub.store.resolve(*REPO)
    hub.fault("POST /commit/ hang")
    process = popen_client(
        hub, tmp_path, 'api.upload_file(path_or_fileobj=b"late", path_in_repo="late", repo_id="local-user/r")'
    )
    wait_for(lambda: held(hub), "the commit hangs")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert hub.store.resolve(*REPO) == before
    assert commit(hub, file("newer", b"newer"))[0] == 200
    hub.clear_faults()
    wait_for(lambda: "late" in hub.store.tree(*REPO), "the late commit")
    assert hub.store.read_blob(*REPO, "newer") == b"newer"


def test_a_hang_ends_by_itself_after_its_seconds(hub):
    """`seconds` delays what comes next: before the commit is applied, or before its answer leaves."""
    for when in ("before", "after"):
        hub.fault(f"/commit/ hang seconds=0.3 when={when}")
        started = time.monotonic()
        assert commit(hub, file("x", when.encode()))[0] == 200
        assert time.monotonic() - started >= 0.3
    assert hub.store.read_blob(*REPO, "x") == b"after"


def test_requests_that_hang_leave_the_others_alone(hub):
    """More requests hang than the Hub has threads, at each moment; another one is answered, and all go on together."""
    for when in ("arrive", "before", "after"):
        hub.fault(f"{WHOAMI} hang when={when} times={API_THREADS}")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(begin(hub)) for _ in range(3 * API_THREADS)]
        wait_for(lambda: held(hub) == len(socks), "all hang")
        assert ask(hub, "GET", "/api/models/local-user/r")[0] == 200
        hub.clear_faults()
        assert all(sock.recv(64).startswith(b"HTTP/1.1 200") for sock in socks)


def test_a_slow_answer_comes_in_pieces_and_a_slow_request_is_read_in_pieces(hub):
    """Both take their seconds, whole and unchanged."""
    content = os.urandom(400_000)
    hub.fault("PUT /lfs/ slow when=arrive seconds=0.4")
    oid, actions = offer(hub, content)
    started = time.monotonic()
    assert ask(hub, "PUT", actions["upload"]["href"], content)[0] == 200
    assert time.monotonic() - started >= 0.4
    lfs_file = ("lfsFile", {"path": "slow.bin", "algo": "sha256", "oid": oid, "size": len(content)})
    assert commit(hub, lfs_file)[0] == 200

    def comes_in_pieces(path: str, wanted: bytes | None) -> bool:
        """Whether the head comes at once and the body in pieces; a reader that is held up sees all of it at once."""
        hub.fault(f"{path} slow seconds=0.4")
        connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            started = time.monotonic()
            pieces = list(iter(lambda: response.read1(1 << 20), b""))
        assert wanted in (None, b"".join(pieces))
        return time.monotonic() - started > 0.2 and len(pieces) > 3

    for path, wanted in (("/local-user/r/resolve/main/slow.bin", content), (WHOAMI, None)):
        wait_for(lambda path=path, wanted=wanted: comes_in_pieces(path, wanted), f"{path} in pieces")


def test_a_hub_that_stops_breaks_off_what_hangs_and_forgets_its_faults(tmp_path):
    """Stopping waits for nothing that hangs and does not apply it; the next start has no faults."""
    hub = LocalHub(tmp_path, xet=False).start()
    ask(hub, "POST", "/api/repos/create", {"name": "r"})
    before = hub.store.resolve(*REPO)
    hub.fault("/commit/ hang")
    hub.fault(f"{WHOAMI} 500 times=0")
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=SECONDS)
    with contextlib.closing(connection):
        line = json.dumps({"key": "header", "value": {"summary": "s"}})
        connection.request("POST", "/api/models/local-user/r/commit/main", line)
        wait_for(lambda: held(hub), "the commit hangs")
        hub.stop()
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
    assert hub.store.resolve(*REPO) == before
    hub.start()
    assert hub.faults() == []
    assert ask(hub, "GET", WHOAMI)[0] == 200
    hub.kill()
    with open(os.path.join(tmp_path, "server.log"), encoding="utf-8") as log:
        assert "Traceback" not in log.read()
