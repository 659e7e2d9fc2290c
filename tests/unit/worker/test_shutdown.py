"""Shutdown: what a process answers for at its end."""

from __future__ import annotations

import dataclasses
import logging
import math
import time

import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Retry
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress, sync_command
from hf_mpwriter.spool.staging.logdir import Shortfall
from hf_mpwriter.spool.status import LINGER, LONGEST_STAY, StatusFile, UploaderStatus
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.worker import delivery, shutdown
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages.reporter import Reporter
from hf_mpwriter.worker.messages.run import RunMessages
from hf_mpwriter.worker.patience import MACHINE, Outlook, Terms, ends_with, is_failure, patience
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.shutdown import End, Outcome, announcement, message


def to_await(
    spool: Spool, own: dict[str, int], *, reports: bool = True, rank: int | None = None, **more
) -> dict[str, int]:
    """What a process answers for."""
    membership = Membership(spool, time.monotonic)
    membership.role = Role(rank, None)
    return delivery.to_await(membership, own, Progress(spool), reports=reports, **more).lengths


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


WORKS, FAILS, STANDS = Outlook(), Outlook(fails=True), Outlook(stands=True)
TURN_IS_FAR, TURN_IS_NEAR = Outlook(turn_in=10.1), Outlook(turn_in=9.9)
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
            (Terms(60, is_long=True), outlook, 60, math.inf)
            for outlook in (WORKS, FAILS, STANDS, TURN_IS_FAR, UNANSWERED)
        ),
        (Terms(60, failed=True), WORKS, 60, math.inf),
        (Terms(60, failed=True, has_peers=True), WORKS, 10, 2),
        *((Terms(60, failed=True, has_peers=peers, is_long=True), FAILS, 2, math.inf) for peers in (True, False)),
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


NOW = time.mktime((2026, 11, 22, 7, 44, 30, 0, 0, -1))
HERE = Outcome(
    run_dir="/runs/exp1",
    missing={"a": 1000, "b": 200},
    refused={},
    is_offline=False,
    reason="ConnectError: refused",
    is_refused=False,
    is_alive=True,
    stillness="",
    until=NOW + LINGER,
    left_at=0.0,
    logged=Logged({"a": 2000, "b": 200}),
    at=NOW,
)
MISSING = "1.2 kB in 2 files of /runs/exp1 are not on the Hub"
SYNC = "hf-mpwriter sync /runs/exp1"
WAITS = Logged({}, in_memory=5, disk_error="No space left on device")
FULL = "the disk refuses them (No space left on device)"
WAITING = f"5 records wait in memory: {FULL}, and they are lost when the process ends."
DOWN = " yet: ConnectError: refused."
LATER = ", and is tried again slowly; at once by: "
GOES_ON = ", and an uploader goes on trying, until 07:54 at least; then: "
AGAIN = ", and an uploader tries again now and then, until 07:54 at least; then: "
UNSET = "; without it, this uploads it: "
OFF = ": HF_HUB_OFFLINE is set."
STOPPED = "process 7 is stopped; to let it go on: kill -CONT 7"


