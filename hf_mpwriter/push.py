"""The push: one entry -> one verdict, in a fresh interpreter of its own.

    uploader --inflight.json-->  push  --lines on stdout-->  uploader
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
  commit, and always of files that the ledger does not know or that were offered with an unknown outcome.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import gc
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from hf_mpwriter import disk, errors, hfhome, redaction, spool
from hf_mpwriter.errors import (
    DAMAGED,
    Done,
    Moved,
    Park,
    Refused,
    Retry,
    Sent,
    SettingsError,
    Split,
    Unknown,
    Verdict,
)
from hf_mpwriter.identity import import_path
from hf_mpwriter.queue import parse_files
from hf_mpwriter.settings import Destination
from hf_mpwriter.snapshot import LocalFile

if TYPE_CHECKING:
    from hf_mpwriter.hub import Hub, Remote

DEADLINE_BASE = 300.0  # seconds for a push, however small
DEADLINE_RATE = 250_000.0  # bytes per second that a slow line carries
MOVED_TRIES = 3  # times that a push reads the head again after 412
GRACE = 10.0  # seconds after which the uploader ends a push that its own timer has not ended: one that is stopped
PR_SET_PDEATHSIG = 1
DEFAULTS = {  # what the user has not set; hf_xet would try for minutes, and the uploader tries again anyway
    "HF_HUB_VERBOSITY": "error",
    "HF_XET_CLIENT_READ_TIMEOUT": "60s",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "3",
}
FDS = os.path.isdir("/proc/self/fd")  # whether there are paths that lead to descriptors
NOTHING = Sent(0, "")  # what the Hub holds of a path that it does not have
UNUSABLE = "Check HF_ENDPOINT and the other HF_* variables, or run: pip install -U huggingface_hub"
FOREIGN = "the Hub has a file there that this run has not sent; remove it there, or choose another path_in_repo"

_BOOT = (
    "import gc,json,sys;gc.disable();"  # until `main` has imported the client
    "sys.path[:]=json.loads(sys.argv[3]);"
    "from hf_mpwriter import push;push.main(sys.argv[1],int(sys.argv[2]));push.end()"
)


@dataclass(frozen=True)
class Job:
    """What a push needs to know.

    Attributes:
        run_dir: absolute path.
        copies: where the copies of attachments are, absolute path.
        destination: where to.
        private: visibility for a repository that has to be created.
        squash: whether to squash the history after a commit.
        files: the entry.
        known: what the ledger says the Hub holds, per path.
        offered: what else it may hold of ours, per path of an attachment.
        own_head: this uploader's last commit, None if it has none or it may have been overtaken.
        fenced: whether commits name their parent.
        xet: whether content may go to the Xet storage; else by LFS.
    """

    run_dir: str
    copies: str
    destination: Destination
    private: bool | None
    squash: bool
    files: tuple[LocalFile, ...]
    known: dict[str, Sent]
    offered: dict[str, list[Sent]]
    own_head: str | None
    fenced: bool
    xet: bool

    def to_json(self) -> dict[str, Any]:
        """For inflight.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """From inflight.json."""
        fields = dict(data)
        fields["destination"] = Destination(**data["destination"])
        fields["files"] = parse_files(data["files"])
        fields["known"] = {path: Sent(**sent) for path, sent in data["known"].items()}
        fields["offered"] = {path: [Sent(**one) for one in offers] for path, offers in data["offered"].items()}
        return cls(**fields)

    @contextlib.contextmanager
    def sources(self, files: list[LocalFile]) -> Iterator[list[tuple[LocalFile, str]]]:
        """Where the content of each file is: a path that leads to the very file that was opened.

        No part of the way below the run directory is a link then, and what becomes of names afterwards does not matter.
        """
        with contextlib.ExitStack() as stack:
            found = []
            for file in files:
                top, relative = (self.copies, file.sha256) if file.sha256 else (self.run_dir, file.path)
                fd = disk.open_beneath(top, relative)
                stack.callback(os.close, fd)
                found.append((file, f"/proc/self/fd/{fd}" if FDS else os.path.join(top, relative)))
            yield found


def deadline(job: Job) -> float:
    """Seconds after which a push is given up."""
    return DEADLINE_BASE + sum(file.length for file in job.files) / DEADLINE_RATE


