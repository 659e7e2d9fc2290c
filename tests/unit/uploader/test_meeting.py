"""The meeting point: a run passes from an usher to a living uploader of the same key, and one of the two acts."""

from __future__ import annotations

import json
import os
import random
import select
import time
from pathlib import Path

import pytest
from remote import Remote, open_files

from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Directory, Place, at, identity
from hf_mpwriter.uploader.meeting import Asked, Descriptors, Key, Meeting, hand_over

RECORD = {
    "run_dir": "/runs/exp1",
    "destination": {
        "endpoint": "https://hub",
        "repo_id": "me/run",
        "repo_type": "model",
        "revision": "main",
        "path_in_repo": "tensorboard/exp1",
    },
    "nodes": {"count": 1, "rank": None},
}
ENVIRON = {"HOME": "/home/me", "HF_TOKEN": "hf_secret"}
AROUND = {"user": [1, 1, []], "filesystem": 7}
LONG, SHORT = 60.0, 0.3  # seconds: an answer is expected, or none
STRANGER = 12345
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def record(**changes: object) -> bytes:
    """A start record."""
    return json.dumps(RECORD | changes).encode()


def key(environ: dict[str, str] = ENVIRON, **changes: object) -> Key:
    """The key of a start record."""
    return Key.of(record(**changes), environ, AROUND)


OWN, OF_ANOTHER_TOKEN = key(), key(ENVIRON | {"HF_TOKEN": "hf_other"})


class Peer:
    """An uploader process, which is an usher first."""

    def __init__(self, folder: Place, run: Path) -> None:
        self._folder, self._run = folder, run
        self.asked: list[Asked] = []
        self.runs: list[Descriptors] = []

    def hold(self) -> bool:
        """Take the lock of the run, and open what an uploader has of it; whether the lock was free."""
        lock = locks.try_exclusive(at(self._run / "uploader.lock"))
        if lock is None:
            return False
        opened = [os.open(self._run / name, os.O_RDONLY | os.O_CLOEXEC) for name in (".", "spool", "log")]
        self.runs.append(Descriptors(lock, *opened))
        return True

    def hand_over(self, patience: float = LONG, with_key: Key = OWN) -> bool:
        """Hand the run over, as if another process had started this one with the lock."""
        return hand_over(self._folder, with_key, record(run_dir=str(self._run)), self.runs[0], patience)

    def open(self, with_key: Key = OWN) -> bool:
        """Listen at the meeting point."""
        self.meeting = Meeting.open(self._folder, with_key)
        return self.meeting is not None

    def listen(self, least: int = 1, seconds: float = LONG) -> list[str]:
        """Wait for so many requests; the runs that they are about."""
        poll, until = select.poll(), time.monotonic() + seconds
        poll.register(self.meeting.fd, select.POLLIN)
        found: list[Asked] = []
        while len(found) < least and time.monotonic() < until:
            poll.poll(1000 * max(0.0, until - time.monotonic()))
            found += self.meeting.asked()
        self.asked += found
        return [json.loads(asked.record)["run_dir"] for asked in found]

    def take(self) -> list[bool]:
        """Take what was asked for; which of it was to be had."""
        found, self.asked = [(asked, asked.take()) for asked in self.asked], []
        self.runs += [asked.descriptors for asked, is_taken in found if is_taken]
        return [is_taken for _, is_taken in found]

    def serve(self, least: int = 1, seconds: float = LONG) -> list[bool]:
        """Wait for so many requests, and take them."""
        self.listen(least, seconds)
        return self.take()

    def refuse(self, least: int = 1) -> None:
        """Wait for so many requests, and refuse them."""
        self.listen(least)
        for asked in self.asked:
            asked.refuse()
        self.asked = []

    def close(self) -> None:
        """Leave the meeting point."""
        self.meeting.close()

    def identities(self) -> list[list[tuple[int, int]]]:
        """Which files the descriptors of each run are; children inherit none of them."""
        assert not any(os.get_inheritable(fd) for run in self.runs for fd in run)
        return [[identity(os.fstat(fd)) for fd in run] for run in self.runs]

    def drop(self) -> None:
        """Close all runs, as the end of the process would."""
        for fd in (fd for run in self.runs for fd in run):
            os.close(fd)
        locks._table.clear()
        self.runs = []

    def drop_and_hold(self) -> bool:
        """Close all runs, and take the lock again; whether it was free."""
        self.drop()
        return self.hold()

    def files(self) -> list[str]:
        """What is open in this process."""
        return open_files()

    def watch(self, stop: Path) -> tuple[int, bool]:
        """Try the lock all the time until there is a file; how often, and whether it was free once."""
        tries, lock = 0, None
        while lock is None and not stop.exists():
            lock = locks.try_exclusive(at(self._run / "uploader.lock"))
            tries += 1
        return tries, lock is not None

    def wait_until_asked(self) -> None:
        """Wait, and read nothing."""
        select.select([self.meeting.fd], [], [])

    def serve_late(self, delay: float) -> list[bool]:
        """Wait for a request, and take it after so many seconds of work."""
        self.listen(seconds=SHORT)
        until = time.monotonic() + delay
        while time.monotonic() < until:
            pass
        return self.take()


