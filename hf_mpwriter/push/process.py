"""The process of a push: one job -> one verdict for each of its parts, in a fresh interpreter.

    get the job -> set the timer -> set the environment -> import the client -> carry -> write the verdicts -> end
         ^                                                       | it prepares         | Done
         +---------------------------- the next job, if it comes soon ------------------+

It is the only process that imports huggingface_hub. A hang of any kind ends it, and means "outcome unknown"; the same
batch is then sent again, which is harmless because the content is the same.

To import the client takes longer, and reads more, than a small push. So a push that has gone well waits for another
job, longer where pushes follow each other closely; any other verdict ends the process, and the next push begins with a
fresh interpreter. And where a push is sure to come, its process is started before there is anything to send: what it
gets first is a job that prepares.

Invariants:
- It dies with its uploader, and by its own timer, whatever its threads do.
- Only its own lines go to the pipe; what libraries print goes to the log of the uploader, without secrets.
- The environment is complete before huggingface_hub is imported, which reads it then.
- A job that was handed over is done: the process closes its end before it gives up waiting, and looks once more.
- The client's caches, which are set once, lie in the first spool that it gets; that one is held to the end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.base.verdicts import Cause, Done, Refused, Retry, Verdict
from hf_mpwriter.push.job import Contact, Job, Message, deadline
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import hf_home, launch
from hf_mpwriter.system.directory import Place

DEFAULTS = {  # what the user has not set; hf_xet would try for minutes, and the uploader tries again anyway
    "HF_HUB_VERBOSITY": "error",
    "HF_XET_CLIENT_READ_TIMEOUT": "60s",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "3",
    "RUST_LOG": "error",  # else hf_xet writes 30 kB of each batch into a file in HF_HOME that never rotates
}
READERS = {"HF_XET_DATA_MAX_CONCURRENT_FILE_INGESTION": "4"}  # of large files; of small ones each waits for answers

FIRST_WAIT = 60.0  # seconds for the first job, which is there before the process is
MOST_DESCRIPTORS = 253  # in one message of a socket (SCM_MAX_FD)

ASYNC_BACKENDS = ("trio", "anyio", "sniffio")  # httpcore imports them where they are installed; a push needs none
UNUSABLE = "Check HF_ENDPOINT and the other HF_* variables, or run: pip install -U huggingface_hub"


Tell = Callable[[Message], None]  # writes a message to the uploader


def main() -> NoReturn:
    """Entry point of the process, see `system/launch`."""
    gc.disable()  # until the client is imported
    write = launch.answer()
    with socket.socket(fileno=launch.MORE_FD) as jobs:
        serve(lambda message: write(state.to_line(message)), jobs)
    end()


def serve(tell: Tell, jobs: socket.socket) -> None:
    """Do the job that comes by a socket, and those that come soon after it."""
    os.umask(0o077)  # the client's caches are for their owner only; the uploader has let others read what it derives
    home: Place | None = None
    wait: float = FIRST_WAIT
    while wait and (descriptors := _next_job(jobs, wait)):
        record, *directories = descriptors
        try:
            job = state.load(Job, launch.read_record(record))
        except (state.DamagedError, OSError) as error:
            for _ in directories[::2]:
                tell(Retry(f"the job cannot be read: {error}"))
            return
        spools, refused = _adopted(job, directories)
        usable = [number for number in range(len(spools)) if number not in refused]
        if usable:
            home = home or spools[usable[0]].directory / job.parts[usable[0]].cache
            verdicts = _verdicts(tell, job, spools, home, refused)
        else:
            verdicts = list(refused.values())
        for verdict in verdicts:
            tell(verdict)
        for spool in spools:
            if home is None or spool.directory is not home.directory:
                spool.release()
        wait = job.linger if all(isinstance(verdict, Done) for verdict in verdicts) else 0


def _adopted(job: Job, directories: list[int]) -> tuple[list[Spool], dict[int, Verdict]]:
    """The spools of the parts of a job, and the verdicts on those that must not be used, by their numbers."""
    spools, refused = list[Spool](), dict[int, Verdict]()
    for number, part in enumerate(job.parts):
        try:
            spool = Spool.adopt(part, *directories[2 * number : 2 * number + 2])
        except (ForeignSpoolError, OSError) as error:  # another user's: no other run is kept back by that
            spool, refused[number] = Spool(part.run_dir), Retry(str(error), cause=Cause.DISK)
        spools.append(spool)
    return spools, refused


def _next_job(jobs: socket.socket, wait: float) -> list[int]:
    """The descriptors of the next job, none if it has not come in time: its record, run directories and spools."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(OSError):
        if not select.select([jobs], [], [], wait)[0]:
            jobs.shutdown(socket.SHUT_RDWR)  # from here on the uploader knows that this process does not wait
        return list(socket.recv_fds(jobs, 1, MOST_DESCRIPTORS, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)[1])
    return []


def _verdicts(tell: Tell, job: Job, spools: list[Spool], home: Place, refused: Mapping[int, Verdict]) -> list[Verdict]:
    """Do the job; no verdict on one that prepares: what is wrong then is found again by the next."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, deadline(job))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # what it sends it holds open
    _set_environment(job, home.way)
    for name in ASYNC_BACKENDS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # an import of it fails, as if it were missing
    try:
        from hf_mpwriter.push.client import Hub
        from hf_mpwriter.push.clock import Clock
        from hf_mpwriter.push.commit import carry
        from hf_mpwriter.push.live import carry_live
    except Exception as error:  # noqa: BLE001 - it reads the environment when it is imported
        verdict = Refused(f"huggingface_hub cannot be used: {error}", UNUSABLE)
        return [] if job.prepares else [verdict] * len(job.parts)
    if not gc.isenabled():
        gc.freeze()  # what was imported stays: to look for garbage in it takes longer than a small push
        gc.enable()
    if job.prepares:
        return []

    def contact(*, answered: bool = True) -> None:
        signal.setitimer(signal.ITIMER_REAL, deadline(job))
        tell(Contact(answered))

    hub = Hub(job.destination, Clock(sends=contact), contact=lambda answered: contact(answered=answered))
    if job.bucket:
        verdicts = carry_live(job, spools, hub, refused)
    else:
        verdicts = carry(job, spools, hub, tell, random.Random(), refused)  # noqa: S311 - jitter, no secret
    if hub.quota is not None:
        tell(hub.quota)
    return verdicts


def _set_environment(job: Job, cache: str) -> None:
    """What huggingface_hub reads when it is imported, and hf_xet when it gets its first content."""
    os.environ |= {"HF_ENDPOINT": job.destination.endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in (DEFAULTS | (READERS if job.is_large else {})).items():
        os.environ.setdefault(name, value)
    if not job.xet:
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ |= hf_home.writable_caches(os.environ, cache)


def end() -> NoReturn:
    """End this process as it is: to take apart what was imported takes half as long as to import it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk takes no log
            stream.flush()
    os._exit(0)
