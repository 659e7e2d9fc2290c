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
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_ours
from hf_mpwriter.base.settings import Environment, Settings
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.delivery.sentences import RunEnd, lost_text, of_other_writers
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink, Question, Sink, name_of
from hf_mpwriter.delivery.wait import Wanted
from hf_mpwriter.snapshot import attachments, event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.snapshot.search import SECONDS_OF_A_WAIT
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.members import OBSERVER, SUPERVISOR, MemberFile, Members
from hf_mpwriter.spool.workers.peers import Share
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable

POLL = 0.1  # seconds between two looks at the ledgers
ENSURE_EVERY = 1.0  # seconds between two checks that an uploader lives
LOOK_EVERY = 5.0  # seconds between two looks at followed folders
ROUND = 300.0  # seconds between two uploads, as between two commits of a writer of ours
NOTHING_THERE, ABSENT = "it has no event files", "it does not exist"  # that may change while the program runs


class Upload:
    """What one run directory has to send to the Hub, and to its logdir if it is staged."""

    def __init__(
        self,
        spool: Spool,
        *,
        with_others: bool = False,
        private: bool | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._spool, self._with_others, self._private = spool, with_others, private
        self._hub, self._logdir, self._members = HubSink(spool), LogdirSink(spool), Members(spool)
        self._scan = EventFileScan(spool.run, self._known, seconds=SECONDS_OF_A_WAIT)
        self._file: MemberFile | None = None
        self._wanted: list[Wanted] | None = None  # what there was when training was over
        self._asked_for: dict[str, int] = {}
        self._next_check, self._asked_at = 0.0, time.time()
        self.destination = self._spool.destination()  # where it goes, None for a local run
        is_ours = self.destination is not None and self.destination.is_at(endpoint or Environment.read().endpoint)
        self._uploader, self._mirror = Election(spool, "uploader"), Election(spool, "mirror")
        self._start = uploader_start(spool, self.destination, time.time()) if is_ours and self.destination else None

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
        if not any(one.missing() for one in self._wants(lengths)):
            return
        self.join().count(requests=1)
        self._asked_for = lengths
        self._ensure()

    def keep(self) -> str:
        """Make sure that an uploader lives while something is missing; why the last push failed, "" if it did not."""
        if any(one.missing() for one in self._wants(self._asked_for)):
            self._ensure()
        status = self._hub.status()
        return status.why if status.failing_since and status.failed_at >= self._asked_at else ""

    def _wants(self, lengths: Mapping[str, int]) -> list[Wanted]:
        """What is to be in each sink that the run has."""
        sinks: list[Sink] = [self._hub] * (self.destination is not None)
        sinks += [self._logdir] * self._logdir.is_staged
        return [Wanted(sink, lengths, Question(self._asked_at)) for sink in sinks]

    def _settings(self) -> Settings:
        """How the run is uploaded."""
        if members := self._members.all():
            return max(members, key=lambda member: member.started_at).settings
        ledger = self._hub.ledger()
        settings = (ledger.settings if ledger else None) or Settings()
        return settings if self._private is None else dataclasses.replace(settings, private=self._private)

    def _measure(self, *, growing: bool) -> dict[str, int]:
        """Bytes per path; what the Hub has is not read again, and what cannot be read at once counts as whole."""
        ledger = self._hub.ledger()
        scan, allows = self._scan, Share(self._spool).of(self._settings().allows)
        named = self._members.named(ledger.files if ledger else ())
        files = scan.files(allows, self._members.growing, named=named)
        lengths = {file.path: file.length for file in (*files, *scan.unread) if growing or self._is_final(file)}
        until = time.monotonic() + SECONDS_OF_A_WAIT
        return lengths | attachments.sizes(self._spool.run, allows, named=named, until=until)

    def _known(self, path: str) -> int:
        """Bytes of an event file that need no reading."""
        ledger = self._hub.ledger()
        return max(self._logdir.mirrored().files.get(path, 0), ledger.length(path) if ledger else 0)

    def _is_final(self, file: LocalFile) -> bool:
        """Whether nothing more comes, now that training is over."""
        return not file.growing or (self._with_others and not is_ours(os.path.basename(file.path)))

    def _ensure(self) -> None:
        """Make sure that an uploader lives, and a mirror."""
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + ENSURE_EVERY
            self._uploader.ensure(self._start)
            self._mirror.ensure(self._logdir.start())

    def finish(self) -> RunEnd:
        """See what is missing of what there was when training was over, and that an uploader sends it."""
        if self._wanted is None or self._scan.unread:
            self._wanted = self._wants(self._measure(growing=False))
        deliveries, is_over = tuple(one.look() for one in self._wanted), False
        if all(delivery.is_complete or delivery.is_final for delivery in deliveries):
            self.leave()
            works = any(delivery.carrier.is_alive for delivery in deliveries)
            is_late = any(delivery.missing for delivery in deliveries)
            is_over = is_late or not works or self._has_workers()
        else:
            self._ensure()
        logdir = name_of(self._spool)
        lost = lost_text(losses(self._spool), logdir)
        return RunEnd(self._spool.run_dir, logdir, deliveries, is_known=True, is_over=is_over, lost=lost)

    @property
    def page(self) -> str:
        """The page of the run on the Hub, "" of a local run."""
        return self._hub.page

    def of_others(self) -> str:
        """The event files of other writers that begin to go to a repository that is not to be private."""
        if self._hub.has_arrived or (settings := self._settings()).private:
            return ""
        return of_other_writers(event_files.sizes(self._spool.run, settings.allows))

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


@dataclass
class Followed:
    """A folder into which others write event files."""

    make_run: Callable[[], Spool]
    is_named: bool = True  # whether the user has named it
    private: bool | None = None  # of a repository that is created
    endpoint: str | None = None  # of the Hub that the user has confirmed, None for that of the environment
    is_told: bool = False  # whether a worker of ours logs there
    _next: float = 0.0  # monotonic seconds
    _last_reason: str = ""

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

    def __init__(self) -> None:
        self._say: Callable[[str], object] = lambda _: None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._asked, self._is_finishing = 0, False
        self._uploads: dict[str, tuple[Upload, int]] = {}  # how often each was asked
        self._outcomes: dict[str, RunEnd] = {}
        self._followed: dict[str, Followed] = {}

    def add(self, run_dir: str) -> None:
        """Note a run directory that a worker has told."""
        self._outcomes.setdefault(run_dir, RunEnd(run_dir))
        if run_dir in self._followed:
            self._followed[run_dir].is_told = True

    def follow(self, folders: Mapping[str, Followed], say: Callable[[str], object]) -> None:
        """Upload folders that others write event files into, from now on."""
        self._say = say
        self._followed |= folders
        for folder, followed in folders.items():
            self._outcomes[folder] = RunEnd(folder, is_expected=followed.is_named)

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
    def outcomes(self) -> list[RunEnd]:
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

    def _tend(self, run_dir: str, asked: int, *, is_finishing: bool) -> RunEnd:
        """Do for a run directory what is due; what the disk refuses is tried again."""
        followed = self._followed.get(run_dir)
        is_followed = followed is not None and not followed.is_told
        try:
            self._forget_replaced(run_dir)
            upload, before = self._uploads.get(run_dir) or (self._opened(run_dir, followed), 0)
            self._uploads[run_dir] = upload, before  # it may hold a member file from now on
            is_due = followed is not None and followed.is_due(time.monotonic())
            if asked > before or is_due:
                upload.ask()
            if followed is not None and is_due:
                followed.begin_round(time.monotonic())
            self._uploads[run_dir] = upload, asked
            if is_finishing:
                return upload.finish()
            if followed is not None and is_followed:
                self._tell(run_dir, followed.change(upload.keep()))
            return self._outcomes[run_dir]
        except NotARunError as error:
            if followed is not None and followed.is_named and error.message not in (NOTHING_THERE, ABSENT):
                self._tell(run_dir, followed.change(error.message))
            return dataclasses.replace(self._outcomes[run_dir], trouble=str(error), is_over=is_finishing)
        except (OSError, HfMpWriterError) as error:
            known = self._outcomes[run_dir]
            return RunEnd(run_dir, trouble=str(error), was_sent=known.was_sent, is_expected=known.is_expected)

    def _forget_replaced(self, run_dir: str) -> None:
        """Forget what is known of a run directory that is gone: another one may be there, or come."""
        if run_dir in self._uploads and not (upload := self._uploads[run_dir][0]).is_in_place:
            del self._uploads[run_dir]
            upload.leave()
            is_expected, was_sent = self._outcomes[run_dir].is_expected, upload.destination is not None
            self._outcomes[run_dir] = RunEnd(run_dir, was_sent=was_sent, is_expected=is_expected)

    def _opened(self, run_dir: str, followed: Followed | None) -> Upload:
        """What a run directory has to send."""
        if followed is not None and not followed.is_told:
            run, private, endpoint = followed.make_run(), followed.private, followed.endpoint
            upload = Upload(run, with_others=True, private=private, endpoint=endpoint)
            upload.join()
            others = f" ({found})" if (found := upload.of_others()) else ""
            self._say(f"{run_dir} goes to {upload.page}{others}")
            return upload
        if not os.path.lexists(run_dir):  # a temporary directory
            raise NotARunError("it was removed")
        return Upload(spool_of(find(run_dir)), with_others=followed is not None)

    def _tell(self, run_dir: str, text: str) -> None:
        if text:
            self._say(f"{run_dir}: {text}")


def say(line: str) -> None:
    """Print a line, if anybody still reads."""
    with contextlib.suppress(OSError, ValueError):
        print(f"hf-mpwriter run: {printable(line)}", file=sys.stderr, flush=True)
