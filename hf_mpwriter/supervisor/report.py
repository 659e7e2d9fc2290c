"""The report at the end: one line per run directory. What is on the Hub, what is not, what finishes it.

all 12.3 MB of RUN_DIR are on the Hub: DESTINATION
1.2 MB of the 12.3 MB of RUN_DIR are not on the Hub yet: REASON. An uploader goes on trying. To finish: COMMAND
RUN_DIR could not be read in time: REASON. To finish: COMMAND
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.spool.progress import size_text, sync_command
from hf_mpwriter.supervisor.drain import Delivered
from hf_mpwriter.system.redaction import printable


def lines(outcomes: Iterable[Delivered], *, is_first: bool, is_offline: bool, is_quiet: bool) -> Iterator[str]:
    """The report.

    Args:
        outcomes: one per run directory.
        is_first: whether this is process 1, with which all others end.
        is_offline: whether nothing is sent.
        is_quiet: whether what is complete is left out, as another rank tells it.
    """
    for outcome in outcomes:
        if outcome.is_known and not outcome.missing:
            if not is_quiet and outcome.total:
                text = f"all {size_text(outcome.total)} of {outcome.run_dir} are on the Hub: {outcome.destination}"
                yield printable(text)
        elif outcome.is_known or not outcome.is_over:
            yield printable(_incomplete(outcome, is_first=is_first, is_offline=is_offline))


def _incomplete(outcome: Delivered, *, is_first: bool, is_offline: bool) -> str:
    command = sync_command(outcome.run_dir)
    if not outcome.is_known:
        why = f": {outcome.reason}".rstrip(".") if outcome.reason else ""
        return f"{outcome.run_dir} could not be read in time{why}. To finish: {command}"
    missing = sum((outcome.missing or {}).values())
    reason = OFFLINE if is_offline else outcome.reason
    text = f"{size_text(missing)} of the {size_text(outcome.total)} of {outcome.run_dir} are not on the Hub yet"
    text += f"{f': {reason}' if reason else ''}".rstrip(".") + "."
    if is_first:
        return f"{text} The uploader ends with this process, the first of its container. Keep the disk; then: {command}"
    if outcome.is_alive:
        return f"{text} An uploader goes on trying, as long as this machine lets it. To finish: {command}"
    return f"{text} They stay on disk, and no uploader runs. To finish: {command}"
