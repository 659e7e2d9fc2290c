"""`hf-mpwriter clean`: remove what staged runs have left on this disk, where nothing would be lost.

    a directory in which a run was staged           what becomes of it
    a process logs, uploads or copies               kept
    used less than `--older-than` days ago          kept
    not the same, byte by byte, in its logdir       kept
    not known to be on the Hub, if it goes there    kept
    anything else                                   removed: after the next start it comes back from the logdir

Invariants:
- Nothing is removed while a process works there: the locks of uploader, mirror and look are held meanwhile.
- A directory leaves its name in one step, so no process finds half of one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.names import is_attachment, is_embedding
from hf_mpwriter.base.storage import is_staged_path, staging_directories, staging_root
from hf_mpwriter.base.words import counted, size_text
from hf_mpwriter.cli.destination import newest_settings
from hf_mpwriter.cli.options import examples
from hf_mpwriter.cli.verify import compare_logdir
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan, walk
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.staging import look_lock
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import at
from hf_mpwriter.system.redaction import printable

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Leftover:
    """A directory in which a run was staged."""

    path: str  # of it
    size: int  # bytes
    to: str  # its logdir
    why: str  # it is kept, "" if it may go


@click.command("clean", epilog=examples("clean --dry-run", "clean --older-than 7"))
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--older-than", type=float, default=1.0, show_default=True, metavar="DAYS", help="Keep what is newer.")
def clean_staging(*, dry_run: bool, older_than: float) -> None:
    """Remove local copies of staged runs that are whole elsewhere.

    A run whose logdir is an object store or a URL is kept on a local disk first. What a run there has left is removed
    if no process works on it, if its logdir has the same, byte by byte, and if all of it is known to be on the Hub. The
    rest is kept, with the reason.
    """
    removed = kept = size = 0
    found = found_staged()
    if not found:
        places = ", ".join(staging_directories(os.environ))
        click.echo(printable(f"Nothing to remove: no run of yours is staged in {places}."))
        return
    for path in found:
        with held(Spool.of(path)) as is_free:
            one = examined(path, older_than * DAY, is_free=is_free)
            # who has waited too long for the lock of a look goes on without it, while all is compared
            if why := one.why or _in_use(Spool.of(path), is_free=is_free):
                kept += 1
                click.echo(printable(f"Keeping {one.path}: {why}"))
                continue
            removed, size = removed + 1, size + one.size
            verb = "Would remove" if dry_run else "Removing"
            click.echo(printable(f"{verb} {one.path} ({size_text(one.size)} of {one.to})"))
            if not dry_run:
                _remove(path)
    done = "Would remove" if dry_run else "Removed"
    total = f"{counted(removed, 'run')}, {size_text(size)}" if removed else "nothing"
    click.echo(f"{done} {total}; kept {kept}.")


def found_staged() -> list[str]:
    """The directories of this user in which runs were staged, wherever the environment lets them be."""
    found, user = [], os.geteuid()
    for top in staging_directories(os.environ):
        root = os.path.join(top, staging_root(user))
        with contextlib.suppress(OSError):
            if os.lstat(root).st_uid != user:
                continue
            for digits in sorted(at(root).scan()[0]):
                paths = [os.path.join(root, digits, name) for name in sorted((at(root) / digits).scan()[0])]
                found += [path for path in paths if is_staged_path(path, user) and LogdirSink(Spool.of(path)).is_staged]
    return found


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


def examined(path: str, age: float, *, is_free: bool) -> Leftover:
    """What is known of a directory, and why it is kept."""
    spool = Spool.of(path)
    to = LogdirSink(spool).to
    try:
        spool.check_format()
        size, used = _size_and_use(path)
        why = _in_use(spool, is_free=is_free) or _is_young(used, age) or _is_unfinished(spool)
    except (HfMpWriterError, OSError) as error:
        return Leftover(path, 0, to, f"it cannot be examined: {error}")
    return Leftover(path, size, to, why)


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
    scan = EventFileScan(spool.run)
    lengths = {file.path: file.length for file in scan.files(lambda _: True, tuple, patience=1)}
    reasons = [f"{name} is another run" for name in scan.other_runs]
    reasons += [f"{one.path} is damaged" for one in scan.damage(time.time()) if not one.is_incomplete]
    others = (path for path in walk(spool.run) if is_attachment(path) and not is_embedding(path))
    if reasons := [*reasons, *(f"{path} is nowhere else" for path in others)]:
        return reasons[0]
    embeddings = attachments.sizes(spool.run, is_embedding)
    there = compare_logdir(spool, embeddings)
    sync = f"run: hf-mpwriter sync {there.to}"
    if there.failure:
        return f"{there.to} could not be compared: {there.failure}"
    missing = [*there.conflicts, *there.absent]
    if missing or there.whole < len(lengths) + len(embeddings):  # one may not have been readable for a moment
        return f"{missing[0] if missing else 'a file'} is not whole in {there.to}; {sync}"
    if spool.destination() is None:
        return ""
    progress = HubSink(spool)
    settings = newest_settings((), progress.ledger())
    wanted = {path: length for path, length in lengths.items() if settings.allows(path)}
    late = progress.missing(wanted | attachments.sizes(spool.run, settings.allows))
    return f"{counted(len(late), 'file')} may not be on the Hub yet; {sync}" if late else ""


def _remove(path: str) -> None:
    """Remove a directory and the one that it is in, by another name."""
    above = os.path.dirname(path)
    old, new = at(above), at(f"{above}.removed-{os.urandom(4).hex()}")
    disk.rename(old, new, "staged.remove")
    disk.remove_tree(new)
