"""Logdirs: the forms in which a user may name a run directory, and the one form in which all of ours name it.

    runs/exp1, ~/runs/exp1                     absolute path
    file:///data/runs/exp1                     absolute path
    s3://bucket/runs//exp1/, S3://bucket/...   s3://bucket/runs/exp1
    hf://me/run                                refused: repo_id= sends it to the Hub, within its rate limit
    anything else with a "://"                 refused

Invariants:
- One place has one name, so all processes of a run come to the same staging directory.
- No secret stands in a logdir: it is written to disk and told in messages.
- Nothing is looked up: not the disk, not the network, not fsspec but whether it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re

from hf_mpwriter.base.errors import LogdirError, SettingsError

EXTRA = "pip install 'hf-mpwriter[fsspec]'"

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)


def normalised(logdir: str | os.PathLike[str]) -> str:
    """A logdir as an absolute path, with the home directory in place of "~", or as a URL.

    Raises:
        LogdirError: it can be neither.
        SettingsError: it is a URL, and what reads URLs is not installed.
    """
    text = os.fspath(logdir)
    if "\0" in text:
        raise LogdirError(f"The logdir {text!r} holds a NUL, which no path may.", hint="Give another logdir.")
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    match = _URL.fullmatch(text)
    if match is None or "::" in match["scheme"]:
        raise LogdirError(f"The logdir {text!r} is neither a path nor a URL.", hint="Give one of the two.")
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        return _path(text, rest)
    return _url(text, scheme, rest)


def is_url(logdir: str) -> bool:
    """Whether a normalised logdir is a URL."""
    return _URL.match(logdir) is not None


def protocol(logdir: str) -> str:
    """The protocol of a normalised logdir, "" of a path."""
    match = _URL.match(logdir)
    return match["scheme"] if match else ""


def name_of(logdir: str) -> str:
    """The last part of a normalised logdir; "" of the root directory."""
    return os.path.basename(logdir)


def _path(text: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise LogdirError(f"The logdir {text!r} names no path of this host.", hint="Write file:///path, or /path.")
    return os.path.abspath(slash + path)


def _url(text: str, scheme: str, rest: str) -> str:
    host, *parts = rest.split("/")
    if ":" in host.rpartition("@")[0]:
        hint = "Give it where the filesystem's package looks for it."
        raise LogdirError(f"The logdir {scheme}://... holds a password, which would be written to disk.", hint=hint)
    if scheme == "hf":
        hint = "Use a directory; repo_id= sends it to the Hub, within the Hub's limit on commits."
        raise LogdirError(f"The logdir {text!r} is a repository on the Hub.", hint=hint)
    if scheme in ("http", "https"):
        raise LogdirError(f"The logdir {text!r} can only be read.", hint="Use a directory, or s3://, gs://, abfs://.")
    if "?" in rest or "::" in rest:
        raise LogdirError(f"The logdir {scheme}://... holds a query, or another URL.", hint="Give a bucket and a path.")
    parts = [part for part in parts if part not in ("", ".")]
    if ".." in parts or not any((host, *parts)):
        raise LogdirError(f"The logdir {text!r} names no place.", hint="Give a bucket and a path, without '..'.")
    if importlib.util.find_spec("fsspec") is None:
        raise SettingsError(f"The logdir {text!r} is a URL, and fsspec is not installed.", hint=f"Run: {EXTRA}")
    return "/".join((f"{scheme}://{host}", *parts))