@pytest.mark.parametrize(
    ("changes", "why", "outlook"),
    [
        ({}, DOWN, GOES_ON),
        ({"reason": ""}, " yet.", GOES_ON),
        ({"is_refused": True, "reason": "401 Run: hf auth login."}, " yet: 401 Run: hf auth login.", AGAIN),
        ({"refused": {"a": "a: 422", "b": "a: 422"}}, ": it refuses a: 422.", LATER),
        ({"refused": {"a": "a: 422", "b": "b: 413"}, "is_alive": False}, ": it refuses a: 422, and 1 more.", LATER),
        ({"refused": {"a": "a: 422"}}, DOWN, GOES_ON),
        ({"is_offline": True}, OFF, UNSET),
        ({"stillness": STOPPED}, DOWN, f", but the uploader does not work: {STOPPED}. To finish then: "),
        ({"is_alive": False, "reason": ""}, " yet.", ", but no uploader runs. To finish: "),
        (
            {"is_alive": False, "left_at": NOW},
            DOWN,
            ", but no uploader runs; the last one tried until 07:44. To finish: ",
        ),
        (
            {"is_alive": False, "left_at": NOW - 86_400},
            DOWN,
            ", but no uploader runs; the last one tried until 2026-11-21 07:44. To finish: ",
        ),
        ({"until": NOW + 86_400}, DOWN, GOES_ON.replace("07:54", "2026-11-23 07:44")),
        ({"next_try": NOW + 12}, DOWN, GOES_ON.replace("goes on trying", "tries again in 12 s")),
        ({"next_try": NOW + 120}, DOWN, GOES_ON.replace("goes on trying", "tries again at 07:46")),
        ({"is_refused": True, "next_try": NOW + 300}, DOWN, AGAIN.replace("now and then", "at 07:49")),
        ({"is_short": True}, DOWN, GOES_ON.replace("then", "to wait for it: close(wait=True), or")),
        ({"ends_with": "the SLURM job"}, DOWN, "; the uploader ends with the SLURM job. To finish: "),
        ({"is_offline": True, "logged": WAITS}, f"{OFF} {WAITING}", UNSET),
        ({"logged": Logged({}, dropped=3)}, f"{DOWN} 3 records are lost: the disk refuses them.", GOES_ON),
    ],
)
def test_the_message_says_what_holds(changes, why, outlook):
    """Why, what comes next, until when, and one command; only what is in files is said to be on disk."""
    text = f"{MISSING}{why} What is on disk stays there{outlook}{SYNC}"
    assert message(dataclasses.replace(HERE, **changes)) == text


STAYS = "What is on disk stays there"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({}, {"missing": {}}, "/runs/exp1: all of it is on the Hub now."),
        ({}, {}, f"{MISSING} yet. {STAYS}{GOES_ON}{SYNC}"),
        ({"reason": ""}, {}, f"{MISSING}{DOWN} {STAYS}{GOES_ON}{SYNC}"),
        (
            {},
            {"missing": {"b": 200}},
            f"200 B in 1 file of /runs/exp1 are not on the Hub yet. {STAYS}{GOES_ON}{SYNC}",
        ),
        ({}, {"refused": {"a": "a: 422", "b": "a: 422"}}, None),
        ({}, {"missing": {}, "logged": WAITS}, f"/runs/exp1: all of it is on the Hub now. /runs/exp1: {WAITING}"),
    ],
)
def test_what_was_announced_is_not_repeated(before, after, text):
    """Before a long wait: what is missing, why, and the command. The last line ends with the command, too."""
    announced = dataclasses.replace(HERE, **before)
    told = announcement(announced, 57.6)
    why = " (ConnectError: refused)" if announced.reason else ""
    what = f"waiting up to 58 s until 1.2 kB in 2 files of /runs/exp1 are on the Hub{why}."
    assert told == f"{what} Ctrl-C ends the wait and nothing else; if this process is killed before: {SYNC}"
    end = message(dataclasses.replace(HERE, **after), announced)
    assert end == (text or f"{MISSING}: it refuses a: 422. {STAYS}{LATER}{SYNC}")


def test_what_waits_in_memory_is_told_although_all_files_are_on_the_hub():
    """Nothing else is missing; and without both there is nothing to say."""
    assert message(dataclasses.replace(HERE, missing={}, logged=WAITS)) == f"/runs/exp1: {WAITING}"
    assert message(dataclasses.replace(HERE, missing={})) == ""


def test_the_command_of_the_message_can_be_copied_into_a_shell():
    """A path with spaces is quoted."""
    assert message(dataclasses.replace(HERE, run_dir="/a b")).endswith(": hf-mpwriter sync '/a b'")


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
        status.failed(Retry("429", 3600.0, limited=True), 1)
        blocked_until = time.monotonic() + 3600
        status.publish(phase="waiting", waiting=1, push=None, commits=0, blocked_until=blocked_until)
        ends.append(time.time())
        reporter = Reporter(Membership(spool, time.monotonic))
        logged = Logged({path.name: event_file(path, 20)})
        end = End(Progress(spool), spool, delivery.Awaited(dict(logged.lengths)), reporter, lambda: logged)
        end.wait(Terms(60.0), lambda: None)
        ends.append(time.time())
    finally:
        locks.release(lock)
    (line,) = [record.getMessage() for record in caplog.records]
    times = {time.strftime("%H:%M", time.localtime(at + 3600 + LINGER)) for at in ends}
    assert any(f"an uploader goes on trying, until {at} at least; then: hf-mpwriter sync" in line for at in times)


