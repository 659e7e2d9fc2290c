"""All that one worker tells of a run with a destination, and when that is over.

housekeeping     notices, and what becomes of the upload; not of an outage while a wait at the end tells of it
a long wait      where the run goes, before anything that is told of the wait
end of the run   the notices that came meanwhile; then: done: 8.3 kB in 3 commits: LINK
"""

from __future__ import annotations

import dataclasses
import time

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.delivery.sentences import done
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.worker.messages.notices import Notices
from hf_mpwriter.worker.messages.reporter import Reporter, ToldRecord
from hf_mpwriter.worker.messages.upload import UploadMessages


class RunMessages:
    """All that one worker tells of a run with a destination."""

    def __init__(self, spool: Spool, destination: Destination, reporter: Reporter, started_at: float) -> None:
        self._spool, self._destination, self._reporter = spool, destination, reporter
        self._notices, self._upload = Notices(spool, started_at), UploadMessages(started_at)

    @property
    def told(self) -> str:
        """What the user knows of an outage that goes on, "" if there is none."""
        return self._upload.told

    def tell(self, *, at_end: bool = False) -> None:
        """Log what is new, as far as it is for this process to tell it."""
        self._notices.tell(self._spool, reports=self._reporter.reports)
        if not at_end:
            self._upload.tell(self._spool, self._destination, self._reporter)

    def begin(self) -> None:
        """Tell where the run goes, if this process reports and that was not told yet: the first line of all."""
        status = UploaderStatus.newest(self._spool)
        self._begin(status.repo_id, private=status.private)

    def _begin(self, repo_id: str, *, private: bool | None) -> None:
        if self._reporter.reports:
            self._upload.begin(self._spool, self._destination, repo_id, private=private)

    @property
    def done_at(self) -> float:
        """Unix time when it was told last that all is there, 0 if it was not."""
        return ToldRecord.read(self._spool.told).done

    def done(self, ledger: Ledger, since: float) -> None:
        """Tell that all is there: the last member has left."""
        self._begin(ledger.repo_id, private=ledger.private)
        record = ToldRecord.read(self._spool.told)
        if record.done < since:
            dataclasses.replace(record, done=time.time()).save(self._spool.told)
            logger.info("%s", done(ledger, self._destination))
