"""The uploader's end of a push: start it, listen, end it.

    PushHandle(job, limit)      the process is started, with descriptors of the job, the run directory and the spool
    listen                      its notices; its verdict once it has ended
    kill, wait                  end it; wait until it says something

Invariants:
- However a push ends, there is a verdict. Without one of its own the outcome is unknown.
- The uploader never waits for a push to read or to write: the job is a whole file, and the pipe is not blocking.
- What a push reads and sends lies beneath the directories that it is given, whatever becomes of their names.
- A push whose own timer does not end it, such as a stopped one, is killed GRACE seconds after its limit.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import Unknown, Verdict
from hf_mpwriter.push.job import Job, Notice, from_line
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch

GRACE = 10.0  # seconds after its limit until a push is killed
READ_SIZE = 1 << 16  # bytes


class PushHandle:
    """A push, seen from the uploader.

    Args:
        job: that it has to do.
        limit: seconds after which it has to be over.
        spool: of the run directory, with the descriptors of both; None opens them by their paths.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, job: Job, limit: float, spool: Spool | None = None) -> None:
        spool = spool or Spool.of(job.run_dir, job.spool, job.logdir)
        with launch.push_record(state.dump(job)) as record:
            given = (record, spool.run.fd, spool.directory.fd)
            self._process = subprocess.Popen(
                launch.push_command(job.run_dir, *given),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=given,
            )
        assert self._process.stdout is not None  # noqa: S101 - for the type checker; PIPE was asked for
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._limit, self._end = limit, time.monotonic() + limit + GRACE
        self._received = b""
        self._verdict: Verdict | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def listen(self) -> tuple[list[str], Verdict | None]:
        """The notices since the last time, and the verdict once the push has ended; never waits."""
        ended = self._process.poll() is not None
        if not ended and time.monotonic() > self._end:
            self.kill()
        while chunk := self._pipe.read(READ_SIZE):
            self._received += chunk
        *lines, self._received = self._received.split(b"\n")
        notices = []
        for message in map(from_line, lines):
            if isinstance(message, Notice):
                notices.append(message.text)
            elif message is not None:
                self._verdict = message
        if not ended:
            return notices, None
        self._pipe.close()
        return notices, self._verdict or self._how_it_ended(self._process.returncode)

    def _how_it_ended(self, code: int) -> Unknown:
        if code == -signal.SIGALRM or time.monotonic() > self._end:  # HTTP has timeouts of its own
            why = f"the push hung and was ended after {self._limit:.0f} s"
            return Unknown(why, xet="failing", too_slow=True)
        return Unknown(f"the push ended by signal {-code}" if code < 0 else f"the push ended by exit code {code}")

    def kill(self) -> None:
        """End the push; whether what it has sent arrives is unknown then."""
        self._process.kill()

    def wait(self, timeout: float) -> None:
        """Return when the push says something or ends, or after `timeout` seconds."""
        select.select([self._pipe], [], [], timeout)
