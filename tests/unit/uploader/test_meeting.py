"""The meeting point: a run passes from an usher to a living uploader of the same key, and one of the two acts."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import select
import socket
import time
from pathlib import Path

import pytest
from hanging import hanging, why_not
from remote import Remote, open_files
from support import failing

from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Place, at, identity
from hf_mpwriter.uploader import meeting
from hf_mpwriter.uploader.meeting import Asked, Descriptors, Key, Meeting, folder_of, hand_over, surroundings

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
LONG, SHORT, ASKED = 60.0, 0.3, 2.0  # seconds: an answer is expected, or none; none, and a slow machine asks
STRANGER = 12345
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000

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

    def hand_over_if_younger(self) -> bool:
        """Hand the run over to an older uploader, while this one listens."""
        run = record(run_dir=str(self._run))
        return hand_over(self._folder, OWN, run, self.runs[0], LONG, younger=self.meeting.name)

    def open(self, with_key: Key = OWN, patience: float = LONG) -> bool:
        """Listen at the meeting point."""
        self.meeting = Meeting.open(self._folder, with_key, patience)
        return self.meeting is not None

    def listen(self, least: int = 1, seconds: float = LONG) -> list[str]:
        """Wait for so many requests, and look once at least; the runs that they are about."""
        poll, until = select.poll(), time.monotonic() + seconds
        poll.register(self.meeting.fd, select.POLLIN)
        found, is_over = list[Asked](), False
        while not is_over:
            poll.poll(1000 * max(0.0, until - time.monotonic()))
            found += self.meeting.asked()
            is_over = len(found) >= least or time.monotonic() > until
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

    def serve_late(self, delay: float, seconds: float = LONG) -> list[bool]:
        """Wait for a request, and take it after so many seconds of work."""
        self.listen(1, seconds)
        until = time.monotonic() + delay
        while time.monotonic() < until:
            pass
        return self.take()

    # what no uploader does

    def limit(self, more: int) -> None:
        """Have so many free descriptors."""
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while (fd := os.open(os.devnull, os.O_RDONLY)) < highest:
            pass
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1 + more, hard))

    def is_asked(self) -> bool:
        """Whether there is something to read."""
        return bool(select.select([self.meeting.fd], [], [], 0)[0])

    def be(self, user: int) -> None:
        """Be another user."""
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

    def connect(self, name: str, times: int = 1) -> None:
        """Connect to an uploader, and say nothing."""
        self.connections = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(times)]
        place = at(self._folder / name)  # unlike the folder, it may be another user's
        for connection in self.connections:
            connection.connect(place.way)

    def send(self, name: str, data: bytes, descriptors: int) -> bytes:
        """Send something to an uploader, with so many descriptors; its answer."""
        self.connect(name)
        with open(os.devnull, "rb") as nothing, contextlib.suppress(BrokenPipeError):
            socket.send_fds(self.connections[0], [data], [nothing.fileno()] * descriptors)
        return self.answer()

    def answer(self) -> bytes:
        """What comes by the connection; nothing if it has ended."""
        try:
            return self.connections[0].recv(100)
        except ConnectionResetError:
            return b""

    def listen_as(self, user: int) -> None:
        """Listen as another user, under a name that an uploader of the key would have."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind((self._folder / f"{OWN.name}.1.1.00000000").way)
        os.seteuid(user)
        self.socket.listen()
        os.seteuid(0)

    def is_sent_anything(self) -> bool:
        """Whether a connection that came brings something."""
        connection, _ = self.socket.accept()
        return bool(connection.recv(100))

    def key_name(self, run_dir: Path, apart: int = 0) -> str:
        """The name of the key of this process; before that, leave what it shares with others."""
        assert not apart or ctypes.CDLL(None).unshare(apart) == 0
        return Key.of(record(), ENVIRON, surroundings(os.open(run_dir, os.O_RDONLY))).name


class Stage:
    """A meeting point, and processes that are ended with the test."""

    def __init__(self, cache: Path, runs: Path) -> None:
        self.cache, self._runs = cache, runs
        self._peers: list[Remote] = []

    @property
    def path(self) -> Path:
        """The meeting point."""
        return self.cache / "hf_mpwriter" / "uploaders"

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
        folder, run = folder_of({"XDG_CACHE_HOME": str(self.cache)}), self.run(name)
        self._peers.append(Remote(lambda: Peer(folder, run)))
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
    made = Stage(tmp_path / "cache", tmp_path / "runs")
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
    usher.begin("hand_over")
    server.call("refuse")
    assert usher.result() is False
    assert usher.call("drop_and_hold"), "the other one still had the lock"
    assert server.call("files") == before


