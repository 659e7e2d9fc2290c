"""The demo: training in four processes against a local Hub, killed half-way, resumed, and counted at the end.

| module | responsibility |
|---|---|
| `story.py` | what happens, in order; the only one that decides what is a failure |
| `stage.py` | processes: the Hub, the four ranks, the uploader; whatever was started ends |
| `display.py` | bars on a terminal, now and then a line elsewhere |
| `training.py` | one rank: a small network on scikit-learn's handwritten digits, and what it logs |
| `verdict.py` | the oracle, the table, and how to look at the result; knows nothing but the folder |
| `place.py` | every path of the demo's folder |

Names resolve on first use: a rank does not load the server of the local Hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_mpwriter.demo.story import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Resolve `run` on first use; a missing package is an ImportError at that moment."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hf_mpwriter.demo import story

    return story.run
