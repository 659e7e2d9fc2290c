"""Snapshots: whole records only, and in an order in which any prefix may be published."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import event_file, scalar

from hf_mpwriter.base import names
from hf_mpwriter.base.files import PAYLOAD_LIMIT, LocalFile
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import (
    UNCHANGED,
    Damage,
    EventFileScan,
    bounded,
    pending,
    sizes,
)
from hf_mpwriter.snapshot.search import RunSearch, check_is_of_run, other_run_above
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place


def name(second: int, suffix: str = "") -> str:
    """Name of an event file of ours."""
    return f"events.out.tfevents.{second:010d}.host.1.aabbccdd{suffix}"


def scan(run_dir, allows=lambda _: True) -> dict[str, tuple[int, bool]]:
    """Path -> length, growing."""
    files = EventFileScan(Directory(run_dir)).files(allows, tuple)
    return {file.path: (file.length, file.growing) for file in files}


def test_a_folder_with_a_spool_of_its_own_is_another_run(tmp_path):
    """However deep it lies; what is below it is neither scanned nor counted, and the scan names it."""
    event_file(tmp_path / name(1), 1)
    event_file(tmp_path / "rank_00001" / name(2), 1)
    for other in ("secret", "sweep/lr/deep"):
        (tmp_path / other / names.SPOOL_NAME).mkdir(parents=True)
        event_file(tmp_path / other / name(3), 1)
        event_file(tmp_path / other / "rank_00001" / name(4), 1)
        (tmp_path / other / "weights.bin").write_text("secret")
    event_file(tmp_path / "linked" / name(5), 1)
    (tmp_path / "linked" / names.SPOOL_NAME).symlink_to(tmp_path / "secret" / names.SPOOL_NAME)
    own = [name(1), f"rank_00001/{name(2)}"]
    scan = EventFileScan(Directory(tmp_path))
    assert [file.path for file in scan.files(lambda _: True, set)] == own
    assert sorted(scan.other_runs) == ["linked", "secret", "sweep/lr/deep"]
    assert sorted(sizes(Directory(tmp_path), lambda _: True)) == own
    assert attachments.sizes(Directory(tmp_path), lambda _: True) == {}


def test_no_listing_finds_a_file_of_a_run_that_begins_meanwhile(tmp_path):
    """A listing may miss the spool and have the event files that came after it, in its folder and in those below."""
    folder, found, took = tmp_path / "later", set[str](), 0.0
    for directory, count in ((folder / "below", 300), (folder, 1500)):  # more than the kernel tells at once
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (directory / str(number)).touch()

    def begin(after: float) -> None:
        time.sleep(after)
        (folder / names.SPOOL_NAME).mkdir()
        (folder / "below" / name(1)).touch()
        (folder / name(1)).touch()

    for number in range(100):
        beginning = threading.Thread(target=begin, args=(took * number / 100,))
        beginning.start()
        began = time.perf_counter()
        found |= {path for path in RunSearch(Directory(tmp_path)) if "tfevents" in path}
        took = time.perf_counter() - began
        beginning.join()
        for path in (folder / name(1), folder / "below" / name(1)):
            path.unlink()
        (folder / names.SPOOL_NAME).rmdir()
    assert found == set()


def test_a_file_that_was_listed_before_its_folder_became_another_run_is_refused(tmp_path):
    """By what opens a file long after it was listed; a link to a spool, or a file of its name, counts as well."""
    run = Directory(tmp_path)
    (tmp_path / "a/b/c").mkdir(parents=True)
    check_is_of_run(run, f"a/b/c/{name(1)}")
    (tmp_path / "a/b" / names.SPOOL_NAME).symlink_to("nowhere")
    assert other_run_above(run, "a/b/c") == other_run_above(run, "a/b") == "a/b"
    assert other_run_above(run, "a") == other_run_above(run, "") == ""
    with pytest.raises(FileNotFoundError, match="a/b is another run now"):
        check_is_of_run(run, f"a/b/c/{name(1)}")


def test_a_scan_opens_each_directory_once(tmp_path, monkeypatch):
    """To list it and to reach all its files, however many there are; a second scan opens no file."""
    for directory in ("rank_00001/sub", "rank_00002"):
        for second in range(1, 6):
            event_file(tmp_path / directory / name(second), 1)
    run, opened, original = Directory(tmp_path), [], os.open
    assert run.is_there()
    monkeypatch.setattr(os, "open", lambda path, *args, **kw: opened.append(path) or original(path, *args, **kw))
    files = EventFileScan(run)
    assert len(files.files(lambda _: True, set)) == 10
    assert len([path for path in opened if "tfevents" in path]) == 10
    assert len([path for path in opened if "tfevents" not in path]) <= 9, "4 are listed, 2 of them hold files"
    opened.clear()
    assert len(files.files(lambda _: True, set)) == 10
    assert not [path for path in opened if "tfevents" in path]


@st.composite
def runs(draw) -> tuple[list[LocalFile], dict[str, int], set[str], set[str]]:
    """Event files of some directories, what is acknowledged, what is quarantined, what other machines have written."""
    files, acknowledged, quarantined, elsewhere = [], {}, set(), set()
    for directory in draw(st.lists(st.sampled_from(["", "rank_00001", "rank_00001/sub", "z"]), unique=True)):
        for second in range(draw(st.integers(0, 5))):
            theirs = draw(st.integers(0, 4)) == 0
            base = f"custom{second}.tfevents" if theirs else name(second + 1)
            path = f"{directory}/{base}" if directory else base
            length = draw(st.integers(1, 5))
            files.append(LocalFile(path, length, draw(st.booleans())))
            acknowledged[path] = draw(st.integers(0, length))
            if draw(st.integers(0, 5)) == 0:
                quarantined.add(path)
            if draw(st.integers(0, 5)) == 0:
                elsewhere.add(path)
    return draw(st.permutations(files)), acknowledged, quarantined, elsewhere


def is_ours(path: str) -> bool:
    """Whether a file has a name of ours."""
    return bool(names.event_second(os.path.basename(path)))


@given(runs())
def test_exactly_what_is_free_to_go_is_pending_in_an_order_of_which_any_prefix_may_be_published(run):
    """Left out is what is acknowledged, quarantined, or behind a file of ours that grows or is refused.

    Of ours in one directory, none gets new bytes on the Hub before all earlier ones are complete there. Files of other
    machines wait for none, and hold up none.
    """
    files, acknowledged, quarantined, elsewhere = run
    order = pending(files, lambda file: file.length <= acknowledged.get(file.path, 0), quarantined, elsewhere)
    held = dict(acknowledged)
    earlier = {
        file.path: [
            other
            for other in files
            if is_ours(file.path)
            and is_ours(other.path)
            and not {file.path, other.path} & elsewhere
            and os.path.dirname(other.path) == os.path.dirname(file.path)
            and other.path < file.path
        ]
        for file in files
    }
    free = {
        file.path
        for file in files
        if file.length > acknowledged[file.path]
        and file.path not in quarantined
        and not any(other.growing or other.path in quarantined for other in earlier[file.path])
    }
    assert sorted(file.path for file in order) == sorted(free)
    for file in order:
        assert all(held[other.path] == other.length for other in earlier[file.path])
        held[file.path] = file.length


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30))
def test_batches_are_bounded_and_keep_the_order(sizes):
    """At most so many files, bytes that may still grow, and bytes; or one file that is larger alone."""
    files = [LocalFile(f"{n:05d}.tfevents", size, grows) for n, (size, grows) in enumerate(sizes)]
    groups = bounded(files, most=5, in_memory=9, size=20)
    assert [file for group in groups for file in group] == files
    assert all(groups)
    for group in groups:
        growing = [file.length for file in group if file.growing]
        assert len(group) <= 5
        assert sum(growing) <= 9 or len(growing) == 1
        assert sum(file.length for file in group) <= 20 or len(group) == 1
    for group, following in itertools.pairwise(groups):
        both = [*group, following[0]]
        assert (
            len(both) > 5
            or sum(file.length for file in both if file.growing) > 9
            or sum(file.length for file in both) > 20
        ), "split without need"


def test_a_length_is_the_end_of_a_whole_record_at_every_size(tmp_path):
    """The file grows byte by byte; the scanner, which remembers, always finds the latest boundary."""
    data = b"".join(map(framing.frame, [framing.version_event(1.0), *map(scalar, range(4))]))
    ends = [0]
    for payload in [framing.version_event(1.0), *map(scalar, range(4))]:
        ends.append(ends[-1] + len(framing.frame(payload)))
    path = tmp_path / name(1)
    scanner = EventFileScan(Directory(tmp_path))
    with open(path, "wb", buffering=0) as file:
        for size in range(1, len(data) + 1):
            file.write(data[size - 1 : size])
            found = scanner.files(lambda _: True, tuple)
            expected = max(end for end in ends if end <= size)
            assert [f.length for f in found] == ([expected] if expected else [])


@pytest.mark.parametrize("how", ["replaced by a shorter", "replaced by a longer", "truncated", "rewritten longer"])
def test_a_file_that_was_changed_by_somebody_is_parsed_anew(tmp_path, how):
    """A restored backup, an editor, rsync --inplace: the length is still the end of a whole record of what is there."""
    path = tmp_path / name(1)
    event_file(path, 20)
    scanner = EventFileScan(Directory(tmp_path))
    scanner.files(lambda _: True, tuple)
    if how == "truncated":
        os.truncate(path, os.path.getsize(path) - 3)
    elif how == "rewritten longer":
        event_file(path, 40, "another tag")
    else:
        event_file(tmp_path / "new", 5 if "shorter" in how else 50, "another tag")
        os.rename(tmp_path / "new", path)
    (found,) = scanner.files(lambda _: True, tuple)
    assert found.length in whole_ends(path.read_bytes())
    (fresh,) = EventFileScan(Directory(tmp_path)).files(lambda _: True, tuple)
    assert found == fresh


def whole_ends(data: bytes) -> list[int]:
    """All ends of whole records."""
    ends, used = [], 0
    while used < len(data):
        length = int.from_bytes(data[used : used + 8], "little") + framing.HEADER_SIZE + framing.FOOTER_SIZE
        if used + length > len(data):
            break
        used += length
        ends.append(used)
    return ends


def test_only_event_files_outside_the_spool_are_seen_and_links_are_not_followed(tmp_path):
    """Allowed files with `tfevents` in the base name, at any depth; not the spool's, not what a link leads to.

    The sizes are those of the same files; nothing is read for them, so a torn record counts.
    """
    run_dir = tmp_path / "run"
    for path in (name(1), f"rank_00001/{name(2)}", f"a/b/{name(3)}", "x.tfevents", "model.bin", "left/y.tfevents"):
        length = event_file(run_dir / path, 1)
    with open(run_dir / name(1), "ab") as file:
        file.write(b"torn")
    event_file(run_dir / ".hf_mpwriter" / name(4), 1)
    event_file(run_dir / "c" / ".hf_mpwriter" / name(5), 1)
    event_file(tmp_path / "outside" / name(6), 1)
    (run_dir / name(7)).symlink_to(tmp_path / "outside" / name(6))
    (run_dir / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(run_dir / name(8))
    (run_dir / name(9)).mkdir()
    found = dict.fromkeys([name(1), f"rank_00001/{name(2)}", f"a/b/{name(3)}", "x.tfevents"], length)
    allows = lambda path: not path.startswith("left/")  # noqa: E731
    assert sizes(Directory(run_dir), allows) == {**found, name(1): length + 4}
    (run_dir / name(10)).touch()
    (run_dir / name(11)).write_bytes(b"garbage")
    assert {path: length for path, (length, _) in scan(run_dir, allows).items()} == found


def test_who_grows_is_asked_after_the_listing(tmp_path):
    """A listed file that no living member names afterwards never grows again; one made later is not listed."""
    event_file(tmp_path / name(1), 1)

    def growing() -> set[str]:
        event_file(tmp_path / name(2), 1)
        return {name(1), name(2)}

    found = EventFileScan(Directory(tmp_path)).files(lambda _: True, growing)
    assert [(file.path, file.growing) for file in found] == [(name(1), True)]


def test_a_run_directory_that_is_gone_has_no_files(tmp_path):
    """Deleted meanwhile: nothing to send, nothing raised."""
    assert scan(tmp_path / "gone") == {}


def test_a_second_open_writer_in_a_directory_is_not_held_back_for_the_whole_run():
    """Two writers with different suffixes log into one directory (promise 8): both are pending while both grow."""
    files = [LocalFile(name(1), 100, True), LocalFile(name(2, ".eval"), 100, True)]
    assert pending(files, lambda _: False, ()) == files


def test_the_own_files_of_each_process_go_before_those_of_its_groups():
    """Thousands of small files of `add_scalars` do not hold back the main curve, neither of ranks nor of torch."""
    ours = "events.out.tfevents.0000000001.host.{}.0123abcd"
    torch = "events.out.tfevents.0000000001.10.0.0.1.{}.3"
    paths = [
        ours.format(1),
        f"rank_00001/{ours.format(2)}",
        f"zz/torch/{torch.format(3)}",
        f"loss_train/{ours.format(1)}",
        f"rank_00001/a_b/{ours.format(2)}",
        f"zz/torch/a/{torch.format(3)}",
    ]
    files = [LocalFile(path, 1, True) for path in sorted(paths)]
    assert [file.path for file in pending(files, lambda _: False, ())] == paths


@pytest.mark.parametrize(("most", "largest", "expected"), [(2, 8, [2, 4, 8, 6]), (2, 0, [2] * 10), (30, 4, [20])])
def test_groups_may_double_up_to_a_size(most, largest, expected):
    """Each one that is full is followed by one of at most twice as many."""
    files = [LocalFile(f"{number:02d}.tfevents", 1, False) for number in range(20)]
    assert [len(group) for group in bounded(files, most, largest)] == expected


def test_a_group_that_ends_for_its_bytes_is_followed_by_one_of_the_same_size():
    """It says nothing of how many files may go together."""
    files = [LocalFile(f"{number:02d}.tfevents", 5, False) for number in range(8)]
    assert [len(group) for group in bounded(files, 3, 9, size=12)] == [2, 2, 2, 2]


def attached(path: str, length: int = 1) -> LocalFile:
    """An attachment with this content."""
    return LocalFile(path, length, growing=False, sha256="5" * 64, blob_id="6" * 40)


def test_an_attachment_is_covered_by_its_content_alone():
    """Not by a length: it may shrink, or change and stay as long."""
    file = attached("a.tsv", 4)
    assert file.is_covered(file.content)
    assert not file.is_covered(Sent(4, "7" * 64))
    assert not file.is_covered(Sent(5, "5" * 64))
    assert not attached("a.tsv", 0).is_covered(Sent(0, ""))
    assert LocalFile(name(1), 4, growing=False).is_covered(Sent(5, "7" * 64))


def test_a_file_that_cannot_be_read_is_not_gone(tmp_path, monkeypatch):
    """A scan raises, so that the file does not count as sent; after `patience` scans it is left out."""
    event_file(tmp_path / name(1), 3)
    event_file(tmp_path / name(2), 3)
    beneath = disk.open_beneath

    def refusing(place: Place) -> int:
        if place.name == name(2):
            raise OSError(errno.EIO, "refused")
        return beneath(place)

    monkeypatch.setattr(disk, "open_beneath", refusing)
    patient = EventFileScan(Directory(tmp_path))
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            patient.files(lambda _: True, tuple, 2)
    assert [file.path for file in patient.files(lambda _: True, tuple, 2)] == [name(1)]
    assert list(scan(tmp_path)) == [name(1)], "without patience what can be read is found"


MODIFIED = 1_700_000_000  # unix time


def spoiled(path, offset: int, data: bytes) -> None:
    """Write `data` over a file at an offset, as long ago as MODIFIED."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, (MODIFIED, MODIFIED))


