"""What the uploader does next: a pure function of its situation. The first row that fits decides.

    situation                                                                   action
    workers are gone and there was no progress for as long as it stays          LEAVE
    workers are gone, and a sampler is about to seal its file                   WAIT
    after SIGTERM or `stop` no try is allowed, or the last one is made, no orphan LEAVE; WAIT for a live bucket
    event files are wanted: they wait, are due, or SIGTERM asks for a last try  SCAN or PUSH; WAIT if no try is allowed
    attachments are due, no commit without a parent may be under way            ATTACH
    workers are gone, nothing is left, no refused path is to be tried soon,
      a live bucket has all                                                     LEAVE
    any other                                                                   WAIT

PUSH sends batches that are up to date, halves of a refused batch, and what waits while a commit may be under way. In
any other case SCAN comes first.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hf_mpwriter.spool.status import LONGEST_STAY

SHARE = 0.004  # of a core, for looks at the members
LONGEST_PAUSE = 5.0  # seconds


class Action(enum.Enum):
    """What to do next."""

    SCAN = enum.auto()  #: scan the event files, put what is new into the outbox
    PUSH = enum.auto()  #: start a push for the oldest batch
    ATTACH = enum.auto()  #: scan attachments, or push what was found of them
    WAIT = enum.auto()  #: nothing to do, or nothing allowed yet
    LEAVE = enum.auto()  #: give the uploader lock up


class Outgoing(enum.Enum):
    """The batches of event files that wait."""

    NONE = enum.auto()  #: the outbox is empty -> SCAN makes it STALE or READY
    STALE = enum.auto()  #: more may be on disk by now: scanned before the last failure -> SCAN
    READY = enum.auto()  #: as of the last scan -> PUSH
    SPLIT = enum.auto()  #: halves of a refused batch, sent as they are -> PUSH


class Attached(enum.Enum):
    """The attachments."""

    OVER = enum.auto()  #: no worker lives, and all was scanned and sent
    LATER = enum.auto()  #: to be scanned, not yet
    DUE = enum.auto()  #: may be scanned or sent now
    STARVED = enum.auto()  #: due for so long that event files must be taking all the time there is


class Ending(enum.Enum):
    """What SIGTERM, or `stop`, has led to."""

    NOT_ASKED = enum.auto()  #: neither has come -> ASKED
    ASKED = enum.auto()  #: one last scan and push are to come -> TRIED
    TRIED = enum.auto()  #: the last push has started, or there was nothing to push


@dataclass(frozen=True)
class Situation:
    """All that `decide` may know."""

    living: int  # members that live
    is_abandoned: bool  # whether it is long ago that a member was seen alive, or the Hub took something
    may_try: bool  # whether a push may start now
    due: bool  # whether the commit interval is over, or a request, a death or an end is not satisfied yet
    outgoing: Outgoing  # the batches of event files that wait
    settling: bool  # whether a request without a parent may still be under way; then nothing newer is sent
    attached: Attached  # the attachments
    ending: Ending  # what SIGTERM, or `stop`, has led to
    orphaned: bool  # whether a member has gone whose last records may not be sent
    undecided: bool = False  # whether the Hub has refused a path, but not often enough to be believed
    # whether workers are gone, and a sampler is about to seal its file: what is sent is to have it whole
    sealing: bool = False
    bucket_is_behind: bool = False  # whether a live bucket lacks something that may still get there


def decide(s: Situation) -> Action:
    """The next action."""
    if not s.living and s.is_abandoned:
        return Action.LEAVE
    if _is_at_the_end(s):
        return Action.WAIT if s.bucket_is_behind else Action.LEAVE
    if s.sealing and s.ending is Ending.NOT_ASKED:
        return Action.WAIT
    if _is_wanted(s):
        return _send(s) if s.may_try else Action.WAIT
    if s.attached in (Attached.DUE, Attached.STARVED) and not s.settling and s.may_try:
        return Action.ATTACH
    is_open = s.settling or s.undecided or s.bucket_is_behind or s.attached is not Attached.OVER
    return Action.WAIT if s.living or is_open else Action.LEAVE


def abandoned_for(now: float, since: float, waited_until: float) -> float:
    """Seconds that an uploader has been without workers, progress and a wait that is not its own."""
    return now - max(since, min(waited_until, since + LONGEST_STAY))


def pause(least: float, look_took: float, until_push: float | None) -> float:
    """Seconds until the next tick: looks at thousands of members take no more than SHARE of a core.

    `until_push` is None if nothing waits.
    """
    if until_push is not None:
        return min(least, max(0.0, until_push))
    return max(least, min(LONGEST_PAUSE, look_took / SHARE))


def _is_at_the_end(s: Situation) -> bool:
    """Whether SIGTERM or `stop` has asked for the end, and no try is left."""
    if s.ending is Ending.NOT_ASKED:
        return False
    as_it_is = s.settling or s.outgoing is Outgoing.SPLIT
    return not s.may_try or (s.ending is Ending.TRIED and (as_it_is or not s.orphaned))


def _is_wanted(s: Situation) -> bool:
    """Whether event files are to be sent before anything else."""
    turn_of_attachments = s.attached is Attached.STARVED and s.living > 0 and not s.settling
    waiting = s.outgoing is not Outgoing.NONE or s.ending is not Ending.NOT_ASKED
    return waiting or (s.due and not turn_of_attachments)


def _send(s: Situation) -> Action:
    if s.outgoing in (Outgoing.READY, Outgoing.SPLIT):
        return Action.PUSH
    if s.settling:
        return Action.WAIT if s.outgoing is Outgoing.NONE else Action.PUSH
    return Action.SCAN
