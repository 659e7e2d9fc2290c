"""Checks of this machine: versions, disk, commits that are left, uploaders of this user and what they do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator

import psutil

from hf_mpwriter._version import __version__
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination, Environment
from hf_mpwriter.cli.destination import spool_at
from hf_mpwriter.cli.doctor.checks import Check, Health
from hf_mpwriter.cli.words import ago, sentence
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.filesystem.mounts import nearest
from hf_mpwriter.system.launch import is_command_of
from hf_mpwriter.uploader.pace.rate_limit import folders, tokens_left

LIBRARIES = ("huggingface_hub", "tensorboardX", "filelock", "psutil")
LITTLE, NOTHING = 1e9, 50e6  # bytes that are free on a disk
NAMED = 100  # uploaders that are named


def versions_check() -> Check:
    """The versions of what matters."""
    found = [f"hf-mpwriter {__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return Check("versions", Health.OK, ", ".join(found))


def on_different_disks(*paths: str) -> list[str]:
    """The first one of each disk."""
    found: dict[object, str] = {}
    for path in paths:
        try:
            disk: object = os.stat(nearest(path)[0]).st_dev
        except OSError:
            disk = path
        found.setdefault(disk, path)
    return list(found.values())


def disk_check(path: str) -> Check:
    """How much is free where a run is kept."""
    try:
        status = os.statvfs(nearest(path)[0])
    except OSError as error:
        return Check("disk", Health.FAIL, f"{path}: {error.strerror}", "Give another logdir")
    free = status.f_bavail * status.f_frsize
    text = f"{size_text(free)} free for {path}"
    if free < NOTHING or (status.f_files and not status.f_favail):
        return Check("disk", Health.FAIL, text, "Free space: what the disk refuses waits in memory")
    return Check("disk", Health.WARN if free < LITTLE else Health.OK, text, "Free space" if free < LITTLE else "")


def commits_check(spool: Spool, destination: Destination) -> Check:
    """How many commits the rate limit allows now."""
    limit = Environment.read().commits_per_hour
    left = tokens_left(destination, limit, folders(os.environ, spool.directory), time.time())
    text = f"{left:.0f} may go at once, {limit:.0f} per hour (HF_MPWRITER_COMMITS_PER_HOUR)"
    if left < 1:
        return Check("commits", Health.WARN, text, "Commits come slower; one run directory for all nodes needs fewer")
    return Check("commits", Health.OK, text)


def uploader_checks() -> Iterator[Check]:
    """The uploaders of this user on this machine, and what they do."""
    found = sorted(_uploaders())
    if not found:
        yield Check("uploaders", Health.OK, "none runs")
    for pid, run_dir in found[:NAMED]:
        yield _uploader_check(pid, run_dir)
    if len(found) > NAMED:
        yield Check("uploaders", Health.OK, f"{len(found) - NAMED} more")


def _uploaders() -> Iterator[tuple[int, str]]:
    """Process ids and run directories."""
    for process in psutil.process_iter(["cmdline", "uids"]):
        words, uids = process.info["cmdline"] or [], process.info["uids"]
        if uids is not None and uids.real == os.getuid() and is_command_of("uploader", words, None):
            at = words.index("-c") + 2 if "-c" in words else len(words)
            if at < len(words):
                yield process.pid, words[at]


def _uploader_check(pid: int, run_dir: str) -> Check:
    name = "uploader"
    try:
        status: UploaderStatus = Progress(spool_at(run_dir)).uploader()
    except (HfMpWriterError, OSError, ValueError) as error:
        return Check(name, Health.WARN, f"{run_dir}, process {pid}: {error}")
    text = f"{run_dir}, process {pid}"
    if status.pid != pid:
        return Check(name, Health.OK, f"{text}, has not said yet what it does")
    if still := status.stillness(time.time()):
        return Check(name, Health.WARN, f"{text}: {still}")
    text += f": {status.phase}, last seen {ago(time.time() - status.beat)}"
    if status.failures:
        return Check(name, Health.WARN, f"{text}; {status.reason}", sentence(status.hint))
    return Check(name, Health.OK, text)
