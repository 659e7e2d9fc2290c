"""The judge: every exception of the client becomes a verdict.

Facts behind this module (huggingface_hub 2.4.0, hf_xet 1.8.0):
- The client wraps: RuntimeError around an LFS upload, ValueError around an LFS batch. Errors of hf_xet are builtins,
  and their status is only in the text. What is wrapped is unwrapped, and the status decides.
- `HfHubHTTPError` is an OSError: it is judged before disk errors are.
- 409 on a commit means that another one is being applied. 412 means that the branch has moved.
- The text of a commit quota names the time, headers do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
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

from hf_mpwriter.errors import Moved, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.redaction import known, redact

BUSY_WAIT = 3.0  # seconds, after "another commit operation is in progress"
TEXT_LIMIT = 8192  # characters of an error that are looked at; a proxy may answer with a whole page
QUOTA_WAIT = 900.0  # seconds, when the text of a commit quota names no time

_QUOTA_TIME = re.compile(r"in about (\d+|an?) (second|minute|hour)")
_XET_STATUS = re.compile(r"\((4\d\d)[ )]")
_XET_AUTH = re.compile(r"Xet.*Auth")
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}

LOGIN = "Run: hf auth login, with a token that may write to the repository (or set HF_TOKEN)."
ENDPOINT = "Is HF_ENDPOINT a Hugging Face Hub, and is a proxy in between?"
QUOTA = "The account's storage quota is used up."


class BusyError(Exception):
    """The Hub does something else for this account; the client would ask again at once and for ever."""


def judge(error: BaseException) -> Verdict:  # noqa: PLR0911 - one return per verdict
    """What an exception of the client means."""
    chain = list(_chain(error))
    text = text_of(error)
    for link in chain:
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _judge_status(link.response.status_code, link, text)
        if isinstance(link, BusyError):
            return Retry(text, BUSY_WAIT)
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return Refused("HF_HUB_OFFLINE is set", "Unset it to upload; until then everything is kept.")
    if any(isinstance(link, HFValidationError) for link in chain):
        return Refused(text, "Use a valid repo_id.")
    texts = " ".join(map(text_of, chain))
    status = _XET_STATUS.search(texts)
    if any(isinstance(link, LocalTokenNotFoundError) for link in chain) or _XET_AUTH.search(texts):
        return Refused(text, LOGIN)
    if status and status[1] in ("401", "403"):
        return Refused(text, LOGIN)
    if any(map(_is_of_xet, chain)):  # nothing is committed while content is uploaded
        return Retry(text, xet="missing" if status and status[1] == "404" else "failing")
    return _judge_type(chain, text)


def _judge_type(chain: list[BaseException], text: str) -> Verdict:
    if any(isinstance(link, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)) for link in chain):
        return Retry(text)
    if any(isinstance(link, (httpx2.HTTPError, TimeoutError, ConnectionError, JSONDecodeError)) for link in chain):
        return Unknown(text)
    if any(isinstance(link, ValueError) for link in chain):
        return Split(text)
    if any(isinstance(link, (OSError, MemoryError)) for link in chain):
        return Retry(text)
    return Unknown(text)


def _judge_status(status: int, error: HfHubHTTPError, text: str) -> Verdict:  # noqa: PLR0911 - one return per verdict
    after = wished_wait(error.response.headers, text)
    if status == 412:
        return Moved(text)
    if status == 409:
        return Retry(text, after if after is not None else BUSY_WAIT)
    if status == 429:
        return Retry(text, after if after is not None else QUOTA_WAIT)
    if status == 408 or (status >= 500 and status != 501):
        return Unknown(text, after)
    if status == 402 or (status == 403 and "storage" in text.lower()):
        return Refused(text, QUOTA)
    if status in (401, 403):
        return Refused(text, LOGIN)
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return Retry(text)
    if status in (400, 413, 422):
        return Split(text)
    return Refused(text, ENDPOINT)


def wished_wait(headers: Mapping[str, str], text: str = "") -> float | None:
    """Seconds that the Hub wishes to be left alone, None if it does not say.

    Args:
        headers: of the answer; `ratelimit` counts before `Retry-After`.
        text: of the error; quotas name the time there.
    """
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
    """Seconds between two dates of the same server, so that our clock does not matter."""
    try:
        return max(0.0, (parsedate_to_datetime(then) - parsedate_to_datetime(now)).total_seconds())
    except (ValueError, TypeError):
        return None


def _is_of_xet(error: BaseException) -> bool:
    """Whether it was raised while content went to the Xet storage: its errors are builtins like any other's."""
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
    """One line for people, without secrets; these go first: half of one would not be known again."""
    text = " ".join(f"{type(error).__name__}: {error}"[:TEXT_LIMIT].split())
    return redact(text, known(os.environ))[:500]
