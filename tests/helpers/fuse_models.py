"""Mounts of object stores, and other difficult mounts, as FUSE models: what each can do, and how to mount one.

    with mounted(GCSFUSE, place) as mount:          a process of its own serves it (`fuse_server`)
        (mount.place / "file").write_bytes(b"...")  what this host sees
        mount.elsewhere("file")                     what other hosts see: content, None if there is nothing
        mount.everything()                          all of it: content by path
        with mounted(GCSFUSE, other, store=mount.store): ...   a second host with a mount of the same store
        mount.hang() ... mount.release()            every call waits in between
        mount.make_stale()                          what is open answers ESTALE from now on
        mount.die() ... mount.mount_anew()          every call fails in between, and what was open after it

A model behaves as the source and the documents of its mount say (August 2026), without caches, in what a run uses of
it: an object is written in sequence, anew, and by one process. Objects live in a plain directory, the store. What a
mount has not published yet is gone with its process. Empty directories are published at once, which no object store
does.

Needs Linux, root, /dev/fuse and libfuse (`scripts/packages`); `why_not` says what is missing. Mounts end with the
`with`; a killed test takes the process of the mount with it, and the next session detaches what is left.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import dataclasses
import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mounts import contents, detach
from programs import wait_for

SERVER = Path(__file__).parent / "fuse_server.py"


@dataclasses.dataclass(frozen=True)
class Model:
    """What a mount can do. The defaults are those of a local disk, but for locks, which stay within a mount."""

    name: str  # for messages and the ids of tests
    fstype: str  # the type in mountinfo is `fuse.<fstype>`, or `fuse` without one
    source: str  # the source in mountinfo
    published_on_close: bool = False  # an object store: others see closed files, which cannot be appended to
    # what reading an unpublished file gives: "content", "nothing", or it is "refused" (EPERM)
    reads_open: str = "content"
    overwrites: bool = True  # whether an existing file can be opened with O_TRUNC, else EPERM
    deletes: bool = True  # whether a file can be removed, else EPERM
    fsync_ends: bool = False  # whether fsync publishes a file, and later writes are EIO
    renames: bool = True  # whether anything can be renamed, else ENOSYS
    modes: bool = True  # whether mode and owner can be changed, else it is ignored
    lock_error: int = 0  # the errno of every lock, 0 where they work
    delay: float = 0.0  # seconds that each call takes

    def slow(self, seconds: float = 0.02) -> Model:
        """The same model, each of whose calls takes so long."""
        return dataclasses.replace(self, name=f"{self.name}-slow", delay=seconds)


GCSFUSE = Model("gcsfuse", "gcsfuse", "bucket", published_on_close=True, modes=False)  # docs/semantics.md
MOUNTPOINT_S3 = Model(
    "mountpoint-s3",
    "",
    "mountpoint-s3",
    published_on_close=True,
    reads_open="refused",
    overwrites=False,  # without --allow-overwrite
    deletes=False,  # without --allow-delete
    fsync_ends=True,
    renames=False,
    modes=False,
    lock_error=errno.ENOSYS,
)  # doc/SEMANTICS.md
MOUNTPOINT_S3_ALLOWED = dataclasses.replace(
    MOUNTPOINT_S3, name="mountpoint-s3-allowed", overwrites=True, deletes=True
)  # with both flags
HF_MOUNT = Model(
    "hf-mount", "", "hf-mount", published_on_close=True, reads_open="nothing", modes=False
)  # src/virtual_fs/mod.rs, without advanced_writes
BLOBFUSE2 = dataclasses.replace(
    GCSFUSE, name="blobfuse2", fstype="blobfuse2", source="blobfuse2", lock_error=errno.ENOSYS
)

PLAIN = Model("plain", "mystery", "mystery")  # a name that is not known; locks of one mount
NO_MODES = Model("no-modes", "exfat", "exfat", modes=False)
FILES = dataclasses.replace(PLAIN, name="files", fstype="bindfs")  # a program that keeps files as a disk does
MODELS = (GCSFUSE, MOUNTPOINT_S3, MOUNTPOINT_S3_ALLOWED, HF_MOUNT, BLOBFUSE2, PLAIN, NO_MODES)


def why_not() -> str:
    """Return why no model can be mounted here, "" if one can."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "only root on Linux can mount"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse"
    if not ctypes.util.find_library("fuse3"):
        return "libfuse3 is missing: scripts/packages installs it"
    return "" if importlib.util.find_spec("mfusepy") else "mfusepy is missing: pip install -e '.[test]'"


class Mounted:
    """A mount of a model."""

    def __init__(self, model: Model, place: Path, store: Path) -> None:
        self.model, self.place, self.store = model, place, store
        self._gate = store.parent / f"{store.name}.{place.name}.hang"
        for directory in (place, store):
            directory.mkdir(parents=True, exist_ok=True)
        self._start()

    def _start(self) -> None:
        told = {"model": dataclasses.asdict(self.model), "gate": str(self._gate)}
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [sys.executable, SERVER, json.dumps(told), self.store, self.place],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            wait_for(self._is_up, f"a mount of {self.model.name}")
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        return self._process.pid

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(self._process.communicate()[1].decode())
        return os.path.ismount(self.place)

    def elsewhere(self, path: str | os.PathLike[str]) -> bytes | None:
        """The content that other hosts see, None if there is no such file."""
        relative = os.path.relpath(path, self.place) if os.path.isabs(path) else path
        try:
            return (self.store / relative).read_bytes()
        except FileNotFoundError:
            return None

    def everything(self) -> dict[str, bytes]:
        """All files that other hosts see: content by path."""
        return contents(self.store)

    def hang(self, below: Path | None = None) -> None:
        """Let every call, or those below a place, wait from now on, also those of processes that are killed."""
        with self._gate.with_suffix(".shut").open("w") as gate:
            gate.write("" if below in (None, self.place) else f"/{below.relative_to(self.place)}")
        os.replace(gate.name, self._gate)

    def release(self) -> None:
        """Answer all that wait."""
        self._gate.unlink(missing_ok=True)

    def die(self) -> None:
        """Kill the process: what it has not published is lost, and every call fails with ENOTCONN."""
        self._process.kill()
        self._process.wait()

    def mount_anew(self) -> None:
        """Mount it again after it died; the thread that does so has to live as long as the mount."""
        detach(self.place)
        self._process.communicate()
        self._start()

    def make_stale(self) -> bool:
        """Let all that is open now answer ESTALE, though its path works; True for who counts that."""
        self._gate.with_suffix(".stale").touch()
        return True

    def end(self) -> None:
        """Unmount; a file that is still open there fails from now on."""
        self.release()
        detach(self.place)
        with contextlib.suppress(subprocess.TimeoutExpired):  # files that are open keep it
            self._process.terminate()
            self._process.wait(5)
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def mounted(model: Model, place: Path, store: Path | None = None) -> Iterator[Mounted]:
    """Mount a model."""
    mount = Mounted(model, place, store or place.with_name(f"{place.name}.store"))
    try:
        yield mount
    finally:
        mount.end()
