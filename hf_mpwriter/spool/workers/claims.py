"""Claims: the right to write in a worker directory.

    claims/<worker>.lock        locked as long as the worker is joined; may hold a note, see `worker/rewind`

Invariant:
- A worker that finds a name taken takes the next free one, so no two live processes ever share a directory.
"""

from __future__ import annotations

from typing import NamedTuple

from hf_mpwriter.base.names import candidates
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, locks


class Taken(NamedTuple):
    """A name that this process holds."""

    name: str  # of the worker
    claim: int  # descriptor of the lock of the name
    wanted: str  # name that it has if no other process holds that
    substitute: str  # what its other names begin with


def claim(spool: Spool, wanted: str, substitute: str = "") -> Taken:
    """Take the wanted name or the next free one."""
    with spool.claims.entered() as claims:
        for name in candidates(wanted, substitute):
            try:
                if (fd := locks.try_exclusive(claims / f"{name}.lock")) is not None:
                    return Taken(name, fd, wanted, substitute)
            except OSError as error:
                if error.errno not in disk.NOT_REGULAR:  # garbage in its place: the name cannot be had
                    raise
    raise OSError(f"no free worker name like {wanted!r} in {spool.run_dir}")
