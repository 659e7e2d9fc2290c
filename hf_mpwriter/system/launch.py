"""The commands that start an uploader and a push, the Python that runs them, and how to find such a process again.

    worker    --posix_spawn-->  python -P ... -c UPLOADER_BOOT <run directory>
    uploader  --Popen------->   python -P ... -c PUSH_BOOT     <run directory> <pid of the uploader> <descriptors>
    uploader  --posix_spawn-->  python -P ... -c SEARCH_BOOT   <run directory> <seconds>

Inherited descriptors:

    uploader    3 uploader lock    4 start record    5 run directory    6 spool         1, 2 its log
    push        job, run directory, spool: their numbers are the last arguments         1 pipe, 2 log of the uploader
    search      4 start record of the uploader                                          1, 2 log of the uploader

A record is a file without a name: a line of JSON for the start of Python, then what the process itself reads.

    {"python": "cpython-311", "path": ["/home/me/venv/lib/python3.11/site-packages", ...]}
    {...}

Invariants:
- The commands are imports in a string, which no linter sees. They are the only imports that point upwards, and they
  stand here alone, with the words by which a process is found again.
- The run directory is an argument only so that a process can be found again; none is opened by it.
- Each child of the same Python gets the import path of its parent, because it starts in another directory.
- No program is started that was not seen to be a Python: `sys.executable` may be the program that embeds it, and would
  start training again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from hf_mpwriter.system.process import import_path, open_above, standard_taken

UPLOADER_LOCK_FD = 3  # the descriptors of an uploader
START_RECORD_FD = 4
RUN_DIR_FD = 5
SPOOL_FD = 6

_SET_IMPORT_PATH = (
    "h=json.loads(os.pread(fd,os.fstat(fd).st_size,0).partition(b'\\n')[0]);"
    "sys.path[:]=h['path'] if h['python']==sys.implementation.cache_tag else sys.path;"
)
UPLOADER_BOOT = (
    f"import json,os,sys;fd={START_RECORD_FD};{_SET_IMPORT_PATH}"
    f"from hf_mpwriter.system import daemon;daemon.detach({SPOOL_FD});"  # before anything that takes time
    "from hf_mpwriter.uploader import loop as uploader;uploader.main()"
)
PUSH_BOOT = (
    "import gc,json,os,sys;gc.disable();"  # until `main` has imported the client
    f"parent,fd,*directories=map(int,sys.argv[2:]);{_SET_IMPORT_PATH}"
    "from hf_mpwriter.push import process as push;push.main(parent,fd,*directories);push.end()"
)
SEARCH_BOOT = (  # the timer comes first: a search may hang anywhere
    "import signal,sys;signal.setitimer(signal.ITIMER_REAL,float(sys.argv[2]));"
    f"import json,os;fd={START_RECORD_FD};{_SET_IMPORT_PATH}"
    "from hf_mpwriter.uploader import siblings;siblings.main()"
)
_UTF8 = int(sys.getfilesystemencoding().lower() == "utf-8")
_OPTIONS = ("-P", "-X", f"utf8={_UTF8}")  # paths mean the same bytes as here
# words that the boot string of each kind contains
_MARKS = {"uploader": "uploader.main", "push": "push.main", "search": "siblings.main"}

PYTHON_VARIABLE = "HF_MPWRITER_PYTHON"
_PYTHON_NAME = re.compile(
    r"\.?(python|pypy|graalpy)[dmtuw]*[\d.]*[dmtuw]*(-dbg|-intel64|-wrapped)?(\.bin)?", re.IGNORECASE
)
_BINARIES = (
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\xca\xfe\xba\xbf",
)  # ELF, Mach-O


def start_uploader(
    record: bytes, run_dir: str, *, lock: int, run_dir_fd: int, spool_fd: int, log_fd: int, env: Mapping[str, str]
) -> int:
    """Start an uploader that holds `lock`. The descriptors stay open here.

    `subprocess` is not used: its error pipe can block when another thread forks at that moment.

    Args:
        record: the start record.
        run_dir: absolute path.
        lock: descriptor that holds the uploader lock, above 2.
        run_dir_fd: of the run directory.
        spool_fd: of the spool.
        log_fd: of the log file, open for appending.
        env: environment of the uploader.

    Returns:
        The pid of the first half of the uploader, which ends at once.

    Raises:
        OSError: no interpreter, no memory.
    """
    program = interpreter(env)
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(unnamed_file(_with_import_path(record)))
        # above the numbers that they get, so that none is overwritten before it is duplicated
        sources = [_duplicated(stack, fd, SPOOL_FD + 1) for fd in (given, run_dir_fd, spool_fd, log_fd)]
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_DUP2, lock, UPLOADER_LOCK_FD),
            (os.POSIX_SPAWN_DUP2, sources[0], START_RECORD_FD),
            (os.POSIX_SPAWN_DUP2, sources[1], RUN_DIR_FD),
            (os.POSIX_SPAWN_DUP2, sources[2], SPOOL_FD),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, sources[3], 1),
            (os.POSIX_SPAWN_DUP2, sources[3], 2),
        ]
        return _spawn([program, *_OPTIONS, "-c", UPLOADER_BOOT, run_dir], env, actions, setsid=True)


def start_search(record: bytes, run_dir: str, limit: float) -> int:
    """Start a search for unfinished runs, as a child of this process and in its session.

    Args:
        record: the start record of the uploader.
        run_dir: absolute path.
        limit: seconds after which it ends by SIGALRM.

    Returns:
        Its pid.

    Raises:
        OSError: no interpreter, no memory.
    """
    argv = [interpreter(os.environ), *_OPTIONS, "-c", SEARCH_BOOT, run_dir, str(limit)]
    with contextlib.ExitStack() as stack:
        given = _duplicated(stack, stack.enter_context(unnamed_file(_with_import_path(record))), START_RECORD_FD + 1)
        return _spawn(argv, os.environ, [(os.POSIX_SPAWN_DUP2, given, START_RECORD_FD)], setsid=False)


def _spawn(argv: list[str], env: Mapping[str, str], actions: Sequence[tuple[object, ...]], *, setsid: bool) -> int:
    defaults = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=setsid, setsigmask=[], setsigdef=defaults)


def push_command(run_dir: str, job: int, run_dir_fd: int, spool_fd: int) -> list[str]:
    """The command line of a push that this process starts; it has to inherit the descriptors under their numbers.

    Args:
        run_dir: absolute path.
        job: descriptor of the job, see `push_record`.
        run_dir_fd: of the run directory.
        spool_fd: of the spool.

    Raises:
        OSError: no interpreter.
    """
    numbers = map(str, (os.getpid(), job, run_dir_fd, spool_fd))
    return [interpreter(os.environ), *_OPTIONS, "-c", PUSH_BOOT, run_dir, *numbers]


def push_record(job: bytes) -> contextlib.AbstractContextManager[int]:
    """A descriptor on which a push finds its job, closed at the end of the block."""
    return unnamed_file(_with_import_path(job))


def is_command_of(kind: str, arguments: Sequence[str], run_dir: str | None) -> bool:
    """Whether a command line is that of an uploader, a push or a search of a run.

    Args:
        kind: `uploader`, `push` or `search`.
        arguments: of the process.
        run_dir: absolute path, None for any run.
    """
    return (run_dir is None or run_dir in arguments) and any(_MARKS[kind] in argument for argument in arguments)


# records


def _with_import_path(data: bytes) -> bytes:
    """A record that begins with the line for the start of Python.

    A frozen program has its modules in itself; another Python cannot import them, and uses its own import path.
    """
    tag = "" if getattr(sys, "frozen", False) else sys.implementation.cache_tag
    return json.dumps({"python": tag, "path": import_path()}).encode() + b"\n" + data


def read_record(fd: int) -> bytes:
    """What a process reads of its record, once; closes the descriptor.

    Raises:
        OSError: it cannot be read.
    """
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read().partition(b"\n")[2]


@contextlib.contextmanager
def unnamed_file(data: bytes) -> Iterator[int]:
    """A descriptor, above 2, of a file that has no name and holds this; in memory where the system can do that.

    Raises:
        OSError: there is no memory, and no disk.
    """
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


# the interpreter


def interpreter(env: Mapping[str, str]) -> str:
    """A Python for a child of this process; none is started to find out.

    The one that HF_MPWRITER_PYTHON names is the user's choice and only has to be a program. Any other has to be a
    binary that is called python: the very file that this process runs, or one with the standard library beside it. A
    script with that name is none: it may be the launcher of the user's program.

    Args:
        env: of the child.

    Returns:
        Absolute path.

    Raises:
        OSError: there is none.
    """
    if named := env.get(PYTHON_VARIABLE):
        found = _program(named, env.get("PATH", os.defpath))
        if found is None:
            raise OSError(
                errno.ENOENT, f"{PYTHON_VARIABLE} is {named!r}, which is no program. Give the absolute path of a Python"
            )
        return found
    if (found := next(filter(_is_python, _candidates()), None)) is not None:
        return found
    trouble = f"sys.executable is {sys.executable!r}, which is no Python that this process may start. To upload, "
    raise OSError(errno.ENOENT, f"{trouble}set {PYTHON_VARIABLE} to the path of a Python that has hf_mpwriter")


def _program(name: str, path: str) -> str | None:
    """Absolute path of a program; without a slash it is searched on `path`."""
    places = [""] if "/" in name else filter(os.path.isabs, path.split(os.pathsep))
    found = (os.path.join(place, name) for place in places)
    return next((one for one in found if os.path.isabs(one) and _may_be_started(one)), None)


def _may_be_started(path: str) -> bool:
    """Whether this is a program; `os.access` would not know all rights that this process has."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _candidates() -> Iterator[str]:
    """What may be the Python of this process, the likeliest first; none in a frozen program."""
    if getattr(sys, "frozen", False):
        return
    known = [sys.executable, getattr(sys, "_base_executable", None)]
    with contextlib.suppress(OSError):
        known.append(os.readlink("/proc/self/exe"))
    names = (f"python{sys.version_info.major}.{sys.version_info.minor}", f"python{sys.version_info.major}", "python")
    prefixes = (sys.exec_prefix, sys.base_exec_prefix)
    known += [os.path.join(prefix, "bin", name) for prefix in prefixes for name in names]
    yield from (path for path in known if isinstance(path, str) and os.path.isabs(path))


def _is_python(path: str) -> bool:
    """Whether a file is a Python, see `interpreter`."""
    real = os.path.realpath(path)
    try:
        if not _may_be_started(real):
            return False
        if not _PYTHON_NAME.fullmatch(os.path.basename(real)) or not _is_binary(real):
            return False
        return _is_running(real) or _has_library(real)
    except OSError:
        return False


def _is_binary(path: str) -> bool:
    """Whether a file is a binary; one that may be executed but not read counts as one."""
    try:
        with open(path, "rb", opener=open_above) as file:
            return file.read(4) in _BINARIES
    except PermissionError:
        return True


def _is_running(path: str) -> bool:
    """Whether this process runs that file."""
    try:
        return os.path.samefile(path, "/proc/self/exe")
    except OSError:
        return False


def _has_library(path: str) -> bool:
    """Whether the standard library of this version is where a Python looks for it."""
    prefix = os.path.dirname(os.path.dirname(path))
    return any(
        os.path.isfile(
            os.path.join(prefix, directory, f"python{sys.version_info.major}.{sys.version_info.minor}", "os.py")
        )
        for directory in ("lib", "lib64", sys.platlibdir)
    )
