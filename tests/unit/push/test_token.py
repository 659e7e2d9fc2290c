"""The token: it goes to the endpoint, and to no other server that an answer of it names."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable

import httpx2
import pytest
from huggingface_hub import constants
from programs import wait_for
from strange_servers import Asked, StrangeServer, answered

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.push.client import Account, Hub, Source
from hf_mpwriter.push.clock import Clock
from hf_mpwriter.push.transport import Transport

TOKEN = "hf_of_the_endpoint"
COMMIT, SIZE = "1" * 40, 20  # bytes of a file
NAME = "events.out.tfevents.1700000000.here.1.0123abcd"
FILE = {"type": "file", "path": f"exp1/{NAME}", "size": SIZE, "oid": "0" * 40}
FIELDS = {"etag": '"0"', "x_repo_commit": COMMIT, "x_linked_size": str(SIZE)}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A token, no proxy, and content by LFS."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


class Strange:
    """A Hub with one file that names another server at one place of an answer; the other one is a Hub like it."""

    def __init__(self, place: str) -> None:
        self.place, self.other = place, ""

    def __call__(self, server: StrangeServer, asked: Asked) -> Iterable[bytes]:
        """The answer to a request."""
        path = asked.path.partition("?")[0]
        is_there = server.endpoint == self.other
        request = f"{asked.method} {path}"
        if self.place.startswith("redirect ") and not is_there and re.search(self.place[9:], request):
            return answered({}, 307, location=f"{self.other}{asked.path}", **FIELDS)
        link = {"link": f'<{self.other}{path}>; rel="next"'}
        is_listing = self.place.startswith("next ") and not is_there and re.search(self.place[5:], request)
        if "/resolve/" in path:
            return answered(b"" if asked.method == "HEAD" else bytes(SIZE), content_length=str(SIZE), **FIELDS)
        return answered(self._content(path, server.endpoint), etag='"0"', **(link if is_listing else {}))

    def _content(self, path: str, own: str) -> object:
        commit = {"commitOid": COMMIT, "commitUrl": f"{own}/me/run/commit/{COMMIT}", "success": True}
        found = {
            "/tree/": [FILE],
            "/commits/": [],
            "/paths-info/": [FILE],
            "/preupload/": {"files": [{"path": f"exp1/{NAME}", "uploadMode": "lfs", "shouldIgnore": False}]},
            "/objects/batch": {"transfer": "basic", "objects": [self._object(own)]},
            "/commit/": commit,
            "/revision/": {"id": "me/run", "sha": COMMIT},
            "/api/models/me/run": {"id": "me/run"},
            "/repos/create": {"url": f"{own}/me/run"},
        }
        return next((content for part, content in found.items() if part in path), {})

    def _object(self, own: str) -> dict[str, object]:
        urls = {
            place: f"{self.other if place == self.place else own}/{place}" for place in ("upload", "verify", "part")
        }
        upload: dict[str, object] = {"href": urls["upload"]}
        if self.place in ("part", "completion"):
            urls["completion"] = f"{self.other if self.place == 'completion' else own}/completion"
            parts = {str(number): urls["part"] for number in (1, 2)}
            upload = {"href": urls["completion"], "header": {"chunk_size": str(SIZE // 2), **parts}}
        actions = {"upload": upload, "verify": {"href": urls["verify"]}}
        return {"oid": hashlib.sha256(bytes(SIZE)).hexdigest(), "size": SIZE, "actions": actions}


def _commit(hub: Hub, tmp_path) -> None:
    (local := tmp_path / NAME).write_bytes(bytes(SIZE))
    source = Source(LocalFile(NAME, SIZE, growing=False), str(local), f"exp1/{NAME}")
    hub.commit([source], COMMIT, fenced=True, tag_card=True)


def _copy(hub: Hub, tmp_path) -> None:
    with hub.copy(NAME, COMMIT, SIZE, str(tmp_path / "scratch")):
        pass


def _account(hub: Hub, _: object) -> None:
    account = Account(hub._destination.endpoint)
    account.whoami()
    account.repository(hub._destination)


Use = Callable[[Hub, object], object]
PLACES: dict[str, Use] = {  # where an answer names another server, and what asks for that answer
    "next /tree/": lambda hub, _: hub.tree(COMMIT),
    "next /commits/": lambda hub, _: hub.commits(),
    "redirect /tree/": lambda hub, _: hub.names("", COMMIT),
    "redirect /commits/": lambda hub, _: hub.commits(),
    "redirect /revision/": lambda hub, _: hub.head(),
    "redirect GET /api/models/me/run$": lambda hub, _: hub.is_private(),
    "redirect /paths-info/": lambda hub, _: hub.sizes([NAME], COMMIT),
    "redirect /repos/create": lambda hub, _: hub.create(private=None),
    "redirect /super-squash/": lambda hub, _: hub.squash(),
    "redirect HEAD /me/run/resolve/": _copy,
    "redirect GET /me/run/resolve/": _copy,
    "redirect README.md": _commit,
    "redirect /preupload/": _commit,
    "redirect /objects/batch": _commit,
    "redirect /upload": _commit,
    "redirect /verify": _commit,
    "redirect /commit/": _commit,
    "upload": _commit,
    "verify": _commit,
    "part": _commit,
    "completion": _commit,
    "redirect whoami": _account,
    "redirect GET /api/models/me/run": _account,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_an_answer_names_never_sees_the_token(tmp_path, place):
    """A page, a redirect, an action of LFS: only the port differs, and what is asked there is asked without it."""
    with StrangeServer(strange := Strange(place)) as endpoint, StrangeServer(strange) as other:
        strange.other = other.endpoint
        hub = Hub(Destination(endpoint.endpoint, "me/run", path_in_repo="exp1"), Clock(20.0))
        with contextlib.suppress(RuntimeError):  # what has read a file once does not read it for a second server
            PLACES[place](hub, tmp_path)
        wait_for(lambda: other.asked, f"a request there after {[one.path for one in endpoint.asked]}")
        assert any(one.headers.get("authorization") == f"Bearer {TOKEN}" for one in endpoint.asked)
        assert [one for one in other.asked if TOKEN in repr(one)] == []


@pytest.mark.parametrize(
    ("url", "is_there"),
    [
        ("https://hub.example/api/x", True),
        ("https://HUB.example:443/x", True),
        ("http://hub.example/api/x", False),
        ("http://hub.example:443/api/x", False),
        ("https://hub.example:8443/api/x", False),
        ("https://hub.example.org/api/x", False),
        ("https://a.hub.example/api/x", False),
        ("https://hub.example@other.example/x", False),
        ("https://other.example/hub.example/x", False),
    ],
)
def test_the_endpoint_is_its_scheme_host_and_port(url, is_there):
    """A token sent to the same host by http can be read on the way."""
    transport = Transport("https://hub.example", Clock())
    for header in ("Authorization", "authorization", "AUTHORIZATION"):
        request = httpx2.Request("GET", url, headers={header: f"Bearer {TOKEN}"})
        transport._before_request(request)
        assert ("authorization" in request.headers) == is_there