def damage(run_dir, now: float, growing=()) -> list[Damage]:
    """What a scan finds behind whole records."""
    found = EventFileScan(Directory(run_dir))
    found.files(lambda _: True, lambda: growing)
    return found.damage(now)


@pytest.mark.parametrize("spoil", [b"\xff", bytes(4096)])
def test_damage_is_told_with_offset_and_size_and_what_is_before_it_is_sent(tmp_path, spoil):
    """A bad checksum in the middle, zero blocks at the end."""
    path = tmp_path / name(1)
    before = event_file(path, 10)
    after = event_file(path, 20)
    spoiled(path, before + 20, spoil)
    size = max(after, before + 20 + len(spoil))
    assert damage(tmp_path, MODIFIED) == [Damage(name(1), before, size - before)]
    assert scan(tmp_path) == {name(1): (before, False)}
    assert str(before) in str(damage(tmp_path, MODIFIED)[0])


def test_an_incomplete_record_at_the_end_is_told_as_such(tmp_path):
    """Ordinary after a kill, at whatever byte it came."""
    size = event_file(tmp_path / name(1), 10)
    whole = event_file(tmp_path / name(2), 9)
    for cut in range(whole + 1, size):
        event_file(tmp_path / name(2), 10)
        os.truncate(tmp_path / name(2), cut)
        assert damage(tmp_path, 0.0) == [Damage(name(2), whole, cut - whole, is_incomplete=True)]


