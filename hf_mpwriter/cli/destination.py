"""The argument LOGDIR, what its spool says about the run, and where a token may go before a command sends anything.

A run directory may come from anywhere, so the endpoint in its `run.json` is only a claim. A token belongs to an
endpoint:

    recorded in the run    HF_ENDPOINT here    --endpoint    a token goes to
    E                      E                   none, or E    E
    E                      F                   E             E: the user has confirmed it
    E                      F                   none          no Hub: one line names the command that confirms it
    E                      E or F              F             no Hub: the option never overrides what is recorded

Invariant: this is decided before a command writes, starts or sends anything.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import click

from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.settings import Destination, Environment, Settings, normalised_endpoint
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.cli.status.finding import no_run
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.storage import beside, find, is_staged_here, spool_of
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.system.redaction import printable

F = TypeVar("F", bound=Callable[..., object])


def spool_at(logdir: str) -> Spool:
    """Return the spool of a logdir, which may not be there yet."""
    path = normalised_logdir(logdir)
    if not is_own_folder(path) and (aside := spool_of(beside(path))).exists():  # `sync` has made it
        return aside
    return spool_of(find(path))


def is_own_folder(path: str) -> bool:
    """Whether this user may keep a spool in a folder: it is his, or there is one for it; or it is not there yet."""
    try:
        owner = -1 if is_url(path) else os.stat(path).st_uid
    except OSError:
        return True
    if owner == -1 or os.path.lexists(os.path.join(path, SPOOL_NAME)) or is_staged_here(path):
        return True
    return owner == os.geteuid() and os.access(path, os.W_OK | os.X_OK)


def existing_spool(logdir: str) -> Spool:
    """Return the spool of a run."""
    spool = spool_at(logdir)
    check_ownership(spool.directory)
    spool.check_format()
    if not spool.exists():
        raise click.ClickException(printable(no_run(logdir, is_elsewhere=spool.run_dir != normalised_logdir(logdir))))
    return spool


def newest_settings(members: Collection[Member], ledger: Ledger | None) -> Settings:
    """Return the settings of the newest member; without members, those that the ledger remembers."""
    newest = max(members, key=lambda member: member.started_at, default=None)
    if newest is not None:
        return newest.settings
    return (ledger.settings if ledger else None) or Settings()


def check_endpoint(recorded: str, own: str, confirmed: str | None, command: str) -> None:
    """Refuse an endpoint that is neither that of this process nor confirmed."""
    hub = normalised_endpoint(recorded)
    if confirmed is not None:
        if normalised_endpoint(confirmed) != hub:
            raise click.UsageError(
                f"The run is recorded for {printable(recorded)}. --endpoint confirms it, and cannot choose another Hub."
            )
    elif normalised_endpoint(own) != hub:
        raise click.ClickException(
            f"The run is recorded for {printable(recorded)}, but HF_ENDPOINT here is {printable(own)}. Nothing was "
            f"sent. If your token may go there: {command}"
        )


def recorded_destination(recorded: Destination, endpoint: str | None, command: str) -> Destination:
    """Return the destination of a run, checked; see `check_endpoint`."""
    confirming = f"{command} --endpoint {shlex.quote(printable(recorded.endpoint))}"
    check_endpoint(recorded.endpoint, Environment.read().endpoint, endpoint, confirming)
    return recorded


def path_of_run(folder: str, logdir: str) -> str:
    """Return the folder in the repository of a run that was local so far."""
    return "/".join(filter(None, [folder.strip("/"), Path(logdir).name]))
