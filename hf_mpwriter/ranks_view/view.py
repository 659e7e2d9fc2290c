"""The view of all ranks, as the uploader uses it: kept up to date while ranks live, complete when none does.

    keep_up(members)   every EVERY seconds; what is behind is taken in by parts, so that the uploader goes on
    is_behind          no worker lives, and the derived file is not sealed yet

    the ranks of          the derived run
    a run                 _all_ranks/
    a host of a run       _all_ranks/<host>/      where each host has a run directory, or an uploader, of its own

Invariants:
- It never fails an upload: an error is logged, and the view begins anew later from what is on disk. One that lasts, or
  that comes when no worker lives, is told to the user.
- The derived file is sealed when no worker lives, before the last batch is made, unless that takes longer than LONGEST.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection

from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.names import VIEW_DIRECTORY, event_host
from hf_mpwriter.ranks_view.following import Following
from hf_mpwriter.ranks_view.inputs import rank_of
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import ASK_FOR_ALL
from hf_mpwriter.spool.workers.share import is_apart
from hf_mpwriter.system.filesystem import mount_of_descriptor
from hf_mpwriter.system.process import host_name

logger = logging.getLogger("hf_mpwriter")

EVERY = 5.0  # seconds between two steps
PART, LAST_PART = 0.05, 1.0  # seconds that a step may take, while workers live and after that
LONGEST = 60.0  # seconds for which the end of an uploader waits for what is behind
PAUSE = 60.0  # seconds after an error


def is_of_another(path: str) -> bool:
    """Whether the uploader of another host has derived a file; that one sends it."""
    return path.startswith(f"{VIEW_DIRECTORY}/") and event_host(os.path.basename(path)) != host_name()


class RanksView:
    """The view of one run directory."""

    def __init__(
        self,
        spool: Spool,
        host: HostSpool,
        nodes: Nodes,
        clock: Callable[[], float],
        tell: Callable[[list[str]], object] = lambda _: None,
    ) -> None:
        self._tell, self._has_failed = tell, False  # in the step before
        self._spool, self._host, self._nodes, self._clock = spool, host, nodes, clock
        self._following: Following | None = None
        self._folder = ""
        self._next = 0.0
        self._over_since: float | None = None
        self._is_shared = False
        self.is_behind = False

    def keep_up(self, members: Collection[Member], elsewhere: Collection[str], *, is_wanted: bool) -> None:
        """Take in what is new, when it is time."""
        is_over = not any(member.works and member.name.worker not in ASK_FOR_ALL for member in members)
        if not is_wanted:
            self.close()
            return
        if not is_over:
            self.is_behind, self._over_since = False, None
        elif self._over_since is None:
            self.is_behind, self._over_since = True, self._clock()
        elif not self.is_behind:
            return
        if self._clock() < self._next and not is_over:
            return
        try:
            self._step(members, elsewhere, is_over=is_over)
        except OSError as error:
            why = ": ".join(filter(None, [error.strerror or str(error), error.filename]))
            self._failed(f"the view of all ranks is not up to date: {why}", is_over=is_over)
        except Exception as error:  # noqa: BLE001 - a fault of the view must not keep anything from the Hub
            self._failed(f"the view of all ranks has failed: {error!r}", is_over=is_over)

    def _step(self, members: Collection[Member], elsewhere: Collection[str], *, is_over: bool) -> None:
        folder, only_host = self._place(members, elsewhere)
        if folder != self._folder:
            self._seal()
            self._following, self._folder = None, folder
        if self._following is None:
            self._following = Following(self._spool, self._host, folder, only_host, self._clock)
        live = {rank for member in members if member.alive and (rank := rank_of(member.name.worker)) is not None}
        until = self._clock() + (LAST_PART if is_over else PART)
        is_done = self._following.step(live, until, is_over=is_over)
        self._has_failed = False
        self._next = self._clock() + (EVERY if is_done else 0.0)
        if self._over_since is not None and (is_done or self._clock() - self._over_since >= LONGEST):
            self._seal()
            self.is_behind = False

    def _place(self, members: Collection[Member], elsewhere: Collection[str]) -> tuple[str, str]:
        """The folder of the derived run, and of which host the event files are; "" for all."""
        own = self._host.root.basename
        self._is_shared = self._is_shared or any(member.name.host != own for member in members)
        if elsewhere or (self._nodes.count > 1 and not self._is_shared and self._is_of_this_host()):
            return f"{VIEW_DIRECTORY}/{host_name()}", host_name()
        return VIEW_DIRECTORY, ""

    def _is_of_this_host(self) -> bool:
        """Whether other hosts have a run directory of their own, as far as this one can tell."""
        mount, others = (
            mount_of_descriptor(self._spool.run.fd),
            set(self._spool.host_ids()) - {self._host.root.basename},
        )
        return is_apart(self._spool) or (mount is not None and mount.is_local and not others)

    def _failed(self, text: str, *, is_over: bool) -> None:
        if self._has_failed or is_over:
            self._tell([text])
        else:
            logger.info("%s", text)
        self._has_failed = True
        self._following, self.is_behind = None, False
        self._next = self._clock() + PAUSE

    def _seal(self) -> None:
        if self._following is not None:
            self._following.seal()

    def close(self) -> None:
        """Seal the derived file, whatever is missing."""
        self._seal()
        self._following, self.is_behind = None, False
