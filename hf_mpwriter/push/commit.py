"""From a job to a verdict: read back what the Hub holds, then commit what it lacks.

    head of the branch -> compare the Hub's copies with the local files -> commit with that head as parent
      | gone, though it has had something of this run: Refused
      | public, though the first bytes are to be private: Refused
      ^                     |                                                |
      |                     +-- a copy that is not ours: Quarantine          +-- Done, or what the error means
      +---------------------------------- 412: the branch has moved ---------+

Invariants:
- A commit names its parent unless the job says otherwise, and at most one request of a push has an unknown outcome:
  after it the push ends. Of two commits that name the same parent the Hub applies one, so a request that is still
  under way is refused (412) as soon as the branch has moved.
- A file is sent only if the Hub's copy at that very parent is a prefix of it or, of an attachment, a content that this
  run has sent. Sizes and digests are read back there: of all files, unless the parent is this uploader's own last
  commit, and always of files that the ledger does not know or whose content is uncertain.
- A copy that is not ours to replace, though the head is a commit of ours, is downloaded and compared before that is
  believed: a Hub may tell today's sizes at each revision.
- A repository is not created again unasked after it took something.
- What others have deleted from a repository that lives on is not sent again unasked. A repository that was made anew
  gets everything: the Hub tells of each when it was created; where it does not, the history has our last commit or not.
- The parts of a job are compared at one commit and sent in one. What is wrong with the files, the disk or the copies of
  one run is a verdict on its part alone.
- What is sent is the very file that was opened below the run directory, not through a link, whatever becomes of names;
  and it is not of another run, even if its folder became one after the batch was made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from hf_mpwriter.base import names
from hf_mpwriter.base.files import PAYLOAD_LIMIT, LocalFile, begins_with
from hf_mpwriter.base.verdicts import (
    CREATED,
    Cause,
    Done,
    Moved,
    Quarantine,
    Refused,
    Retry,
    Sent,
    Split,
    Unknown,
    Verdict,
)
from hf_mpwriter.base.words import command_line
from hf_mpwriter.push.classify import classify, disk_error, is_of_disk, plain, text_of
from hf_mpwriter.push.client import PARENT_DIGITS, Hub, NotQuietError, PathError, Remote, Source, SourceError
from hf_mpwriter.push.job import SCRATCH, Job, Message, Notice, Part
from hf_mpwriter.snapshot.large_files import snapshot_of
from hf_mpwriter.snapshot.search import check_is_of_run
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

MOVED_TRIES = 3  # times that a push reads the head again after 412
NOTHING = Sent(0, "")  # what the Hub holds of a path that it does not have
DELETED = Sent(0, "", deleted=True)  # the same, where others have deleted it from a repository that lives on
FOREIGN = "the Hub has a file there that this run has not sent; remove it there, or choose another path_in_repo"
IGNORED = "the repository's .gitignore leaves it out"

GONE = (
    "If it was deleted, a new one is made by: {}. If it was renamed, or access to it was "
    "withdrawn: check its name and the token (hf auth login). A new run directory starts anew, too."
)
PUBLIC = "Make it private in its settings, name another repository, or log without repo_private=True."


OTHERS = (
    "{} has event files that are not of this run directory: of another run of its name, or of an earlier attempt on "
    "another disk. TensorBoard shows them as one run. If it is one, bring them here before its next start: {}. If "
    "they are two, give one of them another path_in_repo."
)
Tell = Callable[[Message], object]


class GoneError(Exception):
    """The repository or the branch is gone, and may not be created."""


@dataclass(frozen=True)
class Comparison:
    """What the Hub holds of a run at one commit, compared with its part of the job."""

    found: dict[str, Sent]  # what it holds where that is not known yet; a length of 0 if a file is gone
    differing: dict[str, str]  # paths whose copy is not ours to replace, each with the reason
    complete: bool  # whether all that the ledger knows was compared
    at_head: bool = False  # whether the Hub has just said that this is the head of the branch


@dataclass(eq=False)
class Load:
    """A part of a job on its way, until there is a verdict on it."""

    number: int  # of the part
    part: Part
    spool: Spool
    verdict: Verdict | None = None
    seen: Comparison = field(default_factory=lambda: Comparison({}, {}, complete=False))
    to_send: list[LocalFile] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)  # of these, opened

    @property
    def is_new(self) -> bool:
        """Whether the Hub has nothing of this run."""
        return all(sent.is_gone for sent in (self.part.known | self.seen.found).values())

    def compared(self) -> None:
        """Find out what is to be sent, and whether anything may be."""
        held = self.part.known | self.seen.found
        self.to_send = [file for file in self.part.files if not file.is_covered(held.get(file.path, NOTHING))]
        foreign = {file.path: FOREIGN for file in self.to_send if file.sha256 and held.get(file.path, NOTHING).foreign}
        if refused := self.seen.differing | foreign:
            self.verdict = Quarantine(refused)

    def done(self, hub: Hub, parent: str, commit: str, sent: Mapping[str, Sent], *, fenced: bool) -> None:
        """The Hub has all that was to be sent; `sent` by its path in the repository."""
        found = {
            file.path: sent[self.part.target(file.path)] for file in self.to_send if self.part.target(file.path) in sent
        }
        if ignored := [file.path for file in self.to_send if file.path not in found]:
            self.verdict = Quarantine(dict.fromkeys(ignored, IGNORED), committed=True)
            return
        self.verdict = Done(
            commit,
            bool(found),
            hub.repo_id,
            self.seen.found | found,
            checked=self.seen.complete,
            asked=self.seen.at_head or (bool(found) and fenced),
            private=hub.private,
            parent=parent,
            created_at=hub.created_at,
        )


def _going(loads: Iterable[Load]) -> list[Load]:
    return [load for load in loads if load.verdict is None]


def carry(
    job: Job,
    spools: Sequence[Spool],
    hub: Hub,
    tell: Tell,
    rng: random.Random,
    refused: Mapping[int, Verdict] = MappingProxyType({}),
) -> list[Verdict]:
    """Bring the parts of a job to the Hub in one commit: a verdict on each; there is one on those that are refused.

    What is wrong with one of them keeps no other one back. A failure that is not of one alone is of all that are left.
    """
    pairs = zip(job.parts, spools, strict=True)
    loads = [Load(number, *one, refused.get(number)) for number, one in enumerate(pairs)]
    verdict: Verdict = Moved("not tried")
    for attempt in range(MOVED_TRIES):
        for load in loads:  # the branch has moved since
            load.verdict = None if isinstance(load.verdict, Done) else load.verdict
        going, sent_before = _going(loads), hub.commits_sent
        try:
            verdict = _attempt(job, going, hub, tell, trust_own_head=attempt == 0) or verdict
        except GoneError as error:
            for load in going:
                load.verdict = Refused(str(error), GONE.format(command_line("sync", load.spool.logdir, "--create")))
        except (SourceError, PathError, NotQuietError) as error:
            verdict = Retry(text_of(error))
            _take_in(error, going)
            continue
        except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
            verdict = _verdict_on(error, job)
        if isinstance(verdict, Unknown) and hub.commits_sent == sent_before:  # no content of ours can be there
            verdict = Retry(verdict.reason, verdict.after, cause=verdict.cause, hint=verdict.hint)
        if not _going(loads) or not _is_tried_again(verdict, hub, rng):
            break
    return [load.verdict or verdict for load in loads]


def _is_tried_again(verdict: Verdict, hub: Hub, rng: random.Random) -> bool:
    """Whether the same push tries again: after a pause where the branch has moved, by LFS where there is no Xet."""
    if isinstance(verdict, Retry) and verdict.xet == "missing":
        hub.go_by_lfs()
        return True
    if isinstance(verdict, Moved):
        time.sleep(rng.uniform(0.1, 1.0))
        return True
    return False


def _take_in(error: SourceError | PathError | NotQuietError, loads: Iterable[Load]) -> None:
    """Leave out the load of a file that cannot be sent, or is not what it was; cut those that grow."""
    for load in loads:
        if isinstance(error, NotQuietError):
            load.part = load.part.with_growing(error.paths)
            continue
        path = next((source.file.path for source in load.sources if source.target == error.target), None)
        if path is not None:
            is_path = isinstance(error, PathError)
            load.verdict = Quarantine({path: text_of(error)}) if is_path else Retry(text_of(error), cause=Cause.DISK)


def _verdict_on(error: Exception, job: Job) -> Verdict:
    note(text_of(error))
    if len(job.files) > 1 and disk_error(error) == errno.EMFILE:
        return Split(text_of(error), too_large=True)
    return plain(error, job.destination, os.environ)


def _attempt(job: Job, loads: list[Load], hub: Hub, tell: Tell, *, trust_own_head: bool) -> Verdict | None:
    """Read back and commit, once; a verdict on the loads that have none of their own."""
    parent = _compare(job, loads, hub, tell, job.own_head if trust_own_head else None)
    for load in _going(loads):
        load.compared()
    new = [load for load in _going(loads) if load.to_send and load.is_new]
    _tell_visibility(job, hub, tell, new)
    _spare(job, loads, new, hub, parent)
    with contextlib.ExitStack() as opened:
        if not (sending := _opened(job, loads, opened)):
            return None
        found = [source for load in sending for source in load.sources]
        try:
            commit, sent = hub.commit(found, parent, fenced=job.fenced, tag_card=bool(new))
        except Exception as error:
            if not _may_blame_parent(job, parent, classify(error)):
                raise
            return Moved(f"it may be that the Hub does not take 40 digits of its id as parent: {text_of(error)}")
    for load in set(sending).intersection(new):
        _tell_others(job, load, hub, tell, parent)
    if job.squash:
        commit = _squash(hub, tell) or commit
    for load in sending:
        load.done(hub, parent, commit, sent, fenced=job.fenced)
    return None


def _spare(job: Job, loads: Iterable[Load], new: Sequence[Load], hub: Hub, parent: str) -> None:
    """Take out the loads that need no commit, and those that must not go to a public repository."""
    for load in _going(loads):
        if not load.to_send:
            load.done(hub, parent, parent, {}, fenced=job.fenced)
        elif load in new and load.part.private and hub.private is False:
            page = _page(job, hub)
            load.verdict = Refused(
                f"{page} is PUBLIC, and repo_private=True was asked for: nothing is sent.", PUBLIC, Cause.VISIBILITY
            )


def _opened(job: Job, loads: Iterable[Load], stack: contextlib.ExitStack) -> list[Load]:
    """The loads without a verdict, with their files opened."""
    for load in _going(loads):
        try:
            load.sources = stack.enter_context(sources(load))
        except OSError as error:
            load.verdict = _verdict_on(error, job)
    return _going(loads)


def _may_blame_parent(job: Job, parent: str, verdict: Verdict) -> bool:
    """Whether a refusal may be about a parent that cannot be named as a whole; attachments always name one."""
    content = isinstance(verdict, Split) and not verdict.too_large
    return content and job.fenced and len(parent) > PARENT_DIGITS and not any(file.sha256 for file in job.files)


@contextlib.contextmanager
def sources(load: Load) -> Iterator[list[Source]]:
    """The files of a load that are to be sent, opened."""
    part, spool = load.part, load.spool
    with contextlib.ExitStack() as stack:
        found = []
        for file in load.to_send:
            check_is_of_run(spool.run, file.path)  # a batch may be older than another run below this one
            place = spool.directory / part.copies / file.sha256 if file.sha256 else spool.run / file.path
            fd = disk.open_beneath(place)
            stack.callback(os.close, fd)
            path = path_to(fd)
            is_cut = file.growing or os.fstat(fd).st_size != file.length
            if is_cut and file.length > PAYLOAD_LIMIT and not file.sha256:
                scratch = (spool.directory / part.copies).parent
                path = stack.enter_context(snapshot_of(fd, file.length, scratch))
            found.append(Source(file, path, part.target(file.path)))
        yield found


def path_to(fd: int) -> str:
    """A path that leads to an open file, for the client, which takes no descriptor."""
    return f"/proc/self/fd/{fd}"


@contextlib.contextmanager
def opened(place: Place) -> Iterator[str]:
    """A path that leads to the regular file at a place, and to no other, whatever becomes of names; see `path_to`."""
    fd = disk.open_beneath(place)
    try:
        yield path_to(fd)
    finally:
        os.close(fd)


# what is told


def note(text: str) -> None:
    """Write what the client says to the log of the uploader, which is where the standard error of a push goes."""
    with contextlib.suppress(OSError):  # a full disk
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} [{os.getpid()}] the client says: {text}", file=sys.stderr, flush=True)


def _page(job: Job, hub: Hub) -> str:
    """The page of the repository, which opens once it exists."""
    return job.destination.repository_url(hub.repo_id)


def _tell_visibility(job: Job, hub: Hub, tell: Tell, new: list[Load]) -> None:
    """Say who can read what is sent: before the first bytes, and when it has changed; once for all runs.

    What others have written is listed before it becomes public.
    """
    private, at = hub.is_private() if new else hub.private, _page(job, hub)
    text, whose = "private" if private else "PUBLIC: everybody can read it", new[0].number if new else 0
    if None not in (private, job.was_private):
        for number in range(len(job.parts)) if private != job.was_private else ():
            tell(Notice(f"{at} is {text} now", number))
    elif new and private is not None:
        tell(Notice(f"{at} is {text}", whose))
    elif new and private is None and new[0].part.private:
        tell(Notice(f"{at}: the Hub does not say whether it is private", whose))
    for load in new if private is not True else ():
        if load.part.of_others:
            tell(Notice(f"{at} gets {load.part.of_others}", load.number))


def _tell_others(job: Job, load: Load, hub: Hub, tell: Tell, parent: str) -> None:
    """Say once that others had event files where this run has begun to put its own."""
    part, first = load.part, os.path.dirname(load.to_send[0].path)
    with contextlib.suppress(Exception):  # the data is on the Hub, and this is not asked a second time
        there = hub.tree(parent, part.target(first).rstrip("/"))
        names_there = (path.removeprefix(part.folder).lstrip("/") for path in there)
        others = (path for path in names_there if names.is_event_file(os.path.basename(path)))
        if any(not (load.spool.run / path).exists() for path in others):
            page = dataclasses.replace(job.destination, path_in_repo=part.folder).resolved(hub.repo_id).url
            tell(Notice(OTHERS.format(page, command_line("pull", load.spool.logdir)), load.number))


def _squash(hub: Hub, tell: Tell) -> str | None:
    """Squash the history; the new head. The data is on the Hub already, so a failure is only a notice."""
    try:
        hub.squash()
        return hub.head()
    except Exception as error:  # noqa: BLE001 - every error of the client
        tell(
            Notice(
                f"the history could not be squashed ({type(error).__name__}): it is tried again after a later commit"
            )
        )
        return None


# read back


def _compare(job: Job, loads: Iterable[Load], hub: Hub, tell: Tell, own_head: str | None) -> str:
    """Compare the Hub's copies with the local files, at `own_head` or, if that is None, at the head of the branch.

    That commit. A part without files asks whether others have changed anything: so the head is read, and if it has
    moved all is read back.
    """
    at_head = own_head is None or not all(part.files for part in job.parts)
    parent = _head(job, hub, tell) if at_head or own_head is None else own_head
    own_head = own_head if own_head == parent else None
    unsure = {load: _unsure(load.part, own_head) for load in loads}
    wanted = {load.part.target(path) for load, paths in unsure.items() for path in paths}
    there = hub.sizes(wanted, parent) if wanted else {}
    for load, paths in unsure.items():
        remote = {path: there[target] for path in paths if (target := load.part.target(path)) in there}
        is_ours = parent in (job.own_head, load.part.last_commit)
        try:
            found, differing = read_back(load.part, load.spool, paths, remote)
            found, differing = _looked_into(load, hub, parent, remote, found, differing, is_ours=is_ours)
        except OSError as error:
            if not is_of_disk(error):
                raise
            load.verdict = _verdict_on(error, job)
            continue
        gone = [path for path, sent in found.items() if sent.is_gone and path not in remote]
        is_made_anew = job.create and not remote  # a branch of it, as the user has asked
        if gone and not is_made_anew and _lives_on(load.part, hub, parent, job.own_head):
            found |= dict.fromkeys(gone, DELETED)
            found = {path: sent for path, sent in found.items() if load.part.known.get(path) != sent}  # what is new
        is_complete = own_head is None or not load.part.is_trusted
        load.seen = Comparison(found, differing, complete=is_complete, at_head=at_head)
    return parent


def _lives_on(part: Part, hub: Hub, head: str, own_head: str | None) -> bool:
    """Whether the repository is the one that has had what is known, and no new one of its name."""
    if hub.created_at and part.created_at:
        return hub.created_at == part.created_at
    return head in (own_head, part.last_commit) or part.last_commit in hub.commits()


def _unsure(part: Part, own_head: str | None) -> set[str]:
    """The paths of which it is not known what the Hub has there."""
    paths = {file.path for file in part.files if file.path not in part.known or file.path in part.uncertain}
    return paths if own_head is not None and part.is_trusted else paths | set(part.known)


def _looked_into(
    load: Load,
    hub: Hub,
    parent: str,
    there: Mapping[str, Remote],
    found: dict[str, Sent],
    differing: dict[str, str],
    *,
    is_ours: bool,
) -> tuple[dict[str, Sent], dict[str, str]]:
    """The same, after copies were downloaded that may be ours although what the Hub tells of them differs."""
    part, spool = load.part, load.spool
    for path in list(differing):
        if not ((is_shorter := _is_shorter(spool, path, there[path])) or is_ours):
            continue
        longest = max(there[path].size, part.known.get(path, NOTHING).length)
        with hub.copy(part.target(path), parent, longest, _scratch(load)) as copy:
            again, differs = read_back(part, spool, {path}, {path: Remote.of_copy(copy)})
            if is_shorter and _begins_with(copy, spool.run / path):  # a backup was restored, without its ledger
                again, differs = {path: Sent(there[path].size, there[path].sha256 or "")}, {}
        if not differs:
            found |= again
            del differing[path]
    return found, differing


def _begins_with(copy: str, place: Place) -> bool:
    """Whether a copy of the Hub's begins with the whole of a local file."""
    with opened(place) as local, open(copy, "rb") as whole, open(local, "rb") as beginning:
        return begins_with(whole.fileno(), beginning.fileno())


