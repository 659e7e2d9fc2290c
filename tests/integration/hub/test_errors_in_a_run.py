"""What a run makes of errors: it keeps everything, logs once what helps, and delivers when they are over."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_clients import requests_of
from programs import wait_for
from runs import LOG_AND_EXIT, all_acknowledged, check_oracle, no_uploader, sync
from waits import timing

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.cli.main import main
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.system.process import host_id

PUSH_AND_EXIT = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    writer.add_scalar("loss", 1.0, 1)
    print(writer.push(wait=3600))
"""


def ends_told(errors: str) -> int:
    """How many ends said what is missing: each names the command, and so does each line of a wait."""
    return errors.count("hf-mpwriter sync") - errors.count("waiting up to")


def status(run_dir: Path) -> str:
    """The output of `hf-mpwriter status`."""
    return CliRunner().invoke(main, ["status", str(run_dir)]).output


def folders_put(hub: LocalHub) -> set[str]:
    """The kinds of storage that content arrived by: `lfs`, `xet`."""
    found = {request["path"].split("/")[1] for request in requests_of(hub) if request["method"] in ("PUT", "POST")}
    return found & {"lfs", "xet"}


def test_offline_everything_is_kept_nothing_is_requested_and_the_reason_is_logged(hub, run_dir, start):
    """The message at the end and the status name the reason; online, `sync` finishes the upload."""
    code, _, errors = start(LOG_AND_EXIT, run_dir, 50, env={"HF_HUB_OFFLINE": "1"}).finish()
    assert (code, errors.count(OFFLINE), ends_told(errors)) == (0, 1, 1), errors
    assert "goes on trying" not in errors
    wait_for(lambda: OFFLINE in status(run_dir), "the status has the reason")
    assert requests_of(hub) == []
    assert sync(run_dir).exit_code == 0
    check_oracle(run_dir, hub)


LOG_FOR_A_WHILE = """
import sys, time
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    end, step = time.monotonic() + float(sys.argv[2]), 0
    while time.monotonic() < end:
        writer.add_scalar("loss", 1.0, step)
        step += 1
        time.sleep(0.01)
"""


def test_offline_no_uploader_stays_and_workers_start_no_other(hub, run_dir, start):
    """Each would do nothing; the next start that is online sends what there is."""
    often = 0.2  # seconds
    offline = {"HF_HUB_OFFLINE": "1", "HF_MPWRITER_TIMING": timing(housekeeping_every=often)}
    for rank in ("0", "1"):
        start(LOG_FOR_A_WHILE, run_dir, 8 * often, env=offline | {"RANK": rank}).succeed()
    wait_for(lambda: no_uploader(run_dir), "it leaves")
    log = Path(Spool(str(run_dir)).host(host_id()).daemon("uploader").log).read_text()
    assert log.count(f"no uploader: {OFFLINE}. Unset HF_HUB_OFFLINE to upload\n") == log.count("no uploader") == 1, log
    assert f"next: unset HF_HUB_OFFLINE to upload; then: hf-mpwriter sync {run_dir}" in status(run_dir)
    start(LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: all_acknowledged(run_dir), "the next start sends all")
    check_oracle(run_dir, hub)


def test_without_any_token_an_uploader_does_not_outlive_the_last_worker(tmp_path, run_dir, start, monkeypatch):
    """It would wait for ten minutes; while workers live it waits for `hf auth login`. What to do is said."""
    with LocalHub(tmp_path / "hub", token="hf_good") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        code, _, errors = start(LOG_AND_EXIT, run_dir, 50).finish()
        assert (code, ends_told(errors)) == (0, 1), errors
        wait_for(lambda: no_uploader(run_dir), "it leaves", deadline=LINGER / 3)
        assert f"next: run `hf auth login`; then: hf-mpwriter sync {run_dir}" in status(run_dir)
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert sync(run_dir).exit_code == 0
        check_oracle(run_dir, hub)


def test_a_wait_ends_with_the_next_refusal_and_names_it(hub, run_dir, start):
    """`push(wait)` and the end of a process do not wait for what the Hub refuses; once it takes it, `sync` is done."""
    hub.fault("POST /commit/ 400 times=0 message='not like this'")
    code, output, errors = start(PUSH_AND_EXIT, run_dir).finish()
    assert (code, output.split()) == (0, ["False"]), errors
    assert ends_told(errors) == 1
    done = sync(run_dir)
    assert done.exit_code == 1
    assert "not like this" in done.stderr
    hub.clear_faults()
    assert sync(run_dir).exit_code == 0
    check_oracle(run_dir, hub)


# proxies


class Proxy(BaseHTTPRequestHandler):
    """Forward to the host in the request line, and record what passes."""

    seen: list[tuple[str, str]]

    def forward(self) -> None:
        """Forward one request."""
        type(self).seen.append((self.path, self.headers.get("user-agent", "")))
        host, _, path = self.path.removeprefix("http://").partition("/")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        connection = http.client.HTTPConnection(host, timeout=120)
        with contextlib.closing(connection):
            connection.request(self.command, f"/{path}", body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "server", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = forward  # noqa: N815 - the base class asks for these names

    def log_message(self, *_: object) -> None:
        """Log nothing to stderr."""


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A proxy: its address and the requests that it has seen."""
    seen: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Noting", (Proxy,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("way", ["lfs", "xet"])
def test_proxies_and_the_variables_of_huggingface_hub_reach_the_push(hub, run_dir, start, way):
    """All requests go through the proxy of the training process's environment, and its HF_* variables apply."""
    with proxy() as (address, seen):
        env = {"HTTP_PROXY": address, "NO_PROXY": "", "HF_HUB_USER_AGENT_ORIGIN": "our-cluster"}
        env |= {"HF_HUB_DISABLE_XET": "1"} if way == "lfs" else {}
        start(LOG_AND_EXIT, run_dir, 50, env=env).succeed()
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub)
    assert len(seen) == len(requests_of(hub))
    assert folders_put(hub) == {way}
    (agent,) = {agent for path, agent in seen if "/commit/" in path}
    assert "origin/our-cluster" in agent
