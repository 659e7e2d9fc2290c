"""Who holds a name: a process of an earlier attempt, or one of the same launcher."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.workers.member_lines import Member, MemberName
from hf_mpwriter.supervisor.loop import environment_below
from hf_mpwriter.system import contact
from hf_mpwriter.system.process import Process
from hf_mpwriter.worker import holders, role

HERE = Process.current()
THERE = Process("host-1", "boot", 7, 100, 1000)
AGENT, WORKER = replace(THERE, pid=50, ticks=500), replace(THERE, pid=60, ticks=600)
ORPHAN = Member(
    name=MemberName.of("main", WORKER, 1), alive=True, started_at=0.0, process=WORKER, settings=Settings(), agent=AGENT
)
LIVING = {60: 600}
LAUNCHER = replace(HERE, pid=50, ticks=500)
HOLDER = Member(
    name=MemberName.of("rank_00001", HERE, 1),
    alive=True,
    started_at=0.0,
    process=HERE,
    settings=Settings(),
    launcher=LAUNCHER,
)


@pytest.mark.parametrize(
    ("member", "launcher", "expected"),
    [
        (HOLDER, LAUNCHER, True),
        (HOLDER, replace(LAUNCHER, ticks=501), False),  # its number is another's now
        (HOLDER, replace(LAUNCHER, host="other"), False),
        (HOLDER, None, False),
        (replace(HOLDER, launcher=None), None, False),
        (replace(HOLDER, launcher=None, agent=LAUNCHER), LAUNCHER, False),
        (replace(HOLDER, launcher=replace(LAUNCHER, ticks=0)), replace(LAUNCHER, ticks=0), False),  # no /proc
    ],
)
def test_who_is_a_sibling(member, launcher, expected):
    """The exact same launcher has started both as ranks."""
    assert holders.is_sibling(member, launcher) is expected


@pytest.mark.parametrize(
    ("member", "living", "expected"),
    [
        (ORPHAN, LIVING, True),
        (ORPHAN, LIVING | {50: 501}, True),  # its number is another's now
        (ORPHAN, LIVING | {50: 500}, False),
        (ORPHAN, {60: 601}, False),
        (ORPHAN, {}, False),
        (replace(ORPHAN, alive=False), LIVING, False),
        (replace(ORPHAN, agent=None), LIVING, False),
        (replace(ORPHAN, agent=replace(AGENT, ticks=0)), LIVING, False),
        (replace(ORPHAN, agent=replace(AGENT, namespace=8)), LIVING, False),
        (replace(ORPHAN, process=replace(WORKER, boot="other")), LIVING, False),
        (replace(ORPHAN, process=replace(WORKER, host="host-2")), LIVING, False),
        (replace(ORPHAN, process=replace(WORKER, namespace=8), agent=replace(AGENT, namespace=8)), LIVING, False),
    ],
)
def test_who_is_an_orphan(member, living, expected):
    """Alive, with a recorded agent of this host, boot and pid namespace that has ended."""
    assert holders.is_orphan(member, THERE, lambda pid: living.get(pid, 0)) is expected


def test_what_ends_the_holder_of_a_name_is_told_and_what_siblings_need():
    """Only of an orphan that --kill-orphans helps. Nothing of a sibling is hidden, so nothing of that is said."""
    text = holders.warning("/runs/a", "rank_00001", "rank_00001~2", HOLDER)
    assert f"end it: kill {HERE.pid}. With purge_step, what it logged from that step on is hidden" in text
    sibling = holders.warning("/runs/a", "rank_00001", "rank_00001~2", HOLDER, is_sibling=True)
    assert "Process 50 has started both as the same rank: give each a rank or a logdir of its own." in sibling
    assert "is hidden" not in sibling
    left = replace(HOLDER, agent=replace(HERE, ticks=HERE.ticks + 1))
    text = holders.warning("runs/my exp", "main", "rank_00000~2", left)
    assert f"kill {HERE.pid}. A start below hf-mpwriter run --kill-orphans --logdir './runs/my exp' does so." in text
    assert "--kill-orphans" not in holders.warning("runs/exp", "main", "rank_00000~2", replace(left, agent=HERE))


def test_a_supervisor_of_one_rank_is_not_its_launcher(monkeypatch):
    """The launcher starts one supervisor for each rank: then it is the supervisor's parent that all have in common."""
    rank, parent = role.Role(1, None), os.getppid()
    launcher = None if parent == 1 else Process.of(parent)
    assert role.launcher_of(rank, {}) == launcher
    assert role.launcher_of(role.Role(1, "Process-1"), {}) is None
    assert role.launcher_of(role.Role(None, None), {}) is None
    below = environment_below({}, contact.Inbox().name, 25.0)  # of a supervisor that is this process
    assert role.launcher_of(rank, below) == launcher, "a launcher is between"
    monkeypatch.setattr(os, "getppid", os.getpid)  # as in a child of this process
    assert role.launcher_of(rank, below) != Process.current()


def test_process_1_is_no_launcher(monkeypatch):
    """It adopts the ranks of launchers that have ended: two of them are two attempts, or siblings."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert role.launcher_of(role.Role(1, None), {}) is None
    assert role.agent_of(role.Role(1, None), {}) is None