@pytest.mark.parametrize("spoil", [b"\xff", b""])
@pytest.mark.parametrize("whose", ["custom.tfevents", name(1)])
def test_a_file_that_may_grow_counts_after_ten_minutes_without_a_change(tmp_path, whose, spoil):
    """The buffer of another writer may end anywhere, and its next write may be half seen."""
    path = tmp_path / whose
    before, after = event_file(path, 10), event_file(path, 11)
    os.truncate(path, after - (not spoil))
    spoiled(path, before + 20, spoil)
    for age, counts in [(-5.0, False), (0.0, False), (UNCHANGED - 1, False), (UNCHANGED, True)]:
        assert bool(damage(tmp_path, MODIFIED + age, growing=[whose])) == counts


def test_damage_is_looked_for_behind_the_last_whole_record_only(tmp_path, monkeypatch):
    """A scan that knows a file reads nothing of it again until it changes; what is repaired is found."""
    path = tmp_path / name(1)
    before, after = event_file(path, 1000), event_file(path, 1001)
    with open(path, "rb") as file:
        whole = file.read()
    spoiled(path, before + 20, b"\xff")
    found, reads = EventFileScan(Directory(tmp_path)), []
    found.files(lambda _: True, tuple)
    assert [one.offset for one in found.damage(MODIFIED)] == [before]
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads.append(at) or pread(fd, size, at))
    found.files(lambda _: True, tuple)
    assert reads == []
    path.write_bytes(whole)
    assert [file.length for file in found.files(lambda _: True, tuple)] == [after]
    assert found.damage(MODIFIED) == []
    assert min(reads) > before - 100