class Watched(socket.socket):
    """A connection that notes what else is open when it ends."""

    descriptors: Descriptors
    still_open: list[int]

    def close(self) -> None:
        """End it."""
        self.still_open = [fd for fd in self.descriptors if os.path.lexists(f"/proc/self/fd/{fd}")]
        super().close()


def test_descriptors_are_closed_before_the_connection():
    """Else the usher might act, and be done, while another process holds the lock."""
    usher, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with usher, Watched(fileno=near.detach()) as connection:
        connection.descriptors = Descriptors(*(os.open(os.devnull, os.O_RDONLY) for _ in range(4)))
        Asked(b"", connection.descriptors, connection).refuse()
        assert connection.still_open == []
        assert usher.recv(10) == b""


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


def test_a_connection_that_waits_ends_when_the_uploader_leaves(stage):
    """It was accepted, and has not asked yet."""
    server, peer = stage.server(), stage.peer()
    peer.call("connect", *stage.names())
    server.call("listen", 1, SHORT)
    server.call("close")
    assert peer.call("answer") == b""


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
    assert usher.call("hand_over", ASKED) is False
    server.go_on()
    assert server.call("serve") == [False]
    assert stage.is_locked()


def test_a_stopped_uploader_does_not_keep_the_lock_of_a_run_that_it_was_asked_to_take(stage):
    """A copy of the descriptor waits for it. The usher, killed meanwhile, had locked anew."""
    server, usher = stage.server(), stage.usher()
    server.stop()
    assert usher.call("hand_over", ASKED) is False
    assert stage.is_locked()
    usher.kill()
    assert not stage.is_locked()


def test_a_stopped_uploader_does_not_keep_the_usher_from_the_next_one(stage):
    """Each gets its share of the patience."""
    first, second, usher = stage.server(), stage.server(), stage.usher()
    first.stop()
    usher.begin("hand_over", 2 * ASKED)
    assert second.call("serve_late", SHORT) == [True]
    assert usher.result() is True
    usher.kill()
    first.go_on()
    assert first.call("serve") == [False]
    assert stage.is_locked()


def test_one_of_the_two_acts_however_late_the_answer_comes(stage):
    """The patience of the usher ends at about the moment at which the other one takes the run.

    What was too short or too long for this machine is longer or shorter the next time.
    """
    server, usher = stage.server(), stage.usher()
    rng, ends, about = random.Random(1), [], 0.004
    for _ in range(400):
        usher.begin("hand_over", rng.uniform(about / 4, about))
        taken = server.call("serve_late", rng.uniform(0.0, about), SHORT)
        ends.append(usher.result())
        about = max(0.001, about * (0.9 if ends[-1] else 1.1))
        assert taken == [ends[-1]] or (not taken and not ends[-1]), "it may give up before it asks"
        if ends[-1]:
            usher.call("drop")
            server.call("drop")
            assert usher.call("hold")
    assert 40 < sum(ends) < 360, "the moments are about the same"


# the key


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "https://other"},
        {"repo_id": "me/other"},
        {"repo_type": "dataset"},
        {"revision": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_repository_has_another_key(change):
    """Its Hub, name, type or branch; the folder in it is the run's own."""
    assert key(destination=RECORD["destination"] | change).name != OWN.name
    assert key(destination=RECORD["destination"] | {"path_in_repo": "other"}) == OWN
    assert key(nodes={"count": 2, "rank": 0}).name != OWN.name


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_MPWRITER_COMMITS_PER_HOUR", "HF_HOME"),
        *("https_proxy", "HTTPS_PROXY", "No_Proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("CURL_CA_BUNDLE", "TRANSFORMERS_OFFLINE", "HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE"),
    ],
)
def test_another_environment_of_the_client_has_another_digest(name):
    """Another value, and none; the name of the key does not tell."""
    keys = [key(environ) for environ in ({}, {name: ""}, {name: "one"}, {name: "two"})]
    assert len({one.digest(b"nonce") for one in keys}) == 4
    assert {one.name for one in keys} == {OWN.name}


@pytest.mark.parametrize("name", ["HF_MPWRITER_SUPERVISOR", "HF_MPWRITER_LOGDIR", "RANK", "CUDA_VISIBLE_DEVICES"])
def test_what_an_uploader_does_not_read_makes_no_difference(name):
    """Trials of one sweep differ in it."""
    assert key(ENVIRON | {name: "4711"}) == OWN


def test_a_token_is_nowhere_to_be_read(stage):
    """Not in a key as it is logged, in a name, or in a request."""
    request = meeting._request(OWN, record())
    assert b"hf_secret" not in request
    assert request != meeting._request(OWN, record()), "each has a nonce of its own"
    assert "hf_secret" not in f"{OWN!r} {OWN}"
    stage.server()
    (name,) = stage.names()
    assert "hf_secret" not in name


def test_a_process_has_the_key_of_its_twin(stage):
    """Another process of the same surroundings."""
    first, second = stage.peer(), stage.peer()
    assert first.call("key_name", stage.run()) == second.call("key_name", stage.run())


