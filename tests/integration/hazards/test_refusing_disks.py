"""Hazards of a disk that refuses.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hazards import PRELUDE, end_well, runs, steps
from programs import succeed


@pytest.fixture(scope="session")
def mounts(tmp_path_factory) -> None:
    """Require the right to mount in a private namespace; skip without it."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("only root may mount, and with `unshare`")
    place = tmp_path_factory.mktemp("probe")
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "probe", str(place)], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"this container may not mount: {probe.stderr.strip()}")


def on_small_disk(tmp_path: Path, source: str, *arguments: object) -> str:
    """Run a program on a disk of one megabyte; `tmp_path / "copy"` has the content of the disk at the end."""
    (tmp_path / "disk").mkdir()
    script = """
mount -t tmpfs -o size=1m small "$1" || exit 99
disk=$1 copy=$2; shift 2
"$@"
code=$?
mkdir "$copy" && cp -r "$disk"/run* "$copy"
exit $code
"""
    command = [sys.executable, "-c", source, str(tmp_path / "disk"), *map(str, arguments)]
    return end_well(["unshare", "--mount", "sh", "-c", script, "sh", tmp_path / "disk", tmp_path / "copy", *command])


# full() leaves no room, room() makes it again. A write that refuses is a full disk without a mount.
FULL = (
    PRELUDE
    + """
place, kind = sys.argv[1:3]
left, write = None, os.write
def write_into(fd, data):
    global left
    if left is None or not stat.S_ISREG(os.fstat(fd).st_mode):
        return write(fd, data)
    if not left:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written = write(fd, data[:left])
    left -= written
    return written
os.write = write_into
def full():
    global left
    if kind == "refused":
        left = 1111
        return
    with open(f"{place}/filler", "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
def room():
    global left
    if kind == "refused":
        left = None
    else:
        os.unlink(f"{place}/filler")
image = np.random.default_rng(1).integers(0, 255, (3, 160, 160), dtype=np.uint8)  # above a pipe's 64 KiB
"""
)


@pytest.mark.root
def test_a_full_disk_delays_records_until_there_is_room(mounts, tmp_path):
    """h08: no call raises or blocks; later calls write what did not fit, in order."""
    source = """
writer = SummaryWriter(f"{place}/run")
log(writer, 0, 50)
full()
log(writer, 50, 1000)
writer.add_image("image", image, 1)
writer.add_scalars("sub", {"run": 1.0}, 2)
size = os.path.getsize(writer.file_writer.event_writer.file.path)
room()
step = 1000
while os.path.getsize(writer.file_writer.event_writer.file.path) < size + 60_000:
    log(writer, step, step + 1)
    step += 1
    time.sleep(0.02)
log(writer, step, step + 50)
writer.close()
print(step + 50, writer.dropped)
"""
    last, dropped = map(int, on_small_disk(tmp_path, FULL + source, "tmpfs").split())
    assert dropped == 0
    assert runs(tmp_path / "copy" / "run") == {
        ".": [*steps(0, 1000), ("image", 1), *steps(1000, last)],
        "sub/run": [("sub", 2)],
    }


@pytest.mark.parametrize("end", ["close", "never closed", "hard"])
def test_a_disk_that_stays_full_costs_records_but_not_the_program(tmp_path, end):
    """h08, h14: the program ends at once and well; what is on disk is whole, without a gap; the rest is counted."""
    source = f"""
writer = SummaryWriter(f"{{place}}/run")
log(writer, 0, 50)
full()
log(writer, 50, 3000)
writer.add_image("image", image, 1)
writer.flush()
if {end!r} == "close":
    writer.close()
    print(writer.dropped)
if {end!r} == "hard": os._exit(0)
"""
    out = succeed(FULL + source, tmp_path, "refused")
    (found,) = runs(tmp_path / "run").values()
    assert found == [*steps(0, 3000), ("image", 1)][: len(found)]
    assert 50 <= len(found) < 3000
    if end == "close":
        assert int(out) == 3001 - len(found)


@pytest.mark.root
def test_a_start_on_a_full_disk_trains_and_the_next_one_goes_on(mounts, tmp_path):
    """h08: a requeued job on a full disk logs nothing, counts the records and ends well; nothing is damaged."""
    source = """
start = '''
import sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    writer.add_scalar("a", 0.5, step)
writer.flush()
writer.close()
print(writer.dropped)
'''
def attempt(first, last):
    arguments = [sys.executable, "-c", start, f"{place}/run", str(first), str(last)]
    return int(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, timeout=200).stdout)
assert attempt(0, 50) == 0
full()
assert attempt(50, 100) == 50
room()
assert attempt(100, 150) == 0
"""
    on_small_disk(tmp_path, FULL + source, "tmpfs")
    assert runs(tmp_path / "copy" / "run") == {".": [*steps(0, 50), *steps(100, 150)]}