class Stage:
    """A meeting point, and processes that are ended with the test."""

    def __init__(self, path: Path, runs: Path) -> None:
        self.path, self._runs = path, runs
        self._peers: list[Remote] = []

    def run(self, name: str = "exp1") -> Path:
        """A run directory."""
        path = self._runs / name
        (path / "spool").mkdir(parents=True, exist_ok=True)
        (path / "log").touch()
        return path

    def is_locked(self, name: str = "exp1") -> bool:
        """Whether a process has a run."""
        return locks.is_held(at(self.run(name) / "uploader.lock"))

    def peer(self, name: str = "exp1") -> Remote:
        """A process."""
        run = self.run(name)
        self._peers.append(Remote(lambda: Peer(Place(Directory(self.path)), run)))
        return self._peers[-1]

    def usher(self, name: str = "exp1") -> Remote:
        """A process that was started for a run, with its lock."""
        made = self.peer(name)
        assert made.call("hold")
        return made

    def server(self, with_key: Key = OWN) -> Remote:
        """An uploader that listens."""
        made = self.peer()
        assert made.call("open", with_key)
        return made

    def names(self) -> list[str]:
        """The names at the meeting point."""
        return sorted(os.listdir(self.path))

    def end(self) -> None:
        """End all processes."""
        for one in self._peers:
            one.kill()


@pytest.fixture
def stage(tmp_path):
    """A meeting point in a cache folder."""
    made = Stage(tmp_path / "cache" / "hf_mpwriter" / "uploaders", tmp_path / "runs")
    yield made
    made.end()


# the hand-over


def test_a_living_uploader_takes_the_run(stage):
    """It gets the record and the very descriptors, and holds the lock when the usher has gone."""
    server, usher = stage.server(), stage.usher()
    usher.begin("hand_over")
    assert server.call("listen") == [str(stage.run())]
    assert server.call("take") == [True]
    assert usher.result() is True
    assert server.call("identities") == usher.call("identities")
    usher.kill()
    assert stage.is_locked()
    server.call("drop")
    assert not stage.is_locked()


def test_the_lock_is_never_free_while_a_run_passes_on(stage, tmp_path):
    """A process that tries it all the time gets it at no moment, through many hand-overs."""
    holder, other, observer = stage.usher(), stage.peer(), stage.peer()
    observer.begin("watch", tmp_path / "stop")
    for _ in range(30):
        assert other.call("open")
        holder.begin("hand_over")
        assert other.call("serve") == [True]
        assert holder.result() is True
        holder.call("drop")
        other.call("close")
        holder, other = other, holder
    (tmp_path / "stop").touch()
    tries, was_free = observer.result()
    assert tries > 30
    assert not was_free


def test_without_another_uploader_the_usher_is_one(stage):
    """There is no folder, and later none but one that has left."""
    usher = stage.usher()
    assert usher.call("hand_over") is False
    assert not stage.path.exists(), "an usher makes nothing"
    server = stage.server()
    assert len(stage.names()) == 1
    server.call("close")
    assert stage.names() == []
    assert usher.call("hand_over") is False
    assert usher.call("drop_and_hold")


def test_thirty_ushers_at_once_find_one_uploader(stage):
    """Each run is taken once."""
    server, ushers = stage.server(), [stage.usher(f"exp{number}") for number in range(30)]
    for usher in ushers:
        usher.begin("hand_over")
    assert server.call("serve", 30) == [True] * 30
    assert all(usher.result() for usher in ushers)
    for usher in ushers:
        usher.kill()
    assert all(stage.is_locked(f"exp{number}") for number in range(30))


