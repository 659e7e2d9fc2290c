"""The requests: what each member asks for, which of that is satisfied, and what SIGTERM or `stop` has led to.

    member.news    grows when a member asks for a push, closes, or dies
    noted          its news at the last tick: a difference is a reason to hurry
    satisfied      its news when nothing of it was left to send

A request is for all that its member has written by then, an observer's for all that is there. So a member that is not
satisfied is urgent; it is satisfied once a scan that came later has left nothing of it in the outbox. Where there is
nothing to send, the Hub is asked all the same: others may have changed what it has.

They outlast what is recovered from disk: an uploader that takes its lock back has been asked before.
"""

from __future__ import annotations

from collections.abc import Iterable

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_worker
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.workers.member_lines import Member, News
from hf_mpwriter.spool.workers.members import ASK_FOR_ALL, OBSERVER, Members, last_of
from hf_mpwriter.uploader.decision import Ending


class Requests:
    """What the members of one run directory ask for, and what they have got."""

    def __init__(self) -> None:
        self.audit = False  # whether `sync` asks, which trusts no ledger, and the Hub was not read back since
        self.asks = False  # whether a living worker asks, and the Hub was not asked since
        self.ending = Ending.NOT_ASKED
        self._noted = News()
        self._satisfied = News()
        self._scanned: tuple[list[Member], dict[str, LocalFile]] = ([], {})

    def note(self, member: Member) -> bool:
        """Take note of a member; True if there is news of it since the last time."""
        if self._noted.covers(member):
            return False
        self._noted.note(member)
        self.audit |= member.name.worker == OBSERVER and member.alive
        self.asks |= is_worker(member.name.worker) and member.alive
        return True

    def keep(self, members: list[Member]) -> None:
        """Forget the members that have no file any more, and requests that no process waits for."""
        self.asks = self.asks and any(is_worker(member.name.worker) and member.alive for member in members)
        self._noted.keep(members)
        self._satisfied.keep(members)

    def is_satisfied(self, member: Member) -> bool:
        """Whether nothing of a member was left to send after its last news."""
        return self._satisfied.covers(member)

    def any_urgent(self, members: Iterable[Member]) -> bool:
        """Whether event files of one of them should go at once."""
        return not all(map(self.is_satisfied, members))

    def any_orphaned(self, members: Iterable[Member]) -> bool:
        """Whether one of them has gone, so that nothing asks again for its last records."""
        return any(not member.alive and not self.is_satisfied(member) for member in members)

    def scanned(self, members: list[Member], files: Iterable[LocalFile]) -> None:
        """Remember who was there at a scan of the event files, and what it found."""
        self._scanned = members, {file.path: file for file in files}

    def satisfy(self, batches: Iterable[Batch], ledger: Ledger, registered: Members) -> list[str]:
        """Note which of the members of the last scan have nothing left in the outbox.

        The files of dead members go, unless one of their event files is quarantined. Of those that died, the last event
        files.
        """
        members, files = self._scanned
        died = list[str]()
        waiting = {file.path for batch in batches for file in batch.files}
        for member in members:
            asks_for_all = member.alive and member.name.worker in ASK_FOR_ALL
            if waiting if asks_for_all else member.files & waiting:
                continue
            self._satisfied.note(member)
            held = (ledger.covers(files[path]) for path in member.files if path in files)
            if not member.alive and all(held):
                registered.remove(member)
                died += [last_of(member.files)] if member.has_died else []
        return died

    def terminate(self) -> None:
        """SIGTERM, or `stop`, asks for one last try."""
        if self.ending is Ending.NOT_ASKED:
            self.ending = Ending.ASKED

    @property
    def is_ending(self) -> bool:
        """Whether SIGTERM or `stop` has asked for the end."""
        return self.ending is not Ending.NOT_ASKED

    def tried(self, *, is_last: bool) -> None:
        """Note a scan or a push; `is_last` if nothing is left behind it."""
        if self.is_ending:
            self.ending = Ending.TRIED if is_last else Ending.ASKED

    def forget(self) -> None:
        """Take all members for unsatisfied."""
        self._satisfied.clear()
        self._scanned = ([], {})
