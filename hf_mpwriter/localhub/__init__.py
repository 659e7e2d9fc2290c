"""A Hugging Face Hub on loopback, kept in a folder, that the real client cannot tell from the real Hub.

    with LocalHub("hub-data") as hub:
        HfApi(endpoint=hub.endpoint).create_repo("me/run")
        hub.store.commits("model", "me/run")

| module | responsibility |
|---|---|
| `server`, `serving` | the Hub as a child process; in it, the root, the state of all endpoints, the quota, the server |
| `child` | a child process on a listening socket, for the Hub and for the TensorBoards of its pages |
| `config` | what a Hub is started with |
| `faults`, `faulting` | which requests fail, and how they fail |
| `endpoints/app` | the route table, the request log, the control of a running Hub |
| `endpoints/routing` | raw paths, roles, whole bodies, the thread pool, refusals as responses |
| `endpoints/api`, `buckets`, `lfs`, `cas` | the Hub's API, by subject |
| `store` | repositories and content on disk, without starlette |
| `xet` | uploaded xorbs and shards; from a sha256 back to content |
| `buckets` | buckets on disk, and the feed of their changes |
| `pages/` | what a browser shows, with TensorBoard |
| `errors` | refusals, with the status and code of the real Hub |

The tests and the demo upload to it. It serves repositories with commit history, LFS, Xet with its own
content-addressed store, and storage buckets with the feed of their changes. Its answers carry the headers and error
codes that the client looks for.
"""

from hf_mpwriter.localhub.server import LocalHub
from hf_mpwriter.localhub.store import Store, View

__all__ = ["LocalHub", "Store", "View"]
