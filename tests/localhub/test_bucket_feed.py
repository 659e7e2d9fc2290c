"""The feed of a bucket: what followers are sent, when they come, come back, are late, or are many."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hub_clients import ask, client

from hf_mpwriter.localhub import LocalHub

ID = "local-user/live"
BUCKET = f"/api/buckets/{ID}"
FOLLOWERS = 200  # far more than the threads of the Hub
SECONDS = 60


class Follower:
    """One open stream of events."""

    def __init__(self, hub: LocalHub, query: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=SECONDS)
        self._connection.request("GET", f"{BUCKET}/events{query}", headers={"Accept": "text/event-stream"})
        self._response = self._connection.getresponse()
        assert self._response.getheader("Content-Type", "").startswith("text/event-stream"), self._response.read()

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        """Yield name and data of each event until the stream ends; a ping is a comment."""
        while block := b"".join(iter(lambda: self._response.readline().rstrip(b"\n"), b"")).decode():
            name, _, data = block.removeprefix("event: ").partition("data: ")
            yield (name, json.loads(data)) if data else ("comment", {"text": name})
        self._connection.close()

    def next(self) -> tuple[str, dict]:
        """Return the next event."""
        return next(iter(self))

    def close(self) -> None:
        """Leave."""
        self._response.close()
        self._connection.close()


def put(hub: LocalHub, *paths: str, kind: str = "addFile") -> None:
    """Change files in one batch; they are empty, so no client has to bring content."""
    lines = [json.dumps({"type": kind, "path": path, "xetHash": "0" * 64, "mtime": 1}).encode() for path in paths]
    assert ask(hub, "POST", f"{BUCKET}/batch", b"\n".join(lines))[0] == 200


def updated_at(hub: LocalHub) -> str:
    """Return when the bucket changed last."""
    return json.loads(ask(hub, "GET", BUCKET)[2])["updatedAt"]


def changes(event: tuple[str, dict]) -> list[tuple[str, str]]:
    """Return operation and path of what an event tells."""
    assert event[0] == "changes", event
    return [(change["op"], change["path"]) for change in event[1]["changes"]]


@pytest.fixture
def hub(tmp_path):
    """A Hub with an empty bucket, which keeps three batches and is silent for long."""
    with LocalHub(tmp_path / "hub", feed_kept=3, feed_ping=600.0) as running:
        assert ask(running, "POST", BUCKET, {})[0] == 200
        yield running


def test_a_follower_is_told_each_change_and_goes_on_where_it_was(hub):
    """Add, update, delete; after a cursor, after a time, and from now on; a place that is none is refused."""
    follower = Follower(hub)
    assert follower.next() == ("ready", {}), "nothing has changed yet, so there is no cursor"
    before = updated_at(hub)
    put(hub, "a", "b")
    first = follower.next()
    assert changes(first) == [("add", "a"), ("add", "b")]
    assert first[1]["changes"][0].items() >= {"size": 0, "xetHash": "0" * 64, "uploadedAt": updated_at(hub)}.items()
    put(hub, "a")
    put(hub, "b", kind="deleteFile")
    assert changes(follower.next()) == [("update", "a")]
    last = follower.next()
    assert changes(last) == [("delete", "b")]
    follower.close()
    later = Follower(hub, f"?cursor={first[1]['cursor']}")
    assert [changes(later.next()), changes(later.next())] == [[("update", "a")], [("delete", "b")]]
    assert later.next() == ("ready", {"cursor": last[1]["cursor"]})
    since = Follower(hub, f"?since={quote(before)}")
    assert changes(since.next()) == [("add", "a"), ("add", "b")]
    assert Follower(hub).next() == ("ready", {"cursor": last[1]["cursor"]})
    for query in ("cursor=x", "since=yesterday"):
        assert ask(hub, "GET", f"{BUCKET}/events?{query}")[0] == 400
    assert ask(hub, "GET", "/api/buckets/local-user/none/events")[0] == 404


def test_who_comes_back_too_late_is_told_to_list_again(hub):
    """What is no longer kept cannot be replayed; from the newest time on all goes well again."""
    put(hub, "a")
    early = updated_at(hub)
    for name in "bcde":
        put(hub, name)
    late = Follower(hub, f"?since={quote(early)}")
    assert late.next()[0] == "reset"
    assert list(late) == [], "a reset is the end of the stream"
    assert Follower(hub, f"?since={quote(updated_at(hub))}").next()[0] == "ready"


def test_followers_survive_a_restart_of_the_hub(hub):
    """A stop sends them away with a cursor that the next server knows; the end of the bucket ends the stream."""
    put(hub, "a")
    follower = Follower(hub)
    cursor = follower.next()[1]["cursor"]
    hub.stop()
    assert list(follower) == [("reconnect", {"cursor": cursor})]
    hub.start()
    follower = Follower(hub, f"?cursor={cursor}")
    assert follower.next() == ("ready", {})
    put(hub, "b")
    assert changes(follower.next()) == [("add", "b")]
    assert ask(hub, "DELETE", BUCKET)[0] == 204
    assert list(follower) == []


def test_two_hundred_followers_hold_no_thread(hub):
    """While all are silent the Hub goes on answering; then each is told the change."""
    followers = [Follower(hub) for _ in range(FOLLOWERS)]
    assert all(follower.next()[0] == "ready" for follower in followers)
    put(hub, "a")
    assert all(changes(follower.next()) == [("add", "a")] for follower in followers)
    assert all(ask(hub, "GET", BUCKET)[0] == 200 for _ in range(3))
    for follower in followers:
        follower.close()


def test_silence_is_broken_by_a_comment(tmp_path):
    """Clients take a stream without a byte for dead."""
    with LocalHub(tmp_path / "hub", feed_ping=0.05) as hub:
        assert ask(hub, "POST", BUCKET, {})[0] == 200
        follower = Follower(hub)
        assert [follower.next()[0] for _ in range(3)] == ["ready", "comment", "comment"]
        follower.close()


def test_the_file_system_of_the_client_sees_a_file_grow(hub, tmp_path):
    """With live follow, which drops what it has cached; without it, the size stays what it was."""
    seen = client(
        hub,
        tmp_path / "home",
        """
        import time
        from huggingface_hub import HfFileSystem
        path = "buckets/local-user/live/runs/events"
        put = lambda content: api.batch_bucket_files("local-user/live", add=[(content, "runs/events")])
        put(b"12345")
        still, live = HfFileSystem(skip_instance_cache=True), HfFileSystem(live_follow=True)
        for fs in (still, live):
            fs.ls("buckets/local-user/live/runs")
        ends = time.monotonic() + 90
        size = 5
        while size == 5 or live.cat_file(path) != b"12345" + b"6" * (size - 5):
            assert time.monotonic() < ends, size
            put(b"12345" + b"6" * (time.monotonic_ns() % 97 + 1))
            time.sleep(0.2)
            size = live.info(path)["size"]
        seen["grew"], seen["still"] = size > 5, still.info(path)["size"]
        """,
        xet=True,
    )
    assert seen == {"grew": True, "still": 5}
