"""Plain words: what the text of a failure means, durations, and words as they are typed into a shell.

    ConnectError: [Errno 111] Connection refused     -->  the Hub cannot be reached
    271.4                                            -->  4:31
    -odd name                                        -->  ./'-odd name'

A failure is known by its text only: it was written by another process, perhaps of another version.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping

from hf_mpwriter.base.settings import OFFLINE, is_on

_MEANINGS = (  # the first that matches counts
    (r"Name or service not known|getaddrinfo|name resolution|\(DNS\)", "the name of the Hub is not known (DNS)"),
    (r"LocalTokenNotFound|^no token", "there is no token"),
    (r"\b401\b", "the token is refused (401)"),
    (r"\b402\b", "the account has to pay (402)"),
    (r"\b403\b", "the token may not do this (403)"),
    (r"\b404\b|RepositoryNotFound|RevisionNotFound", "no such repository, or the token may not see it (404)"),
    (r"\b429\b", "the Hub has had too many requests or commits (429)"),
    (r"(?:Server error '?|fails \()(5\d\d)\b", r"the Hub fails (\1)"),
    (
        r"Connect(Error|Timeout)|PoolTimeout|Connection refused|is unreachable|cannot be reached",
        "the Hub cannot be reached",
    ),
    (r"(Read|Write)Timeout|timed out|TimeoutError|does not answer in time", "the Hub does not answer in time"),
    (
        r"RemoteProtocolError|Server disconnected|ReadError|Connection reset|ended the connection",
        "the connection to the Hub broke off",
    ),
    (r"No space left|Errno 28\b|Disk quota|disk is full", "the disk is full"),
    (r"is not that of a Hub", "what answers is no Hub: look at HF_ENDPOINT and at proxies"),
)
_EXCEPTION = re.compile(r"^(?:\w+(?:Error|Exception|Timeout|Protocol|URL): )+")
DEBUG = "HF_MPWRITER_DEBUG"
LOGIN = "hf auth login"
TOKEN = ("the token is refused (401)", "the token may not do this (403)", "there is no token")


def plain(reason: str) -> str:
    """What a failure means, in a few words; the text itself, without the name of its type, if that is not known."""
    for pattern, meaning in _MEANINGS:
        if (found := re.search(pattern, reason)) is not None:
            return found.expand(meaning)
    return _EXCEPTION.sub("", reason).rstrip(". ")


def cure(reason: str, hint: str = "", environ: Mapping[str, str] = os.environ) -> str:
    """What helps against a failure, as a command or a short sentence; "" if only time does."""
    meaning = plain(reason)
    if reason == OFFLINE:
        return "unset HF_HUB_OFFLINE"
    if meaning in TOKEN:
        rights = " with a token that may write" if meaning == TOKEN[1] else ""
        if environ.get("HF_TOKEN"):
            return f"mend HF_TOKEN, which is set here{', so that it may write' if rights else ''}"
        return f"{LOGIN}{rights}"
    return hint.rstrip(". ")


def sentence(helps: str) -> str:
    """What helps, as it stands behind a full stop: `Run: hf auth login`, `Mend HF_TOKEN`."""
    return f"Run: {helps}" if helps.startswith(LOGIN) else helps[:1].upper() + helps[1:]


def span(seconds: float) -> str:
    """A duration: `0:34`, `4:31`, `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ago(seconds: float) -> str:
    """How long something is ago: `34 s ago`, `5 min ago`, `3 h ago`, `2 days ago`."""
    seconds = max(0.0, seconds)
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds / 86_400:.0f} days ago"


def examples(*lines: str) -> str:
    """What stands at the end of a help text: commands as they are typed."""
    return "\n".join(["\b", "Examples:", *(f"  hf-mpwriter {line}" for line in lines)])


def is_debugging(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether errors are shown with all that is known of them: `--debug`, or HF_MPWRITER_DEBUG=1."""
    return is_on(environ.get(DEBUG, ""))


def typed(*words: str) -> str:
    """Words as they are pasted into a shell. For a path see `as_argument`."""
    return " ".join(map(_quoted, words))


def as_argument(path: str) -> str:
    """A path that no command takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def _quoted(word: str) -> str:
    """A word for a shell; what a terminal would not print, or would obey, is escaped as bash and zsh read it."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        char
        if char.isprintable() and char not in "\\'"
        else "".join(f"\\x{byte:02x}" for byte in char.encode(errors="surrogateescape"))
        for char in word
    )
    return f"$'{escaped}'"
