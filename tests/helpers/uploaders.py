"""An uploader in the process of the test, which drives it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import locks
from hf_mpwriter.uploader.loop import Uploader


def uploader(
    spool: Spool, clock: Callable[[], float] = lambda: 1000.0, *, lock: int | None = None, seed: int = 1, **start: Any
) -> Uploader:
    """One that holds this lock, or takes it; what its start record has beside the destination of the run."""
    lock = locks.try_exclusive(spool.uploader_lock) if lock is None else lock
    assert lock is not None
    record = StartRecord(**vars(spool.paths), **{"destination": spool.destination(), **start})
    return Uploader(spool, record, lock, clock, random.Random(seed))
