"""The Hub as one ASGI application: the route table.

Order matters, because an id has one part or two: `/api/models/<id>` comes after all routes with a longer path.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.routing import Route, Router

from hf_mpwriter.localhub.endpoints import cas, commits, content, control, lfs, repos
from hf_mpwriter.localhub.endpoints.routing import Endpoint
from hf_mpwriter.localhub.errors import NotFound
from hf_mpwriter.localhub.pages import handlers
from hf_mpwriter.localhub.pages.html import STYLE_PATH, refusal_page, style
from hf_mpwriter.localhub.server.config import FAULTS_PATH, READY_PATH, TOKENS_PATH
from hf_mpwriter.localhub.server.request_log import RequestLog, raw_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from hf_mpwriter.localhub.endpoints.routing import Auth, Call
    from hf_mpwriter.localhub.server.state import HubState

_API = "/api/{repo:hub_api}"
_PAGE = "/{repo:hub_repo}"
_VIEW = "/{repo:hub_view}"
_CAS = "/xet/{store:hub_cas}"
_REV = "{rev:hub_part}"
_HASH = "{hash:hub_hash}"


def _route(method: str, path: str, handler: Callable[[Call], Response], auth: Auth = "read", **options: Any) -> Route:
    """Return one row of the route table; GET covers HEAD."""
    return Route(path, Endpoint(handler, auth, **options), methods=[method])


def _view(path: str, handler: Callable[[Call], Response], method: str = "GET") -> Route:
    """Return the row of a page, which a browser shows."""
    return _route(method, path, handler, "view", refused=refusal_page)


def _missing(_: Call) -> Response:
    """Any other request."""
    raise NotFound("Sorry, we can't find the page you are looking for.")


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
    _route("POST", f"{_API}/preupload/{_REV}", commits.preupload, "write"),
    _route("POST", f"{_API}/commit/{_REV}", commits.commit, "write", guard=commits.turn),
    _route("GET", f"{_API}/xet-read-token/{_REV}", partial(cas.token, scope="read")),
    _route("GET", f"{_API}/xet-write-token/{_REV}", partial(cas.token, scope="write"), "write"),
    _route("GET", f"{_API}/tree/{_REV}{{path:hub_tail}}", content.tree),
    _route("POST", f"{_API}/paths-info/{_REV}", content.paths_info),
    _route("GET", f"{_API}/commits/{_REV}", repos.commits),
    _route("GET", f"{_API}/refs", repos.refs),
    _route("POST", f"{_API}/branch/{_REV}", repos.create_branch, "write"),
    _route("DELETE", f"{_API}/branch/{_REV}", repos.delete_branch, "write"),
    _route("POST", f"{_API}/super-squash/{_REV}", repos.super_squash, "write"),
    _route("GET", f"{_API}/revision/{_REV}", repos.repo_info),
    _route("GET", _API, repos.repo_info),
    _route("POST", f"{_CAS}/v1/xorbs/{{prefix:hub_part}}/{_HASH}", cas.post_xorb, "xet-write", spool=True),
    _route("POST", f"{_CAS}/v1/shards", cas.post_shard, "xet-write"),
    _route("POST", f"{_CAS}/v2/shards", cas.post_shard_v2, "xet-write"),
    _route("GET", f"{_CAS}/v1/chunks/{{prefix:hub_part}}/{_HASH}", cas.find_chunk, "xet-read"),
    _route("GET", f"{_CAS}/v2/reconstructions/{_HASH}", cas.reconstruction, "xet-read"),
    _route("GET", f"{_CAS}/fetch/{_HASH}", cas.fetch_xorb, "none"),
    _route("PUT", "/lfs/{oid:hub_hash}", lfs.put_blob, "none", spool=True),
    _route("PUT", "/lfs/parts/{upload:hub_upload}/{number:hub_number}", lfs.put_part, "none", spool=True),
    _route("POST", "/lfs/complete/{upload:hub_upload}", lfs.complete, "none"),
    _route("POST", f"{_PAGE}.git/info/lfs/objects/batch", lfs.batch, "write"),
    _route("POST", f"{_PAGE}.git/info/lfs/objects/verify", lfs.verify, "write"),
    _route("GET", f"{_PAGE}/resolve/{_REV}/{{path:hub_path}}", content.resolve),
    _route("GET", STYLE_PATH, style, "none"),
    _view("/", handlers.home),
    _view(f"{_VIEW}/tree/{_REV}{{path:hub_tail}}", handlers.tree),
    _view(f"{_VIEW}/blob/{_REV}/{{path:hub_path}}", handlers.blob),
    _view(f"{_VIEW}/commits/{_REV}", handlers.commits),
    _view(f"{_VIEW}/commit/{_REV}", handlers.commit),
    _view(f"{_VIEW}/tensorboard", handlers.metrics),
    _view(f"{_VIEW}/tensorboard/board/{{path:path}}", handlers.board),
    _view(f"{_VIEW}/tensorboard/board/{{path:path}}", handlers.board, "POST"),
    _view(_VIEW, handlers.card),
    Route("/{path:path}", Endpoint(_missing, "none")),
)


def create_app(hub: HubState) -> ASGIApp:
    """Return the application of a Hub: the routes for raw paths, below the request log."""
    router = Router(ROUTES, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope.update(hub=hub, path=raw_path(scope), root_path="")
        await router(scope, receive, send)

    return RequestLog(app, hub)
