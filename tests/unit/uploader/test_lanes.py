"""The lane of event files: batches in the outbox, what a refusal does to them, and when a scan comes first."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import time
from pathlib import Path

import pytest
from support import event_file

from hf_mpwriter.base import files as files_module
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Moved, Quarantine, Refused, Retry, Sent, Split, Unknown
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot import attachments, event_files
from hf_mpwriter.snapshot.event_files import UNCHANGED
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.pulled import note_pulled, pulled_files
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.uploader.decision import Outgoing
from hf_mpwriter.uploader.lanes import EventFileLane
from hf_mpwriter.uploader.pacing import REFUSALS, SLOW_COMMIT, BatchSize, Clocks, Retries


class Run:
    """A run directory with four event files of other writers, and its lane."""

    def __init__(self, root) -> None:
        self.spool, self.root, self.now = Spool(str(root)), root, 1000.0
        self.spool.create()
        self.paths = [f"events.out.tfevents.{number:010d}.theirs" for number in range(1, 5)]
        for path in self.paths:
            event_file(root / path, 2)
        self.ledger = Ledger(Destination("https://hub", "me/run"), settings=Settings())
        self.restart()

    def has_three_of_one_writer(self) -> list[str]:
        """Have three event files of one writer, and no others; their paths."""
        ours = [f"events.out.tfevents.{number:010d}.here.1.0123abcd" for number in range(1, 4)]
        for path in ours:
            event_file(self.root / path, 2)
        for path in self.paths:
            (self.root / path).unlink()
        return ours

    def restart(self) -> None:
        """Another uploader comes; the clock of the filesystem is another one."""
        self.outbox = Outbox(self.spool.host("h"), self.spool.run)
        self.clocks = Clocks(lambda: self.now, time.time, random.Random(1))
        self.retries = Retries(self.ledger, dataclasses.replace(self.clocks, there=lambda: self.now + 5e8))
        self.size = BatchSize(lambda: self.now)
        self.lane = self.new_lane()

    def new_lane(self) -> EventFileLane:
        """The lane of an uploader that has just started."""
        theirs = functools.partial(pulled_files, self.spool)
        return EventFileLane(self.outbox, self.ledger, self.size, self.retries, self.clocks, theirs)

    def scan(self) -> None:
        """Put what the Hub lacks into the outbox."""
        self.lane.scan(Members(self.spool), lambda _: True)

    def waiting(self) -> list[list[str]]:
        """The paths of each batch."""
        return [[file.path for file in batch.files] for batch in self.lane.batches]

    def start(self) -> Batch:
        """A push of the next batch starts."""
        batch = self.lane.batches[0]
        self.size.started()
        self.lane.started(batch)
        return batch

    def done(self) -> None:
        """The Hub takes the next batch."""
        batch = self.start()
        self.arrives(batch)

    def arrives(self, batch: Batch) -> None:
        """The Hub has taken a batch."""
        self.ledger.acknowledge({file.path: Sent(file.length, "0" * 64) for file in batch.files}, "c", 1000.0)
        self.lane.done(batch, committed=True, in_time=self.size.done(len(batch.files)))

    def fail(self, verdict) -> None:
        """The Hub refuses the next batch."""
        batch = self.start()
        self.size.failed(verdict, len(batch.files))
        if isinstance(self.lane.failed(verdict, batch, 1), Quarantine):
            self.lane.drop(batch)

    def send_all(self, refused) -> None:
        """Send all batches; those with one of these paths get its verdict."""
        while self.lane.batches:
            paths = {file.path for file in self.lane.batches[0].files}
            bad = next((path for path in refused if path in paths), "")
            self.fail(refused[bad]) if bad else self.done()


@pytest.fixture
def run(tmp_path) -> Run:
    """Before the first scan."""
    return Run(tmp_path / "run")


def test_a_scan_makes_batches_ready_and_a_failure_makes_them_stale(run):
    """Stale batches are not sent: more may be on disk by now."""
    assert (run.lane.outgoing, run.lane.has_scanned) == (Outgoing.NONE, False)
    run.scan()
    assert (run.lane.outgoing, run.lane.has_scanned) == (Outgoing.READY, True)
    run.lane.require_scan()
    assert run.lane.outgoing is Outgoing.STALE
    run.scan()
    run.done()
    assert (run.waiting(), run.lane.outgoing) == ([], Outgoing.NONE)


def test_files_of_others_that_have_been_quiet_go_together_by_their_paths(run, monkeypatch):
    """However many bytes they have: what a push holds in memory bounds only those that may still grow."""
    monkeypatch.setattr(event_files.bounded, "__defaults__", (100, 0, 1, 1 << 30))
    run.scan()
    assert run.waiting() == [[path] for path in run.paths]
    for path in run.paths[:3]:
        os.utime(run.root / path, (time.time() - 2 * UNCHANGED,) * 2)
    run.lane = run.new_lane()
    run.scan()
    assert run.waiting() == [run.paths[:3], run.paths[3:]]
    assert [file.growing for batch in run.lane.batches for file in batch.files] == [False, False, False, True]


def test_a_refused_batch_is_split_until_one_file_is_quarantined(run):
    """Halves are sent as they are. The file that is refused alone is left out, and the others are on the Hub."""
    bad = run.paths[2]
    run.scan()
    run.send_all({bad: Split("422")})
    assert run.ledger.reasons == {bad: "422"}
    assert sorted(run.ledger.files) == [path for path in run.paths if path != bad]
    run.scan()
    assert run.waiting() == [], "what is quarantined is not scanned again at once"


def test_a_refused_file_is_tried_again_alone_for_ever_and_ever_more_slowly(run):
    """Minutes apart, after REFUSALS up to an hour; behind all others, and when it is taken it counts as any other."""
    bad, tries = run.paths[0], []
    run.scan()
    run.send_all({bad: Split("400")})
    while len(tries) < 9:
        run.now += 1.0
        if run.retries.due(attachments=False):
            tries.append(run.now)
            event_file(run.root / run.paths[1], 3 + len(tries))
            run.scan()
            assert run.waiting() == [[run.paths[1]], [bad]], "alone, behind all others"
            assert run.retries.is_open is (len(tries) < REFUSALS)
            run.send_all({bad: Split("400")})
            assert not run.retries.due(attachments=False)
    waits = [round(after - before) for before, after in zip([1000.0, *tries], tries, strict=False)]
    assert waits == [60, 120, 600, 1200, 2400, 3600, 3600, 3600, 3600]
    run.now += 3600.0
    run.scan()
    run.done()
    assert (run.ledger.quarantined, run.retries.due(attachments=False)) == ({}, set())


def test_a_request_has_a_refused_file_tried_at_most_once_a_minute(run):
    """A new uploader counts as a request; that the Hub is certain does not make it wait."""
    bad = run.paths[0]
    run.scan()
    run.send_all({bad: Quarantine({bad: "foreign"})})
    assert run.ledger.quarantined[bad].refusals == REFUSALS
    run.now += USUAL.refused_retry_first - 1
    run.retries.request()
    run.restart()
    assert not run.retries.due(attachments=False)
    run.now += 1
    assert run.retries.due(attachments=False)
    run.scan()
    run.send_all({bad: Quarantine({bad: "foreign"})})
    run.now += 5 * USUAL.refused_retry_first
    assert not run.retries.due(attachments=False)
    run.retries.request()
    assert run.retries.due(attachments=False)


def test_a_clock_that_is_wrong_delays_no_try(run):
    """The last try seems to lie in the future: the time of another host, or a filesystem that was moved."""
    run.ledger.quarantine(run.paths[0], "why", 1, run.now + 7200.0)
    run.restart()
    assert run.retries.due(attachments=False) == {run.paths[0]}


def test_a_refused_file_that_is_gone_keeps_no_uploader(run):
    """It is not tried, and not waited for."""
    bad = run.paths[0]
    run.scan()
    run.send_all({bad: Split("400")})
    (run.root / bad).unlink()
    run.now += USUAL.refused_retry_first
    assert run.retries.is_open
    run.scan()
    assert (run.waiting(), run.retries.is_open, run.retries.due(attachments=False)) == ([], False, set())


def test_the_later_files_of_a_refused_one_wait_and_of_two_refused_ones_the_first_is_tried(run):
    """TensorBoard drops points of a newer file when an older one of its writer grows."""
    ours = run.has_three_of_one_writer()
    run.scan()
    run.send_all({ours[0]: Split("400")})
    run.scan()
    assert run.waiting() == []
    run.ledger.quarantine(ours[1], "why", 1)
    run.now += USUAL.refused_retry_first
    run.restart()
    run.scan()
    assert run.waiting() == [[ours[0]]]
    note_pulled(run.spool, dict.fromkeys(ours[:2], 1))
    run.scan()
    assert [ours[2]] in run.waiting(), "for those of other machines none waits"


def test_of_a_refused_file_of_another_machine_only_its_own_batch_goes(run):
    """The later ones in its directory are ours, and go to the Hub."""
    ours = run.has_three_of_one_writer()
    note_pulled(run.spool, {ours[0]: 1})
    run.scan()
    run.send_all({ours[0]: Split("400")})
    assert run.ledger.reasons == {ours[0]: "400"}
    assert all(run.ledger.length(path) for path in ours[1:])


# 413


def lengths(run) -> list[int]:
    """The lengths of the batches of one file."""
    return [batch.files[0].length for batch in run.lane.batches if len(batch.files) == 1]


@pytest.fixture
def large(run) -> int:
    """The length of the only event file, which has 64 records of one size."""
    for path in run.paths[1:]:
        (run.root / path).unlink()
    event_file(run.root / run.paths[0], 64)
    run.scan()
    return lengths(run)[0]


def test_of_a_file_that_is_too_large_less_is_sent_and_soon_all_of_it(run, large):
    """Three answers 413, of a proxy that had a bad moment: whole records, always more than the Hub has."""
    data, sent = (run.root / run.paths[0]).read_bytes(), []
    for _ in range(3):
        batch = run.start()
        assert isinstance(run.lane.failed(Split("413", too_large=True), batch, 1), Split)
        assert lengths(run)[1:] == [large], "the whole file stays in the outbox"
        assert run.lane.outgoing is Outgoing.SPLIT
    while run.lane.batches:
        sent.append(lengths(run)[0])
        run.done()
    assert sent[-1] == large
    assert len(sent) == 2
    fd = os.open(run.root / run.paths[0], os.O_RDONLY)
    assert framing.whole_length(fd, 0, sent[0]) == sent[0], "at the end of a record"
    os.close(fd)
    assert large / 16 < sent[0] < large / 4
    assert run.ledger.quarantined == {}
    assert len(data) == large


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_of_a_file_that_stays_too_large_the_most_is_sent_that_the_hub_takes(run, large, share):
    """Then it is quarantined; each later try costs one request."""
    limit, requests = int(large * share), 0
    while run.lane.batches:
        requests += 1
        batch = run.start()
        too_large = batch.files[0].length > limit
        run.done() if not too_large else run.fail(Split("413", too_large=True))
    fd = os.open(run.root / run.paths[0], os.O_RDONLY)
    assert run.ledger.length(run.paths[0]) == framing.whole_length(fd, 0, limit)
    os.close(fd)
    assert requests < 25
    assert run.ledger.reasons == {run.paths[0]: "413"}
    run.now += 3600.0
    run.scan()
    run.fail(Split("413", too_large=True))
    assert (run.waiting(), run.ledger.quarantined[run.paths[0]].refusals) == ([], 2)


def test_a_first_record_that_takes_most_of_a_file_is_sent_before_the_rest(run):
    """Half of the file has no whole record."""
    record = framing.frame(framing.version_event(1.0))
    big = framing.frame(b"x" * 1000)
    (run.root / run.paths[0]).write_bytes(big + record)
    for path in run.paths[1:]:
        (run.root / path).unlink()
    run.scan()
    run.fail(Split("413", too_large=True))
    assert lengths(run) == [len(big), len(big + record)]


@pytest.mark.parametrize("verdict", [Retry("down"), Unknown("lost"), Moved("412"), Refused("403", "")])
def test_any_other_failure_ends_the_splitting(run, verdict):
    """The halves may be older than what is on disk by then, so a scan comes before the next push."""
    run.scan()
    run.lane.failed(Split("413"), run.start(), 1)
    assert run.lane.outgoing is Outgoing.SPLIT
    run.lane.require_scan()
    assert run.lane.failed(verdict, run.start(), 1) is verdict
    assert run.lane.outgoing is Outgoing.STALE


def test_a_quarantined_path_takes_its_batch_out_of_the_outbox(run):
    """The next scan makes a batch of the others."""
    run.scan()
    batch = run.start()
    run.lane.failed(Quarantine({run.paths[0]: "foreign"}), batch, 1)
    assert run.waiting() == [run.paths], "not before the ledger is saved"
    run.lane.drop(batch)
    assert run.waiting() == []
    run.scan()
    assert run.waiting() == [run.paths[1:]]


def test_a_batch_whose_file_is_gone_is_not_split(run, tmp_path):
    """The disk cannot sync what is not there: the batch stays, and the next scan knows."""
    run.scan()
    (tmp_path / "run" / run.paths[0]).unlink()
    run.lane.failed(Split("413"), run.start(), 1)
    assert len(run.waiting()) == 1
    assert run.lane.outgoing is Outgoing.READY


def test_a_large_file_for_which_there_is_no_room_is_told_and_holds_back_no_other(run, monkeypatch):
    """It is quarantined with its reason while there is none, and sent when there is; a live one once an hour."""
    path = run.paths[1]
    monkeypatch.setattr(files_module, "PAYLOAD_LIMIT", os.path.getsize(os.path.join(run.spool.run_dir, path)) - 1)
    for other in (run.paths[0], *run.paths[2:]):
        os.unlink(os.path.join(run.spool.run_dir, other))
    event_file(Path(run.spool.run_dir) / run.paths[0], 1)
    with monkeypatch.context() as patch:
        patch.setattr(attachments, "RESERVE", 1 << 60)
        run.scan()
        assert run.waiting() == [[run.paths[0]]]
        assert "too little room" in run.ledger.quarantined[path].reason
        run.done()
    run.lane = run.new_lane()  # the next uploader
    run.scan()
    assert (run.waiting(), run.ledger.quarantined) == ([[path]], {})
    run.start()
    run.scan()
    assert (run.waiting(), run.ledger.quarantined) == ([], {})
    run.lane.scan(Members(run.spool), lambda _: True, everything=True)
    assert run.waiting() == [[path]]


def ours(run, count: int = 3) -> list[str]:
    """Event files of one writer in place of those of others."""
    for path in run.paths:
        (run.root / path).unlink()
    paths = [f"events.out.tfevents.{number:010d}.here.1.0123abcd" for number in range(1, count + 1)]
    for path in paths:
        event_file(run.root / path, 2)
    return paths


def test_a_file_whose_copy_was_rewritten_is_compared_again_though_the_ledger_covers_it(run):
    """Others have rewritten what the Hub had whole. The later files of its writer wait until it is ours again."""
    paths = ours(run)
    run.scan()
    run.done()
    event_file(run.root / paths[2], 4)
    run.scan()
    run.fail(Quarantine({paths[1]: "the Hub's copy is not the beginning"}))
    run.scan()
    assert run.waiting() == []
    run.retries.request()
    run.now += USUAL.refused_retry_first
    run.retries.request()
    assert run.retries.due(attachments=False)
    run.scan()
    assert run.waiting() == [[paths[1]]]
    run.done()
    run.scan()
    assert run.waiting() == [[paths[2]]]


def test_a_refused_file_that_is_too_large_to_be_copied_now_is_not_scanned_for_all_the_time(run, monkeypatch):
    """It stays refused, and is tried later as one that is gone."""
    path = run.paths[0]
    run.scan()
    run.send_all({path: Split("400")})
    monkeypatch.setattr(files_module, "PAYLOAD_LIMIT", 1)
    monkeypatch.setattr(attachments, "RESERVE", 1 << 60)
    run.now += USUAL.refused_retry_first
    assert run.retries.due(attachments=False)
    run.scan()
    assert (run.waiting(), run.retries.due(attachments=False)) == ([], set())
    assert run.ledger.reasons[path] == "400"


def many(run, count: int) -> None:
    """So many event files of other writers in place of the four."""
    for path in run.paths:
        (run.root / path).unlink()
    for number in range(count):
        (run.root / f"events.out.tfevents.{number:010d}.theirs").write_bytes(framing.frame(framing.version_event(1.0)))
    run.scan()


def sizes(run) -> list[int]:
    """The number of files in each batch."""
    return [len(batch.files) for batch in run.lane.batches]


def test_batches_double_while_commits_are_fast(run):
    """They are planned so, and the next scan goes on from there."""
    many(run, 500)
    assert sizes(run) == [100, 200, 200]
    run.done()
    run.done()
    assert run.lane.outgoing is Outgoing.READY
    run.scan()
    many(run, 900)
    assert sizes(run) == [400, 200]


def test_after_a_slow_commit_a_scan_makes_the_batches_anew_no_larger_than_before(run):
    """Those that wait were made in the hope of faster ones."""
    many(run, 350)
    batch = run.start()
    run.now += SLOW_COMMIT
    run.arrives(batch)
    assert run.lane.outgoing is Outgoing.STALE
    run.scan()
    assert sizes(run) == [100, 150]


def test_a_batch_that_is_too_large_makes_all_that_wait_smaller(run):
    """The halves go first; what waits is not refused for its size once more, and grows again with them."""
    many(run, 350)
    run.fail(Split("413", too_large=True))
    assert sizes(run) == [50, 50, 50, 100, 100]
    many(run, 350)
    assert sizes(run) == [50, 100, 200]


def test_a_batch_whose_content_is_refused_leaves_the_others_as_they_are(run):
    """One file is to blame, not their number."""
    many(run, 350)
    run.fail(Split("400"))
    assert sizes(run) == [50, 50, 100, 150]


def test_a_file_that_was_refused_alone_stays_alone_when_a_batch_before_it_is_too_large(run):
    """What waits is grouped anew, without it."""
    run.scan()
    run.send_all({run.paths[0]: Split("400")})
    for path in ("a", "b", "c"):
        event_file(run.root / f"events.out.tfevents.0000000009.{path}", 2)
    run.now += USUAL.refused_retry_first
    run.scan()
    assert run.waiting()[-1] == [run.paths[0]]
    run.fail(Split("413", too_large=True))
    assert sizes(run) == [1, 2, 1]
    assert run.waiting()[-1] == [run.paths[0]]
