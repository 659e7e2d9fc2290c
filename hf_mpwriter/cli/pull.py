"""`hf-mpwriter pull`: bring a run back from the Hub, so that another machine continues it; see `hf_mpwriter.pull`.

A token goes where that of `sync` would: to the Hub of HF_ENDPOINT, or to the one for which LOGDIR is recorded and that
`--endpoint` confirms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import OFFLINE, Destination, Environment, is_offline
from hf_mpwriter.base.verdicts import Refused, Verdict
from hf_mpwriter.cli.destination import (
    command_line,
    endpoint_option,
    logdir_argument,
    path_of_run,
    place_options,
    recorded_destination,
    with_namespace,
)
from hf_mpwriter.cli.output import UploadBar, counted
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.process import start_directory
from hf_mpwriter.system.redaction import printable

if TYPE_CHECKING:
    from hf_mpwriter.pull.run import Pulled


NOTHING_THERE = 4  # exit code: no such repository or branch, as before the first start of a run


@click.command("pull")
@logdir_argument
@click.option("--repo-id", help="Repository of the run. Default: the one for which LOGDIR is recorded.")
@place_options
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="NAME",
    help="Pull the files of this worker and its children only: main, rank_00003; repeatable.",
)
@endpoint_option
def pull_run(
    logdir: Path,
    repo_id: str | None,
    repo_type: str,
    revision: str,
    path_in_repo: str,
    workers: tuple[str, ...],
    endpoint: str | None,
) -> None:
    """Bring the run of LOGDIR back from the Hub, to continue it on another machine.

    Run it before training starts. Every file is verified by its digest. What is here stays: a file that differs from
    the Hub's copy is named and left as it is. A pull that was interrupted goes on where it was.
    """
    spool = Spool(os.path.abspath(logdir))
    check_ownership(spool.directory)
    spool.check_format()
    options = [] if repo_id is None else ["--repo-id", repo_id]
    options += [word for worker in workers for word in ("--worker", worker)]
    destination = spool.destination()
    if repo_id is not None:
        hub = destination.endpoint if destination else Environment.read().endpoint
        asked = Destination(hub, repo_id, repo_type, revision, path_of_run(path_in_repo, spool.run_dir))
        destination = destination or asked
        if not destination.is_same(asked):
            raise click.ClickException(f"{logdir} is recorded for {destination}, not for {asked}. Give another LOGDIR.")
    if destination is None:
        raise click.ClickException(f"Name the repository: {command_line('pull', logdir, '--repo-id', 'NAME')}")
    destination = recorded_destination(destination, endpoint, command_line("pull", logdir, *options))
    if is_offline():
        raise click.ClickException(f"{OFFLINE}: nothing was pulled. Unset it to pull.")
    report = pull_into(spool, destination, (lambda worker: worker in workers) if workers else lambda _: True)
    _show(report, destination, spool, logdir, workers)


def pull_into(spool: Spool, destination: Destination, wanted: Callable[[str], bool]) -> Pulled:
    """Pull, with a progress bar.

    Args:
        spool: of the run directory.
        destination: of the run; where a token may go was decided before.
        wanted: whether to pull the files of a worker, by its name.

    Raises:
        ClickException: the Hub or the disk refuses.
        HfMpWriterError: the run directory cannot be used.
    """
    os.environ["HF_ENDPOINT"] = destination.endpoint  # read when the client is imported
    os.environ |= hf_home.settled(os.environ, start_directory(), hf_home.account_home())
    from hf_mpwriter.pull.run import pull
    from hf_mpwriter.push.classify import classify
    from hf_mpwriter.push.client import Hub

    ledger = Progress(spool).ledger() if spool.exists() else None
    hub = Hub(with_namespace(destination, ledger.repo_id if ledger else ""))
    with closing(UploadBar(0, 0, "pulled")) as bar:
        try:
            return pull(spool, destination, hub, wanted, progress=bar.show)
        except HfMpWriterError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins":
                raise click.ClickException(f"The disk refuses: {error}. What came so far is kept.") from error
            raise click.ClickException(_unreached(classify(error))) from error


def _unreached(verdict: Verdict) -> str:
    reason = getattr(verdict, "reason", "") or type(verdict).__name__
    hint = verdict.hint if isinstance(verdict, Refused) else "What came so far is kept; run it again to go on."
    return printable(f"Not all was pulled: {reason} {hint}".rstrip())


def _show(report: Pulled, destination: Destination, spool: Spool, logdir: Path, workers: tuple[str, ...]) -> None:
    """Print what was pulled, and what was not."""
    if not report.commit:
        click.echo(
            printable(
                f"Nothing was pulled: {destination} is not there yet, or this token may not see it. If it should be, "
                "check the name, and run hf auth login with a token that may read it (or set HF_TOKEN)."
            ),
            err=True,
        )
        sys.exit(NOTHING_THERE)
    for path, reason in report.left.items():
        click.echo(printable(f"{path}: {reason}"), err=True)
    if report.left:
        again = command_line("pull", logdir)
        raise click.ClickException(f"{len(report.left)} of {len(report.sizes)} files were not pulled. Again: {again}")
    if not report.sizes:
        if workers:
            raise click.ClickException(printable(f"{destination} has nothing of {', '.join(workers)}: see --worker."))
        click.echo(printable(f"{destination} has nothing of this run."))
        return
    fetched = f"{counted(len(report.fetched), 'file')} ({size_text(sum(report.fetched.values()))}) came"
    size = size_text(sum(report.sizes.values()))
    click.echo(printable(f"All {size} of {destination} are in {spool.run_dir}: {fetched}."))
