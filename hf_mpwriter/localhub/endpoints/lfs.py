"""Endpoints of LFS: batch lists what is missing, PUT uploads it, verify checks that it arrived.

Upload URLs need no token: at the real Hub they lead to another service. A signature in the query protects them.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from hf_mpwriter.localhub.endpoints.routing import SHA256, Call, get_field
from hf_mpwriter.localhub.errors import BadRequest, NotFound

LFS_JSON = "application/vnd.git-lfs+json"


def batch(call: Call) -> Response:
    """POST [/Ts]/{id}.git/info/lfs/objects/batch."""
    call.hub.store.repo_info(*call.repo)
    fields = call.fields()
    objects = [_offer(call, item) for item in get_field(fields, "objects", list)]
    return JSONResponse({"transfer": "basic", "objects": objects}, media_type=LFS_JSON)


def _offer(call: Call, item: Any) -> dict[str, Any]:
    """Return the batch entry of one object, without actions if it is stored already."""
    oid, size = get_field(item, "oid", str), get_field(item, "size", int)
    answer: dict[str, Any] = {"oid": oid, "size": size}
    if not SHA256.fullmatch(oid) or size < 0:
        return answer | {"error": {"code": 422, "message": "Invalid object"}}
    present = call.hub.store.blobs.lfs_size(oid)
    if present == size:
        return answer | {"authenticated": True}
    if present is not None:
        return answer | {"error": {"code": 422, "message": "Size differs from that of the stored object"}}
    upload = {"href": f"{call.endpoint}/lfs/{oid}?size={size}&signature={call.hub.sign('blob', oid, size)}"}
    verify = {"href": f"{call.repo_url}.git/info/lfs/objects/verify"}
    return answer | {"authenticated": True, "actions": {"upload": upload, "verify": verify}}


def put_blob(call: Call) -> Response:
    """PUT /lfs/{oid}: upload an object."""
    oid, size = call.path_params["oid"], call.query_params.get("size", "")
    call.hub.check_signature(call.query_params.get("signature", ""), "blob", oid, size)
    if not call.hub.store.blobs.adopt_lfs(call.spooled, oid, int(size)):
        raise BadRequest(f"Content does not have the announced size and sha256: {oid}")
    return Response(headers={"ETag": f'"{oid}"'})


def verify(call: Call) -> Response:
    """POST [/Ts]/{id}.git/info/lfs/objects/verify."""
    fields = call.fields()
    oid, size = get_field(fields, "oid", str), get_field(fields, "size", int)
    if not SHA256.fullmatch(oid) or call.hub.store.blobs.lfs_size(oid) != size:
        raise NotFound(f"Object was not uploaded: {oid}")
    return JSONResponse({"success": True})
