"""The process of a copy: one job -> a line per file, in a fresh interpreter. It alone touches the logdir.

    set the timer -> read the job -> open the target -> bring one file after the other -> end
                                                     -> compare; list what is there; fetch, see `fetch`

Invariants:
- It dies with who started it, and by its own timer, whatever its threads do. What hangs in the kernel outlives both:
  then it still holds the copy lock, and no other copy starts.
- Only its own lines go to the pipe; what libraries print goes to the log of the mirror, without secrets.
- No file is brought before the earlier ones of its writer. What keeps one back keeps no file of another writer back.
- It ends at once where the next file would fail in the same way: the mount is gone, the server is not reached.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_config, is_run_path
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.mirror import targets
from hf_mpwriter.mirror.fetch import fetched
from hf_mpwriter.mirror.posix import PosixTarget
from hf_mpwriter.mirror.remote import RemoteTarget
from hf_mpwriter.mirror.targets import ConflictError, CopySource, Target, UnreadableError
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.staging.job import (
    Absent,
    Arrived,
    Conflict,
    CopyJob,
    CopyWay,
    Failure,
    Finished,
    Item,
    Listed,
    Message,
    Withheld,
)
from hf_mpwriter.spool.staging.listing import lacking
from hf_mpwriter.system import failpoints, launch, redaction
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem import Mount, is_gone

LISTED_AT_ONCE = 32  # files that are asked for their length at a time

Tell = Callable[[Message], object]


def main() -> NoReturn:
    """Entry point of the process, see `system/launch`."""
    write = launch.answer()
    os.set_inheritable(launch.LOCK_FD, False)

    def tell(message: Message) -> None:
        write(state.to_line(message))

    try:
        job = state.load(CopyJob, launch.read_record())
        run = Directory(job.run_dir)
        run.adopt(launch.RUN_DIR_FD)
    except (state.DamagedError, OSError) as error:
        tell(Failure(f"the job cannot be read: {error}", is_refused=False))
    else:
        if not (job.lists or job.fetches):
            os.umask(0)  # files get the modes that they have in the run directory
        do(job, run, tell)
    os._exit(0)  # threads of a library may still hang


def do(job: CopyJob, run: Directory, tell: Tell) -> None:
    """Do a job."""
    try:
        target = open_target(job.to, job.mark, job.way, job.mount)
    except (ImportError, ValueError) as error:
        tell(Failure(redaction.printable(str(error)), is_refused=True, is_setting=True))
        return
    end: Finished | Failure = Finished()
    try:
        if job.lists:
            _list(run, target, tell)
        elif job.fetches:
            for outcome in fetched(run, target, job.items):
                tell(outcome)
        elif job.only_compare:
            for item in job.items:
                _compare(job, run, target, item, tell)
        else:
            for directory in sorted({os.path.dirname(item.path) for item in job.items}):
                target.clean(directory)
            end = _Bringing(job, run, target, tell).end()
    except Exception as error:  # noqa: BLE001 - each filesystem of fsspec has errors of its own
        end = Failure(targets.describe(error), targets.is_refusal(error), is_gone(error))
    tell(end)


def open_target(to: str, mark: str, way: str, mount: Mount | None) -> Target:
    """The target of a logdir."""
    return RemoteTarget(to) if is_url(to) else PosixTarget(to, mark, way, mount)


def _list(run: Directory, target: Target, tell: Tell) -> None:
    """Tell what is there. Lists of embeddings come at once: `add_embedding` would begin them anew."""
    with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
        files = {path: size for path, size in target.files(pool.map).items() if is_run_path(path)}
    tell(Listed(files))
    lists = [Item(path, size) for path, size in lacking(run, files).items() if is_config(path)]
    for outcome in fetched(run, target, lists) if lists else ():
        tell(outcome)


class _Bringing:
    """One pass over the files of a job."""

    def __init__(self, job: CopyJob, run: Directory, target: Target, tell: Tell) -> None:
        self._job, self._run, self._target, self._tell = job, run, target, tell
        self._way, self._has_written = job.way, False
        self._errors: dict[str, OSError] = {}  # per path

    def end(self) -> Finished | Failure:
        """Bring what can be brought; how it ended."""
        blocked: set[tuple[str, str]] = set()  # writers whose later files wait
        for item in self._job.items:
            failpoints.reach("copy.item")
            if writer_of(item.path) not in blocked and not self._brings(item):
                blocked.add(writer_of(item.path))
        rest = [error for path, error in self._errors.items() if not self._holds(path, error)]
        if not rest:
            return Finished()
        return Failure(targets.describe(rest[0]), all(map(targets.is_refusal, rest)), is_of_files=True)

    def _holds(self, path: str, error: OSError) -> bool:
        """Whether an error is of one file, and not of the logdir, which takes others; then it is told."""
        is_its_own = isinstance(error, UnreadableError) or (self._has_written and targets.is_refusal(error))
        if is_its_own:
            self._tell(Withheld(path, targets.describe(error)))
        return is_its_own

    def _brings(self, item: Item) -> bool:
        """Have a file there; False if no later one of its writer may follow."""
        try:
            source = CopySource(self._run, item)
            try:
                self._has_written |= targets.bring(self._target, source)
            finally:
                source.close()
        except ConflictError as conflict:
            self._tell(Conflict(item.path, str(conflict)))
            return False
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not (self._run / item.path).exists():
                self._tell(Absent(item.path))  # removed since it was listed
            elif targets.is_of_one_file(error):
                self._errors[item.path] = error
            else:
                raise
            return False
        if self._target.way != self._way:
            self._way = self._target.way
            self._tell(CopyWay(self._way))
        self._tell(Arrived(item.path, item.length))
        return True


def _compare(job: CopyJob, run: Directory, target: Target, item: Item, tell: Tell) -> None:
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


def _is_same(run: Directory, target: Target, item: Item) -> bool:
    source = CopySource(run, item)
    try:
        return source.begins_with(target.pieces(item.path))
    finally:
        source.close()
