"""Every path of the demo's folder, and the environment of its processes.

DIRECTORY/
  runs/digits/              the run directory
  hub/                      data of the local Hub
  from_hub/                 what the real client downloads from it at the end
  journals/                 what each process knows to have logged, written by itself
  checkpoints/rank_2.npz    weights and step of a rank
  logs/rank_2.log           what a rank prints
  hf_home/                  HF_HOME of everything here: no cache and no token of the user's is touched
"""

from __future__ import annotations

import os
from dataclasses import dataclass

REPO = "demo/digits"
RANKS = 4

# Small matrices: with four processes on two cores, threads of numpy's would only fight each other.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Place:
    """The demo's folder, given by its absolute path."""

    root: str

    @property
    def run_dir(self) -> str:
        """The logdir of all ranks."""
        return os.path.join(self.root, "runs", "digits")

    @property
    def hub(self) -> str:
        """Data of the local Hub."""
        return os.path.join(self.root, "hub")

    @property
    def from_hub(self) -> str:
        """What is downloaded at the end."""
        return os.path.join(self.root, "from_hub")

    @property
    def journals(self) -> str:
        """Side channel of the ranks to the oracle."""
        return os.path.join(self.root, "journals")

    def checkpoint(self, rank: int) -> str:
        """Where a rank leaves off."""
        return os.path.join(self.root, "checkpoints", f"rank_{rank}.npz")

    def log(self, rank: int) -> str:
        """What a rank prints, all its lives in one file."""
        return os.path.join(self.root, "logs", f"rank_{rank}.log")

    def make(self) -> None:
        """Make the folder and those below it that nobody else makes.

        Raises:
            FileExistsError: there is something in it already.
        """
        os.makedirs(self.root, exist_ok=True)
        if os.listdir(self.root):
            raise FileExistsError(f"{self.root} is not empty; give another directory.")
        for path in (self.journals, self.checkpoint(0), self.log(0)):
            os.makedirs(path if path == self.journals else os.path.dirname(path))

    def environment(self, endpoint: str) -> dict[str, str]:
        """The user's environment without anything that concerns the real Hub."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": os.path.join(self.root, "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"XDG_CACHE_HOME": os.path.join(self.root, "cache"), "HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
        return env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | dict.fromkeys(_ONE_THREAD, "1")
