"""Classify: an exception of the client -> a verdict, and what the user reads of it.

    classify(error)                  a verdict with its cause; its text is the client's, for the uploader's log
    explained(error, destination)    the same verdict with a sentence, and what helps, see `spool/causes`

    HTTP status      412 Moved   409, 429 Retry   408, 5xx Unknown   401, 402, 403, 404 Refused   400, 413, 422 Split
                     a missing repository or branch   Retry
    exception        no connection Retry   timeout, lost connection Unknown   token, repository, proxies Refused
    Xet storage      Retry, and LFS is tried later
    ValueError       Split, as the client refuses content that way      OSError, MemoryError   Retry
    anything else    Unknown

Invariants:
- Every exception has a verdict with a cause, and its text is one line without secrets, which a terminal may show.
- What a verdict means stays when it is put into words, and so does what this package has put into words itself.

Facts behind this module (huggingface_hub 2.4.0, hf_xet 1.8.0):
- The client wraps: RuntimeError around an LFS upload, ValueError around an LFS batch. Errors of hf_xet are builtins,
  and their status is only in the text. What is wrapped is unwrapped, and the status decides.
- `HfHubHTTPError` is an OSError: it comes before errors of the disk.
- 409 on a commit means that another one is being applied. 412 means that the branch has moved.
- The text of a commit quota names the time, headers do not.
- PUT goes to the storage behind LFS, whose URLs expire and take no token: its refusals say nothing about the token.
- 400 and 422 blame the content only where content was sent; elsewhere they blame the destination.
- An answer that is not from a Hub (a captive portal, a proxy) is raised as a ValueError, like a mistake of the caller.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from json import JSONDecodeError

import httpx2
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_mpwriter.base.settings import OFFLINE, Destination
from hf_mpwriter.base.verdicts import Cause, Moved, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.spool import causes
from hf_mpwriter.system.redaction import printable, redact_known

BUSY_WAIT = 3.0  # seconds, after "another commit operation is in progress"
RATE_WAIT = 60.0  # seconds, after too many requests to the Xet storage; hf_xet does not say how long to wait
LONGEST_SAID = 200  # characters of what the Hub says about a file
TEXT_LIMIT = 8192  # characters of an error that are read; a proxy may answer with a whole page
QUOTA_WAIT = 900.0  # seconds, when the text of a commit quota names no time
LONGEST_WAIT = 3600.0  # seconds; a longer Retry-After of the Hub is not believed

_QUOTA_TIME = re.compile(r"in about (\d+|an?) (second|minute|hour)")
_CLASS = re.compile(r"^\w+Error: ")
_XET_STATUS = re.compile(r"\((4\d\d)[ )]")
_XET_AUTH = re.compile(r"Xet.*Auth")
_CONTENT = re.compile(r"/(?:commit|preupload|paths-info)/|/objects/batch$|/validate-yaml$")
_NO_ANSWER = re.compile(
    r"improperly formatted|[Mm]alformed|Invalid (?:etag|server response)|not a valid commit OID|as a datetime"
)
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


class ClientError(Exception):
    """The network client cannot be made with the proxies and certificates of the environment."""


class AnswerError(Exception):
    """An answer that no Hub gives: too long, or packed in a way that was not asked for."""


class UnansweredError(Exception):
    """The Hub was not reached, or failed, and a person waits: the client would try again for half a minute."""


class BusyError(Exception):
    """The Hub is busy with another request of this account; the client would repeat its own at once and for ever."""


_BY_TYPE: tuple[tuple[tuple[type[BaseException], ...], Callable[[str], Verdict]], ...] = (
    ((BusyError,), lambda text: Retry(text, BUSY_WAIT, cause=Cause.BUSY)),
    ((AnswerError,), lambda text: Unknown(text, cause=Cause.NOT_A_HUB)),
    ((ClientError,), lambda text: Refused(text, cause=Cause.CLIENT)),
    ((OfflineModeIsEnabled,), lambda _: Refused(OFFLINE, cause=Cause.OFFLINE)),
    ((HFValidationError,), lambda text: Refused(text, cause=Cause.REPOSITORY)),
    ((LocalTokenNotFoundError,), lambda text: Refused(text, cause=Cause.NO_TOKEN)),
    ((httpx2.InvalidURL, httpx2.UnsupportedProtocol), lambda text: Refused(text, cause=Cause.ENDPOINT)),
    ((httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout), Retry),
)


_BY_STATUS = {404: Cause.NOT_FOUND, 409: Cause.BUSY, 412: Cause.MOVED, 429: Cause.LIMITED}
_BY_KIND = (  # kinds of an exception in the chain; the first that is there counts
    (("gaierror",), Cause.DNS),
    (("SSLCertVerificationError",), Cause.CERTIFICATE),
    (("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "TimeoutError"), Cause.TIMEOUT),
    (("ProxyError",), Cause.PROXY),
    (("ConnectError",), Cause.UNREACHABLE),
    (("TransportError", "ConnectionError"), Cause.BROKEN),
)
_DISK = {errno.ENOSPC: Cause.DISK_FULL, errno.EDQUOT: Cause.DISK_QUOTA}
_OWN_WORDS = (AnswerError, BusyError, OfflineModeIsEnabled, UnicodeEncodeError)  # a token that no header takes


def classify(error: BaseException) -> Verdict:
    """The verdict on a push that an exception of the client has ended, with its cause."""
    verdict = _verdict(error)
    if isinstance(verdict, Split) and verdict.too_large:
        return dataclasses.replace(verdict, cause=Cause.TOO_LARGE)
    if isinstance(verdict, (Retry, Unknown)) and verdict.cause is Cause.OTHER:
        return dataclasses.replace(verdict, cause=Cause.XET if verdict.xet else _cause(error))
    return verdict


def _cause(error: BaseException) -> Cause:
    """The cause of an outage, as the exception tells it."""
    if (status := status_of(error)) is not None:
        return _BY_STATUS.get(status, Cause.HUB)
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    if found := next((cause for names, cause in _BY_KIND if kinds & set(names)), None):
        return found
    number = disk_error(error)
    return Cause.OTHER if number is None else _DISK.get(number, Cause.DISK)


def _verdict(error: BaseException) -> Verdict:
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # it only names the file
        error = error.__cause__
    chain = list(_chain(error))
    text = text_of(error)
    for link in chain:
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _classify_status(link.response, link, text_of(link))
    for types, verdict in _BY_TYPE:
        if any(isinstance(link, types) for link in chain):
            return verdict(text)
    return _classify_xet(chain, text) or _classify_rest(chain, text)


def _classify_xet(chain: list[BaseException], text: str) -> Verdict | None:
    """The verdict if the Xet storage is to blame, else None."""
    texts = " ".join(map(text_of, chain))
    found = _XET_STATUS.search(texts)
    status = found[1] if found else ""
    if status in ("401", "403") or _XET_AUTH.search(texts):
        return Refused(text, cause=Cause.TOKEN)
    if not any(map(_is_of_xet, chain)):
        return None
    if status == "429":
        return Retry(text, RATE_WAIT, cause=Cause.LIMITED)
    return Retry(text, xet="missing" if status == "404" else "failing")  # nothing was committed


def _classify_rest(chain: list[BaseException], text: str) -> Verdict:
    if any(isinstance(link, UnicodeEncodeError) and link.encoding == "ascii" for link in chain):  # in a header
        return Refused("the token has characters that no token has", cause=Cause.TOKEN)
    if any(isinstance(link, (JSONDecodeError, UnicodeDecodeError)) for link in chain) or _NO_ANSWER.search(text):
        return Unknown(text, cause=Cause.NOT_A_HUB)
    if any(isinstance(link, (httpx2.HTTPError, TimeoutError, ConnectionError)) for link in chain):
        return Unknown(text)
    if any(isinstance(link, ValueError) for link in chain):
        return Refused(text, cause=Cause.STORAGE) if _is_quota(text) else Split(text)
    if any(isinstance(link, (OSError, MemoryError)) for link in chain):
        return Retry(text)
    return Unknown(text)


def _classify_status(response: httpx2.Response, error: HfHubHTTPError, text: str) -> Verdict:
    status, after = response.status_code, wished_wait(response.headers, text)
    if status == 412:
        return Moved(text)
    if status == 409:
        return Retry(text, after if after is not None else BUSY_WAIT)
    if status == 429:
        return Retry(text, after if after is not None else QUOTA_WAIT)
    if status == 408 or (status >= 500 and status != 501):
        return Unknown(text, after, too_slow=status == 504)
    return _classify_content(status, response.request, text) or _classify_destination(status, error, text)


def _classify_content(status: int, request: httpx2.Request, text: str) -> Verdict | None:
    """The verdict if the content is to blame, else None."""
    path = request.url.path
    if status == 413:
        return Split(text, too_large=True)
    if request.method == "PUT" or (status == 404 and path.endswith("/objects/verify")):
        return Retry(text)
    if "LFS pointer pointed" in text:  # hf_xet would go on to believe that the content is there
        return Retry(text, xet="failing")
    return Split(text) if status in (400, 422) and _CONTENT.search(path) else None


def _classify_destination(status: int, error: HfHubHTTPError, text: str) -> Verdict:
    if status == 402 or (status == 403 and _is_quota(text)):
        return Refused(text, cause=Cause.STORAGE)
    if status in (401, 403):
        missing = Cause.TOKEN if "authorization" in error.response.request.headers else Cause.NO_TOKEN
        return Refused(text, cause=Cause.RIGHTS if status == 403 else missing)
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return Retry(text)
    return Refused(text, cause=Cause.REPOSITORY if status in (400, 422) else Cause.ENDPOINT)


def _is_quota(text: str) -> bool:
    return "storage" in text.lower() or "quota" in text.lower()


def wished_wait(headers: Mapping[str, str], text: str = "") -> float | None:
    """Seconds for which the Hub asks for no request, None if it does not say; at most LONGEST_WAIT."""
    wish = _wish(headers, text)
    return None if wish is None else min(wish, LONGEST_WAIT)


def _wish(headers: Mapping[str, str], text: str) -> float | None:
    if (limit := re.search(r"r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))) is not None:
        return float(limit[1]) + 1
    if (value := headers.get("retry-after", "")).isdecimal():
        return float(value)
    if value and (until := _between(headers.get("date", ""), value)) is not None:
        return until
    if (quota := _QUOTA_TIME.search(text)) is not None:
        count = 1.0 if quota[1].startswith("a") else float(quota[1])
        return count * _SECONDS[quota[2]]
    return None


def _between(now: str, then: str) -> float | None:
    """Seconds between two dates of the same server, so that the local clock does not matter."""
    try:
        return max(0.0, (parsedate_to_datetime(then) - parsedate_to_datetime(now)).total_seconds())
    except (ValueError, TypeError):
        return None


def _is_of_xet(error: BaseException) -> bool:
    """Whether it was raised while content went to the Xet storage, whose errors are plain builtins."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_upload_xet_files":
            return True
        trace = trace.tb_next
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def text_of(error: BaseException) -> str:
    """One line for people, without secrets; they go before the text is cut, as half of one is not recognised."""
    text = " ".join(f"{type(error).__name__}: {error}"[:TEXT_LIMIT].split())
    return printable(redact_known(text))[:500]


