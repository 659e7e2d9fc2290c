"""The demo: four processes train against a local Hub, are killed half-way, resume, and lose nothing.

| module | responsibility |
|---|---|
| `story` | what happens, in order, and what counts as a failure |
| `stage` | the processes: the Hub, the four ranks, the uploader; all of them end with it |
| `display` | bars on a terminal, lines elsewhere |
| `training` | one rank: a small network on scikit-learn's handwritten digits, and what it logs |
| `verdict` | the result: the oracle, a table, and commands to look at the run |
| `place` | every path of the demo's folder |

`hf-mpwriter demo` calls `run`. The name resolves on first use: a rank does not load the server of the local Hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_mpwriter.demo.story import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Resolve `run` on first use; only then a missing package is an ImportError."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hf_mpwriter.demo import story

    return story.run
