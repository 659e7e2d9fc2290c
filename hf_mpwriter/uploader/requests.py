"""The audience of an uploader: which members it has heard, and whose wishes are fulfilled.

    member.news    grows when a member asks for a push, closes, or dies
    heard          its news at the last look: a difference is a reason to hurry
    served         its news when nothing of it was left to send

Whoever is not served is urgent if it has gone, or if the ledger has less than it asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.members import Member, Members, News
from hf_mpwriter.spool.outbox import Batch


class Requests:
    """What the members of one run directory want, and what they have got."""

    def __init__(self) -> None:
        self._heard = News()
        self._served = News()
        self._seen: tuple[list[Member], dict[str, LocalFile]] = ([], {})  # at the last snapshot

    def hear(self, member: Member) -> bool:
        """Whether there is news of a member since the last time."""
        if self._heard.has(member):
            return False
        self._heard.note(member)
        return True

    def keep(self, members: list[Member]) -> None:
        """Forget those who have no card any more."""
        self._heard.keep(members)
        self._served.keep(members)

    def is_served(self, member: Member) -> bool:
        """Whether nothing of it was left to send after its last news."""
        return self._served.has(member)

    def is_one_urgent(self, members: Iterable[Member], book: Ledger, settings: Settings) -> bool:
        """Whether event files of one of them should go at once."""
        return any(self.is_urgent(member, book, settings) for member in members)

    def is_one_orphaned(self, members: Iterable[Member]) -> bool:
        """Whether one of them has gone, and nobody else will ask for what it logged last."""
        return any(not member.alive and not self.is_served(member) for member in members)

    def is_urgent(self, member: Member, book: Ledger, settings: Settings) -> bool:
        """Whether its event files should go at once."""
        if self.is_served(member):
            return False
        return not member.alive or any(
            length > book.length(path) and path not in book.quarantined and settings.allows(path)
            for path, length in member.want.items()
            if not is_attachment(path)
        )

    def see(self, members: list[Member], files: Iterable[LocalFile]) -> None:
        """A snapshot is taken: of these members, with these files."""
        self._seen = members, {file.path: file for file in files}

    def serve(self, entries: Iterable[Batch], book: Ledger, roster: Members) -> None:
        """Note who, of those that the last snapshot saw, has nothing left in the queue.

        Cards of the dead go, unless a file of theirs is refused.
        """
        members, files = self._seen
        queued = {file.path for entry in entries for file in entry.files}
        for member in members:
            if member.files & queued:
                continue
            self._served.note(member)
            held = (book.covers(files[path]) for path in member.files if path in files)
            if not member.alive and all(held):
                roster.remove(member)

    def forget(self) -> None:
        """Nobody is served any more."""
        self._served.clear()
        self._seen = ([], {})
