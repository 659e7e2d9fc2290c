"""Decisions: what a supervisor does next, as pure functions.

    running --its program ends--> draining --all on the Hub, or no time left--> over
       |                              ^
       +--a signal that ends--> ending+      what remains is killed KILL_BEFORE seconds before the grace is over

    SIGTERM, SIGINT, SIGHUP, SIGQUIT    end: passed on once each; the grace begins with the first
    SIGUSR1, SIGUSR2                    passed on each time

    a signal goes to     while
    the program          it lives
    what was adopted     it has ended, because a shell between did not wait; each process gets it once
    no uploader          ever, nor its pushes

A signal that the terminal has sent to the whole process group, of which the program is a part, has reached it already.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from hf_mpwriter.system.process import Entry

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
KILL_BEFORE = 2.0  # seconds before the end of the grace
LEAVE_BEFORE = 0.4  # seconds before the end of the grace; what is said then, and the end of Python, take some
LAST_CALL = 8.0  # seconds before the kill, when a program that still works is asked for what it has logged meanwhile


class NextStep(enum.Enum):
    """What to do next."""

    WAIT = enum.auto()
    ASK = enum.auto()  #: for a push
    KILL = enum.auto()  #: what remains of the program
    LEAVE = enum.auto()


@dataclass(frozen=True)
class Moment:
    """All that the next action depends on."""

    now: float  # monotonic seconds
    grace: float  # seconds between a signal and the end
    signalled_at: float | None = None  # monotonic seconds of the first signal that ends, None without one
    ended_at: float | None = None  # monotonic seconds when the program ended, None while it lives
    is_alone: bool = True  # whether no adopted process is left but those of an upload
    is_drained: bool = False  # whether all is on the Hub, and its uploader has nothing left to do
    is_impatient: bool = False  # whether the user has interrupted the wait for the Hub
    has_called: bool = False  # whether the last call was made

    @property
    def is_over(self) -> bool:
        """Whether training is over: the program has ended, and after a signal also what it has left behind."""
        return self.ended_at is not None and (self.signalled_at is None or self.is_alone)

    @property
    def deadline(self) -> float | None:
        """Monotonic seconds when this process leaves at the latest, None while nothing has begun to end."""
        begun = [at for at in (self.signalled_at, self.ended_at) if at is not None]
        return min(begun) + self.grace - min(LEAVE_BEFORE, self.grace / 10) if begun else None

    @property
    def kill_at(self) -> float | None:
        """Monotonic seconds when what remains is killed, None without a signal."""
        return None if self.signalled_at is None else self.signalled_at + kill_after(self.grace)


def kill_after(grace: float) -> float:
    """Seconds between a signal and SIGKILL: KILL_BEFORE less than the grace, at least half of it."""
    return max(grace - KILL_BEFORE, grace / 2)


def decide(moment: Moment) -> NextStep:
    """The next action."""
    deadline, kill_at = moment.deadline, moment.kill_at
    if deadline is None:
        return NextStep.WAIT
    if moment.now >= deadline:
        return NextStep.LEAVE
    if moment.is_over:
        return NextStep.LEAVE if moment.is_drained or moment.is_impatient else NextStep.WAIT
    if kill_at is not None and moment.now >= kill_at:
        return NextStep.KILL
    if kill_at is not None and moment.now >= kill_at - LAST_CALL and not moment.has_called:
        return NextStep.ASK
    return NextStep.WAIT


def exit_code(status: int) -> int:
    """The exit code of a program: its own, or 128 and the number of the signal that has ended it."""
    return status if status >= 0 else 128 - status


def remaining(
    table: Mapping[int, Entry], top: int, is_upload: Callable[[int], bool], *, adopted: bool = False
) -> Iterator[int]:
    """The living descendants of a process that belong to no upload."""
    children: dict[int, list[int]] = {}
    for pid, entry in table.items():
        children.setdefault(entry.parent, []).append(pid)
    found, seen = list(children.get(top, ())), {top}
    while found:
        pid = found.pop()
        if pid in seen or is_upload(pid):  # what an uploader has started belongs to it
            continue
        seen.add(pid)
        if table[pid].state not in "ZX":
            yield pid
        if not adopted:
            found += children.get(pid, ())


def is_passed_on(number: int, passed: Container[int], *, is_there: bool) -> bool:
    """Whether a signal is passed on to the program."""
    return not is_there and (number not in ENDING or number not in passed)
