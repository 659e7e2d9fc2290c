"""Names and places on disk: both ways, in time order, and whole under races and kills."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import shlex
import signal

import pytest
from forks import KILLED, fork, reap
from hypothesis import given
from hypothesis import strategies as st
from support import event_file, failing

from hf_mpwriter.base import names as names_module
from hf_mpwriter.base.errors import DestinationError, LogdirError, SpoolFormatError
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import OF_OTHERS
from hf_mpwriter.snapshot.search import RunSearch
from hf_mpwriter.spool.layout import FORMAT, RunRecord, Spool
from hf_mpwriter.spool.storage import beside, spool_of
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.system import disk, failpoints
from hf_mpwriter.system.directory import Directory, Place

HERE = Destination("https://hub", "me/run", path_in_repo="logs")
RACERS = 16
STEPS = ("open", "write", "fsync", "link", "dirsync")
WORDS = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


@pytest.fixture
def place(tmp_path):
    """A spool that does not exist yet."""
    return Spool(str(tmp_path / "exp1"))


@given(st.lists(st.floats(-1e9, 4e9), min_size=2, max_size=20), st.lists(WORDS, min_size=1, max_size=3))
def test_names_sort_in_time_order_whatever_the_clock_does(clock, suffixes):
    """Each new name sorts behind all that are there, also when the clock goes back; the seconds grow strictly."""
    names: list[str] = []
    for now, suffix in zip(clock, itertools.cycle(suffixes), strict=False):
        names.append(names_module.event_name(reversed(names), now, "host", 9, suffix))
    assert names == sorted(names)
    seconds = [names_module.event_second(name) for name in names]
    assert seconds == sorted(set(seconds))
    assert all(names_module.is_event_file(name) for name in names)


def test_a_new_name_sorts_behind_files_of_other_writers():
    """Torch's and tensorboardX's names count; files without a second do not disturb."""
    there = ["events.out.tfevents.1900000000.host.12.0", "events.out.tfevents.1900000001.host", "x.tfevents.json", "a"]
    assert names_module.event_second(names_module.event_name(there, 1.0, "h", 1, "")) == 1900000002
    assert names_module.event_second("events.out.tfevents.h") == 0


DIGITS = st.one_of(st.from_regex(r"[0-9]{1,25}", fullmatch=True), st.from_regex(r"9{10,30}[0-9]{0,3}", fullmatch=True))


@given(st.lists(DIGITS, max_size=9), st.lists(st.floats(0, 1e11), min_size=2, max_size=9), st.booleans())
def test_names_of_strangers_change_nothing_of_the_order_of_ours(digits, clock, looks_like_ours):
    """Ours sort by the time of their making, and behind each name that has a time, however many digits it has."""
    strangers = [f"events.out.tfevents.{one}.h.1.00000000" if looks_like_ours else f"{one}.h" for one in digits]
    there, made = strangers.copy(), list[str]()
    for now in clock:
        made.append(names_module.event_name(there, now, "host", 9, ""))
        there.append(made[-1])
    assert made == sorted(made)
    assert len(set(map(names_module.event_second, made))) == len(made)
    assert all(map(names_module.is_ours, made))
    is_time = [name for name in strangers if names_module.last_second([name]) or not names_module.event_second(name)]
    assert made[0] > max([name for name in is_time if name.startswith("events.out")], default="")
    assert names_module.last_second(["events.out.tfevents.9999999999.h", "events.out.tfevents.5.h"]) == 9_999_999_999


def test_behind_the_last_second_of_ten_digits_names_go_on():
    """A file put there by others, or pulled, does not make ours sort before it."""
    there = ["events.out.tfevents.9999999999.h.1.00000000"]
    there += [names_module.event_name(there, 1.8e9, "host", 9, "")]
    there += [names_module.event_name(there, 1.8e9, "host", 8, "")]
    assert there == sorted(there)
    assert [names_module.event_second(name) for name in there] == [9_999_999_999, 10_000_000_000, 10_000_000_001]
    assert there[2].startswith("events.out.tfevents.99999999990000000002.")
    assert names_module.event_host(there[2]) == "host"


@given(WORDS, WORDS, st.integers(0, 2**22), st.integers(0, 2**63), st.integers(0, 999))
def test_the_name_of_a_member_file_can_be_read_back(worker, host, pid, ticks, n):
    """Formatting and parsing are inverse, also for names that had to give way."""
    for name in (worker, f"{worker}~2"):
        found = MemberName(name, host, pid, ticks, n)
        assert MemberName.parse(str(found)) == found


@pytest.mark.parametrize("worker", ["main", "rank_00003", "proc_00001", "proc_00007", "Process-1"])
def test_there_is_always_another_name(worker):
    """The wanted one first, then names that differ from it and from each other and are no one else's directory."""
    names = list(itertools.islice(names_module.candidates(worker), 1000))
    assert names[0] == worker
    assert len(set(names)) == 1000
    assert "main" not in names[1:]


