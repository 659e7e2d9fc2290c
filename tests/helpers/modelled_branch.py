"""A branch on the Hub as a model: commits that are applied, refused, late or lost, and the client that sends them."""

from __future__ import annotations

import dataclasses
import hashlib

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.push.client import Remote
from hf_mpwriter.uploader import in_flight

DESTINATION = Destination("http://127.0.0.1:1", "me/run")
ARRIVAL = in_flight.SETTLE_TIME  # seconds that a request may be under way, whatever a sabotaged uploader believes


@dataclasses.dataclass(frozen=True)
class Request:
    """A commit under way."""

    files: dict[str, bytes]
    parent: int | None
    end: float


class Branch:
    """The Hub's branch: it holds what was committed, and records each broken rule."""

    def __init__(self) -> None:
        self.head = 1
        self.files: dict[str, bytes] = {}
        self.under_way: list[Request] = []
        self.problems: list[str] = []

    def apply(self, request: Request) -> bool:
        """Commit, unless the request names another head than that of the branch."""
        if request.parent not in (None, self.head):
            return False
        for path, content in request.files.items():
            if not content.startswith(self.files.get(path, b"")):
                self.problems.append(f"{path} shrank from {len(self.files[path])} to {len(content)} bytes")
        self.files |= request.files
        self.head += 1
        return True

    def arrive(self, now: float) -> None:
        """Let what is under way arrive, each request at its last moment."""
        late = [request for request in self.under_way if request.end <= now]
        self.under_way = [request for request in self.under_way if request.end > now]
        for request in late:
            self.apply(request)


class Client:
    """The part of `client.Hub` that a push uses; `fate` is that of its commit."""

    repo_id, private, created_at = DESTINATION.repo_id, None, "2026-11-25"

    def __init__(self, branch: Branch, fate: str, now: float) -> None:
        self._branch, self._fate, self._now = branch, fate, now
        self.commits_sent = 0

    def head(self) -> str:
        """The head of the branch, as a string."""
        return str(self._branch.head)

    def is_private(self) -> None:
        """None: unknown."""

    def sizes(self, paths, _revision: str) -> dict[str, Remote]:
        """Sizes at the head, which does not move meanwhile."""
        files = {path: self._branch.files[path] for path in paths if path in self._branch.files}
        return {path: Remote(len(data), sha256(data), "") for path, data in files.items()}

    def commit(self, sources, parent: str, *, fenced: bool, **_) -> tuple[str, dict[str, Sent]]:
        """Commit as the fate says."""
        branch, fate = self._branch, self._fate
        contents = {}
        for source in sources:
            file = source.file
            with open(source.path, "rb") as opened:
                contents[source.target] = opened.read(file.length)
            if len(contents[source.target]) != file.length:
                raise FileNotFoundError(file.path)
        request = Request(contents, int(parent) if fenced else None, self._now + ARRIVAL)
        if fate == "unavailable":
            raise httpx2.ConnectError("modelled")
        self.commits_sent += 1
        if fate == "overtaken":
            branch.arrive(request.end)
        if fate == "busy":
            branch.head += 1
        if fate == "late":
            branch.under_way.append(request)
        if fate in ("late", "never"):
            raise TimeoutError("modelled")
        if not branch.apply(request):
            asked = httpx2.Request("POST", f"{DESTINATION.endpoint}/api/models/me/run/commit/main")
            raise HfHubHTTPError("modelled", response=httpx2.Response(412, request=asked))
        if fate == "answer lost":
            raise TimeoutError("modelled")
        return str(branch.head), {path: Sent(len(data), sha256(data)) for path, data in contents.items()}


def sha256(data: bytes) -> str:
    """The digest that the Hub returns."""
    return hashlib.sha256(data).hexdigest()