def test_a_large_file_that_may_still_grow_is_alone_in_its_batch():
    """It may fail for want of room on the disk, and must not hold back others; none is held in memory beside it."""
    large = LocalFile("b.tfevents", PAYLOAD_LIMIT + 1, True)
    files = [
        LocalFile("a.tfevents", 5, True),
        large,
        LocalFile("c.tfevents", 5, False),
        LocalFile("d.tfevents", 5, True),
    ]
    assert [[file.path for file in group] for group in bounded(files)] == [
        ["a.tfevents"],
        ["b.tfevents"],
        ["c.tfevents", "d.tfevents"],
    ]


@pytest.fixture
def parsed(monkeypatch):
    """Where the parsing of each file has begun."""
    found, ending = [], framing.ending
    monkeypatch.setattr(framing, "ending", lambda fd, start, end: found.append(start) or ending(fd, start, end))
    return found


def test_a_finished_file_that_the_hub_has_is_not_opened_until_it_changes(tmp_path, monkeypatch, parsed):
    """A new uploader, and `status`, of ten thousand files: a look at the directories is enough.

    When it changes, nothing of it was seen before.
    """
    length, opened, original = event_file(tmp_path / name(1), 9), [], os.open
    scan = EventFileScan(Directory(tmp_path), lambda _: length)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, *args, **kw: opened.append(path) or original(path, *args, **kw))
        assert scan.files(lambda _: True, set) == [LocalFile(name(1), length, False)]
    assert name(1) not in opened
    (tmp_path / name(1)).write_bytes(framing.frame(b"a") + b"torn")
    (file,) = scan.files(lambda _: True, set)
    assert (file.length, parsed) == (len(framing.frame(b"a")), [0])


