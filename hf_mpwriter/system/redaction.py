"""Redaction: no secret is in a text that a process of ours lets out.

    what leaves                                                  where it is redacted
    what the uploader, a push or the command line print,         `guard`
        uncaught tracebacks and what libraries log included
    status.json, which status and workers read                 `Bulletin`
    why a push failed: verdicts, the ledger                      `hub`, before it is cut to its length
    messages of exceptions                                       `HfMpWriterError`
    warnings of workers                                          the filter of our logger, below

Known by value: the tokens of the environment and, outside of training, those in the files of huggingface_hub. Known by
shape, wherever they come from: tokens of the Hub, JWTs, what follows `Bearer`, the query of a URL (it may be signed),
user and password in a URL.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from hf_mpwriter.system import hf_home

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_MPWRITER_LOCALHUB_TOKEN")
SHORTEST = 4  # characters of a token that is looked for; a shorter one would be found in every other word
FILE_LIMIT = 1 << 16  # characters of a token file

_STORED = re.compile(r"token\s*[=:]\s*(\S+)")
_STOP = r"\s'\"\\"  # where a secret ends; never in the midst of an escape, so redacted JSON is JSON
_SHAPES = (
    (re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{20,}"), "<token>"),
    (re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]+)+"), "<token>"),
    (re.compile(rf"(?i:\b(bearer))\s+[^{_STOP}]+"), r"\1 <token>"),
    (re.compile(r"\b(Basic)\s+[\w+/=]{8,}"), r"\1 <token>"),
    (re.compile(rf"://[^/?#{_STOP}]*@"), "://...@"),
    (re.compile(rf"(https?://[^?{_STOP}]+)\?[^{_STOP}]+"), r"\1?..."),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without what looks like one."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "<token>")
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def given(environ: Mapping[str, str]) -> set[str]:
    """The tokens in the environment."""
    return _tokens(environ.get(name, "") for name in VARIABLES)


def known(environ: Mapping[str, str]) -> set[str]:
    """The tokens in the environment, and those in the files that it leads to."""
    texts = [_content(path) for path in hf_home.token_files(environ)]
    stored = (found for text in texts for found in _STORED.findall(text))
    return given(environ) | _tokens([*texts, *stored])


def redact_known(text: str) -> str:
    """The text without any secret that this process knows, now: a token file may change while it runs."""
    return redact(text, known(os.environ))


def _tokens(texts: Iterable[str]) -> set[str]:
    cleaned = (text.replace("\r", "").replace("\n", "").strip() for text in texts)  # as the client does
    return {text for text in cleaned if len(text) >= SHORTEST}


def _content(path: str) -> str:
    try:
        with open(
            os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), errors="replace", encoding="utf-8"
        ) as file:
            return file.read(FILE_LIMIT)
    except OSError:
        return ""


class _Redacting:
    """A text stream whose writes are redacted."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; the count is that of what was given."""
        self._stream.write(redact_known(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """From here on, whatever this process prints to its standard output and error is redacted."""
    sys.stdout, sys.stderr = _Redacting(sys.stdout), _Redacting(sys.stderr)


def _redact_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage(), given(os.environ)), None
    return True


logging.getLogger("hf_mpwriter").addFilter(_redact_record)
