"""What training tells of its upload: each line once, when it is true, by the first of the members."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from types import SimpleNamespace

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.delivery.sentences import beginning, shown
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import SILENCE, SILENT_FOR, UploaderStatus
from hf_mpwriter.system import disk, filesystem
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.worker.messages.reporter import ToldRecord
from hf_mpwriter.worker.messages.upload import NOTABLE, UploadMessages, is_outage, url_of

TO = Destination("https://huggingface.co", "me/run", path_in_repo="tensorboard/exp1")
LINK = "https://huggingface.co/me/run/tree/main/tensorboard/exp1"
NOW = 1_795_236_610.0
HERE = UploaderStatus(process=Process.current(), beat=NOW, started_at=NOW - 5)
WORKS = dataclasses.replace(HERE, repo_id="me/run", private=False, succeeded_at=NOW)
REFUSED = dataclasses.replace(
    HERE,
    kind="Refused",
    reason="token refused (401)",
    hint="run `hf auth login`",
    failures=1,
    failed_at=NOW,
    failing_since=NOW,
)
DOWN = dataclasses.replace(REFUSED, kind="Retry", reason="the Hub fails (503)", hint="", failures=2)
OVER = dataclasses.replace(WORKS, succeeded_at=NOW + 240)
REFUSAL = "not uploading: token refused (401): run `hf auth login`; log: "


class Told:
    """Workers of one run directory, and what they log."""

    def __init__(self, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
        self.spool, self._caplog = spool, caplog

    def publish(self, status: UploaderStatus) -> None:
        """Be the uploader."""
        place = self.spool.host(host_id()).daemon("uploader").status
        disk.make_dirs(place.parent)
        disk.replace(place, state.dump(status), "status.publish", durable=False)

    def by(self, worker: UploadMessages, *, reports: bool = True, to: Destination = TO) -> list[str]:
        """What a worker logs when it keeps house."""
        self._caplog.clear()
        reporter = SimpleNamespace(reports=reports, watch=self.spool.told if reports else None)
        worker.tell(self.spool, to, reporter)
        return [record.getMessage().partition("; log: ")[0] for record in self._caplog.records]


@pytest.fixture
def told(own_spool, caplog):
    """What workers tell."""
    with caplog.at_level(logging.INFO):
        yield Told(own_spool, caplog)


def worker(started_at: float = NOW - 10, now: float = NOW) -> UploadMessages:
    """A worker that keeps house now."""
    return UploadMessages(started_at, lambda: now)


def test_where_a_run_goes_is_told_once_when_its_visibility_is_known(told):
    """Before, nothing is known of the repository; and the name is the full one."""
    mine = worker()
    assert told.by(mine) == []
    told.publish(HERE)
    assert told.by(mine) == []
    told.publish(WORKS)
    short = dataclasses.replace(TO, repo_id="run")
    assert told.by(mine, to=short) == [f"uploading {shown(told.spool.logdir)} to {LINK} (public)"]
    assert told.by(mine) == []
    assert url_of(told.spool, short) == LINK
    told.publish(dataclasses.replace(WORKS, private=True))
    assert told.by(worker(started_at=NOW + 1)) == [f"uploading {shown(told.spool.logdir)} to {LINK} (private)"]


def test_no_link_is_given_that_does_not_open():
    """Only the Hub knows whose repository a name without a namespace is; once it has said so, there is a link."""
    to = Destination("https://huggingface.co", "run", path_in_repo="tensorboard/exp1")
    assert beginning("exp1", to, "", private=None) == "uploading exp1 to the repository run of your account"
    assert beginning("exp1", to, "me/run", private=True) == f"uploading exp1 to {LINK} (private)"


def test_of_many_ranks_one_tells(told):
    """The first of them; one that comes later in the same attempt finds it told."""
    told.publish(WORKS)
    assert [len(told.by(worker(), reports=rank == 1)) for rank in (3, 2, 1, 0)] == [0, 0, 1, 0]


def test_an_outage_is_told_when_it_begins_and_when_it_is_over(told):
    """With the time since it began, though the failure goes on and another uploader takes its turn."""
    mine, other = worker(), worker()
    told.publish(REFUSED)
    assert told.by(mine) == [f"uploading {shown(told.spool.logdir)} to {LINK}", REFUSAL.removesuffix("; log: ")]
    assert told.by(other) == []
    told.publish(dataclasses.replace(REFUSED, failures=2, failed_at=NOW + 60, failing_since=NOW + 60))
    assert told.by(mine) == []
    assert told.by(other) == []
    told.publish(OVER)
    assert told.by(mine) == ["uploading again, after 4 min"]
    assert told.by(other) == []
    told.publish(dataclasses.replace(REFUSED, failing_since=NOW + 300, failed_at=NOW + 300))
    assert told.by(mine)[-1:] == [REFUSAL.removesuffix("; log: ")]


def test_when_the_first_dies_the_next_one_tells_the_end_of_the_outage(told):
    """It has seen the beginning, and knows that it was told."""
    first, next_one = worker(), worker()
    told.publish(REFUSED)
    assert len(told.by(first)) == 2
    assert told.by(next_one, reports=False) == []
    told.publish(OVER)
    assert told.by(next_one) == ["uploading again, after 4 min"]
    assert ToldRecord.read(told.spool.told).outage == 0.0


def test_an_uploader_that_has_only_started_ends_no_outage(told):
    """It has not sent anything yet."""
    mine = worker()
    told.publish(REFUSED)
    assert len(told.by(mine)) == 2
    told.publish(HERE)
    assert told.by(mine) == []


def test_a_person_who_has_to_help_is_told_in_the_middle_of_an_outage(told):
    """The Hub was down, and when it is back the token is refused."""
    mine = worker()
    told.publish(DOWN)
    assert told.by(mine)[1:] == ["not uploading: the Hub fails (503); it is tried again by itself"]
    told.publish(dataclasses.replace(DOWN, reason="the Hub fails (500)", failures=3))
    assert told.by(mine) == []
    told.publish(dataclasses.replace(REFUSED, failed_at=NOW + 60))
    assert told.by(mine) == [REFUSAL.removesuffix("; log: ")]


def test_the_line_names_the_next_try_of_a_long_wait_and_the_log(told, caplog):
    """The Hub asks for an hour."""
    told.publish(dataclasses.replace(DOWN, blocked_for=3600.0, blocked_until=1.0))
    due = time.strftime("%H:%M", time.localtime(NOW + 3600))
    assert told.by(worker())[1:] == [f"not uploading: the Hub fails (503); next try at {due}"]
    assert caplog.messages[-1].endswith(f"; log: {told.spool.host(host_id()).daemon('uploader').log}")


@pytest.mark.parametrize(
    ("changes", "after", "expected"),
    [
        ({}, 0.0, True),
        ({"failures": 1}, 0.0, False),
        ({"failures": 1}, NOTABLE, True),
        ({"kind": "Refused", "failures": 1}, 0.0, True),
        ({"kind": "Refused", "failed_at": NOW - 11}, 0.0, False),
        ({"failed_at": NOW - 11}, 0.0, True),
        ({"failed_at": NOW - 11, "phase": "left"}, 0.0, False),
        ({"failed_at": NOW - 11, "beat": NOW - SILENCE}, 0.0, False),
        ({"kind": "Split"}, 0.0, False),
        ({"kind": "Moved"}, 0.0, False),
        ({"kind": "", "failing_since": 0.0}, 0.0, False),
        ({"failing_since": 0.0}, 0.0, False),
    ],
)
def test_what_counts_as_an_outage(changes, after, expected):
    """One failure that passes is none; what an earlier uploader has failed with is none unless it still tries."""
    assert is_outage(dataclasses.replace(DOWN, **changes), NOW - 10, NOW + after) is expected


def test_a_spool_that_was_removed_tells_nothing(told):
    """Training goes on."""
    mine = worker()
    told.publish(WORKS)
    os.rename(told.spool.hosts, f"{os.fspath(told.spool.hosts)}~")
    assert told.by(mine) == []


def test_a_record_that_cannot_be_read_hides_nothing(told):
    """Then a line may be told twice, by another worker."""
    os.makedirs(told.spool.told)
    told.publish(REFUSED)
    mine = worker()
    assert [len(told.by(mine)), len(told.by(mine))] == [2, 0]
    disk.replace(told.spool.told, b'{"start": "yes"}', "told.save", durable=False)
    assert len(told.by(worker())) == 2


def test_an_uploader_that_is_silent_on_a_full_disk_is_told_and_its_end_too(told, monkeypatch):
    """Though what was told cannot be recorded there either."""
    monkeypatch.setattr(ToldRecord, "save", lambda *_: None)
    now = [NOW]
    mine = UploadMessages(NOW - 10, lambda: now[0])
    told.publish(WORKS)
    told.by(mine)
    monkeypatch.setattr(filesystem, "is_full", lambda _: True)
    assert told.by(mine) == []
    now[0] += SILENT_FOR
    directory = told.spool.directory.path
    (line,) = told.by(mine)
    assert (
        line == f"not uploading: the disk is full: free space on the disk of {directory}; it is tried again by itself"
    )
    now[0] += 60
    assert told.by(mine) == []
    monkeypatch.setattr(filesystem, "is_full", lambda _: False)
    told.publish(dataclasses.replace(WORKS, beat=now[0], succeeded_at=now[0]))
    assert told.by(mine) == ["uploading again, after 80 s"]


def test_what_is_told_of_an_outage_is_what_was_seen_when_it_was_decided(told, caplog):
    """The uploader may recover while it is found out who reports; then the end of the outage is the next line."""
    mine = worker()
    told.publish(DOWN)

    class Recovering:
        reports = True

        @property
        def watch(self) -> Place:
            told.publish(OVER)
            return told.spool.told

    mine.tell(told.spool, TO, Recovering())
    assert "not uploading: the Hub fails (503); it is tried again by itself" in caplog.text
    assert told.by(mine) == ["uploading again, after 4 min"]
