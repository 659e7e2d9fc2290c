"""What the uploader does next: a pure function of its situation."""

from __future__ import annotations

import enum
from dataclasses import dataclass

LINGER = 600.0  # seconds that an uploader stays without workers and without any progress


class Action(enum.Enum):
    """What to do next."""

    SNAPSHOT = enum.auto()  #: survey the event files, put what is new into the queue
    PUSH = enum.auto()  #: start a push for the oldest entry
    ATTACH = enum.auto()  #: look at attachments, or push what was found of them
    WAIT = enum.auto()  #: nothing to do, or nothing allowed yet
    LEAVE = enum.auto()  #: nobody lives and nothing is left, or the Hub stays away too long


@dataclass(frozen=True)
class Situation:
    """All that `decide` may know; times are monotonic seconds.

    Attributes:
        now: the time.
        next_try: when a push is allowed again.
        next_commit: when the commit interval is over.
        fresh: whether the queue was filled after the last failure, so that its entries are up to date.
        frozen: whether the entries must be sent as they are (a request without a parent may be under way; a refused
            entry is being split).
        queued: entries that wait.
        urgent: somebody asked, died or closed, and is not served yet.
        living: members who live.
        abandoned_since: when a member was last seen alive, or the Hub last took something.
        settling: whether a request without a parent may still be under way.
        terminating: SIGTERM was received.
        tried: a push or an empty snapshot came after SIGTERM.
        orphaned: a member has gone, and what it logged last may not be sent.
        attachable: attachments may be looked at or sent.
        starved: they have been due for so long that commits must be taking all the time there is.
        attached: nothing is left to look at or to send of the attachments of those who have gone.
    """

    now: float
    next_try: float
    next_commit: float
    fresh: bool
    frozen: bool
    queued: int
    urgent: bool
    living: int
    abandoned_since: float
    settling: bool
    terminating: bool
    tried: bool
    orphaned: bool = False
    attachable: bool = False
    starved: bool = False
    attached: bool = True


def decide(s: Situation) -> Action:  # noqa: PLR0911 - one return per action
    """The next action."""
    if s.terminating and (s.now < s.next_try or (s.tried and (s.frozen or not s.orphaned))):
        return Action.LEAVE
    if s.living == 0 and s.now - s.abandoned_since > LINGER:
        return Action.LEAVE
    their_turn = s.attachable and s.starved and s.living > 0 and not s.frozen
    wanted = s.queued > 0 or s.terminating or ((s.urgent or s.now >= s.next_commit) and not their_turn)
    if wanted and s.now >= s.next_try:
        if s.queued and (s.fresh or s.frozen):
            return Action.PUSH
        return Action.WAIT if s.frozen else Action.SNAPSHOT
    if wanted:
        return Action.WAIT
    if s.attachable and not s.frozen and s.now >= s.next_try:
        return Action.ATTACH
    over = s.living == 0 and not s.settling and s.attached
    return Action.LEAVE if over else Action.WAIT
