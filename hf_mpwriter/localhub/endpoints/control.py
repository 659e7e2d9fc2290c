"""Endpoints that control a running Hub, for tests and rehearsals: not logged, and exempt from faults and limits."""

from __future__ import annotations

import dataclasses
import json

from anyio import from_thread
from starlette.responses import JSONResponse, Response

from hf_mpwriter.localhub.endpoints.routing import Call
from hf_mpwriter.localhub.errors import BadRequest
from hf_mpwriter.localhub.server.accounts import Tokens
from hf_mpwriter.localhub.server.faults import Fault, FaultError, from_json, parse


def ready(_: Call) -> Response:
    """GET /-/ready: the server is up."""
    return Response(status_code=204)


def list_faults(call: Call) -> Response:
    """GET /-/faults: all faults since the last clear, with their counts."""
    return JSONResponse([dataclasses.asdict(standing) for standing in call.hub.faults.list()])


def add_fault(call: Call) -> Response:
    """POST /-/faults: add a fault, given as a line of text or as JSON."""
    try:
        from_thread.run_sync(call.hub.faults.add, _fault(call.content.decode("utf-8", "replace").strip()))
    except FaultError as error:
        raise BadRequest(str(error)) from None
    return Response(status_code=204)


def _fault(text: str) -> Fault:
    """Return the fault in a request body."""
    if not text.startswith("{"):
        return parse(text)
    try:
        return from_json(json.loads(text))
    except ValueError as error:
        raise BadRequest(str(error)) from None


def set_tokens(call: Call) -> Response:
    """PUT /-/tokens: replace the accepted tokens; earlier ones expire."""
    fields = call.fields()
    call.hub.tokens = Tokens(fields.get("write"), fields.get("read"))
    return Response(status_code=204)


def clear_faults(call: Call) -> Response:
    """DELETE /-/faults: remove all faults and resume the requests that they hold."""
    from_thread.run_sync(call.hub.faults.clear)
    return Response(status_code=204)
