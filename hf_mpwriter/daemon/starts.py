"""A start: what a daemon is given.

    start record    {"run_dir": "/home/me/runs/exp1", "destination": {"endpoint": "...", ...},
                     "token_issued_at": 1795236610.0, "seeks_siblings": true, "nodes": {...}}

Invariant: the token travels in the environment of the uploader, and it belongs to one endpoint. What stands in the
files of a spool is input: others may have written it. So the destination of an uploader is the one of its start record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import Nodes, nodes_of
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.spool.layout import RunPaths, Spool
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import DaemonStatus, SamplerStatus, UploaderStatus
from hf_mpwriter.system import disk, launch
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours

STATUSES: dict[str, type[DaemonStatus]] = {kind.daemon: kind for kind in (UploaderStatus, MirrorStatus, SamplerStatus)}


@dataclass(frozen=True, kw_only=True)
class StartRecord(RunPaths):
    """What an uploader needs to know at its start."""

    destination: Destination  # the only one that it sends to
    token_issued_at: float = 0.0  # unix time when the worker that brings the token joined
    seeks_siblings: bool = False  # whether it starts uploaders of unfinished runs beside this one
    nodes: Nodes = field(default_factory=Nodes)  # of the job that the worker belongs to


@dataclass(frozen=True, kw_only=True)
class MirrorStart(RunPaths):
    """What a mirror needs to know at its start."""

    to: str  # the logdir: an absolute path, or a URL


@dataclass(frozen=True, kw_only=True)
class SamplerStart(RunPaths):
    """What a sampler needs to know at its start."""

    settings: Settings = field(default_factory=Settings)  # of the run


AnyStart = StartRecord | MirrorStart | SamplerStart
StartT = TypeVar("StartT", bound=AnyStart)


def uploader_start(
    spool: Spool, destination: Destination, token_issued_at: float, *, seeks_siblings: bool = False
) -> StartRecord:
    """The start record of an uploader of a run."""
    return StartRecord(
        **vars(spool.paths),
        destination=destination,
        token_issued_at=token_issued_at,
        seeks_siblings=seeks_siblings,
        nodes=nodes_of(os.environ),
    )


@contextlib.contextmanager
def opened(spool: Spool, log: Place) -> Iterator[dict[int, int]]:
    """The run directory, the spool and a log, for what is started: descriptors by the numbers that they get there."""
    fd = disk.open_anew(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # no pipe without a reader
    try:
        yield {launch.RUN_DIR_FD: spool.run.fd, launch.SPOOL_FD: spool.directory.fd, 1: fd, 2: fd}
    finally:
        os.close(fd)


def inherited(kind: str, start: type[StartT]) -> tuple[StartT, Spool]:
    """What this process was started with: its start record, and the spool of its run."""
    record = state.load(start, launch.read_record())
    try:
        return record, Spool.adopt(record, launch.RUN_DIR_FD, launch.SPOOL_FD)
    except ours(HfMpWriterError) as error:
        raise SystemExit(f"no {kind}: {error}") from None
