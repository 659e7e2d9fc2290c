"""The reporter: one process of a run tells the user what becomes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from forks import in_child

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.worker import holders
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.reporter import LATER, Reporter, ToldRecord
from hf_mpwriter.worker.role import Role

ALONE = Role(None, None)
CHILD = Role(None, "Process-1")


def reporter(spool: Spool, role: Role = ALONE) -> Reporter:
    """The part of a process in who reports."""
    membership = Membership(spool)
    membership.role = role
    return Reporter(membership)


@contextlib.contextmanager
def member(spool: Spool, worker: str, **more: object) -> Iterator[None]:
    """A member of the run, of this process."""
    file = MemberFile(spool, worker, Process.current(), Settings(), **more)
    yield
    file.withdraw()


def test_one_process_reports_and_when_it_ends_the_next_one_does(own_spool):
    """The kernel frees the lock of one that dies."""
    first, other = reporter(own_spool, Role(0, None)), reporter(own_spool)
    assert (first.take(at_end=True), other.take(at_end=True)) == (True, False)
    assert locks.is_held(own_spool.reporter_lock)
    assert ToldRecord.read(own_spool.told).host == host_id()
    first.give_up()
    assert (first.reports, other.take(at_end=True)) == (False, True)
    assert in_child(lambda: os._exit(0 if locks.is_held(own_spool.reporter_lock) else 1)) == 0, "a fork has none of it"


def test_a_process_that_does_not_log_does_not_report(own_spool):
    """Only members do, and processes that wait at their ends."""
    assert not reporter(own_spool).take()
    assert not own_spool.reporter_lock.exists()


def test_a_rank_waits_for_lower_ranks_to_join_and_leaves_it_to_them(own_spool):
    """A run may lack rank 0; and at its end no rank waits for one that may come."""
    late, now = reporter(own_spool, Role(3, None)), [1.0]
    late._clock = lambda: now[0]
    late._membership._joined = object()  # type: ignore[assignment] # joined a moment ago
    with member(own_spool, "rank_00003"), member(own_spool, "rank_00011"), member(own_spool, "rank_00004_loader"):
        assert not late.take()
        for lower in ("main", "rank_00002"):
            now[0] += LATER
            with member(own_spool, lower):
                assert not late.take()
                assert not late.take(at_end=True)
        assert not late.take(), "it looks rarely"
        now[0] += LATER
        assert late.take()
        late.give_up()
        assert not late.take()
        assert late.take(at_end=True)
    late._membership._joined = None


@pytest.mark.parametrize("role", [CHILD, Role(None, None, is_task=True), Role(2, "loader")])
def test_a_child_leaves_the_end_to_a_member_from_which_it_descends(own_spool, role):
    """That one reports it, and waits for all. Where none is a member, a child reports as any other process."""

    def reports() -> bool:
        return in_child(lambda: os._exit(int(reporter(own_spool, role).take(at_end=True)))) == 1

    assert reports()
    with member(own_spool, "main"):
        assert not reports()
    assert reports()


def test_while_it_keeps_house_a_child_reports_for_a_member_that_waits_for_it(own_spool):
    """A parent in `join` keeps no house; but it may end at any time, and finds the lock free."""

    def keeps_house() -> None:
        mine = reporter(own_spool, CHILD)
        mine._membership._joined = object()  # type: ignore[assignment]
        assert mine.take()
        mine.give_back()
        assert not mine.reports
        assert not locks.is_held(own_spool.reporter_lock)

    with member(own_spool, "main"):
        assert in_child(keeps_house) == 0


@pytest.mark.parametrize("is_daemon", [True, False])
def test_the_last_member_is_alone_but_for_its_daemons(own_spool, is_daemon):
    """These end with it, as the workers of a DataLoader. Who only asks for a push is no worker."""
    mine = reporter(own_spool)
    assert not mine.has_others()
    with member(own_spool, OBSERVER):
        assert not mine.has_others()
    with member(own_spool, "rank_00001"):
        assert mine.has_others(), "a writer of this process may still be open"
    ready, done = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        with member(own_spool, "Process-1", is_daemon=is_daemon):
            os.write(ready[1], b"+")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert [name.worker for name in holders.living(own_spool)] == ["Process-1"]
    assert mine.has_others() is not is_daemon
    os.write(done[1], b"+")
    os.waitpid(pid, 0)
    os.rename(own_spool.members, f"{os.fspath(own_spool.members)}~")
    assert mine.has_others(), "it cannot be told"


def test_of_many_threads_one_takes_the_lock_and_the_process_keeps_it(own_spool):
    """The others see that it is held, and not that it is lost."""
    mine = reporter(own_spool)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            assert all(pool.map(lambda _: mine.take(at_end=True), range(8)))
            mine.give_up()
            assert not locks.is_held(own_spool.reporter_lock)


def test_where_the_disk_refuses_the_lock_all_report_but_children(own_spool):
    """Told twice is better than not at all; but there may be hundreds of children."""
    os.mkdir(own_spool.reporter_lock)
    assert [reporter(own_spool, role).take(at_end=True) for role in (ALONE, Role(3, None), CHILD)] == [
        True,
        True,
        False,
    ]


def test_the_first_rank_of_another_node_watches(own_spool):
    """What goes wrong is told on each node; what it has told is in the folder of its host."""
    first, mine, other = reporter(own_spool), reporter(own_spool, Role(8, None)), reporter(own_spool, Role(9, None))
    assert first.take(at_end=True)
    with member(own_spool, "rank_00008"), member(own_spool, "rank_00009"):
        assert mine.watch is None, "the reporter is on this node"
        record = ToldRecord.read(own_spool.told)
        dataclasses.replace(record, host="elsewhere-01234567").save(own_spool.told)
        assert mine.watch == own_spool.host(host_id()).told
        assert (other.watch, first.watch) == (None, own_spool.told)


def test_what_is_unsent_is_told_once_by_those_that_end_at_the_same_time(own_spool):
    """By another one only if it ends later, or if what was told has arrived."""
    first, other = reporter(own_spool, Role(0, None)), reporter(own_spool, Role(1, None))
    for one in (first, other):
        one.begin_end(4.0)
    assert (first.may_tell_unsent(failed=False), other.may_tell_unsent(failed=False)) == (True, False)
    first.told_unsent(5.0)
    first.give_up()
    assert not other.may_tell_unsent(failed=False)
    other.begin_end(6.0)
    assert other.may_tell_unsent(failed=False)


@pytest.mark.parametrize(
    ("role", "failed", "speaks"),
    [
        (Role(1, None), False, False),
        (Role(1, None), True, True),
        (ALONE, False, True),
        (CHILD, True, False),
        (Role(None, None, is_task=True), False, False),
    ],
)
def test_who_tells_what_is_unsent_although_another_one_reports(own_spool, role, failed, speaks):
    """One that fails, as the launcher may kill the others; and a program of its own, perhaps in another terminal."""
    assert reporter(own_spool, Role(0, None)).take(at_end=True)
    assert reporter(own_spool, role).may_tell_unsent(failed=failed) == speaks


def test_a_child_that_ends_before_others_leaves_what_is_unsent_to_them(own_spool):
    """It is told once, of all, when the last one ends."""
    mine = reporter(own_spool, CHILD)
    with member(own_spool, "Process-2"):
        assert (mine.may_tell_unsent(failed=False), mine.reports) == (False, True)
    assert mine.may_tell_unsent(failed=False)


def test_a_later_rank_names_itself(own_spool):
    """Several ranks may end one after the other."""
    assert [reporter(own_spool, Role(rank, None)).label for rank in (0, 3)] == ["", "rank 3: "]
