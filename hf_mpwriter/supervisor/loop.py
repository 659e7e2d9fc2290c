"""The supervisor: one loop that starts a program, passes signals on, collects zombies, and sees the data off.

    signalfd   SIGCHLD: collect          SIGTERM, ...: pass on, ask for a push
    socket     a worker tells its run directory
    clock      kill, leave

It decides by `decision`, acts through `program`, and has what was logged sent by `drain`.

Invariants:
- It sleeps until something happens, and looks around every TICK seconds only while something ends.
- It ends in time, whatever disks and processes do.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from hf_mpwriter.base.job import rank_of, world_size_of
from hf_mpwriter.base.settings import DEFAULT_EXIT_TIMEOUT, Environment
from hf_mpwriter.delivery.sentences import report
from hf_mpwriter.supervisor import drain, program
from hf_mpwriter.supervisor.decision import (
    ENDING,
    PASSED_ON,
    Moment,
    NextStep,
    decide,
    exit_code,
    is_passed_on,
    kill_after,
)
from hf_mpwriter.supervisor.drain import Drain, Followed
from hf_mpwriter.supervisor.program import Program
from hf_mpwriter.system import contact, kernel, launch
from hf_mpwriter.system.kernel import Received, SignalQueue
from hf_mpwriter.worker import role

TICK = 0.1  # seconds
MARGIN = 1.0  # seconds in which a process that has waited for the Hub can still end
RANKS_WAIT = 5.0  # seconds after the end of the program, in which all of its ranks is derived
WITH_PEERS = 10.0  # seconds that a rank which fails waits at most: its peers restart after it has ended


def supervise(
    command: Sequence[str],
    environ: Mapping[str, str],
    grace: float,
    *,
    before: Callable[[], int] | None = None,
    followed: Mapping[str, Followed] = MappingProxyType({}),
    ranks: bool = False,
) -> int:
    """Run a program, and see it and its data through their end; the exit code.

    `before`: what its process does first; the program starts if that is 0, else it is the exit code.
    """
    kernel.adopt_orphans()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some daemons leave it, no exit code could be had
    # a signal that is blocked comes although it is ignored, as by nohup
    ignored = {number for number in ENDING if signal.getsignal(number) == signal.SIG_IGN}
    queue = SignalQueue({*PASSED_ON, signal.SIGCHLD} - ignored)
    inbox = contact.Inbox()
    below = environment_below(environ, inbox.name, grace)
    shares_group = program.has_terminal()
    child = Program(command, below, queue.mask_before, own_group=not shares_group, before=before)
    has_peers = (world_size_of(environ) or 1) > 1
    supervisor = Supervisor(
        child, queue, inbox, grace, shares_group=shares_group, has_peers=has_peers, derives_ranks=ranks
    )
    quiet = rank_of(environ) not in (None, 0)
    supervisor.drain.follow(followed, (lambda _: None) if quiet else drain.say)
    if followed:
        supervisor.drain.start()
    code = supervisor.run()
    for end in supervisor.drain.outcomes:
        if line := report(end, is_first=os.getpid() == 1, is_quiet=quiet):
            drain.say(line)
        if end.lost:
            drain.say(f"{end.run_dir}: {end.lost}")
    return code


def environment_below(environ: Mapping[str, str], name: str, grace: float) -> dict[str, str]:
    """The environment of the program: no process of it waits at its end until it is killed, or longer than ever."""
    rank, longest = rank_of(environ), max(0.0, kill_after(grace) - MARGIN)
    given = Environment.read(environ).exit_timeout
    told = contact.value(name, None if rank is None else role.launch_time(rank, environ))
    timeout = min(DEFAULT_EXIT_TIMEOUT if given is None else given, longest)  # this process goes on waiting
    return {**environ, contact.VARIABLE: told, "HF_MPWRITER_EXIT_TIMEOUT": f"{timeout:g}"}


class Supervisor:
    """The state between two turns of the loop."""

    def __init__(
        self,
        child: Program,
        queue: SignalQueue,
        inbox: contact.Inbox,
        grace: float,
        *,
        shares_group: bool,
        has_peers: bool,
        derives_ranks: bool,
    ) -> None:
        self._child, self._queue, self._inbox = child, queue, inbox
        self._grace, self._shares_group = grace, shares_group
        self._has_peers = has_peers
        self._derives_ranks = derives_ranks  # whether `hf-mpwriter ranks` is to follow each run directory
        self.drain = Drain()
        self._ranks: dict[str, int] = {}  # its process ids, while they live
        self._signalled_at: float | None = None
        self._ended_at: float | None = None
        self._passed: list[int] = []  # signals that the program has got
        self._told: set[tuple[int, int]] = set()  # adopted processes that have got the first of them
        self._is_impatient = self._has_called = self._is_finishing = False

    def run(self) -> int:
        """Turn until it is over; the exit code of the program."""
        poll = select.poll()
        poll.register(self._queue.fd, select.POLLIN)
        poll.register(self._inbox.fd, select.POLLIN)
        while not self._turn():
            is_ending = self._signalled_at is not None or self._ended_at is not None
            poll.poll(1000 * TICK if is_ending else None)
        status = self._child.status
        return exit_code(-signal.SIGKILL if status is None else status)

    def _turn(self) -> bool:
        for received in self._queue.read():
            self._take(received)
        self._child.reap()
        # as process 1, what sees that uploaders live has perhaps collected it, in its thread
        self._ranks = {run_dir: pid for run_dir, pid in self._ranks.items() if not launch.has_ended(pid)}
        for run_dir in self._inbox.read():
            self.drain.add(run_dir)
            if self._derives_ranks and run_dir not in self._ranks:
                self._start_ranks(run_dir)
        if self._child.status is not None and self._ended_at is None:
            self._ended_at = time.monotonic()
        moment = self._moment()
        if moment.is_over and not self._is_finishing and not self._awaits_ranks(moment):
            self._is_finishing = True
            self.drain.finish()
        return self._act(decide(moment))

    def _start_ranks(self, run_dir: str) -> None:
        try:
            with open(os.devnull, "wb") as nothing:
                self._ranks[run_dir] = launch.start("ranks", b"", run_dir, {1: nothing.fileno()})
        except OSError as error:
            self._derives_ranks = False
            drain.say(f"{run_dir}: nothing is derived of all ranks: {error.strerror or error}")

    def _awaits_ranks(self, moment: Moment) -> bool:
        """Whether what is derived of all ranks is still to come: that ends by itself when no worker lives."""
        return bool(self._ranks) and not self._is_impatient and moment.now - (moment.ended_at or 0.0) < RANKS_WAIT

    def _take(self, received: Received) -> None:
        number = received.number
        if number == signal.SIGCHLD:
            return
        self._is_impatient = self._is_impatient or (number == signal.SIGINT and self._ended_at is not None)
        is_there = received.of_terminal and self._shares_group
        if is_passed_on(number, self._passed, is_there=is_there):
            self._child.send(number)
        self._passed.append(number)
        if number in ENDING and self._signalled_at is None:
            self._signalled_at = time.monotonic()
            self.drain.ask()

    def _moment(self) -> Moment:
        now, is_alone = time.monotonic(), True
        if self._signalled_at is not None and self._ended_at is not None and not self._is_finishing:
            is_alone = self._pass_on_to_adopted()
        failed = self._child.status not in (None, 0) and self._signalled_at is None
        return Moment(
            now,
            min(self._grace, WITH_PEERS) if failed and self._has_peers else self._grace,
            self._signalled_at,
            self._ended_at,
            is_alone=is_alone,
            is_drained=self._is_finishing and self.drain.is_over,
            is_impatient=self._is_impatient,
            has_called=self._has_called,
        )

    def _pass_on_to_adopted(self) -> bool:
        """Pass the first signal to what the program has left behind; whether that is nothing."""
        left = program.adopted()
        first = next(number for number in self._passed if number in ENDING)
        for one in set(left.items()) - self._told:
            kernel.send(*one, first)
        self._told.update(left.items())
        return not left

    def _act(self, action: NextStep) -> bool:
        """Act; True if it is over."""
        if action is NextStep.ASK:
            self._has_called = True
            self.drain.ask()
        elif action is NextStep.KILL:
            self._child.send(signal.SIGKILL)
            for one in program.descendants().items():
                kernel.send(*one, signal.SIGKILL)
        return action is NextStep.LEAVE
