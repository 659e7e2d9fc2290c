"""Words: what the user reads of a push, and what helps where it fails. The client's text is for the uploader's log.

    plain(classify(error), error, ...)    the same verdict, with a sentence in the place of the client's text

`classify` finds the cause; `spool/causes` has the words and the cure of each.

Invariants:
- What a verdict means stays: only its texts change.
- What this package has put into words itself stays as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Mapping

from hf_mpwriter.base.names import is_event_file, repository_url
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause, Moved, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.push import classify
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool import causes
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.redaction import printable, redact_known

LONGEST = 200  # characters of what the Hub says about a file

OTHERS = (
    "{} has event files that are not of this run directory: of another run of its name, or of an earlier attempt on "
    "another disk. TensorBoard shows them as one run. If they are two, give one of them another path_in_repo."
)
Notify = Callable[[str], object]

_CLASS = re.compile(r"^\w+Error: ")


def note(text: str) -> None:
    """Write what the client says to the log of the uploader, which is where the standard error of a push goes."""
    with contextlib.suppress(OSError):  # a full disk
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} [{os.getpid()}] the client says: {text}", file=sys.stderr, flush=True)


def page(destination: Destination, repo_id: str) -> str:
    """The page of the repository, which opens once it exists; `repo_id` is its full name."""
    return repository_url(destination.endpoint, destination.repo_type, repo_id)


def tell_visibility(job: Job, hub: Hub, notify: Notify, *, first: bool) -> None:
    """Say who can read what is sent: before the first bytes, and when it has changed."""
    private, at = hub.is_private() if first else hub.private, page(job.destination, hub.repo_id)
    text = "private" if private else "PUBLIC: everybody can read it"
    if first and private is not None:
        notify(f"{at} is {text}")
    elif first and job.private:
        notify(f"{at}: the Hub does not say whether it is private")
    elif None not in (private, job.was_private) and private != job.was_private:
        notify(f"{at} is {text} now")


def tell_others(job: Job, spool: Spool, hub: Hub, notify: Notify, parent: str, directory: str) -> None:
    """Say once that others had event files where this run has begun to put its own."""
    with contextlib.suppress(Exception):  # the data is on the Hub, and this is not asked a second time
        others = (path for path in hub.tree(parent, directory) if is_event_file(os.path.basename(path)))
        if any(not (spool.run / path).exists() for path in others):
            notify(OTHERS.format(job.destination.resolved(hub.repo_id).url))


def plain(verdict: Verdict, error: BaseException, destination: Destination, environ: Mapping[str, str]) -> Verdict:
    """The same verdict in words of ours."""
    if isinstance(verdict, (Retry, Unknown, Refused)):
        reason = _reason(verdict, error, destination)
        return dataclasses.replace(verdict, reason=reason, hint=causes.cure(verdict.cause, environ))
    if isinstance(verdict, Moved):
        return dataclasses.replace(verdict, reason=_reason(verdict, error, destination))
    if isinstance(verdict, Split) and classify.status_of(error) is not None:
        return dataclasses.replace(verdict, reason=_content(verdict, error, destination))
    return verdict


def explained(error: BaseException, destination: Destination, environ: Mapping[str, str]) -> tuple[str, str]:
    """Why an exception of the client was raised, and what helps, "" if only time does."""
    verdict = plain(classify.classify(error), error, destination, environ)
    return getattr(verdict, "reason", ""), getattr(verdict, "hint", "")


def _reason(verdict: Retry | Unknown | Refused | Moved, error: BaseException, destination: Destination) -> str:
    if classify.is_ours(error):
        return _CLASS.sub("", verdict.reason)
    number = classify.disk_error(error)
    detail = os.strerror(number) if verdict.cause is Cause.DISK and number else type(error).__name__
    return causes.words(verdict.cause, destination, classify.status_of(error), detail)


def _content(verdict: Split, error: BaseException, destination: Destination) -> str:
    text = causes.words(verdict.cause, destination, classify.status_of(error))
    said = redact_known(classify.words_of_the_hub(error))  # before it is cut: half of a token is not recognised
    if not said or verdict.cause is Cause.TOO_LARGE:
        return text
    return printable(f"{text.removesuffix(')')}: {said:.{LONGEST}})")
