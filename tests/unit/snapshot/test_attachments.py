"""Attachments: known by their content, read only when allowed and changed, copied as they really were."""

from __future__ import annotations

import hashlib
import itertools
import os
import time

import pytest
from forks import fork, kill
from support import event_file, failing

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.attachments import Attachments, ChangedError, Copies, secrets, sizes
from hf_mpwriter.system.directory import Directory, at

BLOCK = 1 << 16


def everything(_: str) -> bool:
    """The pattern `*`."""
    return True


def content(path: str, data: bytes) -> LocalFile:
    """An attachment with this content."""
    git = hashlib.sha1(b"blob %d\0%b" % (len(data), data))  # noqa: S324 - git's own digest
    return LocalFile(path, len(data), growing=False, sha256=hashlib.sha256(data).hexdigest(), blob_id=git.hexdigest())


@pytest.fixture
def touched(monkeypatch) -> list[str]:
    """Base names of the files that are opened or asked for their size, in order."""
    names: list[str] = []
    for call in ("open", "stat"):
        original = getattr(os, call)

        def watched(path, *args, original=original, **kwargs):
            names.append(os.path.basename(os.fsdecode(path)))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(os, call, watched)
    return names


def age(path, seconds: float = 60.0) -> None:
    """Set the mtime of a file back by so many seconds."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_scan_finds_what_is_allowed_by_its_content(tmp_path):
    """Any depth; not event files, not the spool, not what a link leads to, not what the Hub's client refuses."""
    run_dir = tmp_path / "run"
    for path in ("a.tsv", "00000/tag/tensors.tsv", "empty.txt"):
        (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / path).write_bytes(b"" if path == "empty.txt" else path.encode())
    event_file(run_dir / "events.out.tfevents.1", 1)
    for path in (".hf_mpwriter/FORMAT", ".git/config", "sub/.cache/x"):
        (run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / path).write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b"x")
    (run_dir / "link").symlink_to(tmp_path / "outside")
    (run_dir / "links").symlink_to(tmp_path)
    os.mkfifo(run_dir / "pipe")
    found = Attachments(Directory(run_dir)).scan(everything)
    assert found.files == [
        content("00000/tag/tensors.tsv", b"00000/tag/tensors.tsv"),
        content("a.tsv", b"a.tsv"),
        content("empty.txt", b""),
    ]
    assert found.refused == {}
    assert sizes(Directory(run_dir), everything) == {file.path: file.length for file in found.files}


def test_what_the_patterns_leave_out_is_not_even_asked_for_its_size(tmp_path, touched):
    """By default that is every attachment: it costs its name in a listing."""
    (tmp_path / "model.bin").write_bytes(b"x")
    touched.clear()
    assert Attachments(Directory(tmp_path)).scan(lambda _: False) == attachments.Found()
    assert sizes(Directory(tmp_path), lambda _: False) == {}
    assert "model.bin" not in touched


@pytest.mark.parametrize("is_old", [True, False])
def test_an_unchanged_file_is_read_once_it_is_old_enough(tmp_path, touched, is_old):
    """Name, size and times show that it is the same; a change within the grain of the clock leaves no trace."""
    (tmp_path / "a.txt").write_bytes(b"one")
    if is_old:
        age(tmp_path / "a.txt")
    scanner = Attachments(Directory(tmp_path))
    scanner.scan(everything)
    touched.clear()
    assert scanner.scan(everything).files == [content("a.txt", b"one")]
    assert (touched.count("a.txt") == 1) is is_old, "one stat, no open"


