"""Redaction: no text that leaves a process of ours holds a secret.

    text                                                        redacted by
    output of the uploader, a push and the command line,        `guard`
        with uncaught tracebacks and the logs of libraries
    uploader_status.json                                        `daemon.status_file`
    reasons in verdicts and in the ledger                       `push.classify`, before they are cut to their length
    messages of exceptions                                      `base.errors`
    warnings of workers                                         the filter of our logger, below

Secrets are known by value: the tokens in the environment and, outside of training, those in the files of
huggingface_hub. They are known by shape too, wherever they come from: tokens of the Hub, JWTs, what follows `Bearer` or
`Basic`, the query of a URL (it may be signed), user and password in a URL.

What is printed or logged can be encoded: of a path that is no UTF-8, the bytes that are none are escaped.

Redacted JSON is JSON.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from hf_mpwriter.system import hf_home
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import open_above

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_MPWRITER_LOCALHUB_TOKEN")
SHORTEST = 4  # characters of a token that is searched for; a shorter one would match in every other word
FILE_LIMIT = 1 << 16  # characters of a token file

_STORED = re.compile(r"token\s*[=:]\s*(\S+)")
_PORT = re.compile(r"[^:/?#]*:\d+(?=[/?#])")  # with its host
_COLON = re.compile(r":|%(?:25)*3[Aa]")
_STOP = r"\s'\"\\"  # characters that end a secret; a backslash, because an escape of JSON must stay whole


def _without_password(url: re.Match[str]) -> str:
    """An "@" ends user and password: all before it where there is no slash, or a colon that begins no port."""
    before, at, rest = url[0].removeprefix("://").rpartition("@")
    port = _PORT.match(before)
    is_secret = at and (not {"/", "?", "#"} & set(before) or _COLON.search(before, port.end() if port else 0))
    return f"://...@{rest}" if is_secret else url[0]


def _behind_word(found: re.Match[str]) -> str:
    """Instead of a template, for which `re` imports something, as it cannot where a `__del__` logs late."""
    return f"{found[1]} <token>"


_SHAPES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{30,}"), "<token>"),
    (re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]+)+"), "<token>"),
    (re.compile(rf"(?i:\b(bearer))\s+[^{_STOP}]+"), _behind_word),
    (re.compile(r"\b(Basic)\s+[\w+/=]{8,}"), _behind_word),
    (re.compile(rf"://[^{_STOP}]*"), _without_password),
    (re.compile(rf"(https?://[^?{_STOP}]+)\?[^{_STOP}]+"), lambda found: f"{found[1]}?..."),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without what has the shape of one."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, "<token>")
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def environment_tokens(environ: Mapping[str, str]) -> set[str]:
    """The tokens in the environment."""
    return _tokens(environ.get(name, "") for name in VARIABLES)


def known_tokens(environ: Mapping[str, str]) -> set[str]:
    """The tokens in the environment, and those in the files of huggingface_hub that it names."""
    texts = [_content(path) for path in hf_home.token_files(environ)]
    stored = (found for text in texts for found in _STORED.findall(text))
    return environment_tokens(environ) | _tokens([*texts, *stored])


def redact_known(text: str) -> str:
    """The text without any secret that this process knows. Token files are read anew: they may have changed."""
    return redact(text, known_tokens(os.environ))


def encodable(text: str) -> str:
    """The text with everything escaped that no stream takes: bytes of a file name that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """The text with everything escaped that a terminal could not print, or could obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _tokens(texts: Iterable[str]) -> set[str]:
    cleaned = (text.replace("\r", "").replace("\n", "").strip() for text in texts)  # huggingface_hub cleans so too
    return {text for text in cleaned if len(text) >= SHORTEST}


def _content(path: str) -> str:
    try:
        with open(open_above(path, os.O_RDONLY | os.O_NONBLOCK), errors="replace", encoding="utf-8") as file:
            return file.read(FILE_LIMIT)
    except ours(OSError):
        return ""


class _Redacting:
    """A text stream whose writes are redacted."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the redacted text; returns the length of what was given."""
        self._stream.write(encodable(redact_known(text)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Redact what this process prints to standard output and error from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8", opener=open_above)  # noqa: SIM115
        setattr(sys, name, _Redacting(stream))


def _redact_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(redact(record.getMessage(), environment_tokens(os.environ))), None
    return True


logging.getLogger("hf_mpwriter").addFilter(_redact_record)
