"""Endpoints that return content: tree, paths-info, resolve."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, quote, urlencode

from starlette.responses import JSONResponse, Response, StreamingResponse

from hf_mpwriter.localhub.endpoints.routing import raw_path
from hf_mpwriter.localhub.errors import BadRequest, EntryNotFound, RangeNotSatisfiable
from hf_mpwriter.localhub.storage.blobs import COPY_BYTES, lfs_pointer
from hf_mpwriter.localhub.storage.store import last_changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hf_mpwriter.localhub.endpoints.routing import Call
    from hf_mpwriter.localhub.storage.store import Commit, TreeEntry

FILES_PER_PAGE = 1000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def file_json(path: str, entry: TreeEntry) -> dict[str, Any]:
    """Return a file as the tree endpoint lists it."""
    shown: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.lfs:
        pointer = len(lfs_pointer(entry.sha256, entry.size))
        shown["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer}
    if entry.xet_hash:
        shown["xetHash"] = entry.xet_hash
    return shown


def page(call: Call, items: list[dict[str, Any]], per_page: int) -> Response:
    """Return one page of a list, with an absolute link to the next page."""
    start = _number(call.query_params.get("cursor", "0"))
    limit = max(1, min(per_page, _number(call.query_params.get("limit", str(per_page)))))
    headers = {}
    if start + limit < len(items):
        query = dict(call.query_params) | {"cursor": str(start + limit)}
        headers["Link"] = f'<{call.endpoint}{raw_path(call.scope)}?{urlencode(query)}>; rel="next"'
    return JSONResponse(items[start : start + limit], headers=headers)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise BadRequest(f"Invalid number: {text!r}")
    return int(text)


def tree(call: Call) -> Response:
    """GET /api/Ts/{id}/tree/{rev}[/{path}]."""
    head = call.hub.store.commit(*call.repo, call.path_params["rev"])
    folder = call.path_params["path"].strip("/")
    items = _listing(head.tree, folder, recursive=call.flag("recursive"))
    if folder and not items:
        raise EntryNotFound(f"{folder} does not exist on {call.path_params['rev']}")
    return page(call, _expanded(call, items) if call.flag("expand") else items, FILES_PER_PAGE)


def _listing(files: Mapping[str, TreeEntry], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = folder + "/" if folder else ""
    shown: dict[str, dict[str, Any]] = {}
    for path, entry in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            directory = prefix + "/".join(parts[:depth])
            shown.setdefault(directory, _directory_json(directory, files))
        if recursive or len(parts) == 1:
            shown[path] = file_json(path, entry)
    return [shown[path] for path in sorted(shown)]


def _directory_json(path: str, files: Mapping[str, TreeEntry]) -> dict[str, Any]:
    """Return a directory as the tree endpoint lists it; like git's, its oid depends on everything below it."""
    inside = sorted((name, entry.oid) for name, entry in files.items() if name.startswith(path + "/"))
    oid = hashlib.sha1(json.dumps(inside).encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def paths_info(call: Call) -> Response:
    """POST /api/Ts/{id}/paths-info/{rev}, form-encoded; missing paths are omitted."""
    form = parse_qs(call.content.decode(), keep_blank_values=True)
    files = call.hub.store.tree(*call.repo, call.path_params["rev"])
    items = []
    for path in (path.strip("/") for path in form.get("paths", [])):
        if path in files:
            items.append(file_json(path, files[path]))
        elif any(name.startswith(path + "/") for name in files):
            items.append(_directory_json(path, files))
    expand = form.get("expand", [""])[-1].lower() in ("1", "true")
    return JSONResponse(_expanded(call, items) if expand else items)


def _expanded(call: Call, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = {item["path"]: item for item in items}
    history = call.hub.store.history(*call.repo, call.path_params["rev"])
    for path, commit in last_changes(wanted, history).items():
        wanted[path]["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
    return items


def resolve(call: Call) -> Response:
    """HEAD and GET [/Ts]/{id}/resolve/{rev}/{path}."""
    store = call.hub.store
    commit = store.commit(*call.repo, call.path_params["rev"])
    entry = store.entry(*call.repo, call.path_params["path"], commit.oid)
    headers = _content_headers(call, commit, entry)
    if call.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(entry.size)})
    start, end = _byte_range(call.headers.get("range"), entry.size)
    headers["Content-Length"] = str(end - start)
    if (start, end) != (0, entry.size):
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    status = 206 if "Content-Range" in headers else 200
    return StreamingResponse(_read_range(open(store.blob_path(entry), "rb"), start, end), status, headers)


def _content_headers(call: Call, commit: Commit, entry: TreeEntry) -> dict[str, str]:
    etag = f'"{entry.sha256 if entry.lfs else entry.oid}"'
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(call.path_params['path'].rpartition('/')[2])}",
    }
    if entry.lfs:
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": etag}
    if call.hub.xet and entry.xet_hash:
        repo_type, repo_id = call.repo
        route = f"{call.endpoint}/api/{repo_type}s/{repo_id}/xet-read-token/{commit.oid}"
        headers |= {
            "X-Xet-Hash": entry.xet_hash,
            "X-Xet-Refresh-Route": route,
            "Link": f'<{route}>; rel="xet-auth"',
        }
    return headers


def _byte_range(header: str | None, size: int) -> tuple[int, int]:
    """Return the bytes [start, end) of a Range header; anything but one plain range means the whole file."""
    match = _RANGE.fullmatch(header or "")
    if not match or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise RangeNotSatisfiable
    return start, end


def _read_range(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes [start, end) of an open file, then close it."""
    with file:
        file.seek(start)
        left = end - start
        while left > 0 and (data := file.read(min(left, COPY_BYTES))):
            left -= len(data)
            yield data