def test_a_change_that_keeps_size_and_mtime_is_seen(tmp_path):
    """Tools that restore the mtime do not hide a change."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    age(path)
    scanner, before = Attachments(Directory(tmp_path)), os.stat(path)
    scanner.scan(everything)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scanner.scan(everything).files == [content("a.txt", b"two")]


def test_a_file_above_the_limit_is_refused_unread_with_what_to_do(tmp_path, monkeypatch, touched):
    """The reason names what to do instead; once the file is small enough it is found."""
    monkeypatch.setattr(attachments, "LIMIT", 3)
    path = tmp_path / "big.bin"
    path.write_bytes(b"four")
    touched.clear()
    scanner = Attachments(Directory(tmp_path))
    found = scanner.scan(everything)
    assert found.files == []
    assert "hf upload" in found.refused["big.bin"]
    assert touched.count("big.bin") == 1, "one stat, no open"
    path.write_bytes(b"two")
    assert scanner.scan(everything).files == [content("big.bin", b"two")]


@pytest.fixture
def copies(tmp_path) -> Copies:
    """Copies of the attachments of a run directory with one file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.txt").write_bytes(b"one")
    return Copies(at(tmp_path / "copies"), Directory(tmp_path / "run"))


def test_a_copy_has_the_content_whatever_becomes_of_the_file(copies, tmp_path):
    """Named by its digest, for the owner only; taken again it is not made again."""
    file = content("a.txt", b"one")
    assert copies.take(file) == file
    (tmp_path / "run" / "a.txt").write_bytes(b"two")
    assert copies.take(file) == file
    path = tmp_path / "copies" / file.sha256
    with open(path, "rb") as copy:
        assert copy.read() == b"one"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "copies") == [file.sha256]


def test_a_file_that_has_changed_since_the_look_is_copied_as_it_is_now(copies, tmp_path):
    """The result describes the copy; a file that changes often is copied in the end."""
    old, new = content("a.txt", b"one"), content("a.txt", b"three")
    (tmp_path / "run" / "a.txt").write_bytes(b"three")
    assert copies.take(old) == new
    assert os.listdir(tmp_path / "copies") == [new.sha256]


def test_a_copy_is_never_torn(tmp_path):
    """A process rewrites the file in place, block by block: every copy is a content that the file had, or none is made.

    The file always holds some blocks of one generation, then blocks of the generation before.
    """
    (tmp_path / "run").mkdir()
    path, blocks = tmp_path / "run" / "a.bin", 32
    path.write_bytes(b"\0" * BLOCK * blocks)

    def rewrite() -> None:
        fd = os.open(path, os.O_WRONLY)
        for generation in range(1, 10**9):
            for block in range(blocks):
                os.pwrite(fd, bytes([generation % 256]) * BLOCK, block * BLOCK)
            time.sleep(0.01 * (generation % 8))

    writer, taken = fork(rewrite), set()
    making = Copies(at(tmp_path / "copies"), Directory(tmp_path / "run"))
    deadline = time.monotonic() + 200.0
    try:
        while len(taken) < 10 and time.monotonic() < deadline:
            try:
                file = making.take(content("a.bin", b""))
            except ChangedError:
                continue
            with open(tmp_path / "copies" / file.sha256, "rb") as copy:
                data = copy.read()
            assert content("a.bin", data) == file
            steps = [data[n * BLOCK] for n in range(blocks)]
            assert all(data[n * BLOCK : (n + 1) * BLOCK] == bytes([steps[n]]) * BLOCK for n in range(blocks))
            falls = [(a - b) % 256 for a, b in itertools.pairwise(steps) if a != b]
            assert falls in ([], [1]), "blocks of generations that were never there together"
            taken.add(file.sha256)
    finally:
        kill(writer)
    assert len(taken) == 10
    assert set(os.listdir(tmp_path / "copies")) == taken, "no temporary is left"


@pytest.mark.parametrize(
    "fault", ["copies.open=enospc", "copies.write=enospc", "copies.write=eio", "copies.rename=eio"]
)
def test_a_copy_that_the_disk_refuses_leaves_nothing(copies, tmp_path, fault):
    """The caller gets the error; no temporary file is left; later it works."""
    file = content("a.txt", b"one")
    with failing(fault), pytest.raises(OSError, match="failpoint"):
        copies.take(file)
    assert os.listdir(tmp_path / "copies") == []
    assert copies.take(file) == file


def test_a_file_that_became_something_else_is_not_copied(copies, tmp_path):
    """Gone, a link, a pipe: no copy, no wait."""
    path, file = tmp_path / "run" / "a.txt", content("a.txt", b"one")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        copies.take(file)
    os.mkfifo(path)
    with pytest.raises(OSError, match="regular"):
        copies.take(file)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        copies.take(file)


