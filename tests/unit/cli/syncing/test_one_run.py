"""What `hf-mpwriter sync` says of what is not on the Hub."""

from __future__ import annotations

import time

import click
import pytest
from support import event_file, scalar

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.cli.syncing import one_run as sync
from hf_mpwriter.cli.syncing.folders import Wishes
from hf_mpwriter.cli.syncing.one_run import shortfall_text
from hf_mpwriter.events import framing
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.members import Members

AGAIN = "hf-mpwriter sync runs/a"
TOKEN = UploaderStatus(kind="Refused", reason="token refused (401)", hint="run `hf auth login`")
GONE = UploaderStatus(
    kind="Refused", reason="me/run is gone.", hint="To make it anew: hf-mpwriter sync --create runs/a"
)
DOWN = UploaderStatus(kind="Retry", reason="the Hub cannot be reached at HUB")


@pytest.mark.parametrize(
    ("missing", "refused", "uploader", "asked", "text"),
    [
        (
            93,
            [],
            TOKEN,
            False,
            f"93 B are not on the Hub: token refused (401). Run `hf auth login`; then: {AGAIN}",
        ),
        (0, [], TOKEN, False, "The Hub does not tell what it has: token refused (401). Run `hf"),
        (93, [], GONE, False, "93 B are not on the Hub: me/run is gone. To make it anew: hf-mpwriter sync --create"),
        (
            93,
            [],
            DOWN,
            False,
            "The Hub could not be asked: the Hub cannot be reached at HUB. By what it",
        ),
        (0, [], UploaderStatus(), False, "The Hub could not be asked. By what it last answered, everything is there."),
        (93, [], DOWN, True, "93 B are not on the Hub yet: the Hub cannot be reached at HUB."),
        (93, ["a: too large", "a: too large"], TOKEN, True, "93 B are not on the Hub yet: a: too large."),
    ],
)
def test_what_is_missing_is_told_once_with_its_reason_and_cure(missing, refused, uploader, asked, text, monkeypatch):
    """A Hub that refuses was asked; only one that gives no answer could not be."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    said = shortfall_text(missing, refused, uploader, AGAIN, asked=asked)
    assert said.startswith(text), said
    assert said.count("hf-mpwriter sync") == (uploader.kind == "Refused" and not refused)


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

    def wait(_: object, lengths: dict[str, int], *__: object, **___: object) -> dict[str, int]:
        asked.append([member.requests for member in Members(spool).all()])
        awaited.append(lengths)
        return {}

    monkeypatch.setattr(sync.Election, "ensure_uploader", start)
    monkeypatch.setattr(sync, "wait", wait)
    there = Destination("http://127.0.0.1:9", "me/run")
    answer = sync._request_and_wait(spool, there, Settings(), 60.0, Wishes(is_quiet=True), "")
    assert asked == [[1], [requests]]
    assert awaited == [{path.name: length + len(more) * grows}] == [answer.lengths]


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

    def wait(_: object, lengths: dict[str, int], *__: object, asked: object, **___: object) -> dict[str, int]:
        awaited.append((set(lengths) & {old.name, new.name}, asked))
        return {}

    monkeypatch.setattr(sync.Election, "ensure_uploader", start)
    monkeypatch.setattr(sync, "wait", wait)
    there, settings = Destination("http://127.0.0.1:9", "me/run"), Settings(allow_patterns=None)
    sync._request_and_wait(spool, there, settings, 60.0, Wishes(is_quiet=True), "")
    assert awaited == [({old.name}, {old.name: seen})]


def test_no_uploader_is_started_for_a_folder_without_event_files(tmp_path, monkeypatch):
    """It would ask the Hub what it holds, and make the repository for that."""
    spool = Spool(str(tmp_path))
    spool.create()
    started: list[object] = []
    monkeypatch.setattr(sync.Election, "ensure_uploader", started.append)
    there = Destination("http://127.0.0.1:9", "me/run")
    answer = sync._request_and_wait(spool, there, Settings(), 60.0, Wishes(is_quiet=True), "")
    assert (started, answer.lengths, answer.missing) == ([], {}, {})


def test_all_with_a_repository_leaves_the_other_runs_where_they_are_recorded_for(tmp_path, monkeypatch):
    """`sync --all` proposes `--repo-id NAME` for what has no destination; the others are no error then."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sync.Election, "ensure_uploader", lambda _: False)
    spool, elsewhere = Spool(str(tmp_path)), Destination("http://127.0.0.1:9", "me/other", path_in_repo="x")
    event_file(tmp_path / "events.out.tfevents.1700000000.theirs", 1)
    spool.create()
    spool.record_destination(elsewhere)
    with pytest.raises(click.ClickException, match=r"not on the Hub|could not be asked"):
        sync.sync_one(str(tmp_path), Wishes("me/run", timeout=0.0, is_quiet=True, only_new=True))
    assert spool.destination() == elsewhere
