"""Forks of an interpreter that has imported numpy and tensorboardX: a third of a second of processor less a program.

    test process ── starts ──> zygote: imports, then takes orders, each with three descriptors
         │                       └─ clones itself, with CLONE_PARENT
         └─ is the parent of ──> program: environment, path and `sitecustomize` of its own, then its source

`Forked` is a `subprocess.Popen` whose child is such a clone. The program itself imports the package under test. Its
command line is the zygote's, and what the zygote has imported is there: a test that looks at either starts an
interpreter of its own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

PRELOADED = ("numpy", "tensorboardX", "tensorboardX.proto.api_pb2", "google.protobuf.json_format", "filelock")
BEFORE_ANY_CODE = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_")  # variables that are read while an interpreter starts
ORDER = 1 << 20  # bytes, at most
CLONE = 56  # the system call, on x86-64
CLONE_PARENT, CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, SIGCHLD = 0x8000, 0x200000, 0x1000000, 17
PR_GET_TID_ADDRESS = 40


def environment_at_start(env: Mapping[str, str]) -> dict[str, str]:
    """Return what a clone cannot change any more."""
    return {name: env[name] for name in env if name.startswith(BEFORE_ANY_CODE) and name != "PYTHONPATH"}


class Forked(subprocess.Popen):
    """`python -c SOURCE ARGUMENT ...`, without the start of an interpreter."""

    def _execute_child(self, args: Sequence[object], *rest: Any) -> None:
        """Stand for fork and exec."""
        env, pipes = rest[5], rest[9:15]
        streams = [own if given == -1 else given for own, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.pid = of_process(os.getpid()).start([str(word) for word in args[1:]], dict(env), streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether a clone is what an interpreter of its own would be."""
    return os.uname().machine == "x86_64" and environment_at_start(env) == of_process(os.getpid()).environment


@functools.cache
def of_process(_: int) -> Zygote:
    """Return the zygote of a process."""
    return Zygote()


class Zygote:
    """The end of the test process."""

    def __init__(self) -> None:
        self.environment = environment_at_start(os.environ)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"} | self.environment
        with theirs, open(os.devnull, "r+") as nothing:
            command = [sys.executable, __file__, str(theirs.fileno())]
            subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=nothing, stdout=nothing)

    def start(self, arguments: list[str], env: dict[str, str], streams: list[int]) -> int:
        """Start a program; its pid."""
        os.umask(mask := os.umask(0o077))
        order = {"arguments": arguments, "env": env, "cwd": os.getcwd(), "umask": mask}
        socket.send_fds(self._orders, [json.dumps(order).encode(errors="surrogateescape")], streams)
        return int(self._orders.recv(ORDER))


def _clone() -> int:
    """Fork; the child's parent is that of this process. glibc keeps the id of a thread, so the kernel has to set it."""
    libc, tid_address = ctypes.PyDLL(None, use_errno=True), ctypes.c_void_p()
    if libc.prctl(PR_GET_TID_ADDRESS, ctypes.byref(tid_address)):
        raise OSError(ctypes.get_errno(), "prctl")
    flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = libc.syscall(CLONE, *map(ctypes.c_long, (flags, 0, 0, tid_address.value, 0)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def _next_program(orders: socket.socket) -> dict[str, Any]:
    """Take orders until the test process ends; in each child, return its order."""
    while True:
        text, streams, _, _ = socket.recv_fds(orders, ORDER, 3)
        if not text:
            sys.exit()
        if (pid := _clone()) == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, max(*streams, orders.detach()) + 1)
            return json.loads(text)
        orders.send(str(pid).encode())
        for stream in streams:
            os.close(stream)


def _become(order: dict[str, Any], path: list[str]) -> str:
    """Be as an interpreter that was started for a program; its source."""
    os.chdir(order["cwd"])
    os.umask(order["umask"])
    os.environ.clear()
    os.environ.update(order["env"])
    _, source, *arguments = order["arguments"]
    sys.argv, sys.orig_argv = ["-c", *arguments], [sys.executable, *order["arguments"]]
    sys.path[:] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    importlib.invalidate_caches()
    if importlib.util.find_spec("sitecustomize"):
        importlib.import_module("sitecustomize")
    sys.modules["__main__"] = ModuleType("__main__")
    return source


def _run(source: str) -> None:
    """Run a program; what it raises is told as the interpreter tells it."""
    try:
        exec(compile(source, "<string>", "exec"), vars(sys.modules["__main__"]))  # noqa: S102 - it stands for `python -c`
    except Exception as error:  # noqa: BLE001 - as an interpreter does
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


if __name__ == "__main__":
    PATH = sys.path[1:]
    sys.modules["torch"] = None  # type: ignore[assignment] - tensorboardX would import it, for two seconds
    for module in PRELOADED:
        importlib.import_module(module)
    del sys.modules["torch"]
    _run(_become(_next_program(socket.socket(fileno=int(sys.argv[1]))), PATH))
