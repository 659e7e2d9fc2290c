"""The table of lock descriptors: who holds, who frees, and what fork may not change."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys

import pytest
from forks import fork, in_child, kill, living
from programs import succeed, wait_for
from support import open_descriptors

from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place, at


@pytest.fixture
def path(tmp_path):
    """Path of a lock file that does not exist yet."""
    place = at(tmp_path / "a.lock")
    assert place.directory.is_there()
    return place


@pytest.fixture(autouse=True)
def table_is_clean(path):
    """Release the locks of a test; no descriptor is left."""
    before = open_descriptors()
    yield
    for fd in list(locks._table):
        locks.release(fd)
    assert open_descriptors() <= before, "others in this process may close theirs meanwhile"


def take(path: Place) -> int:
    """Take a lock that must be free."""
    fd = locks.try_exclusive(path)
    assert fd is not None
    return fd


def test_a_lock_excludes_in_one_process_and_among_processes(path):
    """The second one gets None, at once, and leaks nothing."""
    take(path)
    before = open_descriptors()
    assert locks.try_exclusive(path) is None
    assert open_descriptors() <= before, "others in this process may close theirs meanwhile"
    assert in_child(lambda: os._exit(10 if locks.try_exclusive(path) is None else 0)) == 10


def test_sigkill_frees_a_lock(path):
    """The kernel frees what a killed process held."""
    with living(lambda: take(path)) as pid:
        assert locks.is_held(path)
        assert locks.try_exclusive(path) is None
        kill(pid)
        assert not locks.is_held(path)
        take(path)


def test_a_child_of_fork_does_not_free_its_parents_lock(path):
    """The child closes, and may even ask to release: the parent still holds."""
    fd = take(path)

    def child() -> None:
        assert fd not in locks._table
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)
        locks.release(fd)
        assert locks.is_held(path)

    assert in_child(child) == 0
    assert locks.is_held(path)
    assert in_child(lambda: os._exit(10 if locks.try_exclusive(path) is None else 0)) == 10


def test_a_living_child_of_fork_does_not_keep_its_parents_lock(path):
    """The parent releases, or is killed, while its child lives on: the lock is free."""
    told, tell = os.pipe()
    wait, let_go = os.pipe()

    def parent() -> None:
        take(path)
        if os.fork():
            os.write(tell, b".")
            signal.pause()
        os.write(tell, b".")
        os.close(let_go)
        os.read(wait, 1)
        os._exit(0)

    pid = fork(parent)
    os.close(tell)
    assert os.read(told, 1) + os.read(told, 1) == b".."
    assert locks.is_held(path)
    kill(pid)
    assert not locks.is_held(path)
    os.close(let_go)
    assert os.read(told, 1) == b"", "the grandchild has ended"
    os.close(told)
    os.close(wait)


FORKED_WHILE_OPENING = """
import os, sys, threading
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import at
path, opened, forked = sys.argv[1], threading.Event(), threading.Event()
real = os.open
def slow(name, *arguments, **keywords):
    fd = real(name, *arguments, **keywords)
    if name == os.path.basename(path):
        opened.set()
        forked.wait(0.2)  # a fork that waits for us, as it must, does not come before this is over
    return fd
locks.os.open = slow
thread = threading.Thread(target=locks.try_exclusive, args=(at(path),))
thread.start()
opened.wait()
pid = os.fork()
if not pid:
    there = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    os._exit(os.path.realpath(path) in there)
forked.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_no_fork_comes_between_opening_a_lock_file_and_knowing_it(path):
    """A child made at that moment would inherit a descriptor that it does not know, and keep the lock for its life."""
    assert succeed(FORKED_WHILE_OPENING, path) == "0\n"


