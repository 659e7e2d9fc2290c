"""The Hub as one ASGI application: the route table.

Order matters, because an id has one part or two: `/api/models/<id>` comes after all routes with a longer path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.endpoints import cas, commits, content, control, lfs, repos
from hf_mpwriter.localhub.endpoints.routing import Route, Router, refusal_answer
from hf_mpwriter.localhub.pages import handlers, metrics
from hf_mpwriter.localhub.pages.html import STYLE_PATH, refusal_page, style
from hf_mpwriter.localhub.server.request_log import RequestLog
from hf_mpwriter.localhub.server.state import FAULTS_PATH, READY_PATH, TOKENS_PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp

    from hf_mpwriter.localhub.endpoints.routing import Auth, Call, Guard
    from hf_mpwriter.localhub.server.state import HubState

_ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
_API = rf"/api/(?P<type>models|datasets|spaces)/{_ID}"
_PAGE = rf"(?:/(?P<type>datasets|spaces))?/{_ID}"
_REV = r"(?P<rev>[^/]+)"
_VIEW = r"(?:/(?P<type>datasets|spaces))?/(?P<id>(?!(?:api|datasets|lfs|spaces|v1|xet|-)/)[^/]+/[^/]+)"
_CAS = r"/xet/(?P<store>[0-9a-f]{12})"
_HASH = r"(?P<hash>[0-9a-f]{64})"


def _route(
    method: str,
    pattern: str,
    handler: Callable[[Call], Response],
    auth: Auth = "read",
    *,
    spool: bool = False,
    guard: Guard | None = None,
) -> Route:
    """Return one row of the route table."""
    return Route(method, re.compile(pattern), handler, auth, spool, guard, refusal_answer)


def _view(pattern: str, handler: Callable[[Call], Response], method: str = "GET") -> Route:
    """Return the row of a page, which a browser shows."""
    return Route(method, re.compile(pattern), handler, "view", spool=False, guard=None, refused=refusal_page)


ROUTES = (
    _route("GET", READY_PATH, control.ready, "none"),
    _route("GET", FAULTS_PATH, control.list_faults, "write"),
    _route("POST", FAULTS_PATH, control.add_fault, "write"),
    _route("DELETE", FAULTS_PATH, control.clear_faults, "write"),
    _route("PUT", TOKENS_PATH, control.set_tokens, "write"),
    _route("GET", "/api/agent-harnesses", repos.agent_harnesses, "none"),
    _route("GET", "/api/whoami-v2", repos.whoami),
    _route("POST", "/api/validate-yaml", repos.validate_yaml, "none"),
    _route("POST", "/v1/telemetry", repos.telemetry, "none"),
    _route("POST", "/api/repos/create", repos.create_repo),
    _route("DELETE", "/api/repos/delete", repos.delete_repo, "write"),
    _route("POST", rf"{_API}/preupload/{_REV}", commits.preupload, "write"),
    _route("POST", rf"{_API}/commit/{_REV}", commits.commit, "write", guard=commits.turn),
    _route("GET", rf"{_API}/xet-(?P<scope>read)-token/{_REV}", cas.token),
    _route("GET", rf"{_API}/xet-(?P<scope>write)-token/{_REV}", cas.token, "write"),
    _route("GET", rf"{_API}/tree/{_REV}(?:/(?P<path>.*))?", content.tree),
    _route("POST", rf"{_API}/paths-info/{_REV}", content.paths_info),
    _route("GET", rf"{_API}/commits/{_REV}", repos.commits),
    _route("GET", rf"{_API}/refs", repos.refs),
    _route("POST", rf"{_API}/branch/{_REV}", repos.create_branch, "write"),
    _route("DELETE", rf"{_API}/branch/{_REV}", repos.delete_branch, "write"),
    _route("POST", rf"{_API}/super-squash/{_REV}", repos.super_squash, "write"),
    _route("GET", rf"{_API}(?:/revision/{_REV})?", repos.repo_info),
    _route("POST", rf"{_CAS}/v1/xorbs/[^/]+/{_HASH}", cas.post_xorb, "xet-write", spool=True),
    _route("POST", rf"{_CAS}/v1/shards", cas.post_shard, "xet-write"),
    _route("POST", rf"{_CAS}/v2/shards", cas.post_shard_v2, "xet-write"),
    _route("GET", rf"{_CAS}/v1/chunks/[^/]+/{_HASH}", cas.find_chunk, "xet-read"),
    _route("GET", rf"{_CAS}/v2/reconstructions/{_HASH}", cas.reconstruction, "xet-read"),
    _route("GET", rf"{_CAS}/fetch/{_HASH}", cas.fetch_xorb, "none"),
    _route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs.put_blob, "none", spool=True),
    _route("PUT", r"/lfs/parts/(?P<upload>[0-9a-f]{24})/(?P<number>\d+)", lfs.put_part, "none", spool=True),
    _route("POST", r"/lfs/complete/(?P<upload>[0-9a-f]{24})", lfs.complete, "none"),
    _route("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", lfs.batch, "write"),
    _route("POST", rf"{_PAGE}\.git/info/lfs/objects/verify", lfs.verify, "write"),
    _route("GET", rf"{_PAGE}/resolve/{_REV}/(?P<path>.+)", content.resolve),
    _route("GET", STYLE_PATH, style, "none"),
    _view("/", handlers.home),
    _view(rf"{_VIEW}/tree/{_REV}(?:/(?P<path>.*))?", handlers.tree),
    _view(rf"{_VIEW}/blob/{_REV}/(?P<path>.+)", handlers.blob),
    _view(rf"{_VIEW}/commits/{_REV}", handlers.commits),
    _view(rf"{_VIEW}/commit/{_REV}", handlers.commit),
    _view(rf"{_VIEW}/tensorboard", metrics.metrics),
    _view(rf"{_VIEW}/tensorboard/board/.*", metrics.board),
    _view(rf"{_VIEW}/tensorboard/board/.*", metrics.board, "POST"),
    _view(rf"{_VIEW}", handlers.card),
)


def create_app(hub: HubState) -> ASGIApp:
    """Return the application of a Hub."""
    return RequestLog(Router(hub, ROUTES), hub)