def test_a_wait_tells_first_where_the_run_goes_and_last_the_command(run_dir, caplog, monkeypatch):
    """A wait without a failure is information; what is missing at its end is a warning."""
    monkeypatch.setattr(shutdown, "QUIET_WAIT", -1000.0)
    caplog.set_level(logging.INFO)
    spool, to = Spool(str(run_dir)), Destination("https://hub", "me/run", path_in_repo="exp1")
    spool.create()
    spool.record_destination(to)
    path = run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    lengths = {path.name: event_file(path, 20)}
    reporter = Reporter(Membership(spool, time.monotonic))
    reporter.take(at_end=True)
    messages = RunMessages(spool, to, reporter, time.time())
    end = End(Progress(spool), spool, delivery.Awaited(lengths), reporter, lambda: Logged(lengths), messages=messages)
    end.wait(Terms(0.3, is_long=True), lambda: None)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO", "INFO", "WARNING"], told
    starts = [text.split()[0] for _, text in told[:2]]
    assert (starts, told[0][1].endswith(f" to {to.url}")) == (["uploading", "waiting"], True)
    assert all(text.endswith(f": {sync_command(str(run_dir))}") for _, text in told[1:]), told


def test_the_ledger_is_read_as_long_as_an_end_waits(run_dir):
    """After an exception the wait is short while nothing moves, and longer after progress."""
    spool, now = Spool(str(run_dir)), [0.0]
    spool.create()
    view, reporter = Progress(spool, lambda: now[0]), Reporter(Membership(spool, time.monotonic))
    end = End(view, spool, delivery.Awaited({}), reporter, lambda: Logged({}), lambda: now[0])
    terms = Terms(60.0, failed=True, has_peers=True)
    end.wait(terms, lambda: None)
    assert not end._has_waited((0,), terms, WORKS)
    first = view.until
    now[0] = 1.5
    assert not end._has_waited((1,), terms, WORKS)
    assert view.until == first + 1.5


THERES = MISSING.replace("/runs/exp1", "s3://b/exp1")
THERE = Shortfall("/runs/exp1", "s3://b/exp1")
LATE = Shortfall("/runs/exp1", "s3://b/exp1", {"a": 7}, reason="no space", is_alive=True)


@pytest.mark.parametrize(
    ("changes", "shown", "absent"),
    [
        (
            {"logdir": THERE},
            [
                THERES,
                "All of it is in the logdir.",
                "on disk (/runs/exp1) stays",
                "uploader goes on",
                "sync s3://b/exp1",
            ],
            ["mirror"],
        ),
        (
            {"logdir": LATE},
            [f"{THERES}{DOWN} 7 B in 1 file are not in s3://b/exp1 yet: no space."],
            ["mirror goes on"],
        ),
        (
            {"logdir": LATE, "missing": {}},
            ["7 B in 1 file are", "in /runs/exp1 stays there, and a mirror goes on trying; then: hf-mpwriter"],
            ["Hub"],
        ),
        ({"logdir": LATE, "missing": {}, "logged": WAITS}, [WAITING, "a mirror goes on trying"], ["Hub"]),
    ],
)
def test_of_a_staged_run_one_message_tells_of_both_places(changes, shown, absent):
    """What is where, why, and the one command that finishes both."""
    told = message(dataclasses.replace(HERE, **changes))
    assert [part for part in shown if part not in told] == [], told
    assert [part for part in absent if part in told] == [], told
    assert told.count("hf-mpwriter sync s3://b/exp1") == 1


def test_a_long_wait_names_the_places_that_it_waits_for():
    """Of a run without a destination that is the logdir alone."""
    local = dataclasses.replace(HERE, missing={}, logdir=LATE, uploads=False)
    assert "until 7 B in 1 file of s3://b/exp1 are in the logdir (no space)." in announcement(local, 60)
    both = dataclasses.replace(HERE, logdir=LATE)
    assert "are on the Hub and in the logdir (ConnectError: refused; no space)." in announcement(both, 60)
    arrived = dataclasses.replace(local, logdir=THERE)
    assert message(arrived, local) == "s3://b/exp1: all of it is in the logdir now."
    assert message(dataclasses.replace(arrived, uploads=True), both).endswith("on the Hub and in the logdir now.")
    assert message(arrived) == ""
