"""What tests of a set-up need, shipped so that users can test theirs.

| module | responsibility |
|---|---|
| `journal.py` | what processes know to have returned |
| `oracle.py` | one function that judges a run directory against the Hub |
| `processes.py` | the processes of a run: whom to kill, to stop, to wait for |
| `powercut.py` | a disk whose power can be cut |

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
