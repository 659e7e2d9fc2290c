"""The group of all commands, and the entry point of the script `hf-mpwriter`.

Exit codes: 0 for success, 1 for an error that the message explains or a run that is not whole on the Hub, 2 for wrong
usage, 3 for damage in a local event file. `status` has 3 for what waits and 4 where a person is needed, `doctor` 4
where something fails, `pull` and `run --pull` 4 where there is no such run. `run` has that of its command.

Errors are one line, with what helps.

A command is imported when it is asked for: what the others need would take longer than most commands do.
"""

from __future__ import annotations

import errno
import importlib
from typing import Any

import click

from hf_mpwriter._version import __version__
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.system import redaction
from hf_mpwriter.system.filesystem import FULL
from hf_mpwriter.system.process import fill_standard
from hf_mpwriter.system.redaction import printable

COMMANDS = {  # module in this folder, and the name of the command in it
    "clean": "clean:clean_staging",
    "demo": "local_hub:run_demo",
    "doctor": "doctor:examine",
    "hub": "local_hub:serve_hub",
    "logs": "daemons:show_logs",
    "pull": "pull:pull_run",
    "ranks": "ranks:derive_ranks",
    "run": "run:run_program",
    "status": "status:show_status",
    "stop": "daemons:stop_run",
    "sync": "sync:sync_runs",
    "verify": "verify:verify_run",
}


class CommandGroup(click.Group):
    """Import a command when it is asked for, and show errors in one line, with what helps; see `--debug`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names; no command is imported for that."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, None if there is none."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, _, attribute = COMMANDS[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(f"hf_mpwriter.cli.{module}"), attribute))
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            is_closed = isinstance(error, OSError) and error.errno == errno.EPIPE  # the reader of a pipe has gone
            if is_closed or ctx.params.get("debug"):
                raise
            raise click.ClickException(printable(_told(error))) from error


def _told(error: Exception) -> str:
    """One line about an error."""
    if isinstance(error, HfMpWriterError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        cure = " Free space, then run the command again." if error.errno in FULL else ""
        return f"{error.strerror}{place}.{cure}"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"This should not happen: {text[:300]}. All of it: hf-mpwriter --debug ..."


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show errors with their traceback.")
def main(**_: bool) -> None:
    """TensorBoard event files from many training processes, delivered to the Hugging Face Hub."""
    fill_standard()
    redaction.guard()
