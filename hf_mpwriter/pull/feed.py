"""The feed of a bucket: which files have changed, as the Hub tells it while it happens.

    GET /api/buckets/ID/events?cursor=...

    event: changes     {"cursor", "changes": [{"path", "op": "add" | "update" | "delete", "size"}]}
    event: ready       {"cursor"}: all that came after the cursor of the question was told
    event: reset       the cursor is too old: what the bucket has is to be listed
    event: reconnect   {"cursor"}: the Hub sends its followers away
    : ping             every 30 seconds of silence

    status 401, 403, 404, 501    there is no feed to follow: who asks goes by listing, for good
    anything else that ends it   a pause, from FIRST_PAUSE on and twice as long each time, then again from the cursor

A thread reads it and leaves what it was told; a listing is wanted after each gap. What comes is a stranger's: each line
of at most LONGEST_LINE bytes winds up the clock of the stream, which is over after SILENCE seconds; the stream itself
has no limit.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from hf_mpwriter.pull.repository import NO_BUCKET
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.clock import Clock
from hf_mpwriter.system.process_state import thread_condition

SILENCE = 90.0  # seconds: the Hub sends something every 30
LONGEST_LINE = 4 << 20  # bytes; an event of a batch of 1,000 files has a tenth of it
LONGEST_CURSOR = 1 << 10  # characters
MOST_FILES = 100_000  # that may have changed; of more it is only known that a listing tells
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
LASTING = 10.0  # seconds that a stream has to last, so that the next pause is the first one again


class FeedError(Exception):
    """What comes is not a feed."""


class Event(NamedTuple):
    """One event."""

    name: str
    data: dict[str, Any]


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, whatever its pieces are. FeedError if one does not end."""
    begun = bytearray()
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for line in ended:
            yield bytes(begun + line).removesuffix(b"\r")
            begun.clear()
        begun += rest
        if len(begun) > LONGEST_LINE:
            raise FeedError("a line of the feed does not end")


def events(told: Iterable[bytes]) -> Iterator[Event]:
    """The events in the lines of a feed; what is not one is left out."""
    name, data, size = "", list[bytes](), 0
    for line in told:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                with contextlib.suppress(ValueError, RecursionError):
                    fields = json.loads(b"\n".join(data) or b"{}")
                    if isinstance(fields, dict):
                        yield Event(name, fields)
            name, data, size = "", [], 0
        elif field == b"event":
            name = value[:20].decode(errors="replace")
        elif field == b"data":
            data.append(value)
            size += len(value) + 1
            if size > LONGEST_LINE:
                raise FeedError("an event of the feed does not end")


def sizes(changes: object) -> dict[str, int | None]:
    """What an event says of files: the bytes that each has now, None of one that is gone. Garbage is left out."""
    found = dict[str, int | None]()
    for change in changes if isinstance(changes, list) else ():
        path, op, size = (
            (change.get(key) for key in ("path", "op", "size")) if isinstance(change, dict) else (None,) * 3
        )
        if isinstance(path, str):
            if op == "delete":
                found[path] = None
            elif op in ("add", "update") and isinstance(size, int) and size >= 0:
                found[path] = size
    return found


class Feed:
    """Follows the feed of a bucket in a thread, and keeps what it tells until it is taken."""

    def __init__(self, hub: Hub, bucket: str) -> None:
        self._hub, self._bucket, self._cursor = hub, bucket, ""
        self._news = thread_condition()
        self._changed, self._has_gap = dict[str, int | None](), False
        self.is_up, self.is_none = False, False  # whether it tells what happens; whether there is none
        self._is_over, self._pause = False, FIRST_PAUSE
        threading.Thread(target=self._follow, name="feed", daemon=True).start()

    def wait(self, timeout: float) -> tuple[dict[str, int | None], bool]:
        """What has changed since the last call, and whether a listing is to tell the rest; as soon as there is any."""
        with self._news:
            self._news.wait_for(lambda: self._changed or self._has_gap, timeout)
            changed, has_gap = self._changed, self._has_gap
            self._changed, self._has_gap = {}, False
            return changed, has_gap

    def close(self) -> None:
        """Tell nothing more."""
        self._is_over = True

    def _follow(self) -> None:
        while not self._is_over:
            began = time.monotonic()
            with contextlib.suppress(Exception):  # whatever it was, it is tried again
                self._follow_once()
            self.is_up = False
            if self.is_none:
                return
            if time.monotonic() > began + LASTING:
                self._pause = FIRST_PAUSE
            time.sleep(random.uniform(0.5, 1.0) * self._pause)  # noqa: S311 - jitter, no secret
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _follow_once(self) -> None:
        clock = Clock(SILENCE)
        with self._hub.bucket_events(self._bucket, self._cursor, clock) as (status, pieces):
            self.is_none = status in NO_BUCKET
            if status == 400:  # perhaps it does not take the cursor
                self._cursor = ""
            if status != 200:
                return
            for event in events(self._heard(pieces, clock)):
                if self._is_over or not self._take(event):
                    return

    def _heard(self, pieces: Iterable[bytes], clock: Clock) -> Iterator[bytes]:
        for line in lines(pieces):
            clock.give(math.inf)
            yield line

    def _take(self, event: Event) -> bool:
        """Take in an event; whether others may follow."""
        cursor = event.data.get("cursor")
        with self._news:
            if event.name == "reset":
                self._cursor, self._has_gap = "", True
            elif isinstance(cursor, str) and len(cursor) <= LONGEST_CURSOR:
                self._has_gap = self._has_gap or (event.name == "ready" and not self._cursor)
                self._cursor = cursor
            elif event.name == "ready":
                self._has_gap = True
            if event.name == "ready":
                self.is_up = True
            if event.name == "changes":
                self._changed |= sizes(event.data.get("changes"))
                if len(self._changed) > MOST_FILES:
                    self._changed, self._has_gap = {}, True
            self._news.notify()
        return event.name not in ("reset", "reconnect")