@pytest.mark.parametrize("base", [name(1), "custom.tfevents"])
@pytest.mark.parametrize("known", [0, 1, 100, 10_000, None])
def test_what_the_hub_has_tells_where_to_begin(tmp_path, base, known, parsed):
    """Behind the whole records that it has, unless another content ends in the middle of a record, or behind its end.

    A file that changes was never seen, so it is parsed from its start.
    """
    whole = event_file(tmp_path / base, 9)
    known = whole if known is None else known
    with (tmp_path / base).open("ab") as file:
        file.write(framing.frame(scalar(10)) + b"torn")
    scan = EventFileScan(Directory(tmp_path), lambda _: known)
    (found,) = scan.files(lambda _: True, lambda: {base})
    begins = {0: [0], 10_000: [0], whole: [whole]}.get(known, [known, 0])
    assert (found.length, parsed) == (os.path.getsize(tmp_path / base) - 4, begins)
    (tmp_path / base).write_bytes(framing.frame(b"a") + b"torn")
    (found,) = scan.files(lambda _: True, lambda: {base})
    assert (found.length, parsed) == (len(framing.frame(b"a")), [*begins, 0])


@pytest.mark.parametrize("missing", [1, 4, 11, 12, 20])
def test_the_end_of_a_record_whose_beginning_the_hub_has_is_found(tmp_path, missing):
    """Another program may have sent a file while its last record was written; however little is missing of it."""
    whole = event_file(tmp_path / name(1), 9)
    (found,) = EventFileScan(Directory(tmp_path), lambda _: whole - missing).files(lambda _: True, set)
    assert found.length == whole


