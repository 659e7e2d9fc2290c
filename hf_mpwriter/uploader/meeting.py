"""The meeting point: how a process that is started as an uploader hands its run to a living one of the same key.

    <cache>/hf_mpwriter/uploaders/<24 hex>.<pid>.<ticks>.<8 hex>     socket of a living uploader; the hex is of its key

    usher, just started                         uploader that serves
    connect to each socket of its key
    nonce, digest, record, descriptors  ----->  another key: end of the connection
                                                refuse: close the descriptors, then the connection
    exit, as another one has the run  <-------  take: say "taken", then begin
    after a while without an answer:
    shut the connection down, look once more;   take: nothing can be said any more: close the descriptors
    lock anew, and be an uploader itself

An `flock` belongs to an open file description, and the descriptor of the lock travels: so the lock is never free.

Invariants:
- One of the two acts. "taken" comes before the first act, and cannot be said after the usher has shut its end down. So
  either the usher reads it, or the other one fails to take the run.
- Who refuses has no descriptor of the run any more when the usher sees it. A stopped one may keep those that were sent
  to it; so an usher that waits no longer locks anew, by a description of its own, see `locks.renew`. For that moment
  the lock is free: if another process gets it, that one has the run.
- The key covers all that an uploader acts by: user, namespaces, cgroup, interpreter, repository, filesystem and the
  environment of the client. A digest under a nonce covers tokens too: nothing of them is stored, or readable.
- Each end checks the user id of the other one. Without a folder that is this user's alone, see `system/user_cache`,
  each run has an uploader of its own.
- Neither waits for the folder, which may hang: a thread does what touches it, and holds no descriptor of the run.
- A socket has its name only while it listens. So one that refuses a connection is that of a dead process, and its name
  is removed; what is older than NAME_KEPT, too.

The module imports little: most ushers of a sweep do nothing else.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeVar

from hf_mpwriter._version import __version__
from hf_mpwriter.system import disk, failpoints, launch, process, user_cache
from hf_mpwriter.system.directory import Place, identity

PATIENCE = 3.0  # seconds of an usher, until it is an uploader itself
FOLDER_PATIENCE = 3.0  # seconds that the folder may take to open, or to remove a name
SILENCE = 5.0  # seconds in which a connection has to send its request
BACKLOG = 128  # connections that wait in the kernel
HELD = 64  # connections without a request that are held here; the oldest goes first
NAME_KEPT = 7 * 86400.0  # seconds; a name that is removed early costs its uploader only that no run comes to it

_VERSION = b"hf-mpwriter meeting 1\n"
_NONCE = 16  # bytes
_DIGEST = hashlib.sha256().digest_size
_LONGEST = 1 << 17  # bytes of a request; one datagram holds it
_TAKEN = b"taken"
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_FD = struct.Struct("=i")

_NAMESPACES = ("cgroup", "mnt", "net", "pid", "time", "user", "uts")
_PREFIXES = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "ACTIONS_ID_TOKEN_")
_NAMES = frozenset(  # what huggingface_hub, httpx, OpenSSL and the loader of programs read besides
    (
        *("HOME", "XDG_CACHE_HOME", "NETRC", "TRANSFORMERS_OFFLINE", "GITHUB_ACTIONS"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE"),
        *("OPENSSL_CONF", "OPENSSL_MODULES", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    )
)
_PROXIES = frozenset(("http_proxy", "https_proxy", "all_proxy", "no_proxy"))  # in either case
_OF_TRAINING = frozenset(  # what only workers read; trials may differ in it
    f"HF_MPWRITER_{name}"
    for name in (
        *("DISABLED", "EXIT_TIMEOUT", "LOGDIR", "NODES", "REPO_ID", "REPO_PRIVATE", "SUPERVISOR", "SYSTEM_METRICS"),
    )
)

T = TypeVar("T")


class Descriptors(NamedTuple):
    """What an uploader has of a run; its holder closes it."""

    lock: int
    run_dir: int
    spool: int
    log: int


# the key


def surroundings(run_dir: int) -> dict[str, object]:
    """What of this process, and of the open run directory, both must have in common. Nothing of it is secret."""
    return {
        "user": [os.geteuid(), os.getegid(), sorted(os.getgroups())],
        "host": [process.host_id(), process.boot_id()],
        "namespaces": [_link(f"/proc/self/ns/{name}") for name in _NAMESPACES],
        "cgroup": os.fsdecode(process.contents("/proc/self/cgroup")),
        "root": identity(os.stat("/")),
        "python": [sys.executable, sys.version, os.path.dirname(os.path.dirname(disk.__file__)), __version__],
        "filesystem": os.fstat(run_dir).st_dev,
    }


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # an older kernel
        return ""


def of_client(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which the Hub's client acts, tokens included."""
    return {
        name: environ[name]
        for name in sorted(environ)
        if (name.startswith(_PREFIXES) and name not in _OF_TRAINING) or name in _NAMES or name.lower() in _PROXIES
    }


