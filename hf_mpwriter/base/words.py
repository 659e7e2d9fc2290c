r"""Plain words: sizes, durations, what helps as a sentence, and commands as they are pasted into a shell.

4711                   -->  4.7 kB
271.4                  -->  4:31
run `hf auth login`    -->  Run `hf auth login`
sync, a;b              -->  hf-mpwriter sync './a;b'
sync, /a\nb            -->  sync of '/a\nb', a name that cannot be pasted

Invariant: all that is printed to be pasted is made by `typed`, which a test of architecture holds.
"""

from __future__ import annotations

import os
import shlex

from hf_mpwriter.system.redaction import printable

OURS = "hf-mpwriter"


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
    """A command of ours as it is typed into a shell, see `typed`."""
    return typed(OURS, command, as_path(logdir), *options)


def typed(*words: str) -> str:
    """A command as it is pasted into a shell; none if a word holds what a terminal would not print, or would obey.

    For paths see `as_path`.
    """
    if (odd := next((word for word in words if not word.isprintable()), None)) is not None:
        verb = words[1] if words[0] == OURS else words[0]
        return f"{verb} of {shlex.quote(printable(odd))}, a name that cannot be pasted"
    return " ".join(map(shlex.quote, words))


def as_path(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command: absolute or with `./`, so it is no option, no home and no URL; a URL as it is."""
    text = os.path.expanduser(os.fspath(path))
    is_plain = os.path.isabs(text) or "://" in text or text.split("/")[0] in (".", "..")
    return text if is_plain else f"./{text}"


def as_argument(path: str) -> str:
    """A path that was found, by a name that no command takes for an option or a home."""
    return f"./{path}" if path.startswith(("-", "~")) else path