THEIRS = "events.out.tfevents.1700000000.theirs"


@pytest.mark.parametrize(
    ("base", "age", "tail", "is_quiet"),
    [
        (THEIRS, UNCHANGED, b"", True),
        (THEIRS, 9 * UNCHANGED, b"", True),
        (THEIRS, UNCHANGED - 1, b"", False),
        (THEIRS, -5, b"", False),
        (THEIRS, 9 * UNCHANGED, b"half", False),
        (name(1), 9 * UNCHANGED, b"", False),
    ],
)
def test_a_file_of_others_is_quiet_after_ten_minutes_without_a_change(tmp_path, base, age, tail, is_quiet):
    """By the clock of the filesystem, which is asked only if a file may go by its path; a living writer's never is.

    What is behind the last whole record is not sent, however old it is; a time in the future is no age.
    """
    length = event_file(tmp_path / base, 2)
    with open(tmp_path / base, "ab") as file:
        file.write(tail)
    os.utime(tmp_path / base, (MODIFIED,) * 2)
    scan, asked = EventFileScan(Directory(tmp_path)), []
    files = scan.files(lambda _: True, lambda: {base})

    def marked(now: float, *, covered: bool = False) -> list[LocalFile]:
        return scan.with_quiet(files, lambda _: covered, lambda: asked.append(now) or now)

    assert marked(MODIFIED + age) == [LocalFile(base, length, growing=not is_quiet)]
    assert bool(asked) == (base == THEIRS and not tail)
    asked.clear()
    assert marked(MODIFIED + age, covered=True) == files, "the Hub has it"
    assert asked == []
    assert marked(0.0) == files, "without the clock none is quiet"


