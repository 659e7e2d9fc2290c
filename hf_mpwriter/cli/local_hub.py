"""`hf-mpwriter hub` and `hf-mpwriter demo`: a Hub on this machine, to rehearse against.

Both need packages of an extra, so `localhub` and `demo` are imported only when a command needs them.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from hf_mpwriter.cli.runs import examples


class HubCommand(click.Command):
    """Append to the help the fields of `--set` and the grammar of faults, and import them only then."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them, line by line as they are."""
        from hf_mpwriter.localhub.config import HubConfig
        from hf_mpwriter.localhub.faults import GRAMMAR

        hub = examples("hub --root hub --set commits_per_hour=40", "hub --root hub --fault 'POST /commit/ 503 times=3'")
        fields = "\n".join(f"  {name}={json.dumps(value)}" for name, value in asdict(HubConfig()).items())
        self.epilog = f"{hub}\n\n\b\nFields, with their defaults:\n{fields}\n\n\b\n{GRAMMAR}"
        super().format_epilog(ctx, formatter)


@click.command("hub", cls=HubCommand)
@click.option(
    "--root", type=click.Path(path_type=Path), required=True, help="Folder for the data of the Hub, for you alone."
)
@click.option("--port", type=int, default=8765, show_default=True, help="Port on 127.0.0.1; 0 picks a free one.")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Change what it is; repeatable, see below.")
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help="Make requests fail; repeatable, see below.")
def serve_hub(root: Path, port: int, fields: tuple[str, ...], faults: tuple[str, ...]) -> None:
    """Serve a Hub on this machine: set HF_ENDPOINT to it and rehearse.

    It answers the real huggingface_hub client, on 127.0.0.1 only; a browser shows its pages. If
    HF_MPWRITER_LOCALHUB_TOKEN is set, every request needs that token, or that token with `-read` behind it to read.
    """
    try:
        from hf_mpwriter.localhub.serving import serve
    except ImportError as error:
        raise _missing_extra("The local Hub", "localhub", error) from error
    from hf_mpwriter.localhub.config import HubConfig, ServerError, take_token
    from hf_mpwriter.localhub.faults import FaultError, parse

    try:
        config, parsed = HubConfig.parse(fields), [parse(fault) for fault in faults]
    except (FaultError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    try:
        serve(root, config, token=take_token(os.environ), port=port, faults=parsed)
    except ServerError as error:
        port_helps = "Another port, which a run then is recorded for: --port NUMBER, or --port 0"
        helps = port_helps if str(error).startswith("Port") else "Another folder: --root"
        raise click.ClickException(f"{error}. {helps}") from error


@click.command("demo", epilog=examples("demo", "demo --open    look at it in a browser"))
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Folder for everything; default: a new one.")
@click.option("--open", "stay", is_flag=True, help="Leave the Hub and its pages open until Ctrl-C.")
def run_demo(directory: Path | None, *, stay: bool) -> None:
    """Train against a local Hub, crash, resume, and count every event.

    Starts a Hub on this machine and trains a small network on scikit-learn's handwritten digits in four processes.
    Each has a learning rate of its own and logs scalars, histograms, images and text. Kills one worker and the
    uploader with SIGKILL and starts the worker again. Then loses a machine with its disk, and goes on from what the
    live bucket has. At the end, checks every event against the Hub. Nothing leaves this machine.
    """
    try:
        from hf_mpwriter.demo.story import run
    except ImportError as error:
        raise _missing_extra("The demo", "demo", error) from error
    raise SystemExit(run(directory, stay=stay))


def _missing_extra(what: str, extra: str, error: ImportError) -> click.ClickException:
    return click.ClickException(f"{what} needs more packages: pip install '.[{extra}]' in the clone ({error})")
