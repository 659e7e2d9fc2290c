"""`hf-mpwriter run`: a program under a supervisor, and the environment that gives its writers their defaults.

    --repo-id         HF_MPWRITER_REPO_ID
    --logdir          HF_MPWRITER_LOGDIR, as an absolute path
    --patch           `integrations/site/` comes first in PYTHONPATH: each Python that the program starts runs the
                      `sitecustomize.py` in there, which calls `hf_mpwriter.patch()`
    --kill-orphans    before the program starts, see `supervisor/program`
    --follow          while the program runs, see `folders`
    --ranks           by `hf-mpwriter ranks --follow`, a child for each run directory of which a worker tells
    --pull            in the process of the program, before it becomes the program: a signal ends it as it would end the
                      program, and the supervisor loads no client. See `cli/pull` for what is pulled

It imports the supervisor when it is called: other commands work where the system lacks what that needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

import click

from hf_mpwriter.base.job import is_first_of_host
from hf_mpwriter.base.settings import typed_repo_id
from hf_mpwriter.base.storage import normalised_logdir
from hf_mpwriter.cli.pull import pull_before, selection_of
from hf_mpwriter.cli.runs import examples

SITE = Path(__file__).parent.parent / "integrations" / "site"
DEFAULT_GRACE = 25.0  # seconds; SLURM and Kubernetes kill after 30


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "run -- python train.py",
        "run --repo-id me/run --patch -- python train.py",
        "run --grace 90 -- torchrun --nproc-per-node 8 train.py",
    ),
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0.0, min_open=True, max=1e6),
    default=DEFAULT_GRACE,
    show_default=True,
    metavar="SECONDS",
    help="Seconds from SIGTERM to the end: training, and the upload of its last data.",
)
@click.option("--repo-id", metavar="NAME", help="Repository for writers that name none. Sets HF_MPWRITER_REPO_ID.")
@click.option("--logdir", metavar="LOGDIR", help="Run directory of writers without a logdir. Sets HF_MPWRITER_LOGDIR.")
@click.option("--follow", "follows", metavar="LOGDIR", multiple=True, help="Upload event files of other writers there.")
@click.option("--patch", is_flag=True, help="Replace the SummaryWriter classes that the program imports.")
@click.option("--kill-orphans", is_flag=True, help="First end workers in --logdir whose launcher has died.")
@click.option("--pull", is_flag=True, help="First bring the run of --logdir back from the Hub, onto an empty disk.")
@click.option("--or-new", is_flag=True, help="With --pull: begin the run where the Hub has nothing of it.")
@click.option(
    "--ranks", is_flag=True, help="Derive mean, bounds and slowest rank of runs that are uploaded, as `ranks --follow`."
)
@click.argument("command", nargs=-1, required=True)
def run_program(
    *,
    grace: float,
    repo_id: str | None,
    logdir: str | None,
    follows: tuple[str, ...],
    patch: bool,
    kill_orphans: bool,
    pull: bool,
    or_new: bool,
    ranks: bool,
    command: tuple[str, ...],
) -> None:
    """Run a program, and see that what it logs gets to the Hub.

    Use it as process 1 of a container, with srun and torchrun.

    SIGTERM and SIGINT are passed on to the program, and what was logged is sent. What remains of the program is killed
    two seconds before the grace is over. At the end, one line for each run directory says what is on the Hub. The exit
    code is that of the program, 128 + n if signal n has ended it.

    With --pull, a node with an empty disk goes on with the run: what the Hub has of it comes first. If it has nothing,
    the exit code is 4, and the program starts only with --or-new. It starts in any case where the Hub cannot be
    reached, or sends nothing for a minute.

    With --follow, event files that other writers put into LOGDIR are uploaded while the program runs: every five
    minutes, and at the end. Give it once for each folder; it need not be there yet. They go to --repo-id, or where they
    went before. With --repo-id and --logdir, the run directory is followed as well.

    With --patch, torch.utils.tensorboard.SummaryWriter, tensorboardX.SummaryWriter and
    huggingface_hub.HFSummaryWriter are those of hf_mpwriter in every Python process that the program starts. A Python
    that ignores PYTHONPATH (python -I, python -E) is not patched.
    """
    if sys.platform != "linux":
        raise click.ClickException("run needs Linux. Elsewhere, start the program itself; hf_mpwriter.patch() patches.")
    if kill_orphans and logdir is None and not os.environ.get("HF_MPWRITER_LOGDIR"):
        raise click.UsageError("--kill-orphans needs --logdir: the run directory that they log to.")
    if or_new and not pull:
        raise click.UsageError("--or-new goes with --pull.")
    if repo_id is not None:
        typed_repo_id(repo_id)  # checks it
        os.environ["HF_MPWRITER_REPO_ID"] = repo_id
    if logdir is not None:
        os.environ["HF_MPWRITER_LOGDIR"] = normalised_logdir(logdir)
    from hf_mpwriter.cli.folders import followed

    folders = followed(follows, None if pull else logdir, repo_id, os.environ)  # what is pulled is of writers of ours
    before = _pull_first(command, or_new=or_new) if pull else None
    if patch:
        _patch_pythons(os.environ)
    from hf_mpwriter.supervisor.loop import supervise
    from hf_mpwriter.supervisor.program import end_orphans

    try:
        for line in end_orphans(normalised_logdir(os.environ["HF_MPWRITER_LOGDIR"])) if kill_orphans else ():
            click.echo(f"hf-mpwriter run: {line}", err=True)
        ranks = ranks and is_first_of_host(os.environ)
        code = supervise(command, os.environ, grace, before=before, followed=folders, ranks=ranks)
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'run'}: {error.strerror or error}") from error
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    os._exit(code)  # a disk that hangs in a thread does not hold up the end


def _pull_first(command: Sequence[str], *, or_new: bool) -> Callable[[], int]:
    """What brings the run back before the program starts, see `pull_before`."""
    repo_id, logdir = (os.environ.get(name, "") for name in ("HF_MPWRITER_REPO_ID", "HF_MPWRITER_LOGDIR"))
    if missing := [option for option, value in (("--repo-id", repo_id), ("--logdir", logdir)) if not value]:
        raise click.UsageError(f"--pull needs {' and '.join(missing)}: which run comes back, and where to.")
    places = [""] if os.path.dirname(command[0]) else os.get_exec_path()
    if not any(os.access(os.path.join(place, command[0]), os.X_OK) for place in places):
        raise click.ClickException(f"{command[0]}: {os.strerror(errno.ENOENT)}")  # rather than behind a long pull
    from hf_mpwriter.base.job import rank_of

    wanted, is_quiet = selection_of(os.environ, command), rank_of(os.environ) not in (None, 0)
    return pull_before(normalised_logdir(logdir), repo_id, wanted, or_new=or_new, is_quiet=is_quiet)


def _patch_pythons(environ: MutableMapping[str, str]) -> None:
    """Let every Python with this environment call `patch()` when it starts."""
    if not environ.get("HF_MPWRITER_REPO_ID"):
        click.echo("No --repo-id and no HF_MPWRITER_REPO_ID: writers that name no repository stay local.", err=True)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SITE), environ.get("PYTHONPATH")]))