@dataclass(frozen=True)
class Key:
    """What two uploaders must have in common for one to do the work of the other."""

    known: str  # JSON of all that is not secret
    secret: str = field(repr=False)  # JSON of the environment

    @classmethod
    def of(cls, record: bytes, environ: Mapping[str, str], around: Mapping[str, object]) -> Self:
        """The key of an uploader with this start record; `around` as from `surroundings`."""
        start = json.loads(record)
        repository = {name: value for name, value in start["destination"].items() if name != "path_in_repo"}
        known = {"repository": repository, "nodes": start["nodes"], **around}
        return cls(json.dumps(known, sort_keys=True), json.dumps(of_client(environ)))

    @property
    def name(self) -> str:
        """24 hex, with which the names of sockets begin."""
        return hashlib.sha256(self.known.encode()).hexdigest()[:24]

    def digest(self, nonce: bytes) -> bytes:
        """A proof of this key, which says nothing about it to who does not have it."""
        return hmac.digest(nonce, json.dumps([self.known, self.secret]).encode(), "sha256")


def folder_of(environ: Mapping[str, str]) -> Place:
    """The meeting point: in the user's cache folder."""
    return user_cache.folder_of("uploaders", environ)


def within(patience: float, step: Callable[[], T]) -> T | None:
    """What a step that may hang comes to, in a thread of its own; None if it fails, or takes longer."""
    found: list[T] = []

    def run() -> None:
        with contextlib.suppress(OSError):
            found.append(step())

    thread = threading.Thread(target=run, daemon=True)
    with contextlib.suppress(RuntimeError):  # the system allows no more threads
        thread.start()
        thread.join(max(0.0, patience))
    return found[0] if found else None


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(data)[1] == os.geteuid())


def _socket() -> socket.socket:
    process.take_standard()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    return made


# the end of the usher


class _Reply(enum.Enum):
    TAKEN = enum.auto()  # the other one has the run
    LEFT = enum.auto()  # it has not, and has no descriptor of it
    SILENT = enum.auto()  # it cannot take the run any more, but may have its descriptors


def hand_over(
    folder: Place, key: Key, record: bytes, descriptors: Descriptors, patience: float, younger: str = ""
) -> bool:
    """Hand the run to a living uploader of this key, within so many seconds; no OSError is raised.

    `younger` is the name of a socket, if only older ones are asked. True: another process has the run, and this one has
    to end. False: this one alone holds the lock.
    """
    until = time.monotonic() + patience
    found = within(patience, lambda: _connected(folder, key, younger)) or []
    with contextlib.ExitStack() as stack:
        for connection in found:
            stack.enter_context(connection)
        for index, connection in enumerate(found):
            share = (until - time.monotonic()) / (len(found) - index)
            answer = _ask(connection, _request(key, record), descriptors, share)
            if answer is _Reply.TAKEN or (answer is _Reply.SILENT and not _lock_anew(descriptors.lock)):
                return True
    return False


def _connected(folder: Place, key: Key, younger: str) -> list[socket.socket]:
    """Connections to the living uploaders of a key, the oldest first."""
    if not folder.directory.is_there():
        return []
    names = [name for name in folder.names() if name.startswith(f"{key.name}.")]
    names = [name for name in names if not younger or _age(name) < _age(younger)]
    found = (_connect(folder / name) for name in sorted(names, key=_age))
    return [connection for connection in found if connection is not None]


def _age(name: str) -> tuple[int, str]:
    """What sorts names by the start of their processes."""
    ticks = name.split(".")[2:3]
    return int(ticks[0]) if ticks and ticks[0].isdecimal() else 0, name


def _connect(place: Place) -> socket.socket | None:
    """A connection to the uploader at a place; None if it does not listen, which no living one does for long."""
    connection = _socket()
    try:
        connection.connect(place.way)
        if _is_own(connection):
            return connection
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            place.unlink()
    except OSError:  # it has left, or many wait for it
        pass
    connection.close()
    return None