def test_another_filesystem_has_another_key(stage):
    """A mount that hangs holds up no run elsewhere."""
    peer = stage.peer()
    assert peer.call("key_name", stage.run()) != peer.call("key_name", Path("/proc/self"))


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("apart", [CLONE_NEWNET, CLONE_NEWUTS, CLONE_NEWNS], ids=["net", "uts", "mnt"])
def test_another_namespace_has_another_key(stage, apart):
    """Of network, host name or mounts."""
    peer = stage.peer()
    assert peer.call("key_name", stage.run()) != peer.call("key_name", stage.run(), apart)


@pytest.mark.root
@needs_root
def test_another_user_has_another_key(stage):
    """The files of a run, and its token, are one user's."""
    peer = stage.peer()
    before = peer.call("key_name", Path("/"))
    peer.call("be", STRANGER)
    assert peer.call("key_name", Path("/")) != before


def test_an_uploader_of_another_repository_is_not_asked(stage):
    """It has another name."""
    server, usher = stage.server(key(destination=RECORD["destination"] | {"repo_id": "me/other"})), stage.usher()
    assert usher.call("hand_over") is False
    assert not server.call("is_asked")


def test_only_older_uploaders_are_asked_by_one_that_listens_itself(stage):
    """Of two that find each other the younger one hands over, so not both do, or neither."""
    older, younger = stage.usher(), stage.usher("exp2")
    assert older.call("open")
    assert younger.call("open")
    assert older.call("hand_over_if_younger") is False
    younger.begin("hand_over_if_younger")
    assert older.call("serve") == [True]
    assert younger.result() is True
    assert not younger.call("is_asked")


def test_an_uploader_with_another_token_takes_no_run(stage):
    """It closes what came with the request before the usher sees that; the next one is asked."""
    other, own, usher = stage.server(OF_ANOTHER_TOKEN), stage.server(), stage.usher()
    before = other.call("files")
    other.begin("serve", 1, 4 * SHORT)
    usher.begin("hand_over")
    assert own.call("serve") == [True]
    assert usher.result() is True
    assert other.result() == []
    assert other.call("files") == before


# the folder


def test_a_dead_uploader_is_forgotten(stage):
    """Its name is removed by the next usher of its key."""
    server, usher = stage.server(), stage.usher()
    server.kill()
    assert len(stage.names()) == 1
    assert usher.call("hand_over") is False
    assert stage.names() == []


def test_old_names_are_removed(stage):
    """Those of other keys, and what a killed process has not finished; not what is young."""
    for path in (stage.path.parent, stage.path):
        path.mkdir(parents=True, mode=0o700)
    old, unfinished, young = (stage.path / name for name in ("a.1.1.0", ".b.1.1.0.tmp", "c.1.1.0"))
    for path in (old, unfinished, young):
        path.touch()
    for path in (old, unfinished):
        os.utime(path, (0, time.time() - meeting.NAME_KEPT - 60))
    stage.server()
    assert young.exists()
    assert not old.exists()
    assert not unfinished.exists()


@pytest.mark.parametrize("failpoint", ["meeting.rename=eio", "meeting.rename=enospc"])
def test_where_the_folder_takes_no_name_there_is_no_meeting(stage, failpoint):
    """The run has an uploader of its own then, and nothing is left in the folder."""
    with failing(failpoint):
        assert Meeting.open(folder_of({"XDG_CACHE_HOME": str(stage.cache)}), OWN) is None
    assert list(stage.path.iterdir()) == []


def test_the_folder_may_have_a_long_path(stage):
    """The address of a socket has 108 bytes at most, a path 4,096."""
    stage.cache = stage.cache / "/".join(["x" * 200] * 10)
    server, usher = stage.server(), stage.usher()
    usher.begin("hand_over")
    assert server.call("serve") == [True]
    assert usher.result() is True


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o770])
def test_a_folder_that_others_may_write_to_is_not_used(stage, mode):
    """Neither by an usher, nor by an uploader that would serve."""
    server, usher = stage.server(), stage.usher()
    stage.path.chmod(mode)
    assert usher.call("hand_over") is False
    assert not server.call("is_asked")
    assert stage.peer().call("open") is False
    assert len(stage.names()) == 1


@pytest.mark.root
@needs_root
def test_a_folder_of_another_user_is_not_used(stage):
    """As where root works with the cache of a user."""
    server, usher = stage.server(), stage.usher()
    os.chown(stage.path, STRANGER, STRANGER)
    assert usher.call("hand_over") is False
    assert not server.call("is_asked")
    assert stage.peer().call("open") is False


