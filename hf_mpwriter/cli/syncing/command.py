"""The command `hf-mpwriter sync`: which runs it uploads, and what is said of several.

Invariant: of two runs that would go to one folder of a repository, no two are sent by one call. They are refused before
anything is sent; `--all` leaves one of them out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import click
from click.core import ParameterSource

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.base.words import as_argument, counted, typed
from hf_mpwriter.cli.options import endpoint_option, examples, place_options
from hf_mpwriter.cli.output import DAMAGED, failure
from hf_mpwriter.cli.status.finding import has_one_of, named, others_below, runs_below
from hf_mpwriter.cli.syncing.folders import Wishes, check_places, clashes, recorded
from hf_mpwriter.cli.syncing.following import Writers, folders_of, tend
from hf_mpwriter.cli.syncing.one_run import RemovedError, sync_one
from hf_mpwriter.supervisor.drain import Drain
from hf_mpwriter.system.redaction import printable


@click.command(
    "sync",
    epilog=examples(
        "sync runs/exp1",
        "sync runs/exp1 --repo-id me/run    the first time",
        "sync --all                         all runs below this folder",
        "sync runs/exp1 --follow            beside training",
    ),
)
@click.argument("logdirs", metavar="LOGDIR...", nargs=-1)
@click.option(
    "--all", "all_below", is_flag=True, help="All runs and event files below the current folder, or below each LOGDIR."
)
@place_options
@click.option("--create", is_flag=True, help="Create the repository again if it is gone.")
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Longest wait for each run; default: until all is there."
)
@click.option("--follow", is_flag=True, help="Go on, beside training, until the writers of each LOGDIR have gone.")
@endpoint_option
def sync_runs(
    logdirs: tuple[str, ...],
    repo_id: str | None,
    revision: str,
    path_in_repo: str,
    timeout: float | None,
    endpoint: str | None,
    *,
    all_below: bool,
    create: bool,
    follow: bool,
) -> None:
    """Upload what the Hub lacks of each LOGDIR, and wait for it.

    LOGDIR is the logdir of a run, or any folder with event files, whichever writer made them; then say where to with
    --repo-id. Asks the Hub what it holds, and sends only the rest. Run it during training or after a crash, as often
    as you like.

    Exit code 0: all of it is on the Hub; 1: it is not; 3: a file is damaged here.
    """
    if repo_id is None and (extra := _given("path_in_repo", "revision")):
        raise click.UsageError(f"{extra} goes with --repo-id: where a run goes is recorded at its start.")
    wishes = Wishes(repo_id, revision, path_in_repo, timeout, endpoint, create=create, only_new=all_below)
    names = list(dict.fromkeys(_below(logdirs, wishes) if all_below else logdirs))
    if not names:
        raise click.UsageError("Name a LOGDIR, or give --all for the runs below this folder.")
    if not all_below:
        check_places(names, wishes)
    left_out = list(clashes(names, wishes)) if all_below else []
    for clash in left_out:  # of many runs, two of one place hold up no other
        click.echo(printable(f"{clash.name}: left out. {clash.text}"), err=True)
        names.remove(clash.name)
    try:
        (_follow if follow else _sync)(names, wishes)
    except KeyboardInterrupt:
        name = typed(as_argument(names[0])) if len(names) == 1 else "LOGDIR"
        goes_on = f"An upload that has begun goes on: hf-mpwriter status {name}. To end it: hf-mpwriter stop {name}"
        later = f"What is logged from now on is not uploaded; then: hf-mpwriter sync {name}"
        raise failure(f"Interrupted. {later if follow else goes_on}", damaged=False) from None
    if left_out:
        raise failure(f"{counted(len(left_out), 'run')} left out.", damaged=False)


def _sync(names: list[str], wishes: Wishes) -> None:
    """Upload one run or several."""
    if len(names) == 1:
        sync_one(names[0], wishes)
        return
    wishes = replace(wishes, names_runs=True)
    codes = [_told(name, wishes) for name in names]
    if failed := [code for code in codes if code]:
        is_damage = all(code == DAMAGED for code in failed)
        raise failure(f"{len(failed)} of {counted(len(names), 'run')} not whole on the Hub.", damaged=is_damage)


def _given(*names: str) -> str:
    """The first of these options that was typed, "" if none was."""
    context = click.get_current_context()
    typed = (name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE)
    return next((f"--{name.replace('_', '-')}" for name in typed), "")


def _follow(names: list[str], wishes: Wishes) -> None:
    """Upload runs until their writers have gone, and once more. What fails meanwhile is tried again."""
    if any(map(is_url, names)):
        raise click.UsageError("--follow takes folders on a disk of this host.")
    for name in names:
        try:
            sync_one(name, wishes)  # what is wrong with the call ends it at once
        except RemovedError as error:  # by a program that makes its folder anew when it starts
            click.echo(error.format_message(), err=True)
    _say("Following: what is logged is uploaded until the writers have gone. Ctrl-C ends that.")
    drain = Drain()
    drain.follow(folders_of(names, wishes), _say)
    try:
        tend(drain, [Writers(normalised_logdir(name)) for name in names])
        failed = [code for code in [_told(name, wishes) for name in names] if code]
    finally:
        drain.leave()
    if failed:
        raise failure("Not all is on the Hub.", damaged=all(code == DAMAGED for code in failed))


def _told(name: str, wishes: Wishes) -> int:
    """Upload one of several runs; its exit code. An error is printed, and holds up no other."""
    try:
        sync_one(name, wishes)
    except click.ClickException as error:
        click.echo(f"{printable(name)}: {error.format_message()}", err=True)
        return error.exit_code
    except (HfMpWriterError, OSError) as error:
        click.echo(printable(f"{name}: {error}"), err=True)
        return 1
    return 0


def _below(folders: Sequence[str], wishes: Wishes) -> list[str]:
    """The runs below folders, and the folders with event files of others; without a repository, those that have one."""
    found, left = list[str](), list[str]()
    for folder in folders or (".",):
        top = os.path.abspath(folder)
        runs = runs_below(top)
        others = others_below(top, runs)
        mixed = [other for other in others if has_one_of(other, runs)]
        for path in [*runs, *others]:
            name = as_argument(os.path.normpath(os.path.join(folder, path)))
            if path in mixed:
                _say(f"{name} has runs below it, so its own event files are left out. Move them to a folder.")
            elif wishes.repo_id is not None or recorded(name) is not None:
                found.append(name)
            else:
                left.append(name)
    with_name = typed("hf-mpwriter", "sync", *map(as_argument, folders), "--all", "--repo-id", "NAME")
    if left and not found:
        raise failure(f"No destination yet: {named(left)}. Say where to: {with_name}", damaged=False)
    if left:
        _say(f"Left out, as no destination is known: {named(left)}. To upload all: {with_name}")
    if not found:
        raise failure(
            "There is no run below, and no event file. Name the folder of one: hf-mpwriter sync LOGDIR", damaged=False
        )
    return found


def _say(text: str) -> None:
    """Print what is no error."""
    click.echo(printable(text), err=True)
