"""Words: what the user reads of a push, and what helps where it fails. The client's text is for the uploader's log.

    plain(classify(error), error, ...)    the same verdict, with a sentence in the place of the client's text

    cause                                       sentence
    401; no token at all                        token refused (401): run `hf auth login`; no token (401): ...
    403                                         the token may not write to me/run (403): run `hf auth login` with ...
    402, a quota                                the storage of the account is used up (402): see ...
    404 of the repository or its branch         me/run, or its branch main, is not found (404): check repo_id ...
    409, 429                                    the Hub is busy with another commit; its rate limit is reached
    408, 5xx                                    the Hub fails (503)
    DNS, no connection, no answer, certificate  the endpoint, and what to check
    ENOSPC                                      the disk is full: free some space
    400, 413, 422 of a file                     the Hub refuses it (400: its own words)

Invariants:
- What a verdict means stays: only its texts change.
- A token of the environment counts before that of `hf auth login`, so then it is the one to be mended.
- What this package has put into words itself stays as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Mapping

from hf_mpwriter.base.names import is_event_file, repository_url
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Moved, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.push import classify
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.redaction import VARIABLES, printable, redact_known

WRITE = "run `hf auth login` with a token that may write"
MEND = "mend HF_TOKEN, or the token that the writer was given"
LONGEST = 200  # characters of what the Hub says about a file

OTHERS = (
    "{} has event files that are not of this run directory: of another run of its name, or of an earlier attempt on "
    "another disk. TensorBoard shows them as one run. If they are two, give one of them another path_in_repo."
)
Notify = Callable[[str], object]

_BY_KIND = (  # kinds of an exception in the chain, the outermost first, and what that means
    (("gaierror",), "the name of {endpoint} is not known (DNS): check the network"),
    (("SSLCertVerificationError",), "the certificate of {endpoint} is not trusted: check SSL_CERT_FILE"),
    (
        ("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "TimeoutError"),
        "{endpoint} does not answer in time: check the network",
    ),
    (("ProxyError",), "the proxy gives no connection to {endpoint}: check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"),
    (("ConnectError",), "the Hub cannot be reached at {endpoint}: check the network"),
    (("TransportError", "ConnectionError"), "{endpoint} has ended the connection"),
)
_BY_STATUS = {
    404: "{repo_id}, or its branch {revision}, is not found (404): check repo_id and repo_revision",
    409: "the Hub is busy with another commit (409)",
    412: "others commit to {repo_id} all the time (412)",
    429: "the rate limit of the Hub is reached (429): a larger commit_every needs fewer commits",
}
_BY_HINT = {
    classify.REPO: "the Hub takes no such repository or branch",
    classify.CLIENT: "no connection can be made with these proxies and certificates",
    classify.ENDPOINT: "{endpoint} does not answer as a Hub does",
}
_CLASS = re.compile(r"^\w+Error: ")
_DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of the disk is used up"}


def note(text: str) -> None:
    """Write what the client says to the log of the uploader, which is where the standard error of a push goes."""
    with contextlib.suppress(OSError):  # a full disk
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} [{os.getpid()}] the client says: {text}", file=sys.stderr, flush=True)


def page(destination: Destination, repo_id: str) -> str:
    """The page of the repository, which opens once it exists; `repo_id` is its full name."""
    return repository_url(destination.endpoint, destination.repo_type, repo_id)


def folder(destination: Destination, repo_id: str) -> str:
    """The page of the run's folder, which opens once it exists; `repo_id` is its full name."""
    return dataclasses.replace(destination, repo_id=repo_id).url


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
            notify(OTHERS.format(folder(job.destination, hub.repo_id)))


def plain(verdict: Verdict, error: BaseException, destination: Destination, environ: Mapping[str, str]) -> Verdict:
    """The same verdict in words of ours."""
    if isinstance(verdict, Refused):
        reason = _refusal(verdict, error).format_map(vars(destination))
        return Refused(reason, _cure(verdict, classify.status_of(error), environ))
    if isinstance(verdict, Split):
        return dataclasses.replace(verdict, reason=_content(verdict, error))
    if isinstance(verdict, (Retry, Unknown, Moved)):
        return dataclasses.replace(verdict, reason=_outage(verdict, error, destination))
    return verdict


def _refusal(verdict: Refused, error: BaseException) -> str:
    status = classify.status_of(error)
    number = f" ({status})" if status else ""
    if verdict.hint == classify.QUOTA:
        return f"the storage of the account is used up{number}"
    if verdict.hint == classify.LOGIN and not classify.is_ours(error):
        if status == 403:
            return "the token may not write to {repo_id} (403)"
        return f"no token{number}" if classify.has_no_token(error) else f"token refused{number}"
    if verdict.hint in _BY_HINT:
        return f"{_BY_HINT[verdict.hint]}{number}"
    return verdict.reason.replace("{", "{{").replace("}", "}}")


def _cure(verdict: Refused, status: int | None, environ: Mapping[str, str]) -> str:
    if verdict.hint != classify.LOGIN:
        return verdict.hint
    if any(environ.get(name) for name in VARIABLES):
        return f"{MEND}: it has to be one that may write" if status == 403 else MEND
    return WRITE if status == 403 else verdict.hint


def _content(verdict: Split, error: BaseException) -> str:
    status, said = classify.status_of(error), classify.words_of_the_hub(error)
    if status is None:
        return verdict.reason
    if verdict.too_large:
        return f"it is too large for the Hub ({status})"
    said = redact_known(said)  # before it is cut: half of a token is not recognised
    return printable(f"the Hub refuses it ({status}{f': {said:.{LONGEST}}' if said else ''})")


def _outage(verdict: Retry | Unknown | Moved, error: BaseException, destination: Destination) -> str:
    if classify.is_ours(error):
        return _CLASS.sub("", verdict.reason)
    if isinstance(verdict, (Retry, Unknown)) and verdict.xet:
        return "the Xet storage of the Hub fails; if that lasts, LFS takes its place"
    if (status := classify.status_of(error)) is not None:
        return _BY_STATUS.get(status, f"the Hub fails ({status})").format_map(vars(destination))
    kinds = classify.kinds_of(error)
    text = next((text for names, text in _BY_KIND if kinds & set(names)), "")
    return text.format_map(vars(destination)) or _odd(verdict.reason, error)


def _odd(reason: str, error: BaseException) -> str:
    """What is neither an answer of the Hub nor a failure of the network."""
    if (number := classify.disk_error(error)) is not None:
        return f"{_DISK[number]}: free some space" if number in _DISK else f"this disk fails: {os.strerror(number)}"
    if classify.NO_HUB in reason:
        return f"{classify.NO_HUB}. {classify.ENDPOINT}"
    return f"the push failed, and it is not known why ({type(error).__name__})"
