"""Endpoints of Xet: access tokens, and the content-addressed store (CAS) that the Rust client uses.

    upload      GET chunks (is it known?) -> POST xorbs -> POST shards
    download    GET reconstructions -> GET xorbs, by byte range, at signed URLs without a token

All of them but the tokens are below `/xet/<store>`, which separates them from the Hub's API in fault patterns and in
the request log. `<store>` is derived from the Hub's secret. Clients cache per CAS address which chunks are stored, and
that cache must not apply to another store that is served on the same port later.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import FileResponse, JSONResponse, Response

from hf_mpwriter.localhub.endpoints.routing import Call
from hf_mpwriter.localhub.errors import NotFound, RangeNotSatisfiable, Refusal
from hf_mpwriter.localhub.xet import Term, XetStore

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


def xet_of(call: Call) -> XetStore:
    """Return the Xet store that a request is for."""
    if call.hub.xet is None:
        raise NotFound("Xet is not enabled on this Hub")
    if call.path_params.get("store", call.hub.cas_store) != call.hub.cas_store:
        raise NotFound("This address belongs to another store")
    return call.hub.xet


def _cas_url(call: Call) -> str:
    return f"{call.endpoint}/xet/{call.hub.cas_store}"


def token(call: Call, scope: str) -> Response:
    """GET /api/Ts/{id}/xet-(read|write)-token/{rev}, of a bucket without a revision."""
    xet_of(call)
    # For a new pull request, which has no revision yet, the client sends None.
    if call.path_params.get("rev", "None") == "None":
        call.hub.store.repo_info(*call.repo)
    else:
        call.hub.store.resolve(*call.repo, call.path_params["rev"])
    access, ends = call.hub.xet_token(scope)
    cas = _cas_url(call)
    headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": access, "X-Xet-Token-Expiration": str(ends)}
    return JSONResponse({"casUrl": cas, "accessToken": access, "exp": ends}, headers=headers)


def find_chunk(call: Call) -> Response:
    """GET CAS/v1/chunks/{prefix}/{hash}: a shard that lists this chunk."""
    shard = xet_of(call).shard_with(call.path_params["hash"])
    if shard is None:
        raise NotFound("Unknown chunk")
    return Response(shard, media_type="application/octet-stream")


def post_xorb(call: Call) -> Response:
    """POST CAS/v1/xorbs/{prefix}/{hash}."""
    return JSONResponse({"was_inserted": xet_of(call).add_xorb(call.path_params["hash"], call.spooled)})


def post_shard(call: Call) -> Response:
    """POST CAS/v2/shards: the status is always 200, and the outcome is a line of the body."""
    try:
        xet_of(call).add_shard(call.content)
    except Refusal as refusal:
        return JSONResponse({"type": "error", "message": refusal.message, "retryable": False})
    return JSONResponse({"type": "result"}, media_type="application/x-ndjson")


def reconstruction(call: Call) -> Response:
    """GET CAS/v2/reconstructions/{hash}: the xorb ranges that make up a file or a byte range of it."""
    xet = xet_of(call)
    record = xet.file(call.path_params["hash"])
    if record is None:
        raise NotFound("Unknown file")
    match = _RANGE.fullmatch(call.headers.get("range", ""))
    start, end = (int(match[1]), int(match[2]) + 1) if match else (0, record.size)
    if start >= record.size:
        raise RangeNotSatisfiable
    terms, offset = _terms_of(record.terms, start, end)
    xorbs: dict[str, list[dict[str, Any]]] = {}
    for term in terms:
        entry = _fetch_entry(call, xet, term)
        if entry not in xorbs.setdefault(term.xorb, []):
            xorbs[term.xorb].append(entry)
    shown = [
        {"hash": term.xorb, "unpacked_length": term.size, "range": {"start": term.first, "end": term.end}}
        for term in terms
    ]
    return JSONResponse({"offset_into_first_range": offset, "terms": shown, "xorbs": xorbs})


def _terms_of(terms: tuple[Term, ...], start: int, end: int) -> tuple[list[Term], int]:
    """Return the terms that cover the bytes [start, end), and the offset of `start` in the first of them."""
    chosen: list[Term] = []
    offset = position = 0
    for term in terms:
        if position < end and position + term.size > start:
            if not chosen:
                offset = start - position
            chosen.append(term)
        position += term.size
    return chosen, offset


def _fetch_entry(call: Call, xet: XetStore, term: Term) -> dict[str, Any]:
    offsets = xet.offsets(term.xorb)
    first, last = offsets[term.first], offsets[term.end] - 1
    signature = call.hub.sign("xorb", term.xorb)
    url = f"{_cas_url(call)}/fetch/{term.xorb}?signature={signature}"
    chunks = {"start": term.first, "end": term.end}
    return {"url": url, "ranges": [{"chunks": chunks, "bytes": {"start": first, "end": last}}]}


def fetch_xorb(call: Call) -> Response:
    """GET CAS/fetch/{hash}: a byte range of a xorb."""
    xorb = call.path_params["hash"]
    call.hub.check_signature(call.query_params.get("signature", ""), "xorb", xorb)
    return FileResponse(xet_of(call).xorb_path(xorb))
