"""The one start of a Python: what starts the processes of a run, talks with its children, and finds them again.

    worker    --start-->  uploader, mirror, sampler     daemons: sessions of their own, see `daemon/`
    worker    --Child-->  copy, to know what is in the logdir
    uploader  --Child-->  push                          uploader  --start-->  search
    mirror    --Child-->  copy                          supervisor --start--> ranks
    demo      --Child-->  rank, verdict

    python -P -X utf8=1 -c BOOT <run directory> <seconds> <pid that started it> <title>

Each finds what it needs at the same descriptors, as far as its kind needs it:

    0 nothing    1 pipe or log    2 log    3 its lock    4 its record    5 run directory    6 spool    7 further records

A record is a file without a name: a line of JSON for the start of Python, then what the process itself reads.

    {"python": "cpython-311", "path": ["/home/me/venv/lib/python3.11/site-packages", ...]}
    {...}

Invariants:
- The boot strings are imports in a string, which no linter sees. They are the only imports that point upwards, and they
  stand here alone; by the same words a process is found again.
- The run directory is an argument only so that a process can be found again. The title is for people who read `ps`;
  an uploader serves several runs, so it and its pushes name the repository.
- Each process of the same Python gets the import path of the one that starts it, because it starts elsewhere. The
  current folder is never on it, nor in PYTHONPATH: in a shared one others may put modules. The place of this package
  is the last one, for the same reason, and the only one in which the package is searched: it may be there twice.
- No program is started that was not seen to be a Python: `sys.executable` may be the program that embeds it, and would
  start training again.
- No process waits for a child: its record is a whole file, and its pipe is not blocking.
- The timer of a process is set before anything that may hang: a mount may hang anywhere. A child whose own timer does
  not end it, such as a stopped one, is killed GRACE seconds later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import select
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import (
    fill_standard,
    import_path,
    places_of_the_current_folder,
    processes,
    read_all,
    read_path,
    take_standard,
)

LOCK_FD, RECORD_FD, RUN_DIR_FD, SPOOL_FD, MORE_FD = 3, 4, 5, 6, 7
READ_SIZE = 1 << 16  # bytes
OWN_NAME = "hfmpw"  # what our processes are called in /proc; the command is hf-mpwriter
END_POLL = 0.01  # seconds
GRACE = 5.0  # seconds after its time until a child is killed, and until one that was killed counts as stuck

PYTHON_VARIABLE = "HF_MPWRITER_PYTHON"
_PYTHON_NAME = re.compile(
    r"\.?(python|pypy|graalpy)[dmtuw]*[\d.]*[dmtuw]*(-dbg|-intel64|-wrapped)?(\.bin)?", re.IGNORECASE
)

DAEMONS = {
    "uploader": "hf_mpwriter.uploader.usher",
    "mirror": "hf_mpwriter.mirror.loop",
    "sampler": "hf_mpwriter.sampler",
}
KINDS = DAEMONS | {  # the module of each kind of process; its `main` is the process
    "push": "hf_mpwriter.push.process",
    "search": "hf_mpwriter.uploader.siblings",
    "copy": "hf_mpwriter.mirror.copy",
    "ranks": "hf_mpwriter.cli.ranks",
    "rank": "hf_mpwriter.demo.training",
    "elsewhere": "hf_mpwriter.cli.elsewhere",
    "verdict": "hf_mpwriter.demo.verdict",
    "board": "hf_mpwriter.cli.follow",
}
UNSIGNALLED = (*DAEMONS, "ranks", "rank")  # they get a session of their own, which no terminal signals
_BEGIN = (
    "import signal,sys;signal.setitimer(signal.ITIMER_REAL,float(sys.argv[2]));import json,os;"
    f"h=json.loads(os.pread({RECORD_FD},os.fstat({RECORD_FD}).st_size,0).partition(b'\\n')[0]);"
    "same=h['python']==sys.implementation.cache_tag;sys.path[:]=h['path'] if same else sys.path;"
    "from importlib import machinery,util;s=same and machinery.PathFinder.find_spec('hf_mpwriter',h['path'][-1:]);"
    "sys.modules.update({s.name:util.module_from_spec(s)} if s else {});"
    "s and s.loader.exec_module(sys.modules[s.name]);"
)
_NAME = f"from hf_mpwriter.system import process;process.take_name({OWN_NAME!r});"
_DETACH = f"from hf_mpwriter.daemon import background;background.detach({SPOOL_FD});"  # before anything that takes time
BOOTS = {
    kind: f"{_BEGIN}{_NAME}{_DETACH if kind in DAEMONS else ''}from {module} import main;main()"
    for kind, module in KINDS.items()
}
_UTF8 = int(sys.getfilesystemencoding().lower() == "utf-8")
_OPTIONS = ("-P", "-X", f"utf8={_UTF8}")  # paths mean the same bytes as here


def start(
    kind: str,
    record: bytes,
    run_dir: str,
    descriptors: Mapping[int, int],
    *,
    lock: int = -1,
    limit: float = 0.0,
    env: Mapping[str, str] = os.environ,
    subject: str = "",
) -> int:
    """Start a process that finds these descriptors at these numbers; all stay open here. Its pid.

    A daemon leaves this process: the pid is that of its first half, which ends at once. `subprocess` is not used: its
    error pipe can block when another thread forks at that moment. After `limit` seconds, if any, it ends by SIGALRM.
    `subject` is what its title names instead of the run.
    """
    program = interpreter(env)
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(unnamed_file(_with_import_path(record)))
        # above the numbers that they get, so that none is overwritten before it is duplicated; a duplicate of a lock
        # would be one holder more
        wanted = {**descriptors, RECORD_FD: given}
        sources = {number: _above_given(stack, fd) for number, fd in wanted.items()}
        actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_DUP2, lock, LOCK_FD)] if lock >= 0 else []
        actions += [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, source, number) for number, source in sources.items()]
        argv = [
            program,
            *_OPTIONS,
            "-c",
            BOOTS[kind],
            run_dir,
            str(limit),
            str(os.getpid()),
            title(kind, subject or run_dir),
        ]
        defaults = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
        return os.posix_spawn(
            program,
            argv,
            _without_current_folder(env),
            file_actions=actions,
            setsid=kind in UNSIGNALLED,
            setsigmask=[],
            setsigdef=defaults,
        )


def _above_given(stack: contextlib.ExitStack, fd: int) -> int:
    """The descriptor if its number is none that is given, else a duplicate, closed with the stack."""
    if fd <= MORE_FD:
        fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, MORE_FD + 1)
        stack.callback(os.close, fd)
    return fd


class Child:
    """A child process that prints lines: listen to it, end it."""

    def __init__(
        self,
        kind: str,
        record: bytes,
        run_dir: str,
        descriptors: Mapping[int, int],
        *,
        lock: int = -1,
        limit: float = 0.0,
        env: Mapping[str, str] = os.environ,
        subject: str = "",
    ) -> None:
        with contextlib.ExitStack() as stack:
            take_standard()
            self._pipe, theirs = os.pipe()
            stack.callback(os.close, theirs)
            on_error = stack.enter_context(contextlib.ExitStack())
            on_error.callback(os.close, self._pipe)
            os.set_blocking(self._pipe, False)
            given = {**descriptors, 1: theirs}
            self.pid = start(kind, record, run_dir, given, lock=lock, limit=limit, env=env, subject=subject)
            on_error.pop_all()
        self.code: int | None = None  # how it ended, negative by a signal; None while it lives
        self._received, self._is_silent = b"", False  # silent: it has closed its end
        self.allow(limit or math.inf)

    def has_ended(self) -> bool:
        """Whether the process has ended; then it is collected."""
        if self.code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ours(ChildProcessError):  # the user's own wait() took it
                self.code = 0
            else:
                self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def lines(self) -> list[bytes]:
        """The whole lines since the last time; never waits."""
        with suppress(BlockingIOError):
            while self._pipe >= 0 and not self._is_silent:
                chunk = os.read(self._pipe, READ_SIZE)
                self._received += chunk
                self._is_silent = not chunk
        *lines, self._received = self._received.split(b"\n")
        return lines

    def allow(self, seconds: float) -> None:
        """Have so much time for what it does now."""
        self._limit, self._end, self._killed_at = seconds, time.monotonic() + seconds + GRACE, 0.0

    def hear(self) -> tuple[list[bytes], bool]:
        """The whole lines since the last time, and whether it has ended; killed if its time is over. Never waits."""
        ended = self.has_ended()
        if not ended and time.monotonic() > self._end:
            self.kill()
        lines = self.lines()
        if ended:
            self.close()
        return lines, ended

    @property
    def has_hung(self) -> bool:
        """Whether it took longer than it may."""
        return self.code == -signal.SIGALRM or time.monotonic() > self._end

    @property
    def how_it_ended(self) -> str:
        """What is said of it behind its name."""
        if self.has_hung:
            return f"hung and was ended after {self._limit:.0f} s"
        code = self.code or 0
        return f"ended by signal {-code}" if code < 0 else f"ended by exit code {code}"

    @property
    def is_stuck(self) -> bool:
        """Whether it lives although it was killed a while ago: it hangs in the kernel."""
        return bool(self._killed_at) and time.monotonic() > self._killed_at + GRACE and not self.has_ended()

    def kill(self) -> None:
        """End the process, as far as the kernel can."""
        self._killed_at = self._killed_at or time.monotonic()
        with suppress(ProcessLookupError):  # the user's program may collect its children
            if not self.has_ended():
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float, *others: int) -> None:
        """Return when the process says something or ends, another descriptor is readable, or the time is over."""
        if self._pipe < 0 or self._is_silent:
            timeout = min(END_POLL, timeout)
        wait_for_input((self._pipe, *others), timeout)

    def end(self, patience: float) -> bool:
        """Kill the process, and wait so many seconds for its end: it may hang in the kernel. Whether it has ended."""
        self.close()
        self.kill()
        until = time.monotonic() + patience
        while not self.has_ended() and time.monotonic() < until:
            time.sleep(END_POLL)
        return self.code is not None

    def close(self) -> None:
        """Listen no more."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def wait_for_input(descriptors: Iterable[int], timeout: float) -> bool:
    """Whether one of them becomes readable, or is closed by the other end, within so many seconds."""
    poll = select.poll()  # `select.select` takes no descriptor above 1023
    for fd in descriptors:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended; then it is collected."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ours(ChildProcessError):  # the user's own wait() took it
        return True


