"""Plain words: durations, what helps as a sentence, and words as they are typed into a shell.

271.4                  -->  4:31
run `hf auth login`    -->  Run `hf auth login`
-odd name              -->  ./'-odd name'
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from hf_mpwriter.base.settings import is_on

DEBUG = "HF_MPWRITER_DEBUG"
LOGIN = "hf auth login"


def sentence(helps: str) -> str:
    """What helps, as it stands behind a full stop and before one: `Check the network`."""
    return (helps[:1].upper() + helps[1:]).rstrip(". ")


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
