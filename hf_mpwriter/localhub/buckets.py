"""Buckets: mutable files without history, and the feed of their changes.

    ROOT/repos/buckets/<namespace>/<name>/
      repo.json       as of a repository
      files.json      {"updated": 1764074400123, "files": {path: {"size", "xet_hash", "uploaded", "mtime"}}}

Times are in milliseconds. A file names content of the Xet store, and is read from there: a bucket has no blobs.

Invariant: each batch has a later time than all before it, whatever the clock says. So its time is the cursor of the
feed, also after a restart, and `since` a time and `cursor` mean the same: what came later.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_mpwriter.localhub.store import BUCKET, Store, WritableStore, to_json


@dataclass(frozen=True, slots=True)
class BucketFile:
    """A file of a bucket."""

    size: int
    xet_hash: str
    uploaded: int
    mtime: int


@dataclass(frozen=True, slots=True)
class BucketContent:
    """The files of a bucket, and when they changed last."""

    updated: int
    files: Mapping[str, BucketFile]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True, slots=True)
class BucketChange:
    """What one request changed, in the form of the feed."""

    time: int
    changes: list[dict[str, Any]]


def iso(milliseconds: int) -> str:
    """Return a time in the Hub's format."""
    moment = dt.datetime.fromtimestamp(milliseconds // 1000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"


def read(store: Store, bucket_id: str) -> BucketContent:
    """Return the content of a bucket.

    Raises:
        RepoNotFound: if there is none.
    """
    store.repo_info(BUCKET, bucket_id)
    with open(_path(store, bucket_id), encoding="utf-8") as file:
        fields = json.load(file)
    return BucketContent(fields["updated"], {path: BucketFile(**entry) for path, entry in fields["files"].items()})


def create(store: WritableStore, bucket_id: str, *, private: bool) -> None:
    """Create an empty bucket."""
    with store.new_repo(BUCKET, bucket_id, private=private):
        _write(store, bucket_id, BucketContent(_now(), {}))


def change(
    store: WritableStore, bucket_id: str, bucket: BucketContent, changes: Mapping[str, BucketFile | None]
) -> BucketChange:
    """Put and delete files; the caller has read the bucket under its lock, which it still holds."""
    updated = max(_now(), bucket.updated + 1)
    files, told = dict(bucket.files), []
    for path, file in changes.items():
        before = files.pop(path, None)
        if file is None:
            told.append({"path": path, "op": "delete"})
            continue
        files[path] = dataclasses.replace(file, uploaded=updated)
        told.append({"path": path, "op": "update" if before else "add", **file_json(files[path])})
    _write(store, bucket_id, BucketContent(updated, dict(sorted(files.items()))))
    return BucketChange(updated, told)


def file_json(file: BucketFile) -> dict[str, Any]:
    """Return a file as listings and the feed show it."""
    times = {"uploadedAt": iso(file.uploaded), "mtime": iso(file.mtime)}
    return {"size": file.size, "xetHash": file.xet_hash, **times}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _path(store: Store, bucket_id: str) -> str:
    return os.path.join(store.home(BUCKET, bucket_id), "files.json")


def _write(store: WritableStore, bucket_id: str, bucket: BucketContent) -> None:
    store.disk.write(_path(store, bucket_id), to_json(dataclasses.asdict(bucket)))


class _Feed:
    """The newest batches of one bucket, for all who follow it."""

    def __init__(self, floor: int) -> None:
        self.floor = floor  # a follower that has seen less has missed what is no longer here
        self.batches: deque[BucketChange] = deque()
        self.deleted = False
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Have all followers look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """Return what is set by the next change."""
        return self._changed


class Feeds:
    """The feeds of a running Hub. All is in the event loop: a follower is a place in a feed, and holds no thread.

    Args:
        kept: How many batches a feed keeps for followers that come back.
        ping: Seconds of silence after which followers get a comment.
    """

    def __init__(self, kept: int, ping: float) -> None:
        self._kept, self._ping = kept, ping
        self._feeds: dict[str, _Feed] = {}
        self._ending = False

    def publish(self, bucket_id: str, before: int, batch: BucketChange) -> None:
        """Tell followers of a batch; `before` is when the bucket had changed before it."""
        feed = self._feeds.setdefault(bucket_id, _Feed(before))
        feed.batches.append(batch)
        while len(feed.batches) > self._kept:
            feed.floor = feed.batches.popleft().time
        feed.wake()

    def drop(self, bucket_id: str) -> None:
        """End the feed of a bucket that is gone."""
        if feed := self._feeds.pop(bucket_id, None):
            feed.deleted = True
            feed.wake()

    def end(self) -> None:
        """Send all followers away, as the Hub stops."""
        self._ending = True
        for feed in self._feeds.values():
            feed.wake()

    async def follow(self, bucket_id: str, updated: int, place: int | None) -> AsyncIterator[str]:
        """Yield the events of a bucket, which changed last at `updated`, from after a place or from now on."""
        feed = self._feeds.setdefault(bucket_id, _Feed(updated))
        if place is None:
            place = feed.batches[-1].time if feed.batches else feed.floor
        is_ready = False
        while not feed.deleted:
            changed = feed.next_change()
            if place < feed.floor:
                yield _event("reset", reason="the resume point is older than the replay buffer")
                return
            for batch in [batch for batch in feed.batches if batch.time > place]:
                yield _event("changes", cursor=str(batch.time), changes=batch.changes)
                place = batch.time
            cursor = {"cursor": str(place)} if feed.batches else {}
            if not is_ready:
                yield _event("ready", **cursor)
                is_ready = True
            if self._ending:
                yield _event("reconnect", **cursor)
                return
            try:
                await asyncio.wait_for(changed.wait(), self._ping)
            except TimeoutError:
                yield ": ping\n\n"


def _event(name: str, **data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
