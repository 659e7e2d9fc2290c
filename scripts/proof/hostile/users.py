"""Two users of one group, and how a process of root becomes one of them.

place/                    0755, root
  home/                   0700, the victim's, with HF_HOME and `private/`: the canaries
  project/                the parent of the run directory
    exp1/                 the run directory
  attic/                  0755, the attacker's: what is put in place of something
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from lib.prctl import die_with_parent

GROUP = 54321
VICTIM, ATTACKER = 54301, 54302  # both in the group
CANARY = b"the-canary-of-the-victim"

_READ = 2  # CAP_DAC_READ_SEARCH: the interpreter may be where only root can read
_KEEP_CAPABILITIES, _DUMPABLE, _AMBIENT, _RAISE = 8, 4, 47, 2


def become(user: int, *, reading: bool) -> None:
    """Give up root for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_KEEP_CAPABILITIES, int(reading))
    os.setgroups([GROUP])
    os.setgid(GROUP)
    os.setuid(user)
    if reading:
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[1 << _READ] * 3, 0, 0, 0)
        if libc.capset(header, sets) or libc.prctl(_AMBIENT, _RAISE, _READ, 0, 0):
            raise OSError(ctypes.get_errno(), "the right to read cannot be kept")
    libc.prctl(_DUMPABLE, 1)
    os.umask(0o022)
    die_with_parent()


@dataclass(frozen=True)
class Place:
    """Where everything of one attack is."""

    top: Path  # directory

    @property
    def home(self) -> Path:
        """The victim's home."""
        return self.top / "home"

    @property
    def private(self) -> Path:
        """The victim's canaries."""
        return self.home / "private"

    @property
    def project(self) -> Path:
        """The parent of the run directory."""
        return self.top / "project"

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.project / "exp1"

    @property
    def attic(self) -> Path:
        """What the attacker owns."""
        return self.top / "attic"

    def make(self, *, only_parent: bool) -> None:
        """Make all directories."""
        self.top.chmod(0o755)
        open_mode, closed = 0o2775, 0o755
        for path, mode, owner in (
            (self.home, 0o700, VICTIM),
            (self.private, 0o700, VICTIM),
            (self.project, open_mode if only_parent else closed, VICTIM),
            (self.run_dir, closed if only_parent else open_mode, VICTIM),
            (self.attic, 0o755, ATTACKER),
        ):
            path.mkdir()
            os.chown(path, owner, GROUP)
            path.chmod(mode)
        for path in self.canaries():
            path.write_bytes(CANARY)
            os.chown(path, VICTIM, GROUP)
            path.chmod(0o600)
            os.utime(path, (1, 2))  # the first one who reads it changes the time of access, on `relatime` too

    def canaries(self) -> list[Path]:
        """Files that no process may read: under the names of an attachment, an event file, and files of the spool."""
        names = ("secret.txt", "events.out.tfevents.1795233002.canary.1.0", "run.json", "ledger.json", "FORMAT")
        return [self.private / name for name in names]
