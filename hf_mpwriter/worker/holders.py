"""Holders: the living process that has a name, and what the user can do about it.

A rank whose name is held is a second start beside a first one that has not ended: a launcher was killed, and its ranks
live on. Its curve goes on below another name, so the user is told who has the first. Or one launcher has started two
processes as the same rank: these are siblings, and nothing of either is left over.
Processes without a rank may share a logdir on purpose, and array tasks by mistake.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from hf_mpwriter.base.job import array_task
from hf_mpwriter.base.names import is_worker
from hf_mpwriter.base.words import OURS, as_path, duration, typed
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import Member, MemberName, Reading
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.process import Process, ancestors, boot_id, host_id, pid_namespace, start_ticks
from hf_mpwriter.system.redaction import printable

A_LOGDIR_EACH = (
    "Give each array task a logdir of its own, as the default is: after a restart, one may continue another's curve."
)


def find(spool: Spool, worker: str) -> Member | None:
    """The living member of that name; None where it cannot be found, as while it joins."""
    with suppress(OSError):
        for name in living(spool, worker):
            if (member := read(spool, name)) is not None:
                return member
    return None


def read(spool: Spool, name: MemberName) -> Member | None:
    """What a living worker says of itself; None if it has just left."""
    with suppress(OSError):
        (reading := Reading(name)).read(spool.members / str(name))
        if reading.member is not None and reading.member.alive:
            return reading.member
    return None


def living(spool: Spool, worker: str = "") -> Iterator[MemberName]:
    """The names of the living workers, this process included; nothing is read. OSError if they cannot be listed."""
    for name in map(MemberName.parse, sorted(spool.members.names())):
        if name is None or worker not in ("", name.worker):
            continue
        if not worker and not is_worker(name.worker):
            continue
        if _is_held(spool.members / str(name)):
            yield name


def _is_held(place: Place) -> bool:
    """Whether a process holds the lock of a member file; False if it has just left."""
    with suppress(OSError):
        return locks.is_held(place)
    return False


def above(spool: Spool) -> Iterator[MemberName]:
    """The living workers that this process descends from. OSError if they cannot be listed."""
    pids = set(ancestors())
    own = [name for name in map(MemberName.parse, spool.members.names()) if name is not None and name.pid in pids]
    if any(_is_here(name) for name in own):
        yield from (name for name in living(spool) if name in own and _is_here(name))


def rank_above(spool: Spool) -> int | None:
    """The rank of a living worker that this process descends from, None without one, or if that has none."""
    with suppress(OSError):
        for name in above(spool):
            if (member := read(spool, name)) is not None:
                return member.rank
    return None


def is_daemon_below(spool: Spool, name: MemberName) -> bool:
    """Whether a worker descends from this process, and is ended with it, as the workers of a DataLoader."""
    return is_below(name) and (member := read(spool, name)) is not None and member.is_daemon


def is_below(name: MemberName) -> bool:
    """Whether a worker descends from this process."""
    return _is_here(name) and os.getpid() in ancestors(name.pid)


def _is_here(name: MemberName) -> bool:
    """Whether the process id of a worker means that process here."""
    return name.host == host_id() and name.ticks > 0 and start_ticks(name.pid) == name.ticks


def is_ancestor(member: Member) -> bool:
    """Whether this process descends from a member: it is a program that a rank has started, and no second start."""
    return _is_near(member.process) and member.process.pid in ancestors()


def is_sibling(member: Member, launcher: Process | None) -> bool:
    """Whether a member belongs to the attempt of this process: the same launcher has started both as ranks."""
    return launcher is not None and bool(launcher.ticks) and member.launcher == launcher


def is_of_other_task(member: Member) -> bool:
    """Whether a member is of another array task than this process: another run, and not an earlier attempt."""
    own = array_task(os.environ)
    return None not in (own, member.task) and own != member.task


def _is_near(process: Process) -> bool:
    """Whether its process id means the same here."""
    return (process.host, process.boot, process.namespace) == (host_id(), boot_id(), pid_namespace())


def describe(member: Member) -> str:
    """Which process it is, and for how long it has logged here."""
    process = member.process
    where = process.host.rpartition("-")[0]
    if process.host == host_id() and not _is_near(process):
        where += ", in another container"
    task = "" if member.task is None else f" (array task {member.task})"
    return (
        f"process {process.pid} on {where}{task}, which has been here for {duration(time.time() - member.started_at)}"
    )


def command(member: Member) -> str:
    """What ends it."""
    process = member.process
    kill = typed("kill", str(process.pid))
    if _is_near(process):
        return kill
    where = "in its container" if process.host == host_id() else f"on {process.host.rpartition('-')[0]}"
    return f"{where}: {kill}"


def is_orphan(member: Member, here: Process, ticks_of: Callable[[int], int]) -> bool:
    """Whether a worker lives, and the process without which it is an orphan has ended."""
    place, agent = (here.host, here.boot, here.namespace), member.agent
    if not member.alive or agent is None or not here.namespace:
        return False
    if any((one.host, one.boot, one.namespace) != place for one in (member.process, agent)):
        return False
    lives = member.process.ticks and ticks_of(member.process.pid) == member.process.ticks
    return bool(lives) and bool(agent.ticks) and ticks_of(agent.pid) != agent.ticks


def sharing(run_dir: str, name: str, member: Member | None) -> str:
    """What a process without a rank says that is not the first one."""
    who = describe(member) if member else "another process"
    cure = f" {A_LOGDIR_EACH}" if member is not None and is_of_other_task(member) else ""
    return printable(f"{run_dir} is in use by {who}. This process logs in {name}/ there.{cure}")


def warning(
    run_dir: str, wanted: str, name: str, member: Member | None, *, is_sibling: bool = False, hides: bool = True
) -> str:
    """What a process tells whose name is held; `hides`: with `purge_step`, the steps of the holder, once it is gone."""
    who = describe(member) if member else "a process that cannot be named"
    text = f"{run_dir}: the name {wanted} is held by {who}. This process logs as {name} instead."
    if member is not None and is_of_other_task(member):
        return f"{text} {A_LOGDIR_EACH}"
    if member is not None and is_sibling:
        started_by = member.launcher.pid if member.launcher else 0
        return (
            f"{text} Process {started_by} has started both as the same rank: give each a rank or a logdir of its own. "
            f"If that process is left from an earlier attempt, end it: {command(member)}."
        )
    next_start = f"The next start continues as {wanted} if no process holds it then."
    if member is None:
        return f"{text} If both are to run, give each a logdir of its own. {next_start}"
    hidden = " With purge_step, what it logged from that step on is hidden as soon as it is gone." * hides
    if is_orphan(member, Process.current(), start_ticks):
        below = typed(OURS, "run", "--kill-orphans", "--logdir", as_path(run_dir))
        return (
            f"{text} Its launcher has ended, so it is left from an earlier attempt. End it: {command(member)}. A start "
            f"below {below} does so.{hidden} {next_start}"
        )
    return (
        f"{text} If that process is left from an earlier attempt, end it: {command(member)}.{hidden} If both are to "
        f"run, give each a logdir of its own. {next_start}"
    )
