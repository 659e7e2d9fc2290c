"""Claims: the right to write in a worker directory.

    claims/<worker>.lock        locked as long as the worker is joined

Invariant:
- A worker that finds a name taken takes the next free one, so no two live processes ever share a directory.
"""

from __future__ import annotations

from hf_mpwriter.base.names import candidates
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, locks


def claim(spool: Spool, wanted: str, substitute: str = "") -> tuple[str, int]:
    """Take the wanted name or the next free one; the name, and the descriptor that holds the claim."""
    with spool.claims.entered() as claims:
        for name in candidates(wanted, substitute):
            try:
                if (fd := locks.try_exclusive(claims / f"{name}.lock")) is not None:
                    return name, fd
            except OSError as error:
                if error.errno not in disk.NOT_REGULAR:  # garbage in its place: the name cannot be had
                    raise
    raise OSError(f"no free worker name like {wanted!r} in {spool.run_dir}")
