"""Samplers as others see them: no worker, and waited for only until they have sealed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_mpwriter.base.names import sampler_name
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.daemon.loop import SEAL_WAIT, Seals
from hf_mpwriter.sampler import Workers
from hf_mpwriter.spool.workers.member_lines import Member, MemberName
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile
from hf_mpwriter.system.process import Process, host_id

PROCESS = Process.current()
OPEN = frozenset({"_system/here/events.out.tfevents.1795233002.here.1.0123abcd"})


def member(worker: str, **facts: object) -> Member:
    """A member that lives."""
    return replace(
        Member(
            name=MemberName.of(worker, PROCESS, 1), alive=True, started_at=1.0, process=PROCESS, settings=Settings()
        ),
        **facts,
    )


WORKER, SAMPLER = member("main"), member(sampler_name("here"), growing=OPEN)


def test_a_sampler_lives_and_does_not_work():
    """Uploader and mirror leave when nothing works any more."""
    assert (WORKER.works, SAMPLER.works, SAMPLER.alive) == (True, False, True)
    assert not replace(WORKER, alive=False).works


@pytest.mark.parametrize(
    ("members", "is_pending"),
    [
        ([WORKER, SAMPLER], False),
        ([SAMPLER], True),
        ([replace(WORKER, alive=False), SAMPLER], True),
        ([member(OBSERVER), SAMPLER], False),
        ([replace(SAMPLER, growing=frozenset())], False),
        ([replace(SAMPLER, alive=False, growing=frozenset())], False),
        ([replace(WORKER, alive=False)], False),
        ([], False),
    ],
)
def test_a_seal_is_pending_while_a_sampler_has_its_file_open_and_nothing_works(members, is_pending):
    """One that has sealed, or died, holds up nothing; and who asks for all now gets it now."""
    assert Seals(lambda: 0.0).are_pending(members) == is_pending


def test_a_sampler_that_hangs_holds_up_the_end_for_a_short_time_once():
    """Counted from the first look without workers: the one before may have been long ago, as while a push was made."""
    now = [1000.0]
    seals = Seals(lambda: now[0])
    now[0] += 5000
    assert not seals.are_pending([WORKER, SAMPLER])
    now[0] += SEAL_WAIT + 1.0
    assert seals.are_pending([SAMPLER])
    now[0] += SEAL_WAIT - 0.5
    assert seals.are_pending([SAMPLER])
    now[0] += 1.0
    assert not seals.are_pending([SAMPLER])


def test_workers_are_those_of_one_host_that_live(own_spool):
    """Neither samplers nor observers, nor workers of other hosts, nor what else lies there."""
    (own_spool.members / "garbage").open(0o101)
    workers, others = Workers(own_spool, host_id()), Workers(own_spool, "other-01234567")
    assert not workers.any_alive()
    quiet = [MemberFile(own_spool, name, PROCESS, Settings()) for name in (OBSERVER, sampler_name("here"))]
    assert not workers.any_alive()
    files = [MemberFile(own_spool, f"rank_0000{rank}", PROCESS, Settings()) for rank in range(2)]
    for file in files:
        assert workers.any_alive()
        assert not others.any_alive()
        file.leave()
    assert not workers.any_alive()
    for file in quiet:
        file.leave()
