"""Every path of the demo's folder, and the environment of its processes.

    DIRECTORY/
      runs/digits/              run directory
      hub/                      data of the local Hub
      from_hub/                 what the real client downloads from it at the end
      journals/                 which calls returned, noted by each rank
      checkpoints/rank_2.npz    weights and step of a rank
      logs/rank_2.log           output of a rank, all its lives in one file
      hf_home/, cache/          HF_HOME and XDG_CACHE_HOME of all processes

The user's caches and tokens are neither read nor written.
"""

from __future__ import annotations

import os

REPO = "demo/digits"
RANKS = 4

# The matrices are small: threads of numpy in four processes would only compete for the cores.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Folder:
    """The demo's folder."""

    def __init__(self, root: str) -> None:
        self.root = root  # absolute path
        self.run_dir = os.path.join(root, "runs", "digits")
        self.hub = os.path.join(root, "hub")
        self.from_hub = os.path.join(root, "from_hub")
        self.journals = os.path.join(root, "journals")

    def checkpoint(self, rank: int) -> str:
        """The checkpoint of a rank."""
        return os.path.join(self.root, "checkpoints", f"rank_{rank}.npz")

    def log(self, rank: int) -> str:
        """The output of a rank."""
        return os.path.join(self.root, "logs", f"rank_{rank}.log")

    def make(self) -> None:
        """Make the folder, and in it what the other processes expect."""
        os.makedirs(self.root, exist_ok=True)
        if os.listdir(self.root):
            raise FileExistsError(f"{self.root} is not empty; give another directory.")
        for path in (self.journals, os.path.dirname(self.checkpoint(0)), os.path.dirname(self.log(0))):
            os.makedirs(path)

    def environment(self, endpoint: str) -> dict[str, str]:
        """The user's environment without what concerns the real Hub."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": os.path.join(self.root, "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"XDG_CACHE_HOME": os.path.join(self.root, "cache"), "HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
        return env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | dict.fromkeys(_ONE_THREAD, "1")
