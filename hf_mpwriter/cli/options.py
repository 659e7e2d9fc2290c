"""What the commands have in common on the command line: arguments, options, examples in the help."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

logdir_argument = click.argument("logdir")
endpoint_option = click.option(
    "--endpoint",
    metavar="URL",
    help="Confirm that a token may go to this Hub; the one that the run is recorded for. Default: HF_ENDPOINT.",
)


def place_options(command: F) -> F:
    """Add the options that say where in a repository a run is."""
    folder = "Folder in the repository, to which the name of LOGDIR is appended; with --repo-id."
    branch = "Of the repository; with --repo-id."
    for option in (
        click.option("--path-in-repo", metavar="FOLDER", default="tensorboard", show_default=True, help=folder),
        click.option("--revision", metavar="BRANCH", default="main", show_default=True, help=branch),
        click.option("--repo-id", metavar="NAME", help="Repository, if none is recorded; of a dataset: datasets/NAME."),
    ):
        command = option(command)
    return command


def examples(*lines: str) -> str:
    """What stands at the end of a help text: commands as they are typed."""
    return "\n".join(["\b", "Examples:", *(f"  hf-mpwriter {line}" for line in lines)])


def is_debugging() -> bool:
    """Whether errors are shown with all that is known of them, by `--debug`."""
    return bool(click.get_current_context().find_root().params.get("debug"))
