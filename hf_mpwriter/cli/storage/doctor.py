"""A part of `hf-mpwriter doctor`: what the filesystem of a directory can do, and how a run would be kept there.

    filesystem    type, source, where it is mounted
    abilities     all that the probe of a writer tries, and whether another process sees a file and a lock: yes, no
    the run       the way that is chosen, and why; event files and spool

A filesystem whose type is not known by name is asked anew, and the answer is remembered for writers. It leaves nothing
behind there if files can be removed; here it leaves the directory in which runs are staged.

Invariant: where a writer would refuse to begin a run, so does this, in the same words.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import click

from hf_mpwriter.base.home import Home, Way, is_url
from hf_mpwriter.cli.destination import is_own_folder
from hf_mpwriter.spool.homes import beside, examine, find, spool_of
from hf_mpwriter.spool.layout import no_directory, unwritable
from hf_mpwriter.system.filesystem.mounts import Mount, find_mount, nearest
from hf_mpwriter.system.redaction import printable

ABILITIES = {
    "exclusive": "create a file only if there is none",
    "append": "append to a file through two openings",
    "read_open": "read a file that is open for writing",
    "durable": "read what fsync has written",
    "truncate": "cut a file",
    "rename": "put a file in place of another one",
    "link": "give a file a second name",
    "lock": "refuse a lock that is held",
    "private": "keep owner and mode of a file",
    "elsewhere_sees": "show file and lock to another process",
}
ANSWERS = {True: "yes", False: "no", None: "not known"}
_WITNESS = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(not os.read(fd, 1))
sys.exit(1)
"""
PATIENCE = 60.0  # seconds for the other process


def filesystem_lines(logdir: str) -> list[tuple[str, str]]:
    """What the filesystem of a logdir can do, and how a run would be kept there: names and texts."""
    lines = [("logdir", logdir)]
    if not is_url(logdir):
        mount = find_mount(logdir)
        lines += _filesystem(mount)
        lines += _abilities(logdir, mount)
    lines += _ways(_home(logdir))
    return lines


def _home(logdir: str) -> Home:
    """Where a run is kept, or would be."""
    if not is_url(logdir) and not is_own_folder(logdir) and spool_of(aside := beside(logdir)).exists():
        return aside  # `sync` has made it
    home = find(logdir)
    if home.way is not Way.STAGED and not spool_of(home).exists():
        _try_directory(home.run_dir)
    return home


def _try_directory(path: str) -> None:
    """Make and remove a directory where a run directory, or a spool in it, would be made."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".hf_mpwriter-probe-{os.geteuid()}-", dir=nearest(path)[0]))
    except NotADirectoryError as error:
        raise no_directory(path, error) from error
    except OSError as error:
        raise unwritable(path, error) from error


def _filesystem(mount: Mount | None) -> Iterable[tuple[str, str]]:
    if mount is None:
        return [("filesystem", "not known on this system")]
    return [("filesystem", mount.fstype), ("source", mount.source), ("mounted at", mount.point)]


def _abilities(logdir: str, mount: Mount | None) -> Iterable[tuple[str, str]]:
    if mount is not None and mount.is_known:
        what = "all that is needed, as a disk of this host" if mount.is_local else "those of an object store"
        return [("abilities", f"{what}: known by the type, and not tried")]
    try:
        found = examine(logdir, mount, _is_seen)
    except OSError as error:
        return [("abilities", f"cannot be tried: {error.strerror} ({error.filename})")]
    return [(text, ANSWERS[getattr(found, name)]) for name, text in ABILITIES.items()]


def _is_seen(path: str) -> bool:
    """Whether another process sees a file and the lock on it."""
    quiet = subprocess.DEVNULL
    witness = subprocess.Popen([sys.executable, "-c", _WITNESS, path], stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        return witness.wait(PATIENCE) == 0
    except subprocess.TimeoutExpired as error:
        witness.kill()
        raise OSError(errno.ETIMEDOUT, "another process gets no answer there", path) from error


def _ways(home: Home) -> Iterable[tuple[str, str]]:
    meaning = {
        Way.DIRECT: "direct: all processes and hosts share the logdir and what is in it",
        Way.LOCAL_SPOOL: "local spool: each host uploads what its own processes log",
        Way.STAGED: "staged: written on this host, and copied to the logdir when a segment is complete",
    }
    yield "a run there is kept", meaning[home.way]
    yield "because", home.why or "the filesystem can do what is needed"
    yield "event files", home.run_dir
    yield "spool", home.spool


def print_aligned(lines: list[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name.ljust(width)}  {printable(text)}")
