"""Hostile input: links that lead out, garbage in place of every file of ours, a home that cannot be written."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from pathlib import Path

import pytest
from forks import in_child
from hypothesis import given
from hypothesis import strategies as st
from jobs import part
from programs import wait_for
from runs import LOG_AND_EXIT, WORKER, all_acknowledged, check_oracle, no_uploader, run, status_of
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import SPOOL_NAME, is_run_path
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.push import commit
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool import ledger, outbox
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Outbox
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers import member_lines
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.spool.workers.members import MemberFile, Members
from hf_mpwriter.system import disk, hf_home
from hf_mpwriter.system.directory import Directory, at
from hf_mpwriter.system.process import Process

HERE = Destination("https://hub", "me/run")
NAME = "events.out.tfevents.1795233002.h.1.00000000"


# links


@pytest.mark.parametrize("what", [f"rank_00001/{NAME}", "rank_00001"])
def test_what_became_a_link_after_the_snapshot_is_not_sent(tmp_path, what):
    """Neither the next survey nor a push with the old batch follows it; nor a link that appears during the push."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    length = event_file(run / "rank_00001" / NAME, 3)
    event_file(outside / NAME, 5)
    file = LocalFile(f"rank_00001/{NAME}", length, growing=False)
    survey = EventFileScan(Directory(run))
    assert [found.path for found in survey.files(lambda _: True, set)] == [file.path]
    load = commit.Load(0, part(run), Spool(str(run)), to_send=[file])
    with commit.sources(load) as (source,):
        os.rename(run / what, run / "away")
        (run / what).symlink_to(outside / NAME if what.endswith(NAME) else outside)
        assert os.stat(source.path).st_size == length
    assert file.path not in [found.path for found in survey.files(lambda _: True, set)]
    with pytest.raises(OSError, match=r"symbolic|Not a directory"), commit.sources(load):
        pass


def put(path: Path, kind: str, secret: Path) -> None:
    """Put something into a run directory that is neither a file nor a directory of it."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        links = {"link to a secret": secret / NAME, "endless device": "/dev/zero", "link to itself": path}
        path.symlink_to(secret if kind == "link to a secret" and path.name.startswith("rank") else links[kind])


def test_what_stands_beside_the_event_files_stops_nothing_and_is_not_sent(hub, run_dir, tmp_path, start):
    """Under the names of an event file, of a rank's directory and of an attachment."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / NAME).write_bytes(b"a secret")
    run_dir.mkdir(parents=True)
    for number, kind in enumerate(["pipe", "link to a secret", "directory", "endless device", "link to itself"]):
        for name in (f"events.out.tfevents.179523300{number}.h.1.0", f"rank_0000{number + 5}", f"notes{number}.txt"):
            put(run_dir / name, kind, secret)
    program = start(LOG_AND_EXIT.replace("logdir=", "repo_allow_patterns=None, logdir="), run_dir, 5)
    program.succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    sent = [path for path in Path(hub.root).rglob("*") if path.is_file() and b"a secret" in path.read_bytes()]
    assert sent == []
    (own,) = (path for path in run_dir.iterdir() if f".{program.pid}." in path.name)
    assert f"tensorboard/exp1/{own.name}" in hub.store.tree("model", "me/run", "main")


def test_a_path_that_is_longer_than_the_system_takes_is_left_out_and_named(hub, run_dir, start):
    """An event file below 5,000 characters of folders: training and commands go on, and all else is uploaded."""
    run_dir.mkdir(parents=True)
    event_file(run_dir / NAME, 3)
    where = os.open(run_dir, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=where)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = below
    os.link(run_dir / NAME, NAME, dst_dir_fd=where)
    os.close(where)
    program = start(LOG_AND_EXIT, run_dir, 5)
    program.succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    (own,) = (path for path in run_dir.iterdir() if f".{program.pid}." in path.name)
    assert {f"tensorboard/exp1/{name}" for name in (own.name, NAME)} <= set(hub.store.tree("model", "me/run", "main"))
    for command, code in (("status", 4), ("sync", 3), ("stop", 0)):
        done = run(command, run_dir)
        assert done.exit_code == code, (command, done.output)
        assert command == "stop" or "paths of more than 4,096 bytes, such as dddd" in done.output, done.output
    notices = UploaderStatus.newest(Spool(str(run_dir))).notices
    assert any("paths of more than 4,096 bytes" in notice.text for notice in notices)


