"""Which workers are orphans: only those of which that is certain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.workers.member_lines import Member, MemberName
from hf_mpwriter.supervisor.program import end_orphans
from hf_mpwriter.system.process import Process
from hf_mpwriter.worker import holders
from hf_mpwriter.worker.holders import is_orphan

HERE = Process("host-1", "boot", 7, 100, 1000)
AGENT, WORKER = replace(HERE, pid=50, ticks=500), replace(HERE, pid=60, ticks=600)
ORPHAN = Member(MemberName.of("main", WORKER, 1), True, 0.0, WORKER, Settings(), agent=AGENT)
LIVING = {60: 600}


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
    assert is_orphan(member, HERE, lambda pid: living.get(pid, 0)) is expected


def test_who_finds_its_name_held_by_an_orphan_learns_what_ends_it():
    """Only then: a process whose launcher lives may be a part of this attempt."""
    here = Process.current()
    left = replace(ORPHAN, process=here, agent=replace(here, ticks=here.ticks + 1))
    text = holders.warning("runs/my exp", "main", "rank_00000~2", left)
    assert f"kill {here.pid}. A start below hf-mpwriter run --kill-orphans --logdir 'runs/my exp' does so." in text
    assert "--kill-orphans" not in holders.warning("runs/exp", "main", "rank_00000~2", replace(left, agent=here))


def test_a_directory_without_a_spool_has_no_orphans(tmp_path):
    """As before the first attempt; nothing is made there."""
    assert list(end_orphans(str(tmp_path / "none"))) == []
    assert list(tmp_path.iterdir()) == []
