"""A push that went well is kept for the next batch, and for nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from uploaders import uploader

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done, Refused, Retry, Unknown
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.uploader import in_flight
from hf_mpwriter.uploader.loop import Uploader


class Lingering:
    """A push that has gone well and waits for another job."""

    pid, lingers = 1, True

    def __init__(self, linger: int) -> None:
        self.taken: list[Job] = []
        self.linger = linger
        self.takes, self.ended, self.let_gone = True, False, 0

    def take(self, job: Job, _limit: float) -> bool:
        """Take a job, if it may."""
        self.taken += [job] * self.takes
        return self.takes

    def has_ended(self) -> bool:
        """Whether the wait is over."""
        return self.ended

    def let_go(self) -> None:
        """End it."""
        self.let_gone += 1


@pytest.fixture
def one(tmp_path) -> Uploader:
    """An uploader."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    return uploader(spool)


@pytest.fixture
def lingering(monkeypatch) -> list[Lingering]:
    """The pushes that are started."""
    made: list[Lingering] = []

    def start(_job: Job, _limit: float, _spool: Spool, linger: int) -> Lingering:
        made.append(Lingering(linger))
        return made[-1]

    monkeypatch.setattr(in_flight, "PushHandle", start)
    return made


DONE = Done("c", True, "me/run", {})


def push(one: Uploader) -> None:
    """Start a push of what is there."""
    one.sending.push(one.sending.events, Batch(0, ()))


def test_a_push_that_went_well_gets_the_next_batch(one, lingering):
    """One process, as long as it takes what comes; then another one, and of the first nothing is left."""
    push(one)
    for count in (1, 2):
        one.sending._conclude(DONE)
        push(one)
        assert (len(lingering), len(lingering[0].taken)) == (1, count)
        assert one.sending.in_flight.push is lingering[0]
    one.sending._conclude(DONE)
    lingering[0].takes = False
    push(one)
    assert (len(lingering), lingering[0].let_gone, one.sending.in_flight.push) == (2, 1, lingering[1])


def test_the_push_that_a_request_leads_to_gets_ready_while_the_files_are_scanned(one, lingering, monkeypatch):
    """It imports its client meanwhile, and then takes the batch. Where no push may follow, none is started."""
    one.sending.scan()
    assert lingering == []
    one.requests.audit, scan, there = True, one.sending.events.scan, list[int]()

    def watched(*given, **named):
        there.append(len(lingering))
        return scan(*given, **named)

    monkeypatch.setattr(one.sending.events, "scan", watched)
    one.sending.scan()
    assert there == [1]
    assert (len(lingering), [job.prepares for job in lingering[0].taken]) == (1, [False])
    assert one.sending.in_flight.push is lingering[0]


@pytest.mark.parametrize("verdict", [Unknown("504"), Retry("503"), Refused("401", "")])
def test_a_push_that_failed_gets_no_other_batch(one, lingering, verdict):
    """Whatever is wrong with its client, a new one begins afresh."""
    push(one)
    one.sending._conclude(verdict)
    push(one)
    assert (len(lingering), lingering[0].taken) == (2, [])


def test_a_push_that_has_waited_long_enough_is_collected(one, lingering):
    """No dead process stays until the next batch, which may be minutes away."""
    push(one)
    one.sending._conclude(DONE)
    one.sending.in_flight.catch_up()
    assert lingering[0].let_gone == 0
    lingering[0].ended = True
    one.sending.in_flight.catch_up()
    one.sending.in_flight.catch_up()
    assert lingering[0].let_gone == 1


def test_pushes_that_follow_each_other_closely_share_a_process_that_waits_longer(one, lingering, monkeypatch):
    """A commit every quarter of a minute imports the client twice in all; one every five minutes holds no memory."""
    now = [1000.0]
    clocks = dataclasses.replace(one.sending.in_flight._clocks, now=lambda: now[0])
    monkeypatch.setattr(one.sending.in_flight, "_clocks", clocks)
    for distance in (0, 15, 15, 300):
        now[0] += distance
        if lingering and distance > lingering[-1].linger:
            lingering[-1].takes, lingering[-1].ended = False, True
        push(one)
        one.sending._conclude(DONE)
    shortly, long = in_flight.LINGER, in_flight.LINGER * in_flight.CLOSELY
    assert [(one.linger, len(one.taken)) for one in lingering] == [(shortly, 0), (long, 1), (shortly, 0)]


def test_an_uploader_that_leaves_ends_the_push_that_lingers(one, lingering):
    """It holds descriptors of the run directory, which may be removed next."""
    push(one)
    one.sending._conclude(DONE)
    one.leave()
    assert lingering[0].let_gone == 1
