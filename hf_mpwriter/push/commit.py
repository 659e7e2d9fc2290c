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
- What is sent is the very file that was opened below the run directory, not through a link, whatever becomes of names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hf_mpwriter.base import names
from hf_mpwriter.base.files import PAYLOAD_LIMIT, LocalFile, begins_with
from hf_mpwriter.base.verdicts import CREATED, Done, Moved, Quarantine, Refused, Retry, Sent, Split, Unknown, Verdict
from hf_mpwriter.push.classify import classify, plain, text_of
from hf_mpwriter.push.client import PARENT_DIGITS, Hub, NotQuietError, Remote, Source
from hf_mpwriter.push.job import SCRATCH, Job
from hf_mpwriter.snapshot.large_files import snapshot_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

MOVED_TRIES = 3  # times that a push reads the head again after 412
NOTHING = Sent(0, "")  # what the Hub holds of a path that it does not have
FOREIGN = "the Hub has a file there that this run has not sent; remove it there, or choose another path_in_repo"
IGNORED = "the repository's .gitignore leaves it out"

GONE = (
    "If it was deleted, a new one is made by: hf-mpwriter sync --create {}. If it was renamed, or access to it was "
    "withdrawn: check its name and the token (hf auth login). A new run directory starts anew, too."
)
PUBLIC = "Make it private in its settings, name another repository, or log without repo_private=True."


OTHERS = (
    "{} has event files that are not of this run directory: of another run of its name, or of an earlier attempt on "
    "another disk. TensorBoard shows them as one run. If they are two, give one of them another path_in_repo."
)
Notify = Callable[[str], object]


class GoneError(Exception):
    """The repository or the branch is gone, and may not be created."""


def carry(job: Job, hub: Hub, notify: Notify, rng: random.Random, spool: Spool | None = None) -> Verdict:
    """Bring the files of a job to the Hub."""
    spool = spool or Spool.of(job.run_dir, job.spool, job.logdir)
    verdict: Verdict = Moved("not tried")
    for attempt in range(MOVED_TRIES):
        sent_before = hub.commits_sent
        try:
            verdict = _attempt(job, spool, hub, notify, trust_own_head=attempt == 0)
        except GoneError as error:
            verdict = Refused(str(error), GONE.format(spool.logdir))
        except NotQuietError as error:
            verdict, job = Retry(text_of(error)), job.with_growing(error.paths)
            continue
        except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
            verdict = plain(error, job.destination, os.environ)
            note(text_of(error))
            if len(job.files) > 1 and isinstance(error, OSError) and error.errno == errno.EMFILE:
                verdict = Split(text_of(error), too_large=True)
        if isinstance(verdict, Unknown) and hub.commits_sent == sent_before:  # no content of ours can be there
            verdict = Retry(verdict.reason, verdict.after, cause=verdict.cause, hint=verdict.hint)
        if not isinstance(verdict, Moved):
            break
        time.sleep(rng.uniform(0.1, 1.0))
    return verdict


def _attempt(job: Job, spool: Spool, hub: Hub, notify: Notify, *, trust_own_head: bool) -> Verdict:
    """Read back and commit, once."""
    seen = _compare(job, spool, hub, notify, job.own_head if trust_own_head else None)
    held = job.known | seen.found
    to_send = [file for file in job.files if not file.is_covered(held.get(file.path, NOTHING))]
    foreign = {file.path: FOREIGN for file in to_send if file.sha256 and held.get(file.path, NOTHING).foreign}
    if refused := seen.differing | foreign:
        return Quarantine(refused)
    first = all(sent.is_gone for sent in held.values())
    _tell_visibility(job, hub, notify, first=first and bool(to_send))
    if not to_send:
        return Done(seen.parent, False, hub.repo_id, seen.found, checked=seen.complete, private=hub.private)
    if first and job.private and hub.private is False:
        page = _page(job, hub)
        return Refused(f"{page} is PUBLIC, and repo_private=True was asked for: nothing is sent.", PUBLIC)
    with sources(job, spool, to_send) as found:
        try:
            commit, sent = hub.commit(found, seen.parent, fenced=job.fenced, tag_card=first)
        except Exception as error:
            verdict = classify(error)
            if not _may_blame_parent(job, seen.parent, verdict):
                raise
            return Moved(f"it may be that the Hub does not take 40 digits of its id as parent: {text_of(error)}")
    if first:
        _tell_others(job, spool, hub, notify, seen.parent, os.path.dirname(to_send[0].path))
    if ignored := [file.path for file in to_send if file.path not in sent]:
        return Quarantine(dict.fromkeys(ignored, IGNORED), committed=True)
    if job.squash:
        commit = _squash(hub, notify) or commit
    return Done(commit, True, hub.repo_id, seen.found | sent, checked=seen.complete, private=hub.private)


def _may_blame_parent(job: Job, parent: str, verdict: Verdict) -> bool:
    """Whether a refusal may be about a parent that cannot be named as a whole; attachments always name one."""
    content = isinstance(verdict, Split) and not verdict.too_large
    return content and job.fenced and len(parent) > PARENT_DIGITS and not any(file.sha256 for file in job.files)