def carry(job: Job, hub: Hub, notify: Notify, rng: random.Random) -> Verdict:
    """Bring the entry to the Hub."""
    from hf_mpwriter.judge import judge, text_of

    verdict: Verdict = Moved("not tried")
    for attempt in range(MOVED_TRIES):
        before = hub.commits_sent
        try:
            verdict = _attempt(job, hub, notify, trust_own_head=attempt == 0)
        except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
            verdict = judge(error)
            if len(job.files) > 1 and isinstance(error, OSError) and error.errno == errno.EMFILE:
                verdict = Split(text_of(error))
        if isinstance(verdict, Unknown) and hub.commits_sent == before:  # no content of ours can be there
            verdict = Retry(verdict.reason, verdict.after)
        if not isinstance(verdict, Moved):
            break
        time.sleep(rng.uniform(0.1, 1.0))
    return verdict


def _attempt(job: Job, hub: Hub, notify: Notify, *, trust_own_head: bool) -> Verdict:
    """Read back and commit."""
    unsure = {file.path for file in job.files if file.path not in job.known or file.path in job.offered}
    parent = job.own_head if trust_own_head else None
    checked = parent is None
    if parent is None:
        parent = _head(job, hub, notify)
        unsure |= set(job.known)
    there = hub.sizes(unsure, parent) if unsure else {}
    found, differing = read_back(job, unsure, there)
    for path in [path for path in differing if _is_shorter(job, path, there[path])]:
        if hub.begins_with(path, os.path.join(job.run_dir, path), parent):  # a backup was restored, without its ledger
            found[path] = Sent(there[path].size, there[path].sha256 or "")
            del differing[path]
    held = job.known | found
    to_send = [file for file in job.files if not file.is_covered(held.get(file.path, NOTHING))]
    differing |= {file.path: FOREIGN for file in to_send if file.sha256 and held.get(file.path, NOTHING).adopted}
    if differing:
        return Park(differing)
    if not to_send:
        return Done(parent, own=False, repo_id=hub.repo_id, files=found, checked=checked)
    first = all(sent.is_gone for sent in held.values())
    if first and (private := hub.is_private()) is not None:
        notify(f"{job.destination} is {'private' if private else 'PUBLIC: everybody can read it'}")
    commit, sent = _commit(job, hub, to_send, parent, tag_card=first)
    if ignored := [file.path for file in to_send if file.path not in sent]:
        return Park(dict.fromkeys(ignored, "the repository's .gitignore leaves it out"), committed=True)
    if job.squash:
        commit = _squash(hub, notify) or commit
    return Done(commit, own=True, repo_id=hub.repo_id, files=found | sent, checked=checked)


def _head(job: Job, hub: Hub, notify: Notify) -> str:
    if (head := hub.head()) is None:
        hub.create(private=job.private)
        if (head := hub.head()) is None:
            raise OSError(f"{job.destination} has no branch {job.destination.revision!r} after it was created")
        notify(f"created {job.destination}")
    return head


def _commit(job: Job, hub: Hub, files: list[LocalFile], parent: str, *, tag_card: bool) -> tuple[str, dict[str, Sent]]:
    """Commit; if the commit is refused together with the model card, the events go without it."""
    from hf_mpwriter.judge import judge

    named = parent if job.fenced else None
    with job.sources(files) as sources:
        try:
            return hub.commit(sources, named, tag_card=tag_card)
        except Exception as error:
            if not tag_card or not isinstance(judge(error), Split):
                raise
        return hub.commit(sources, named, tag_card=False)  # not above: it has nothing to do with the first one's error


def _squash(hub: Hub, notify: Notify) -> str | None:
    """Squash the history; the new head. The data is on the Hub already, so a failure is only told."""
    try:
        hub.squash()
        return hub.head()
    except Exception as error:  # noqa: BLE001 - every error of the client
        notify(f"the history could not be squashed: {type(error).__name__}")
        return None


def read_back(job: Job, paths: set[str], remote: dict[str, Remote]) -> tuple[dict[str, Sent], dict[str, str]]:
    """Compare the Hub's copies with the local files.

    Args:
        job: what is known.
        paths: which to compare.
        remote: what the Hub has of them.

    Returns:
        What the Hub holds now where that differs from what is known (length 0: gone) or where the outcome of an offer
        was open, and the paths whose copy is not ours to replace, with the reason: no prefix of the local file, no
        content that this run has sent.
    """
    found, differing = {}, {}
    adoptable = {file.path: dataclasses.replace(file.content, adopted=True) for file in job.files}
    for path in paths:
        there, known = remote.get(path), job.known.get(path)
        contents = [*job.offered.get(path, ()), adoptable.get(path, NOTHING)] if spool.is_attachment(path) else None
        if there is None or (there.size == 0 and contents is None):
            if known is not None:
                found[path] = NOTHING
        elif known is not None and _is(known, there):
            if path in job.offered:
                found[path] = known
        elif contents is None:
            if _is_beginning(job, path, there):
                found[path] = Sent(there.size, there.sha256 or "")
            else:
                differing[path] = f"the Hub's copy ({there.size} bytes) is not the beginning of the local file"
        elif ours := next((content for content in contents if _is(content, there)), None):
            found[path] = ours
        else:
            differing[path] = FOREIGN
    return found, differing


