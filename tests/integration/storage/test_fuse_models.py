"""The FUSE models behave as the mounts that they stand for."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import fuse_models
import pytest
from fuse_models import MODELS, PLAIN, Mounted, mounted
from mounts import detach_below
from programs import wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(fuse_models.why_not()), reason=fuse_models.why_not() or "-"),
]


GONE = ("ENOTCONN", "ECONNABORTED")  # what a mount without its process answers, the second one while it goes


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or the name of its error."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]


def lock(path: Path) -> None:
    """Lock a file as our locks do."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def append(path: Path, data: bytes) -> None:
    """Open an existing file and write behind its end, in one call of the kernel each."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def overwrite(path: Path) -> None:
    """Begin an existing file again."""
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def observe(mount: Mounted) -> dict[str, object]:
    """What one new file of a mount does, from its creation to its end."""
    path, seen = mount.place / "file", {}
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
    try:
        os.write(fd, b"one")
        seen["read while open"] = outcome(path.read_bytes)
        seen["elsewhere while open"] = mount.elsewhere(path)
        os.fsync(fd)
        seen["elsewhere after fsync"] = mount.elsewhere(path)
        seen["write after fsync"] = outcome(lambda: os.write(fd, b" two"))
    finally:
        seen["close"] = outcome(lambda: os.close(fd))
    seen["elsewhere after close"] = mount.elsewhere(path)
    seen["append"] = outcome(lambda: append(path, b" three"))
    seen["elsewhere after append"] = mount.elsewhere(path)
    seen["lock"] = outcome(lambda: lock(path))
    seen["rename"] = outcome(lambda: os.rename(path, mount.place / "renamed"))
    left = mount.place / ("renamed" if seen["rename"] is None else "file")
    left.chmod(0o600)
    seen["mode"] = left.stat().st_mode & 0o777
    seen["overwrite"] = outcome(lambda: overwrite(left))
    seen["remove"] = outcome(lambda: os.unlink(left))
    return seen


LOCAL = {
    "read while open": b"one",
    "elsewhere while open": b"one",
    "elsewhere after fsync": b"one",
    "write after fsync": 4,
    "close": None,
    "elsewhere after close": b"one two",
    "append": None,
    "elsewhere after append": b"one two three",
    "lock": None,
    "rename": None,
    "mode": 0o600,
    "overwrite": None,
    "remove": None,
}
ON_CLOSE = {"elsewhere while open": None, "elsewhere after fsync": None, "mode": 0o644}
ON_CLOSE |= {"append": "EPERM", "elsewhere after append": b"one two"}
FSYNC_ENDS = {
    "elsewhere after fsync": b"one",
    "write after fsync": "EIO",
    "elsewhere after close": b"one",
    "elsewhere after append": b"one",
}
MOUNTPOINT = ON_CLOSE | FSYNC_ENDS
MOUNTPOINT |= {"read while open": "EPERM", "lock": "ENOSYS", "rename": "ENOSYS"}
DIFFERENCES = {
    "gcsfuse": ON_CLOSE,
    "mountpoint-s3": MOUNTPOINT | {"overwrite": "EPERM", "remove": "EPERM"},
    "mountpoint-s3-allowed": MOUNTPOINT,
    "hf-mount": ON_CLOSE | {"read while open": b""},
    "blobfuse2": ON_CLOSE | {"lock": "ENOSYS"},
    "plain": {},
    "no-modes": {"mode": 0o644},
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_file_lives_as_on_the_mount(model, tmp_path):
    """From creation to removal: what differs from a local disk is what the mount's documents say, and no more."""
    with mounted(model, tmp_path / "mount") as mount:
        assert observe(mount) == LOCAL | DIFFERENCES[model.name]
        found = subprocess.run(["findmnt", "-no", "FSTYPE,SOURCE", mount.place], capture_output=True, check=True)
        assert found.stdout.decode().split() == [f"fuse.{model.fstype}" if model.fstype else "fuse", model.source]
    assert not os.path.ismount(tmp_path / "mount")


def test_a_mount_ends_with_the_process_that_made_it(tmp_path):
    """SIGKILL of a test leaves no process of a mount behind; the next session detaches the place."""
    if not (child := os.fork()):
        mount = Mounted(PLAIN, tmp_path / "mount", tmp_path / "store")
        (tmp_path / "pid").write_text(str(mount.pid))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(pid), "its end")
    try:
        assert outcome(lambda: os.stat(tmp_path / "mount")) in GONE
    finally:
        detached = detach_below(tmp_path)
    assert detached == [str(tmp_path / "mount")]
