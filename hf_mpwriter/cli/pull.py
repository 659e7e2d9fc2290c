"""`hf-mpwriter pull` and `run --pull`: bring a run back from the Hub, so that another machine continues it.

                         pull              run --pull                        run --pull --or-new
    no repository        exit code 4       exit code 4, nothing starts       a line; the program starts
    no such run in it    exit code 4       exit code 4, nothing starts       a line; the program starts
    but it has begun     as above          a line; the program starts
    of another run here  it comes          exit code 4, nothing starts       a line; the program starts
    the Hub refuses      exit code 1       a line that names the consequence; the program starts
    another destination  exit code 1       exit code 1, before anything starts

A run is there if the repository or its live bucket has any file of it, or this disk an event file. Where it is not, the
line names the runs that are there, and the command that pulls the one that was probably meant. For `run --pull` a run
has begun if this disk or its logdir has an event file, or the logdir does not answer: a program that began while the
Hub was down goes on.

`run --pull` brings what the ranks of a node need:

    the environment tells                                    pulled
    LOCAL_RANK and RANK, as torchrun and others set them     that rank
    a rank of SLURM or MPI, of more than its known nodes     that rank
    NODE_RANK and LOCAL_WORLD_SIZE, and no RANK              the ranks of that node
    anything else, or the command starts ranks itself        all

Where there is one task per node, its rank may be the number of a node, as that of a torchrun that `srun` has started:
the ranks below it have other numbers. So such a rank counts for nothing. Too much costs time, too little tears a curve.
Rank 0 also needs the ranks that the world has no more, to hide their later steps: see `worker/rewind`.

Where no folder is recorded yet, a run comes from the first of these:

    the folder that the run directory of this name has had on this host
    the folder that is called like the last parts of LOGDIR, and no part of another run; the longest name. Of
    logs/exp1/lr0.1 it may be exp1/lr0.1, as integrations have it, or exp1_lr0.1, see `uploader/folders`
    the folder that its writers ask for

`run --pull` leaves it alone while it belongs to another run directory of this host: the program would get a folder of
its own. `pull` takes it: that is how a user says that it is the same run.

A token goes where that of `sync` would: to the Hub of HF_ENDPOINT, or to the one for which LOGDIR is recorded and that
`--endpoint` confirms.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import TORCHRUN, nodes_of, number, rank_of, world_size_of
from hf_mpwriter.base.names import is_event_file, rank_of_directory
from hf_mpwriter.base.settings import OFFLINE, Destination, is_offline, typed_repo_id
from hf_mpwriter.base.words import command_line, counted, sentence, size_text
from hf_mpwriter.cli.forked import Forked
from hf_mpwriter.cli.output import UploadBar
from hf_mpwriter.cli.runs import (
    RepoPlace,
    endpoint_option,
    examples,
    has_event_files,
    logdir_argument,
    named,
    named_bucket,
    nearest_first,
    place_options,
    prepare_client,
    recorded_destination,
    spool_at,
)
from hf_mpwriter.cli.sync import bring_back
from hf_mpwriter.delivery.sentences import lost_text
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.uploader import folders
from hf_mpwriter.worker.looking import is_staged, prepare, publish_record

if TYPE_CHECKING:
    from hf_mpwriter.pull.repository import Pulled
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.push.clock import Clock


NOT_THERE = (
    " is not there yet, or this token may not see it. If it should be, check the name, and run hf auth login with a "
    "token that may read it (or set HF_TOKEN)."
)
BEGUN = "The program starts: the run has begun here, or in its logdir."
NOT_STARTED = "The program was not started. If this is the first start of a run, add --or-new."
LOOKED = 10  # folders of a repository that are looked into, to name the runs that are there
KEPT = "The files that came are kept, and the next pull brings the others."
LIMIT = 60.0  # seconds in which nothing comes, until a pull is given up
MARGIN = 10.0  # seconds more, until what obeys no clock is killed
BELONGS = "{} belongs to {}: nothing was pulled. If it is the same run: {}"
CONSEQUENCE = (
    "The program starts without it. Nothing on the Hub is lost, but last_step() and purge_step do not reach what is "
    "only there: a curve that goes on here is drawn over its past. To pull again, restart."
)

LAUNCHERS = {"torchrun", "accelerate", "deepspeed", "mpirun", "mpiexec", "horovodrun", "srun"}
LAUNCHER_MODULES = ("torch.distributed.", "accelerate.commands.", "deepspeed.launcher.", "horovod.runner")

_RANK = re.compile(r"(?:^|_)rank_(\d{5,})$")


class NotFoundError(click.ClickException):
    """What was asked for by name is not there."""

    exit_code = 4


class BelongsError(NotFoundError):
    """The folder on the Hub belongs to another run directory."""


@click.command(
    "pull",
    epilog=examples(
        "pull runs/exp1 --repo-id me/run    the first time here",
        "pull runs/exp1                     later",
        "pull runs/exp1 --worker rank_00003",
        "pull live/exp1 --repo-id me/run --follow --open",
    ),
)
@logdir_argument
@place_options
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="NAME",
    help="Pull the files of this worker and its children only: main, rank_00003; repeatable.",
)
@click.option("--follow", "follows", is_flag=True, help="Go on with what the live bucket gets, until Ctrl-C.")
@click.option("--until-quiet", type=click.FloatRange(min=0), metavar="SECONDS", help="With --follow: end without news.")
@click.option("--open", "opens", is_flag=True, help="With --follow: show it in a TensorBoard in the browser.")
@click.option("--live", default="", metavar="BUCKET", help="The live bucket, if it is not that of the repository.")
@endpoint_option
def pull_run(
    logdir: str,
    workers: tuple[str, ...],
    endpoint: str | None,
    live: str,
    until_quiet: float | None,
    *,
    place: RepoPlace | None,
    follows: bool,
    opens: bool,
) -> None:
    """Bring the run of LOGDIR back from the Hub.

    Where event files are kept on a local disk, as LOGDIR is a URL or a mount of an object store, what is in LOGDIR
    comes first; without a repository only that. What a live bucket has in addition comes last.

    To continue it on another machine, run this before training starts. Every file is verified by its digest. What is
    here stays: a file that differs from the Hub's copy is named and left as it is. A pull that was interrupted keeps
    the files that came.

    With --follow what is logged comes from the run's live bucket within seconds, until Ctrl-C or the run is quiet.

    Exit code 0: all that the Hub has of the run is here; 1: it is not; 4: there is no such run, worker, repository or
    branch. Then the message names what is there.
    """
    if not follows and (opens or until_quiet is not None):
        raise click.UsageError("--open and --until-quiet go with --follow.")
    spool = spool_at(logdir)
    check_ownership(spool.directory)
    spool.check_format()
    _bring_back(spool, logdir)
    options = [] if place is None else place.options
    options += [word for worker in workers for word in ("--worker", worker)]
    destination = spool.destination() if place is None else _asked_for(spool, place)
    if destination is None and is_staged(spool):
        if not has_event_files(spool.run_dir):
            raise NotFoundError(printable(f"Nothing was pulled: {spool.logdir} has no event files."))
        return
    if destination is None:
        raise click.ClickException(f"Name the repository: {command_line('pull', logdir, '--repo-id', 'NAME')}")
    destination = recorded_destination(destination, endpoint, "pull", logdir, *options)
    if is_offline():
        raise click.ClickException(f"{OFFLINE}: nothing was pulled. Unset it to pull.")
    wanted = (lambda worker: worker in workers) if workers else lambda _: True
    report = pull_into(spool, destination, wanted, UploadBar(0, 0, "pulled"), live=live)
    if follows and report.commit:
        from hf_mpwriter.cli.follow import follow

        for path, reason in report.left.items():
            click.echo(printable(f"{path}: {reason}"), err=True)
        bar = UploadBar(0, 0, "pulled", drawn=False, lines=False)
        again = functools.partial(pull_into, spool, destination, wanted, bar, live=live, follows=True)
        follow(spool, destination, wanted, again, report.bucket, until_quiet, opens=opens)
        return
    _show(report, spool.destination() or destination, spool, logdir, workers)


def _bring_back(spool: Spool, logdir: str) -> None:
    """Bring back what is in the logdir of a staged run; the Hub may have less."""
    if not is_staged(spool):
        return
    spool.create()
    publish_record(spool)
    if why := bring_back(spool):
        again = command_line("pull", logdir)
        raise click.ClickException(printable(f"Not all of {spool.logdir} is here: {why.rstrip('.')}. Again: {again}"))
    click.echo(printable(f"All of {spool.logdir} is in {spool.run_dir}."))


def _asked_for(spool: Spool, place: RepoPlace) -> Destination:
    """The destination that the options name, if it is the one that is recorded, or none is."""
    recorded = spool.record()
    asked = place.of(spool.logdir, recorded.destination.endpoint if recorded else "")
    if recorded is None:
        return asked
    if not recorded.is_for(asked):
        text = f"{spool.run_dir} is recorded for {recorded.destination}, not for {asked}. Give another LOGDIR."
        raise click.ClickException(text)
    return recorded.destination


def pull_into(
    spool: Spool,
    destination: Destination,
    wanted: Callable[[str], bool],
    bar: UploadBar,
    by_hand: str = "",
    begins: Callable[[], object] = lambda: None,
    *,
    live: str = "",
    follows: bool = False,
) -> Pulled:
    """Pull; where `by_hand` says how a user would do it, a program waits, and nothing of another run directory comes.

    `begins` is called when it is known what comes. `live`: the bucket, "" for the one that the environment names.
    """
    prepare_client(destination.endpoint)
    from hf_mpwriter.pull.repository import ask, is_of_disk, pull
    from hf_mpwriter.push.classify import explained
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.push.clock import Clock

    clock = Clock(LIMIT, is_patient=not by_hand)
    ledger, asked = HubSink(spool).ledger() if spool.exists() else None, destination.path_in_repo
    with closing(bar):
        try:
            if not spool.has_destination():
                folder = _folder_of(spool, destination, Hub(destination, clock), lambda question: ask(question, clock))
                destination = replace(destination, path_in_repo=folder)
                if by_hand:
                    _spare_others(spool, destination, by_hand)
            hub = Hub(destination.resolved(ledger.repo_id if ledger else ""), clock)
            found = pull(
                spool,
                destination,
                hub,
                wanted,
                live or named_bucket(destination),
                asked=None if asked == destination.path_in_repo else asked,
                begins=begins,
                progress=bar.show,
                follows=follows,
            )
        except (HfMpWriterError, BelongsError):
            raise
        except Exception as error:
            if is_of_disk(error):
                raise click.ClickException(printable(f"The disk refuses: {error}. {KEPT}")) from error
            why, helps = explained(error, destination, os.environ)
            text = f"Not all was pulled: {why.rstrip('.')}. {f'{sentence(helps)}. ' if helps else ''}{KEPT}"
            raise click.ClickException(printable(text)) from error
    if found.commit and not found.workers:
        found.beside = _runs_beside(spool, destination.resolved(hub.repo_id), clock, found.commit)
    return found


class _Shelf:
    """What is in a folder of a repository at one commit; each folder below is asked for once."""

    def __init__(self, names: Callable[[str], Mapping[str, bool]], top: str) -> None:
        self._names = functools.cache(lambda name: names("/".join(filter(None, [top, name]))))

    def has(self, name: str) -> bool:
        """Whether there is a folder of this name that is no part of a run."""
        above, _, last = name.rpartition("/")
        is_no_part = not above or (self.has(above) and not self._is_run(above))
        return is_no_part and self._names(above).get(last, False)

    def runs(self, meant: str) -> list[str]:
        """The names of the runs, the nearest first; folders are among them if there are too many to look into."""
        found, pending, left = list[str](), deque([""]), LOOKED
        while pending and left:
            name, left = pending.popleft(), left - 1
            if name and self._is_run(name):
                found.append(name)
            else:
                below = [f"{name}/{one}".lstrip("/") for one, is_folder in self._names(name).items() if is_folder]
                pending.extend(nearest_first(meant, below))
        return nearest_first(meant, [*found, *pending])

    def _is_run(self, name: str) -> bool:
        """Whether event files or ranks are in a folder."""
        inside = self._names(name).items()
        return any(rank_of_directory(one) is not None if is_folder else is_event_file(one) for one, is_folder in inside)


def _folder_of(spool: Spool, asked: Destination, hub: Hub, ask: Callable[[Callable[[], Any]], Any]) -> str:
    """The folder that a run comes from which is recorded nowhere; see above."""
    run, folder = folders.run_name(spool), asked.path_in_repo
    if (own := folders.own_folder(run, folder, folders.owners_of(asked))) is not None:
        return own
    if (head := ask(hub.head)) is None:
        return folder
    shelf = _Shelf(lambda above: ask(lambda: hub.names(above, head)), folder.rpartition("/")[0])
    nested, joined = folders.names_of(run, "/"), folders.names_of(run)
    longer = [name for count in sorted(joined, reverse=True) if count > 1 for name in (nested[count], joined[count])]
    return next((folders.folder_beside(folder, name) for name in longer if shelf.has(name)), folder)


def _spare_others(spool: Spool, destination: Destination, by_hand: str) -> None:
    """Refuse a folder of another run directory of this host that is still there; `by_hand` is how to pull it."""
    folder, ours = destination.path_in_repo, folders.run_name(spool)
    owner = folders.owners_of(destination).get(folder, ours)
    if owner != ours and folders.stands(owner, spool.run_dir) is not False:
        raise BelongsError(BELONGS.format(folder, owner, by_hand))


def _runs_beside(spool: Spool, destination: Destination, clock: Clock, commit: str) -> list[str]:
    """The names of other runs in the folder of the repository, the nearest first; none if the Hub does not tell."""
    from hf_mpwriter.push.client import Hub

    hub = Hub(destination, clock, is_impatient=True)
    with contextlib.suppress(Exception):  # it only helps
        shelf = _Shelf(lambda above: hub.names(above, commit), destination.path_in_repo.rpartition("/")[0])
        return shelf.runs(spool.logdir)
    return []


def _missing(report: Pulled, destination: Destination, spool: Spool) -> str:
    """What to say if no such run is there: where it was looked for, what is there, and the command that brings it."""
    if not report.commit:
        return f"Nothing was pulled: {destination.url}{NOT_THERE}"
    if report.workers or has_event_files(spool.run_dir):
        return ""
    text = f"Nothing was pulled: {destination.url} has nothing of this run."
    if not report.beside:
        return text
    top, meant = destination.path_in_repo.rpartition("/")[0], report.beside[0]
    scheme, slashes, path = spool.logdir.rpartition("://")
    parts = path.split("/")
    logdir = f"{scheme}{slashes}" + "/".join([*parts[: max(1, len(parts) - 1 - meant.count("/"))], meant])
    options = RepoPlace(destination.typed_repo_id, destination.revision, top).options
    there = f"Runs in {top}" if top else "Runs there"
    return f"{text} {there}: {named(report.beside)}. To pull the first: {command_line('pull', logdir, *options)}"


def _show(report: Pulled, destination: Destination, spool: Spool, logdir: str, workers: tuple[str, ...]) -> None:
    """Print what was pulled, and what was not."""
    if missing := _missing(report, destination, spool):
        raise NotFoundError(printable(missing))
    for path, reason in report.left.items():
        click.echo(printable(f"{path}: {reason}"), err=True)
    if report.left:
        again = command_line("pull", logdir)
        raise click.ClickException(f"{len(report.left)} of {len(report.sizes)} files were not pulled. Again: {again}")
    if report.workers and not report.sizes and not report.live:
        there = named(nearest_first(workers[0], report.workers))
        raise NotFoundError(printable(f"{destination.url} has nothing of {named(workers)}, but: {there}."))
    for path, reason in report.unlike.items():
        click.echo(printable(f"{path}: {reason}"), err=True)
    click.echo(printable(_summary(report, destination, spool)), err=not (report.sizes or report.live))
    if lost := lost_text(losses(spool), logdir):
        click.echo(printable(lost), err=True)


def _summary(report: Pulled, destination: Destination, spool: Spool) -> str:
    """What came; the Hub may have nothing of a run that is here."""
    text = f"{destination.url} has nothing of this run yet."
    if report.sizes:
        came = f"{counted(len(report.fetched), 'file')} ({size_text(sum(report.fetched.values()))}) came"
        text = f"All {size_text(sum(report.sizes.values()))} of {destination.url} are in {spool.run_dir}: {came}."
    more = size_text(sum(report.live.values()))
    return f"{text} {more} more came from the bucket {report.bucket}." if report.live else text


def pull_before(
    run_dir: str, named: str, wanted: Callable[[str], bool], *, or_new: bool, is_quiet: bool
) -> Callable[[], int]:
    """What brings a run back before its program starts; the exit code if that is not to start, else 0.

    `named`: repository of the run. Where a destination in it is recorded, that one counts. `or_new`: whether the
    program starts though there is no such run.
    """
    spool = spool_of(find(run_dir))
    check_ownership(spool.directory)
    spool.check_format()
    recorded, (kind, repo_id) = spool.destination(), typed_repo_id(named)
    names = (recorded.can_be(repo_id) or recorded.repo_id == repo_id.rpartition("/")[2]) if recorded else False
    if recorded is None or recorded.repo_type != kind or not names:
        recorded = _asked_for(spool, RepoPlace(named))
    by_hand = "pull", run_dir, "--repo-id", named
    destination = recorded_destination(recorded, None, *by_hand)

    def bring() -> int:
        work = functools.partial(_bring, spool, destination, wanted, command_line(*by_hand), is_quiet=is_quiet)
        child = Forked(work, LIMIT + MARGIN)
        try:
            for line in child.told():
                if line is None:
                    child.until = math.inf
                else:
                    _say(line)
        except NotFoundError as error:
            if not or_new:
                _say(f"{error.message.rstrip('.')}. {NOT_STARTED}")
                return error.exit_code
            if not is_quiet or isinstance(error, BelongsError):
                _say(error.message)
            return 0
        if child.code != 0:
            _say(f"{spool.run_dir} was not pulled: something hangs. {CONSEQUENCE}")
        return 0

    return bring


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # no reader is left
        print(printable(f"hf-mpwriter run: {line}"), file=sys.stderr, flush=True)


def _bring(
    spool: Spool,
    destination: Destination,
    wanted: Callable[[str], bool],
    by_hand: str,
    tell: Callable[[str | None], object],
    *,
    is_quiet: bool,
) -> None:
    """Pull, in a child; tell what to print, and None when the Hub has told all that it has: from then on content comes.

    What hangs then is the disk of the run directory, which would hold up the program, too.
    """
    if is_offline():
        tell(f"{OFFLINE}: nothing was pulled. {CONSEQUENCE}")
        return
    try:
        bar = UploadBar(0, 0, "pulled", drawn=not is_quiet, lines=False)
        report = pull_into(spool, destination, wanted, bar, by_hand, begins=lambda: tell(None))
        begun = _begun(_missing(report, spool.destination() or destination, spool), spool)
    except NotFoundError:
        raise
    except click.ClickException as error:
        tell(f"{error.message} {CONSEQUENCE}")
    except Exception as error:  # noqa: BLE001 - of the Hub, the disk or the client: training does not fail of it
        tell(f"{spool.run_dir} was not pulled: {type(error).__name__}: {error}. {CONSEQUENCE}")
    else:
        for path, reason in report.unlike.items():
            tell(f"{path}: {reason}")
        for path, reason in report.left.items():
            tell(f"{path} was not pulled: {reason}")
        if not is_quiet and not report.left:
            tell(begun or _summary(report, spool.destination() or destination, spool))
        if not is_quiet and (lost := lost_text(losses(spool), spool.logdir)):
            tell(lost)


def _begun(missing: str, spool: Spool) -> str:
    """What to say of a run that is missing on the Hub and has begun all the same; an error if it has not."""
    if not missing:
        return ""
    if not has_event_files(spool.run_dir):
        if is_staged(spool):
            spool.create()
        logdir = prepare(spool, is_joined=False)
        if not (logdir.after or logdir.is_behind):
            raise NotFoundError(missing)
    return f"{missing.rstrip('.')}. {BEGUN}"


def _is_needed(worker: str, ranks: range, world: int | None) -> bool:
    """Whether the files of a worker are pulled for these ranks; those from `world` on, if it is known, for rank 0."""
    match = _RANK.search(worker)
    rank = int(match[1]) if match else 0
    return rank in ranks or (0 in ranks and world is not None and rank >= world)


def selection_of(environ: Mapping[str, str], command: Sequence[str]) -> Callable[[str], bool]:
    """Whose files a program needs."""
    if (rank := _own_rank(environ)) is not None and not _starts_ranks(command):
        return functools.partial(_is_needed, ranks=range(rank, rank + 1), world=world_size_of(environ))
    node, size = number(environ, TORCHRUN.node), number(environ, TORCHRUN.local_world)
    if TORCHRUN.rank not in environ and node is not None and size:
        first, count = node * size, nodes_of(environ).count
        if first or count > 1:
            world = count * size if count > 1 else None
            return functools.partial(_is_needed, ranks=range(first, first + size), world=world)
    return lambda _: True


def _own_rank(environ: Mapping[str, str]) -> int | None:
    """The rank of this process, None if the number may be that of a node."""
    rank, world = rank_of(environ), world_size_of(environ)
    if TORCHRUN.rank in environ:
        return None if number(environ, TORCHRUN.local_rank) is None else rank
    nodes = nodes_of(environ)
    is_told = nodes.count > 1 or nodes.rank is not None  # else it is one because no launcher tells
    return rank if is_told and rank is not None and world is not None and world > nodes.count else None


def _starts_ranks(command: Sequence[str]) -> bool:
    """Whether a program is a launcher, as far as its arguments tell."""
    return any(os.path.basename(word) in LAUNCHERS or word.startswith(LAUNCHER_MODULES) for word in command)
