"""A Hugging Face Hub on loopback, kept in a folder, that the real client cannot tell from the real Hub.

The tests and the demo upload to it. It serves repositories with commit history, LFS in one or many parts, and Xet
with its own content-addressed store. Its answers carry the headers and error codes that the client looks for.

    with LocalHub("hub-data") as hub:
        HfApi(endpoint=hub.endpoint).create_repo("me/run")
        hub.store.commits("model", "me/run")

| module | responsibility |
|---|---|
| `server/server` | the Hub as a child process: start, stop, kill, restart |
| `server/child` | a child process on a listening socket, for the Hub and for the TensorBoards of its pages |
| `server/config` | what a Hub is started with |
| `server/serving` | claim the root, serve |
| `server/state` | what all endpoints share: store, secret, tokens, limits, faults |
| `server/accounts`, `server/limits` | who may send requests, and how many |
| `server/faults`, `server/faulting` | which requests fail, and how they fail |
| `server/request_log` | one line per request |
| `endpoints/app` | the route table |
| `endpoints/routing` | raw paths, whole bodies, the thread pool, refusals as responses |
| `endpoints/repos`, `commits`, `content`, `lfs`, `cas` | the Hub's API, by subject |
| `endpoints/control` | faults and tokens of a running Hub |
| `storage/store`, `writing`, `blobs` | repositories and content on disk, without starlette |
| `storage/xet`, `storage/shards` | uploaded xorbs and shards; from a sha256 back to content |
| `pages/` | what a browser shows, with TensorBoard |
| `errors` | refusals, with the status and code of the real Hub |

Names resolve on first use: reading a store does not load the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_mpwriter.localhub.server.server import LocalHub
    from hf_mpwriter.localhub.server.serving import serve
    from hf_mpwriter.localhub.storage.store import Store, View

__all__ = ["LocalHub", "Store", "View", "serve"]

_HOMES = {"LocalHub": "server.server", "Store": "storage.store", "View": "storage.store", "serve": "server.serving"}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
