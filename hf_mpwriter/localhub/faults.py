"""Faults as data: which requests fail, how, when and how often. As a dataclass, as JSON, or as a line of text.

A fault strikes a request at one of three moments:

    arrive    the head has arrived; the body is not read, the sender not authenticated
    before    the body has arrived and the sender is authorized; nothing is done yet
    after     the work is done (the commit applied, the content stored); the response is not sent yet

A fault `after` strikes only requests that succeeded: the Hub has stored the data, and the client does not know it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

GRAMMAR = """\
A fault is: [METHOD] PATTERN KIND [NAME=VALUE ...]
  PATTERN   regular expression, searched in the request path:
            /commit/ /preupload/ /lfs/ objects/batch /v1/xorbs
  KIND      200 to 599: respond with this status
            close: close without a response     reset: TCP reset
            hang: wait until the faults are cleared, or for seconds=N;
                  then go on, even if the client is gone
            bomb size=N: respond with N MiB of JSON, which gzip packs into
                  a thousandth
            slow seconds=N: send the response over N seconds;
                  with when=arrive, read the request over N seconds
  when=     arrive: before the body is read
            before: before any work (default)   after: when it is done
  times=N   strike N requests, 0: all (default 1)
  skip=N    let N requests pass first (default 0)
            Of several faults the first one that is due strikes;
            the faults after it do not count the request.
  with a status: message=TEXT  code=X-ERROR-CODE  body=TEXT
                 header=NAME:VALUE (repeatable)
Faults:
  'POST /commit/ 503 times=3'     '/commit/ hang when=after seconds=30'
  '/lfs/ reset skip=1'            '/preupload/ slow seconds=5'
  '/commit/ 429 header=Retry-After:2 message="Too many"'"""

When = Literal["arrive", "before", "after"]
Kind = Literal["status", "close", "reset", "hang", "slow", "bomb"]
_METHOD = re.compile(r"[A-Z]+")
_OPTIONS: dict[str, Callable[[str], str | float]] = {
    "when": str,
    "times": int,
    "skip": int,
    "seconds": float,
    "size": int,
    "message": str,
    "code": str,
    "body": str,
}


class FaultError(ValueError):
    """A fault is invalid; the message shows the grammar."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}\n{GRAMMAR}")


@dataclass(frozen=True)
class Fault:
    """Which requests fail, how, when and how often."""

    where: str  # A regular expression, searched in the raw path without its query
    kind: Kind  # How they fail
    method: str = ""  # The HTTP method, empty for any
    when: When | Literal[""] = ""  # The moment; empty means `before`, or `after` for the kind `slow`
    times: int = 1  # The number of requests to strike, 0 for all
    skip: int = 0  # The number of requests to let pass first
    seconds: float = 0.0  # The duration of a hang or a slow transfer; a hang of 0 lasts until the faults are cleared
    size: int = 0  # The unpacked length of a bomb in MiB
    # Of the kind `status` only
    status: int = 0  # What the Hub responds with instead
    headers: tuple[tuple[str, str], ...] = ()  # Further ones
    message: str = ""  # The error message, as JSON and as X-Error-Message
    code: str = ""  # The X-Error-Code
    body: str = ""  # The body in place of JSON, as a proxy would send it

    def __post_init__(self) -> None:
        if not self.when:
            object.__setattr__(self, "when", "after" if self.kind == "slow" else "before")
        if why := _flaw(self):
            raise FaultError(why)

    def matches(self, method: str, path: str) -> bool:
        """Return whether the fault applies to a request."""
        return self.method in ("", method) and re.search(self.where, path) is not None


@dataclass
class Standing:
    """A fault of a running Hub and its counts."""

    fault: Fault  # The fault
    seen: int = 0  # Matching requests, skipped ones included
    hits: int = 0  # Requests that it struck
    held: int = 0  # Requests that hang now

    @property
    def due(self) -> bool:
        """Whether it strikes the request that it has just counted."""
        return self.seen > self.fault.skip and (self.fault.times == 0 or self.hits < self.fault.times)


def _flaw(fault: Fault) -> str:
    has_content = bool(fault.status or fault.headers or fault.message or fault.code or fault.body)
    flaws = {
        f"Unknown kind of fault: {fault.kind}": fault.kind not in get_args(Kind),
        f"Unknown value of when: {fault.when!r}": fault.when not in get_args(When),
        f"Not an HTTP method: {fault.method!r}": bool(fault.method) and not _METHOD.fullmatch(fault.method),
        "Numbers must not be negative": min(fault.times, fault.skip, fault.seconds, fault.size) < 0,
        f"Not an HTTP status: {fault.status}": fault.kind == "status" and not 200 <= fault.status <= 599,
        "Only a status takes a header, message, code or body": fault.kind != "status" and has_content,
        "Only hang and slow take seconds": fault.seconds > 0 and fault.kind not in ("hang", "slow"),
        "Only bomb takes a size, and needs it": (fault.kind == "bomb") != (fault.size > 0),
        "slow needs seconds=N": fault.kind == "slow" and not fault.seconds > 0,
        "slow takes when=arrive or when=after": fault.kind == "slow" and fault.when == "before",
        f"Not a regular expression: {fault.where!r}": not _is_pattern(fault.where),
    }
    return next((why for why, wrong in flaws.items() if wrong), "")


def _is_pattern(text: str) -> bool:
    try:
        return bool(text and re.compile(text))
    except re.error:
        return False


def parse(text: str) -> Fault:
    """Parse a line of text; GRAMMAR describes it."""
    words = _words(text)
    method = words.pop(0) if words and _METHOD.fullmatch(words[0]) else ""
    if len(words) < 2:
        raise FaultError(f"Missing pattern or kind: {text!r}")
    where, kind, *options = words
    fields: dict[str, Any] = {"where": where, "method": method, "kind": kind, "headers": ()}
    if kind.isdecimal():
        fields |= {"kind": "status", "status": int(kind)}
    for option in options:
        name, equals, value = option.partition("=")
        if name == "header" and ":" in value:
            header, _, content = value.partition(":")
            fields["headers"] += ((header.strip(), content.strip()),)
        elif equals and name in _OPTIONS:
            fields[name] = _value(name, value)
        else:
            raise FaultError(f"Unknown option: {option!r}")
    return Fault(**fields)


def _words(text: str) -> list[str]:
    """Split a line into words; quotes protect blanks, backslashes are kept for the regular expression."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise FaultError(f"{error}: {text!r}") from None


def _value(name: str, value: str) -> str | float:
    try:
        return _OPTIONS[name](value)
    except ValueError:
        raise FaultError(f"{name} is not a number: {value!r}") from None


def from_json(fields: Any) -> Fault:
    """Return the fault of a JSON object, as `dataclasses.asdict` of a Fault makes it."""
    try:
        return Fault(**{**fields, "headers": tuple((str(name), str(value)) for name, value in fields["headers"])})
    except FaultError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise FaultError(f"Invalid fault in JSON: {error}") from None
