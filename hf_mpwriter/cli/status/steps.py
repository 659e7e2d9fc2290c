"""`status --step N`: whether each worker's records of a step are on the Hub, by which commit, since when.

The ledger names, per file, the head at which its bytes were acknowledged last. So the commit has the step, and the Hub
had it at that time at the latest.

    the first counts                                        state
    the run needs a person                                  person
    no worker has logged it, and none may yet               person
    it was logged, and the run is local only                person
    all records of it are on the Hub, and every worker
    that may log it has done so                             complete
    else                                                    waiting
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_mpwriter.base.names import is_attachment, is_of_no_worker, worker_of
from hf_mpwriter.cli.destination import command_line
from hf_mpwriter.cli.status.facts import RunFacts
from hf_mpwriter.cli.status.judgement import Judgement, RunHealth
from hf_mpwriter.events.framing import FOOTER_SIZE, HEADER_SIZE, step_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Held
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.system import disk

CHUNK = 4 << 20  # bytes that are read at once
_LENGTH = struct.Struct("<Q")


@dataclass
class StepFacts:
    """What is known of a step of one worker."""

    worker: str  # its name
    records: int = 0  # of that step, here
    on_hub: int = 0  # of these, records that the Hub is known to hold
    last: int | None = None  # the highest step that it has logged, None if it has logged none
    may_log: bool = False  # whether it lives, or has an event file that may still grow
    held: Held | None = field(default=None, repr=False)  # by which the step is on the Hub, the newest of its files

    @property
    def is_there(self) -> bool:
        """Whether all records of the step are on the Hub."""
        return 0 < self.records == self.on_hub

    def to_json(self, facts: RunFacts) -> dict[str, Any]:
        """For programs."""
        held = self.held if self.is_there else None
        return {
            "worker": self.worker,
            "records": self.records,
            "on_hub": self.is_there,
            "commit": held.commit if held else None,
            "since": held.time if held else None,
            "url": facts.destination.commit_url(held.commit) if held and facts.destination else None,
            "last_step": self.last,
        }


def steps_of(spool: Spool, facts: RunFacts, step: int) -> list[StepFacts]:
    """What is known of a step of each worker."""
    ledger = Progress(spool).ledger()
    found = {one.name: StepFacts(one.name, may_log=one.state == "alive") for one in facts.workers}
    for file in facts.files:
        if is_attachment(file.path) or is_of_no_worker(file.path) or not file.size:
            continue
        name = worker_of(file.path)
        one = found.setdefault(name, StepFacts(name))
        one.may_log = one.may_log or file.growing
        before = one.records
        for end, at in _steps(spool, file.path, file.size):
            one.last = at if one.last is None else max(one.last, at)
            one.records += at == step
            one.on_hub += at == step and end <= file.on_hub
        held = ledger.files.get(file.path) if ledger else None
        if held and one.records > before and (one.held is None or held.time > one.held.time):
            one.held = held
    return sorted(found.values(), key=lambda one: (one.worker != "main", one.worker))


def judge_step(facts: RunFacts, judgement: Judgement, steps: Sequence[StepFacts], step: int, logdir: str) -> Judgement:
    """Judge a step."""
    if judgement.state is RunHealth.PERSON:
        return judgement
    logged = [one for one in steps if one.records]
    lacking = [one for one in steps if one.may_log and not one.records]
    if not logged and not lacking:
        last = max((one.last for one in steps if one.last is not None), default=None)
        highest = "no step was logged" if last is None else f"the last step is {last}"
        return Judgement(RunHealth.PERSON, f"ask for another step: no worker logged {step}, and none lives; {highest}")
    if logged and facts.destination is None:
        return Judgement(RunHealth.PERSON, command_line("sync", logdir, "--repo-id", "NAME"))
    if logged and not lacking and all(one.is_there for one in logged):
        return Judgement(RunHealth.COMPLETE)
    return Judgement(RunHealth.WAITING)


def _steps(spool: Spool, path: str, size: int) -> Iterator[tuple[int, int]]:
    """Of each record with a summary: where it ends, and its step. What is before `size` is known to be whole."""
    fd = disk.open_beneath(spool.run / path)
    try:
        position = 0
        while position < size:
            chunk = os.pread(fd, min(CHUNK, size - position), position)
            used = 0
            while used + HEADER_SIZE <= len(chunk):
                (length,) = _LENGTH.unpack_from(chunk, used)
                end = used + HEADER_SIZE + length + FOOTER_SIZE
                if end > len(chunk):
                    break
                if (step := step_of(chunk[used + HEADER_SIZE : end - FOOTER_SIZE])) is not None:
                    yield position + end, step
                used = end
            if not used:  # a record that is longer than a chunk: only its beginning is needed
                if len(chunk) < HEADER_SIZE:
                    return
                (length,) = _LENGTH.unpack_from(chunk)
                used = HEADER_SIZE + length + FOOTER_SIZE
                if (step := step_of(chunk[HEADER_SIZE:])) is not None:
                    yield position + used, step
            position += used
    finally:
        os.close(fd)
