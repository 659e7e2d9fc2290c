"""Measure the memory of a push of a large event file that another writer still appends to.

    python scripts/bench/large_file.py --size 3000

The file is sparse, so it takes no room; the copy that the push makes of it does, where the filesystem cannot clone.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.push.job import Job, deadline
from hf_mpwriter.spool.layout import Spool

RECORD = 100 << 20  # bytes of the payload of one record
NAME = "events.out.tfevents.1700000000.theirs"


def write(path: str, size: int) -> int:
    """Write records of zero bytes, and the beginning of another one; the length of the whole records."""
    frame = framing.frame(bytes(RECORD))
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(frame[: framing.HEADER_SIZE])
            file.truncate(file.tell() + RECORD)
            file.seek(0, os.SEEK_END)
            file.write(frame[-framing.FOOTER_SIZE :])
        length = file.tell()
        file.write(b"half a record")
    return length


def main() -> None:
    """Make one push and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=3000, help="MiB of the file")
    parser.add_argument("--lfs", action="store_true", help="by LFS instead of Xet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LocalHub(os.path.join(folder, "hub")) as hub:
        run_dir = os.path.join(folder, "run")
        spool = Spool(run_dir)
        spool.create()
        host = spool.host("here")
        length = write(os.path.join(run_dir, NAME), arguments.size << 20)
        job = Job(
            run_dir=run_dir,
            copies=host.copies.name,
            cache=host.cache.name,
            destination=Destination(hub.endpoint, "me/run"),
            private=None,
            squash=False,
            files=(LocalFile(NAME, length, growing=True),),
            known={},
            uncertain={},
            own_head=None,
            fenced=True,
            xet=not arguments.lfs,
        )
        os.environ["HF_HOME"] = os.path.join(folder, "home")
        started, verdict = time.monotonic(), None
        push = PushHandle(job, deadline(job))
        while verdict is None:
            push.wait(1.0)
            _, verdict = push.listen()
        took = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(str(verdict)[:200])
    print(f"{length >> 20} MiB by {'LFS' if arguments.lfs else 'Xet'}: {peak} MiB of memory, {took:.0f} s")


if __name__ == "__main__":
    main()
