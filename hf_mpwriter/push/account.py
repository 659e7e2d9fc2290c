"""The account: what the Hub says of a token and of a repository, by one request each, for people who look for a fault.

Invariant: an answer of the Hub, whatever its status, is no error; only what keeps it from answering is.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils._headers import build_hf_headers

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.push.transport import Transport

TIMEOUT = 5.0  # seconds of a request


@dataclass(frozen=True)
class HubReply:
    """What the Hub has answered."""

    status: int  # of HTTP
    fields: dict[str, Any]  # of the JSON object in it, {} if it is none


class Account:
    """The account of the token in the environment."""

    def __init__(self, endpoint: str) -> None:
        Transport(is_impatient=True)
        self._endpoint = endpoint

    def whoami(self) -> HubReply:
        """Whose token it is, and what it may do."""
        return self._ask("whoami-v2")

    def repository(self, destination: Destination) -> HubReply:
        """What the token sees of a repository; for the errors see `whoami`."""
        return self._ask(f"{destination.repo_type}s/{quote(destination.repo_id)}")

    def folders(self, destination: Destination, above: str, revision: str) -> list[str]:
        """The names of the first folders in a folder of a repository; none if it has none. For the errors see
        `whoami`.
        """
        place = f"{destination.repo_type}s/{quote(destination.repo_id)}/tree/{quote(revision, safe='')}/{quote(above)}"
        with contextlib.suppress(ValueError):
            found = json.loads(self._get(place.rstrip("/")).content)
            if isinstance(found, list):
                paths = [one.get("path") for one in found if isinstance(one, dict) and one.get("type") == "directory"]
                return [path.rpartition("/")[2] for path in paths if isinstance(path, str)]
        return []

    def _get(self, path: str) -> httpx2.Response:
        return get_session().get(f"{self._endpoint}/api/{path}", headers=build_hf_headers(), timeout=TIMEOUT)

    def _ask(self, path: str) -> HubReply:
        response = self._get(path)
        fields = None
        with contextlib.suppress(ValueError):
            fields = json.loads(response.content)
        return HubReply(response.status_code, fields if isinstance(fields, dict) else {})
