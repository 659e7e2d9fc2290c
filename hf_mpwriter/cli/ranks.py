"""`hf-mpwriter ranks`: mean, bounds and the slowest rank of what all ranks log, as one more run; see `ranks`."""

from __future__ import annotations

import contextlib
import signal
import sys

import click

from hf_mpwriter.base.timing import Timing
from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.runs import examples, existing_spool, logdir_argument, newest_settings
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.system.redaction import printable

TAKEN = "Another process derives the ranks of this run."


@click.command("ranks", epilog=examples("ranks runs/exp1", "ranks --follow runs/exp1"))
@logdir_argument
@click.option("--follow", is_flag=True, help="Go on with what is logged, until no process logs or Ctrl-C.")
def derive_ranks(logdir: str, *, follow: bool) -> None:
    """Derive mean, bounds and slowest rank of all ranks of LOGDIR.

    That is one more run, LOGDIR/_all_ranks. All of it is computed anew each time, and hides what was there. What
    living ranks have not all passed yet is left out.
    """
    from hf_mpwriter.ranks import derive  # other commands need no protobuf

    spool = existing_spool(logdir)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        derived = derive(spool, newest_settings([], HubSink(spool).ledger()), follow=follow, timing=Timing.of())
        if derived is None and not follow:
            raise click.ClickException(f"{TAKEN} Wait for its end, or end it.")
        if derived is None:
            click.echo(TAKEN)
        elif not derived.points:
            click.echo("No step was logged by several ranks.")
        else:
            click.echo(printable(f"{derived.points:,} points are in {spool.logdir}/{derived.folder}"))
    if spool.has_destination():
        click.echo(f"To upload them, if no process logs any more: {command_line('sync', logdir)}")


def main() -> None:
    """What `run --ranks` starts for a run directory, see `system/launch`."""
    from hf_mpwriter.cli.main import main as command  # it tells errors as all commands do

    command(["ranks", "--follow", sys.argv[1]])
