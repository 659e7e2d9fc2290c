"""The teller: all that one worker tells of its run directory while it logs, and when that is over.

housekeeping     notices, and what becomes of the upload; not of an outage while a wait at the end tells of it
a long wait      where the run goes, before anything that is told of the wait
end of a wait    the notices that came meanwhile; then, by the last process: done: 8.3 kB in 3 commits: LINK
"""

from __future__ import annotations

import dataclasses
import time

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.progress import size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.telling.notices import Notices
from hf_mpwriter.worker.telling.upload import UploadMessages, resolved
from hf_mpwriter.worker.telling.voice import ToldRecord, Voice


class Teller:
    """All that one worker tells of a run with a destination.

    Args:
        spool: of the run directory.
        destination: of the run.
        voice: of the process.
        started_at: unix time when the attempt of the worker started; what was told in it is not told again.
    """

    def __init__(self, spool: Spool, destination: Destination, voice: Voice, started_at: float) -> None:
        self._spool, self._destination, self._voice = spool, destination, voice
        self._notices, self._upload = Notices(spool, started_at), UploadMessages(started_at)

    @property
    def told(self) -> str:
        """What the user knows of an outage that goes on, "" if there is none."""
        return self._upload.told

    def tell(self, *, at_end: bool = False) -> None:
        """Log what is new, if this process is the one that speaks.

        Args:
            at_end: whether it waits at its end, which tells of outages itself.
        """
        self._notices.tell(self._spool, self._voice.is_first)
        if not at_end:
            self._upload.tell(self._spool, self._destination, self._voice.is_first)

    def begin(self) -> None:
        """Tell where the run goes, if this process speaks and that was not told yet: the first line of all."""
        status = UploaderStatus.newest(self._spool)
        is_first, private = self._voice.is_first, status.private
        self._upload.end(self._spool, self._destination, status.repo_id, is_first, private=private)

    def done(self, ledger: Ledger, since: float) -> None:
        """Tell that all is there, if this is the last process that answers for something here.

        Args:
            ledger: what the Hub has.
            since: unix time when this process began to wait for that.
        """
        repo_id, private = ledger.repo_id, ledger.private
        self._upload.end(self._spool, self._destination, repo_id, self._voice.is_first, private=private)
        self._voice.give_up()
        with self._voice.last_word() as is_last:
            record = ToldRecord.read(self._spool.told)
            speaks = is_last and record.done < since  # else another one was the last at the same time
            if speaks:
                dataclasses.replace(record, done=time.time()).save(self._spool.told)
        if speaks:
            logger.info("%s", done(ledger, self._destination))


def done(ledger: Ledger, destination: Destination) -> str:
    """What the Hub has of a run, and where.

    Args:
        ledger: of the run.
        destination: of the run.
    """
    size, commits = sum(held.length for held in ledger.files.values()), sum(ledger.commits.values())
    counted = f" in {commits} commit{'s' * (commits != 1)}" if commits else ""
    return printable(f"done: {size_text(size)}{counted}: {resolved(destination, ledger.repo_id).url}")
