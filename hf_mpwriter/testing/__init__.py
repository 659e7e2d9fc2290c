"""Tools for testing a set-up of your own; the demo, `hf-mpwriter verify` and the tests of this package use them too.

| module | responsibility |
|---|---|
| `journal` | the calls that are known to have returned |
| `losses` | takes what a lost disk has taken out of the journals |
| `oracle` | compares a run directory with the Hub |
| `processes` | finds the processes of a run |

Faults on the wire come from `hf_mpwriter.localhub`.
"""

from hf_mpwriter.testing import processes
from hf_mpwriter.testing.journal import Journal, read_journals
from hf_mpwriter.testing.oracle import FileReport, HubView, Report, check

__all__ = [
    "FileReport",
    "HubView",
    "Journal",
    "Report",
    "check",
    "processes",
    "read_journals",
]
