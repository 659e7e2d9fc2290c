"""The outcome of a push: what the verdict changes, in one order.

    Done     ledger saved -> record of what was in flight removed -> batch leaves its lane -> members are satisfied
    other    the lane splits, quarantines or waits -> ledger saved -> record removed -> the next push waits

Invariants:
- The log has one line for each commit, and one for each try that fails, with the time of the next.
- The ledger is on disk before the record of what was in flight goes, see `in_flight`.
- A failed push of attachments delays event files only if the Hub refuses the destination or asks for a pause.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Sent, Unknown, Verdict
from hf_mpwriter.base.words import size_text
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.status import StatusFile
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.sending import Sending

logger = logging.getLogger("hf_mpwriter")

TOLD_REFUSALS = 3  # refused files of one push that are told by name


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """What is told of a push that has ended."""

    verdict: Verdict
    attempts: int = 0  # that have failed in a row
    next_in: float = 0.0  # seconds until the next try
    is_outage: bool = False  # whether event files do not get to the Hub
    has_yielded: bool = False  # whether it was ended by this uploader itself, which is no failure
    notices: Sequence[str] = ()  # to the user

    @property
    def is_done(self) -> bool:
        """Whether the Hub has what was sent."""
        return isinstance(self.verdict, Done)

    def tell(self, status: StatusFile) -> None:
        """Have the status, the log and the user know."""
        status.notify(self.notices)
        if self.is_done:
            status.recovered()
        elif not self.has_yielded:
            status.failed(self.verdict, self.attempts, is_outage=self.is_outage)
            if isinstance(self.verdict, (Retry, Unknown, Refused)):
                logger.info("failed: %s; next try in %.0f s", self.verdict.reason.rstrip("."), self.next_in)


def conclude(sending: Sending, verdict: Verdict) -> Conclusion:
    """Take in the verdict on what was in flight."""
    verdict, lane, batch = sending.in_flight.end(verdict)
    if not isinstance(verdict, Done):
        return _fail(sending, verdict, lane, batch)
    if verdict.own:
        size = sum(new_bytes(sending.ledger, path, sent) for path, sent in verdict.files.items())
        logger.info("%s", pushed(verdict, size, sending.in_flight.took))
    _acknowledge(sending, verdict, lane, batch)
    return Conclusion(verdict)


def new_bytes(ledger: Ledger, path: str, sent: Sent) -> int:
    """How much of a file the Hub did not have: an event file grows, an attachment is replaced as a whole."""
    held = ledger.files.get(path)
    if held is None or is_attachment(path):
        return 0 if held is not None and held.sent == sent else sent.length
    return max(0, sent.length - held.length)


def pushed(verdict: Done, size: int, seconds: float) -> str:
    """What the log says of a commit."""
    count = len(verdict.files)
    files = f"{count} file{'s' * (count != 1)}"
    return f"pushed {size_text(size)} in {files}, commit {verdict.commit[:8]}, {seconds:.1f} s"


def _acknowledge(sending: Sending, verdict: Done, lane: Lane, batch: Batch) -> None:
    released = verdict.files.keys() & sending.ledger.quarantined.keys()
    carried = {file.path for file in batch.files if batch.has_attachments}
    if any(sending.ledger.is_ahead(path, sent) for path, sent in verdict.files.items() if path not in carried):
        _start_over(sending, "the Hub has less than it had: what is missing is sent again")
    sending.in_flight.acknowledge(verdict, batch)
    beside_others = None if sending.requests.audit else verdict.checked  # an audit reads back what was not moved, too
    sending.requests.audit = sending.requests.audit and not verdict.checked
    lane.done(batch, committed=verdict.own)
    if released:  # the later files of their writers waited for them, and what refused them may be over
        sending.scan_again()
        sending.retries.request()
    if sending.events.settings.squash_history:
        sending.in_flight.own_head = None
    sending.pacing.done(committed=verdict.own, beside_others=beside_others)


def _fail(sending: Sending, verdict: Verdict, lane: Lane, batch: Batch) -> Conclusion:
    sending.pacing.learn(verdict)
    sending.events.require_scan()
    is_known = not isinstance(verdict, Unknown)
    if is_known and not batch.has_attachments:  # the ledger has nothing to learn of these first
        sending.in_flight.clear()
    known = sending.ledger.quarantined.keys() | set()
    if isinstance(verdict, Quarantine) and not verdict.committed:
        _forget(sending.ledger, verdict.paths)
    verdict, step = lane.failed(verdict, batch)
    if batch.has_attachments or isinstance(verdict, Quarantine):
        sending.in_flight.save_ledger()
    if is_known:
        sending.in_flight.clear()
    refused = verdict.paths if isinstance(verdict, Quarantine) else {}
    if isinstance(verdict, Quarantine):
        lane.drop(batch)
        sending.scan_again()
    if lane is sending.attachments and (isinstance(verdict, Refused) or not step.may_hurry):
        sending.pacing.hold(step)
    return Conclusion(
        verdict,
        attempts=lane.backoff.attempts,
        next_in=max(0.0, sending.next_at - sending.clock()),
        is_outage=isinstance(verdict, Refused) or (lane is sending.events and isinstance(verdict, (Retry, Unknown))),
        has_yielded=lane.yielded,
        notices=_refusals({path: why for path, why in refused.items() if path not in known}),
    )


def _forget(ledger: Ledger, paths: Iterable[str]) -> None:
    """Claim nothing of event files in whose place a push has found something else on the Hub."""
    for path in paths:
        held = ledger.files.get(path)
        if held is not None and held.length and not is_attachment(path):
            gone = dataclasses.replace(held, length=0, sha256="", generation=held.generation + 1)
            ledger.files[path] = gone


def _refusals(paths: Mapping[str, str]) -> list[str]:
    """What the user is told of files that the Hub refuses now, with the reason of each."""
    more = [f"{len(paths) - TOLD_REFUSALS} more files are refused, see hf-mpwriter status"]
    told = [f"not uploading {path}: {why.rstrip('.')}; what else there is goes on" for path, why in paths.items()]
    return told[:TOLD_REFUSALS] + more * (len(paths) > TOLD_REFUSALS)


def _start_over(sending: Sending, why: str) -> None:
    """Scan everything again, and take all members for unsatisfied."""
    logger.info(why)
    sending.scan_again()
    sending.attachments.restart()
    sending.requests.forget()
