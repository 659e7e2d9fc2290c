"""The drain: has what was logged sent, and finds out what is on the Hub, and in the logdir of a staged run.

    ask      a push is requested of every run directory that has something to send: a member file without a claim
    finish   training is over: what there is, is measured once, and waited for
    follow   folders that others write event files into are runs, too

    supervisor                 thread of the drain
    ask, finish   ---------->  member files, uploaders, ledgers
    outcomes, is_over  <-----  one outcome per run directory, replaced as a whole

A followed folder:

    no event file yet              a look every LOOK_EVERY seconds
    event files                    the folder becomes a run; what is new is asked for every ROUND seconds
    a worker of ours logs there    its uploader sends all of the folder, when it is due

`sync --follow` has no thread: it calls `turn` until the writers have gone.

Invariants:
- Only this thread touches run directories. A disk that hangs holds up nothing else: the supervisor ends in time.
- What live workers have open is not waited for: other supervisors of the run answer for it. Nor are files of others,
  for which no process answers, but in followed folders.
- An uploader is started only where something is missing, and only for the Hub of this environment: a token belongs to
  one Hub, and the file that names the destination may come from anywhere.

The report at the end: one line per run directory. What is on the Hub, what is not, what finishes it.

all 12.3 MB of RUN_DIR are on the Hub: LINK
1.2 MB of the 12.3 MB of RUN_DIR are not on the Hub yet: REASON. An uploader goes on trying. To finish: COMMAND
RUN_DIR could not be read in time: REASON. To finish: COMMAND
nothing of RUN_DIR was uploaded: REASON                          it was to be followed
nothing more of RUN_DIR was uploaded: REASON                     the same, once it was removed

Of a staged run a line says also what is in its logdir, and the command brings it there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_ours
from hf_mpwriter.base.settings import OFFLINE, Environment, Settings, is_offline
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress, size_text, sync_command
from hf_mpwriter.spool.staging.logdir import Shortfall
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.spool.workers.members import OBSERVER, SUPERVISOR, MemberFile, Members
from hf_mpwriter.spool.workers.peers import Share
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.election import Election, MirrorElection

POLL = 0.1  # seconds between two looks at the ledgers
ENSURE_EVERY = 1.0  # seconds between two checks that an uploader lives
LOOK_EVERY = 5.0  # seconds between two looks at followed folders
ROUND = 300.0  # seconds between two uploads, as between two commits of a writer of ours
NOTHING_THERE, ABSENT = "it has no event files", "it does not exist"  # that may change while the program runs


@dataclass(frozen=True)
class Delivered:
    """What is known of one run directory."""

    run_dir: str  # absolute path
    destination: str = ""  # the page of the run on the Hub, "" if it is not known
    total: int = 0  # bytes that are to be on the Hub
    missing: Mapping[str, int] | None = None  # bytes per path that are not there
    reason: str = ""  # why the last push failed and what helps, or why nothing is known
    is_known: bool = False  # whether the run directory was read
    is_alive: bool = False  # whether an uploader lives
    is_over: bool = False  # whether there is nothing to wait for
    logdir: Shortfall = field(default_factory=Shortfall)  # what is not in the logdir of a staged run
    is_expected: bool = False  # whether the user has named it to be uploaded


class Upload:
    """What one run directory has to send to the Hub, and to its logdir if it is staged."""

    def __init__(
        self,
        spool: Spool,
        clock: Callable[[], float],
        *,
        with_others: bool = False,
        private: bool | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._spool, self._clock, self._with_others, self._private = spool, clock, with_others, private
        self._view, self._members = Progress(self._spool), Members(self._spool)
        self._file: MemberFile | None = None
        self._lengths: dict[str, int] | None = None
        self._asked_for: dict[str, int] = {}
        self._next_check, self._asked_at = 0.0, time.time()
        self.destination = self._spool.destination()  # where it goes, None for a local run
        is_ours = self.destination is not None and self.destination.is_at(endpoint or Environment.read().endpoint)
        self._election = Election(self._spool, self.destination if is_ours else None)
        self._mirror = MirrorElection(self._spool)

    @property
    def is_in_place(self) -> bool:
        """Whether all is as it was: no program has made its folder anew, and no writer has just said where it goes."""
        is_said = self.destination is not None or not self._spool.has_destination()
        return is_said and self._spool.run.is_at_path() and self._spool.directory.is_at_path()

    def join(self) -> MemberFile:
        """Be a member of the run: its uploader stays, and `status` says that the upload goes on."""
        if self._file is None:
            self._file = MemberFile(self._spool, SUPERVISOR, Process.current(), self._settings())
        return self._file

    def ask(self) -> None:
        """Ask for a push, if there is something to send."""
        lengths = self._measure(growing=True)
        if not self._missing(lengths) and not self._mirror.logdir.missing(lengths):
            return
        self.join().count(requests=1)
        self._asked_for = lengths
        self._ensure()

    def keep(self) -> str:
        """Make sure that an uploader lives while something is missing; why the last push failed, "" if it did not."""
        if self._missing(self._asked_for):
            self._ensure()
        status = self._view.uploader()
        return status.why if status.failing_since and status.failed_at >= self._asked_at else ""

    def _missing(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """What the Hub does not have, if anything is to go there."""
        return {} if self.destination is None else self._view.missing(lengths)

    def _settings(self) -> Settings:
        """How the run is uploaded."""
        if members := self._members.all():
            return max(members, key=lambda member: member.started_at).settings
        ledger = self._view.ledger()
        settings = (ledger.settings if ledger else None) or Settings()
        return settings if self._private is None else dataclasses.replace(settings, private=self._private)

    def _measure(self, *, growing: bool) -> dict[str, int]:
        """Bytes per path; what the Hub has is not read again."""
        ledger, there = self._view.ledger(), self._mirror.logdir.mirrored().files
        known = lambda path: max(there.get(path, 0), ledger.length(path) if ledger else 0)  # noqa: E731
        scan, allows = EventFileScan(self._spool.run, known), Share(self._spool).of(self._settings().allows)
        files = scan.files(allows, self._members.growing)
        lengths = {file.path: file.length for file in files if growing or self._is_final(file)}
        return lengths | attachments.sizes(self._spool.run, allows)

    def _is_final(self, file: LocalFile) -> bool:
        """Whether nothing more comes, now that training is over."""
        return not file.growing or (self._with_others and not is_ours(os.path.basename(file.path)))

    def _ensure(self) -> None:
        """Make sure that an uploader lives, and a mirror."""
        if self._clock() >= self._next_check:
            self._next_check = self._clock() + ENSURE_EVERY
            self._election.ensure_uploader()
            self._mirror.ensure_mirror()

    def finish(self) -> Delivered:
        """See what is missing of what there was when training was over, and that an uploader sends it."""
        if self._lengths is None:
            self._lengths = self._measure(growing=False)
        missing, status = self._missing(self._lengths), self._view.uploader()
        there, mirror = self._mirror.logdir.shortfall(self._lengths), self._mirror.logdir.status()
        refused = status.kind == Refused.__name__ and status.failed_at >= self._asked_at
        is_done = not missing or is_offline() or refused or self._view.is_hopeless(missing)
        refused = mirror.is_refused and mirror.failed_at >= self._asked_at
        if is_done and (not there.missing or refused or len(there.refused) == len(there.missing)):
            self.leave()
            works = self._view.uploader_is_alive() or there.is_alive
            is_over = bool(missing or there.missing) or not works or self._has_workers()
        else:
            is_over = False
            self._ensure()
        return Delivered(
            self._spool.run_dir,
            self.page,
            sum(self._lengths.values()),
            missing,
            "; ".join(self._view.refused(missing).values()) or status.why,
            is_known=True,
            is_alive=self._view.uploader_is_alive(),
            is_over=is_over,
            logdir=there,
        )

    @property
    def page(self) -> str:
        """The page of the run on the Hub, "" of a local run."""
        found = ledger.resolved if (ledger := self._view.ledger()) else self.destination
        return found.url if found else ""

    def _has_workers(self) -> bool:
        """Whether others still work here, or have a program that they follow; then the uploader stays for them."""
        return any(member.works and member.name.worker != OBSERVER for member in self._members.all())

    def leave(self) -> None:
        """Ask for nothing any more."""
        if self._file is not None and self.destination is None:
            self._file.withdraw()
        elif self._file is not None:
            self._file.leave()
        self._file = None


class NotARunError(HfMpWriterError):
    """A folder has nothing that could be sent."""


class Followed:
    """A folder into which others write event files."""

    def __init__(
        self,
        make_run: Callable[[], Spool],
        *,
        is_named: bool = True,
        private: bool | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.make_run, self.is_named, self.private = make_run, is_named, private
        self.endpoint = endpoint  # of the Hub that the user has confirmed, None for that of the environment
        self.is_told = False  # whether a worker of ours logs there
        self._next = 0.0
        self._last_reason = ""

    def is_due(self, now: float) -> bool:
        """Whether what is new is to be asked for now."""
        return not self.is_told and now >= self._next

    def begin_round(self, now: float) -> None:
        """What was new has been asked for."""
        self._next = now + ROUND

    def change(self, reason: str) -> str:
        """What to tell of the folder: that it begins to fail, or does not fail any more; "" for nothing new."""
        before, self._last_reason = self._last_reason, reason
        if reason == before:
            return ""
        return f"not on the Hub yet: {reason}" if reason else "uploads work again"


class Drain:
    """The run directories of a program, and the thread that tends them; it starts with the first `ask`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._say: Callable[[str], object] = lambda _: None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._asked, self._is_finishing = 0, False
        self._uploads: dict[str, tuple[Upload, int]] = {}  # how often each was asked
        self._outcomes: dict[str, Delivered] = {}
        self._followed: dict[str, Followed] = {}

    def add(self, run_dir: str) -> None:
        """Note a run directory that a worker has told."""
        self._outcomes.setdefault(run_dir, Delivered(run_dir))
        if run_dir in self._followed:
            self._followed[run_dir].is_told = True

    def follow(self, folders: Mapping[str, Followed], say: Callable[[str], object]) -> None:
        """Upload folders that others write event files into, from now on."""
        self._say = say
        self._followed |= folders
        for folder, followed in folders.items():
            self._outcomes[folder] = Delivered(folder, is_expected=followed.is_named)

    def ask(self) -> None:
        """Ask for a push of all run directories."""
        self._asked += 1
        self.start()

    def start(self) -> None:
        """Start the thread, or wake it."""
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Training is over: ask once more, and see what arrives."""
        self._is_finishing = True
        self.ask()

    @property
    def outcomes(self) -> list[Delivered]:
        """What is known of each run directory."""
        return list(self._outcomes.values())

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self._is_finishing and all(outcome.is_over for outcome in self.outcomes)

    def _run(self) -> None:
        while not self.is_over:
            self._wake.wait(POLL if self._is_finishing else LOOK_EVERY if self._followed else None)
            self._wake.clear()
            self.turn()

    def turn(self) -> None:
        """Do what is due for each run directory."""
        asked, is_finishing = self._asked, self._is_finishing
        for run_dir in list(self._outcomes):
            if not self._outcomes[run_dir].is_over:
                self._outcomes[run_dir] = self._tend(run_dir, asked, is_finishing=is_finishing)

    def leave(self) -> None:
        """Ask for nothing any more, where there is no thread: the uploaders need not stay."""
        for upload, _ in self._uploads.values():
            upload.leave()

    def _tend(self, run_dir: str, asked: int, *, is_finishing: bool) -> Delivered:
        """Do for a run directory what is due; what the disk refuses is tried again."""
        followed = self._followed.get(run_dir)
        is_followed = followed is not None and not followed.is_told
        try:
            self._forget_replaced(run_dir)
            upload, before = self._uploads.get(run_dir) or (self._opened(run_dir, followed), 0)
            self._uploads[run_dir] = upload, before  # it may hold a member file from now on
            is_due = followed is not None and followed.is_due(self._clock())
            if asked > before or is_due:
                upload.ask()
            if followed is not None and is_due:
                followed.begin_round(self._clock())
            self._uploads[run_dir] = upload, asked
            if is_finishing:
                return upload.finish()
            if followed is not None and is_followed:
                self._tell(run_dir, followed.change(upload.keep()))
            return self._outcomes[run_dir]
        except NotARunError as error:
            if followed is not None and followed.is_named and error.message not in (NOTHING_THERE, ABSENT):
                self._tell(run_dir, followed.change(error.message))
            return dataclasses.replace(self._outcomes[run_dir], reason=str(error), is_over=is_finishing)
        except (OSError, HfMpWriterError) as error:
            known = self._outcomes[run_dir]
            return Delivered(run_dir, known.destination, reason=str(error), is_expected=known.is_expected)

    def _forget_replaced(self, run_dir: str) -> None:
        """Forget what is known of a run directory that is gone: another one may be there, or come."""
        if run_dir in self._uploads and not (upload := self._uploads[run_dir][0]).is_in_place:
            del self._uploads[run_dir]
            upload.leave()
            page = upload.destination.url if upload.destination else ""
            self._outcomes[run_dir] = Delivered(run_dir, page, is_expected=self._outcomes[run_dir].is_expected)

    def _opened(self, run_dir: str, followed: Followed | None) -> Upload:
        """What a run directory has to send."""
        if followed is not None and not followed.is_told:
            run, private, endpoint = followed.make_run(), followed.private, followed.endpoint
            upload = Upload(run, self._clock, with_others=True, private=private, endpoint=endpoint)
            upload.join()
            self._say(f"uploading {run_dir} to {upload.page}")
            return upload
        if not os.path.lexists(run_dir):  # a temporary directory
            raise NotARunError("it was removed")
        return Upload(spool_of(find(run_dir)), self._clock, with_others=followed is not None)

    def _tell(self, run_dir: str, text: str) -> None:
        if text:
            self._say(f"{run_dir}: {text}")


def say(line: str) -> None:
    """Print a line, if anybody still reads."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hf-mpwriter run: {printable(line)}", file=sys.stderr, flush=True)


