"""The group of all commands, and the entry point of the script `hf-mpwriter`.

| module | commands |
|---|---|
| `status` | `status`: what the disk knows of runs |
| `syncing` | `sync`: upload what is missing of runs, and of one |
| `verify` | `verify`: compare a run with the Hub |
| `pull` | `pull`: bring a run back from the Hub |
| `ranks` | `ranks`: derive a run with mean, bounds and slowest rank of all ranks |
| `run` | `run`: supervise a program until its data is on the Hub |
| `clean` | `clean`: remove local copies of staged runs that are complete elsewhere |
| `logs`, `stop` | `logs`, `stop`: what the uploader of a run logs, and its end |
| `doctor` | `doctor`: what keeps uploads from working, and how a run is kept |
| `local_hub` | `hub`, `demo`: rehearse on this machine |
| `destination` | the argument LOGDIR, what is read from it, the Hub that a token may go to |
| `output` | how files, uploaders and progress are shown |

Exit codes: 0 for success, 1 for an error that the message explains or a run that is not whole on the Hub, 2 for wrong
usage, 3 for damage in a local event file. `status` has 3 for what waits and 4 where a person is needed, `doctor` 4
where something fails. `run` has the exit code of its command.

Errors are one line, with what helps.

A command is imported when it is asked for: what the others need would take longer than most commands do.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import click

from hf_mpwriter._version import __version__
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.cli.options import is_debugging
from hf_mpwriter.system import redaction
from hf_mpwriter.system.filesystem import FULL
from hf_mpwriter.system.process import fill_standard
from hf_mpwriter.system.redaction import printable

HOMES = {  # module below this package, and the name of the command in it
    "clean": "clean:clean_staging",
    "demo": "local_hub:run_demo",
    "doctor": "doctor:examine",
    "hub": "local_hub:serve_hub",
    "logs": "logs:show_logs",
    "pull": "pull:pull_run",
    "ranks": "ranks:derive_ranks",
    "run": "run:run_program",
    "status": "status.command:show_status",
    "stop": "stop:stop_run",
    "sync": "syncing.command:sync_runs",
    "verify": "verify:verify_run",
}


class Commands(MutableMapping[str, click.Command]):
    """The commands by name, each imported when it is asked for."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command | None] = dict.fromkeys(HOMES)

    def __getitem__(self, name: str) -> click.Command:
        """Return a command; KeyError if there is none of that name."""
        command = self._found[name]
        if command is None:
            module, _, attribute = HOMES[name].partition(":")
            command = self._found[name] = getattr(importlib.import_module(f"hf_mpwriter.cli.{module}"), attribute)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        """Add a command."""
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        """Take a command out."""
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; no command is imported for that."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return how many commands there are."""
        return len(self._found)


class CommandGroup(click.Group):
    """Show errors in one line, with what helps, instead of a traceback; see `--debug`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            is_closed = isinstance(error, OSError) and error.errno == errno.EPIPE  # the reader of a pipe has gone
            if is_closed or is_debugging():
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


@click.group(cls=CommandGroup, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show errors with their traceback.")
def main(**_: bool) -> None:
    """TensorBoard event files from many training processes, delivered to the Hugging Face Hub."""
    fill_standard()
    redaction.guard()