def collect_orphans() -> None:
    """Collect our zombies that are children of this process because it is process 1, as in a container.

    An init would do that. Uploaders that other ranks have started become its children, and their pushes when they are
    killed. The user's children keep their exit codes.
    """
    if os.getpid() != 1:
        return
    with suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            for pid, found in processes().items():
                if (found.parent, found.state, found.name) == (1, "Z", OWN_NAME):
                    has_ended(pid)


def title(kind: str, subject: str) -> str:
    """How a process shows in `ps`: `hf-mpwriter uploader me/sweep`, `hf-mpwriter mirror runs/exp1`."""
    return f"hf-mpwriter {kind} {'/'.join(subject.split('/')[-2:])}"


def is_command_of(kind: str, arguments: Sequence[str], run_dir: str | None) -> bool:
    """Whether a command line is that of a process of a kind, and of a run."""
    boot = f"from {KINDS[kind]} import main;"
    return (run_dir is None or run_dir in arguments) and any(boot in argument for argument in arguments)


def answer(parent: int | None = None) -> Callable[[bytes], None]:
    """What a `Child` does first: it dies with its parent, and what is given to the result alone goes to the pipe.

    What libraries print goes to the log. A line begins anew, in case that the start of Python has printed something.
    """
    from hf_mpwriter.system import disk, redaction  # here: training imports this module
    from hf_mpwriter.system.kernel import die_with_parent

    fill_standard()
    die_with_parent(int(sys.argv[3]) if parent is None else parent)
    pipe = os.dup(1)
    os.dup2(2, 1)
    redaction.guard()
    return lambda line: disk.write_all(pipe, b"\n%s\n" % line)