def big(path, count: int = 40) -> int:
    """An event file of so many records of about 64 KiB."""
    record = framing.frame(framing.summary_event(1.0, 1, bytes(1 << 16)))
    path.write_bytes(record * count)
    return len(record)


def test_one_scan_reads_so_much_of_what_others_may_have_made_and_the_next_one_goes_on(tmp_path, monkeypatch):
    """Whole records each time, never called quiet or damaged before they are read; what is ours is read at once."""
    size, own = big(tmp_path / "1.tfevents"), big(tmp_path / name(3))
    big(tmp_path / "2.tfevents")
    read, original = [0], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: read.append(len(data := original(fd, count, at))) or data)
    scan, lengths = EventFileScan(Directory(tmp_path), foreign_bytes=2 << 20), []
    for _ in range(10):
        read.clear()
        found = {file.path: file for file in scan.files(lambda _: True, tuple)}
        assert sum(read) < (3 << 20) + 40 * own
        assert (found[name(3)].length, found[name(3)].growing) == (40 * own, False)
        assert scan.damage(2**60) == []
        assert scan.settled(2**60).isdisjoint(file.path for file in scan.unread)
        lengths.append(sum(found[path].length for path in ("1.tfevents", "2.tfevents") if path in found))
        if not scan.unread:
            break
    assert lengths == sorted(set(lengths))
    assert lengths[0] <= 2 << 20
    assert lengths[-1] == 2 * 40 * size
    assert scan.left_out == []


def test_training_reads_nothing_of_what_others_may_have_made(tmp_path, monkeypatch):
    """Neither another writer's file nor one of another user under a name of ours; both may be of any length."""
    for path in ("theirs.tfevents", name(1), name(2)):
        big(tmp_path / path)
    status, strange = Place.stat, str(tmp_path / name(2))
    monkeypatch.setattr(
        Place,
        "stat",
        lambda self: (found := status(self), os.stat_result((*found[:4], 54321, *found[5:])))[
            str(self).endswith(os.path.basename(strange))
        ],
    )
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *args, **kw: opened.append(str(path)) or original(path, *args, **kw))
    scan = EventFileScan(Directory(tmp_path), foreign_bytes=0)
    assert [file.path for file in scan.files(lambda _: True, tuple)] == [name(1)]
    assert scan.unread == []
    assert not {"theirs.tfevents", name(2)} & set(opened)


def test_a_record_of_another_writer_that_no_scan_reads_is_told(tmp_path):
    """It is longer than what one scan reads: nothing of it is, and it does not keep the uploader here."""
    with open(tmp_path / "theirs.tfevents", "wb") as file:
        file.write(framing.frame(b"x") + framing.header(1 << 30))
        file.truncate(2 << 30)
    scan = EventFileScan(Directory(tmp_path))
    for _ in range(2):
        assert [file.length for file in scan.files(lambda _: True, tuple)] == [len(framing.frame(b"x"))]
        assert (scan.unread, scan.damage(2**60)) == ([], [])
        assert scan.left_out == ["theirs.tfevents: a record of more than 256 MiB, by another writer"]
