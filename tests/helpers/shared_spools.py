"""Spools of other users."""

from __future__ import annotations

import os
import stat

import pytest

GROUP = 54321
ONE, TWO, STRANGER = 54301, 54302, 54303  # users; the first two are in the group
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def modes(top: str) -> dict[str, int]:
    """The mode of each directory and regular file, by path."""
    found = {}
    for directory, _, names in os.walk(top):
        for path in [directory, *(os.path.join(directory, name) for name in names)]:
            found[os.path.relpath(path, top)] = stat.S_IMODE(os.lstat(path).st_mode)
    return found


def become(user: int) -> None:
    """Give up root, in a child, to be a user of the group."""
    os.setgroups([GROUP])
    os.setgid(GROUP)
    os.setuid(user)
    os.umask(0o022)
