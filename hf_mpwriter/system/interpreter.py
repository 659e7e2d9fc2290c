"""The Python that runs a child of this process.

Invariant: no program is started that was not seen to be a Python: `sys.executable` may be the program that embeds it,
and would start training again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping

from hf_mpwriter.system.process import open_above

PYTHON_VARIABLE = "HF_MPWRITER_PYTHON"
_PYTHON_NAME = re.compile(
    r"\.?(python|pypy|graalpy)[dmtuw]*[\d.]*[dmtuw]*(-dbg|-intel64|-wrapped)?(\.bin)?", re.IGNORECASE
)


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
            return file.read(4) == b"\x7fELF"
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