def lines(outcomes: Iterable[Delivered], *, is_first: bool, is_offline: bool, is_quiet: bool) -> Iterator[str]:
    """The report."""
    for outcome in outcomes:
        if outcome.is_known and not outcome.missing and not outcome.logdir.missing:
            if not is_quiet and outcome.total:
                places = [f"on the Hub: {outcome.destination}"] * bool(outcome.destination)
                places = [f"in {outcome.logdir.to}"] * bool(outcome.logdir.to) + places
                yield printable(f"all {size_text(outcome.total)} of {outcome.run_dir} are {', and '.join(places)}")
        elif outcome.is_known or not outcome.is_over:
            yield printable(_incomplete(outcome, is_first=is_first, is_offline=is_offline))
        elif outcome.is_expected:
            what = "nothing more" if outcome.destination else "nothing"
            yield printable(f"{what} of {outcome.run_dir} was uploaded: {outcome.reason}")


def _incomplete(outcome: Delivered, *, is_first: bool, is_offline: bool) -> str:
    there, command = outcome.logdir, sync_command(outcome.logdir.to or outcome.run_dir)
    if not outcome.is_known:
        why = f": {outcome.reason}".rstrip(".") if outcome.reason else ""
        return f"{outcome.run_dir} could not be read in time{why}. To finish: {command}"
    missing = sum((outcome.missing or {}).values())
    reason = OFFLINE if is_offline else outcome.reason
    text = f"{size_text(missing)} of the {size_text(outcome.total)} of {outcome.run_dir} are not on the Hub yet"
    text += f"{f': {reason}' if reason else ''}".rstrip(".") + "."
    worker, is_alive = "uploader", outcome.is_alive
    if not missing:
        text, worker, is_alive = there.sentence(), "mirror", there.is_alive
    elif there.missing:
        text = f"{text} {there.sentence()}"
    if is_first:
        return f"{text} The {worker} ends with this process, the first of its container. Keep the disk; then: {command}"
    if is_alive:
        article = "An" if worker == "uploader" else "A"
        return f"{text} {article} {worker} goes on trying, as long as this machine lets it. To finish: {command}"
    return f"{text} They stay on disk, and no {worker} runs. To finish: {command}"
