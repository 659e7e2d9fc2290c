"""Whatever happens to the uploader, its disk and its requests, at any moment: the invariants hold, and all arrives.

A state machine of hypothesis drives the real uploader, with its outbox, its ledgers and its recovery, and the real push
on a modelled disk against a modelled branch. Each change on disk may be the last one of a process, or the last one
before a power cut, or be refused; requests are lost, lose their answer or arrive later; the next uploader may be on
another host of a shared filesystem. `scripts/proof/crash_states.py` does the same at length.
"""

from __future__ import annotations

from unittest import mock

import hypothesis
import pytest
from durability import DRAIN, QUICK, Durability
from hypothesis.stateful import run_state_machine_as_test
from support import failing

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool import outbox
from hf_mpwriter.system import disk, failpoints
from hf_mpwriter.uploader import in_flight
from hf_mpwriter.uploader.branch import Branch
from hf_mpwriter.uploader.sending import Sending

FIND = hypothesis.settings(QUICK, max_examples=1000, phases=[hypothesis.Phase.generate], report_multiple_bugs=False)


def test_whatever_happens_all_arrives_and_nothing_shrinks():
    """All invariants, with faults at any change on disk and any fate of any request."""
    run_state_machine_as_test(Durability, settings=QUICK)


def _early_ledger(start):
    def early(self, parcels, **options):
        """Acknowledge, then commit."""
        for parcel in parcels:
            sent = {file.path: Sent(file.length, "0" * 64) for file in parcel.batch.files}
            parcel.run.ledger.acknowledge(sent, "early", 0.0)
            parcel.run.save_ledger()
        return start(self, parcels, **options)

    return early


def _early_clear(done):
    def early(self, verdict, parcel, **options):
        """Drop the record, then save the ledger."""
        self.in_flight.clear()
        done(self, verdict, parcel, **options)

    return early


def _remove_first(put):
    def early(self, groups):
        """Drop the older batches, then write the newer ones."""
        for batch in list(self.batches):
            self.remove(batch)
        put(self, groups)

    return early


def _no_record(self, batch, *, fenced):
    record = outbox.InFlightRecord(batch.number, fenced, batch.files if batch.has_attachments else ())
    disk.replace(self._host.in_flight, state.dump(record), "outbox.in_flight", durable=False)


SABOTAGES = {  # what to break, and how it is found
    "no fsync before the batch": (
        outbox.Outbox,
        "_make_durable",
        lambda *_: None,
        "a batch refers to what is not|is on the Hub and not",  # the second one after the drain
    ),
    "no fsync of files of ours": (
        disk,
        "fsync",
        lambda *_: None,
        "its record is not durable|nor a durable batch covers",
    ),
    "no fsync of directories": (
        disk,
        "fsync_dir",
        lambda *_: None,
        "its record is not durable|nor a durable batch covers",
    ),
    "older batches dropped first": (
        outbox.Outbox,
        "put",
        _remove_first(outbox.Outbox.put),
        "nor a durable batch covers",
    ),
    "no record before a push": (outbox.Outbox, "mark_in_flight", _no_record, "its record is not durable"),
    "ledger before commit": (
        Branch,
        "start",
        _early_ledger(Branch.start),
        "bytes have arrived|claims more than the Hub",
    ),
    "record dropped before ledger": (
        Sending,
        "_done",
        _early_clear(Sending._done),
        "the record goes before the ledger",
    ),
    "no settle time": (in_flight, "SETTLE_TIME", 0.0, "shrank|while a request without a parent is under way"),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_the_machine_finds_each_rule_that_is_broken(name):
    """Without one of them its invariant fails, or the drain."""
    *change, found = SABOTAGES[name]
    with mock.patch.object(*change), pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(Durability, settings=FIND)


@pytest.fixture
def machine():
    """A machine that the test drives; it drains at the end."""
    made = Durability()
    yield made
    made.teardown()


def until_a_push(machine: Durability, host: str, fate: str = "applied") -> Job:
    """Run the uploader until a push has started and not run yet; return its job."""
    with machine.disk.recorded():
        for _ in range(DRAIN):
            if machine.push and machine.push.verdict is None:
                return machine.push.job
            machine._round(host, fate)
    pytest.fail("no push has started")


def run(machine: Durability, fate: str) -> None:
    """Run the push with this fate, and let the uploader take in its verdict."""
    with machine.disk.recorded():
        machine._round(machine.host, fate)


def test_while_a_request_without_a_parent_may_be_under_way_all_others_have_one(machine):
    """The successor on another host has an older batch in its outbox, and a branch as busy."""
    machine.log()
    until_a_push(machine, "two")
    machine.fates = ["never"]
    machine._die(power_cut=False)
    machine.log()
    until_a_push(machine, "one")
    run(machine, "busy")
    assert not until_a_push(machine, "one").fenced
    machine.fates = ["late"]
    machine._die(power_cut=False)
    older = until_a_push(machine, "two")
    run(machine, "busy")
    again = until_a_push(machine, "two")
    assert again.files == older.files
    assert again.fenced
    run(machine, "overtaken")
    assert machine.branch.problems == []


def test_a_member_file_that_the_disk_keeps_does_not_end_the_uploader(machine):
    """The data of a dead worker is on the Hub and its member file cannot be removed: the uploader goes on."""
    machine.log()
    machine.one_ends()
    until_a_push(machine, "one")
    with failing("members.file.unlink=eio"):
        run(machine, "applied")
        assert not failpoints.armed["members.file.unlink"][1], "nothing was to be removed"
    assert machine.uploader
