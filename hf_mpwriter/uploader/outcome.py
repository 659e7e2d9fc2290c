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
from collections.abc import Iterable, Mapping

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Sent, Unknown, Verdict
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.progress import size_text
from hf_mpwriter.system import filesystem
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.run_state import RunState

logger = logging.getLogger("hf_mpwriter")

TOLD_REFUSALS = 3  # refused files of one push that are told by name


def conclude(run: RunState, verdict: Verdict) -> None:
    """Take in the verdict on what was in flight."""
    verdict, lane, batch = run.in_flight.end(verdict)
    if isinstance(verdict, Done):
        if verdict.own:
            size = sum(new_bytes(run.ledger, path, sent) for path, sent in verdict.files.items())
            logger.info("%s", pushed(verdict, size, run.in_flight.took))
        _acknowledge(run, verdict, lane, batch)
    else:
        _fail(run, verdict, lane, batch)


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


def refused_start(run: RunState, error: OSError) -> None:
    """Take in that a push could not be started."""
    conclude(run, Retry(filesystem.explained(error, "cannot start a push")))


def _acknowledge(run: RunState, verdict: Done, lane: Lane, batch: Batch) -> None:
    released = verdict.files.keys() & run.ledger.quarantined.keys()
    carried = {file.path for file in batch.files if batch.has_attachments}
    if any(run.ledger.is_ahead(path, sent) for path, sent in verdict.files.items() if path not in carried):
        _start_over(run, "the Hub has less than it had: what is missing is sent again")
    run.in_flight.acknowledge(verdict, batch)
    beside_others = None if run.audit else verdict.checked  # an audit reads back what was not moved, too
    run.audit = run.audit and not verdict.checked
    lane.done(batch, committed=verdict.own)
    run.satisfy()
    if released:  # the later files of their writers waited for them, and what refused them may be over
        run.scan_again()
        run.retries.request()
    if run.events.settings.squash_history:
        run.in_flight.own_head = None
    run.abandoned_since = run.clock()  # progress is as good a reason to stay as a worker
    run.pacing.done(committed=verdict.own, beside_others=beside_others)
    run.status.recovered()


def _fail(run: RunState, verdict: Verdict, lane: Lane, batch: Batch) -> None:
    run.pacing.learn(verdict)
    run.events.require_scan()
    is_known = not isinstance(verdict, Unknown)
    if is_known and not batch.has_attachments:  # the ledger has nothing to learn of these first
        run.in_flight.clear()
    known = run.ledger.quarantined.keys() | set()
    if isinstance(verdict, Quarantine) and not verdict.committed:
        _forget(run.ledger, verdict.paths)
    verdict, step = lane.failed(verdict, batch)
    if batch.has_attachments or isinstance(verdict, Quarantine):
        run.in_flight.save_ledger()
    if is_known:
        run.in_flight.clear()
    if isinstance(verdict, Quarantine):
        lane.drop(batch)
        run.scan_again()
        run.status.notify(_refusals({path: why for path, why in verdict.paths.items() if path not in known}))
    if lane is run.attachments and (isinstance(verdict, Refused) or not step.may_hurry):
        run.pacing.hold(step)
    if not lane.yielded:
        is_outage = isinstance(verdict, Refused) or (lane is run.events and isinstance(verdict, (Retry, Unknown)))
        run.status.failed(verdict, lane.backoff.attempts, is_outage=is_outage)
        if isinstance(verdict, (Retry, Unknown, Refused)):
            logger.info(
                "failed: %s; next try in %.0f s", verdict.reason.rstrip("."), max(0.0, run.next_at() - run.clock())
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


def _start_over(run: RunState, why: str) -> None:
    """Scan everything again, and take all members for unsatisfied."""
    logger.info(why)
    run.scan_again()
    run.attachments.restart()
    run.requests.forget()
