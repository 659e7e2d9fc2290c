"""Ending: what a process answers for at its end, and how long it waits for that."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence

import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Retry
from hf_mpwriter.base.words import command_line
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.delivery.sinks import Carrier, Delivery, HubSink, LogdirSink, Outlook
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.delivery.wait import Look, Wanted
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import LINGER, LONGEST_STAY, UploaderStatus
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.worker import answers, ending
from hf_mpwriter.worker.answers import Awaited
from hf_mpwriter.worker.ending import End
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages import Messages
from hf_mpwriter.worker.patience import MACHINE, Terms, ends_with, is_failure, patience
from hf_mpwriter.worker.reporter import Reporter
from hf_mpwriter.worker.role import Role


def to_await(
    spool: Spool, own: dict[str, int], *, reports: bool = True, rank: int | None = None, **more
) -> dict[str, int]:
    """What a process answers for."""
    membership = Membership(spool)
    membership.role = Role(rank, None)
    membership.destination = Destination("https://hub", "me/run")
    return dict(answers.to_await(membership, own, reports=reports, **more).of_hub.lengths)


def end_of(spool: Spool, lengths: dict[str, int], terms: Terms, to: Destination | None = None, **more: object) -> End:
    """The end of a process that has written something, and reports."""
    membership = Membership(spool)
    membership.destination, reporter = to, Reporter(membership)
    reporter.take(at_end=True)
    awaited = Awaited(Wanted.now(HubSink(spool), lengths), Wanted(LogdirSink(spool), {}))
    messages = Messages(membership, reporter, time.time())
    return End(awaited, terms, reporter, messages, lambda: Logged(lengths), **more)


def test_what_is_known_is_not_read_again_at_the_end(run_dir):
    """Gigabytes would take minutes, before the wait that is bounded: only what comes after it is parsed."""
    path = run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    length = event_file(path, 20)
    with open(path, "r+b") as file:
        file.write(bytes(100))  # a reader of the beginning stops there
    spool, own = Spool(str(run_dir)), {path.name: length - 50}
    assert to_await(spool, own) == own
    half = event_file(run_dir / "half" / path.name, 10)
    both = {path.name: half, f"half/{path.name}": half}
    assert to_await(spool, {path.name: half}) == both
    assert to_await(spool, {path.name: half}, reports=False) == {path.name: half}
    assert to_await(spool, {path.name: half}, rank=0) == {path.name: half}
    assert to_await(spool, {path.name: half}, rank=0, is_last=True) == both
    assert EventFileScan(Directory(run_dir), lambda _: half).files(lambda _: True, set)[0].length == length


def test_nothing_that_others_may_have_made_is_read_or_waited_for_at_the_end(run_dir, monkeypatch):
    """A file of another writer, or of another user under a name of ours, may have any length; the end has a limit."""
    spool, path = Spool(str(run_dir)), run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    length = event_file(path, 3)
    event_file(run_dir / "events.out.tfevents.1000000001.theirs", 3)
    assert to_await(spool, {}) == {path.name: length}
    monkeypatch.setattr(event_files, "owners", lambda _: {12345})
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *args, **kw: opened.append(str(path)) or original(path, *args, **kw))
    assert to_await(spool, {}) == {}
    assert not [path for path in opened if "tfevents" in path]


def test_what_is_of_the_run_is_waited_for_although_there_is_no_time_to_look(run_dir):
    """The ledger or a member names it: it counts with all its bytes, unread; other files are not looked for."""
    spool, name = Spool(str(run_dir)), "events.out.tfevents.1000000000.there.1.0123abcd"
    spool.create()
    length, _ = event_file(run_dir / name, 3), event_file(run_dir / f"other/{name}", 3)
    member = MemberFile(spool, "main", Process.current(), Settings())
    member.write({"open": name})
    member.write({"seal": name})
    assert to_await(spool, {}, end=time.monotonic()) == {name: length}
    assert to_await(spool, {}) == {name: length, f"other/{name}": length}
    member.leave()


WORKS, FAILS, STANDS = Outlook(), Outlook(fails=True), Outlook(stands=True)
TURN_IS_FAR, TURN_IS_NEAR = Outlook(turn_in=10.1), Outlook(turn_in=9.9)
IN_LINE = TURN_IS_FAR._replace(in_line=True)
UNANSWERED, ASKED = Outlook(unanswered=10.0), Outlook(unanswered=9.9)


@pytest.mark.parametrize(
    ("terms", "outlook", "longest", "idle"),
    [
        (Terms(60), WORKS, 60, math.inf),
        (Terms(60), TURN_IS_NEAR, 60, math.inf),
        (Terms(60), TURN_IS_FAR, 0, math.inf),
        (Terms(60), ASKED, 60, math.inf),
        (Terms(60), UNANSWERED, 0, math.inf),
        (Terms(60), FAILS, 3, math.inf),
        (Terms(60), STANDS, 10, math.inf),
        *((Terms(60, has_peers=True), outlook, longest, math.inf) for outlook, longest in ((WORKS, 60), (FAILS, 3))),
        *(
            (Terms(60, is_last=True), outlook, 60, math.inf)
            for outlook in (WORKS, FAILS, STANDS, TURN_IS_FAR, UNANSWERED)
        ),
        (Terms(60, is_last=True), IN_LINE, 0, math.inf),
        (Terms(60, is_last=True), TURN_IS_NEAR._replace(in_line=True), 0, math.inf),
        (Terms(60, is_last=True), Outlook(turn_in=2.9, in_line=True), 60, math.inf),
        (Terms(60), Outlook(turn_in=10.1, safe_soon=True), 10, math.inf),
        (Terms(60, is_last=True, is_asked=True), IN_LINE, 60, math.inf),
        (Terms(60, is_last=True, ends_with="this container"), IN_LINE, 60, math.inf),
        (Terms(60, failed=True), WORKS, 60, math.inf),
        (Terms(60, failed=True, has_peers=True), WORKS, 10, 2),
        *((Terms(60, failed=True, has_peers=peers, is_last=True), FAILS, 2, math.inf) for peers in (True, False)),
        (Terms(60, failed=True), STANDS, 2, math.inf),
    ],
)
def test_how_long_an_end_waits(terms, outlook, longest, idle):
    """While it helps, or as it was asked to; a failed rank lets its peers restart; what is in vain is short."""
    assert patience(terms, outlook) == (longest, idle)
    for least in (0, 1.5):
        assert patience(terms._replace(exit_timeout=least), outlook).longest == min(least, longest)
    assert patience(terms._replace(spent=0.5), outlook).longest == max(0, longest - 0.5)
    assert patience(terms._replace(spent=100), outlook).longest == 0


CONTAINER = 4026532123  # inode of a pid namespace


@pytest.mark.parametrize(
    ("environ", "namespace", "above", "first", "found"),
    [
        ({}, MACHINE, {1, 7}, "systemd", ""),
        ({}, MACHINE, {1, 7}, "anything", ""),
        ({}, CONTAINER, {1, 7}, "systemd", ""),
        ({}, CONTAINER, {1}, "python", "this container"),
        ({}, CONTAINER, {1, 7}, "tini", "this container"),
        ({}, CONTAINER, {7}, "python", ""),  # `docker exec`
        ({}, 0, {1}, "launchd", ""),
        ({"SLURM_JOB_ID": "7"}, MACHINE, {1}, "systemd", "the SLURM job"),
        ({"PBS_JOBID": "7.host", "PBS_ENVIRONMENT": "PBS_BATCH"}, MACHINE, {1}, "systemd", "the PBS job"),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "0"}, MACHINE, {1}, "systemd", "the LSF job"),
        ({"JOB_ID": "7", "SGE_TASK_ID": "undefined"}, MACHINE, {1}, "systemd", "the Grid Engine job"),
        (
            {"JOB_ID": "0" * 24, "ACCELERATOR": "", "CPU_CORES": "2", "MEMORY": "1"},
            CONTAINER,
            {7},
            "python",
            "the Hugging Face job",
        ),
        ({"JOB_ID": "7"}, MACHINE, {1}, "systemd", ""),
    ],
)
def test_what_takes_the_uploader_along(environ, namespace, above, first, found):
    """A batch job, and a container whose first process is above; not the machine, nor a container with a system."""
    assert ends_with(environ, namespace, above, first) == found


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (None, False),
        (SystemExit(), False),
        (SystemExit(0), False),
        (GeneratorExit(), False),
        (SystemExit(7), True),
        (SystemExit("text"), True),
        (KeyboardInterrupt(), True),
        (ValueError(), True),
    ],
)
def test_what_a_failure_is(error, is_one):
    """What ends a process with an exit code other than 0."""
    assert is_failure(error) is is_one


@pytest.mark.parametrize(
    ("role", "has"),
    [
        (Role(None, None), False),
        (Role(None, None, 4), False),
        (Role(0, None, 1), False),
        (Role(0, None), False),
        (Role(0, None, 2), True),
        (Role(3, None), True),
        (Role(3, None, 4), True),
    ],
)
def test_who_has_peers(role, has):
    """Ranks of several; a rank above 0 where the launcher does not tell how many there are."""
    assert role.has_peers is has


NOW = 1_795_333_000.0


@pytest.mark.parametrize(
    ("blocked_for", "phase", "stays"),
    [
        (0.0, "waiting", LINGER),
        (-60.0, "waiting", LINGER),
        (3600.0, "waiting", 3600 + LINGER),
        (3600.0, "left", LINGER),
        (1e6, "waiting", LONGEST_STAY + LINGER),
    ],
)
def test_an_uploader_stays_for_what_the_hub_asks_for_and_ten_minutes(blocked_for, phase, stays):
    """A wait that is over counts no more; a wait of more than a day is not believed."""
    status = UploaderStatus(phase=phase, blocked_until=1000.0 + blocked_for if blocked_for else 0.0)
    assert status.tries_until(NOW, 1000.0, NOW) == NOW + stays


def test_the_message_names_the_true_time_where_the_hub_asks_for_a_longer_wait(run_dir, caplog):
    """429 with an hour: the uploader outlasts the ten minutes, and nothing is waited for now."""
    spool = Spool(str(run_dir))
    spool.create()
    host = spool.host(host_id())
    disk.make_dirs(host.root)
    path = run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    lock, ends = locks.try_exclusive(spool.uploader_lock), []
    try:
        status = StatusFile(host, Process.current(), time.monotonic, 0.0)
        status.failed(Retry("429", 3600.0), 1)
        blocked_until = time.monotonic() + 3600
        status.publish(phase="waiting", waiting=1, commits=0, blocked_until=blocked_until)
        ends.append(time.time())
        end_of(spool, {path.name: event_file(path, 20)}, Terms(60.0)).wait(lambda: None)
        ends.append(time.time())
    finally:
        locks.release(lock)
    (line,) = [record.getMessage() for record in caplog.records]
    times = {time.strftime("%H:%M", time.localtime(at + 3600 + LINGER)) for at in ends}
    assert any(f"an uploader goes on trying, until {at} at least; to wait for it" in line for at in times)


def test_a_wait_tells_first_where_the_run_goes_and_last_the_command(run_dir, caplog):
    """A wait without a failure is information; what is missing at its end is a warning."""
    caplog.set_level(logging.INFO)
    spool, to = Spool(str(run_dir)), Destination("https://hub", "me/run", path_in_repo="exp1")
    spool.create()
    spool.record_destination(to)
    path = run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    lengths = {path.name: event_file(path, 20)}
    end_of(spool, lengths, Terms(0.3, is_last=True), to, quiet_wait=-1000.0).wait(lambda: None)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO", "INFO", "WARNING"], told
    assert (told[0][1].endswith(f" goes to {to.url}"), told[1][1].split()[0]) == (True, "waiting")
    assert all(text.endswith(f": {command_line('sync', run_dir)}") for _, text in told[1:]), told


@pytest.fixture
def seen(run_dir, monkeypatch):
    """Let an end with a clock of its own see some deliveries, one every so many seconds; the times of the looks."""
    spool, now, found = Spool(str(run_dir)), [0.0], list[tuple[float, float]]()
    spool.create()
    (run_dir / "a").touch()

    def see(terms: Terms, looks: Iterable[tuple[Delivery, ...]], pause: float) -> list[tuple[float, float]]:
        def look(wanted: Sequence[Wanted], *_: object) -> Iterator[Look]:
            for deliveries in looks:
                yield Look(deliveries, is_due=False)
                found.append((now[0], wanted[0].sink.until))
                now[0] += pause

        monkeypatch.setattr(ending, "wait_for", look)
        end_of(spool, {"a": 1}, terms, clock=lambda: now[0]).wait(lambda: None)
        return found

    return see


def test_the_ledger_is_read_as_long_as_an_end_waits(seen):
    """After an exception the wait is short while nothing moves, and longer after progress."""
    looks = [(Delivery(missing={"a": 1}, step=(step,)),) for step in range(2)]
    assert seen(Terms(60.0, failed=True, has_peers=True), looks, 1.5) == [(0.0, 2.0), (1.5, 3.5)]


@pytest.mark.parametrize(
    ("outlooks", "seconds"),
    [([WORKS, STANDS], 60), ([FAILS, STANDS], 10), ([FAILS], 3), ([TURN_IS_FAR, FAILS], 3)],
)
def test_an_end_waits_for_that_sink_that_is_worth_the_longest_wait(seen, outlooks, seconds):
    """A Hub that is down keeps nothing from the logdir, nor the other way round."""
    carriers = [Carrier(outlook=outlook) for outlook in outlooks]
    deliveries = tuple(Delivery(missing={"a": 1}, carrier=carrier) for carrier in carriers)
    assert seen(Terms(60.0), itertools.repeat(deliveries), 0.5)[-1][0] == seconds - 0.5, "the last look ends it"
