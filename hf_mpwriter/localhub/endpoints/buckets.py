"""Endpoints of buckets.

Content comes and goes by Xet, as of repositories; `batch` names it by its Xet hash:

    {"type": "addFile", "path", "xetHash", "mtime"[, "contentType"]}
    {"type": "copyFile", "path", "xetHash", "mtime", "sourceRepoType", "sourceRepoId"}
    {"type": "deleteFile", "path"}

A batch is not transactional: what can be done is done, and the response names what failed.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

from anyio import from_thread
from starlette.responses import JSONResponse, Response, StreamingResponse

from hf_mpwriter.localhub import buckets
from hf_mpwriter.localhub.buckets import BucketContent, BucketFile, file_json, iso
from hf_mpwriter.localhub.config import USER
from hf_mpwriter.localhub.endpoints.api import FILES_PER_PAGE, file_headers, page
from hf_mpwriter.localhub.endpoints.cas import xet_of
from hf_mpwriter.localhub.endpoints.routing import SHA256, Call, get_field, in_threads
from hf_mpwriter.localhub.errors import BadRequest, EntryNotFound, Exists, RangeNotSatisfiable, Refusal
from hf_mpwriter.localhub.store import BUCKET, REPO_TYPES, Repo, check_path
from hf_mpwriter.localhub.xet import XetStore

OPERATIONS = 1000  # of one batch, as the client sends them
BUCKETS_PER_PAGE = 100
EMPTY = "0" * 64  # the Xet hash of no bytes, for which no shard is uploaded
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def create(call: Call) -> Response:
    """POST /api/buckets/{id}."""
    url = call.repo_url
    try:
        buckets.create(call.hub.store, call.repo[1], private=call.fields().get("visibility") == "private")
    except Exists as refusal:
        raise Exists(refusal.message, url=url) from None
    return JSONResponse({"url": url, "name": call.repo[1]})


def info(call: Call) -> Response:
    """GET /api/buckets/{id}."""
    store = call.hub.store
    return JSONResponse(_info_json(store.repo_info(*call.repo), buckets.read(store, call.repo[1])))


def _info_json(repo: Repo, bucket: BucketContent) -> dict[str, Any]:
    times = {"createdAt": repo.created, "updatedAt": iso(bucket.updated)}
    return {"id": repo.id, "private": repo.private, **times, "size": bucket.size, "totalFiles": len(bucket.files)}


def list_all(call: Call) -> Response:
    """GET /api/buckets/{namespace}."""
    store, search = call.hub.store, call.query_params.get("search", "")
    namespace = call.path_params["namespace"]
    prefix = f"{USER if namespace == 'me' else namespace}/"
    found = [repo for repo in store.repos((BUCKET,)) if repo.id.startswith(prefix) and search in repo.id]
    return page(call, [_info_json(repo, buckets.read(store, repo.id)) for repo in found], BUCKETS_PER_PAGE)


def delete(call: Call) -> Response:
    """DELETE /api/buckets/{id}."""
    call.hub.store.delete_repo(*call.repo)
    from_thread.run_sync(call.hub.feeds.drop, call.repo[1])
    return Response(status_code=204)


def settings(call: Call) -> Response:
    """PUT /api/buckets/{id}/settings."""
    private = get_field(call.fields(), "private", bool)
    call.hub.store.set_private(*call.repo, private=private)
    return JSONResponse({"private": private})


def move(call: Call) -> Response:
    """POST /api/repos/move, of buckets only."""
    fields = call.fields()
    if fields.get("type") != BUCKET:
        raise BadRequest("This Hub moves buckets only")
    source, target = get_field(fields, "fromRepo", str), get_field(fields, "toRepo", str)
    call.hub.store.move_repo(BUCKET, source, target)
    from_thread.run_sync(call.hub.feeds.drop, source)
    return Response("OK")


def tree(call: Call) -> Response:
    """GET /api/buckets/{id}/tree[/{prefix}]: files whose path begins with the prefix; the next level, or all below."""
    prefix = call.path_params["path"].removeprefix("/")
    shown: dict[str, dict[str, Any]] = {}
    for path, file in buckets.read(call.hub.store, call.repo[1]).files.items():
        if not path.startswith(prefix):
            continue
        end = path.find("/", len(prefix) + 1 if prefix else 0)
        if end < 0 or call.flag("recursive"):
            shown[path] = _entry(path, file)
            continue
        folder = {"type": "directory", "path": path[:end], "uploadedAt": iso(file.uploaded)}
        other = shown.setdefault(path[:end] + "/", folder)
        other["uploadedAt"] = max(other["uploadedAt"], folder["uploadedAt"])
    return page(call, [shown[path] for path in sorted(shown)], FILES_PER_PAGE)


def _entry(path: str, file: BucketFile) -> dict[str, Any]:
    return {"type": "file", "path": path, **file_json(file)}


def paths_info(call: Call) -> Response:
    """POST /api/buckets/{id}/paths-info; what is not a file is omitted."""
    files = buckets.read(call.hub.store, call.repo[1]).files
    wanted = get_field(call.fields(), "paths", list)
    return JSONResponse([_entry(path, files[path]) for path in wanted if isinstance(path, str) and path in files])


def resolve(call: Call) -> Response:
    """HEAD and GET /buckets/{id}/resolve/{path}, whole or a range."""
    path = call.path_params["path"]
    file = buckets.read(call.hub.store, call.repo[1]).files.get(path)
    if file is None:
        raise EntryNotFound(f"{path} does not exist in {call.repo[1]}")
    xet = xet_of(call)
    start, end = _range(call.headers.get("range", ""), file.size)
    etag = f'"{file.xet_hash}"'
    headers = {"Content-Length": str(end - start), "X-Linked-Size": str(file.size), "X-Linked-ETag": etag}
    headers |= file_headers(call, etag, file.xet_hash, "")
    is_part = end - start < file.size
    if is_part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    record = xet.file(file.xet_hash)
    if call.method == "HEAD" or record is None:
        return Response(headers=headers)
    return StreamingResponse(in_threads(xet.read(record, start, end)), 206 if is_part else 200, headers)


def _range(header: str, size: int) -> tuple[int, int]:
    """Return the bytes that a header asks for; all, unless it asks for one range."""
    match = _RANGE.fullmatch(header)
    if not match or not any(match.groups()):
        return 0, size
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if not start < end:
        refusal = RangeNotSatisfiable()
        refusal.headers = {"Content-Range": f"bytes */{size}"}
        raise refusal
    return start, end


def batch(call: Call) -> Response:
    """POST /api/buckets/{id}/batch."""
    store, xet, bucket_id = call.hub.store, xet_of(call), call.repo[1]
    operations = [_operation(line) for line in call.content.splitlines() if line.strip()]
    if len(operations) > OPERATIONS:
        raise BadRequest(f"A batch has at most {OPERATIONS} operations")
    changes: dict[str, BucketFile | None] = {}
    failed = []
    with store.lock(*call.repo):
        bucket = buckets.read(store, bucket_id)
        for path, operation in operations:
            try:
                file = _put(call, xet, operation)
                if file is None and not changes.get(path, bucket.files.get(path)):
                    raise EntryNotFound(f"{path} does not exist")
                changes[check_path(path)] = file
            except Refusal as refusal:
                failed.append({"path": path, "error": refusal.message})
        if changes:
            done = buckets.change(store, bucket_id, bucket, changes)
            from_thread.run_sync(call.hub.feeds.publish, bucket_id, bucket.updated, done)
    told = {"success": not failed, "processed": len(operations), "succeeded": len(operations) - len(failed)}
    return JSONResponse({**told, "failed": failed}, 422 if failed and not changes else 200)


def _operation(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        operation = dict(json.loads(line))
    except (ValueError, TypeError):
        raise BadRequest("Invalid line in batch") from None
    if operation.get("type") not in ("addFile", "copyFile", "deleteFile"):
        raise BadRequest(f"Unknown operation: {operation.get('type')}")
    return get_field(operation, "path", str), operation


def _put(call: Call, xet: XetStore, operation: dict[str, Any]) -> BucketFile | None:
    """Return the file that an operation makes, None if it deletes one."""
    if operation["type"] == "deleteFile":
        return None
    if operation["type"] == "copyFile":
        source = str(operation.get("sourceRepoType"))
        if source not in (*REPO_TYPES, BUCKET):
            raise BadRequest(f"Invalid repo type: {source}")
        call.hub.store.repo_info(source, get_field(operation, "sourceRepoId", str))
    xet_hash, mtime = get_field(operation, "xetHash", str), get_field(operation, "mtime", int)
    record = xet.file(xet_hash) if SHA256.fullmatch(xet_hash) else None
    if record is None and xet_hash != EMPTY:
        raise BadRequest(f"No content with this Xet hash was uploaded: {xet_hash}")
    if not 0 <= mtime < 1 << 47:
        raise BadRequest(f"Invalid mtime: {mtime}")
    return BucketFile(record.size if record else 0, xet_hash, 0, mtime)


def events(call: Call) -> Response:
    """GET /api/buckets/{id}/events: the feed, from after `cursor` or `since`, or from now on."""
    bucket = buckets.read(call.hub.store, call.repo[1])
    follow = call.hub.feeds.follow(call.repo[1], bucket.updated, _place(call))
    return StreamingResponse(follow, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _place(call: Call) -> int | None:
    cursor, since = (call.query_params.get(name) for name in ("cursor", "since"))
    try:
        if cursor is not None:
            return int(cursor)
        return round(dt.datetime.fromisoformat(since).timestamp() * 1000) if since else None
    except (ValueError, OverflowError):
        raise BadRequest(f"Invalid place in the feed: {cursor or since}") from None
