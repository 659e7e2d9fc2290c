"""Where huggingface_hub keeps a user's tokens and caches, found without importing it.

    $HF_HOME, else $XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface
      token            the token in use; $HF_TOKEN_PATH names another file
      stored_tokens    all tokens of `hf auth login`
      hub/             $HF_HUB_CACHE names another directory
      xet/             $HF_XET_CACHE names another directory

The rules are those of huggingface_hub/constants.py. The environment is an argument and is never changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

BLOCK = 4096  # bytes that a cache must take; a full disk or quota takes an empty file, but not these


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def home(environ: Mapping[str, str]) -> str:
    """The directory HF_HOME."""
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(environ.get("HF_HOME") or os.path.join(cache, "huggingface"))


def token_files(environ: Mapping[str, str]) -> list[str]:
    """The files that may hold tokens; the one in use comes first. They need not exist."""
    token = _expanded(environ.get("HF_TOKEN_PATH") or os.path.join(home(environ), "token"))
    places = (home(environ), os.path.dirname(token))
    return list(dict.fromkeys([token, *(os.path.join(p, name) for p in places for name in ("token", "stored_tokens"))]))


def token_stamp(environ: Mapping[str, str]) -> tuple[int, int]:
    """Inode and mtime (ns) of the token file, which change when the user logs in or out; (0, 0) without a file."""
    try:
        status = os.stat(token_files(environ)[0])
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def writable_caches(environ: Mapping[str, str], instead: str) -> dict[str, str]:
    """Variables that move the caches which cannot be written; {} where all can.

    Args:
        environ: the environment.
        instead: a directory that can be written; it need not exist.
    """
    top, token = home(environ), token_files(environ)[0]
    hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(top, "hub")
    xet = environ.get("HF_XET_CACHE") or os.path.join(top, "xet")
    wanted = {"HF_HOME": top, "HF_HUB_CACHE": _expanded(hub), "HF_XET_CACHE": xet}
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
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(BLOCK))
    except OSError:
        return False
    return True