def _request(key: Key, record: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return _VERSION + nonce + key.digest(nonce) + record


def _ask(connection: socket.socket, request: bytes, descriptors: Descriptors, patience: float) -> _Reply:
    """Ask one uploader to take the run, and wait so many seconds for its answer."""
    try:
        failpoints.reach("meeting.ask")
        socket.send_fds(connection, [request], descriptors)
    except OSError:  # it has left; nothing was sent
        return _Reply.LEFT
    has_answered = launch.wait_for_input([connection.fileno()], patience)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # from here on the other one cannot say "taken"
    for _ in range(2):  # the end of a process may show first as an error
        with contextlib.suppress(OSError):
            failpoints.reach("meeting.answer")
            if connection.recv(len(_TAKEN)) == _TAKEN:
                return _Reply.TAKEN
    return _Reply.LEFT if has_answered else _Reply.SILENT


def _lock_anew(lock: int) -> bool:
    """Hold the lock by a description that no other process has a descriptor of; False if another process got it."""
    from hf_mpwriter.system import locks  # here: it takes as long to import as a hand-over

    return locks.renew(lock)


# the end of an uploader that serves


class Asked:
    """A run that an usher wants to hand over. It waits for one of both answers."""

    def __init__(self, record: bytes, descriptors: Descriptors, connection: socket.socket) -> None:
        self.record, self.descriptors = record, descriptors  # of a `StartRecord`; the caller's once it is taken
        self._connection = connection

    def take(self) -> bool:
        """Take the run, before anything is done for it; False if the usher waits no longer: then all is closed."""
        with self._connection:
            try:
                failpoints.reach("meeting.take")
                self._connection.send(_TAKEN)
            except OSError:
                _close_all(self.descriptors)
                return False
            return True

    def refuse(self) -> None:
        """Leave the run to the usher, which is the only holder of its lock when it sees that."""
        _close_all(self.descriptors)
        self._connection.close()


class Meeting:
    """The end of an uploader that serves other runs: it listens under a name until it is closed."""

    def __init__(self, listener: socket.socket, place: Place, key: Key) -> None:
        self._listener, self._place, self._key = listener, place, key
        self._waiting: dict[socket.socket, float] = {}  # without a request yet, and until when
        self._events = select.epoll()  # closed on exec
        self._events.register(listener, select.EPOLLIN)
        self.fd = self._events.fileno()  # readable while there may be something to read
        self.name = place.name  # of the socket

    @classmethod
    def open(cls, folder: Place, key: Key, patience: float = FOLDER_PATIENCE) -> Self | None:
        """Listen at the meeting point; None where that is not possible within so many seconds."""
        found = within(patience, lambda: _listen(folder, key))
        return None if found is None else cls(*found, key)

    def asked(self) -> Iterator[Asked]:
        """The runs that ushers want to hand over now; never waits. What is no request of this key is dropped."""
        self._accept()
        for connection, until in list(self._waiting.items()):
            if connection not in self._waiting:  # closed since, by the caller
                return
            try:
                data, fds = _receive(connection)
            except BlockingIOError:
                if time.monotonic() > until:
                    self._drop(connection)
                continue
            except OSError:
                self._drop(connection)
                continue
            self._forget(connection)
            asked = self._checked(data, fds, connection)
            if asked is None:
                _close_all(fds)
                connection.close()
            else:
                yield asked

    def _accept(self) -> None:
        """Take what waits in the kernel, so much at a time. Without free descriptors no more runs are served."""
        for _ in range(HELD):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._stop_listening()
                return
            connection.setblocking(False)
            self._waiting[connection] = time.monotonic() + SILENCE
            self._events.register(connection, select.EPOLLIN)
            if not _is_own(connection):
                self._drop(connection)
            elif len(self._waiting) > HELD:
                self._drop(next(iter(self._waiting)))

    def _checked(self, data: bytes, fds: list[int], connection: socket.socket) -> Asked | None:
        """A request if it is whole and of this key."""
        rest = data.removeprefix(_VERSION)
        nonce, digest, record = rest[:_NONCE], rest[_NONCE : _NONCE + _DIGEST], rest[_NONCE + _DIGEST :]
        if len(fds) != len(Descriptors._fields):
            return None
        if not hmac.compare_digest(digest, self._key.digest(nonce)):
            return None
        return Asked(record, Descriptors(*fds), connection)

    def _forget(self, connection: socket.socket) -> None:
        del self._waiting[connection]
        self._events.unregister(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _stop_listening(self) -> None:
        """Remove the name, then close the socket: a name without a listener is that of a dead process."""
        if self._listener.fileno() >= 0:
            within(FOLDER_PATIENCE, self._place.unlink)
            self._events.unregister(self._listener)
            self._listener.close()

    def close(self) -> None:
        """Leave the meeting point; who waits for an answer sees the end of its connection."""
        self._stop_listening()
        for connection in list(self._waiting):
            self._drop(connection)
        self._events.close()


def _listen(folder: Place, key: Key) -> tuple[socket.socket, Place]:
    """A socket that listens under a name of this key. It gets the name last."""
    disk.make_dirs(folder, durable=False)
    _remove_old(folder)
    own = process.Process.current()
    place = folder / f"{key.name}.{own.pid}.{own.ticks}.{os.urandom(4).hex()}"
    temporary = folder / f".{place.name}.tmp"
    listener = _socket()
    try:
        os.fchmod(listener.fileno(), disk.FILE_MODE)  # the mode of its name
        listener.bind(temporary.way)
        listener.listen(BACKLOG)
        disk.rename(temporary, place, "meeting")
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return listener, place


def _remove_old(folder: Place) -> None:
    """Remove old names: of processes that were killed, on any host that shares the folder."""
    limit = time.time() - NAME_KEPT
    for name in folder.names():
        with contextlib.suppress(OSError):
            if (folder / name).stat().st_mtime < limit:
                (folder / name).unlink()


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptors with it, which children do not inherit; BlockingIOError if there is none yet."""
    room = socket.CMSG_LEN(len(Descriptors._fields) * _FD.size)
    data, ancillary, flags, _ = connection.recvmsg(_LONGEST, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % _FD.size
            fds += [fd for (fd,) in _FD.iter_unpack(content[:whole])]
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):  # too long, or no descriptor is free here
        _close_all(fds)
        return b"", []
    return data, fds


def _close_all(fds: list[int] | Descriptors) -> None:
    for fd in fds:
        os.close(fd)