# in words


def plain(error: BaseException, destination: Destination, environ: Mapping[str, str]) -> Verdict:
    """The verdict on an exception in words of ours."""
    verdict = classify(error)
    if isinstance(verdict, (Retry, Unknown, Refused)):
        reason = _reason(verdict, error, destination)
        return dataclasses.replace(verdict, reason=reason, hint=causes.cure(verdict.cause, environ))
    if isinstance(verdict, Moved):
        return dataclasses.replace(verdict, reason=_reason(verdict, error, destination))
    if isinstance(verdict, Split) and status_of(error) is not None:
        return dataclasses.replace(verdict, reason=_content(verdict, error, destination))
    return verdict


def explained(error: BaseException, destination: Destination, environ: Mapping[str, str]) -> tuple[str, str]:
    """Why an exception of the client was raised, and what helps, "" if only time does."""
    verdict = plain(error, destination, environ)
    return getattr(verdict, "reason", ""), getattr(verdict, "hint", "")


def _reason(verdict: Retry | Unknown | Refused | Moved, error: BaseException, destination: Destination) -> str:
    if any(isinstance(link, _OWN_WORDS) for link in _chain(error)):
        return _CLASS.sub("", verdict.reason)
    number = disk_error(error)
    detail = os.strerror(number) if verdict.cause is Cause.DISK and number else type(error).__name__
    return causes.words(verdict.cause, destination, status_of(error), detail)


