"""A pull from a Hub that is none: it ends in its time whatever drips, and brings what is of its run only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import pytest
from huggingface_hub import constants
from runs import run
from strange_servers import Asked, StrangeServer, answered, as_hub

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli import pull as cli_pull
from hf_mpwriter.pull.repository import everything
from hf_mpwriter.push.client import Hub

NAME = "events.out.tfevents.1000000000.there.1.0123abcd"
LIMIT = 0.5  # seconds
SLACK = 6.0  # seconds more, on a busy machine; what drips here would do so for minutes


@pytest.fixture
def at(monkeypatch) -> Callable[[StrangeServer], None]:
    """Pull from a server, without a proxy."""

    def set_up(server: StrangeServer) -> None:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)

    monkeypatch.setenv("NO_PROXY", "*")
    return set_up


def dripping(place: str) -> Callable[[StrangeServer, Asked], Iterable[bytes]]:
    """A Hub with one file, one of whose answers drips."""

    def answer(server: StrangeServer, asked: Asked) -> Iterator[bytes]:
        pieces = as_hub(asked, {f"tensorboard/exp1/{NAME}": bytes(10_000)})
        if place in f"{asked.method} {asked.path}":
            yield next(iter(pieces))[:-9999]
            pieces = server.drip(b"a")
        yield from pieces

    return answer


def pull_before(run_dir):
    """As `run --pull` does."""
    with click.Context(click.Command("run")):
        cli_pull.pull_before(str(run_dir), "me/run", everything, or_new=True, is_quiet=False)()


@pytest.mark.parametrize("place", ["GET /api/models/me/run/revision/", "/tree/", "HEAD /me/run", "GET /me/run/resolve"])
def test_a_program_starts_in_time_whatever_drips(tmp_path, monkeypatch, capsys, at, place):
    """A line says that its past is not there; a person who pulls reads an error."""
    monkeypatch.setattr(cli_pull, "LIMIT", LIMIT)
    with StrangeServer(dripping(place)) as server:
        at(server)
        began = time.monotonic()
        pull_before(tmp_path / "exp1")
        assert time.monotonic() - began < 3 * LIMIT + SLACK  # a few questions
        err = capsys.readouterr().err
        assert (err.count("\n"), "does not answer in time" in err, "drawn over its past" in err) == (1, True, True), err
        done = run("pull", tmp_path / "exp1", "--repo-id", "me/run")
        assert (done.exit_code, "does not answer in time" in done.output) == (1, True), done.output
    assert not list(tmp_path.rglob(NAME))


def test_a_program_starts_in_time_though_the_client_hangs(tmp_path, monkeypatch, capsys, at):
    """Nothing ends a read of a file, such as that of the token on a mount that is gone."""
    monkeypatch.setattr(cli_pull, "LIMIT", LIMIT)
    monkeypatch.setattr(cli_pull, "MARGIN", LIMIT)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    os.mkfifo(token := tmp_path / "token")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(token))
    with StrangeServer(dripping("nowhere")) as server:
        at(server)
        began = time.monotonic()
        pull_before(tmp_path / "exp1")
        assert time.monotonic() - began < 2 * LIMIT + SLACK
    err = capsys.readouterr().err
    assert (err.count("\n"), "something hangs. The program starts without it." in err) == (1, True), err


def test_what_the_hub_lists_outside_of_the_folder_is_not_of_the_run(tmp_path, at):
    """Cut by the length of the folder it would come under a name that it does not have."""
    inside = {f"tensorboard/exp1/{NAME}": b"inside", f"tensorboard/exp1/rank_00001/{NAME}": b"rank"}
    paths = ("tensorboard/exp2", "tensorboard/exp1_old", "tensorboard/exp", "other/directory/of", "x", "tensorboard")
    outside = {f"{path}/{NAME}": b"outside" for path in paths} | {f"tensorboard/exp1{NAME}": b"no folder"}
    with StrangeServer(lambda _, asked: as_hub(asked, inside | outside)) as server:
        at(server)
        hub = Hub(Destination(server.endpoint, "me/run", path_in_repo="tensorboard/exp1"))
        assert set(hub.tree("main")) == {NAME, f"rank_00001/{NAME}"}
        assert set(hub.tree("main", "rank_00001")) == {f"rank_00001/{NAME}"}
        assert set(Hub(Destination(server.endpoint, "me/run")).tree("main")) == inside.keys() | outside.keys()
        done = run("pull", tmp_path / "exp1", "--repo-id", "me/run")
    assert done.exit_code == 0, done.output
    found = {str(path.relative_to(tmp_path / "exp1")): path.read_bytes() for path in Path(tmp_path).rglob("*tfevents*")}
    assert found == {NAME: b"inside", f"rank_00001/{NAME}": b"rank"}


@pytest.mark.parametrize("when", ["/tree/", "/resolve/"])
def test_nothing_comes_into_a_folder_that_becomes_another_run_meanwhile(tmp_path, at, when):
    """That one may go to a public repository, and would take what is pulled along; it is named."""
    other = tmp_path / "exp1" / "sub" / ".hf_mpwriter"

    def answer(_: StrangeServer, asked: Asked) -> Iterator[bytes]:
        if when in asked.path and asked.method == "GET":
            other.mkdir(parents=True, exist_ok=True)
        return as_hub(asked, {f"tensorboard/exp1/sub/deep/{NAME}": b"of this run"})

    with StrangeServer(answer) as server:
        at(server)
        done = run("pull", tmp_path / "exp1", "--repo-id", "me/run")
    assert (done.exit_code, "its folder is another run here" in done.output) == (1, True), done.output
    assert other.exists()
    assert not [path for path in tmp_path.rglob(NAME) if path.is_relative_to(other.parent)]


def test_what_is_beside_a_run_is_in_its_parent():
    """Not those that the Hub lists besides."""
    paths = ("tensorboard/exp1", "tensorboard/exp1/rank_00001", "elsewhere/exp3", "tensorboard_old/exp4", "exp5")
    listed = [{"type": "directory", "path": path, "oid": "0" * 40} for path in paths]
    with StrangeServer(lambda *_: answered(listed)) as server:
        hub = Hub(Destination(server.endpoint, "me/run"))
        assert (hub.names("tensorboard", "main"), hub.names("", "main")) == ({"exp1": True}, {"exp5": True})