# parsers


@given(
    st.text("a./\0", max_size=9) | st.sampled_from([f"{SPOOL_NAME}/x", f"a/{SPOOL_NAME}", "a" * 5000, None, 5, ["a"]])
)
def test_only_paths_of_a_run_directory_are_accepted(path):
    """An accepted path stays below the run directory under its exact name, and outside the spool."""
    if is_run_path(path):
        assert os.path.normpath(os.path.join("/run", path)) == f"/run/{path}"
        assert not f"/{path}/".count(f"/{SPOOL_NAME}/")
        assert "\0" not in path


def test_a_member_file_that_is_endless_is_read_at_its_beginning(tmp_path, monkeypatch):
    """What another program appends without end is never in memory as a whole; identity and counters are first."""
    monkeypatch.setattr(member_lines, "MEMBER_FILE_LIMIT", 4096)
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    member_file = MemberFile(spool, "main", Process.current(), Settings())
    member_file.write({"open": NAME})
    seen = Members(spool)
    seen.all()
    with open(member_file.path, "ab") as file:
        file.writelines(b"endless\n" for _ in range(1000))
    for requests in range(1, 4):
        member_file.count(requests=1)
        for members in (seen, Members(spool)):
            (member,) = members.all()
            assert (member.alive, set(member.growing), member.requests) == (True, {NAME}, requests)
    member_file.withdraw()