def test_no_name_in_the_spool_looks_like_an_event_file(place):
    """TensorBoard opens whatever contains `tfevents`."""
    host = place.host("host-1")
    paths = [
        place.root,
        place.uploader_lock,
        place.claim("main"),
        place.members / str(MemberName("main", "h", 1, 2, 3)),
        host.daemon("uploader").status,
    ]
    paths += [host.daemon("uploader").log, host.outbox, host.in_flight, host.ledger]
    assert not any(names_module.is_event_file(os.path.relpath(path, place.run_dir)) for path in paths)


def test_racing_workers_make_one_spool(place):
    """All succeed, one FORMAT results, nothing temporary is left."""
    children = [fork(place.create) for _ in range(8)]
    assert [reap(pid) for pid in children] == [0] * 8
    assert sorted(os.listdir(place.root)) == ["FORMAT", "claims", "hosts", "members"]
    with open(os.path.join(place.root, "FORMAT"), encoding="ascii") as file:
        assert file.read() == f"{FORMAT}\n"
    assert os.stat(place.root).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fault", ["enospc", "eio"])
@pytest.mark.parametrize("point", [f"spool.{name}.{step}" for name in ("format", "run") for step in STEPS])
def test_a_disk_that_refuses_is_a_logdir_error(place, point, fault):
    """No bare OSError in a constructor: it says what is wrong, with a hint, and can be tried again."""

    def begin() -> None:
        place.create()
        place.record_destination(HERE)

    with failing(f"{point}={fault}"), pytest.raises(LogdirError, match="cannot be written") as caught:
        begin()
    assert caught.value.hint
    begin()


