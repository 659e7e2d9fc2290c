"""Files of other writers that go by their paths: what a push takes of memory, and what the Hub has while they grow."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import pytest
from pushing import NAME, Pushes, hits, is_as

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done, Retry
from hf_mpwriter.events import framing

pytest_plugins = ("pushing",)

THEIRS = "events.out.tfevents.1700000000.theirs"
RECORD = 50 << 20  # bytes of the payload of one record
RECORDS = 4
PEAKS = {"by_xet": 350_000, "by_lfs": 150_000}  # kB of a push, whatever the size of the file


def grow(path, records: int) -> int:
    """Append records of zero bytes, most of which take no room; the length then."""
    frame = framing.frame(bytes(RECORD))
    with open(path, "ab") as file:
        for _ in range(records):
            file.write(frame[: framing.HEADER_SIZE])
            file.truncate(file.tell() + RECORD)
            file.seek(0, os.SEEK_END)
            file.write(frame[-framing.FOOTER_SIZE :])
        return file.tell()


def digest(path, length: int) -> str:
    """sha256 of the first bytes of a file."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while length and (chunk := file.read(min(1 << 20, length))):
            hasher.update(chunk)
            length -= len(chunk)
    return hasher.hexdigest()


@pytest.fixture(scope="module")
def by_xet(running):
    """Pushes by Xet."""
    made = Pushes(running.endpoint, env={"HF_HUB_DISABLE_XET": "0"})
    yield made
    made.end()


@pytest.fixture(scope="module")
def by_lfs(pushes):
    """Pushes by LFS."""
    return pushes


@pytest.mark.parametrize(
    ("way", "state"), [("by_xet", "growing"), ("by_lfs", "torn"), ("by_xet", "quiet"), ("by_lfs", "quiet")]
)
def test_a_push_of_a_large_file_takes_no_memory_for_it(run, request, way, state):
    """Of a live file the snapshot's length is sent, and the memory does not depend on it."""
    carrier, path = request.getfixturevalue(way), run.root / THEIRS
    length = grow(path, RECORDS)
    if state == "growing":
        grow(path, 1)
    if state == "torn":
        with open(path, "ab") as file:
            file.write(b"half a record")
    run, before = dataclasses.replace(run, pushes=carrier), {"job.json", "job.out", *os.listdir(run.root)}
    verdict = run.pushes.verdict(run.job({"files": (LocalFile(THEIRS, length, state != "quiet"),)}))
    assert is_as(verdict, Done, own=True)
    assert (verdict.files[THEIRS].length, verdict.files[THEIRS].sha256) == (length, digest(path, length))
    assert carrier.peak < PEAKS[way]
    assert set(os.listdir(run.root)) <= before | {"cache", "hf_home"}


@pytest.mark.parametrize("shorter", [0, 1])
def test_a_large_file_that_became_shorter_is_scanned_again(run, shorter):
    """Its snapshot cannot be sent any more: nothing is changed."""
    length = grow(run.root / THEIRS, 3)
    os.truncate(run.root / THEIRS, (length - RECORD) * shorter)
    verdict = run.pushes.verdict(run.job({"files": (LocalFile(THEIRS, length, True),)}))
    assert is_as(verdict, Retry)


# quiet files that grow after all

GROWS = """
import os
import huggingface_hub
upload = huggingface_hub.HfApi.preupload_lfs_files

def upload_while_it_grows(self, *args, additions, **options):
    for addition in additions:
        if isinstance(addition.path_or_fileobj, str):
            with open(os.path.realpath(addition.path_or_fileobj), "ab") as file:
                file.write(b"half a record")
    upload(self, *args, additions=additions, **options)

huggingface_hub.HfApi.preupload_lfs_files = upload_while_it_grows
"""


@pytest.fixture(scope="module", params=["0", "1"], ids=["xet", "lfs"])
def growing(running, request):
    """Pushes of files to which their writer appends between two reads of the client."""
    made = Pushes(running.endpoint, prelude=GROWS, env={"HF_HUB_DISABLE_XET": request.param})
    yield made
    made.end()


def test_a_file_that_grows_while_it_is_sent_is_committed_as_long_as_its_snapshot(run, hub, growing):
    """What was read is not committed, not even once; the same push sends the length of the snapshot."""
    run, whole = dataclasses.replace(run, pushes=growing), (run.root / NAME).read_bytes()
    hub.fault("POST /commit/ slow seconds=0.1 times=0")
    verdict = run.push(files=(LocalFile(NAME, run.length, growing=False),))
    assert is_as(verdict, Done, own=True)
    assert verdict.files[NAME].length == run.length
    assert (run.root / NAME).read_bytes() == whole + b"half a record"
    assert run.on_hub(hub) == whole
    assert hits(hub) == [1], "the first commit was not asked for"


def test_a_file_that_has_grown_since_the_scan_is_cut(run, hub):
    """Before the push: it is not handed over by its path at all."""
    whole = (run.root / NAME).read_bytes()
    (run.root / NAME).write_bytes(whole + b"half a record")
    verdict = run.push(files=(LocalFile(NAME, run.length, growing=False),))
    assert is_as(verdict, Done, own=True)
    assert run.on_hub(hub) == whole
