"""The judgement: whether a run is complete, waits, or needs a person, and what that person types.

| what is found, the first counts                          | state    | next                              |
|----------------------------------------------------------|----------|-----------------------------------|
| records wait in memory: the disk refuses them            | person   | free space                        |
| the disk has no room for what the uploader notes         | person   | free space, then sync             |
| the destination is refused                               | person   | what helps, then sync             |
| uploader or mirror is stopped, or silent                 | person   | kill -CONT, or stop and sync      |
| a file is refused by the Hub or by the logdir            | person   | sync, once the reason is mended   |
| an event file is damaged                                 | person   | restore it, then sync             |
| something is missing, and no process lives that sends it | person   | sync                              |
| something is missing                                     | waiting  |                                   |
| all is there, or there is nowhere to send it             | complete |                                   |

It is a pure function of the facts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_mpwriter.base.verdicts import Cause, Refused
from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.status.facts import RunFacts


class RunHealth(enum.Enum):
    """What becomes of a run; the value is the exit code."""

    COMPLETE = 0
    WAITING = 3
    PERSON = 4

    @property
    def word(self) -> str:
        """For people, and for programs."""
        return {"COMPLETE": "complete", "WAITING": "waiting", "PERSON": "needs you"}[self.name]


@dataclass(frozen=True)
class Judgement:
    """What becomes of a run."""

    state: RunHealth
    next: str = ""  # what is to be done, "" if nothing is


def judge(facts: RunFacts, logdir: str) -> Judgement:
    """Judge a run."""
    if trouble := next(_troubles(facts, logdir), ""):
        return Judgement(RunHealth.PERSON, trouble)
    is_waiting = facts.waiting or facts.missing_there
    return Judgement(RunHealth.WAITING if is_waiting else RunHealth.COMPLETE)


def _troubles(facts: RunFacts, logdir: str) -> Iterator[str]:
    """What a person has to do, the first thing first."""
    sync, uploader = command_line("sync", logdir), facts.hub.uploader
    if facts.in_memory:
        yield f"free space on the disk of {facts.run_dir}: what waits in memory is lost when its process ends"
    if facts.waiting and uploader.cause is Cause.DISK_FULL:
        yield f"{uploader.hint}; then: {sync}"
    if facts.waiting and uploader.kind == Refused.__name__:
        yield f"{uploader.hint.rstrip('. ')}; then: {sync}"
    if still := _stillness(facts):
        yield f"{still}; if that does not help: {command_line('stop', logdir)}; then: {sync}"
    if facts.refused:
        yield f"see why {_named(list(facts.refused))} is refused; then: {sync}"
    if facts.there.refused or (facts.missing_there and facts.there.mirror.is_refused):
        what = _named(list(facts.there.refused)) if facts.there.refused else "the logdir"
        yield f"see why {what} is refused in {facts.there.to}; then: {sync}"
    if facts.damaged:
        then = f"; then: {sync}" if facts.hub.destination or facts.there.to else ""
        copy = f"restore {_named(facts.damaged)} from a copy, if you have one"
        yield f"{copy}: no upload brings what is behind the damage{then}"
    uploads = facts.hub.is_alive or facts.alive
    brings = facts.there.is_alive or facts.alive
    if (facts.waiting and not uploads) or (facts.missing_there and not brings):
        yield sync


def _stillness(facts: RunFacts) -> str:
    """What keeps a living process of ours from its work."""
    if facts.hub.is_alive and facts.waiting and (still := facts.hub.uploader.stillness(facts.now)):
        return still
    if facts.there.is_alive and facts.missing_there:
        return facts.there.mirror.stillness(facts.now)
    return ""


def _named(paths: Sequence[str]) -> str:
    return f"{paths[0]} (and {len(paths) - 1} more)" if paths[1:] else paths[0]
