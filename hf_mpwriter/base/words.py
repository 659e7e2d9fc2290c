"""Plain words: sizes, durations, what helps as a sentence, and words as they are typed into a shell.

4711                   -->  4.7 kB
271.4                  -->  4:31
run `hf auth login`    -->  Run `hf auth login`
-odd name              -->  ./'-odd name'
"""

from __future__ import annotations

import os
import shlex


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sentence(helps: str) -> str:
    """What helps, as it stands behind a full stop and before one: `Check the network`."""
    return (helps[:1].upper() + helps[1:]).rstrip(". ")


def with_cure(reason: str, hint: str) -> str:
    """Why something failed, and what helps: `token refused (401): run ...`, `me/run is gone. To make it anew: ...`."""
    if not hint:
        return reason
    return f"{reason.rstrip('.')}{': ' if hint[0].islower() else '. '}{hint}"


def span(seconds: float) -> str:
    """A duration as clocks show it: `0:34`, `4:31`, `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """A duration in one unit: `34 s`, `5 min`, `3 h`, `2 days`."""
    seconds = max(0.0, seconds)
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def ago(seconds: float) -> str:
    """How long something is ago: `34 s ago`."""
    return f"{duration(seconds)} ago"


def command_line(command: str, logdir: str | os.PathLike[str], *options: str) -> str:
    """A command of ours as it is typed into a shell."""
    return typed("hf-mpwriter", command, as_argument(os.fspath(logdir)), *options)


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
