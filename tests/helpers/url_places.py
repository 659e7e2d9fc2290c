"""A filesystem of fsspec that is a directory of this disk, for URLs such as plain:///tmp/x/exp1.

install(directory)                  where PYTHONPATH must lead, so that processes know the protocol
<path>.hangs, <path>.refuses        while this file is there, what is asked of path and below hangs, or is refused
"""

from __future__ import annotations

from pathlib import Path

PROTOCOL = "plain"

_MODULE = """
import os, time
from fsspec.implementations.local import LocalFileSystem

def _see(path):
    for part in [path, *(str(above) for above in __import__("pathlib").Path(path).parents)]:
        while os.path.exists(part + ".hangs"):
            time.sleep(0.05)
        if os.path.exists(part + ".refuses"):
            raise PermissionError(13, "refused by the test", path)
    return path

class PlainFileSystem(LocalFileSystem):
    protocol = "plain"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("plain://") if isinstance(path, str) else path)

    def ls(self, path, detail=False, **options):
        return super().ls(_see(self._strip_protocol(path)), detail=detail, **options)

    def _open(self, path, mode="rb", **options):
        return super()._open(_see(path), mode, **options)
"""


def install(directory: Path) -> None:
    """Make a package of it, with the entry point that fsspec looks for."""
    package = directory / "plain_filesystem-1.0.dist-info"
    package.mkdir(parents=True)
    (directory / "plain_filesystem.py").write_text(_MODULE)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-filesystem\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[fsspec.specs]\n{PROTOCOL} = plain_filesystem:PlainFileSystem\n")


def url(path: Path) -> str:
    """The URL of a path."""
    return f"{PROTOCOL}://{path}"


def beside(path: Path, what: str) -> Path:
    """The file that makes a place hang, or refuse."""
    return path.with_name(f"{path.name}.{what}")
