"""The clock of a push, a command or a pull, and the network through which all its requests go.

    httpx2 -> httpcore2 -> TimedNetwork: name, connection, TLS -> read, write       each has what is left of the clock
                                       |                       |
                             seconds that it waits     content gives time back

A limit of each read ends nothing where a server sends a byte a second. So one clock runs while any request of a push,
a command or a pull waits for the network, and while the client sleeps before it tries again. When it is over, the
request ends with OverdueError, be it in the middle of a header.

Invariants:
- Content has no end, but a least rate: each byte gives back what LEAST_RATE allows it. So does each question of ours,
  by QUESTION; its answers give nothing, however many pages there are.
- The clock never has more than its limit: what has come quickly pays for no stop.
- The resolver of the system obeys no clock, and is asked by a thread that is left behind.

A stream of events has a clock of its own, which each of its lines winds up again (`pull/feed`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpcore2

from hf_mpwriter.system.process_state import thread_lock

LEAST_RATE = 10_000.0  # bytes of content per second
QUESTION = 5.0  # seconds
LONGEST_SLEEP = 11.0  # seconds between two tries of the client; what takes longer is no sleep
SENDS_EVERY = 30.0  # seconds
PUSH_LIMIT = 240.0  # seconds; less than the process of a push has
PERSON_LIMIT = 60.0  # seconds, where a person waits, or a program
OVERDUE = "the answers take too long"

Address = tuple[Any, ...]


class OverdueError(TimeoutError):
    """The time of a push, a command or a pull is over; the client does not try again."""


class Clock:
    """The seconds that requests may still take.

    `is_patient`: a person waits, who can end it; a pause that the Hub asks for costs nothing. `sends` is called when
    content goes to the Hub, at most every SENDS_EVERY seconds.
    """

    def __init__(
        self, limit: float = PUSH_LIMIT, *, is_patient: bool = False, sends: Callable[[], object] = lambda: None
    ) -> None:
        self.is_patient, self._limit, self._left = is_patient, limit, limit
        self._sends, self._told_at = sends, time.monotonic()
        self._lock = thread_lock()
        self._waiting, self._since, self._failed_at = 0, 0.0, math.inf

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.give(0.0)

    def give(self, seconds: float) -> float:
        """Give time back, or take it where this is negative; the seconds that are left."""
        with self._lock:
            now = time.monotonic()
            if self._waiting:
                self._left -= now - self._since
            self._since, self._left = now, min(self._limit, self._left + seconds)
            return self._left

    def came(self, size: int) -> None:
        """Give back what bytes of content may cost."""
        self.give(size / LEAST_RATE)

    def went(self, size: int) -> None:
        """The same, of content that the Hub has taken."""
        self.came(size)
        if time.monotonic() > self._told_at + SENDS_EVERY:
            self._told_at = time.monotonic()
            self._sends()

    def fail(self) -> None:
        """The client sleeps from now on, if it tries again."""
        self._failed_at = time.monotonic()

    def pause(self, seconds: float, *, is_wished: bool) -> None:
        """Sleep before a next try; `is_wished`: because the Hub asks for it."""
        time.sleep(seconds)
        self._failed_at = math.inf
        if not (is_wished and self.is_patient):
            self.give(-seconds)

    @contextlib.contextmanager
    def waiting(self, timeout: float | None) -> Iterator[float]:
        """Run while the network is waited for; the seconds that this may take."""
        slept, self._failed_at = time.monotonic() - self._failed_at, math.inf
        if (left := self.give(-min(max(0.0, slept), LONGEST_SLEEP))) <= 0:
            raise OverdueError(OVERDUE)
        self._count(1)
        try:
            yield left if timeout is None else min(timeout, left)
        except (httpcore2.TimeoutException, httpcore2.NetworkError) as error:
            self.fail()
            if self.left <= 0:
                raise OverdueError(OVERDUE) from error
            raise
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        self.give(0.0)
        with self._lock:
            self._waiting += more


class TimedNetwork(httpcore2.NetworkBackend):
    """The network, by a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._network = clock, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address of a host that can be reached."""
        with self._clock.waiting(timeout) as seconds:
            addresses = _addresses(host, port, seconds)
        for address in addresses:
            try:
                with self._clock.waiting(timeout) as seconds:
                    stream = self._network.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if address == addresses[-1]:
                    raise
            else:
                return _Stream(stream, self._clock)
        raise httpcore2.ConnectError(f"{host} has no address")


class _Stream(httpcore2.NetworkStream):
    """A connection, by a clock."""

    def __init__(self, stream: httpcore2.NetworkStream, clock: Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with self._clock.waiting(timeout) as seconds:
            data = self._stream.read(max_bytes, seconds)
        if not data:
            self._clock.fail()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with self._clock.waiting(timeout) as seconds:
            self._stream.write(buffer, seconds)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        with self._clock.waiting(timeout) as seconds:
            return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a host, in the order in which to try them."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    answers: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
        if isinstance(found, OSError):
            raise found
    except queue.Empty:
        raise httpcore2.ConnectTimeout("the name service does not answer") from None
    except OSError as error:  # what is raised in such a block keeps its cause, whatever httpcore2 does with it
        raise httpcore2.ConnectError(str(error)) from error
    return list(dict.fromkeys(address[0] for *_, address in found))
