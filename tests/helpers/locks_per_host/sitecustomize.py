"""A filesystem whose locks reach no other host, as NFS with `local_lock` or Lustre with `localflock`.

Each host, named by HOST_NAME, locks a byte of its own: its processes exclude each other, and those of other hosts do
not see them. As with flock, the lock belongs to the open file, and goes with its last descriptor.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import zlib

from lock_check import install_on_import

NAME = os.environ["HOST_NAME"]
KINDS = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}


def flock(fd: int, operation: int) -> None:
    """Lock the byte of this host."""
    kind = KINDS[operation & ~fcntl.LOCK_NB]
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, zlib.crc32(NAME.encode()), 1, 0))


fcntl.flock = flock
socket.gethostname = lambda: NAME
install_on_import()
