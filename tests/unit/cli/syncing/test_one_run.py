"""What `hf-mpwriter sync` asks for, and waits for."""

from __future__ import annotations

import time

import click
import pytest
from support import event_file, scalar

from hf_mpwriter.base.settings import OFFLINE, Destination, Settings
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.cli.syncing import one_run as sync
from hf_mpwriter.cli.syncing.folders import Wishes
from hf_mpwriter.delivery.wait import Wanted
from hf_mpwriter.events import framing
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.workers.members import Members


@pytest.mark.parametrize(("grows", "requests"), [(False, 1), (True, 2)])
def test_what_is_written_during_the_scan_is_asked_for_again(tmp_path, monkeypatch, grows, requests):
    """The uploader starts with the first request, and may have scanned a file before it became longer."""
    spool, path = Spool(str(tmp_path)), tmp_path / "events.out.tfevents.1700000000.theirs"
    spool.create()
    length, more = event_file(path, 3), framing.frame(scalar(3))
    asked, awaited = [], []

    def start(_: object) -> bool:
        asked.append([member.requests for member in Members(spool).all()])
        if grows:
            with path.open("ab") as file:
                file.write(more)
        return True

    def wait(wanted: Wanted, *_: object, **__: object) -> None:
        asked.append([member.requests for member in Members(spool).all()])
        awaited.append(wanted.lengths)

    monkeypatch.setattr(sync.UploaderElection, "ensure", start)
    monkeypatch.setattr(sync, "_wait", wait)
    there = Destination("http://127.0.0.1:9", "me/run")
    answer = sync._upload(spool, there, time.monotonic() + 60, Wishes(), "")
    assert asked == [[1], [requests]]
    assert awaited == [{path.name: length + len(more) * grows}]
    assert answer.delivery.total == length + len(more) * grows


def test_an_attachment_that_comes_during_the_scan_is_not_waited_for(tmp_path, monkeypatch):
    """The uploader may have looked at attachments before; its next look is a commit interval away."""
    spool, old, new = Spool(str(tmp_path)), tmp_path / "old.pt", tmp_path / "new.pt"
    spool.create()
    event_file(tmp_path / "events.out.tfevents.1700000000.theirs", 3)
    old.write_bytes(b"1")
    seen, awaited = old.stat().st_ctime_ns, []

    def start(_: object) -> bool:
        time.sleep(0.02)  # beyond a tick of the clock of the filesystem
        old.write_bytes(b"2")
        new.write_bytes(b"3")
        return True

    def wait(wanted: Wanted, *_: object, **__: object) -> None:
        awaited.append((set(wanted.lengths) & {old.name, new.name}, wanted.question.changes))

    monkeypatch.setattr(sync.UploaderElection, "ensure", start)
    monkeypatch.setattr(sync, "_wait", wait)
    monkeypatch.setattr(sync, "newest_settings", lambda *_: Settings(allow_patterns=None))
    sync._upload(spool, Destination("http://127.0.0.1:9", "me/run"), time.monotonic() + 60, Wishes(), "")
    assert awaited == [({old.name}, {old.name: seen})]


def test_no_uploader_is_started_for_a_folder_without_event_files(tmp_path, monkeypatch):
    """It would ask the Hub what it holds, and make the repository for that."""
    spool = Spool(str(tmp_path))
    spool.create()
    started: list[object] = []
    monkeypatch.setattr(sync.UploaderElection, "ensure", started.append)
    there = Destination("http://127.0.0.1:9", "me/run")
    answer = sync._upload(spool, there, time.monotonic() + 60, Wishes(), "")
    assert (started, answer.delivery.total, answer.delivery.missing) == ([], 0, {})


def test_it_is_told_why_the_hub_was_not_asked_although_all_was_there(tmp_path, monkeypatch):
    """By its last answer nothing is missing; that it is not asked has a reason, and something helps."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sync.UploaderElection, "ensure", lambda _: False)
    spool, there, name = (
        Spool(str(tmp_path)),
        Destination("http://127.0.0.1:9", "me/run"),
        "events.out.tfevents.1700000000.theirs",
    )
    spool.create()
    spool.record_destination(there)
    length = event_file(tmp_path / name, 1)
    ledger = Ledger(there)
    ledger.acknowledge({name: Sent(length, "0" * 64)}, "commit", 1.0)
    (tmp_path / ".hf_mpwriter" / "hosts" / "here").mkdir(parents=True)
    ledger.save(spool.host("here").ledger)
    answer = sync._upload(spool, there, time.monotonic() + 60, Wishes(), "")
    assert (answer.asked, answer.delivery.missing, answer.delivery.carrier.reason) == (False, {}, OFFLINE)


def test_all_with_a_repository_leaves_the_other_runs_where_they_are_recorded_for(tmp_path, monkeypatch):
    """`sync --all` proposes `--repo-id NAME` for what has no destination; the others are no error then."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sync.UploaderElection, "ensure", lambda _: False)
    spool, elsewhere = Spool(str(tmp_path)), Destination("http://127.0.0.1:9", "me/other", path_in_repo="x")
    event_file(tmp_path / "events.out.tfevents.1700000000.theirs", 1)
    spool.create()
    spool.record_destination(elsewhere)
    with pytest.raises(click.ClickException, match=r"not on the Hub|could not be asked"):
        sync.sync_one(str(tmp_path), Wishes("me/run", timeout=0.0, only_new=True))
    assert spool.destination() == elsewhere
