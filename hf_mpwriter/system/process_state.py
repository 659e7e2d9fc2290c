"""Process state: what modules keep for this process, the locks between its threads, and what a fork does to both.

    before a fork   this thread waits for the fork mutex: no other one is at what it guards
    in the parent   the mutex is free
    in the child    the mutex and what other threads held is free; then the rules, that of the lowest module first

    system.locks._table                 its descriptors are closed, never unlocked: the parent keeps its locks
    system.failpoints.armed             stays
    base.arguments.fractions_are_cut    stays, as the patched classes do
    events.framing._headers             stays: a cache
    events.deferred_log.logger          what was collected is told by the parent
    spool.workers.members._numbers      stays: with the pid, no number comes twice
    worker.role._fork                   notes what the child has from its parent
    worker.role._first_rank_pid         stays: the pid is not that of the child
    worker.ending._in_vain              forgotten: the child has not waited
    worker.registry._workers            each leaves to the parent what it holds
    worker.registry._limits             nothing is open, nothing waits
    worker.messages._told               stays: a child says nothing again
    worker.looking._mounts              stays
    worker.looking._left                stays: the system says that they are no children of the child
    writer.hf_summary_writer._resolvers stays: the threads in it are seen to be none of the child
    integrations.patching._undo         stays, as the patched classes do
    integrations.transformers._runs     stays

Invariants:
- The table is complete; a rule is given to `after_fork` and to nothing else. A test compares both with the source.
- A module gives its rule when it is imported, after those that it imports: so the lowest comes first.
- A thread can tell whether it holds a lock between threads: `thread_lock` makes all of them. Before a logger or
  anything of the user's is called, it asks.
- A child that a signal handler forks inside a call goes on in what the call holds. That does not count as held: a
  child that never returns from the handler could not tell anything.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable

_thread_locks: set[weakref.ref[threading.RLock]] = set()  # all that live
_held_at_fork: set[weakref.ref[threading.RLock]] = set()  # those that a signal handler's call held when it forked


def thread_lock() -> threading.RLock:
    """A lock between the threads of this process. It is re-entrant: a signal handler may log while it is held."""
    lock = threading.RLock()
    _thread_locks.add(weakref.ref(lock, _thread_locks.discard))
    return lock


def thread_condition() -> threading.Condition:
    """What a thread of this process waits for, with such a lock."""
    return threading.Condition(thread_lock())


def is_held_here(lock: threading.RLock) -> bool:
    """Whether this thread holds a lock."""
    return bool(lock._is_owned())  # type: ignore[attr-defined] # noqa: SLF001 - as threading.Condition does


def is_any_held() -> bool:
    """Whether this thread holds a lock of ours, the fork mutex included; then it must call nothing of the user's."""
    living = (ref() for ref in _thread_locks - _held_at_fork)
    return any(is_held_here(lock) for lock in living if lock is not None)


class Turn:
    """The right to do something, which one thread has at a time and for which none waits.

    It ends after a time: an interrupt may come before it is given back, and a step may hang.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = thread_lock()  # for a moment
        self._until = -math.inf  # of the turn that is taken

    def take(self, step: Callable[[], object], stuck_after: float) -> bool:
        """Do a step unless it is being done, by another thread or by this one, which a signal handler interrupts.

        Whether it was done.
        """
        until = None
        try:
            with self._lock:
                if self._clock() <= self._until:
                    return False
                until = self._until = self._clock() + stuck_after
            step()
        finally:
            if until == self._until:  # else it was stuck, and another thread has the turn
                self._until = -math.inf
        return True


fork_mutex = thread_lock()


def after_fork(rule: Callable[[], object]) -> None:
    """Let a module's rule run in each forked child."""
    os.register_at_fork(after_in_child=rule)


def _free_in_child() -> None:
    fork_mutex.release()
    for ref in _thread_locks.copy():
        lock = ref()
        if lock is not None and is_held_here(lock):
            _held_at_fork.add(ref)
        elif lock is not None:
            lock._at_fork_reinit()  # type: ignore[attr-defined] # noqa: SLF001 - as threading.Condition does


os.register_at_fork(before=fork_mutex.acquire, after_in_parent=fork_mutex.release, after_in_child=_free_in_child)
