"""Homes: where the event files of a run and its spool are, and why there.

    way            event files                spool                                   the filesystem of the logdir
    DIRECT         logdir                     logdir/.hf_mpwriter                     can do all that is needed
    LOCAL_SPOOL    logdir                     <staging>/<hash>/<name>/.hf_mpwriter    has no locks, or no modes
    STAGED         <staging>/<hash>/<name>    <staging>/<hash>/<name>/.hf_mpwriter    lets no file grow in place

    <staging>      hf_mpwriter-<uid> in the first directory of `staging_directories` that is fit for it
    <hash>         16 hex digits of the sha256 of the logdir, without links
    <name>         the last part of it, so that messages and the folder on the Hub name the run as its user does

A logdir is an absolute path or a URL, in one form, by `normalised_logdir`:

    runs/exp1, ~/runs/exp1                     absolute path
    file:///data/runs/exp1                     absolute path
    s3://bucket/runs//exp1/, S3://bucket/...   s3://bucket/runs/exp1
    hf://me/run                                refused: repo_id= sends it to the Hub, within its rate limit
    anything else with a "://"                 refused

HF_MPWRITER_STAGING: a directory, in which every run is then staged; or `never`: no run is staged.

Invariants:
- The answer follows from the filesystem of the logdir and the environment, not from what lies in the logdir. So all
  processes of a run come to the same one.
- No secret stands in a logdir: it is written to disk and told in messages.
"""

from __future__ import annotations

import enum
import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hf_mpwriter.base.errors import LogdirError, SettingsError
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.system.filesystem.mounts import Mount
from hf_mpwriter.system.filesystem.probe import Abilities

STAGING_VARIABLE = "HF_MPWRITER_STAGING"
NEVER = "never"
OF_OTHERS = "of_others"  # in the staging directory: spools of folders into which nothing is written
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{16}")


class Way(enum.Enum):
    """The way in which a run is kept, see the picture above."""

    DIRECT = "direct"
    LOCAL_SPOOL = "local spool"
    STAGED = "staged"


_LACKS = {  # what follows if an ability is missing; those of object stores come first
    "append": (Way.STAGED, "cannot append to a file"),
    "read_open": (Way.STAGED, "does not show what is in a file before it is closed"),
    "link": (Way.STAGED, "knows no links, as the mount of an object store"),
    "exclusive": (Way.STAGED, "cannot refuse to create a file that is there"),
    "truncate": (Way.STAGED, "cannot cut a file"),
    "durable": (Way.STAGED, "does not show what fsync has written"),
    "lock": (Way.LOCAL_SPOOL, "has no file locks"),
    "private": (Way.LOCAL_SPOOL, "does not keep the mode of a file"),
    "rename": (Way.LOCAL_SPOOL, "cannot put a file in place of another one"),
}


@dataclass(frozen=True)
class Home:
    """Where a run is kept."""

    logdir: str  # absolute path or URL, as the user named it
    way: Way
    run_dir: str  # absolute path: where the event files of this host's processes are
    spool: str  # absolute path of the spool
    why: str = ""  # "" for DIRECT, else one clause that says what the filesystem of the logdir cannot do


def is_url(logdir: str) -> bool:
    """Whether a logdir is a URL and no path."""
    return "://" in logdir


def normalised_logdir(logdir: str | os.PathLike[str]) -> str:
    """A logdir as an absolute path, with the home directory in place of "~", or as a URL."""
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
    if scheme == "memory":
        hint = "Use a directory, or s3://, gs://, abfs://."
        raise LogdirError(f"The logdir {text!r} is in the memory of one process, which ends.", hint=hint)
    if "?" in rest or "::" in rest:
        raise LogdirError(f"The logdir {scheme}://... holds a query, or another URL.", hint="Give a bucket and a path.")
    parts = [part for part in parts if part not in ("", ".")]
    if ".." in parts or not any((host, *parts)):
        raise LogdirError(f"The logdir {text!r} names no place.", hint="Give a bucket and a path, without '..'.")
    if importlib.util.find_spec("fsspec") is None:
        raise SettingsError(f"The logdir {text!r} is a URL, which needs fsspec.", hint="Run: pip install fsspec")
    return "/".join((f"{scheme}://{host}", *parts))


def choose(mount: Mount | None, abilities: Abilities | None, staging: str) -> tuple[Way, str]:
    """The way to keep a run, and why; see `Home.why`."""
    if staging not in ("", NEVER):
        return Way.STAGED, f"{STAGING_VARIABLE} is {staging}"
    if mount is not None and mount.is_object_store:
        return Way.STAGED, f"{mount.program} shows an object store, in which a file is whole only when it is closed"
    if abilities is None:
        return Way.DIRECT, ""
    lack = next((name for name in needed(mount) if getattr(abilities, name) is False), None)
    if lack is None:
        return Way.DIRECT, ""
    way, cannot = _LACKS[lack]
    return way, f"{mount.program or mount.fstype if mount else 'this filesystem'} {cannot}"


def needed(mount: Mount | None) -> tuple[str, ...]:
    """The abilities that decide, in their order: the first one that is missing decides, whatever comes behind it."""
    may_be_store = mount is not None and mount.may_be_object_store
    return tuple(name for name in _LACKS if name != "link" or may_be_store)


def staging_setting(environ: Mapping[str, str]) -> str:
    """The value of HF_MPWRITER_STAGING: an absolute path, `never`, or "" if it is not set."""
    value = environ.get(STAGING_VARIABLE, "").strip()
    if value in ("", NEVER) or os.path.isabs(value):
        return value
    raise SettingsError(f"{STAGING_VARIABLE} is {value!r}.", hint=f"It is an absolute path, or {NEVER!r}.")


def staging_directories(environ: Mapping[str, str]) -> list[str]:
    """The directories in which a run may be staged, the best first."""
    setting = staging_setting(environ)
    if setting not in ("", NEVER):
        return [setting]
    state = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", ""), ".local", "state")
    named = [environ.get("SLURM_TMPDIR", ""), environ.get("TMPDIR", ""), state, "/var/tmp", "/tmp"]  # noqa: S108
    return list(dict.fromkeys(os.path.normpath(path) for path in named if os.path.isabs(path)))


def staged_name(logdir: str) -> str:
    """Where in the staging directory a run is: `<hash>/<name>`."""
    name = os.path.basename(logdir.rstrip("/"))
    return os.path.join(hashlib.sha256(os.fsencode(logdir)).hexdigest()[:16], name or "run")


def staging_root(user: int) -> str:
    """The name of the directory of a user's staged runs."""
    return f"hf_mpwriter-{user}"


def is_of_others(spool: str) -> bool:
    """Whether a spool is that of a folder of another user, into which nothing is written."""
    return f"/{OF_OTHERS}/" in spool


def is_staged_path(path: str, user: int) -> bool:
    """Whether a path is that of a staged run itself."""
    above, digits = os.path.split(os.path.dirname(path))
    return bool(_HASH.fullmatch(digits)) and os.path.basename(above) == staging_root(user)


def direct(run_dir: str) -> Home:
    """A home in the run directory itself."""
    return Home(run_dir, Way.DIRECT, run_dir, os.path.join(run_dir, SPOOL_NAME))
