"""The process of a copy: one job -> a line per file, in a fresh interpreter. It alone touches the logdir.

    set the timer -> read the job -> open the target -> bring one file after the other -> end

Invariants:
- It dies with its mirror, and by its own timer, whatever its threads do. What hangs in the kernel outlives both: then
  it still holds the copy lock, and no other copy starts.
- Only its own lines go to the pipe; what libraries print goes to the log of the mirror, without secrets.
- After a failure or a conflict it ends: no file is brought before the earlier ones of its writer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from hf_mpwriter.base import state
from hf_mpwriter.base.home import is_url
from hf_mpwriter.mirror import targets
from hf_mpwriter.mirror.job import (
    Absent,
    Arrived,
    Conflict,
    CopyJob,
    CopyWay,
    Failure,
    Finished,
    Item,
    Message,
    to_line,
)
from hf_mpwriter.mirror.posix import PosixTarget
from hf_mpwriter.mirror.remote import RemoteTarget
from hf_mpwriter.mirror.targets import ConflictError, CopySource, Target
from hf_mpwriter.system import disk, failpoints, launch, redaction
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import fill_standard
from hf_mpwriter.system.supervision.kernel import die_with_parent

Tell = Callable[[Message], object]


def main(parent: int, record: int, run_fd: int, lock: int) -> NoReturn:
    """Entry point of the process; the descriptors are inherited. The timer is set already.

    Args:
        parent: process id of the mirror.
        record: descriptor of the job.
        run_fd: of the run directory.
        lock: descriptor that holds the copy lock; it is closed when this process ends.
    """
    fill_standard()
    die_with_parent(parent)
    os.set_inheritable(lock, False)
    pipe = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print goes to the log
    redaction.guard()
    os.umask(0)  # files get the modes that they have in the run directory

    def tell(message: Message) -> None:
        disk.write_all(pipe, b"\n%s\n" % to_line(message))

    try:
        job = state.load(CopyJob, launch.read_record(record))
        run = Directory(job.run_dir)
        run.adopt(run_fd)
    except (state.DamagedError, OSError) as error:
        tell(Failure(f"the job cannot be read: {error}", is_refused=False))
    else:
        do(job, run, tell)
    os._exit(0)  # threads of a library may still hang


def do(job: CopyJob, run: Directory, tell: Tell) -> None:
    """Do a job.

    Args:
        job: what to do.
        run: the run directory.
        tell: takes what becomes of it.
    """
    try:
        target = open_target(job.to, job.mark, job.way)
        if not job.only_compare:
            for directory in sorted({os.path.dirname(item.path) for item in job.items}):
                target.clean(directory)
        for item in job.items:
            failpoints.reach("copy.item")
            if not (_compare if job.only_compare else _bring)(job, run, target, item, tell):
                break
    except Exception as error:  # noqa: BLE001 - each filesystem of fsspec has errors of its own
        tell(Failure(describe(error), targets.is_refusal(error)))
    else:
        tell(Finished())


def open_target(to: str, mark: str, way: str) -> Target:
    """The target of a logdir.

    Args:
        to: an absolute path, or a URL.
        mark: what begins the temporary names of this mirror.
        way: how files get there, "" if it has to be found out.
    """
    return RemoteTarget(to) if is_url(to) else PosixTarget(to, mark, way)


def _bring(job: CopyJob, run: Directory, target: Target, item: Item, tell: Tell) -> bool:
    """Have a file there; False if no other may follow."""
    try:
        source = CopySource(run, item)
    except FileNotFoundError:  # removed since it was listed
        tell(Absent(item.path))
        return False
    try:
        targets.bring(target, source)
    except ConflictError as conflict:
        tell(Conflict(item.path, str(conflict)))
        return False
    finally:
        source.close()
    if target.way != job.way:
        tell(CopyWay(target.way))
    tell(Arrived(item.path, item.length))
    return True


def _compare(job: CopyJob, run: Directory, target: Target, item: Item, tell: Tell) -> bool:
    """See whether a file is there, whole; by its content where that is asked for."""
    there = target.length(item.path)
    if there is not None and there > item.length:
        tell(Conflict(item.path, f"the file there has {there} bytes, the one here {item.length}"))
    elif there != item.length:
        tell(Absent(item.path))
    elif job.only_lengths or _is_same(run, target, item):
        tell(Arrived(item.path, item.length))
    else:
        tell(Conflict(item.path, "the file there has another content"))
    return True


def _is_same(run: Directory, target: Target, item: Item) -> bool:
    source = CopySource(run, item)
    try:
        return source.begins_with(target.pieces(item.path))
    finally:
        source.close()


def describe(error: BaseException) -> str:
    """An error in one line, without secrets."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    return redaction.redact_known(" ".join(text.split()))[:300]
