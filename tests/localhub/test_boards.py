"""TensorBoard on a Hub: its files grow in place, it answers to the Hub only, and ends with it."""

from __future__ import annotations

import http.client
import io
import json
import os
from pathlib import Path

import psutil
import pytest
from hub_clients import ask, client, commit, file
from programs import wait_for
from tensorboardX.event_file_writer import EventFileWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.pages.boards import MOST_BOARDS, BoardError, Boards, Checkout, Content
from hf_mpwriter.localhub.store import WritableStore

RUN = "runs/a/events.out.tfevents.1"
BOARD = "/local-user/r/tensorboard/board"


def events(directory: Path, *steps: int) -> bytes:
    """The content of an event file."""
    writer = EventFileWriter(str(directory))
    for step in steps:
        writer.add_event(Event(step=step, wall_time=1.0 + step, summary=scalar("loss", 1.0)))
    writer.close()
    (path,) = directory.iterdir()
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def files(tmp_path):
    """A checkout, and a function that makes it follow contents by path."""
    checkout = Checkout(str(tmp_path / "logdir"))

    def follow(**contents: str) -> bool:
        return checkout.follow(
            {
                f"run/{name}": Content(len(text), text, lambda text=text: io.BytesIO(text.encode()))
                for name, text in contents.items()
            }
        )

    return follow, tmp_path / "logdir" / "run"


def test_the_head_is_read_by_one_request_at_a_time(tmp_path):
    """Or one that has read an older head could show it after another has shown a newer one."""
    boards = Boards(WritableStore(tmp_path).disk)
    with pytest.raises(ZeroDivisionError):
        boards.open(("model", "me/none"), "/x", lambda: {"x": 1 / (not boards._lock.locked())})


def test_files_of_a_checkout_grow_in_place(files):
    """A reader that holds one open reads on."""
    follow, run = files
    assert follow(tfevents1="abc")
    assert os.listdir(run) == ["tfevents1"]
    with (run / "tfevents1").open() as reader:
        assert reader.read() == "abc"
        assert follow(tfevents1="abcdef", tfevents2="new")
        assert reader.read() == "def"
    assert sorted(os.listdir(run)) == ["tfevents1", "tfevents2"]


@pytest.mark.parametrize("later", [{}, {"tfevents1": "ab"}, {"tfevents1": "xbcd"}])
def test_a_commit_that_takes_something_back_needs_another_directory(files, later):
    """A file that is gone, shorter or different; what was read before stays as it is."""
    follow, run = files
    assert follow(tfevents1="abc")
    assert not follow(**later)
    assert (run / "tfevents1").read_text() == "abc"


def boards_of(hub: LocalHub) -> list[psutil.Process]:
    """The TensorBoards of a Hub."""
    return [
        child
        for child in psutil.Process(hub.pid).children()
        if "hf_mpwriter.localhub.pages.board_process" in child.cmdline()
    ]


def steps_of(hub: LocalHub) -> list[int]:
    """The steps that TensorBoard shows of the run."""
    status, _, body = ask(hub, "GET", f"{BOARD}/data/plugin/scalars/scalars?run=runs/a&tag=loss")
    return [step for _, step, _ in json.loads(body)] if status == 200 else []


def test_a_board_follows_the_head_and_ends_with_the_hub(tmp_path):
    """One TensorBoard shows what commits append; only a commit that takes something back gets a new one.

    The port answers nothing without the key of the Hub. SIGKILL of the Hub ends it.
    """
    with LocalHub(tmp_path / "hub", xet=False) as hub:
        assert ask(hub, "POST", "/api/repos/create", {"name": "r"})[0] == 200
        assert ask(hub, "GET", f"{BOARD}/data/runs")[0] == 404
        assert b"There are no training metrics" in ask(hub, "GET", "/local-user/r/tensorboard")[2]
        whole = events(tmp_path / "events", 1, 2, 3)
        assert commit(hub, file(RUN, whole[: len(whole) // 2]))[0] == 200
        wait_for(lambda: steps_of(hub), "the first commit is shown")
        (board,) = boards_of(hub)
        assert commit(hub, file(RUN, whole))[0] == 200
        wait_for(lambda: steps_of(hub) == [1, 2, 3], "the second commit is shown")
        assert boards_of(hub) == [board]
        (port,) = {connection.laddr.port for connection in board.net_connections() if connection.status == "LISTEN"}
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", f"{BOARD}/data/runs")
        assert connection.getresponse().status == 403
        assert commit(hub, file(RUN, events(tmp_path / "events", 7)))[0] == 200
        wait_for(lambda: steps_of(hub) == [7], "the third commit is shown")
        assert not board.is_running()
        (board,) = boards_of(hub)
        hub.kill()
        wait_for(lambda: not board.is_running() or board.status() == psutil.STATUS_ZOMBIE, "the board ends")


def test_the_board_that_was_used_longest_ago_makes_room(tmp_path):
    """There are at most so many processes; after the end there is none, and none starts."""
    store = WritableStore(tmp_path)
    store.prepare()
    names = [("model", f"me/r{number}") for number in range(MOST_BOARDS + 1)]
    boards = Boards(store.disk)
    try:
        started = [boards.open(name, "/", dict) for name in names[:-1]]
        assert boards.open(names[0], "/", dict) is started[0]
        started.append(boards.open(names[-1], "/", dict))
        assert [psutil.pid_exists(board.pid) for board in started] == [True, False, True, True, True]
    finally:
        boards.end()
    assert [board.pid for board in started if psutil.pid_exists(board.pid)] == []
    assert os.listdir(store.disk.tmp) == []
    with pytest.raises(BoardError):
        boards.open(names[0], "/", dict)


def test_a_board_shows_what_a_live_bucket_has_beyond_the_head(tmp_path):
    """It grows between two commits in the same TensorBoard; a public page shows nothing of a private bucket."""
    whole = events(tmp_path / "events", 1, 2, 3, 4)
    length = {last: len(events(tmp_path / "events", *range(1, last + 1))) for last in (2, 3, 4)}

    def batch(last: int) -> None:
        put = """
        api.create_bucket("r-live", exist_ok=True)
        api.batch_bucket_files("local-user/r-live", add=[(CONTENT, PATH)])
        """
        code = put.replace("CONTENT", repr(whole[: length[last]])).replace("PATH", repr(RUN))
        client(hub, tmp_path, code, xet=True)

    with LocalHub(tmp_path / "hub") as hub:
        assert ask(hub, "POST", "/api/repos/create", {"name": "r"})[0] == 200
        assert commit(hub, file("notes", b"x"), file(RUN, whole[: length[2]]))[0] == 200
        batch(3)
        wait_for(lambda: steps_of(hub) == [1, 2, 3], "the bucket is shown")
        (board,) = boards_of(hub)
        batch(4)
        wait_for(lambda: steps_of(hub) == [1, 2, 3, 4], "a second round is shown")
        assert boards_of(hub) == [board]
        assert ask(hub, "PUT", "/api/buckets/local-user/r-live/settings", {"private": True})[0] == 200
        wait_for(lambda: steps_of(hub) == [1, 2], "the head alone is shown")
