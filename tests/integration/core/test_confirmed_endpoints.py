"""A token goes to the Hub of this process's environment, or to one that the user has confirmed; no file chooses."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from programs import wait_for
from runs import no_uploader, run, uploaders
from support import event_file
from tokens import SHAPED

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.system.process import host_id

NAME = "events.out.tfevents.1000000000.there.1.0123abcd"


class Stranger(BaseHTTPRequestHandler):
    """A server that notes what it is asked."""

    def do_GET(self):
        """Note the request."""
        self.server.seen.append((self.path, self.headers.get("Authorization", "")))
        self.send_error(404)

    do_POST = do_HEAD = do_PUT = do_GET  # noqa: N815 - names of http.server

    def log_message(self, *_: object):
        """Print nothing."""


@pytest.fixture
def stranger(monkeypatch):
    """A server on loopback, and a token that it must not get."""
    monkeypatch.setenv("HF_TOKEN", SHAPED)
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def endpoint_of(server) -> str:
    """URL of a server."""
    return f"http://127.0.0.1:{server.server_port}"


def unpacked(run_dir, destination: Destination, repo_id: str = "") -> Spool:
    """A run directory as from an archive: with a destination and a ledger of its maker's choice."""
    event_file(run_dir / NAME, 10)
    spool = Spool(str(run_dir))
    spool.create()
    spool.record_destination(destination)
    ledger = Ledger(destination, repo_id=repo_id)
    ledger.acknowledge({NAME: Sent(5, "5" * 64)}, "c", 1.0)
    os.makedirs(spool.host(host_id()).root)
    ledger.save(spool.host(host_id()).ledger)
    return spool


def tree(spool: Spool) -> list[str]:
    """All files of a spool."""
    return sorted(os.path.join(top, name) for top, _, names in os.walk(spool.root) for name in names)


@pytest.mark.parametrize("command", [("sync", "--timeout", "3"), ("verify", "--running"), ("pull", "--worker", "main")])
def test_a_run_directory_of_a_stranger_gets_no_token(stranger, run_dir, command):
    """One line with the command that would confirm it; no request, no uploader, no file."""
    endpoint = endpoint_of(stranger)
    spool = unpacked(run_dir, Destination(endpoint, "me/run"))
    before = tree(spool)
    name, *options = command
    result = run(name, run_dir, *options)
    assert result.exit_code == 1, result.output
    assert result.output.count("\n") == 1
    assert f"hf-mpwriter {name} {run_dir} {' '.join(options)} --endpoint {endpoint}" in result.output
    other = run(name, run_dir, *options, "--endpoint", "https://huggingface.co")
    assert (other.exit_code, "cannot choose another Hub" in other.output) == (2, True)
    assert (tree(spool), uploaders(run_dir), stranger.seen) == (before, set(), [])


def test_a_stranger_that_is_confirmed_is_asked(stranger, run_dir):
    """The option is what the message says it is."""
    endpoint = endpoint_of(stranger)
    unpacked(run_dir, Destination(endpoint, "me/run"))
    assert run("verify", run_dir, "--endpoint", endpoint + "/").exit_code == 1
    assert stranger.seen


@pytest.mark.parametrize("repo_id", ["you/other", "http://127.0.0.1:9/x", "../../x"])
def test_a_ledger_names_no_other_repository(stranger, monkeypatch, run_dir, repo_id):
    """Only the namespace of a name without one is taken from it."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint_of(stranger))
    unpacked(run_dir, Destination(endpoint_of(stranger), "me/run"), repo_id)
    result = run("verify", run_dir)
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert {path.split("/")[3:5] == ["me", "run"] for path, _ in stranger.seen} == {True}


def test_a_name_in_a_run_directory_is_quoted(stranger, run_dir):
    """What is copied from a message into a shell runs nothing else."""
    place = run_dir.parent / "a b;c"
    unpacked(place, Destination(endpoint_of(stranger) + "/$(x)", "me/run"))
    output = run("sync", place).output
    assert f"hf-mpwriter sync '{place}' --endpoint '{endpoint_of(stranger)}/$(x)'" in output


@pytest.mark.parametrize("local", [True, False])
def test_sync_records_no_other_hub_than_that_of_the_environment(stranger, hub, run_dir, local):
    """A local run gets the endpoint of the environment; a run with another one keeps it and is refused."""
    if local:
        event_file(run_dir / NAME, 10)
        Spool(str(run_dir)).create()
    else:
        unpacked(run_dir, Destination(endpoint_of(stranger), "me/run"))
    result = run("sync", run_dir, "--repo-id", "me/run")
    assert result.exit_code == (0 if local else 1), result.output
    assert ("recorded for" in result.output) != local
    assert stranger.seen == []
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