def test_giants_are_not_read_into_memory(tmp_path):
    """1 GiB in place of each file: within a quarter of that memory all of them are refused or ignored."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    host = spool.host("h")
    os.makedirs(host.outbox)
    name = MemberName("main", "h", 1, 2, 3)
    batch = os.path.join(host.outbox, "00000001.json")
    for path in (host.ledger, host.in_flight, host.daemon("uploader").status, batch, spool.members / str(name)):
        with open(path, "wb") as file:
            file.truncate(1 << 30)

    def read_all() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
        assert Members(spool).all() == []
        assert outbox.interrupted(host) == outbox.InFlightRecord(0, fenced=False)
        assert ledger.load(spool, HERE).files == {}
        assert ledger.set_aside(spool, "h")
        assert Outbox(host, spool.run).batches == []
        with pytest.raises(OSError, match="large"):
            disk.read(host.daemon("uploader").status)

    assert in_child(read_all) == 0


# garbage under a real uploader

DEEP = b"[" * 100_000
KINDS = ("empty", "bytes", "deep", "wrong", "huge", "directory", "link", "pipe")


def put_garbage(path: Path, kind: str, elsewhere: Path) -> None:
    """Replace a file."""
    new = path.with_name("new-garbage")
    if kind == "directory":
        new.mkdir()
        (new / "file").touch()
    elif kind == "link":
        new.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(new)
    else:
        new.write_bytes(
            {"bytes": b"\xff\x00{" * 99, "deep": DEEP, "wrong": b'{"files": [], "push": {}}\n'}.get(kind, b"")
        )
        if kind == "huge":
            os.truncate(new, 1 << 30)
    while os.path.lexists(new):
        try:
            os.rename(new, path)
        except NotADirectoryError:  # no directory takes the place of a file, and that may be written again meanwhile
            path.unlink(missing_ok=True)


def test_garbage_in_the_place_of_every_file_of_ours_does_no_harm(hub, tmp_path, run_dir, start):
    """Each file gets every second kind: the worker logs on, nothing follows a link, all arrives in the end."""
    elsewhere, end, spool = tmp_path / "elsewhere", tmp_path / "end", Spool(str(run_dir))
    elsewhere.write_text("theirs")
    journals = tmp_path / "journals"
    worker = start(WORKER, run_dir, journals, end)
    view = HubSink(spool)
    wait_for(lambda: view.status().commits, "a commit")

    def written() -> int:
        return sum(path.stat().st_size for path in journals.glob("*"))

    for turn in range(4):
        everything = (Path(top, name) for top, _, names in os.walk(spool.root) for name in names)
        files = sorted(path for path in everything if path.is_file() and not path.is_symlink())
        for number, path in enumerate(files):
            if path.name not in ("run.json", "FORMAT") and not path.name.startswith("."):
                # The uploader was faster: the file has gone, or its directory of garbage is a file again.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    put_garbage(path, KINDS[(number + 2 * turn) % len(KINDS)], elsewhere)
        before = written()
        wait_for(lambda: any(member.alive for member in Members(spool).all()), "the worker has joined again")
        wait_for(lambda before=before: written() > before + 2000, "it logs on")
        assert isinstance(view.status(), UploaderStatus)
        assert view.ledger() is not None
    assert "Traceback" not in status_of(run_dir)
    assert worker.process.poll() is None
    os.rename(spool.root, tmp_path / "garbage")
    wait_for(
        lambda: any(member.alive for member in Members(Spool(str(run_dir))).all()), "the worker has made a new spool"
    )
    end.touch()
    code, _, err = worker.finish()
    assert code == 0, err
    assert "Traceback" not in err
    wait_for(lambda: all_acknowledged(run_dir), "all arrives")
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub, journals)
    assert elsewhere.read_text() == "theirs"


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_garbage_in_the_place_of_the_log_keeps_no_uploader_from_starting(tmp_path, kind):
    """It is moved aside; opening it for writing would fail, follow it, or wait for a reader."""
    path = tmp_path / "uploader.log"
    path.touch()
    put_garbage(path, kind, tmp_path / "elsewhere")
    os.close(disk.open_anew(at(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    assert stat.S_ISREG(os.lstat(path).st_mode)
    assert len(list(tmp_path.glob("uploader.log.aside-*"))) == 1
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_garbage_in_the_place_of_a_record_is_replaced(tmp_path, kind):
    """Else an uploader would try for ever what the garbage refuses."""
    path = tmp_path / "in_flight.json"
    path.touch()
    put_garbage(path, kind, tmp_path / "elsewhere")
    disk.replace(at(path), b"ours", "w")
    assert disk.read(at(path)) == b"ours"
    assert not (tmp_path / "elsewhere").exists()


# home


def test_a_home_that_cannot_be_written_is_no_obstacle(hub, run_dir, start, monkeypatch):
    """The client's caches move into the spool; the tag of the model card, which needs them, is there too."""
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    start(LOG_AND_EXIT, run_dir, 5, env={"HOME": "/dev/null/x"}).succeed()
    check_oracle(run_dir, hub)
    assert b"hf-summary-writer" in hub.store.read_blob("model", "me/run", "README.md", "main")
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    (cache,) = run_dir.glob(f"{SPOOL_NAME}/hosts/*/cache")
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in [cache, *cache.rglob("*")]} == {0}
    assert len(check_oracle(run_dir, hub).files) == 1, "caches are not uploaded"


def test_caches_move_only_where_the_users_cannot_be_written(tmp_path):
    """Each cache moves by itself, and a readable token stays in use."""
    instead = str(tmp_path / "instead")
    assert hf_home.writable_caches({"HF_HOME": str(tmp_path / "home")}, instead) == {}
    xet = hf_home.writable_caches({"HF_HOME": str(tmp_path / "home"), "HF_XET_CACHE": "/dev/null/x"}, instead)
    assert xet == {"HF_XET_CACHE": f"{instead}/xet"}
    (tmp_path / "token").write_text("hf_x")
    everything = hf_home.writable_caches({"HF_HOME": "/dev/null/x", "HF_TOKEN_PATH": str(tmp_path / "token")}, instead)
    assert everything == {
        "HF_HOME": instead,
        "HF_HUB_CACHE": f"{instead}/hub",
        "HF_XET_CACHE": f"{instead}/xet",
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }
    assert hf_home.writable_caches({"HF_HOME": "/dev/null/x"}, instead)["HF_TOKEN_PATH"] == f"{instead}/token"