@pytest.mark.root
@pytest.mark.parametrize("when", ["first event", "after close"])
def test_a_directory_that_is_read_only_for_a_while_costs_nothing(mounts, tmp_path, when):
    """h08: EROFS where a file has to be made: no call raises, and all is written once the directory is writable."""
    source = f"""
when = {when!r}
place = sys.argv[1]
run = f"{{place}}/run"
writer = SummaryWriter(run)
if when != "first event": log(writer, 0, 10)
if when == "after close": writer.close()
mount = lambda *arguments: subprocess.run(["mount", *arguments], check=True)
if when == "after close":  # nothing is open
    mount("-o", "remount,ro", place)
else:
    mount("--bind", run, run)
    mount("-o", "remount,bind,ro", run)
try:
    open(f"{{run}}/probe", "w")
except OSError as error:
    assert error.errno == errno.EROFS
log(writer, 10, 60)
writer.add_scalars("sub", {{"run": 1.0}}, 1)
writer.add_text("text", "hello", 2)
writer.flush()
if when == "after close":
    mount("-o", "remount,rw", place)
else:
    subprocess.run(["umount", "--lazy", run], check=True)
log(writer, 60, 61)
writer.flush()
writer.close()
assert writer.dropped == 0, writer.dropped
"""
    on_small_disk(tmp_path, PRELUDE + source)
    first = 10 if when == "first event" else 0
    assert runs(tmp_path / "copy" / "run") == {
        ".": [*steps(first, 60), ("text/text_summary", 2), *steps(60, 61)],
        "sub/run": [("sub", 1)],
    }


def test_no_error_of_the_disk_is_raised_into_training(tmp_path):
    """h08: quota, read-only, I/O error, stale NFS handle, full: refused records are written later, in order."""
    source = """
refuse, write = 0, os.write
def refusing(fd, data):
    if refuse and stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(refuse, os.strerror(refuse))
    return write(fd, data)
os.write = refusing
for number in (errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENODEV):
    writer = SummaryWriter(f"{sys.argv[1]}/{errno.errorcode[number]}")
    log(writer, 0, 10)
    refuse = number
    log(writer, 10, 60)
    writer.add_scalars("sub", {"run": 1.0}, 1)
    writer.flush()
    refuse = 0
    writer.flush()
    log(writer, 60, 70)
    writer.close()
    assert writer.dropped == 0
"""
    succeed(PRELUDE + source, tmp_path)
    found = runs(tmp_path)
    assert len(found) == 12
    for run, written in found.items():
        assert written == ([("sub", 1)] if run.endswith("sub/run") else steps(0, 70)), run


def test_a_process_without_a_free_descriptor_logs_later(run_dir):
    """h08: EMFILE where a file has to be opened: no call raises, and all is written once a descriptor is free."""
    source = """
writer = SummaryWriter(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
taken = []
try:
    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
log(writer, 10, 60)
writer.add_scalars("sub", {"run": 1.0}, 1)
writer.flush()
for fd in taken: os.close(fd)
writer.flush()
log(writer, 60, 61)
writer.close()
assert writer.dropped == 0
"""
    succeed(PRELUDE + source, run_dir)
    assert runs(run_dir) == {".": steps(10, 61), "sub/run": [("sub", 1)]}


def test_what_is_logged_after_the_logdir_was_removed_is_in_a_new_file(run_dir):
    """The user cleans up under a running job: records of later calls are on disk at the end, in the same place."""
    source = """
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 10)
shutil.rmtree(sys.argv[1])
log(writer, 10, 20)
writer.add_scalars("sub", {"run": 1.0}, 1)
"""
    succeed(PRELUDE + source, run_dir)
    found = runs(run_dir)
    assert found["sub/run"] == [("sub", 1)]
    again = len(found["."])  # what was logged since the last check of the file is written again
    assert again >= 10
    assert found["."] == steps(20 - again, 20)


def test_a_logdir_that_is_moved_under_the_writer_loses_nothing(run_dir):
    """Its files move along; each record is once in the old place or in the new one."""
    source = """
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 10)
os.rename(sys.argv[1], sys.argv[1] + ".old")
log(writer, 10, 20)
writer.flush()
log(writer, 20, 30)
"""
    succeed(PRELUDE + source, run_dir)
    found = runs(run_dir.parent)
    assert set(found) <= {"exp1", "exp1.old"}
    assert found["exp1.old"] + found.get("exp1", []) == steps(0, 30)
