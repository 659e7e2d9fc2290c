"""Where huggingface_hub keeps a user's tokens and caches, found without importing it; paths that any process can use.

    $HF_HOME, else $XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface
      token            the token in use; $HF_TOKEN_PATH names another file
      stored_tokens    all tokens of `hf auth login`
      hub/             $HF_HUB_CACHE names another directory
      xet/             $HF_XET_CACHE names another directory

    environment of a program  --settled-->  environment of uploader and push, which work in another directory

The rules are those of huggingface_hub/constants.py. The environment is an argument and is never changed.

Invariants:
- In a settled environment each path is absolute, and there is a home: NOWHERE for a user who has none.
- What lies below NOWHERE cannot be made, not even by root, and is replaced like any place that cannot be written.
"""

from __future__ import annotations

import os
import pwd
import re
import tempfile
from collections.abc import Mapping

from hf_mpwriter.system.interrupts import ours

BLOCK = 4096  # bytes that a cache must take; a full disk or quota takes an empty file, but not these
NOWHERE = os.devnull

_EXPANDED = ("HF_HOME", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE")
_CACHES = (*_EXPANDED, "XDG_CACHE_HOME", "HUGGINGFACE_ASSETS_CACHE", "HF_XET_CACHE", "HF_STORED_TOKENS_PATH")
_FILES = (  # what Python, its libraries and the client read besides
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE", "OPENSSL_CONF", "OPENSSL_MODULES"),
    *("TMPDIR", "TEMP", "TMP", "NETRC", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE"),
    *("HF_XET_LOG_DEST", "HF_XET_SYSTEM_MONITOR_LOG_PATH", "HF_XET_CLIENT_UNIX_SOCKET_PATH"),
)
_LISTS = ("SSL_CERT_DIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")  # separated by colons
_KEPT_EMPTY = ("HF_XET_LOG_DEST", *_LISTS)  # an empty value means something
_PROGRAM = "HF_MPWRITER_PYTHON"  # with a slash it is a path, else it is searched
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


def account_home() -> str:
    """The home that the system has for this user, "" without an entry."""
    try:
        found = pwd.getpwuid(os.getuid()).pw_dir
    except ours(KeyError, OSError):
        return ""
    return found if os.path.isabs(found) else ""


def settled(environ: Mapping[str, str], cwd: str, account_home: str) -> dict[str, str]:
    """An environment that means the same in another working directory.

    An empty variable counts as not set. A path that cannot be known, as the working directory is gone, is NOWHERE if
    it is that of a cache; else the variable is left out.
    """
    paths = ("HOME", _PROGRAM, *_CACHES, *_FILES)
    env = {name: value for name, value in environ.items() if value or name not in paths or name in _KEPT_EMPTY}
    home = _absolute(env.pop("HOME", ""), cwd)
    if home or not account_home:
        env["HOME"] = home or NOWHERE
    for name in (name for name in (*_CACHES, *_FILES, _PROGRAM) if env.get(name)):
        value = env[name]
        if (name == _PROGRAM and "/" not in value) or os.path.isabs(
            _expanded(value, env) if name in _EXPANDED else value
        ):
            continue
        env[name] = _absolute(value, cwd) or (os.path.join(NOWHERE, name) if name in _CACHES else "")
        if not env[name]:
            del env[name]
    for name in (name for name in _LISTS if env.get(name)):
        places = env[name].split(os.pathsep)
        env[name] = os.pathsep.join(place and (_absolute(place, cwd) or place) for place in places)
    return env


def _absolute(path: str, cwd: str) -> str:
    """The path as an absolute one, "" if that cannot be told. `..` stays: it may follow a link."""
    joined = os.path.join(cwd, path) if path else ""
    return joined if os.path.isabs(joined) else ""


def _expanded(path: str, environ: Mapping[str, str]) -> str:
    """The path without `~` and variables."""
    user, slash, rest = path.partition("/")
    if user == "~":
        path = (environ.get("HOME") or account_home() or NOWHERE).rstrip("/") + slash + rest or "/"
    elif user.startswith("~"):
        path = os.path.expanduser(path)
    return _VARIABLE.sub(lambda match: environ.get(match[1].strip("{}"), match[0]), path)


def cache_folder(environ: Mapping[str, str]) -> str:
    """The user's cache folder."""
    return _expanded(environ.get("XDG_CACHE_HOME") or "~/.cache", environ)


def home(environ: Mapping[str, str]) -> str:
    """The directory HF_HOME."""
    return _expanded(environ.get("HF_HOME") or os.path.join(cache_folder(environ), "huggingface"), environ)


def token_files(environ: Mapping[str, str]) -> list[str]:
    """The files that may hold tokens; the one in use comes first. They need not exist."""
    token = _expanded(environ.get("HF_TOKEN_PATH") or os.path.join(home(environ), "token"), environ)
    places = (home(environ), os.path.dirname(token))
    return list(dict.fromkeys([token, *(os.path.join(p, name) for p in places for name in ("token", "stored_tokens"))]))


def token_stamp(environ: Mapping[str, str]) -> tuple[int, int]:
    """Inode and mtime (ns) of the token file, which change when the user logs in or out; (0, 0) without a file."""
    try:
        status = os.stat(token_files(environ)[0])
    except ours(OSError):
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def writable_caches(environ: Mapping[str, str], instead: str) -> dict[str, str]:
    """Variables that move the caches which cannot be written; {} where all can."""
    top, token = home(environ), token_files(environ)[0]
    hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(top, "hub")
    xet = environ.get("HF_XET_CACHE") or os.path.join(top, "xet")
    wanted = {"HF_HOME": top, "HF_HUB_CACHE": _expanded(hub, environ), "HF_XET_CACHE": xet}
    others = {
        "HF_HOME": instead,
        "HF_HUB_CACHE": os.path.join(instead, "hub"),
        "HF_XET_CACHE": os.path.join(instead, "xet"),
    }
    change = {name: others[name] for name, place in wanted.items() if not _takes_files(place)}
    if "HF_HOME" in change:  # the token may be in the home that cannot be written
        readable = os.path.isfile(token) and os.access(token, os.R_OK)
        change["HF_TOKEN_PATH"] = token if readable else os.path.join(instead, "token")
    return change


def _takes_files(directory: str) -> bool:
    if not os.path.isabs(directory):
        return False
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(BLOCK))
    except ours(OSError):
        return False
    return True
