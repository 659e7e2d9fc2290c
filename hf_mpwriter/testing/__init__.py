"""Tools for testing a set-up of your own; the demo, `hf-mpwriter verify` and the tests of this package use them too.

| module | responsibility |
|---|---|
| `journal` | the calls that are known to have returned |
| `oracle` | compares a run directory with the Hub |
| `steps` | finds steps of `log` that are not one record |
| `processes` | finds the processes of a run |
| `power_cut` | a disk whose power can be cut |

Faults on the wire come from `hf_mpwriter.localhub`.
"""

from hf_mpwriter.testing import processes
from hf_mpwriter.testing.journal import Journal, read_journals
from hf_mpwriter.testing.oracle import FileReport, HubView, Report, check
from hf_mpwriter.testing.power_cut import LoopDisk, forget_lost

__all__ = [
    "FileReport",
    "HubView",
    "Journal",
    "LoopDisk",
    "Report",
    "check",
    "forget_lost",
    "processes",
    "read_journals",
]
