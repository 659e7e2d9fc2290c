"""What a worker tells while training runs: each line once, when it is true."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.storage import Layout, Storage, direct
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.delivery.sentences import beginning, done, shown
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.status import SILENCE, SILENT_FOR, LiveStatus, UploaderStatus
from hf_mpwriter.system import disk, filesystem
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.worker import messages
from hf_mpwriter.worker.messages import NOTABLE, RECENT, Messages, announcement, is_outage, tell_idle, url_of
from hf_mpwriter.worker.reporter import ToldRecord

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
REFUSAL = "not uploading: token refused (401): run `hf auth login`"


class Told:
    """Workers of one run directory, and what they log."""

    def __init__(self, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
        self.spool, self._caplog = spool, caplog
        self.begins = f"uploading {shown(spool.logdir)} to {LINK}"
        self.goes = f"{shown(spool.logdir)} goes to {LINK}"

    def publish(self, status: UploaderStatus) -> None:
        """Be the uploader."""
        place = self.spool.host(host_id()).daemon("uploader").status
        disk.make_dirs(place.parent)
        disk.replace(place, state.dump(status), "status.publish", durable=False)

    def worker(self, started_at: float = NOW - 10, now: float = NOW, to: Destination = TO) -> Messages:
        """A worker that keeps house now."""
        reporter = SimpleNamespace(reports=True, watch=self.spool.told)
        membership = SimpleNamespace(spool=self.spool, destination=to, has_logged=True, settings=Settings())
        return Messages(membership, reporter, started_at, lambda: now)

    def by(self, worker: Messages, *, reports: bool = True) -> list[str]:
        """What a worker logs when it keeps house."""
        worker._reporter.reports, worker._reporter.watch = reports, self.spool.told if reports else None
        self._caplog.clear()
        worker.tell()
        return self.lines()

    def lines(self) -> list[str]:
        """What was logged since the last look."""
        found = [record.getMessage().partition("; log: ")[0] for record in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def told(own_spool, caplog):
    """What workers tell."""
    with caplog.at_level(logging.INFO):
        yield Told(own_spool, caplog)


# where the run goes, and outages


def test_where_a_run_goes_is_told_once_when_its_visibility_is_known(told):
    """Before, nothing is known of the repository; and the name is the full one."""
    short = dataclasses.replace(TO, repo_id="run")
    mine = told.worker(to=short)
    assert told.by(mine) == []
    told.publish(HERE)
    assert told.by(mine) == []
    told.publish(WORKS)
    assert [told.by(mine), told.by(mine)] == [[f"{told.begins} (public)"], []]
    assert url_of(told.spool, short) == LINK
    assert told.by(told.worker()) == [], "another worker of the same attempt"
    told.publish(dataclasses.replace(WORKS, private=True))
    assert told.by(told.worker(started_at=NOW + 1)) == [f"{told.begins} (private)"]


def test_no_link_is_given_that_does_not_open():
    """Only the Hub knows whose repository a name without a namespace is; once it has said so, there is a link."""
    to = Destination("https://huggingface.co", "run", path_in_repo="tensorboard/exp1")
    assert beginning("exp1", to, HERE) == "exp1 goes to the repository run of your account"
    known = dataclasses.replace(WORKS, private=True)
    assert beginning("exp1", to, known) == f"uploading exp1 to {LINK} (private)"


@pytest.mark.parametrize(
    ("to", "live", "command"),
    [
        (TO, "me/run-live", "pull ./live/exp1 --repo-id me/run --follow"),
        (TO, "team/board", "pull ./live/exp1 --repo-id me/run --live team/board --follow"),
        (
            dataclasses.replace(TO, repo_type="dataset", revision="a b", path_in_repo="logs/x/exp1"),
            "run-dataset-a-b-live",
            "pull ./live/exp1 --repo-id datasets/me/run --revision 'a b' --path-in-repo logs/x --follow",
        ),
    ],
)
def test_the_first_line_names_the_bucket_with_the_command_that_follows_it(told, to, live, command):
    """The one of this run, also where it is not a model at main; none that is refused already."""
    mine, known = told.worker(to=to), dataclasses.replace(WORKS, live=LiveStatus(why="it is public"))
    bucket = live if "/" in live else f"me/{live}"
    mine._membership.settings = Settings(live=live)
    told.publish(WORKS)
    assert told.by(mine)[0].endswith(f" (public); live in {bucket}: hf-mpwriter {command}")
    assert beginning("exp1", to, known, live).endswith(" (public)")


@pytest.mark.parametrize(
    "status",
    [HERE, REFUSED, DOWN, dataclasses.replace(DOWN, succeeded_at=NOW - 60)],
)
def test_nothing_is_called_uploading_before_the_hub_has_taken_something(told, status):
    """Though who can read the repository is known from an earlier attempt."""
    resumed = dataclasses.replace(status, repo_id="me/run", private=False)
    assert beginning(told.spool.logdir, TO, resumed) == f"{told.goes} (public)"
    told.publish(resumed)
    assert told.by(told.worker())[:1] == [f"{told.goes} (public)"]


def test_an_outage_is_told_when_it_begins_and_when_it_is_over(told):
    """With the time since it began, though the failure goes on and another uploader takes its turn."""
    mine, other = told.worker(), told.worker()
    told.publish(REFUSED)
    assert [told.by(mine), told.by(other)] == [[told.goes, REFUSAL], []]
    told.publish(dataclasses.replace(REFUSED, failures=2, failed_at=NOW + 60, failing_since=NOW + 60))
    assert [told.by(mine), told.by(other)] == [[], []]
    told.publish(HERE)
    assert told.by(mine) == [], "an uploader that has only started has not sent anything"
    told.publish(OVER)
    assert [told.by(mine), told.by(other)] == [["uploading again, after 4 min"], []]
    told.publish(dataclasses.replace(REFUSED, failing_since=NOW + 300, failed_at=NOW + 300))
    assert told.by(mine) == [REFUSAL]


def test_when_the_first_dies_the_next_one_tells_the_end_of_the_outage(told):
    """It has seen the beginning, and knows that it was told."""
    first, next_one = told.worker(), told.worker()
    told.publish(REFUSED)
    assert [len(told.by(first)), told.by(next_one, reports=False)] == [2, []]
    told.publish(OVER)
    assert told.by(next_one) == ["uploading again, after 4 min"]
    assert ToldRecord.read(told.spool.told).outage == 0.0


def test_a_person_who_has_to_help_is_told_in_the_middle_of_an_outage(told):
    """The Hub was down, and when it is back the token is refused."""
    mine = told.worker()
    told.publish(DOWN)
    assert told.by(mine)[1:] == ["not uploading: the Hub fails (503); it is tried again by itself"]
    told.publish(dataclasses.replace(DOWN, reason="the Hub fails (500)", failures=3))
    assert told.by(mine) == []
    told.publish(dataclasses.replace(REFUSED, failed_at=NOW + 60))
    assert told.by(mine) == [REFUSAL]


def test_the_line_names_the_next_try_of_a_long_wait_and_the_log(told, caplog):
    """The Hub asks for an hour."""
    told.publish(dataclasses.replace(DOWN, blocked_for=3600.0, blocked_until=1.0))
    told.worker().tell()
    due, log = time.strftime("%H:%M", time.localtime(NOW + 3600)), told.spool.host(host_id()).daemon("uploader").log
    assert caplog.messages[-1] == f"not uploading: the Hub fails (503); next try at {due}; log: {log}"


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


def test_an_uploader_that_is_silent_on_a_full_disk_is_told_and_its_end_too(told, monkeypatch):
    """Though what was told cannot be recorded there either."""
    monkeypatch.setattr(ToldRecord, "save", lambda *_: None)
    now, mine = [NOW], told.worker()
    mine._clock = lambda: now[0]
    told.publish(WORKS)
    told.by(mine)
    monkeypatch.setattr(filesystem, "is_full", lambda _: True)
    assert told.by(mine) == []
    now[0] += SILENT_FOR
    why = f"the disk is full: free space on the disk of {told.spool.directory.path}"
    assert told.by(mine) == [f"not uploading: {why}; it is tried again by itself"]
    now[0] += 60
    assert told.by(mine) == []
    monkeypatch.setattr(filesystem, "is_full", lambda _: False)
    told.publish(dataclasses.replace(WORKS, beat=now[0], succeeded_at=now[0]))
    assert told.by(mine) == ["uploading again, after 80 s"]


def test_what_is_told_of_an_outage_is_what_was_seen_when_it_was_decided(told):
    """The uploader may recover while it is found out who reports; then the end of the outage is the next line."""
    mine = told.worker()
    told.publish(DOWN)

    class Recovering:
        reports = True

        @property
        def watch(self) -> Place:
            told.publish(OVER)
            return told.spool.told

    usual, mine._reporter = mine._reporter, Recovering()
    mine.tell()
    assert told.lines()[-1] == "not uploading: the Hub fails (503); it is tried again by itself"
    mine._reporter = usual
    assert told.by(mine) == ["uploading again, after 4 min"]


# notices


def uploader(spool: Spool, host: str = "h", ago: float = 0.0) -> StatusFile:
    """The status file of an uploader that starts now, with a clock that is behind."""
    os.makedirs(spool.host(host).root, exist_ok=True)
    return StatusFile(spool.host(host), Process.current(), time.monotonic, 0.0, lambda: time.time() - ago)


def test_each_notice_is_told_once(told):
    """Whatever comes when, also from an uploader that was replaced, and from one on another host.

    The record keeps what was told of an end.
    """
    ToldRecord(unsent=5.0).save(told.spool.told)
    mine, other = told.worker(time.time()), told.worker(time.time())
    assert told.by(mine) == []
    first = uploader(told.spool)
    first.notify(["created me/run"])
    assert [told.by(other, reports=False), told.by(mine)] == [[], ["created me/run"]]
    first.notify(["me/run is PUBLIC"])
    assert [told.by(mine, reports=False), told.by(other), told.by(mine)] == [[], ["me/run is PUBLIC"], []]
    uploader(told.spool).notify(["created me/run", "the limit"])
    uploader(told.spool, "other").notify(["me/run is PUBLIC"])
    assert [told.by(mine), told.by(mine)] == [["created me/run", "the limit", "me/run is PUBLIC"], []]
    record = ToldRecord.read(told.spool.told)
    assert (record.unsent, sorted(record.numbers)) == (5.0, ["h", "other"])


def test_a_run_that_is_resumed_tells_only_what_was_not_told(told):
    """What an uploader has found out since the end is news; a rank that came first may have started it just now."""
    first, other = uploader(told.spool, ago=2 * RECENT), uploader(told.spool, "other", ago=2 * RECENT)
    first.notify(["old"])
    uploader(told.spool).notify(["created me/run"])
    assert told.by(told.worker(time.time())) == ["created me/run"]
    assert told.by(told.worker(time.time())) == []
    uploader(told.spool).notify(["me/run is PUBLIC"])
    other.notify(["the limit"])
    assert told.by(told.worker(time.time() + 2 * RECENT)) == ["me/run is PUBLIC", "the limit"]


def test_a_record_that_cannot_be_read_or_written_hides_nothing(told):
    """Then a line may be told twice, by another worker."""
    os.makedirs(told.spool.told)
    uploader(told.spool).notify(["created me/run"])
    told.publish(REFUSED)
    mine = told.worker()
    assert [len(told.by(mine)), len(told.by(mine))] == [3, 0]
    Path(told.spool.told).write_bytes(b'{"numbers": {"h": "many"}, "start": "yes"}')
    assert len(told.by(told.worker())) == 3


def test_a_spool_that_was_removed_tells_nothing(told):
    """Training goes on."""
    mine = told.worker()
    told.publish(WORKS)
    os.rename(told.spool.hosts, f"{os.fspath(told.spool.hosts)}~")
    assert told.by(mine) == []
    with open(told.spool.hosts, "w", encoding="utf-8"):
        assert told.by(mine) == []


# the end


def ledger(commits: int = 3) -> Ledger:
    """What the Hub has."""
    known = Ledger(TO, "me/run", private=False, commits={"h": commits - 1, "other": 1} if commits else {})
    known.acknowledge({"a.tfevents": Sent(8_000, "0"), "b.tfevents": Sent(300, "1")}, "c" * 40, 1.0)
    return known


@pytest.mark.parametrize(("commits", "text"), [(3, " in 3 commits"), (1, " in 1 commit"), (0, "")])
def test_the_last_line_counts_what_is_there(commits, text):
    """Bytes and commits of the whole run, by all uploaders."""
    assert done(ledger(commits), TO, has_begun=True) == f"done: 8.3 kB{text}: {LINK}"


def test_the_end_is_told_once_and_of_a_short_run_it_is_the_only_line(told):
    """Who can read it stands there then. Not by a process that left before another one; by one since, again."""
    mine, since = told.worker(), time.time()
    last = f"done: 8.3 kB in 3 commits: {LINK}"
    mine.done(ledger(), since)
    assert told.lines() == [f"{last} (public)"], "it was over before its first housekeeping"
    mine.done(ledger(), since)
    assert told.lines() == []
    mine.done(ledger(), time.time() + 1)
    assert told.lines() == [last]


# the start


@pytest.fixture
def nothing_told(monkeypatch, caplog) -> None:
    """As in a new process, with a handler that takes information."""
    monkeypatch.setattr(messages, "_told", set())
    caplog.set_level(logging.INFO, "hf_mpwriter")


def said(caplog) -> list[tuple[str, str]]:
    """Level and text of what was logged."""
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.usefixtures("nothing_told")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EXIT_TIMOUT", "is set, but hf_mpwriter has no such variable."),
        ("DISABLED", "is 'ja', which is neither on nor off, and counts as off. On is 1, off is 0."),
        ("SYSTEM_METRICS", "is 'ja', which is neither on nor off, and counts as off. On is 1, off is 0."),
    ],
)
def test_a_variable_that_has_no_effect_is_named_once(tmp_path, monkeypatch, caplog, name, text):
    """Neither a second writer nor a forked child, which inherits what was said, says it again; nor does rank 1."""
    monkeypatch.setenv(f"HF_MPWRITER_{name}", "ja")
    for rank in (0, 1):
        SummaryWriter(tmp_path / f"of {rank}", rank=rank).close()
    assert said(caplog) == [("WARNING", f"HF_MPWRITER_{name} {text}")]
    if not (pid := os.fork()):
        caplog.clear()
        messages.tell_environment(disabled=False)
        os._exit(len(caplog.records))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.usefixtures("nothing_told")
def test_it_is_said_once_by_one_rank_that_uploads_are_off(tmp_path, monkeypatch, caplog):
    """By HF_MPWRITER_DISABLED; switched off it says nothing."""
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "0")
    HFSummaryWriter("me/run", logdir=str(tmp_path / "a"), exit_timeout=0).scheduler.stop()
    assert said(caplog) == []
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    for name in ("b", "c"):
        HFSummaryWriter("me/run", logdir=str(tmp_path / name)).close()
    assert said(caplog) == [("INFO", "disabled by HF_MPWRITER_DISABLED: nothing is uploaded")]
    messages._told.clear()
    HFSummaryWriter("me/run", logdir=str(tmp_path / "d"), rank=1).close()
    assert len(said(caplog)) == 1


@pytest.mark.usefixtures("nothing_told")
@pytest.mark.parametrize(
    ("is_on", "is_installed", "has_gpu", "tells"),
    [(True, False, True, 1), (True, False, False, 0), (False, False, True, 0), (True, True, True, 0)],
)
def test_gpus_that_nothing_measures_are_told_once(tmp_path, monkeypatch, caplog, is_on, is_installed, has_gpu, tells):
    """With the package that does, which is looked for and not imported."""
    monkeypatch.setattr(messages.importlib.util, "find_spec", lambda _: object() if is_installed else None)
    monkeypatch.setattr(messages, "NVIDIA", str(tmp_path if has_gpu else tmp_path / "none"))
    for _ in range(2):
        tell_idle(Settings(system_metrics=is_on))
    text = "system_metrics leaves out the GPUs of this machine: pip install nvidia-ml-py"
    assert said(caplog) == [("WARNING", text)] * tells


SPOOL = "/scratch/x/exp1/.hf_mpwriter"
STAGED = Storage("s3://b/exp1", Layout.STAGED, "/scratch/x/exp1", SPOOL, "a URL is no directory")
ASIDE = Storage("/data/exp1", Layout.LOCAL_SPOOL, "/data/exp1", SPOOL, "lustre has no file locks")


def test_where_a_run_is_kept_that_is_not_kept_in_its_logdir():
    """Both places, the interval, what is lost with the machine, and what is not uploaded."""
    assert announcement(STAGED, Settings(commit_every=0.5), uploads=True) == (
        "s3://b/exp1: a URL is no directory. Event files are written to /scratch/x/exp1, and copied to the logdir "
        "every 0.5 minutes, less often in a long run, at push() and at the end. If this machine is lost, so is what it "
        "has logged since."
    )
    assert SPOOL in announcement(ASIDE, Settings(), uploads=True)
    assert announcement(direct("/data/exp1"), Settings(), uploads=True) == ""
    wide = Settings(allow_patterns=None)
    tells = ["none that is in the logdir" in announcement(STAGED, wide, uploads=uploads) for uploads in (True, False)]
    assert tells == [True, False]
