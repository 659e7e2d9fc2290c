"""Faults: what goes wrong with which requests, when, and how often; as a dataclass, as JSON, as a line of text.

A fault strikes at one of three moments of a request:

    arrive    the head of the request is here, its body is not read, nobody has asked who sends it
    before    the body is here, the sender may pass, nothing is done yet
    after     it is done (the commit is applied, the content stored), the answer has not left

A fault `after` strikes only requests that succeeded, so a hit means: the Hub has it, and the client does not know.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

GRAMMAR = """\
A fault is: [METHOD] PATTERN KIND [NAME=VALUE ...]
  PATTERN   regular expression, searched in the path of the request: /commit/ /preupload/ /lfs/ objects/batch /v1/xorbs
  KIND      200 to 599: this status in place of the answer | close: no answer | reset: TCP reset
            hang: no answer until the faults are cleared, or for seconds=N; then it goes on, also without its client
            slow seconds=N: the answer takes N seconds; with when=arrive, reading the request does
  when=     arrive: before the body is read | before: before anything is done (default) | after: when all is done
  times=N   requests that are struck, 0: all (default 1)        skip=N    requests that pass first (default 0)
            of several faults the first one that is due strikes; those behind it do not count the request
  of a status: message=TEXT  code=X-ERROR-CODE  body=TEXT  header=NAME:VALUE (any number)
Examples: 'POST /commit/ 503 times=3'   '/commit/ hang when=after seconds=30'   '/lfs/ reset skip=1'
          '/commit/ 429 header=Retry-After:2 message="Too many"'   '/preupload/ slow seconds=5'"""

When = Literal["arrive", "before", "after"]
Kind = Literal["status", "close", "reset", "hang", "slow"]
_METHOD = re.compile(r"[A-Z]+")
_NUMBERS: dict[str, Callable[[str], float]] = {"times": int, "skip": int, "seconds": float}
_TEXTS = {"when", "message", "code", "body"}


class FaultError(ValueError):
    """What was given is no fault; the message shows the grammar."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}\n{GRAMMAR}")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, with which requests, when, how often.

    Attributes:
        where: A regular expression, searched in the raw path without its query.
        kind: What happens.
        method: The method of the requests, empty for any.
        when: The moment; empty means `before`, and `after` for a slow answer.
        times: How many requests are struck, 0 for all.
        skip: How many requests pass first.
        seconds: How long a hang or a slow transfer lasts; a hang of 0 lasts until the faults are cleared.
        status: The status of the answer, of the kind `status` only.
        headers: Further headers of that answer.
        message: What it says, as JSON and as X-Error-Message.
        code: Its X-Error-Code.
        body: Its body, in place of JSON: what a proxy sends.

    Raises:
        FaultError: if the parts do not fit together.
    """

    where: str
    kind: Kind
    method: str = ""
    when: When | Literal[""] = ""
    times: int = 1
    skip: int = 0
    seconds: float = 0.0
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    message: str = ""
    code: str = ""
    body: str = ""

    def __post_init__(self) -> None:
        if not self.when:
            object.__setattr__(self, "when", "after" if self.kind == "slow" else "before")
        if why := _flaw(self):
            raise FaultError(why)

    def matches(self, method: str, path: str) -> bool:
        """Return whether a request is one of those meant."""
        return self.method in ("", method) and re.search(self.where, path) is not None


@dataclass
class Standing:
    """A fault and what it has done.

    Attributes:
        fault: What goes wrong.
        seen: Requests that reached it, skipped ones included.
        hits: Requests that it struck.
        held: Requests that it holds now.
    """

    fault: Fault
    seen: int = 0
    hits: int = 0
    held: int = 0

    @property
    def due(self) -> bool:
        """Whether it strikes the request that was seen last."""
        return self.seen > self.fault.skip and (self.fault.times == 0 or self.hits < self.fault.times)


def _flaw(fault: Fault) -> str:
    """Return what is wrong with a fault, nothing if it is one."""
    answers = any((fault.headers, fault.message, fault.code, fault.body))
    flaws = {
        f"Unknown kind of fault: {fault.kind}": fault.kind not in get_args(Kind),
        f"A fault cannot happen at {fault.when!r}": fault.when not in get_args(When),
        f"Not a method: {fault.method!r}": bool(fault.method) and not _METHOD.fullmatch(fault.method),
        "Numbers must not be negative": min(fault.times, fault.skip, fault.seconds) < 0,
        f"Not a status of an answer: {fault.status}": fault.kind == "status" and not 200 <= fault.status <= 599,
        "Only a status has a header, message, code or body": fault.kind != "status" and (answers or fault.status > 0),
        "Only hang and slow take seconds": fault.seconds > 0 and fault.kind not in ("hang", "slow"),
        "slow needs seconds=N": fault.kind == "slow" and not fault.seconds > 0,
        "slow is when=arrive or when=after": fault.kind == "slow" and fault.when == "before",
        f"Not a regular expression: {fault.where!r}": not _is_pattern(fault.where),
    }
    return next((why for why, wrong in flaws.items() if wrong), "")


def _is_pattern(text: str) -> bool:
    """Return whether a text is a regular expression."""
    try:
        return bool(text and re.compile(text))
    except re.error:
        return False


def parse(text: str) -> Fault:
    """Return the fault that a line of text means; the grammar is GRAMMAR.

    Raises:
        FaultError: if it means none.
    """
    words = _words(text)
    method = words.pop(0) if words and _METHOD.fullmatch(words[0]) else ""
    if len(words) < 2:
        raise FaultError(f"Pattern or kind is missing: {text!r}")
    where, kind, *options = words
    fields: dict[str, Any] = {"where": where, "method": method}
    fields |= {"kind": "status", "status": int(kind)} if kind.isdecimal() else {"kind": kind}
    for option in options:
        name, equals, value = option.partition("=")
        if name == "header" and ":" in value:
            header, _, content = value.partition(":")
            fields["headers"] = (*fields.get("headers", ()), (header.strip(), content.strip()))
        elif equals and name in _TEXTS:
            fields[name] = value
        elif equals and name in _NUMBERS:
            fields[name] = _number(name, value)
        else:
            raise FaultError(f"Not an option of a fault: {option!r}")
    return Fault(**fields)


def _words(text: str) -> list[str]:
    """Return the words of a line; quotes hold blanks, and backslashes belong to the regular expression."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise FaultError(f"{error}: {text!r}") from None


def _number(name: str, value: str) -> float:
    """Return the value of an option that is a number."""
    try:
        return _NUMBERS[name](value)
    except ValueError:
        raise FaultError(f"{name} is not a number: {value!r}") from None


def from_json(fields: Any) -> Fault:
    """Return the fault that a JSON object (`dataclasses.asdict` of one) means.

    Raises:
        FaultError: if it means none.
    """
    try:
        headers = tuple((str(name), str(value)) for name, value in fields.get("headers", ()))
        return Fault(**{**fields, "headers": headers})
    except FaultError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise FaultError(f"Not a fault in JSON: {error}") from None
