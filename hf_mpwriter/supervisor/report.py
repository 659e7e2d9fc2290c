"""The report at the end: one line per run directory. What is on the Hub, what is not, what finishes it.

all 12.3 MB of RUN_DIR are on the Hub: LINK
1.2 MB of the 12.3 MB of RUN_DIR are not on the Hub yet: REASON. An uploader goes on trying. To finish: COMMAND
RUN_DIR could not be read in time: REASON. To finish: COMMAND
nothing of RUN_DIR was uploaded: REASON                          it was to be followed
nothing more of RUN_DIR was uploaded: REASON                     the same, once it was removed

Of a staged run a line says also what is in its logdir, and the command brings it there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.spool.progress import size_text, sync_command
from hf_mpwriter.supervisor.drain import Delivered
from hf_mpwriter.system.redaction import printable


def say(line: str) -> None:
    """Print a line, if anybody still reads."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hf-mpwriter run: {printable(line)}", file=sys.stderr, flush=True)


def lines(outcomes: Iterable[Delivered], *, is_first: bool, is_offline: bool, is_quiet: bool) -> Iterator[str]:
    """The report."""
    for outcome in outcomes:
        if outcome.is_known and not outcome.missing and not outcome.logdir.missing:
            if not is_quiet and outcome.total:
                places = [f"on the Hub: {outcome.destination}"] * bool(outcome.destination)
                places = [f"in {outcome.logdir.to}"] * bool(outcome.logdir.to) + places
                yield printable(f"all {size_text(outcome.total)} of {outcome.run_dir} are {', and '.join(places)}")
        elif outcome.is_known or not outcome.is_over:
            yield printable(_incomplete(outcome, is_first=is_first, is_offline=is_offline))
        elif outcome.is_expected:
            what = "nothing more" if outcome.destination else "nothing"
            yield printable(f"{what} of {outcome.run_dir} was uploaded: {outcome.reason}")


def _incomplete(outcome: Delivered, *, is_first: bool, is_offline: bool) -> str:
    there, command = outcome.logdir, sync_command(outcome.logdir.to or outcome.run_dir)
    if not outcome.is_known:
        why = f": {outcome.reason}".rstrip(".") if outcome.reason else ""
        return f"{outcome.run_dir} could not be read in time{why}. To finish: {command}"
    missing = sum((outcome.missing or {}).values())
    reason = OFFLINE if is_offline else outcome.reason
    text = f"{size_text(missing)} of the {size_text(outcome.total)} of {outcome.run_dir} are not on the Hub yet"
    text += f"{f': {reason}' if reason else ''}".rstrip(".") + "."
    worker, is_alive = "uploader", outcome.is_alive
    if not missing:
        text, worker, is_alive = there.sentence(), "mirror", there.is_alive
    elif there.missing:
        text = f"{text} {there.sentence()}"
    if is_first:
        return f"{text} The {worker} ends with this process, the first of its container. Keep the disk; then: {command}"
    if is_alive:
        article = "An" if worker == "uploader" else "A"
        return f"{text} {article} {worker} goes on trying, as long as this machine lets it. To finish: {command}"
    return f"{text} They stay on disk, and no {worker} runs. To finish: {command}"
