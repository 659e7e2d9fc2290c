"""Endpoints of LFS: batch lists what is missing, PUT uploads it, verify checks that it arrived.

Upload URLs need no token: at the real Hub they lead to another service. A signature in the query protects them. Large
objects arrive in parts, which stay in `tmp/parts/<upload>/<number>` until the upload is complete.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from hf_mpwriter.localhub.endpoints.commits import SHA256
from hf_mpwriter.localhub.endpoints.routing import get_field
from hf_mpwriter.localhub.errors import BadRequest, NotFound
from hf_mpwriter.localhub.storage.blobs import COPY_BYTES, file_sha256, make_dirs

if TYPE_CHECKING:
    from hf_mpwriter.localhub.endpoints.routing import Call

PART_BYTES = 5 << 20
LFS_JSON = "application/vnd.git-lfs+json"


def batch(call: Call) -> Response:
    """POST [/Ts]/{id}.git/info/lfs/objects/batch."""
    call.hub.store.repo_info(*call.repo)
    fields = call.fields()
    parts_allowed = "multipart" in (fields.get("transfers") or [])
    objects = [_offer(call, item, parts_allowed=parts_allowed) for item in get_field(fields, "objects", list)]
    in_parts = any("header" in item.get("actions", {}).get("upload", {}) for item in objects)
    transfer = "multipart" if in_parts else "basic"
    return JSONResponse({"transfer": transfer, "objects": objects}, media_type=LFS_JSON)


def _offer(call: Call, item: Any, *, parts_allowed: bool) -> dict[str, Any]:
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
    in_parts = parts_allowed and size > call.hub.config.multipart_over
    whole = {"href": f"{call.endpoint}/lfs/{oid}?size={size}&signature={call.hub.sign('blob', oid, size)}"}
    upload = _parts_offer(call, oid, size) if in_parts else whole
    verify = {"href": f"{call.repo_url}.git/info/lfs/objects/verify"}
    return answer | {"authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _parts_offer(call: Call, oid: str, size: int) -> dict[str, Any]:
    hub, upload = call.hub, secrets.token_hex(12)
    header = {"chunk_size": str(PART_BYTES)}
    for number in range(1, math.ceil(size / PART_BYTES) + 1):
        signature = hub.sign("part", upload, number)
        header[f"{number:05d}"] = f"{call.endpoint}/lfs/parts/{upload}/{number}?signature={signature}"
    signature = hub.sign("complete", upload, oid, size)
    complete = f"{call.endpoint}/lfs/complete/{upload}?oid={oid}&size={size}&signature={signature}"
    return {"href": complete, "header": header}


def put_blob(call: Call) -> Response:
    """PUT /lfs/{oid}: upload an object in one part."""
    oid, size = call.path_params["oid"], call.query_params.get("size", "")
    call.hub.check_signature(call.query_params.get("signature", ""), "blob", oid, size)
    _adopt(call, call.spooled, oid, int(size))
    return Response(headers={"ETag": f'"{oid}"'})


def _adopt(call: Call, temporary: str, oid: str, size: int) -> None:
    if not call.hub.store.blobs.adopt_lfs(temporary, oid, size):
        raise BadRequest(f"Content does not have the announced size and sha256: {oid}")


def put_part(call: Call) -> Response:
    """PUT /lfs/parts/{upload}/{number}: upload one part of a large object."""
    upload, number = call.path_params["upload"], call.path_params["number"]
    call.hub.check_signature(call.query_params.get("signature", ""), "part", upload, number)
    folder = _parts_dir(call, upload)
    make_dirs(folder)
    etag = file_sha256(call.spooled)
    os.replace(call.spooled, os.path.join(folder, number))
    return Response(headers={"ETag": f'"{etag}"'})


def _parts_dir(call: Call, upload: str) -> str:
    return os.path.join(call.hub.store.disk.tmp, "parts", upload)


def complete(call: Call) -> Response:
    """POST /lfs/complete/{upload}: join the parts and store the object."""
    upload, oid, size = call.path_params["upload"], call.query_params.get("oid", ""), call.query_params.get("size", "")
    call.hub.check_signature(call.query_params.get("signature", ""), "complete", upload, oid, size)
    parts = get_field(call.fields(), "parts", list)
    if len(parts) != math.ceil(int(size) / PART_BYTES):
        raise BadRequest("Number of parts differs from what was offered")
    if call.hub.store.blobs.lfs_size(oid) == int(size):
        return JSONResponse({"success": True})  # repeated because the first response was lost
    folder = _parts_dir(call, upload)
    joined = call.hub.store.disk.scratch()
    with open(joined, "xb") as target:
        for part in parts:
            _append_part(folder, part, target)
    _adopt(call, joined, oid, int(size))
    shutil.rmtree(folder, ignore_errors=True)
    return JSONResponse({"success": True})


def _append_part(folder: str, part: Any, target: Any) -> None:
    number, etag = get_field(part, "partNumber", int), get_field(part, "etag", str)
    path = os.path.join(folder, str(number))
    if not os.path.exists(path) or file_sha256(path) != etag.strip('"'):
        raise BadRequest(f"Part {number} is missing or has a different ETag")
    with open(path, "rb") as source:
        while data := source.read(COPY_BYTES):
            target.write(data)


def verify(call: Call) -> Response:
    """POST [/Ts]/{id}.git/info/lfs/objects/verify."""
    fields = call.fields()
    oid, size = get_field(fields, "oid", str), get_field(fields, "size", int)
    if not SHA256.fullmatch(oid) or call.hub.store.blobs.lfs_size(oid) != size:
        raise NotFound(f"Object was not uploaded: {oid}")
    return JSONResponse({"success": True})
