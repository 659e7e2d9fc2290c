"""The argument LOGDIR: a run directory, and what its spool says about the run."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import click

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.member_lines import Member
from hf_mpwriter.spool.ownership import check_ownership

logdir_argument = click.argument("logdir", type=click.Path(path_type=Path))


def existing_spool(logdir: Path) -> Spool:
    """Return the spool of a run directory.

    Raises:
        ForeignSpoolError: the spool belongs to another user.
        SpoolFormatError: another version of hf_mpwriter wrote it.
        ClickException: there is no spool.
    """
    spool = Spool(os.path.abspath(logdir))
    check_ownership(spool.directory)
    spool.check_format()
    if not spool.exists():
        raise click.ClickException(f"{logdir} is no run directory of hf_mpwriter. Give the logdir of a SummaryWriter.")
    return spool


def newest_settings(members: Collection[Member], ledger: Ledger | None) -> Settings:
    """Return the settings of the newest member; without members, those that the ledger remembers."""
    newest = max(members, key=lambda member: member.started_at, default=None)
    if newest is not None:
        return newest.settings
    return (ledger.settings if ledger else None) or Settings()
