"""Presence: who follows a run is a member of it, as a supervisor is.

So its uploader stays for the next round, and `status` says that the upload goes on, and when.
"""

from __future__ import annotations

import contextlib

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.cli.destination import newest_settings
from hf_mpwriter.cli.syncing.folders import candidate
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.workers.members import SUPERVISOR, MemberFile, Members
from hf_mpwriter.system.process import Process


class Presence:
    """The membership of this process in a run that it follows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: MemberFile | None = None

    def renew(self) -> None:
        """Be a member of the run that is there now; its folder may have been made anew.

        Where that cannot be, the next round tries again: it uploads all the same.
        """
        if self._file is not None and self._file.is_there():
            return
        self.leave()
        with contextlib.suppress(click.ClickException, HfMpWriterError, OSError):
            spool = candidate(self._name)
            settings = newest_settings(Members(spool).all(), Progress(spool).ledger())
            self._file = MemberFile(spool, SUPERVISOR, Process.current(), settings)

    def leave(self) -> None:
        """Be none any more: the uploader need not stay."""
        if self._file is not None:
            self._file.leave()
        self._file = None