def test_copies_that_nobody_wants_are_removed(copies, tmp_path):
    """`keep` leaves the wanted ones and what cannot be removed; those of an earlier uploader go at the start."""
    (tmp_path / "run" / "b.txt").write_bytes(b"two")
    one, two = copies.take(content("a.txt", b"one")), copies.take(content("b.txt", b"two"))
    (tmp_path / "copies" / "taking").write_bytes(b"half")
    (tmp_path / "copies" / "0").mkdir()
    copies.keep([two])
    assert sorted(os.listdir(tmp_path / "copies")) == ["0", two.sha256]
    copies.take(one)
    Copies(at(tmp_path / "copies"), Directory(tmp_path / "run"))
    assert os.listdir(tmp_path / "copies") == ["0"]


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    """The Hub's client fails on it, and with it the whole commit."""
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"x")
    (tmp_path / "caf\u00e9.txt").write_bytes(b"y")
    found = Attachments(Directory(tmp_path)).scan(everything)
    assert [file.path for file in found.files] == ["caf\u00e9.txt"]
    assert list(found.refused.values()) == ["its name is not UTF-8, so the Hub cannot take it"]


def test_a_copy_is_refused_when_too_little_room_would_be_left(copies, tmp_path, monkeypatch):
    """Event files need the room more. That there is no room for them is told all the same."""
    monkeypatch.setattr(attachments, "RESERVE", 1 << 60)
    path = "_lost/main.h-1.2.3-1.209.json"
    (tmp_path / "run" / "_lost").mkdir()
    (tmp_path / "run" / path).write_bytes(b"three")
    lost = copies.take(content(path, b"three"))
    assert os.listdir(tmp_path / "copies") == [lost.sha256]
    copies.keep(())
    with pytest.raises(OSError, match="too little room"):
        copies.take(content("a.txt", b"one"))
    assert os.listdir(tmp_path / "copies") == []


def test_a_content_that_was_never_whole_is_not_copied_though_two_readings_agree(copies, tmp_path, monkeypatch):
    """A writer that alternates in step with the readings: only the stamp shows it."""
    path, read = tmp_path / "run" / "a.txt", os.read

    def torn(fd: int, size: int) -> bytes:
        chunk = read(fd, size)
        if chunk:
            path.write_bytes(b"two")
            os.utime(path, ns=(0, time.time_ns()))
            path.write_bytes(b"one")
        return chunk

    monkeypatch.setattr(attachments.os, "read", torn)
    with pytest.raises(ChangedError):
        copies.take(content("a.txt", b"one"))
    assert os.listdir(tmp_path / "copies") == []


def test_tokens_are_never_uploaded(tmp_path, monkeypatch):
    """Neither the files of huggingface_hub nor a hard link to one, whatever the patterns; no process waits for them."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    for name in ("token", "stored_tokens", "mine"):
        (tmp_path / name).write_bytes(b"hf_secret of " + name.encode())
    os.link(tmp_path / "token", tmp_path / "notes.txt")
    (tmp_path / "harmless.txt").write_bytes(b"x")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "mine"))
    found = Attachments(Directory(tmp_path)).scan(everything)
    assert [file.path for file in found.files] == ["harmless.txt"]
    assert found.refused == dict.fromkeys(("mine", "notes.txt", "stored_tokens", "token"), "it holds a token")
    assert sizes(Directory(tmp_path), everything, secrets()) == {"harmless.txt": 1}


def test_what_doctor_makes_for_a_moment_is_no_attachment(tmp_path):
    """It may be killed before it has removed it."""
    left = tmp_path / ".hf_mpwriter-try-1000-ab"
    left.mkdir()
    (left / "4711-0123abcd").write_bytes(b"a")
    (tmp_path / ".hf_mpwriter-01234567.89abcdef.part").write_bytes(b"a")
    (tmp_path / "notes.txt").write_bytes(b"a")
    assert sizes(Directory(str(tmp_path)), everything) == {"notes.txt": 1}
