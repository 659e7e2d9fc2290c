"""The share of a host in a run whose spool is of this host only."""

from __future__ import annotations

import os
import time

import pytest

from hf_mpwriter.base.names import event_name
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.workers import peers as share_module
from hf_mpwriter.spool.workers.peers import LEFT_ALONE, Share, is_apart
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id, host_name

OWN, OTHER = (event_name([], 1.0, host, 7, "") for host in (host_name(), "node-9"))


@pytest.fixture
def spool(tmp_path):
    """A spool outside of its run directory, in which rank 3 has lived."""
    made = Spool.of(str(tmp_path / "logs" / "exp1"), str(tmp_path / "here" / "exp1" / ".hf_mpwriter"))
    made.create()
    locks.release(locks.try_exclusive(made.claim("rank_00003")))
    return made


def write(spool: Spool, path: str, age: float = 0.0) -> str:
    """Make a file of the run directory, so old; its path."""
    place = os.path.join(spool.run_dir, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb"):
        pass
    os.utime(place, (0, time.time() - age))
    return path


def test_a_spool_in_its_run_directory_is_of_all_hosts(tmp_path):
    """There the share is everything."""
    share = Share(Spool(str(tmp_path)))
    assert share.has(OTHER)
    assert share.takes(f"rank_00007/{OTHER}")
    assert not is_apart(Spool(str(tmp_path)))


def test_an_event_file_is_of_the_host_in_its_name(spool):
    """In whatever directory it is; that of another host is left alone while it may change."""
    assert is_apart(spool)
    share = Share(spool)
    assert share.has(OWN)
    assert share.has(f"rank_00007/{OWN}")
    for path in (OTHER, f"rank_00003/{OTHER}"):
        assert not share.has(write(spool, path, LEFT_ALONE - 60))
        assert not share.takes(path)
    assert share.of(lambda path: "rank" not in path)(OWN)
    assert not share.of(lambda path: "rank" not in path)(f"rank_00003/{OWN}")


def test_a_loss_is_of_the_host_that_its_file_is_named_after(spool):
    """Whoever has lived here: one that was pulled is sent by nobody."""
    locks.release(locks.try_exclusive(spool.claim("main")))
    for host, is_own in ((host_id(), True), ("node-9", False)):
        path = write(spool, f"_lost/main.{host}.1.2-1.209.json", LEFT_ALONE + 60)
        assert Share(spool).has(path) is Share(spool).takes(path) is is_own


def test_what_another_host_has_left_is_sent_where_its_worker_has_lived(spool):
    """Or where the first process of the run has; nobody waits for it."""
    share = Share(spool)
    mine, others = (write(spool, f"rank_0000{rank}/{OTHER}", LEFT_ALONE + 60) for rank in (3, 5))
    assert share.takes(mine)
    assert not share.has(mine)
    assert not share.takes(others)
    locks.release(locks.try_exclusive(spool.claim("main")))
    assert Share(spool).takes(others)
    os.unlink(os.path.join(spool.run_dir, mine))
    assert not share.takes(mine)


def test_a_file_that_names_no_host_is_of_the_host_of_its_worker(spool):
    """Attachments, and event files of other writers; those of the run directory itself are the first process's."""
    share = Share(spool)
    assert share.has("rank_00003/metadata.tsv")
    assert share.has("rank_00003/events.out.tfevents.1700000000.torch.1.0")
    assert not share.has("rank_00005/metadata.tsv")
    assert not share.has("notes.txt")
    assert not share.takes(write(spool, "notes.txt", LEFT_ALONE + 60))


def test_who_has_lived_here_is_looked_at_now_and_then(spool, monkeypatch):
    """Not for each file: a run may have thousands."""
    now, looks = [0.0], []
    share = Share(spool, lambda: now[0])
    monkeypatch.setattr(share_module.disk, "time_of", lambda place: looks.append(place) or 0.0)
    for _ in range(3):
        assert not share.has("notes.txt")
    assert len(looks) == 1
    locks.release(locks.try_exclusive(spool.claim("main")))
    now[0] = 60.0
    assert share.has("notes.txt")


@pytest.fixture
def staged(tmp_path):
    """The spool of a staged run, in which rank 3 has lived; the run directory is of this host only."""
    made = Spool.of(str(tmp_path / "here" / "exp1"), logdir=str(tmp_path / "mount" / "exp1"))
    made.create()
    locks.release(locks.try_exclusive(made.claim("rank_00003")))
    return made


def test_a_staged_run_is_of_other_hosts_too(staged):
    """They have spools of their own, so commits name their parents; also where the logdir is not known by name."""
    assert is_apart(staged)
    by_path = Spool(staged.run_dir)
    assert not is_apart(by_path)
    MirrorRecord(staged.logdir, 1.0).publish(staged)
    assert is_apart(by_path)


def test_what_was_restored_is_of_the_host_on_which_its_worker_lives(staged, monkeypatch):
    """Whoever has logged it; what lives elsewhere is sent from there, or minutes later where the first process is."""
    share = Share(staged)
    mine, others = (write(staged, f"rank_0000{rank}/{OTHER}", 1e6) for rank in (3, 5))
    assert share.has(mine)
    assert not share.has(others)
    assert not share.takes(others)
    assert share.has(f"rank_00005/{OWN}")
    assert share.has("rank_00005/metadata.tsv"), "nothing else brings such a file here"
    locks.release(locks.try_exclusive(staged.claim("main")))
    assert not Share(staged).takes(others), "it has come just now, however old it is"
    monkeypatch.setattr(share_module, "LEFT_ALONE", -1.0)
    assert Share(staged).takes(others)
