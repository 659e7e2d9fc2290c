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
LAUNCHER = replace(HERE, pid=50, ticks=500)
HOLDER = Member(MemberName.of("rank_00001", HERE, 1), True, 0.0, HERE, Settings(), launcher=LAUNCHER)


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


def test_an_orphan_is_to_be_ended_and_siblings_need_ranks_of_their_own():
    """Nothing of a sibling is hidden, so nothing of that is said."""
    orphan = holders.warning("/runs/a", "rank_00001", "rank_00001~2", HOLDER)
    assert f"end it: kill {HERE.pid}. With purge_step, what it logged from that step on is hidden" in orphan
    sibling = holders.warning("/runs/a", "rank_00001", "rank_00001~2", HOLDER, is_sibling=True)
    assert "Process 50 has started both as the same rank: give each a rank or a logdir of its own." in sibling
    assert "is hidden" not in sibling


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
