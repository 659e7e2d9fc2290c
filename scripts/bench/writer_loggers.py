"""What `writer.py` compares: kinds of calls, and the writers that receive them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib.writers import OURS, TBX, TORCH, has_torch, make_writer

from hf_mpwriter.events.framing import frame, payloads

BARE = "os.write"
TAGS = [f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy", "lr", "grad_norm")]
QUEUE_POLL = 0.0005  # seconds between two checks of tensorboardX's queue


@dataclass(frozen=True)
class Case:
    """One kind of call."""

    name: str  # in the table
    method: str  # of a SummaryWriter
    values: list[Any]  # to log in turn
    tight: tuple[int, int]  # batches per round, calls per batch
    paced: tuple[int, int]  # the same for paced calls

    def arguments(self, first_step: int, count: int) -> list[tuple[Any, ...]]:
        """Return the arguments of `count` calls."""
        tags, values = len(TAGS), len(self.values)
        return [(TAGS[i % tags], self.values[i % values], first_step + i) for i in range(count)]


def make_cases() -> list[Case]:
    """Return all kinds of calls."""
    import numpy as np

    rng = np.random.default_rng(0)
    floats = rng.random(1000).tolist()
    words = "".join(chr(97 + n) if n < 26 else " " for n in rng.integers(0, 30, 240))
    cases = [
        Case("scalar", "add_scalar", floats, (5, 2000), (2, 300)),
        Case("scalar of numpy", "add_scalar", [np.float32(x) for x in floats], (3, 1000), (1, 200)),
        Case("histogram 10k", "add_histogram", [rng.normal(size=10_000)], (3, 150), (2, 100)),
        Case("image 3x224x224", "add_image", [rng.random((3, 224, 224), dtype=np.float32)], (2, 30), (1, 30)),
        Case("text 240", "add_text", [words], (3, 500), (1, 200)),
    ]
    if has_torch():
        import torch

        cases.insert(2, Case("scalar of torch", "add_scalar", [torch.tensor(x) for x in floats], (3, 1000), (1, 200)))
    return cases


class Logger(Protocol):
    """A writer to measure."""

    def calls(self, case: Case, first_step: int, count: int) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
        """Return what to call, and the arguments of each call."""

    def drain(self) -> None:
        """Wait until the queue is empty."""

    def sync(self) -> None:
        """Write everything to the disk, so that no other batch pays for it."""

    def close(self) -> None:
        """Close the files."""


class Writer:
    """Our writer, which has no queue."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def calls(self, case: Case, first_step: int, count: int) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
        """Return the bound method: nothing comes between."""
        return getattr(self.writer, case.method), case.arguments(first_step, count)

    def drain(self) -> None:
        """Return at once: there is no queue."""

    def sync(self) -> None:
        """Call `flush`."""
        self.writer.flush()

    def close(self) -> None:
        """Call `close`."""
        self.writer.close()


class TbxWriter(Writer):
    """tensorboardX's writer: `flush` does not wait for its queue."""

    def drain(self) -> None:
        """Wait until its thread has taken everything."""
        while self.writer.file_writer.event_writer._event_queue.qsize():  # noqa: SLF001 - there is no public way
            time.sleep(QUEUE_POLL)


class TorchWriter(Writer):
    """torch's writer: `flush` waits for its queue."""

    def drain(self) -> None:
        """Wait until its thread has written everything."""
        self.writer.flush()


class BareWrite:
    """The lower bound: the bytes that our writer would write, by `os.write` to a file opened for appending."""

    def __init__(self, directory: Path) -> None:
        self.scratch = directory / "scratch"
        self.fd = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.records: dict[tuple[str, int], list[bytes]] = {}

    def calls(self, case: Case, first_step: int, count: int) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
        """Return `os.write` and records, which our writer made before the clock starts."""
        records = records_of(self.scratch, case, first_step, min(count, 64))
        return os.write, [(self.fd, records[i % len(records)]) for i in range(count)]

    def drain(self) -> None:
        """Return at once: there is no queue."""

    def sync(self) -> None:
        """Call `fsync`."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Call `close`."""
        os.close(self.fd)


def records_of(directory: Path, case: Case, first_step: int, count: int) -> list[bytes]:
    """Return the framed records that our writer makes of some calls."""
    with make_writer(OURS, directory) as writer:
        for arguments in case.arguments(first_step, count):
            getattr(writer, case.method)(*arguments)
    found = list[bytes]()
    for path in sorted(directory.glob("*tfevents*")):
        _version, *records = payloads(str(path))
        found += map(frame, records)
    shutil.rmtree(directory)
    return found


def make_loggers(directory: Path) -> dict[str, Logger]:
    """Return everything that is compared, each with its own directory."""
    loggers: dict[str, Logger] = {
        OURS: Writer(make_writer(OURS, directory / "ours")),
        TBX: TbxWriter(make_writer(TBX, directory / "tensorboardX")),
        BARE: BareWrite(directory),
    }
    if has_torch():
        loggers[TORCH] = TorchWriter(make_writer(TORCH, directory / "torch"))
    return loggers