def _content(verdict: Split, error: BaseException, destination: Destination) -> str:
    text = causes.words(verdict.cause, destination, status_of(error))
    said = next(filter(None, (link.server_message for link in _chain(error) if isinstance(link, HfHubHTTPError))), "")
    said = redact_known(" ".join(said.split()))  # before it is cut: half of a token is not recognised
    if not said or verdict.cause is Cause.TOO_LARGE:
        return text
    return printable(f"{text.removesuffix(')')}: {said:.{LONGEST_SAID}})")


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an answer that has raised this, None if there is none."""
    response = _response_of(error)
    return None if response is None else response.status_code


def is_of_disk(error: BaseException) -> bool:
    """Whether an exception is an error of this disk."""
    return disk_error(error) is not None


def disk_error(error: BaseException) -> int | None:
    """The number of an error of this disk, None if it is none."""
    numbers = (link.errno for link in _chain(error) if isinstance(link, OSError) and not _is_of_network(link))
    return next(filter(None, numbers), None)


def _is_of_network(error: OSError) -> bool:
    return isinstance(error, (HfHubHTTPError, ConnectionError, TimeoutError))


def _response_of(error: BaseException) -> httpx2.Response | None:
    found = (link.response for link in _chain(error) if isinstance(link, HfHubHTTPError))
    return next((response for response in found if response is not None), None)
