"""Endpoints that steer a running Hub, for tests and rehearsals: not logged, and beyond faults and limits."""

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
    """GET /-/ready: the server answers."""
    return Response(status_code=204)


def list_faults(call: Call) -> Response:
    """GET /-/faults: all since the last clearing, and what they have done."""
    return JSONResponse([dataclasses.asdict(standing) for standing in call.hub.faults.list()])


def add_fault(call: Call) -> Response:
    """POST /-/faults: a fault as a line of text, or as JSON."""
    try:
        from_thread.run_sync(call.hub.faults.add, _fault(call.body.decode("utf-8", "replace").strip()))
    except FaultError as error:
        raise BadRequest(str(error)) from None
    return Response(status_code=204)


def _fault(text: str) -> Fault:
    """Return the fault in the body of a request."""
    if not text.startswith("{"):
        return parse(text)
    try:
        return from_json(json.loads(text))
    except ValueError as error:
        raise BadRequest(str(error)) from None


def set_tokens(call: Call) -> Response:
    """PUT /-/tokens: from now on these are believed, and all others have expired."""
    fields = call.json()
    call.hub.tokens = Tokens(fields.get("write"), fields.get("read"))
    return Response(status_code=204)


def clear_faults(call: Call) -> Response:
    """DELETE /-/faults: what they hold goes on."""
    from_thread.run_sync(call.hub.faults.clear)
    return Response(status_code=204)