def test_what_is_refused_is_free_for_the_usher(stage):
    """No descriptor of the lock is left with the other one when the usher sees the answer."""
    server, usher = stage.server(), stage.usher()
    before = server.call("files")
    for _ in range(50):
        usher.begin("hand_over")
        server.call("refuse")
        assert usher.result() is False
        assert usher.call("drop_and_hold"), "the other one still had the lock"
    assert server.call("files") == before


def test_the_next_uploader_is_asked_when_one_refuses(stage):
    """Two of one key may live; the older one is asked first."""
    first, second, usher = stage.server(), stage.server(), stage.usher()
    usher.begin("hand_over")
    first.call("refuse")
    assert second.call("serve") == [True]
    assert usher.result() is True


# ends


def test_an_uploader_that_dies_before_it_has_read_leaves_the_run_to_the_usher(stage):
    """What was sent to it is gone with it."""
    server, usher = stage.server(), stage.usher()
    server.stop()
    usher.begin("hand_over")
    server.kill()
    assert usher.result() is False
    assert usher.call("drop_and_hold")


def test_an_uploader_that_dies_before_it_answers_leaves_the_run_to_the_usher(stage):
    """It had the descriptors."""
    server, usher = stage.server(), stage.usher()
    usher.begin("hand_over")
    server.call("listen")
    server.kill()
    assert usher.result() is False
    assert usher.call("drop_and_hold")


def test_the_lock_is_free_when_the_one_that_has_taken_it_dies(stage):
    """The usher, which has gone by then, does not hold it."""
    server, usher = stage.server(), stage.usher()
    usher.begin("hand_over")
    assert server.call("serve") == [True]
    assert usher.result() is True
    usher.kill()
    server.kill()
    assert not stage.is_locked()


def test_an_uploader_that_leaves_leaves_the_run_to_the_usher(stage):
    """Its queue in the kernel ends with it, and so does what it has accepted."""
    server, usher = stage.server(), stage.usher()
    usher.begin("hand_over")
    server.call("wait_until_asked")
    server.call("close")
    assert usher.result() is False


def test_a_run_whose_usher_has_died_cannot_be_taken(stage):
    """All its descriptors are closed, so its lock is free."""
    server, usher = stage.server(), stage.usher()
    before = server.call("files")
    usher.begin("hand_over")
    server.call("listen")
    usher.kill()
    assert server.call("take") == [False]
    assert server.call("files") == before
    assert not stage.is_locked()


def test_a_stopped_uploader_takes_nothing_when_it_goes_on(stage):
    """The usher has waited for as long as it may, and acts."""
    server, usher = stage.server(), stage.usher()
    server.stop()
    assert usher.call("hand_over", SHORT) is False
    server.go_on()
    assert server.call("serve") == [False]
    assert stage.is_locked()


def test_a_stopped_uploader_does_not_keep_the_lock_of_a_run_that_it_was_asked_to_take(stage):
    """A copy of the descriptor waits for it. The usher, killed meanwhile, had locked anew."""
    server, usher = stage.server(), stage.usher()
    server.stop()
    assert usher.call("hand_over", SHORT) is False
    assert stage.is_locked()
    usher.kill()
    assert not stage.is_locked()


def test_a_stopped_uploader_does_not_keep_the_usher_from_the_next_one(stage):
    """Each gets its share of the patience."""
    first, second, usher = stage.server(), stage.server(), stage.usher()
    first.stop()
    usher.begin("hand_over", 2 * SHORT)
    assert second.call("serve") == [True]
    assert usher.result() is True
    usher.kill()
    first.go_on()
    assert first.call("serve") == [False]
    assert stage.is_locked()


def test_one_of_the_two_acts_however_late_the_answer_comes(stage):
    """The patience of the usher ends at about the moment at which the other one takes the run."""
    server, usher = stage.server(), stage.usher()
    rng, ends = random.Random(1), []
    for _ in range(400):
        usher.begin("hand_over", rng.uniform(0.001, 0.004))
        taken = server.call("serve_late", rng.uniform(0.0, 0.004))
        ends.append(usher.result())
        assert taken == [ends[-1]] or (not taken and not ends[-1]), "it may give up before it asks"
        if ends[-1]:
            usher.call("drop")
            server.call("drop")
            assert usher.call("hold")
    assert 40 < sum(ends) < 360, "the moments are about the same"