@contextlib.contextmanager
def sources(job: Job, spool: Spool, files: Iterable[LocalFile]) -> Iterator[list[Source]]:
    """The files of a job, opened."""
    with contextlib.ExitStack() as stack:
        found = []
        for file in files:
            place = spool.directory / job.copies / file.sha256 if file.sha256 else spool.run / file.path
            fd = disk.open_beneath(place)
            stack.callback(os.close, fd)
            path = path_to(fd)
            is_cut = file.growing or os.fstat(fd).st_size != file.length
            if is_cut and file.length > PAYLOAD_LIMIT and not file.sha256:
                scratch = (spool.directory / job.copies).parent
                path = stack.enter_context(snapshot_of(fd, file.length, scratch))
            found.append(Source(file, path))
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


def _tell_visibility(job: Job, hub: Hub, notify: Notify, *, first: bool) -> None:
    """Say who can read what is sent: before the first bytes, and when it has changed."""
    private, at = hub.is_private() if first else hub.private, _page(job, hub)
    text = "private" if private else "PUBLIC: everybody can read it"
    if first and private is not None:
        notify(f"{at} is {text}")
    elif first and job.private:
        notify(f"{at}: the Hub does not say whether it is private")
    elif None not in (private, job.was_private) and private != job.was_private:
        notify(f"{at} is {text} now")


def _tell_others(job: Job, spool: Spool, hub: Hub, notify: Notify, parent: str, directory: str) -> None:
    """Say once that others had event files where this run has begun to put its own."""
    with contextlib.suppress(Exception):  # the data is on the Hub, and this is not asked a second time
        others = (path for path in hub.tree(parent, directory) if names.is_event_file(os.path.basename(path)))
        if any(not (spool.run / path).exists() for path in others):
            notify(OTHERS.format(job.destination.resolved(hub.repo_id).url))


def _squash(hub: Hub, notify: Notify) -> str | None:
    """Squash the history; the new head. The data is on the Hub already, so a failure is only a notice."""
    try:
        hub.squash()
        return hub.head()
    except Exception as error:  # noqa: BLE001 - every error of the client
        notify(f"the history could not be squashed ({type(error).__name__}): it is tried again after a later commit")
        return None


# read back


@dataclass(frozen=True)
class Comparison:
    """What the Hub holds at one commit, compared with the job."""

    parent: str  # that commit
    found: dict[str, Sent]  # what it holds where that is not known yet; a length of 0 if a file is gone
    differing: dict[str, str]  # paths whose copy is not ours to replace, each with the reason
    complete: bool  # whether all that the ledger knows was compared


def _compare(job: Job, spool: Spool, hub: Hub, notify: Notify, own_head: str | None) -> Comparison:
    """Compare the Hub's copies with the local files, at `own_head` or, if that is None, at the head of the branch."""
    unsure = {file.path for file in job.files if file.path not in job.known or file.path in job.uncertain}
    parent = own_head
    if parent is None:
        parent = _head(job, hub, notify)
        unsure |= set(job.known)
    there = hub.sizes(unsure, parent) if unsure else {}
    found, differing = read_back(job, spool, unsure, there)
    for path in list(differing):
        if (is_shorter := _is_shorter(spool, path, there[path])) or parent in (job.own_head, job.last_commit):
            longest = max(there[path].size, job.known.get(path, NOTHING).length)
            with hub.copy(path, parent, longest, _scratch(job, spool)) as copy:
                again, differs = read_back(job, spool, {path}, {path: Remote.of_copy(copy)})
                if is_shorter and _begins_with(copy, spool.run / path):  # a backup was restored, without its ledger
                    again, differs = {path: Sent(there[path].size, there[path].sha256 or "")}, {}
            if not differs:
                found |= again
                del differing[path]
    return Comparison(parent, found, differing, complete=own_head is None)


def _begins_with(copy: str, place: Place) -> bool:
    """Whether a copy of the Hub's begins with the whole of a local file."""
    with opened(place) as local, open(copy, "rb") as whole, open(local, "rb") as beginning:
        return begins_with(whole.fileno(), beginning.fileno())


def _scratch(job: Job, spool: Spool) -> str:
    """Where the Hub's copies are downloaded to; OSError if a part of the way is a link."""
    place = spool.directory / job.cache / SCRATCH
    disk.make_dirs(place, durable=False)
    return place.way


def _head(job: Job, hub: Hub, notify: Notify) -> str:
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
        notify(f"{CREATED} {_page(job, hub)}")
    elif "/" in name and hub.repo_id.lower() != name.lower():
        notify(f"{name} was renamed: it is {hub.repo_id} now")
    return head


def read_back(
    job: Job, spool: Spool, paths: set[str], remote: dict[str, Remote]
) -> tuple[dict[str, Sent], dict[str, str]]:
    """Compare the Hub's copies with the local files.

    What the Hub holds where that differs from what is known (length 0: gone) or where a content was uncertain; and
    the paths whose copy is not ours to replace, with the reason: no prefix of the local file, no content that this
    run has sent.
    """
    found, differing = {}, {}
    adoptable = {file.path: dataclasses.replace(file.content, foreign=True) for file in job.files}
    for path in paths:
        there, known = remote.get(path), job.known.get(path)
        contents = [*job.uncertain.get(path, ()), adoptable.get(path, NOTHING)] if names.is_attachment(path) else None
        if there is None or (there.size == 0 and contents is None):
            if known is not None:
                found[path] = NOTHING
        elif known is not None and _is(known, there):
            if path in job.uncertain:
                found[path] = known
        elif contents is None:
            if _is_beginning(job, spool, path, there):
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


def _is_beginning(job: Job, spool: Spool, path: str, there: Remote) -> bool:
    """Whether the Hub's copy of an event file is the beginning of the local one."""
    place = spool.run / path
    if not place.exists() or (path in job.known and _is_shorter(spool, path, there)):
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
