"""The commands that start an uploader and a push, and how to find such a process again.

    worker    --posix_spawn-->  python -P -c UPLOADER_BOOT <run directory> <token issued at> <import path>
    uploader  --Popen------->   python -P -c PUSH_BOOT     <run directory> <pid of the uploader> <import path>

Invariants:
- Both commands are imports in a string, which no linter sees. They are the only imports that point upwards, and they
  stand here alone, with the words by which a process is found again.
- Each child gets the import path of its parent, because it starts in another directory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import import_path

UPLOADER_LOCK_FD = 3  # the descriptor on which the uploader finds its lock

UPLOADER_BOOT = (
    "import json,sys;sys.path[:]=json.loads(sys.argv[3]);"
    f"from hf_mpwriter.system import daemon;daemon.detach({UPLOADER_LOCK_FD});"  # before anything that takes time
    "from hf_mpwriter.uploader import loop as uploader;uploader.main(sys.argv[1],float(sys.argv[2]))"
)
PUSH_BOOT = (
    "import gc,json,sys;gc.disable();"  # until `main` has imported the client
    "sys.path[:]=json.loads(sys.argv[3]);"
    "from hf_mpwriter.push import process as push;push.main(int(sys.argv[2]));push.end()"
)
_MARKS = {"uploader": "uploader.main", "push": "push.main"}  # words that the boot string of each kind contains


def start_uploader(run_dir: str, lock: int, log: Place, env: Mapping[str, str], token_issued_at: float) -> int:
    """Start an uploader that holds `lock`.

    `subprocess` is not used: its error pipe can block when another thread forks at that moment.

    Args:
        run_dir: absolute path.
        lock: descriptor that holds the uploader lock.
        log: place of the log file; its directory exists.
        env: environment of the uploader.
        token_issued_at: unix time when the worker that brings the token joined.

    Returns:
        The pid of the first half of the uploader, which ends at once.

    Raises:
        OSError: no interpreter, no memory, no log.
    """
    log_fd = disk.open_anew(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log_fd, 1),
        (os.POSIX_SPAWN_DUP2, log_fd, 2),
        (os.POSIX_SPAWN_DUP2, lock, UPLOADER_LOCK_FD),
    ]
    argv = [sys.executable, "-P", "-c", UPLOADER_BOOT, run_dir, str(token_issued_at), json.dumps(import_path())]
    defaults = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    try:
        return os.posix_spawn(
            sys.executable, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults
        )
    finally:
        os.close(log_fd)


def push_command(run_dir: str) -> list[str]:
    """The command line of a push that this process starts; it reads its job from the standard input.

    Args:
        run_dir: absolute path.
    """
    return [sys.executable, "-P", "-c", PUSH_BOOT, run_dir, str(os.getpid()), json.dumps(import_path())]


def is_command_of(kind: str, arguments: Sequence[str], run_dir: str) -> bool:
    """Whether a command line is that of an uploader or a push of a run.

    Args:
        kind: `uploader` or `push`.
        arguments: of the process.
        run_dir: absolute path.
    """
    return run_dir in arguments and any(_MARKS[kind] in argument for argument in arguments)
