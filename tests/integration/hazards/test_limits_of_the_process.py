"""Limits of the process: file size, descriptors, threads, time. Training has them too, and must not notice us."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from hazards import PRELUDE, runs, steps
from programs import succeed, wait_for
from runs import check_oracle, no_uploader, uploader_pid
from tensorboardX.crc32c import _crc32c

from hf_mpwriter import SummaryWriter

LIMITED = (
    PRELUDE
    + """
from hf_mpwriter import HFSummaryWriter
place, megabytes, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def limit():
    soft = int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
if when == "start": limit()
with HFSummaryWriter("me/run", logdir=place) as writer:
    log(writer, 0, 1000)
    limit()
    log(writer, 1000, 120_000)
    for step in range(3):  # one is larger than any file may be
        writer.add_text("text", "x" * 1_500_000, step)
        writer.add_text("text", "x" * 4_500_000, step)
    log(writer, 120_000, 120_100)
print(writer.dropped)
"""
)


@pytest.mark.parametrize(("megabytes", "when"), [(3, "start"), (4, "later")])
def test_a_limit_on_file_size_costs_no_record_that_fits(hub, run_dir, megabytes, when):
    """Files grow up to the limit, then the next begins; all is on the Hub, through an uploader without the limit."""
    assert int(succeed(LIMITED, run_dir, megabytes, when)) == 3
    report = check_oracle(run_dir, hub)
    assert len(report.files) >= 3
    assert max(file.local_bytes for file in report.files.values()) <= megabytes << 20
    (found,) = runs(run_dir).values()
    scalars = [key for key in found if key[0] == "a"]
    assert scalars == steps(0, 120_100)
    assert [key for key in found if key[0] != "a"] == [("text/text_summary", step) for step in range(3)]


def test_the_uploader_raises_its_own_limits(hub, run_dir):
    """It starts with those of training; a hard limit stays."""
    source = (
        PRELUDE
        + """
from hf_mpwriter import HFSummaryWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 9 << 20))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 777))
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
log(writer, 0, 10)
sys.stdin.read()
os._exit(0)
"""
    )
    with subprocess.Popen([sys.executable, "-c", source, str(run_dir)], stdin=subprocess.PIPE) as program:
        pid = wait_for(lambda: uploader_pid(run_dir), "the uploader's first status")
        uploader = psutil.Process(pid)
        assert uploader.rlimit(psutil.RLIMIT_FSIZE) == (9 << 20, 9 << 20)
        assert uploader.rlimit(psutil.RLIMIT_NOFILE) == (777, 777)
        program.communicate()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")


FEW = (
    PRELUDE
    + """
limit, names, kind = map(int, sys.argv[2:5])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
def free():
    taken = []
    try:
        while True: taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    for fd in taken: os.close(fd)
    return len(taken)
before = free()
if kind == 0:
    writer = SummaryWriter(sys.argv[1])
    for step in range(3):
        writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(names)}, step)
        open("/etc/hostname").close()
    print(before - free())
    writer.close()
    dropped = writer.dropped
else:
    writers = [SummaryWriter(sys.argv[1], filename_suffix=f".t{number}") for number in range(names)]
    for step in range(3):
        for number, writer in enumerate(writers): writer.add_scalar(f"t{number}", 1.0, step)
        open("/etc/hostname").close()
    print(before - free())
    for writer in writers: writer.close()
    dropped = writers[0].dropped
assert dropped == 0, dropped
"""
)


@pytest.mark.parametrize("kind", ["names of add_scalars", "suffixes"])
def test_event_files_keep_to_a_share_of_the_descriptors(run_dir, kind):
    """Training can open files of its own at any time; nothing is lost, and each file is whole and in order."""
    limit, names = 64, 200
    used = int(succeed(FEW, run_dir, limit, names, int(kind == "suffixes")))
    assert used <= limit // 4 + 5, "two locks, two directories, and one to spare"
    found = runs(run_dir)
    if kind == "suffixes":
        expected = sorted(key for number in range(names) for key in steps(0, 3, f"t{number}"))
        assert sorted(found["."]) == expected
    else:
        assert found == {f"loss/t{number}": steps(0, 3, "loss") for number in range(names)}


def test_event_files_rest_while_training_has_taken_all_other_descriptors(run_dir):
    """EMFILE where a file has to be opened: another one of ours is closed for it, so records reach the disk at once."""
    source = (
        PRELUDE
        + """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 10)
writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(5)}, 0)
taken = []
try:
    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
for step in range(1, 4):
    writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(20)}, step)
    log(writer, 10 * step, 10 * step + 10)
assert not any(file.waiting for file in writer._worker.files._all())
os._exit(0)
"""
    )
    succeed(source, run_dir)
    found = runs(run_dir)
    assert found.pop(".") == steps(0, 40)
    assert found == {f"loss/t{n}": steps(0 if n < 5 else 1, 4, "loss") for n in range(20)}


def test_fifty_tags_of_add_scalars_start_no_thread(tmp_path):
    """h09: one directory and one file per tag, as many threads as before, one descriptor per file at most."""
    threads, descriptors = {*threading.enumerate()}, len(os.listdir("/proc/self/fd"))
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(50)}, step)
        assert {*threading.enumerate()} <= threads, "others may end meanwhile"
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 50 + 10
    assert runs(tmp_path) == {f"loss/t{number}": steps(0, 3, "loss") for number in range(50)}
    assert len(list(tmp_path.rglob("*tfevents*"))) == 50


def test_the_checksum_of_a_large_record_is_not_computed_in_python(tmp_path):
    """h10: 16 MiB take a fraction of what the checksum in pure Python takes on the same machine."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("small", "x", 1)
        text = "x" * (16 << 20)
        before = time.process_time()
        writer.add_text("large", text, 1)
        taken, before = time.process_time() - before, time.process_time()
        _crc32c(text[: 1 << 20].encode())
        assert taken < 16 * (time.process_time() - before) / 2
    assert runs(tmp_path) == {".": [("small/text_summary", 1), ("large/text_summary", 1)]}