def _scratch(load: Load) -> str:
    """Where the Hub's copies are downloaded to; OSError if a part of the way is a link."""
    place = load.spool.directory / load.part.cache / SCRATCH
    disk.make_dirs(place, durable=False)
    return place.way


def _head(job: Job, hub: Hub, tell: Tell) -> str:
    """The head of the branch; repository and branch are created if they do not exist."""
    name = hub.repo_id
    if (head := hub.head()) is None:
        if not job.create:
            where = f"{name} (branch {job.destination.revision}) at {job.destination.endpoint}"
            raise GoneError(f"{where} is gone, or the token has no access to it any more.")
        hub.create(private=job.private)
        if (head := hub.head()) is None:
            page = _page(job, hub)
            raise OSError(f"{page} has no branch {job.destination.revision!r} after it was created")
        tell(Notice(f"{CREATED} {_page(job, hub)}"))
    elif "/" in name and hub.repo_id.lower() != name.lower():
        tell(Notice(f"{name} was renamed: it is {hub.repo_id} now"))
    return head


def read_back(
    part: Part, spool: Spool, paths: set[str], remote: Mapping[str, Remote]
) -> tuple[dict[str, Sent], dict[str, str]]:
    """Compare the Hub's copies with the local files.

    What the Hub holds where that differs from what is known (length 0: gone) or where a content was uncertain; and
    the paths whose copy is not ours to replace, with the reason: no prefix of the local file, no content that this
    run has sent.
    """
    found, differing = {}, {}
    adoptable = {file.path: dataclasses.replace(file.content, foreign=True) for file in part.files}
    for path in paths:
        there, known = remote.get(path), part.known.get(path)
        contents = [*part.uncertain.get(path, ()), adoptable.get(path, NOTHING)] if names.is_attachment(path) else None
        if there is None or (there.size == 0 and contents is None):
            if known is not None:
                found[path] = NOTHING
        elif known is not None and _is(known, there):
            if path in part.uncertain:
                found[path] = known
        elif contents is None:
            if _is_beginning(part, spool, path, there):
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


def _is_beginning(part: Part, spool: Spool, path: str, there: Remote) -> bool:
    """Whether the Hub's copy of an event file is the beginning of the local one."""
    place = spool.run / path
    if not place.exists() or (path in part.known and _is_shorter(spool, path, there)):
        return True  # the Hub has more of a file of ours than this disk: it is gone here, or a backup was restored
    with opened(place) as local:
        return there.is_beginning_of(local)


def _is_shorter(spool: Spool, path: str, there: Remote) -> bool:
    """Whether an event file has become shorter here than the Hub's copy."""
    if names.is_attachment(path):
        return False
    with contextlib.suppress(OSError):
        return (spool.run / path).stat().st_size < there.size
    return False
