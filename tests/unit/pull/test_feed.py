"""The feed of a bucket: what counts as an event, and what a stranger may send."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from programs import wait_for
from strange_servers import StrangeServer

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.pull import feed
from hf_mpwriter.pull.feed import Event, Feed, FeedError, events, lines, sizes
from hf_mpwriter.push.client import Hub

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
READY = b'event: ready\ndata: {"cursor": "7"}\n\n'


def changed(path, size, cursor="8"):
    """An event of one file."""
    data = {"cursor": cursor, "changes": [{"path": path, "op": "update", "size": size}]}
    return f"event: changes\ndata: {json.dumps(data)}\n\n".encode()


@pytest.fixture
def followed(monkeypatch):
    """Follow the feed of a server that answers each request so; the feed, and the server."""
    opened = []

    def begin(answer, **limits):
        for name, value in limits.items():
            monkeypatch.setattr(feed, name, value)
        server = StrangeServer(answer).__enter__()
        opened.append((Feed(Hub(Destination(server.endpoint, "me/run")), "me/run-live"), server))
        return opened[-1]

    yield begin
    for follower, server in opened:
        follower.close()
        server.__exit__()


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_events_are_the_same_whatever_the_pieces_are(cut):
    """Line ends of both kinds, comments, several lines of data, garbage between them."""
    stream = b": ping\n\n" + READY.replace(b"\n", b"\r\n") + b"event: x\ndata: {\ndata: }\n\ndata: [1]\n\ndata: {\n\n\n"
    stream += changed("a", 5)
    pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    found = list(events(lines(pieces)))
    assert [event.name for event in found] == ["ready", "x", "changes"]
    assert found[0] == Event("ready", {"cursor": "7"})
    assert sizes(found[2].data["changes"]) == {"a": 5}


def test_what_is_not_a_change_is_left_out():
    """Sizes and paths of other types, and no list at all."""
    strange = [None, 1, {}, {"path": 1, "op": "add", "size": 1}, {"path": "a", "op": "add", "size": -1}]
    strange += [{"path": "b", "op": "add", "size": "9"}, {"path": "c", "op": "sing", "size": 1}]
    assert sizes([*strange, {"path": "d", "op": "delete"}]) == {"d": None}
    assert sizes("abc") == {}


def test_neither_a_line_nor_an_event_is_endless(monkeypatch):
    """More than the limit is not held."""
    monkeypatch.setattr(feed, "LONGEST_LINE", 1000)
    with pytest.raises(FeedError, match="line"):
        list(lines(b"a" * 100 for _ in iter(int, 1)))
    with pytest.raises(FeedError, match="event"):
        list(events(b"data: 1" for _ in iter(int, 1)))


def test_it_goes_on_at_its_cursor_when_the_stream_ends(followed):
    """A listing is wanted once, at the first ready; then each stream begins after the last one."""
    follower, server = followed(lambda *_: [HEAD, READY, changed("a", 5, "9")], FIRST_PAUSE=0.01, LASTING=0.0)
    wait_for(lambda: len(server.asked) > 2, "it comes back")
    assert "?cursor" not in server.asked[0].path
    assert server.asked[1].path.endswith("?cursor=9")
    assert server.asked[1].headers["accept"] == "text/event-stream"
    assert follower.wait(1.0) == ({"a": 5}, True)


def test_a_reset_wants_a_listing_and_no_cursor(followed):
    """The Hub has forgotten what came after it."""
    follower, server = followed(lambda *_: [HEAD, READY, b"event: reset\ndata: {}\n\n"], FIRST_PAUSE=0.01, LASTING=0.0)
    wait_for(lambda: len(server.asked) > 2, "it comes back")
    assert all("cursor" not in asked.path for asked in server.asked)
    assert follower.wait(1.0)[1]


@pytest.mark.parametrize("status", [401, 403, 404, 501])
def test_where_there_is_no_feed_it_does_not_ask_again(followed, status):
    """Who asks goes by listing."""
    answer = f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode()
    follower, server = followed(lambda *_: [answer], FIRST_PAUSE=0.01)
    wait_for(lambda: follower.is_none, "it has given up")
    assert (len(server.asked), follower.is_up) == (1, False)


def test_bytes_that_end_no_line_do_not_count_as_life(followed):
    """A server that drips is left after the time of silence, and asked again."""
    follower, server = followed(
        lambda server, _: chain([HEAD], server.drip()), SILENCE=0.3, FIRST_PAUSE=0.01, LASTING=0.0
    )
    wait_for(lambda: len(server.asked) > 1, "it comes back")
    assert not follower.is_up


def test_a_page_of_a_portal_is_not_a_feed(followed):
    """It is 200, and no stream of events."""
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n" + READY
    follower, server = followed(lambda *_: [page], FIRST_PAUSE=0.01, LASTING=0.0)
    wait_for(lambda: len(server.asked) > 1, "it asks again")
    assert follower.wait(0.0) == ({}, False)
