"""The upload of one run beside others: it has a log of its own, and leaves nothing open."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from support import open_descriptors

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.daemon import background
from hf_mpwriter.system import locks

logger = logging.getLogger("hf_mpwriter")


@pytest.fixture
def printing():
    """Standard output and error of this process are what its log goes to, and are put back."""
    kept = os.dup(1), os.dup(2)
    handler = logging.StreamHandler(open(2, "w", closefd=False))  # noqa: SIM115 - the descriptor stays
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)
    logger.removeHandler(handler)
    for fd, number in zip(kept, (1, 2), strict=True):
        os.dup2(fd, number)
        os.close(fd)


def log_of(root: Path, name: str) -> Path:
    """Where a run's log is."""
    return root / f"{name}.log"


def add(sweep, name: str):
    """Serve a run with a log of its own."""
    return sweep.add(name, log=os.open(log_of(sweep.root, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND))


@pytest.mark.usefixtures("printing")
def test_what_is_done_for_a_run_is_in_its_log(sweep):
    """Each log says which lock was taken and what was pushed, and nothing of other runs."""
    one, two = add(sweep, "a"), add(sweep, "b")
    sweep.push(one, two)
    sweep.arrives("1" * 40, "0")
    sweep.one._guarded(one, logger.info, "only of a")
    text, other = (log_of(sweep.root, name).read_text() for name in "ab")
    assert f"took the uploader lock of {one.run_dir}\n" in text
    assert ("commit 11111111" in text, "only of a" in text, "only of a" in other) == (True, True, False)
    assert two.run_dir not in text
    assert one.run_dir not in other


@pytest.mark.usefixtures("printing")
def test_a_log_that_was_rotated_is_followed(sweep, monkeypatch):
    """What comes later is in the new one, not in the older copy."""
    monkeypatch.setattr(background, "LOG_LIMIT", 10)
    one = add(sweep, "a")
    add(sweep, "b")
    path = one.host.daemon("uploader").log
    os.link(log_of(sweep.root, "a"), str(path))
    sweep.one._guarded(one, background.rotate_log, path)
    sweep.one._guarded(one, logger.info, "later")
    assert Path(str(path)).read_text() == "later\n"
    assert "later" not in log_of(sweep.root, "a").read_text()


@pytest.mark.usefixtures("printing")
def test_a_run_that_is_let_go_leaves_no_descriptor_and_no_complaint(sweep):
    """An uploader serves many runs in its life."""
    add(sweep, "a")
    before = open_descriptors()
    for _ in range(2):
        two = add(sweep, "b")
        sweep.workers["b"].leave()
        two.requests.terminate()
        two.sending.events.has_scanned = True
        sweep.one._drop(two)
        assert open_descriptors() <= before
    third = add(sweep, "c")
    sweep.workers["c"].leave()
    third.peers.look()
    sweep.one._guarded(third, lambda: (third.close(), sweep.one._drop(third)))
    assert "refuses" not in log_of(sweep.root, "c").read_text()
    assert open_descriptors() <= before
    assert not locks.is_held(third._spool.uploader_lock)


def test_a_run_that_is_recorded_for_another_destination_is_not_served(sweep):
    """The token belongs to that of the start record; the status says what to do."""
    one = sweep.add("a")
    one.close()
    sweep.one._drop(one)
    path = Path(one.run_dir, ".hf_mpwriter", "run.json")
    record = json.loads(path.read_text())
    record["destination"]["repo_id"] = "me/other"
    path.write_text(json.dumps(record))
    with pytest.raises(HfMpWriterError, match="recorded destination has changed"):
        one.recover()
    assert one.status.status.kind == "Refused"
