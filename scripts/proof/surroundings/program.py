"""Two programs of one example: `begin` makes the surroundings and becomes `train`, a training that logs and ends.

    program.py begin <description as JSON>   -->   program.py train <description as JSON> [long argument]

The end of `train`: 0 all is well, 3 a standard descriptor leads into the run directory, 4 the constructor refused,
5 records were dropped.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

CALLS = 400


def begin(told: dict[str, Any]) -> None:
    """Make the surroundings, then become the training."""
    sys.path[:0] = told["scripts"]
    for name, value in told["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(told["cwd"])
    command = [sys.executable, os.path.abspath(__file__), "train", json.dumps(told), "x" * told["argument"]]
    if told["sync"]:
        command = [sys.executable, "-m", "hf_mpwriter", "sync", told["sync"], "--timeout", "60"]
    if told["user"]:
        from hostile.users import become

        become(told["user"], reading=True)
    if told["deleted_cwd"]:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    os.umask(told["umask"])
    for fd in told["closed"]:
        os.close(fd)
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def train(told: dict[str, Any]) -> int:
    """Log, and end as programs do."""
    sys.path += [f"/nowhere/{n:090d}" for n in range(told["import_path"] // 100)]
    from hf_mpwriter import HFSummaryWriter
    from hf_mpwriter.base.errors import HfMpWriterError

    for name, most in told["limits"].items():
        which = getattr(resource, name)
        resource.setrlimit(which, (most, resource.getrlimit(which)[1]))
    # Surrogates stand for the bytes of a name that is no UTF-8.
    run_dir = os.fsdecode(bytes.fromhex(told["run_dir"]))
    try:
        writer = HFSummaryWriter("me/run", logdir=run_dir, commit_every=0.01, exit_timeout=told["exit_timeout"])
    except HfMpWriterError as error:
        if 2 not in told["closed"]:
            os.write(2, f"refused: {error}\n".encode("utf-8", "replace"))
        return 4
    code = _log(writer, run_dir, told)
    if not code and 1 not in told["closed"]:
        print("trained", flush=True)
    return code


def _log(writer: Any, run_dir: str, told: dict[str, Any]) -> int:
    """Log and close; return the exit code."""
    from hf_mpwriter.testing import Journal

    if told["moves"]:
        os.chdir("/")
    journal = Journal(told["journals"]) if "RLIMIT_FSIZE" not in told["limits"] else None
    with writer:
        for step in range(CALLS):
            writer.add_scalar("loss", 1.0, step)
            if journal:
                journal.note(writer, "loss", step)
            if step % 100 == 0:
                writer.add_text("text", "some words", step)
        if any(_leads_to(fd, run_dir) for fd in (0, 1, 2)):
            return 3
        if writer.dropped:
            return 5
    return 0


def _leads_to(fd: int, run_dir: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(run_dir)
    except OSError:
        return False


if __name__ == "__main__":
    description = json.loads(sys.argv[2])
    sys.exit(train(description) if sys.argv[1] == "train" else begin(description))
