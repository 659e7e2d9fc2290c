"""The folder of a run: two run directories of a host never share one by accident, and a run keeps its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from forks import fork, reap
from staged import stage
from support import failing
from uploaders import uploader

from hf_mpwriter.base.errors import HfMpWriterError, SpoolFormatError
from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.pulled import note_pulled
from hf_mpwriter.system import disk, filesystem, locks, user_cache
from hf_mpwriter.system.process import host_id
from hf_mpwriter.uploader import folders
from hf_mpwriter.uploader.folders import Facts, folder_for

ASKED = "tensorboard/lr0.1"
HERE = Destination("http://127.0.0.1:9", "me/run", path_in_repo=ASKED)
FILE = "events.out.tfevents.1000000000.here.1.0123abcd"
SECOND = Facts("/home/me/sweepB/lr0.1", ASKED, ASKED)


def owned(run: str, *, asked: str = ASKED, **others: str) -> dict[str, str]:
    """Owners: this one has the folder that is asked for, the others those by their names."""
    return {asked: run} | {f"tensorboard/{name}": other for name, other in others.items()}


# the decision


@pytest.mark.parametrize(
    ("run", "asked", "owners", "folder"),
    [
        ("/sweepB/lr0.1", ASKED, {}, ASKED),
        ("/sweepA/lr0.1", ASKED, owned("/sweepA/lr0.1"), ASKED),
        ("/sweepA/lr0.1", "", owned("/sweepA/lr0.1", asked=""), ""),  # the root of the repository
        ("/home/me/sweepB/lr0.1", ASKED, owned("/home/me/sweepA/lr0.1"), "tensorboard/sweepB_lr0.1"),
        # Hydra's outputs/<date>/<time>: one date suffices, another hour of the same name needs it
        (
            "/o/2026-01-02/12-00-00",
            "t/12-00-00",
            owned("/o/2026-01-01/12-00-00", asked="t/12-00-00"),
            "t/2026-01-02_12-00-00",
        ),
        # Lightning's <save_dir>/lightning_logs/version_0: the part that is equal tells nothing alone
        (
            "/expB/lightning_logs/version_0",
            "tensorboard/lightning_logs/version_0",
            owned("/expA/lightning_logs/version_0", asked="tensorboard/lightning_logs/version_0"),
            "tensorboard/lightning_logs/expB_lightning_logs_version_0",
        ),
        (
            "/c/sweepB/lr0.1",
            ASKED,
            owned("/a/sweepA/lr0.1", **{"sweepB_lr0.1": "/b/sweepB/lr0.1"}),
            "tensorboard/c_sweepB_lr0.1",
        ),
        ("s3://bucket/b/lr0.1", ASKED, owned("s3://bucket/a/lr0.1"), "tensorboard/b_lr0.1"),
        ("/lr0.1", ASKED, owned("/a/lr0.1"), "tensorboard/lr0.1-2"),
        ("/lr0.1", ASKED, owned("/a/lr0.1", **{"lr0.1-2": "/b/lr0.1"}), "tensorboard/lr0.1-3"),
        ("/a_b/x", "x", {**owned("/y/x", asked="x"), "a_b_x": "/a/b_x"}, "x-2"),
        # a link that leads to another directory now
        ("/runs/second", "tensorboard/latest", owned("/runs/first", asked="tensorboard/latest"), "tensorboard/second"),
        ("/a\udcff/lr0.1", ASKED, owned("/b/lr0.1"), "tensorboard/a%FF_lr0.1"),
        (f"/{'x' * 250}/lr0.1", ASKED, owned("/b/lr0.1"), "tensorboard/lr0.1-2"),
        ("/runs/first", "tensorboard/first", owned("/runs/first", asked="tensorboard/latest"), "tensorboard/first"),
        # a directory that was deleted and made anew
        ("/lr0.1", ASKED, owned("/a/lr0.1", **{"lr0.1-2": "/b/lr0.1", "lr0.1-3": "/lr0.1"}), "tensorboard/lr0.1-3"),
        ("/B/lr0.1", ASKED, owned("/A/lr0.1", **{"B_lr0.1": "/B/lr0.1"}), "tensorboard/B_lr0.1"),
    ],
)
def test_a_new_run_directory_gets_as_much_of_its_path_as_tells_it_apart(run, asked, owners, folder):
    """The folder that is asked for where no other run has it; else one beside it that nobody has."""
    assert folder_for(Facts(run, asked, asked), owners) == folder
    assert owners.get(folder, run) == run


@pytest.mark.parametrize(
    ("facts", "is_kept"),
    [
        ({}, False),
        ({"is_settled": True}, True),
        ({"is_pulled": True}, True),
        ({"is_divided": True}, True),
        ({"has_arrived": True}, True),
        ({"has_arrived": True, "is_copy": True}, False),
        ({"is_pulled": True, "has_arrived": True, "is_copy": True}, True),
    ],
)
def test_a_run_keeps_its_folder_for_a_reason(facts, is_kept):
    """Whoever else is said to have it."""
    found = folder_for(dataclasses.replace(SECOND, **facts), owned("/home/me/sweepA/lr0.1"))
    assert found == (ASKED if is_kept else "tensorboard/sweepB_lr0.1")


# at the start of an uploader


@pytest.fixture
def make(tmp_path):
    """Make the spool of a run directory that asks for the folder of its name."""

    def begin(name: str, destination: Destination = HERE) -> Spool:
        spool = Spool(str(tmp_path / name))
        spool.create()
        spool.record_destination(destination)
        return spool

    return begin


def settle(spool: Spool, destination: Destination = HERE, **start: Any) -> tuple[str, str]:
    """Settle the folder; it, and what the user is told."""
    start, notices = folders.settle(spool, StartRecord(spool.run_dir, destination=destination, **start))
    assert start.destination.path_in_repo == spool.destination().path_in_repo, "what is sent is what is recorded"
    return start.destination.path_in_repo, "".join(notices)


def arrive(spool: Spool) -> None:
    """Let something of a run be on the Hub."""
    ledger = Ledger(spool.destination())
    ledger.acknowledge({FILE: Sent(10, "0" * 64)}, "c0ffee", 1.0)
    disk.make_dirs(spool.host(host_id()).root)
    ledger.save(spool.host(host_id()).ledger)


def registry(tmp_path: Path) -> Path:
    """The file of the registry."""
    (found,) = (tmp_path / "cache" / "hf_mpwriter" / "folders").glob("*.json")
    return found


def test_the_second_run_of_a_name_is_told_once_where_it_goes(make, tmp_path):
    """It names both folders and the run directory that has the first one; later starts say nothing."""
    assert settle(make("sweepA/lr0.1")) == (ASKED, "")
    second = make("sweepB/lr0.1")
    told = f"{ASKED} belongs to {tmp_path}/sweepA/lr0.1: this run goes to tensorboard/sweepB_lr0.1"
    assert settle(second) == ("tensorboard/sweepB_lr0.1", told)
    assert settle(Spool(second.run_dir)) == ("tensorboard/sweepB_lr0.1", "")
    assert settle(second, second.destination())[0] == "tensorboard/sweepB_lr0.1", "as it is recorded, as of `sync`"
    assert second.record_destination(HERE) == second.destination() == second.destination_of(HERE)


def test_an_uploader_sends_to_the_folder_that_was_settled(make):
    """Its ledger is of that folder, and the notice is in its status before anything is sent."""
    settle(make("sweepA/lr0.1"))
    one = uploader(make("sweepB/lr0.1")).upload
    try:
        assert one.sending.ledger.destination.path_in_repo == "tensorboard/sweepB_lr0.1"
        assert [notice.text.partition(" belongs")[0] for notice in one.status.status.notices] == [ASKED]
    finally:
        one.close()


def test_another_repository_branch_or_type_is_another_place(make):
    """Nothing is shared there; another way to write the URL of the Hub makes no difference."""
    settle(make("sweepA/lr0.1"))
    for number, change in enumerate([{"repo_id": "me/other"}, {"revision": "b"}, {"repo_type": "dataset"}]):
        there = dataclasses.replace(HERE, **change)
        assert settle(make(f"{number}/lr0.1", there), there) == (ASKED, "")
    same = dataclasses.replace(HERE, endpoint="http://127.0.0.1:9/")
    assert settle(make("sweepB/lr0.1", same), same)[0] == "tensorboard/sweepB_lr0.1"


def test_a_run_directory_that_is_made_anew_keeps_its_folder(make, tmp_path):
    """The first one and the one with a folder of its own; also if only the spool was removed."""
    for name, folder in (("sweepA/lr0.1", ASKED), ("sweepB/lr0.1", "tensorboard/sweepB_lr0.1")):
        settle(make(name))
        shutil.rmtree(tmp_path / name)
        assert settle(make(name))[0] == folder
        shutil.rmtree(tmp_path / name / ".hf_mpwriter")
        assert settle(make(name))[0] == folder


def test_a_run_directory_that_is_moved_takes_its_folder_along(make, tmp_path):
    """A new one in its old place gets another folder, and one that was moved before anything was sent keeps its own."""
    settle(make("sweepA/lr0.1"))
    os.renames(tmp_path / "sweepA" / "lr0.1", tmp_path / "kept" / "lr0.1")
    assert settle(Spool(str(tmp_path / "kept" / "lr0.1"))) == (ASKED, "")
    assert settle(make("sweepA/lr0.1"))[0] == "tensorboard/sweepA_lr0.1"


def test_a_run_that_came_from_another_filesystem_keeps_its_folder(make, tmp_path):
    """What was moved there has another inode, and its old place is empty."""
    first = make("sweepA/lr0.1")
    settle(first)
    arrive(first)
    shutil.copytree(tmp_path / "sweepA", tmp_path / "kept")
    shutil.rmtree(tmp_path / "sweepA")
    assert settle(Spool(str(tmp_path / "kept" / "lr0.1"))) == (ASKED, "")


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_copy_of_a_run_that_is_still_there_gets_a_folder_of_its_own(make, tmp_path, is_sent):
    """A sweep that is copied to try something else does not write into the first one, sent or not; and keeps it."""
    first = make("sweepA/lr0.1")
    settle(first)
    if is_sent:
        arrive(first)
    shutil.copytree(tmp_path / "sweepA", tmp_path / "sweepB")
    copy = Spool(str(tmp_path / "sweepB" / "lr0.1"))
    assert settle(copy)[0] == "tensorboard/sweepB_lr0.1"
    arrive(copy)
    assert settle(copy) == ("tensorboard/sweepB_lr0.1", "")
    assert settle(first) == (ASKED, "")


def test_what_is_on_the_hub_or_on_its_way_stays_where_it_is(make):
    """Runs that began without a cache: to go elsewhere would tear them in two."""
    sent, sending, fresh = (make(f"{name}/lr0.1") for name in ("sent", "sending", "fresh"))
    arrive(sent)
    disk.make_dirs(sending.host(host_id()).root)
    disk.replace(sending.host(host_id()).in_flight, b"{}", "in_flight")
    settle(make("sweepA/lr0.1"))
    assert [settle(one)[0] for one in (sent, sending, fresh)] == [ASKED, ASKED, "tensorboard/fresh_lr0.1"]


def test_what_was_pulled_to_a_second_place_stays_and_the_first_one_remains_the_owner(make, tmp_path):
    """A user has said that it is the same run; a third run directory is told of the first."""
    settle(make("sweepA/lr0.1"))
    pulled = make("elsewhere/lr0.1")
    note_pulled(pulled, {FILE: 10})
    assert settle(pulled) == (ASKED, "")
    assert f"belongs to {tmp_path}/sweepA/lr0.1" in settle(make("third/lr0.1"))[1]


def test_the_nodes_of_a_job_with_a_disk_each_have_one_folder(make, tmp_path, monkeypatch):
    """A node on which another job was would come to another answer than one on which none was."""
    settle(make("job1/lr0.1"))
    assert settle(make("job2/lr0.1"), nodes=Nodes(2, 0)) == (ASKED, "")
    assert f"belongs to {tmp_path}/job1/lr0.1" in settle(make("third/lr0.1"))[1]
    remote = filesystem.Mount("/", "nfs4", "server:/")
    assert not remote.is_local
    monkeypatch.setattr(filesystem, "mount_of_descriptor", lambda _: remote)
    assert settle(make("job3/lr0.1"), nodes=Nodes(2, 0))[0] == "tensorboard/job3_lr0.1", "one uploader serves them all"


def test_links_to_a_run_directory_are_one_run_and_a_link_that_is_turned_is_another(make, tmp_path):
    """The directory counts, not the way to it."""
    spool = make("sweepA/lr0.1")
    settle(spool)
    (tmp_path / "latest").symlink_to(tmp_path / "sweepA")
    shutil.rmtree(spool.root)
    assert settle(make("latest/lr0.1")) == (ASKED, "")
    (tmp_path / "latest").unlink()
    (tmp_path / "sweepB").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "sweepB")
    assert settle(make("latest/lr0.1"))[0] == "tensorboard/sweepB_lr0.1"


def test_a_staged_run_is_known_by_its_logdir(tmp_path):
    """The next attempt has another directory for staging; nothing is asked of the logdir, which may hang."""
    found = []
    for place, logdir in (("t1/a", "s3://b/A/lr0.1"), ("t2/b", "s3://b/B/lr0.1"), ("t3/a", "s3://b/A/lr0.1")):
        spool = stage(tmp_path / place, logdir)
        spool.record_destination(HERE)
        found.append(settle(spool)[0])
    assert found == [ASKED, "tensorboard/B_lr0.1", ASKED]


def racing(make, tmp_path: Path, count: int) -> list[str]:
    """Settle many run directories of one name at once, each in a process of its own; their folders."""
    spools = [make(f"sweep{number}/lr0.1") for number in range(count)]
    hold, go = os.pipe()

    def race(spool: Spool) -> None:
        os.close(go)
        os.read(hold, 1)
        folders.settle(Spool(spool.run_dir), StartRecord(spool.run_dir, destination=HERE))

    children = [fork(lambda spool=spool: race(spool)) for spool in spools]
    os.close(go)
    assert [reap(pid) for pid in children] == [0] * count
    os.close(hold)
    return [spool.destination().path_in_repo for spool in spools]


def test_of_many_that_start_at_the_same_moment_each_gets_a_folder(make, tmp_path):
    """Real processes and locks: all folders differ, one of them is the one that is asked for."""
    found = racing(make, tmp_path, 12)
    assert len(set(found)) == 12
    assert ASKED in found
    assert set(json.loads(registry(tmp_path).read_text())["owners"]) == set(found)


def test_a_stopped_holder_of_the_lock_costs_a_start_a_second(make, tmp_path, monkeypatch):
    """The run goes where it is recorded for, and the next start settles it."""
    monkeypatch.setattr(folders, "LOCK_WAIT", 0.05)
    settle(make("sweepA/lr0.1"))
    holder = locks.try_exclusive(user_cache.folder_of("folders", os.environ) / "lock")
    second = make("sweepB/lr0.1")
    assert settle(second) == (ASKED, "")
    locks.release(holder)
    assert settle(second)[0] == "tensorboard/sweepB_lr0.1"


@pytest.mark.parametrize("trouble", ["a file", "others may write", "enospc"])
def test_without_a_cache_a_run_goes_where_it_is_recorded_for(make, tmp_path, trouble):
    """A cache that cannot be made, one into which others may write, a full disk: as without it, and no failure."""
    (tmp_path / "cache").mkdir()
    if trouble == "a file":
        (tmp_path / "cache" / "hf_mpwriter").write_text("")
    elif trouble == "others may write":
        folder = tmp_path / "cache" / "hf_mpwriter" / "folders"
        folder.parent.mkdir(mode=0o700)
        folder.mkdir()
        folder.chmod(0o770)
    with failing("folders.write=enospc" if trouble == "enospc" else ""):
        assert [settle(make(f"{name}/lr0.1")) for name in "ab"] == [(ASKED, "")] * 2


@pytest.mark.parametrize("garbage", [b"", b"[]", b'{"owners": {"x": 1}}', b"\xff", b"9" * 5000])
def test_a_damaged_registry_is_an_empty_one(make, tmp_path, garbage):
    """What was settled is in run.json as well; the registry is whole again after the next start."""
    first = make("sweepA/lr0.1")
    settle(first)
    registry(tmp_path).write_bytes(garbage)
    assert settle(first) == (ASKED, "")
    assert settle(make("sweepB/lr0.1"))[0] == "tensorboard/sweepB_lr0.1"


def test_a_kill_between_registry_and_run_json_gives_away_no_folder(make):
    """The next start finds the folder that was reserved, and tells of it."""
    settle(make("sweepA/lr0.1"))
    second = make("sweepB/lr0.1")
    killed = fork(lambda: settle(second), "spool.folder.rename=kill")
    assert reap(killed) < 0
    assert second.destination().path_in_repo == ASKED
    folder, told = settle(second)
    assert folder == "tensorboard/sweepB_lr0.1"
    assert "belongs to" in told


def test_on_a_full_disk_only_a_folder_that_cannot_be_recorded_is_waited_for(make):
    """A run in the folder that it asks for needs no record; one that gets another sends nothing without it."""
    with failing("spool.folder.write=enospc"):
        assert settle(make("sweepA/lr0.1")) == (ASKED, "")
    second = make("sweepB/lr0.1")
    with failing("spool.folder.write=enospc"), pytest.raises(OSError, match=r"spool\.folder"):
        settle(second)
    assert settle(second)[0] == "tensorboard/sweepB_lr0.1"


def test_the_registry_stays_small_and_is_written_only_for_news(make, tmp_path, monkeypatch):
    """The owners that were not used for longest go first; a start of a run that is known writes nothing."""
    monkeypatch.setattr(folders, "MOST_OWNERS", 4)

    def start(number: int) -> list[str]:
        there = dataclasses.replace(HERE, path_in_repo=f"tensorboard/{number}")
        settle(make(str(number), there), there)
        owners = json.loads(registry(tmp_path).read_text())["owners"]
        return [folder.removeprefix("tensorboard/") for folder in owners]

    assert [start(number) for number in range(4)][-1] == ["0", "1", "2", "3"]
    before = registry(tmp_path).stat().st_ino
    assert start(3) == start(2) == ["0", "1", "2", "3"]
    assert registry(tmp_path).stat().st_ino == before
    assert start(0) == ["1", "2", "3", "0"]
    assert start(4) == ["2", "3", "0", "4"]


def test_repositories_that_nobody_uses_are_forgotten(make, tmp_path):
    """A year after the last new run in one of them."""
    settle(make("sweepA/lr0.1"))
    os.utime(registry(tmp_path), (0, 0))
    there = dataclasses.replace(HERE, repo_id="me/other")
    settle(make("sweepB/lr0.1", there), there)
    assert list(json.loads(registry(tmp_path).read_text())["owners"]) == [ASKED]


def test_run_json_leads_nowhere_but_to_a_folder_beside_the_one_that_is_asked_for(make):
    """Another folder, repository or Hub in it is refused: the token is that of the start record."""
    spool = make("sweepA/lr0.1")
    settle(spool)
    path = Path(spool.root, "run.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"destination": record["destination"] | {"path_in_repo": "checkpoints"}}))
    with pytest.raises(SpoolFormatError, match="is damaged"):
        settle(spool)
    lock = locks.try_exclusive(spool.uploader_lock)
    for name, value in (("repo_id", "evil/run"), ("endpoint", "http://evil"), ("revision", "x")):
        path.write_text(json.dumps(record | {"destination": record["destination"] | {name: value}}))
        with pytest.raises(HfMpWriterError, match="the recorded destination has changed"):
            uploader(spool, lock=lock, destination=HERE)