def test_a_descriptor_closed_behind_our_back_does_not_spoil_the_next_fork(tmp_path):
    """A program that closes all descriptors (daemons do) still forks children that keep none of our locks."""
    source = """
import os, sys, threading
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process_state import fork_mutex
fds = [locks.try_exclusive(Directory(sys.argv[1]) / f"{n}.lock") for n in range(8)]
os.close(min(locks._table))
pid = os.fork()
if not pid:
    taken = []
    thread = threading.Thread(target=lambda: taken.append(fork_mutex.acquire(blocking=False)), daemon=True)
    thread.start()
    thread.join()
    os._exit(10 * len(locks._table) + (taken != [True]))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert succeed(source, tmp_path) == "0\n"


def test_a_deleted_lock_file_is_noticed(path):
    """After the file is deleted, the holder sees that its lock is worthless, and others get a new one."""
    fd = take(path)
    assert disk.same_file(fd, path)
    os.unlink(path)
    assert not disk.same_file(fd, path)
    assert not locks.is_held(path)
    assert disk.same_file(take(path), path)


def test_a_lock_file_deleted_while_it_is_taken_gives_no_worthless_lock(path, monkeypatch):
    """Deleted between open and lock: what comes back is a lock on the file at the path, or nothing."""
    real = locks._open

    def open_and_lose(name: Place, flags: int) -> int:
        fd = real(name, flags)
        monkeypatch.setattr(locks, "_open", real)
        os.unlink(name)
        return fd

    monkeypatch.setattr(locks, "_open", open_and_lose)
    fd = locks.try_exclusive(path)
    assert fd is None or disk.same_file(fd, path)


def test_two_observers_at_once_never_see_life(path):
    """One probe under way (a shared lock) does not look like a holder to another probe."""
    locks.release(take(path))
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        assert not locks.is_held(path)
        assert in_child(lambda: os._exit(10 if locks.is_held(path) else 0)) == 0
    finally:
        os.close(fd)


def test_observers_do_not_keep_a_free_lock_from_being_taken(path):
    """A free lock is taken soon, however often observers probe it meanwhile, as with the uploader lock."""
    locks.release(take(path))

    def observe() -> None:
        while True:
            locks.is_held(path)

    observers = [fork(observe) for _ in range(2)]
    try:
        for _ in range(100):
            fd = wait_for(lambda: locks.try_exclusive(path), "the free lock")  # a probe may be preempted
            locks.release(fd)
    finally:
        for pid in observers:
            kill(pid)


def test_a_lock_that_is_taken_costs_no_wait(path, monkeypatch):
    """A worker finds the uploader lock taken every few seconds: only for an observer it yields the processor."""
    yields = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(1))

    def own() -> None:
        assert locks.try_exclusive(path) is not None

    with living(own):
        assert locks.try_exclusive(path) is None
    assert not yields
    observer = os.open(path, os.O_RDONLY)
    fcntl.flock(observer, fcntl.LOCK_SH)
    assert locks.try_exclusive(path) is None
    os.close(observer)
    assert len(yields) == locks.PROBE_TRIES
    assert locks.try_exclusive(path) is not None


def test_a_probe_does_not_block_and_creates_nothing(path):
    """A probe of a held lock answers at once; a missing file is not held, and stays missing."""
    assert not locks.is_held(path)
    assert not os.path.exists(path)
    take(path)
    before = open_descriptors()
    assert locks.is_held(path)
    assert open_descriptors() <= before, "others in this process may close theirs meanwhile"


def test_an_adopted_descriptor_is_one_of_the_table(path):
    """It is closed in children and at exec, and release gives it back."""
    fd = os.dup(take(path))
    os.set_inheritable(fd, True)
    locks.adopt(fd)
    assert not os.get_inheritable(fd)
    assert in_child(lambda: os._exit(0 if not locks._table else 1)) == 0
    locks.release(fd)
    assert fd not in locks._table
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


def test_a_duplicate_elsewhere_keeps_the_lock(path):
    """The uploader lock passes to a spawned process: closing it here does not free it there."""
    fd = take(path)
    wait, let_go = os.pipe()
    holder = subprocess.Popen([sys.executable, "-c", f"import os;os.read({wait},1)"], pass_fds=(fd, wait))
    locks.release(fd)
    assert locks.is_held(path)
    os.close(let_go)
    holder.wait()
    os.close(wait)
    assert not locks.is_held(path)


def test_a_lock_that_is_freed_is_free_whoever_has_a_duplicate(path):
    """As a process may have that handed its run over and has not ended yet."""
    fd = take(path)
    duplicate = os.dup(fd)
    locks.free(fd)
    assert not locks.is_held(path)
    assert fd not in locks._table
    locks.free(duplicate)
    os.close(duplicate)  # it is not in the table, and was left alone


def test_a_renewed_lock_is_not_held_by_a_duplicate(path):
    """The number stays, and is that of the table."""
    fd = take(path)
    duplicate = os.dup(fd)
    before = open_descriptors()
    assert locks.renew(fd)
    assert open_descriptors() == before
    assert not os.get_inheritable(fd)
    assert locks.is_held(path)
    locks.release(fd)
    assert not locks.is_held(path)
    os.close(duplicate)


def test_a_lock_that_another_process_gets_is_not_renewed(path):
    """It holds another description of the file."""
    stale = take(path)
    fcntl.flock(stale, fcntl.LOCK_UN)
    fd = take(path)
    assert not locks.renew(stale)
    assert locks.is_held(path)
    locks.release(stale)
    locks.release(fd)


def test_a_lock_that_cannot_be_opened_anew_stays(path):
    """As where no descriptor is free."""

    def renew_without_descriptors() -> None:
        fd = take(path)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        is_ours = locks.renew(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os._exit(10 if is_ours and locks.is_held(path) else 0)

    assert in_child(renew_without_descriptors) == 10


def test_what_is_not_in_the_table_is_not_closed():
    """Release of an unknown descriptor leaves it alone."""
    read, write = os.pipe()
    locks.release(read)
    os.write(write, b".")
    assert os.read(read, 1) == b"."
    os.close(read)
    os.close(write)


def test_a_path_that_cannot_be_locked_raises_and_leaks_nothing(tmp_path):
    """A missing directory, or a symbolic link in place of the file, is an OSError."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for bad in (tmp_path / "missing" / "x.lock", tmp_path / "link"):
        with pytest.raises(OSError, match=r"\[Errno"):
            locks.try_exclusive(at(bad))
    assert not os.path.exists(tmp_path / "elsewhere")
    with contextlib.suppress(OSError):
        locks.is_held(at(tmp_path / "link"))


def test_a_file_of_the_program_on_the_number_of_a_lock_is_left_alone(path, tmp_path):
    """A program that becomes a daemon opens files on the numbers of our locks: no fork, no release closes them."""
    fd = take(path)
    with open(tmp_path / "own", "wb") as own:
        os.dup2(own.fileno(), fd)
        assert in_child(lambda: os.write(fd, b"child")) == 0
        with pytest.raises(OSError, match="descriptor"):
            locks.check(fd)
        locks.release(fd)
        os.write(fd, b"parent")
        os.close(fd)
    assert (tmp_path / "own").read_bytes() == b"childparent"
    assert fd not in locks._table
