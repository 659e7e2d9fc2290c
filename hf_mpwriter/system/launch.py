"""The commands that start the processes of an upload, a mirror or a sampler, and how to find such a process again.

    worker    --posix_spawn-->  python -P ... -c UPLOADER_BOOT <run directory> <title>
    worker    --posix_spawn-->  python -P ... -c MIRROR_BOOT   <run directory> <title>
    worker    --posix_spawn-->  python -P ... -c SAMPLER_BOOT  <run directory> <title>
    uploader  --Popen------->   python -P ... -c PUSH_BOOT     <run directory> <its pid> <descriptors> <title>
    uploader  --posix_spawn-->  python -P ... -c SEARCH_BOOT   <run directory> <seconds>
    mirror    --Popen------->   python -P ... -c COPY_BOOT     <run directory> <seconds> <its pid> <descriptors>
    worker    --posix_spawn-->  the same, to know what is in the logdir

Inherited descriptors:

    uploader    3 uploader lock    4 start record    5 run directory    6 spool         1, 2 its log
    mirror      3 mirror lock      the others as those of an uploader, and so for a sampler
    push        job, run directory, spool, where more jobs come from: as arguments      1 pipe, 2 log of the uploader
    copy        job, run directory, and the copy lock, which it holds while it lives    1 pipe, 2 log of the mirror
    search      4 start record of the uploader                                          1, 2 log of the uploader

A record is a file without a name: a line of JSON for the start of Python, then what the process itself reads.

    {"python": "cpython-311", "path": ["/home/me/venv/lib/python3.11/site-packages", ...]}
    {...}

Invariants:
- The commands are imports in a string, which no linter sees. They are the only imports that point upwards, and they
  stand here alone, with the words by which a process is found again.
- The run directory is an argument only so that a process can be found again. The title is for people who read `ps`.
- Each child of the same Python gets the import path of its parent, because it starts in another directory.
- A child is run by a Python, see `starting/interpreter`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hf_mpwriter.system.process import import_path, standard_taken
from hf_mpwriter.system.starting.interpreter import interpreter

UPLOADER_LOCK_FD = MIRROR_LOCK_FD = SAMPLER_LOCK_FD = 3  # the descriptors of what a worker starts
START_RECORD_FD = 4
RUN_DIR_FD = 5
SPOOL_FD = 6

_SET_IMPORT_PATH = (
    "h=json.loads(os.pread(fd,os.fstat(fd).st_size,0).partition(b'\\n')[0]);"
    "sys.path[:]=h['path'] if h['python']==sys.implementation.cache_tag else sys.path;"
)
_DETACH = (
    f"import json,os,sys;fd={START_RECORD_FD};{_SET_IMPORT_PATH}"
    f"from hf_mpwriter.system import daemon;daemon.detach({SPOOL_FD});"  # before anything that takes time
)
UPLOADER_BOOT = f"{_DETACH}from hf_mpwriter.uploader import loop as uploader;uploader.main()"
MIRROR_BOOT = f"{_DETACH}from hf_mpwriter.mirror import loop as mirror;mirror.main()"
SAMPLER_BOOT = f"{_DETACH}from hf_mpwriter.sampler import loop as sampler;sampler.main()"
PUSH_BOOT = (
    "import gc,json,os,sys;gc.disable();"  # until `main` has imported the client
    f"parent,fd,*directories=map(int,sys.argv[2:-1]);{_SET_IMPORT_PATH}"
    "from hf_mpwriter.push import process as push;push.main(parent,fd,*directories);push.end()"
)
COPY_BOOT = (  # the timer comes first: a mount may hang anywhere
    "import signal,sys;signal.setitimer(signal.ITIMER_REAL,float(sys.argv[2]));import json,os;"
    f"parent,fd,*given=map(int,sys.argv[3:]);{_SET_IMPORT_PATH}"
    "from hf_mpwriter.mirror import copy;copy.main(parent,fd,*given)"
)
SEARCH_BOOT = (  # the timer comes first: a search may hang anywhere
    "import signal,sys;signal.setitimer(signal.ITIMER_REAL,float(sys.argv[2]));"
    f"import json,os;fd={START_RECORD_FD};{_SET_IMPORT_PATH}"
    "from hf_mpwriter.uploader import siblings;siblings.main()"
)
_UTF8 = int(sys.getfilesystemencoding().lower() == "utf-8")
_OPTIONS = ("-P", "-X", f"utf8={_UTF8}")  # paths mean the same bytes as here
_MARKS = {  # words that the boot string of each kind contains
    "uploader": "uploader.main",
    "push": "push.main",
    "search": "siblings.main",
    "mirror": "mirror.main",
    "sampler": "sampler.main",
    "copy": "copy.main",
}
KINDS = tuple(_MARKS)  # of processes


class Handed(NamedTuple):
    """What an uploader, a mirror or a sampler gets from the process that starts it."""

    record: bytes  # the start record
    run_dir: str  # absolute path
    lock: int  # descriptor that holds its lock, above 2
    run_dir_fd: int  # of the run directory
    spool_fd: int  # of the spool
    log_fd: int  # of the log file, open for appending
    env: Mapping[str, str]  # its environment


def start_uploader(handed: Handed) -> int:
    """Start an uploader that holds the uploader lock, see `_start_daemon`."""
    return _start_daemon("uploader", UPLOADER_BOOT, handed)


def start_mirror(handed: Handed) -> int:
    """Start a mirror that holds the mirror lock, see `_start_daemon`."""
    return _start_daemon("mirror", MIRROR_BOOT, handed)


def start_sampler(handed: Handed) -> int:
    """Start a sampler that holds the sampler lock, see `_start_daemon`."""
    return _start_daemon("sampler", SAMPLER_BOOT, handed)


def _start_daemon(kind: str, boot: str, handed: Handed) -> int:
    """Start a process that leaves this one. The descriptors stay open here.

    `subprocess` is not used: its error pipe can block when another thread forks at that moment.
    The pid of its first half, which ends at once.
    """
    program = interpreter(handed.env)
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(unnamed_file(_with_import_path(handed.record)))
        # above the numbers that they get, so that none is overwritten before it is duplicated
        wanted = (given, handed.run_dir_fd, handed.spool_fd, handed.log_fd)
        sources = [_duplicated(stack, fd, SPOOL_FD + 1) for fd in wanted]
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_DUP2, handed.lock, UPLOADER_LOCK_FD),
            (os.POSIX_SPAWN_DUP2, sources[0], START_RECORD_FD),
            (os.POSIX_SPAWN_DUP2, sources[1], RUN_DIR_FD),
            (os.POSIX_SPAWN_DUP2, sources[2], SPOOL_FD),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, sources[3], 1),
            (os.POSIX_SPAWN_DUP2, sources[3], 2),
        ]
        argv = [program, *_OPTIONS, "-c", boot, handed.run_dir, title(kind, handed.run_dir)]
        return _spawn(argv, handed.env, actions, setsid=True)


def start_search(record: bytes, run_dir: str, limit: float) -> int:
    """Start a search for unfinished runs, as a child of this process and in its session; its pid."""
    argv = [interpreter(os.environ), *_OPTIONS, "-c", SEARCH_BOOT, run_dir, str(limit)]
    with contextlib.ExitStack() as stack:
        given = _duplicated(stack, stack.enter_context(unnamed_file(_with_import_path(record))), START_RECORD_FD + 1)
        return _spawn(argv, os.environ, [(os.POSIX_SPAWN_DUP2, given, START_RECORD_FD)], setsid=False)


def start_copy(job: bytes, run_dir: str, limit: float, lock: int, fds: tuple[int, int]) -> tuple[int, int]:
    """Start a copy as a child of this process and in its session; `fds` are the run directory and the log.

    Its pid, and a descriptor from which its standard output is read.
    """
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(unnamed_file(_with_import_path(job)))
        with standard_taken():
            ends = os.pipe()
        stack.callback(os.close, ends[1])
        sources = [_duplicated(stack, fd, SPOOL_FD + 1) for fd in (lock, given, fds[0], ends[1], fds[1])]
        targets = (MIRROR_LOCK_FD, START_RECORD_FD, RUN_DIR_FD, 1, 2)
        actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, source, target) for source, target in zip(sources, targets, strict=True)]
        argv = copy_command(run_dir, limit, START_RECORD_FD, RUN_DIR_FD, MIRROR_LOCK_FD)
        try:
            return _spawn(argv, os.environ, actions, setsid=False), ends[0]
        except BaseException:
            os.close(ends[0])
            raise


def _spawn(argv: list[str], env: Mapping[str, str], actions: Sequence[tuple[object, ...]], *, setsid: bool) -> int:
    defaults = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=setsid, setsigmask=[], setsigdef=defaults)


def push_command(run_dir: str, job: int, run_dir_fd: int, spool_fd: int, *more: int) -> list[str]:
    """The command line of a push that this process starts; it has to inherit the descriptors under their numbers."""
    numbers = map(str, (os.getpid(), job, run_dir_fd, spool_fd, *more))
    return [interpreter(os.environ), *_OPTIONS, "-c", PUSH_BOOT, run_dir, *numbers, title("push", run_dir)]


def copy_command(run_dir: str, limit: float, job: int, run_dir_fd: int, lock: int) -> list[str]:
    """The command line of a copy that this process starts; it has to inherit the descriptors under their numbers."""
    numbers = map(str, (limit, os.getpid(), job, run_dir_fd, lock))
    return [interpreter(os.environ), *_OPTIONS, "-c", COPY_BOOT, run_dir, *numbers]


def push_record(job: bytes) -> contextlib.AbstractContextManager[int]:
    """A descriptor on which a push or a copy finds its job, closed at the end of the block."""
    return unnamed_file(_with_import_path(job))


def title(kind: str, run_dir: str) -> str:
    """How a process shows in `ps`: `hf-mpwriter uploader runs/exp1`."""
    return f"hf-mpwriter {kind} {'/'.join(run_dir.split('/')[-2:])}"


def is_command_of(kind: str, arguments: Sequence[str], run_dir: str | None) -> bool:
    """Whether a command line is that of a process of a kind, and of a run."""
    return (run_dir is None or run_dir in arguments) and any(_MARKS[kind] in argument for argument in arguments)


# records


def _with_import_path(data: bytes) -> bytes:
    """A record that begins with the line for the start of Python.

    A frozen program has its modules in itself; another Python cannot import them, and uses its own import path.
    """
    tag = "" if getattr(sys, "frozen", False) else sys.implementation.cache_tag
    return json.dumps({"python": tag, "path": import_path()}).encode() + b"\n" + data


def read_record(fd: int) -> bytes:
    """What a process reads of its record, once; closes the descriptor."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read().partition(b"\n")[2]


@contextlib.contextmanager
def unnamed_file(data: bytes) -> Iterator[int]:
    """A descriptor, above 2, of a file that has no name and holds this; in memory where the system can do that."""
    with contextlib.ExitStack() as stack:
        with standard_taken():
            try:
                fd = os.memfd_create("record")
                stack.callback(os.close, fd)
            except (AttributeError, OSError):
                fd = stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        yield _duplicated(stack, fd, 3)


def _duplicated(stack: contextlib.ExitStack, fd: int, least: int) -> int:
    """The descriptor if it is at least so high, else a duplicate, closed with the stack."""
    while fd < least:
        fd = os.dup(fd)
        stack.callback(os.close, fd)
    return fd
