"""The command `status`: which runs, in which form, once or again and again, and with which exit code.

    no DIR, or several   a line for each run
    one DIR              the run in full
    --json               one DIR: an object; else a list
    --watch              on a terminal drawn anew, else printed when something changes; ends with the last process

Exit codes: 0 complete, 3 waiting, 4 a person is needed; of several runs the highest. 1: the only one is no run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.words import as_argument
from hf_mpwriter.cli.destination import existing_spool
from hf_mpwriter.cli.options import examples
from hf_mpwriter.cli.status import schema, text
from hf_mpwriter.cli.status.facts import RunFacts, gather
from hf_mpwriter.cli.status.finding import named, others_below, runs_below
from hf_mpwriter.cli.status.judgement import Judgement, RunHealth, judge
from hf_mpwriter.system.redaction import printable

EVERY = 2.0  # seconds between two looks of `--watch`
CLEAR = "\x1b[H\x1b[2J"  # of a terminal


class SeenRun(NamedTuple):
    """What was found of one run."""

    logdir: str  # as it was typed, or found
    facts: RunFacts | None  # None if it cannot be read
    judgement: Judgement  # on it

    @property
    def code(self) -> int:
        """Its exit code."""
        return self.judgement.state.value

    @property
    def is_live(self) -> bool:
        """Whether a process lives that may change something."""
        facts = self.facts
        return facts is not None and bool(facts.alive or facts.hub.is_alive or facts.there.is_alive)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        if self.facts is None:
            return schema.unreadable(self.logdir, self.judgement.next)
        return schema.to_json(self.facts, self.judgement)


@click.command(
    "status",
    epilog=examples(
        "status                  all runs below this folder",
        "status runs/exp1        one in full",
        "status runs/exp1 --watch",
    ),
)
@click.argument("logdirs", metavar="[LOGDIR]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, see docs/operations.md.")
@click.option("--watch", is_flag=True, help="Look again every two seconds, until no process of the runs lives.")
def show_status(logdirs: tuple[str, ...], *, as_json: bool, watch: bool) -> None:
    """Show how much of a run is on the Hub, and what is to be done.

    Without LOGDIR, one line for each run below the current folder. Asks the disk only, not the Hub.

    Exit code 0: complete; 1: no run; 3: waiting, it comes by itself; 4: a person is needed, the last line says for
    what.
    """
    is_drawn, before = watch and sys.stdout.isatty() and not as_json, ""
    while True:
        looks = _looks(logdirs)
        lasting = _lasting(looks)
        if is_drawn or lasting != before:
            shown = _json(looks, logdirs) if as_json else "\n".join(_lines(looks, is_single=len(logdirs) == 1))
            if watch and not is_drawn and not as_json:  # a log of several looks: when was it so
                shown = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{shown}"
            click.echo(f"{CLEAR if is_drawn else ''}{shown}")
        before = lasting
        if not watch or not any(look.is_live for look in looks):
            break
        try:
            time.sleep(EVERY)
        except KeyboardInterrupt:  # so a watch is ended
            break
    click.get_current_context().exit(max((look.code for look in looks), default=0))


def _json(looks: Sequence[SeenRun], logdirs: Sequence[str]) -> str:
    found = [look.to_json() for look in looks]
    return json.dumps(found[0] if len(logdirs) == 1 else found, indent=1)


def _lasting(looks: Iterable[SeenRun]) -> str:
    """What of several looks is no matter of the clock."""
    found = [look.to_json() for look in looks]
    for one in found:
        one.pop("lag", None)
        for key in ("uploader", "mirror"):
            if one.get(key):
                one[key] = {name: value for name, value in one[key].items() if name not in ("last_seen", "next_in")}
    return json.dumps(found)


def _looks(logdirs: tuple[str, ...]) -> list[SeenRun]:
    names = logdirs or [as_argument(found) for found in runs_below(os.getcwd())]
    return [_look(name, is_single=len(logdirs) == 1) for name in names]


def _look(logdir: str, *, is_single: bool) -> SeenRun:
    """Look at one run; what cannot be read is a matter for a person, and hides no other run."""
    try:
        facts = gather(existing_spool(logdir))
    except (HfMpWriterError, OSError) as error:
        return SeenRun(logdir, None, Judgement(RunHealth.PERSON, str(error)))
    except click.ClickException as error:
        if is_single:
            raise
        return SeenRun(logdir, None, Judgement(RunHealth.PERSON, error.message))
    return SeenRun(logdir, facts, judge(facts, logdir))


def _lines(looks: Sequence[SeenRun], *, is_single: bool) -> Iterable[str]:
    if is_single:
        (look,) = looks
        if look.facts is None:
            yield f"{printable(look.logdir)} cannot be read"
            yield printable(f"next: {look.judgement.next}")
        else:
            yield from text.full(look.facts, look.judgement, look.logdir)
        return
    if not looks:
        yield printable(_no_run_below(os.getcwd()))
    yield from text.table([(look.logdir, look.facts, look.judgement) for look in looks if look.facts is not None])
    for look in looks:
        if look.facts is None:
            yield printable(f"{look.logdir}  cannot be shown")
            yield printable(f"next: {look.logdir}: {look.judgement.next}")


def _no_run_below(folder: str) -> str:
    """What to say where `status` finds no run."""
    if others := [as_argument(other) for other in others_below(folder, ())]:
        return (
            f"No run below this folder. Event files of other writers: {named(others)}. To upload them: hf-mpwriter "
            "sync --all --repo-id NAME"
        )
    return "No run below this folder. Give the logdir of a run: hf-mpwriter status LOGDIR"
