"""The push: one entry -> one verdict, in a fresh interpreter of its own.

    uploader --in_flight.json-->  push  --lines on stdout-->  uploader
                                         {"notice": "..."}            what the user should know, before the first byte
                                         {"verdict": "Done", ...}     the last line

It dies with its uploader and by its own timer, so a hang of any kind ends as "outcome unknown". The same entry is
tried again, which is harmless: the content is the same.

Invariants:
- A commit names its parent unless the job says otherwise, and at most one request of a push has an unknown outcome:
  after it the push ends. Of two commits that name the same parent the Hub applies one, so whatever is still under
  way is refused (412) as soon as the branch has moved.
- A file is sent only if the Hub's copy at that very parent is a prefix of it, or, of an attachment, a content that this
  run has sent: sizes and digests are read back there, of all files unless the parent is this uploader's own last
  commit, and always of files that the ledger does not know or that were uncertain with an unknown outcome.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import random
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from hf_mpwriter.base.errors import DAMAGED, SettingsError
from hf_mpwriter.base.verdicts import Refused, Retry, Verdict
from hf_mpwriter.spool import layout
from hf_mpwriter.system import disk, hf_home, redaction

if TYPE_CHECKING:
    pass

from hf_mpwriter.push.commit import carry
from hf_mpwriter.push.job import Job, deadline

PR_SET_PDEATHSIG = 1
DEFAULTS = {  # what the user has not set; hf_xet would try for minutes, and the uploader tries again anyway
    "HF_HUB_VERBOSITY": "error",
    "HF_XET_CLIENT_READ_TIMEOUT": "60s",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "3",
}
UNUSABLE = "Check HF_ENDPOINT and the other HF_* variables, or run: pip install -U huggingface_hub"


class Notify:
    """Sends lines to the uploader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, text: str) -> None:
        """Tell the user something."""
        self._line({"notice": text})

    def verdict(self, verdict: Verdict) -> None:
        """The last line."""
        self._line({"verdict": type(verdict).__name__, **dataclasses.asdict(verdict)})

    def _line(self, data: dict[str, Any]) -> None:
        disk.write_all(self._fd, b"\n%s\n" % json.dumps(data).encode())


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, on Linux even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(in_flight: str, parent: int) -> None:
    """Entry point of the process: read the job, carry it, report."""
    die_with_parent(parent)
    notify = Notify(os.dup(1))
    os.dup2(2, 1)  # whatever libraries print goes to the log
    redaction.guard()
    try:
        job = Job.from_json(json.loads(disk.read(in_flight) or b"")["job"])
    except (*DAMAGED, OSError, SettingsError) as error:
        notify.verdict(Retry(f"{in_flight} cannot be read: {error}"))
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, deadline(job))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # what it sends it holds open
    # read by huggingface_hub when it is imported
    os.environ |= {"HF_ENDPOINT": job.destination.endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not job.xet:
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ |= hf_home.writable_caches(os.environ, layout.HostSpool(os.path.dirname(in_flight)).cache)
    try:
        from hf_mpwriter.push.client import Hub
    except Exception as error:  # noqa: BLE001 - it reads the environment when it is imported
        notify.verdict(Refused(f"huggingface_hub cannot be used: {error}", UNUSABLE))
        return
    gc.freeze()  # what was imported stays: to look for garbage in it takes longer than a small push
    gc.enable()
    notify.verdict(carry(job, Hub(job.destination), notify, random.Random()))  # noqa: S311 - jitter, no secret


def end() -> NoReturn:
    """End this process as it is: to take apart what was imported takes half as long as to import it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk takes no log
            stream.flush()
    os._exit(0)