def test_where_no_folder_can_be_each_run_has_its_own_uploader(stage):
    """A file is in its place, as root may write to any folder."""
    stage.path.parent.mkdir(parents=True)
    stage.path.touch()
    assert stage.peer().call("open") is False
    assert stage.usher().call("hand_over") is False


@pytest.mark.root
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_folder_that_hangs_holds_up_no_run(stage, tmp_path):
    """An usher waits for as long as for an answer, and an uploader that would serve no longer."""
    usher = stage.usher()
    with hanging(tmp_path / "hanging"):
        stage.cache = tmp_path / "hanging"
        late, began = stage.usher("exp2"), time.monotonic()
        assert late.call("hand_over", SHORT) is False
        assert late.call("open", OWN, SHORT) is False
        assert time.monotonic() - began < LONG / 2
    assert usher.call("drop_and_hold")


# what comes to an uploader


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        (b"", 0),
        (b"garbage", 0),
        (b"garbage", 4),
        (meeting._request(OWN, record()), 0),
        (meeting._request(OWN, record()), 3),
        (meeting._request(OWN, record()), 9),
        (meeting._request(OWN, record())[:60], 4),
        (meeting._request(OWN, record())[1:], 4),
        (meeting._request(OWN, bytes(meeting._LONGEST)), 4),
    ],
    ids=["nothing", "garbage", "garbage+4", "0", "3", "9", "half", "no-version", "long"],
)
def test_what_is_no_request_is_dropped(stage, data, descriptors):
    """Its connection ends, nothing of it stays open, and the next run is taken."""
    server, peer, usher = stage.server(), stage.peer(), stage.usher()
    before = server.call("files")
    server.begin("listen")
    assert peer.call("send", *stage.names(), data, descriptors) == b""
    usher.begin("hand_over")
    assert server.result() == [str(stage.run())]
    assert server.call("take") == [True]
    server.call("drop")
    assert server.call("files") == before


def test_a_flood_of_connections_keeps_no_run_away(stage):
    """So many are held at most; the oldest go."""
    server, peer, usher = stage.server(), stage.peer(), stage.usher()
    before = server.call("files")
    server.begin("listen")
    peer.call("connect", *stage.names(), 5 * meeting.HELD)
    usher.begin("hand_over")
    assert server.result() == [str(stage.run())]
    assert server.call("take") == [True]
    assert usher.result() is True
    server.call("drop")
    assert len(server.call("files")) <= len(before) + meeting.HELD
    peer.kill()
    assert server.call("serve", 1, SHORT) == []
    assert server.call("files") == before


def test_a_connection_without_a_request_ends(stage, monkeypatch):
    """An usher asks at once."""
    monkeypatch.setattr(meeting, "SILENCE", 0.0)
    server, peer = stage.server(), stage.peer()
    before = server.call("files")
    peer.call("connect", *stage.names())
    server.call("listen", 1, SHORT)
    server.call("listen", 1, 0.0)
    assert server.call("files") == before


def test_without_free_descriptors_no_runs_are_served(stage):
    """The name is removed, the usher goes on, and the uploader is not woken for ever."""
    server, usher = stage.server(), stage.usher()
    server.call("limit", 0)
    usher.begin("hand_over")
    server.call("wait_until_asked")
    assert server.call("serve", 1, SHORT) == []
    assert usher.result() is False
    assert stage.names() == []
    assert not server.call("is_asked")
    server.call("close")


def test_descriptors_that_do_not_fit_are_not_kept(stage):
    """The run stays with the usher."""
    server, usher = stage.server(), stage.usher()
    server.call("limit", 4)
    before = server.call("files")
    usher.begin("hand_over")
    server.call("wait_until_asked")
    assert server.call("serve", 1, SHORT) == []
    assert usher.result() is False
    assert server.call("files") == before
    assert usher.call("drop_and_hold")


@pytest.mark.root
@needs_root
def test_what_another_user_asks_for_is_not_read(stage, open_place):
    """As the kernel says who asks; here the mode of the socket lets all users connect."""
    stage.cache = open_place
    server, stranger = stage.server(), stage.peer()
    stage.path.parent.chmod(0o755)
    stage.path.chmod(0o755)
    (stage.path / stage.names()[0]).chmod(0o777)
    stranger.call("be", STRANGER)
    stranger.begin("send", *stage.names(), meeting._request(OWN, record()), 4)
    server.call("wait_until_asked")
    assert server.call("listen", 1, SHORT) == []
    assert stranger.result() == b""


@pytest.mark.root
@needs_root
def test_no_run_is_handed_to_another_user(stage):
    """The kernel says who listens."""
    for path in (stage.path.parent, stage.path):
        path.mkdir(parents=True, mode=0o700)
    stranger, usher = stage.peer(), stage.usher()
    stranger.call("listen_as", STRANGER)
    assert usher.call("hand_over") is False
    assert stranger.call("is_sent_anything") is False
