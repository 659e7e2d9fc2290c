"""Who uploads here, and the workers that this uploader answers for.

    locks reach from host to host     one uploader: all members are here
    they do not                       one for each host: of the others, those are here whose uploader has been silent
                                      for minutes, or has left
    each host has a spool of its own  the members of this host, and what others seem to have left; see
                                      `spool/workers/peers`

Invariant: no member of an uploader that may live counts as dead before that one can have said so.
"""

from __future__ import annotations

import time

from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import OBSERVER, Members
from hf_mpwriter.spool.workers.peers import Share, is_apart, living_others
from hf_mpwriter.uploader.pacing import Clocks

LOOK_EVERY = 5.0  # seconds between two looks for uploaders of other hosts
SWEEP_EVERY = 60.0  # seconds between two looks for member files that cannot be read
LOCKS_DO_NOT_REACH = "locks do not reach from host to host here, so each host has an uploader; this one is beside"


class Peers:
    """The members of a run directory, and the other hosts that have an uploader; nothing is known before a look."""

    def __init__(self, spool: Spool, host: HostSpool, status: StatusFile, clocks: Clocks) -> None:
        self._spool, self._host, self._status, self.clocks = spool, host, status, clocks
        self._share, self._logdir = Share(spool, clocks.now), LogdirSink(spool) if is_apart(spool) else None
        self.here: list[Member] = []  # for which this uploader answers, as of the last look
        self.hosts = self._beside = self._left_to_others = frozenset[str]()  # hosts: that have an uploader of their own
        self._theirs: dict[str, frozenset[str]] = {}
        self.members = Members(spool, self.hosts)
        self.look_took = 0.0  # seconds of processor
        self._has_news = False  # whether looks have found what others were to send, or to bring
        self._is_returning = self._waits_for_others = self._for_all = False
        self._next_sweep = self._next_look = clocks.now()
        self._took_lock_at = clocks.there()
        # within so many seconds an uploader of another host that lives says so
        self._heard_within = 2 * clocks.timing.heartbeat_every
        self._heard_by = clocks.now() + self._heard_within

    def look(self) -> None:
        """Look who is here. OSError if the disk refuses; what was found until then counts."""
        if self.clocks.now() >= self._next_look:
            self._next_look = self.clocks.now() + LOOK_EVERY
            self._look_for_others()
        began = time.thread_time()
        here, everybody = [], self.members.all()
        self.look_took = time.thread_time() - began
        for member in everybody:
            if member.name.host in self.hosts:
                self._theirs[member.name.host] = self._theirs.get(member.name.host, frozenset()) | member.files
            else:
                here.append(member)
        self._left_to_others = frozenset().union(*self._theirs.values())
        self._waits_for_others = len(here) < len(everybody)
        self._for_all = any(member.works and member.name.worker == OBSERVER for member in here)
        self.here = here
        self._look_at_logdir()
        if self.clocks.now() >= self._next_sweep:
            self.sweep()

    @property
    def works(self) -> bool:
        """Whether a member that this uploader answers for is at work."""
        return any(member.works for member in self.here)

    def _look_for_others(self) -> None:
        beside = hosts = self._living_others(self._took_lock_at)
        if self.clocks.now() < self._heard_by:
            hosts = self._living_others(self._took_lock_at - self._heard_within)
        if beside - self._beside:
            self._status.notify([f"{LOCKS_DO_NOT_REACH}: {', '.join(sorted(beside))}"])
        self._has_news |= bool(self.hosts - hosts)
        self.hosts, self._beside = hosts, beside
        self.members.know(hosts)
        self._status.change(elsewhere=tuple(sorted(hosts)))
        self._theirs = {host: files for host, files in self._theirs.items() if host in hosts}

    def _living_others(self, since: float) -> frozenset[str]:
        return living_others(self._spool, self._host.root.basename, since, self.clocks.there)

    def _look_at_logdir(self) -> None:
        """See whether all has come from the logdir: the last scan may have come before that."""
        logdir = None if self.works else self._logdir
        had_to_come, self._is_returning = self._is_returning, logdir is not None and logdir.is_returning
        self._has_news |= had_to_come and not self._is_returning

    def take_news(self) -> bool:
        """Whether there is something to send of which the last scan cannot know; asked once."""
        had_news, self._has_news = self._has_news, False
        return had_news

    def sweep(self) -> None:
        """Remove member files that cannot be read."""
        self._next_sweep = self.clocks.now() + SWEEP_EVERY
        self.members.sweep()

    def takes(self, path: str) -> bool:
        """Whether a file is sent from here; `sync` asks for what others have left, too."""
        return (self._for_all or self._share.takes(path)) and path not in self._left_to_others

    @property
    def awaits_more(self) -> bool:
        """Whether more is to come although no worker lives here: of other hosts, or from a logdir."""
        return self._waits_for_others or self._is_returning
