"""What an uploader does at the end about the view of all ranks: what is derived late goes to the Hub, too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from derived_runs import RankFiles

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.ranks_view import view
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_name
from hf_mpwriter.uploader.decision import Action, decide
from hf_mpwriter.uploader.loop import Uploader


@pytest.fixture
def now() -> list[float]:
    """The clock of the uploader, in monotonic seconds."""
    return [1000.0]


@pytest.fixture
def one(spool, now, monkeypatch) -> Uploader:
    """An uploader of two ranks that are gone; its view has much to read, and takes it in by small parts."""
    monkeypatch.setattr(view, "LAST_PART", 0.0)
    files = RankFiles(Path(spool.run_dir), host_name())
    for rank in (0, 1):
        files.start(rank)
        for step in range(4000):
            files.log(rank, step, {"loss": rank + step})
    lock = locks.try_exclusive(spool.uploader_lock)
    found = Uploader(spool, spool.destination(), lock, lambda: now[0], random.Random(1))
    found.run.ledger.settings = Settings(all_ranks_view=True)
    now[0] += 60
    return found


def send(one: Uploader) -> set[str]:
    """Scan, and take for sent what is found; its directories."""
    one._scan([])
    found = {file.path.rpartition("/")[0] for batch in one.run.events.batches for file in batch.files}
    for batch in list(one.run.events.batches):
        one.run.events.drop(batch)
    return found


@pytest.mark.parametrize("is_too_late", [False, True])
def test_a_view_that_is_complete_only_after_the_last_batch_is_sent(one, now, is_too_late):
    """Also what is there of it when the uploader waits no longer."""
    one.run.keep_house([])
    assert one.run.view.is_behind
    send(one)
    assert decide(one._situation([])) is not Action.SCAN
    now[0] += view.LONGEST * is_too_late
    for _ in range(1000):
        if not one.run.view.is_behind:
            break
        one.run.keep_house([])
    assert not one.run.view.is_behind
    assert decide(one._situation([])) is Action.SCAN
    assert "_all_ranks" in send(one)
    one.run.keep_house([])
    assert decide(one._situation([])) is not Action.SCAN
