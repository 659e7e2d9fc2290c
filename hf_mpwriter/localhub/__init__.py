"""A Hugging Face Hub on loopback, kept in a folder, that the real client cannot tell from the real one.

It is the Hub of the tests and of the demo: repositories with real commit history, LFS in one or many parts, Xet
with a content-addressed store of its own, and answers that carry the headers and codes the client looks for.

    with LocalHub("hub-data") as hub:
        HfApi(endpoint=hub.endpoint).create_repo("me/run")
        hub.store.commits("model", "me/run")

| module | responsibility |
|---|---|
| `server.py` | the Hub as a child process: start, stop, kill, start again |
| `serving.py` | bind to loopback, claim the root, serve |
| `app.py` | the table of routes |
| `accounts.py`, `limits.py` | who may pass, and how often |
| `faults.py`, `faulting.py` | what may go wrong, and how it does |
| `control.py` | the endpoints that steer a running Hub |
| `repos.py`, `commits.py`, `content.py`, `lfs.py`, `cas.py` | the endpoints, by subject |
| `routing.py` | raw paths, whole bodies, the thread pool, errors as answers |
| `requestlog.py` | one line per request |
| `hub.py` | what all endpoints share: store, secret, tokens, limits, faults |
| `xet.py`, `shards.py` | uploaded xorbs and shards, and the way back from a sha256 to content |
| `store.py`, `writing.py`, `blobs.py` | repositories and content on disk; they need neither server nor starlette |
| `view.py` | a run as the oracle wants to see it |
| `errors.py` | refusals, with the status and code of the real Hub |

Names resolve on first use: whoever only reads a store does not load the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_mpwriter.localhub.server.server import LocalHub
    from hf_mpwriter.localhub.server.serving import serve
    from hf_mpwriter.localhub.storage.store import Store
    from hf_mpwriter.localhub.storage.view import View

__all__ = ["LocalHub", "Store", "View", "serve"]

_HOMES = {"LocalHub": "server.server", "Store": "storage.store", "View": "storage.view", "serve": "server.serving"}


def __getattr__(name: str) -> Any:
    """Resolve the exported names on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
