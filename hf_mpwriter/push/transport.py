"""The transport: the HTTP client of a push, which bounds every request.

    huggingface_hub -> request hook: timeouts, count of commits -> network -> response hook: no long sleep

Invariant: no call of the client takes longer than its timeouts and PATIENCE say; what they do not reach ends with the
push's own timer.

Facts behind this module (huggingface_hub 2.4.0):
- There is no timeout by default, and some calls pass `timeout=None`. The request hook fills in what is missing. hf_xet
  has network code of its own, which it does not reach.
- Within a call the client sleeps for as long as `Retry-After` says, be it a day, and it repeats a `create_repo` that
  meets another one at once and for ever. The response hook raises instead.
- Nothing of a push is on the Hub before its request for a commit is sent: until then its outcome is known.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx2
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, hf_request_event_hook

from hf_mpwriter.push.classify import BusyError, ClientError, wished_wait

CONNECT_TIMEOUT = 15.0  # seconds
REQUEST_TIMEOUT = 120.0  # seconds; the Hub itself cuts a commit at 60 s
PATIENCE = 10.0  # seconds that the client may sleep within a call because the Hub asks for it

_LIMITS = {"connect": CONNECT_TIMEOUT, "read": REQUEST_TIMEOUT, "write": REQUEST_TIMEOUT, "pool": CONNECT_TIMEOUT}


class Transport:
    """The HTTP client that huggingface_hub uses in this process.

    Attributes:
        commits_sent: requests for a commit that were sent.
    """

    def __init__(self) -> None:
        self.commits_sent = 0
        set_client_factory(self._client)

    def _client(self) -> httpx2.Client:
        hooks: dict[str, list[Callable[..., object]]] = {
            "request": [hf_request_event_hook, self._before_request],
            "response": [_after_response],
        }
        try:
            return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None)
        except Exception as error:  # of many types: proxies and certificates come from the environment
            raise ClientError(f"{type(error).__name__}: {error}") from error

    def read(self, url: str, timeout: float) -> bytes:
        """The content at a URL of the Hub, by one request.

        Args:
            url: of the Hub.
            timeout: seconds.
        """
        response = get_session().get(url, headers=build_hf_headers(), timeout=timeout)
        hf_raise_for_status(response)
        return response.content

    def _before_request(self, request: httpx2.Request) -> None:
        given = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = _LIMITS | {name: value for name, value in given.items() if value is not None}
        self.commits_sent += request.method == "POST" and "/commit/" in request.url.path


def _after_response(response: httpx2.Response) -> None:
    """Raise what the client would raise only after a long sleep, or never."""
    if response.status_code < 400:
        return
    if response.status_code == 409 and response.request.url.path == "/api/repos/create":
        response.read()
        if "conflicting operation" in response.text:
            raise BusyError("another repository is being created for this account")
    if (wished_wait(response.headers) or 0.0) > PATIENCE:
        response.read()
        hf_raise_for_status(response)
