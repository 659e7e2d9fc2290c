"""Storage: where the event files of a run and its spool are, and why there.

    layout         event files                spool                                   the filesystem of the logdir
    DIRECT         logdir                     logdir/.hf_mpwriter                     keeps files as a disk does
    LOCAL_SPOOL    logdir                     <staging>/<hash>/<name>/.hf_mpwriter    has no locks, or no modes
    STAGED         <staging>/<hash>/<name>    <staging>/<hash>/<name>/.hf_mpwriter    is an object store, or unknown

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
- The answer follows from the type of the logdir's filesystem and the environment; nothing is tried out there. So all
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
from hf_mpwriter.system.filesystem import Kind, Mount, mount_unasked

STAGING_VARIABLE = "HF_MPWRITER_STAGING"
NEVER = "never"
OF_OTHERS = "of_others"  # in the staging directory: spools of folders into which nothing is written
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_PASSWORD = re.compile("(:|%(25)*3[Aa]).*(@|%(25)*40)", re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{16}(\.removed-[0-9a-f]{8})?")  # the second is of a `clean` that was cut short


class Layout(enum.Enum):
    """How a run is laid out on disk, see the picture above."""

    DIRECT = "direct"
    LOCAL_SPOOL = "local spool"
    STAGED = "staged"


_CANNOT = {  # the layout where a filesystem is not as a disk, and why
    Kind.WITHOUT_LOCKS: (Layout.LOCAL_SPOOL, "has no file locks"),
    Kind.WITHOUT_MODES: (Layout.LOCAL_SPOOL, "does not keep the mode of a file"),
    Kind.OBJECT_STORE: (Layout.STAGED, "shows an object store, in which a file is whole only when it is closed"),
    Kind.UNKNOWN: (Layout.STAGED, f"may show an object store; {STAGING_VARIABLE}={NEVER} takes it for a disk"),
}


@dataclass(frozen=True)
class Storage:
    """Where a run is kept."""

    logdir: str  # absolute path or URL, as the user named it
    layout: Layout
    run_dir: str  # absolute path: where the event files of this host's processes are
    spool: str  # absolute path of the spool
    why: str = ""  # "" for DIRECT, else one clause that says why not
    refused: str = ""  # sentences about staging directories that would have come first, and are not used; "" if none is
    lost: str = ""  # sentences about those in which the run stood, and which are gone; "" if none is


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
    _check_passwords(text)
    match = _URL.fullmatch(text)
    if match is None or "::" in match["scheme"]:
        raise LogdirError(f"The logdir {text!r} is neither a path nor a URL.", hint="Give one of the two.")
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        return _path(text, rest)
    return _url(text, scheme, rest)


def _check_passwords(url: str) -> None:
    """Refuse a colon before an "@", encoded or not: what is between them, slashes included, may be a password."""
    scheme, _, rest = url.partition("://")
    if _PASSWORD.search(rest) and not (scheme.lower() == "file" and rest.startswith("/")):
        hint = "Give it where the filesystem's package looks for it. No path there may have a colon before an '@'."
        raise LogdirError("The logdir is a URL that holds a password, which would be written to disk.", hint=hint)


def _path(text: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise LogdirError(f"The logdir {text!r} names no path of this host.", hint="Write file:///path, or /path.")
    return os.path.abspath(slash + path)


def _url(text: str, scheme: str, rest: str) -> str:
    host, *parts = rest.split("/")
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


def choose(mount: Mount | None, staging: str) -> tuple[Layout, str]:
    """The layout of a run, and why; see `Storage.why`."""
    if staging not in ("", NEVER):
        return Layout.STAGED, f"{STAGING_VARIABLE} is {staging}"
    if mount is None or mount.kind not in _CANNOT or (mount.kind is Kind.UNKNOWN and staging == NEVER):
        return Layout.DIRECT, ""
    layout, cannot = _CANNOT[mount.kind]
    return layout, f"{mount.name} {cannot}"


def staging_setting(environ: Mapping[str, str]) -> str:
    """The value of HF_MPWRITER_STAGING: an absolute path, `never`, or "" if it is not set."""
    value = environ.get(STAGING_VARIABLE, "").strip()
    if value in ("", NEVER) or os.path.isabs(value):
        return value
    raise SettingsError(f"{STAGING_VARIABLE} is {value!r}.", hint=f"It is an absolute path, or {NEVER!r}.")


def staging_directories(environ: Mapping[str, str], *, lasts: bool = True) -> list[str]:
    """The directories in which a run may be staged, the best first; or those for what need not last."""
    setting = staging_setting(environ)
    if setting not in ("", NEVER):
        return [setting]
    lasting = lasting_directories(environ)
    of_job = (environ.get("SLURM_TMPDIR", ""), environ.get("TMPDIR", ""))
    return _absolute(*of_job, *(lasting if lasts else reversed(lasting)))


def lasting_directories(environ: Mapping[str, str]) -> list[str]:
    """Those of them that are the same for every job and shell of a user."""
    state = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", ""), ".local", "state")
    return _absolute(state, "/var/tmp", "/tmp")  # noqa: S108


def searched_directories(environ: Mapping[str, str]) -> list[str]:
    """The directories in which a run may stand that was staged with HF_MPWRITER_STAGING, or without it."""
    without = {name: value for name, value in environ.items() if name != STAGING_VARIABLE}
    return _absolute(*staging_directories(environ), *staging_directories(without))


def near_directories(environ: Mapping[str, str], mountinfo: str) -> list[str]:
    """Those of them that are asked: of what may hang only a named one."""
    setting = staging_setting(environ)
    return [one for one in searched_directories(environ) if one == setting or not why_far(one, mountinfo)]


def why_far(directory: str, mountinfo: str) -> str:
    """Why a directory is not on a disk of this host, "" if it is, as far as the system tells; nothing asks it."""
    mount = mount_unasked(directory, mountinfo)
    return "" if mount is None or mount.is_local else f"{directory} is on {mount.fstype}"


def _absolute(*paths: str) -> list[str]:
    return list(dict.fromkeys(os.path.normpath(path) for path in paths if os.path.isabs(path)))


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


def direct(run_dir: str) -> Storage:
    """All in the run directory itself."""
    return Storage(run_dir, Layout.DIRECT, run_dir, os.path.join(run_dir, SPOOL_NAME))
