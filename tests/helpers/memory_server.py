"""fsspec's MemoryFileSystem in a process of its own, which others reach by URLs such as inmemory://runs/exp1.

    with MemoryServer(directory) as memory:
        memory.variables            of the environment of processes that are to find it
        memory.contents("runs")     path -> content of all files below a path

`memory://` itself is the memory of one process, and ends with it. A killed test takes the server with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, Self

PROTOCOL = "inmemory"
PORT, KEY = "INMEMORY_PORT", b"on loopback"  # what comes to the port is of this test

_SERVER = f"""
import ctypes, signal, threading
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
from multiprocessing.connection import Listener
from fsspec.implementations.memory import MemoryFileSystem

memory, turn = MemoryFileSystem(), threading.Lock()

def answer(connection):
    with connection:
        try:
            method, arguments, options = connection.recv()
            with turn:
                found = True, getattr(memory, method)(*arguments, **options)
        except EOFError:
            return
        except Exception as error:
            found = False, error
        connection.send(found)

listener = Listener(("127.0.0.1", 0), authkey={KEY!r}, backlog=100)
print(listener.address[1], flush=True)
while True:
    try:
        connection = listener.accept()
    except Exception:  # whoever asked has ended
        continue
    threading.Thread(target=answer, args=(connection,), daemon=True).start()
"""

_MODULE = f"""
import io, os
from multiprocessing.connection import Client
from fsspec import AbstractFileSystem

def ask(method, *arguments, **options):
    with Client(("127.0.0.1", int(os.environ[{PORT!r}])), authkey={KEY!r}) as connection:
        connection.send((method, arguments, options))
        is_answer, found = connection.recv()
    if is_answer:
        return found
    raise found

class Written(io.BytesIO):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            ask("pipe_file", self._path, self.getvalue())
        super().close()

class InMemoryFileSystem(AbstractFileSystem):
    protocol = {PROTOCOL!r}
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("{PROTOCOL}://").strip("/")

    def ls(self, path, detail=True, **options):
        return ask("ls", self._strip_protocol(path), detail=detail)

    def info(self, path, **options):
        return ask("info", self._strip_protocol(path))

    def makedirs(self, path, exist_ok=False):
        ask("makedirs", self._strip_protocol(path), exist_ok=exist_ok)

    def rm_file(self, path):
        ask("rm_file", self._strip_protocol(path))

    def cat_file(self, path, start=None, end=None, **options):
        return ask("cat_file", self._strip_protocol(path), start=start, end=end)

    def pipe_file(self, path, value, **options):
        ask("pipe_file", self._strip_protocol(path), value)

    def _open(self, path, mode="rb", **options):
        return io.BytesIO(self.cat_file(path)) if "r" in mode else Written(self._strip_protocol(path))
"""


class MemoryServer:
    """A context manager: the server, from its start to its end."""

    def __init__(self, directory: Path) -> None:
        self.path = directory  # for PYTHONPATH

    def __enter__(self) -> Self:
        """Start it."""
        package = self.path / "in_memory_filesystem-1.0.dist-info"
        package.mkdir(parents=True)
        (self.path / "in_memory_filesystem.py").write_text(_MODULE)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: in-memory-filesystem\nVersion: 1.0\n")
        known = f"[fsspec.specs]\n{PROTOCOL} = in_memory_filesystem:InMemoryFileSystem\n"
        (package / "entry_points.txt").write_text(known)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    @property
    def variables(self) -> dict[str, str]:
        """What leads a process there; its PYTHONPATH has to hold `path` too."""
        return {PORT: str(self._port)}

    def contents(self, below: str) -> dict[str, bytes]:
        """The files below a path: content by their paths relative to it."""
        top = f"/{below.strip('/')}/"
        return {path.removeprefix(top): self._ask("cat_file", path) for path in self._ask("find", top)}

    def _ask(self, method: str, *arguments: object) -> Any:
        with Client(("127.0.0.1", self._port), authkey=KEY) as connection:
            connection.send((method, arguments, {}))
            is_answer, found = connection.recv()
        if is_answer:
            return found
        raise found