def _is(content: Sent, there: Remote) -> bool:
    if there.sha256 is not None:
        return (content.length, content.sha256) == (there.size, there.sha256)
    return (content.length, content.blob_id) == (there.size, there.oid)


def _is_beginning(job: Job, path: str, there: Remote) -> bool:
    from hf_mpwriter.hub import same_content

    local = os.path.join(job.run_dir, path)
    if not os.path.lexists(local) or (path in job.known and _is_shorter(job, path, there)):
        return True  # the Hub has more of a file of ours than this disk: it is gone here, or a backup was restored
    return same_content(local, there)


def _is_shorter(job: Job, path: str, there: Remote) -> bool:
    """Whether an event file has become shorter here than the Hub's copy."""
    if spool.is_attachment(path):
        return False
    with contextlib.suppress(OSError):
        return os.stat(os.path.join(job.run_dir, path), follow_symlinks=False).st_size < there.size
    return False


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


class PushProcess:
    """A push, seen from the uploader.

    Args:
        inflight: path of the record that holds the job.
        limit: seconds after which it has to be over.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, inflight: str, limit: float) -> None:
        argv = [sys.executable, "-P", "-c", _BOOT, inflight, str(os.getpid()), json.dumps(import_path())]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
        stdout: Any = self._process.stdout  # never None: PIPE was asked for
        os.set_blocking(stdout.fileno(), False)
        self._pipe = stdout
        self._limit, self._end = limit, time.monotonic() + limit + GRACE
        self._heard = b""
        self._verdict: Verdict | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def listen(self) -> tuple[list[str], Verdict | None]:
        """What the push has said since the last time, and its verdict once it has ended; never waits."""
        ended = self._process.poll() is not None
        if not ended and time.monotonic() > self._end:
            self.kill()
        while chunk := self._pipe.read(1 << 16):
            self._heard += chunk
        *lines, self._heard = self._heard.split(b"\n")
        notices = []
        for message in _messages(lines):
            if "notice" in message:
                notices.append(str(message["notice"]))
            else:
                self._verdict = parse_verdict(message)
        if not ended:
            return notices, None
        self._pipe.close()
        return notices, self._verdict or self._how_it_ended(self._process.returncode)

    def _how_it_ended(self, code: int) -> Unknown:
        if code == -signal.SIGALRM or time.monotonic() > self._end:  # HTTP has timeouts of its own
            return Unknown(f"the push hung and was ended after {self._limit:.0f} s", xet="failing")
        return Unknown(f"the push ended by signal {-code}" if code < 0 else f"the push ended by exit code {code}")

    def kill(self) -> None:
        """End it; whether what it has sent arrives is then unknown."""
        self._process.kill()

    def wait(self, timeout: float) -> None:
        """Return when the push says something, or after `timeout` seconds."""
        select.select([self._pipe], [], [], timeout)


def _messages(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """What is ours of these lines; what a start of Python prints (`sitecustomize`, a .pth file) comes the same way."""
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(message := json.loads(line), dict):
                yield message


def parse_verdict(data: dict[str, Any]) -> Verdict | None:
    """The verdict of a message; None if it cannot be read."""
    try:
        kind = getattr(errors, data.pop("verdict"))
        if kind is Done:
            data["files"] = {path: Sent(**sent) for path, sent in data["files"].items()}
        verdict: Verdict = kind(**data)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return verdict


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, on Linux even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(inflight: str, parent: int) -> None:
    """Entry point of the process: read the job, carry it, report."""
    die_with_parent(parent)
    notify = Notify(os.dup(1))
    os.dup2(2, 1)  # whatever libraries print goes to the log
    redaction.guard()
    try:
        job = Job.from_json(json.loads(disk.read(inflight) or b"")["job"])
    except (*DAMAGED, OSError, SettingsError) as error:
        notify.verdict(Retry(f"{inflight} cannot be read: {error}"))
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
    os.environ |= hfhome.writable_caches(os.environ, spool.HostSpool(os.path.dirname(inflight)).cache)
    try:
        from hf_mpwriter.hub import Hub
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