def test_no_spool_is_made_where_no_lock_can_be_had(place, monkeypatch):
    """Whoever is the first: a worker, which would join never, or a command."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(LogdirError, match=r"has no file locks\. Set HF_MPWRITER_STAGING"):
        place.create()
    assert not place.exists()


def test_what_is_to_be_typed_for_another_destination_names_one_folder(tmp_path):
    """A run directory may have spaces: `rm -r` must not get the words of its name."""
    spool = Spool(str(tmp_path / "my runs" / "a"))
    spool.create()
    spool.record_destination(Destination("https://hub", "me/one"))
    with pytest.raises(DestinationError) as caught:
        spool.record_destination(Destination("https://hub", "me/two"))
    command = str(caught.value).partition(": rm ")[2]
    assert shlex.split(command) == ["-r", spool.root]


@pytest.mark.parametrize("target", ["link", "gone/away"])
def test_a_logdir_that_is_a_link_to_nowhere_is_refused_by_its_name(tmp_path, target):
    """A link to itself cannot even be asked what it is, and the folder above a broken one is no file."""
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(LogdirError, match=r"cannot be a directory: '[^']*/link' is a link"):
        Spool(str(tmp_path / "link")).create()


def test_a_full_disk_does_not_refuse_a_spool_that_is_there(place):
    """A restart on a full disk joins the run: everything that it needs exists already (promise 3)."""
    place.create()
    place.record_destination(HERE)
    points = ",".join(f"spool.{word}.{step}=enospc" for word in ("format", "run") for step in ("open", "write"))
    with failing(points):
        place.create()
        place.record_destination(HERE)


@pytest.mark.parametrize("where", [".", ".hf_mpwriter", ".hf_mpwriter/members"])
def test_a_file_where_a_directory_should_be_is_a_logdir_error(place, where):
    """Told before training starts, naming the file."""
    path = os.path.normpath(os.path.join(place.run_dir, where))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii"):
        pass
    with pytest.raises(LogdirError, match="file"):
        place.create()


def test_the_spool_of_another_version_is_refused_and_left_as_it_is(place):
    """No directory and no file is added to it."""
    os.makedirs(place.root)
    with open(os.path.join(place.root, "FORMAT"), "w", encoding="ascii") as file:
        file.write("hf_mpwriter 2\n")
    with pytest.raises(SpoolFormatError, match="hf_mpwriter 2"):
        place.create()
    assert os.listdir(place.root) == ["FORMAT"]


@pytest.mark.parametrize(
    ("content", "is_damage"),
    [
        ("{}", True),
        *((number, False) for number in (errno.ENOTCONN, errno.EIO, errno.EACCES, errno.ESTALE, errno.ENXIO)),
        *((number, True) for number in (errno.EISDIR, errno.ELOOP, errno.EFBIG, errno.ENXIO)),
    ],
)
def test_only_a_file_that_holds_something_else_is_to_be_removed(place, monkeypatch, content, is_damage):
    """What its disk does not give now may be whole: a mount comes back."""
    place.create()
    if isinstance(content, str):
        disk.replace(place.directory / "run.json", content.encode(), "test")
    else:

        def refuse(_: Place) -> bytes:
            raise OSError(content, os.strerror(content))

        monkeypatch.setattr(disk, "read", refuse)
        if is_damage:
            os.mkdir(os.path.join(place.root, "run.json"))
    with pytest.raises(SpoolFormatError if is_damage else LogdirError) as caught:
        place.destination()
    told = ("is damaged" in str(caught.value), "Remove that file" in str(caught.value))
    assert (told, "cannot be read" in str(caught.value)) == ((is_damage, is_damage), not is_damage)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_file_that_ends_too_soon_counts_as_not_there(place, part):
    """FORMAT and run.json, as some filesystems leave them when the power fails: the next worker writes them again."""
    place.create()
    place.record_destination(HERE)
    for name in ("FORMAT", "run.json"):
        path = os.path.join(place.root, name)
        os.truncate(path, int(part * os.path.getsize(path)))
    other = Spool(place.run_dir)
    assert other.destination() is None
    other.create()
    other.check_format()
    other.record_destination(HERE)
    assert place.destination() == HERE


@pytest.mark.parametrize("step", STEPS)
def test_of_many_racers_any_may_be_killed_while_it_publishes(place, step):
    """Each survivor finds one whole FORMAT and the one destination that was recorded, whoever dies at which step."""
    start, go = os.pipe()

    def race(n: int) -> None:
        os.close(go)
        os.read(start, 1)
        if n % 2:
            failpoints.armed[f"spool.{'format' if n % 4 == 1 else 'run'}.{step}"] = ("kill", 1)
        place.create()
        try:
            place.record_destination(dataclasses.replace(HERE, repo_id=f"me/run{n}"))
        except DestinationError:
            os._exit(10)

    children = [fork(lambda n=n: race(n)) for n in range(RACERS)]
    os.close(go)
    codes = [reap(pid) for pid in children]
    os.close(start)
    assert set(codes) <= {0, 10, KILLED}
    assert codes.count(0) <= 1 + codes.count(KILLED)
    recorded = place.destination()
    assert all(recorded.repo_id == f"me/run{n}" for n, code in enumerate(codes) if code == 0)
    place.create()
    place.record_destination(recorded)


def test_who_was_frozen_while_it_published_does_not_overwrite_the_next_one(place):
    """Nobody waits for it; it finds the other destination in its place, and is told of it."""
    place.create()

    def stop(name: str) -> None:
        if name == "spool.run.link":
            os.kill(os.getpid(), signal.SIGSTOP)

    def record() -> None:
        failpoints.reach = stop
        try:
            place.record_destination(dataclasses.replace(HERE, repo_id="me/frozen"))
        except DestinationError:
            os._exit(10)

    pid = fork(record)
    os.waitpid(pid, os.WUNTRACED)
    place.record_destination(HERE)
    os.kill(pid, signal.SIGCONT)
    assert reap(pid) == 10
    assert place.destination() == HERE
    assert [name for name in os.listdir(place.root) if name.endswith(".tmp")] == []


def test_what_is_recorded_is_read_once_at_a_restart(place, monkeypatch):
    """Nothing is written for what is there: a mount with slow calls pays for each."""
    place.create()
    place.record_destination(HERE)
    monkeypatch.setattr(disk, "publish", None)
    place.create()
    place.record_destination(HERE)


@pytest.mark.parametrize(
    ("folder", "asked", "is_taken"),
    [
        ("tb/sweepB_exp1", "tb/exp1", True),
        ("tb/sweep/B/exp1", "tb/exp1", True),
        ("sweep/exp1", "exp1", True),
        ("tb/sweep/exp2", "tb/exp1", False),
        ("other/exp1", "tb/exp1", False),
        ("tbx/sweep/exp1", "tb/exp1", False),
    ],
)
def test_a_run_goes_to_no_folder_that_cannot_stand_for_the_one_that_is_asked_for(folder, asked, is_taken):
    """One beside it, or of its name and deeper: whatever a run.json from elsewhere says."""
    with contextlib.nullcontext() if is_taken else pytest.raises(ValueError, match="neither beside"):
        RunRecord(dataclasses.replace(HERE, path_in_repo=folder), asked)


def test_unfinished_means_a_destination_and_a_member_file(place):
    """What a start asks of its sibling run directories."""
    assert not place.is_unfinished(HERE.endpoint)
    place.create()
    place.record_destination(HERE)
    assert not place.is_unfinished(HERE.endpoint)
    found = MemberName("main", "h-1", 1, 2, 3)
    with open(os.path.join(place.members, f".{found}.tmp"), "wb"):
        pass
    assert not place.is_unfinished(HERE.endpoint), "a member file that was never finished is none"
    with open(place.members / str(found), "wb"):
        pass
    assert place.is_unfinished(HERE.endpoint)
    assert not place.is_unfinished("https://elsewhere"), "the token of this Hub is not for another one"
    assert json.dumps(place.host_ids()) == "[]"


def test_a_run_directory_of_another_user_is_not_private(place):
    """An uploader carries the user's token: it is started only where no other user can write."""
    place.create()
    assert place.is_private()
    os.chmod(place.root, 0o770)  # noqa: S103 - that is what must be noticed
    assert not place.is_private()
    os.chmod(place.root, 0o700)
    if os.geteuid() == 0:
        os.chown(place.root, 65534, 65534)
        assert not place.is_private()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_with_a_spool_beside_it_is_another_run(tmp_path, monkeypatch):
    """Nothing is written into it, and nobody else has the spool: the run of this user above leaves it out."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path / "staging"))
    for folder in ("theirs", "other"):
        event_file(tmp_path / "runs" / folder / "events.out.tfevents.1700000000.theirs", 1)
        os.chown(tmp_path / "runs" / folder, 12345, -1)
    spool_of(beside(str(tmp_path / "runs" / "theirs"))).create()
    search = RunSearch(Directory(tmp_path / "runs"))
    assert list(search) == ["other/events.out.tfevents.1700000000.theirs"]
    assert search.other_runs == ["theirs"]


def test_a_run_directory_has_the_name_of_a_spool_that_is_elsewhere(tmp_path):
    """So a run above leaves it out. Nothing is written into the folder of another user."""
    for folder, spool in (("ours", "staging/ours"), ("theirs", f"staging/{OF_OTHERS}/theirs")):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        Spool.of(str(tmp_path / "runs" / folder), str(tmp_path / spool / SPOOL_NAME)).create()
        event_file(tmp_path / "runs" / folder / "events.out.tfevents.1700000000.theirs", 1)
    search = RunSearch(Directory(tmp_path / "runs"))
    assert list(search) == ["theirs/events.out.tfevents.1700000000.theirs"]
    assert search.other_runs == ["ours"]
    assert os.listdir(tmp_path / "runs" / "theirs") == ["events.out.tfevents.1700000000.theirs"]
