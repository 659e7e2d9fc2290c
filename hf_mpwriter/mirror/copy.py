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

import contextlib
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NoReturn

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_config, is_run_path
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.mirror import targets
from hf_mpwriter.mirror.fetch import fetched
from hf_mpwriter.mirror.posix import PosixTarget, mark_of
from hf_mpwriter.mirror.remote import RemoteTarget
from hf_mpwriter.mirror.targets import ConflictError, CopySource, Target, UnreadableError
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.copies import (
    Absent,
    Arrived,
    Conflict,
    CopyJob,
    Failure,
    Finished,
    Item,
    Listed,
    Message,
    Task,
    Withheld,
)
from hf_mpwriter.spool.staging import LastPlace, lacking
from hf_mpwriter.system import failpoints, launch, redaction
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem import is_gone
from hf_mpwriter.system.process import host_id


def main() -> NoReturn:
    """Entry point of the process, see `system/launch`."""
    write = launch.answer()
    os.set_inheritable(launch.LOCK_FD, False)
    try:
        job = state.load(CopyJob, launch.read_record())
        run = Directory(job.run_dir)
        run.adopt(launch.RUN_DIR_FD)
    except (state.DamagedError, OSError) as error:
        write(state.to_line(Failure(f"the job cannot be read: {error}")))
    else:
        if job.task is Task.BRING:
            os.umask(0)  # files get the modes that they have in the run directory
        for message in do(job, run):
            write(state.to_line(message))
    os._exit(0)  # threads of a library may still hang


def do(job: CopyJob, run: Directory) -> Iterator[Message]:
    """Do a job; what is told of it."""
    try:
        target = open_target(job)
    except (ImportError, ValueError) as error:
        yield Failure(redaction.printable(str(error)), is_refused=True, is_setting=True)
        return
    end: Finished | Failure = Finished()
    try:
        match job.task:
            case Task.BRING:
                end = yield from _brought(job, run, target)
            case Task.FETCH:
                yield from fetched(run, target, job.items)
            case Task.LIST:
                yield from _listed(run, target)
            case Task.COMPARE:
                yield from (_compared(run, target, item) for item in job.items)
    except Exception as error:  # noqa: BLE001 - each filesystem of fsspec has errors of its own
        end = Failure(targets.describe(error), targets.is_refusal(error), is_gone(error))
    yield end


def open_target(job: CopyJob) -> Target:
    """The target of a logdir."""
    if is_url(job.to):
        return RemoteTarget(job.to)
    return PosixTarget(job.to, mark_of(host_id(), job.run_dir), job.mount)


def _listed(run: Directory, target: Target) -> Iterator[Message]:
    """Tell what is there. Lists of embeddings come at once: `add_embedding` would begin them anew."""
    files = {path: size for path, size in target.files().items() if is_run_path(path)}
    place = None
    with contextlib.suppress(Exception):  # each filesystem of fsspec has errors of its own; then no place is known
        place = LastPlace.read(target.last_place())
    yield Listed(files, place)
    lists = [Item(path, size) for path, size in lacking(run, files).items() if is_config(path)]
    if lists:
        yield from fetched(run, target, lists)


def _brought(job: CopyJob, run: Directory, target: Target) -> Generator[Message, None, Finished | Failure]:
    """Bring what can be brought; how it ended."""
    for directory in sorted({os.path.dirname(item.path) for item in job.items}):
        target.clean(directory)
    has_written = False
    blocked: set[tuple[str, str]] = set()  # writers whose later files wait
    errors: dict[str, OSError] = {}  # per path
    for item in job.items:
        failpoints.reach("copy.item")
        if writer_of(item.path) in blocked and not item.theirs:
            continue
        outcome = _tried(run, target, item)
        if isinstance(outcome, int | None):
            has_written |= outcome is None
            yield Arrived(item.path, item.length if outcome is None else outcome)
            continue
        if not item.theirs:
            blocked.add(writer_of(item.path))
        if isinstance(outcome, OSError):
            errors[item.path] = outcome
        else:
            yield outcome
    _name_place(job, target, is_due=has_written)
    rest = list[OSError]()
    for path, error in errors.items():
        if isinstance(error, UnreadableError) or (has_written and targets.is_refusal(error)):
            yield Withheld(path, targets.describe(error))  # of the file: the logdir takes others
        else:
            rest.append(error)
    if rest:
        return Failure(targets.describe(rest[0]), all(map(targets.is_refusal, rest)), is_of_files=True)
    return Finished()


def _name_place(job: CopyJob, target: Target, *, is_due: bool) -> None:
    """Name in the logdir where the run is kept, for a start on another host; where it refuses, all else is there."""
    place = LastPlace(host_id(), job.run_dir)
    with contextlib.suppress(Exception):
        if is_due and LastPlace.read(target.last_place()) != place:
            target.name_place(state.dump(place))


def _tried(run: Directory, target: Target, item: Item) -> int | Absent | Conflict | OSError | None:
    """Have a file there, see `bring`, or tell why it is not there. Errors of the whole logdir are raised."""
    try:
        with closing(CopySource(run, item)) as source:
            return targets.bring(target, source)
    except ConflictError as conflict:
        return Conflict(item.path, str(conflict))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not (run / item.path).exists():
            return Absent(item.path)  # removed since it was listed
        if not targets.is_of_one_file(error):
            raise
        return error


def _compared(run: Directory, target: Target, item: Item) -> Message:
    """Whether a file is there, whole, and with this content."""
    there = target.length(item.path)
    if there is None or there < item.length:
        return Absent(item.path)
    with closing(CopySource(run, item)) as source:
        may_differ = there > item.length and not targets.only_grows(item.path)
        is_same = not may_differ and source.agrees_with(target.pieces(item.path))
    return Arrived(item.path, there) if is_same else Conflict(item.path, "the file there has another content")