# records


def _with_import_path(data: bytes) -> bytes:
    """A record that begins with the line for the start of Python.

    A frozen program has its modules in itself; another Python cannot import them, and uses its own import path.
    """
    tag = "" if getattr(sys, "frozen", False) else sys.implementation.cache_tag
    return json.dumps({"python": tag, "path": import_path()}).encode() + b"\n" + data


def _without_current_folder(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child; its PYTHONPATH, which Python reads before the record, names absolute places only."""
    left_out = places_of_the_current_folder()
    places = env.get("PYTHONPATH", "").split(os.pathsep)
    kept = [place for place in places if os.path.isabs(place) and os.path.normpath(place) not in left_out]
    others = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    return others | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {})


def record_file(data: bytes) -> contextlib.AbstractContextManager[int]:
    """A descriptor of a further record, closed at the end of the block."""
    return unnamed_file(b"\n" + data)


def read_record(fd: int = RECORD_FD) -> bytes:
    """What a process reads of its record, once; closes the descriptor."""
    with open(fd, "rb", buffering=0) as file:
        file.seek(0)
        return read_all(fd).partition(b"\n")[2]


@contextlib.contextmanager
def unnamed_file(data: bytes) -> Iterator[int]:
    """A descriptor, above 2, of a file that has no name and holds this; in memory where the system can do that."""
    with contextlib.ExitStack() as stack:
        take_standard()
        try:
            fd = os.memfd_create("record")
            stack.callback(os.close, fd)
        except ours(AttributeError, OSError):
            fd = stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        yield fd


# the Python of a child


def interpreter(env: Mapping[str, str]) -> str:
    """A Python for a child of this process; none is started to find out.

    The one that HF_MPWRITER_PYTHON names is the user's choice and only has to be a program. Any other has to be a
    binary that is called python: the very file that this process runs, or one with the standard library beside it. A
    script with that name is none: it may be the launcher of the user's program.
    Absolute path.
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
    return _is_file(path) and bool(os.stat(path).st_mode & 0o111)


def _is_file(path: str) -> bool:
    """Whether a regular file is there; `os.path.isfile` would swallow what a signal handler raises."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except ours(OSError):
        return False


def _candidates() -> Iterator[str]:
    """What may be the Python of this process, the likeliest first; none in a frozen program."""
    if getattr(sys, "frozen", False):
        return
    known = [sys.executable, getattr(sys, "_base_executable", None)]
    with suppress(OSError):
        known.append(os.readlink("/proc/self/exe"))
    names = (f"python{sys.version_info.major}.{sys.version_info.minor}", f"python{sys.version_info.major}", "python")
    prefixes = (sys.exec_prefix, sys.base_exec_prefix)
    known += [os.path.join(prefix, "bin", name) for prefix in prefixes for name in names]
    yield from (path for path in known if isinstance(path, str) and os.path.isabs(path))


def _is_python(path: str) -> bool:
    """Whether a file is a Python, see `interpreter`."""
    try:
        real = os.path.realpath(path, strict=True)
        if not _may_be_started(real):
            return False
        if not _PYTHON_NAME.fullmatch(os.path.basename(real)) or not _is_binary(real):
            return False
        return _is_running(real) or _has_library(real)
    except ours(OSError):
        return False


def _is_binary(path: str) -> bool:
    """Whether a file is a binary; one that may be executed but not read counts as one."""
    try:
        return read_path(path, 4) == b"\x7fELF"
    except ours(PermissionError):
        return True


def _is_running(path: str) -> bool:
    """Whether this process runs that file."""
    try:
        return os.path.samefile(path, "/proc/self/exe")
    except ours(OSError):
        return False


def _has_library(path: str) -> bool:
    """Whether the standard library of this version is where a Python looks for it."""
    prefix = os.path.dirname(os.path.dirname(path))
    return any(
        _is_file(os.path.join(prefix, directory, f"python{sys.version_info.major}.{sys.version_info.minor}", "os.py"))
        for directory in ("lib", "lib64", sys.platlibdir)
    )
