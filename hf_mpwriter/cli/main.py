"""The group of all commands, and the entry point of the script `hf-mpwriter`.

| module | commands |
|---|---|
| `inspect` | `status`: what the disk knows of a run |
| `sync` | `sync`: upload what is missing |
| `verify` | `verify`: compare a run with the Hub |
| `pull` | `pull`: bring a run back from the Hub |
| `run` | `run`: supervise a program until its data is on the Hub |
| `storage.clean` | `clean`: remove local copies of staged runs that are complete elsewhere |
| `storage.doctor` | `doctor`: what a filesystem can do, and how a run would be kept there |
| `local_hub` | `hub`, `demo`: rehearse on this machine |
| `destination` | the argument LOGDIR, what is read from it, the Hub that a token may go to |
| `output` | how files, uploaders and progress are shown |

Exit codes: 0 for success, 1 for an error that the message explains or a run that is not whole on the Hub, 2 for wrong
usage, 3 for damage in a local event file. `run` has the exit code of its command.
"""

from __future__ import annotations

from typing import Any

import click

from hf_mpwriter._version import __version__
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.cli.inspect import show_status
from hf_mpwriter.cli.local_hub import run_demo, serve_hub
from hf_mpwriter.cli.pull import pull_run
from hf_mpwriter.cli.run import run_program
from hf_mpwriter.cli.storage.clean import clean_staging
from hf_mpwriter.cli.storage.doctor import examine_directory
from hf_mpwriter.cli.sync import sync_run
from hf_mpwriter.cli.verify import verify_run
from hf_mpwriter.system import redaction
from hf_mpwriter.system.process import fill_standard


class CommandGroup(click.Group):
    """Show the errors of the package in one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            ClickException: the command raised an error of the package.
        """
        try:
            return super().invoke(ctx)
        except HfMpWriterError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """TensorBoard event files from many training processes, delivered to the Hugging Face Hub."""
    fill_standard()
    redaction.guard()


for command in (
    show_status,
    sync_run,
    verify_run,
    pull_run,
    run_program,
    examine_directory,
    clean_staging,
    serve_hub,
    run_demo,
):
    main.add_command(command)
