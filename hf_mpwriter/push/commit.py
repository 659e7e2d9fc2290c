"""TODO push.commit."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hf_mpwriter.base import names
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Retry, Sent, Split, Unknown, Verdict

if TYPE_CHECKING:
    from hf_mpwriter.push.client import Hub, Remote

from hf_mpwriter.push.job import Job

MOVED_TRIES = 3  # times that a push reads the head again after 412
NOTHING = Sent(0, "")  # what the Hub holds of a path that it does not have
FOREIGN = "the Hub has a file there that this run has not sent; remove it there, or choose another path_in_repo"


def carry(job: Job, hub: Hub, notify: Callable[[str], object], rng: random.Random) -> Verdict:
    """Bring the entry to the Hub."""
    from hf_mpwriter.push.classify import classify, text_of

    verdict: Verdict = Moved("not tried")
    for attempt in range(MOVED_TRIES):
        before = hub.commits_sent
        try:
            verdict = _attempt(job, hub, notify, trust_own_head=attempt == 0)
        except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
            verdict = classify(error)
            if len(job.files) > 1 and isinstance(error, OSError) and error.errno == errno.EMFILE:
                verdict = Split(text_of(error))
        if isinstance(verdict, Unknown) and hub.commits_sent == before:  # no content of ours can be there
            verdict = Retry(verdict.reason, verdict.after)
        if not isinstance(verdict, Moved):
            break
        time.sleep(rng.uniform(0.1, 1.0))
    return verdict


def _attempt(job: Job, hub: Hub, notify: Callable[[str], object], *, trust_own_head: bool) -> Verdict:
    """Read back and commit."""
    unsure = {file.path for file in job.files if file.path not in job.known or file.path in job.uncertain}
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
    differing |= {file.path: FOREIGN for file in to_send if file.sha256 and held.get(file.path, NOTHING).foreign}
    if differing:
        return Quarantine(differing)
    if not to_send:
        return Done(parent, own=False, repo_id=hub.repo_id, files=found, checked=checked)
    first = all(sent.is_gone for sent in held.values())
    if first and (private := hub.is_private()) is not None:
        notify(f"{job.destination} is {'private' if private else 'PUBLIC: everybody can read it'}")
    commit, sent = _commit(job, hub, to_send, parent, tag_card=first)
    if ignored := [file.path for file in to_send if file.path not in sent]:
        return Quarantine(dict.fromkeys(ignored, "the repository's .gitignore leaves it out"), committed=True)
    if job.squash:
        commit = _squash(hub, notify) or commit
    return Done(commit, own=True, repo_id=hub.repo_id, files=found | sent, checked=checked)


def _head(job: Job, hub: Hub, notify: Callable[[str], object]) -> str:
    if (head := hub.head()) is None:
        hub.create(private=job.private)
        if (head := hub.head()) is None:
            raise OSError(f"{job.destination} has no branch {job.destination.revision!r} after it was created")
        notify(f"created {job.destination}")
    return head


def _commit(job: Job, hub: Hub, files: list[LocalFile], parent: str, *, tag_card: bool) -> tuple[str, dict[str, Sent]]:
    """Commit; if the commit is refused together with the model card, the events go without it."""
    from hf_mpwriter.push.classify import classify

    named = parent if job.fenced else None
    with job.sources(files) as sources:
        try:
            return hub.commit(sources, named, tag_card=tag_card)
        except Exception as error:
            if not tag_card or not isinstance(classify(error), Split):
                raise
        return hub.commit(sources, named, tag_card=False)  # not above: it has nothing to do with the first one's error


def _squash(hub: Hub, notify: Callable[[str], object]) -> str | None:
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
    from hf_mpwriter.push.client import same_content

    local = os.path.join(job.run_dir, path)
    if not os.path.lexists(local) or (path in job.known and _is_shorter(job, path, there)):
        return True  # the Hub has more of a file of ours than this disk: it is gone here, or a backup was restored
    return same_content(local, there)


def _is_shorter(job: Job, path: str, there: Remote) -> bool:
    """Whether an event file has become shorter here than the Hub's copy."""
    if names.is_attachment(path):
        return False
    with contextlib.suppress(OSError):
        return os.stat(os.path.join(job.run_dir, path), follow_symlinks=False).st_size < there.size
    return False
