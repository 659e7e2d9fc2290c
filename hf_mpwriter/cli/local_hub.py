"""`hf-mpwriter hub` and `hf-mpwriter demo`: a Hub on this machine, to rehearse against.

Both need packages of an extra, so `localhub` and `demo` are imported only when a command needs them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from hf_mpwriter.cli.words import examples


class HubCommand(click.Command):
    """Append the grammar of faults to the help, and import it only then."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the grammar, line by line as it is."""
        from hf_mpwriter.localhub.server.faults import GRAMMAR

        hub = examples("hub --root hub", "hub --root hub --fault 'POST /commit/ 503 times=3'")
        self.epilog = f"{hub}\n\n\b\n{GRAMMAR}"
        super().format_epilog(ctx, formatter)


@click.command("hub", cls=HubCommand)
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Folder in which the Hub keeps its data.")
@click.option("--port", type=int, default=8765, show_default=True, help="Port on 127.0.0.1; 0 picks a free one.")
@click.option("--no-xet", is_flag=True, help="Offer plain LFS only.")
@click.option("--discard", is_flag=True, help="Verify uploaded content and discard it, for long measurements.")
@click.option("--commits-per-hour", type=int, default=0, help="Limit per repository; 0: unlimited.")
@click.option(
    "--commit-window",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="What counts as the hour of that limit.",
)
@click.option("--requests-per-5min", type=int, default=0, help="Limit of requests to the API; 0: unlimited.")
@click.option("--busy", is_flag=True, help="Refuse a commit (409) while another to its repository is in progress.")
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help="Make requests fail; repeatable, see below.")
def serve_hub(
    root: Path,
    port: int,
    faults: tuple[str, ...],
    *,
    no_xet: bool,
    **options: Any,
) -> None:
    """Serve a Hub on this machine: set HF_ENDPOINT to it and rehearse.

    It answers the real huggingface_hub client, on 127.0.0.1 only; a browser shows its pages. If
    HF_MPWRITER_LOCALHUB_TOKEN is set, every request needs that token. A token in HF_MPWRITER_LOCALHUB_READ_TOKEN may
    only read.
    """
    try:
        from hf_mpwriter.localhub import serve
    except ImportError as error:
        raise _missing_extra("The local Hub", "localhub", error) from error
    from hf_mpwriter.localhub.server.accounts import Tokens
    from hf_mpwriter.localhub.server.config import HubConfig, ServerError
    from hf_mpwriter.localhub.server.faults import FaultError, parse

    try:
        parsed = [parse(fault) for fault in faults]
    except FaultError as error:
        raise click.ClickException(str(error)) from error
    config = HubConfig(xet=not no_xet, **options)
    try:
        serve(root, config, tokens=Tokens.take(os.environ), port=port, faults=parsed)
    except ServerError as error:
        port_helps = "Another port, which a run then is recorded for: --port NUMBER, or --port 0"
        helps = port_helps if str(error).startswith("Port") else "Another folder: --root"
        raise click.ClickException(f"{error}. {helps}") from error


@click.command("demo", epilog=examples("demo", "demo --open    look at it in a browser"))
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Folder for everything; default: a new one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses which worker is killed.")
@click.option("--steps", type=int, default=400, show_default=True, help="Training steps of each worker.")
@click.option("--open", "stay", is_flag=True, help="Leave the Hub and its pages open until Ctrl-C.")
def run_demo(directory: Path | None, seed: int, steps: int, *, stay: bool) -> None:
    """Train against a local Hub, crash, resume, and count every event.

    Starts a Hub on this machine and trains a small network on scikit-learn's handwritten digits in four processes.
    Each has a learning rate of its own and logs scalars, histograms, images and text. Half-way, kills one worker and
    the uploader with SIGKILL and starts the worker again. At the end, checks every event against the Hub. Nothing
    leaves this machine.
    """
    try:
        from hf_mpwriter.demo.story import run
    except ImportError as error:
        raise _missing_extra("The demo", "demo", error) from error
    raise SystemExit(run(directory, seed, steps, stay=stay))


def _missing_extra(what: str, extra: str, error: ImportError) -> click.ClickException:
    return click.ClickException(f"{what} needs more packages: pip install '.[{extra}]' in the clone ({error})")
