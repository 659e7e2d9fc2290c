"""Folders in which a stranger has put modules: whatever they are called, no process of ours may run one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shared_spools import STRANGER

OTHERS = (
    *("click", "crc32c", "filelock", "google", "hf_xet", "huggingface_hub", "httpx", "jinja2", "markdown_it", "numpy"),
    *("packaging", "psutil", "sitecustomize", "sklearn", "starlette", "tensorboard", "tensorboardX", "tqdm", "torch"),
    *("usercustomize", "uvicorn", "werkzeug", "yaml"),
)
MODULE = """# run while Python starts, too: there is no `open` yet
import posix
posix.close(posix.open(f"{}/{}.{{posix.getpid()}}", posix.O_CREAT | posix.O_WRONLY))
"""


class Trap:
    """A folder into which everybody may write, with modules, by default one for each name; and so `x` in it.

    Each notes beside the folder that it was run, and by which process. Where root runs the tests, they are another
    user's.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self._told = folder, folder.parent / "told"
        self._told.mkdir(exist_ok=True)
        self._told.chmod(0o777)
        for place in (self.folder, self.folder / "x"):
            place.mkdir()
            place.chmod(0o1777)
            for name in names or (*sys.stdlib_module_names, *OTHERS):
                path = place / f"{name}.py"
                path.write_text(MODULE.format(self._told, name))
                if not os.geteuid():
                    os.chown(path, STRANGER, STRANGER)

    def ran(self) -> list[str]:
        """Which of them were run, each with the process id."""
        return sorted(os.listdir(self._told))
