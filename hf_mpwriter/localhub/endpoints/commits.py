"""Endpoints of a commit: preupload chooses how each file is uploaded, commit applies the operations.

    {"key": "header", "value": {"summary", "description"[, "parentCommit"]}}
    {"key": "file", "value": {"path", "content", "encoding": "base64"}}
    {"key": "lfsFile", "value": {"path", "algo": "sha256", "oid", "size"}}
    {"key": "deletedFile" | "deletedFolder", "value": {"path"}}

All content is stored before the branch moves. Regular files arrive in the commit itself. LFS files must have been
uploaded before, by LFS or by Xet. Xet content is rebuilt here, verified against its sha256 and size, and stored as an
LFS blob.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
import re
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from hf_mpwriter.localhub.endpoints.routing import get_field
from hf_mpwriter.localhub.errors import BadRequest
from hf_mpwriter.localhub.storage.writing import Change, check_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from hf_mpwriter.localhub.endpoints.routing import Call
    from hf_mpwriter.localhub.storage.store import TreeEntry

LFS_OVER = 10 << 20  # bytes; larger files are always LFS
SHA256 = re.compile(r"[0-9a-f]{64}")


def preupload(call: Call) -> Response:
    """POST /api/Ts/{id}/preupload/{rev}."""
    if call.flag("create_pr"):
        raise BadRequest("Pull requests are not supported by this Hub")
    store = call.hub.store
    files = store.tree(*call.repo, call.path_params["rev"])
    lfs = [pattern for pattern, *words in _lines(call, files, ".gitattributes") if "filter=lfs" in words]
    ignored = [pattern for pattern, *_ in _lines(call, files, ".gitignore")]
    items = get_field(call.fields(), "files", list)
    return JSONResponse({"files": [_upload_mode(item, files, lfs, ignored) for item in items]})


def _lines(call: Call, files: Mapping[str, TreeEntry], path: str) -> list[list[str]]:
    if path not in files or files[path].lfs:
        return []
    with open(call.hub.store.blob_path(files[path]), "rb") as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def _upload_mode(item: Any, files: Mapping[str, TreeEntry], patterns: list[str], ignored: list[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRequest('"files" must hold objects')
    path, size = get_field(item, "path", str), get_field(item, "size", int)
    mode = "lfs" if size and (_matches(path, patterns) or size > LFS_OVER or _is_binary(item)) else "regular"
    answer = {"path": path, "uploadMode": mode, "shouldIgnore": _matches(path, ignored)}
    if present := files.get(path):
        answer["oid"] = present.sha256 if present.lfs else present.oid
    return answer


def _matches(path: str, patterns: list[str]) -> bool:
    """Return whether one of git's patterns matches a path; a pattern without a slash matches the file name."""
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns)


def _is_binary(item: dict[str, Any]) -> bool:
    try:
        sample = base64.b64decode(item.get("sample") or "", validate=True)
    except (binascii.Error, TypeError):
        raise BadRequest('"sample" must be base64') from None
    # The sample may end inside a multi-byte character; that alone does not make it binary.
    text = sample.decode("utf-8", "replace").rstrip("\ufffd")
    return "\ufffd" in text or "\0" in text


def turn(call: Call) -> AbstractContextManager[None]:
    """Hold the repository while its commit is in progress."""
    return call.hub.usage.turn(call.repo)


def commit(call: Call) -> Response:
    """POST /api/Ts/{id}/commit/{rev}."""
    if call.flag("create_pr"):
        raise BadRequest("Pull requests are not supported by this Hub")
    store, branch = call.hub.store, call.path_params["rev"]
    store.resolve(*call.repo, branch)
    header: dict[str, Any] = {}
    changes: list[Change] = []
    operations = _operations(call.content)
    _materialise(call, [value.get("oid") for key, value in operations if key == "lfsFile"])
    for key, value in operations:
        if key == "header":
            header = value
        else:
            changes.append(_change(call, key, value))
    with call.hub.usage.commit(call.repo, time.monotonic()):
        new = store.apply(
            *call.repo,
            branch,
            changes,
            title=get_field(header, "summary", str),
            message=str(header.get("description") or ""),
            author=call.hub.config.user,
            parent=header.get("parentCommit"),
        )
    return JSONResponse(
        {
            "success": True,
            "commitOid": new.oid,
            "commitUrl": f"{call.repo_url}/commit/{new.oid}",
            "hookOutput": "",
        }
    )


def _operations(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    operations = []
    for line in body.splitlines():
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            operations.append((str(item["key"]), dict(item["value"])))
        except (ValueError, TypeError, KeyError):
            raise BadRequest("Invalid line in commit") from None
    return operations


def _change(call: Call, key: str, value: dict[str, Any]) -> Change:
    path = get_field(value, "path", str)
    if key == "file":
        return Change("put", check_path(path), call.hub.store.put_regular(_content(value)))
    if key == "lfsFile":
        return Change("put", check_path(path), _lfs_entry(call, value))
    if key == "deletedFile":
        return Change("delete", path)
    if key == "deletedFolder":
        return Change("delete_folder", path)
    raise BadRequest(f"Unknown operation: {key}")


def _content(value: dict[str, Any]) -> bytes:
    content = get_field(value, "content", str)
    if value.get("encoding", "utf-8") != "base64":
        return str(content).encode()
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        raise BadRequest("Invalid base64 in commit") from None


def _materialise(call: Call, oids: list[Any]) -> None:
    """Make blobs of what has come by Xet."""
    blobs, xet = call.hub.store.blobs, call.hub.xet
    named = (oid for oid in oids if isinstance(oid, str) and SHA256.fullmatch(oid))
    if xet:
        xet.materialise(oid for oid in named if blobs.lfs_size(oid) is None)


def _lfs_entry(call: Call, value: dict[str, Any]) -> TreeEntry:
    """Return the entry for uploaded LFS content, or refuse if it is missing."""
    oid, size = get_field(value, "oid", str), value.get("size")
    if not SHA256.fullmatch(oid):
        raise BadRequest(f"Invalid LFS oid: {oid}")
    blobs, xet = call.hub.store.blobs, call.hub.xet
    found = blobs.lfs_size(oid)
    if found is None or (size is not None and size != found):
        raise BadRequest(f"LFS pointer pointed to a file that does not exist: {oid}")
    return call.hub.store.lfs_entry(oid, found, xet.hash_of(oid) if xet else None)
