"""`hf-mpwriter clean`: remove what staged runs have left on this disk, where nothing would be lost.

    a directory in which a run was staged           what becomes of it
    a process logs, uploads or copies               kept
    used less than `--older-than` days ago          kept
    not all of it, byte by byte, in its logdir      kept
    not known to be on the Hub, if it goes there    kept
    records were lost, and no person has seen it    kept
    anything else                                   removed: after the next start it comes back from the logdir

Invariants:
- Nothing is removed while a process works there: the locks of uploader, mirror and look are held meanwhile.
- A directory leaves its name in one step, so no process finds half of one:

      <hash>  ->  <hash>.removed-<8 hex>  ->  <hash>.gone-<8 hex>  ->  nothing

  A process may have joined until the first step, so members are looked for after it; one that joins later sees, when it
  has joined, that the name is gone, and joins anew. The next `clean` examines what was left by one that was cut short
  after the first step as any run, and removes what was left after the second one.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.names import is_attachment, is_embedding, is_loss
from hf_mpwriter.base.storage import searched_directories
from hf_mpwriter.base.words import command_line, counted, size_text
from hf_mpwriter.cli.clean_live import clean_bucket
from hf_mpwriter.cli.runs import examples, staged_runs
from hf_mpwriter.cli.verify import compare_logdir
from hf_mpwriter.delivery.sentences import lost_text
from hf_mpwriter.delivery.sinks import HubSink, name_of
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.snapshot.search import RunSearch, Statuses
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.staging import look_lock
from hf_mpwriter.spool.storage import forget_note, leave_note, notes_beside, objection, staged_leftovers
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import at
from hf_mpwriter.system.redaction import printable

DAY = 86_400.0  # seconds


@click.command("clean", epilog=examples("clean --dry-run", "clean --older-than 7", "clean --live me/run"))
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--older-than", type=float, default=1.0, show_default=True, metavar="DAYS", help="Keep what is newer.")
@click.option("--live", "repository", metavar="NAME", help="Delete from its live bucket what this repository has.")
def clean_staging(*, dry_run: bool, older_than: float, repository: str | None) -> None:
    """Remove local copies of staged runs that are whole elsewhere.

    A run whose logdir is an object store or a URL is kept on a local disk first. What a run there has left is removed
    if no process works on it, if its logdir has the same, byte by byte, and if all of it is known to be on the Hub. The
    rest is kept, with the reason.

    With --live, event files of which a repository has as much are deleted from its live bucket, and nothing here.
    """
    if repository is not None:
        clean_bucket(repository, dry_run=dry_run)
        return
    removed = kept = size = 0
    for rest in () if dry_run else staged_leftovers():
        disk.remove_tree(at(rest))
    found = list(staged_runs())
    if not found:
        places = ", ".join(searched_directories(os.environ))
        click.echo(printable(f"Nothing to remove: no run of yours is staged in {places}."))
        return
    for path, to in found:
        spool = Spool.of(path)
        with held(spool) as is_free:
            before = _content(spool)
            bytes_here, why = examined(spool, older_than * DAY, is_free=is_free)
            # a process that waits too long for the lock of a look goes on without it, while all is compared
            why = why or _in_use(spool, is_free=is_free)
            if why := why or ("" if dry_run else _removed(spool, before)):
                kept += 1
                click.echo(printable(f"Keeping {path}: {why}"))
                continue
            removed, size = removed + 1, size + bytes_here
            verb = "Would remove" if dry_run else "Removing"
            click.echo(printable(f"{verb} {path} ({size_text(bytes_here)} of {to})"))
    done = "Would remove" if dry_run else "Removed"
    total = f"{counted(removed, 'run')}, {size_text(size)}" if removed else "nothing"
    click.echo(f"{done} {total}; kept {kept}.")


@contextlib.contextmanager
def held(spool: Spool) -> Iterator[bool]:
    """Hold the locks by which processes work on a run; whether all of them were free."""
    taken: list[int | None] = []
    try:
        with contextlib.suppress(OSError):
            check_ownership(spool.directory)
            taken = [
                locks.try_exclusive(place) for place in (look_lock(spool), spool.lock_of("mirror"), spool.uploader_lock)
            ]
        yield bool(taken) and None not in taken
    finally:
        for lock in taken:
            if lock is not None:
                locks.release(lock)


def examined(spool: Spool, age: float, *, is_free: bool) -> tuple[int, str]:
    """The bytes of a directory in which a run was staged, and why it is kept, "" if it may go."""
    if refusal := objection(os.path.dirname(os.path.dirname(spool.run_dir))):
        return 0, f"it may not be yours alone: {refusal}"
    try:
        spool.check_format()
        size, used = _size_and_use(spool.run_dir)
        return size, _in_use(spool, is_free=is_free) or _is_young(used, age) or _is_unfinished(spool)
    except (HfMpWriterError, OSError) as error:
        return 0, f"it cannot be examined: {error}"


def _size_and_use(path: str) -> tuple[int, float]:
    """Bytes of all files, and the unix time of the last change of one."""
    size, used, pending = 0, 0.0, [at(path)]
    while pending:
        place = pending.pop()
        directories, files, _ = place.scan()
        pending += [place / name for name in directories]
        for name in files:
            status = (place / name).stat()
            size, used = size + status.st_size, max(used, status.st_ctime)
    return size, used


def _in_use(spool: Spool, *, is_free: bool) -> str:
    if any(member.alive for member in Members(spool).all()):
        return "a process logs there"
    return "" if is_free else "an uploader or a mirror works there"


def _is_young(used: float, age: float) -> str:
    unused = time.time() - used
    return f"it was used {unused / 3600:.0f} h ago, see --older-than" if unused < age else ""


def _is_unfinished(spool: Spool) -> str:
    """Why something would be lost with it, "" if nothing would."""
    scan = EventFileScan(spool.run, foreign_bytes=math.inf, seconds=math.inf)
    lengths = {file.path: file.length for file in scan.files(lambda _: True, tuple, patience=1)}
    reasons = [f"{name} is another run" for name in scan.other_runs]
    reasons += [f"it has {what}" for what in scan.left_out]
    reasons += [f"{one.path} is damaged" for one in scan.damage(time.time()) if not one.is_incomplete]
    others = (
        path for path in RunSearch(spool.run) if is_attachment(path) and not (is_embedding(path) or is_loss(path))
    )
    if reasons := [*reasons, *(f"{path} is nowhere else" for path in others)]:
        return reasons[0]
    if unseen := losses(spool):
        return lost_text(unseen, name_of(spool))
    there, count = compare_logdir(spool), len(lengths) + len(attachments.sizes(spool.run, is_embedding))
    sync = f"run: {command_line('sync', spool.run_dir if '.removed-' in spool.run_dir else there.to)}"
    if there.failure:
        return f"{there.to} could not be compared: {there.failure}"
    if there.whole + len(there.begun) < count:  # one may not have been readable for a moment
        missing = [*there.conflicts, *there.absent, "a file"]
        return f"{missing[0]} is not whole in {there.to}; {sync}"
    if spool.destination() is None:
        return ""
    late = HubSink(spool).late(lengths)
    return f"{counted(len(late), 'file')} may not be on the Hub yet; {sync}" if late else ""


def _content(spool: Spool) -> dict[str, tuple[int, int]]:
    """Length and time of the last change of each file that is not in the spool, as far as they can be read."""
    found = {}
    with contextlib.suppress(OSError), Statuses(spool.run) as statuses:
        for path in RunSearch(spool.run):
            status = statuses.of(path)
            found[path] = (status.st_size, status.st_ctime_ns)
    return found


def _removed(spool: Spool, before: dict[str, tuple[int, int]]) -> str:
    """Remove a directory and the one that it is in; why it is kept, "" if it is removed."""
    above, name = os.path.split(spool.run_dir)
    old, mark = at(above), os.urandom(4).hex()
    stem = above.partition(".removed-")[0] if ".removed-" in os.path.basename(above) else above
    aside, gone = at(f"{stem}.removed-{mark}"), at(f"{stem}.gone-{mark}")
    forget_note(spool)  # before: a start from here on leaves one again
    disk.rename(old, aside, "staged.remove")
    moved = Spool.of(os.path.join(aside, name))
    if not any(member.alive for member in Members(moved).all()) and _content(moved) == before:
        others = notes_beside(moved)
        disk.rename(aside, gone, "staged.gone")
        for note in others:
            note.put(os.path.dirname(os.path.dirname(above)))
        disk.remove_tree(gone)
        return ""
    with contextlib.suppress(OSError):
        disk.rename(aside, old, "staged.back")
        leave_note(spool)
        return "a process has begun to log there"
    return f"a process has begun to log there; what it had before is in {moved.run_dir}"
