"""Endpoints of the Hub's API: the account, repositories, branches, history, commits, and content.

`preupload` chooses how each file is uploaded, and `commit` applies the operations:

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
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.responses import FileResponse, JSONResponse, Response

from hf_mpwriter.localhub.config import USER
from hf_mpwriter.localhub.endpoints.routing import SHA256, Call, get_field, raw_path, repo_url
from hf_mpwriter.localhub.errors import BadRequest, EntryNotFound, Exists, Forbidden
from hf_mpwriter.localhub.store import (
    MAIN,
    REPO_TYPES,
    Change,
    Commit,
    TreeEntry,
    check_path,
    last_changes,
    lfs_pointer,
)

COMMITS_PER_PAGE = 100
FILES_PER_PAGE = 1000
LFS_OVER = 10 << 20  # bytes; larger files are always LFS
#: The part of the real Hub's file in new model and dataset repositories that decides about uploads of this package.
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.gz", "*.npy", "*.npz", "*.pt", "*.pth", "*.safetensors", "*.zip", "*tfevents*")
).encode()


def whoami(call: Call) -> Response:
    """GET /api/whoami-v2."""
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": call.role}}
    return JSONResponse({"type": "user", "id": _hex_id(USER), "name": USER, "fullname": USER, "orgs": [], "auth": auth})


def validate_yaml(_: Call) -> Response:
    """POST /api/validate-yaml: accept any model card."""
    return JSONResponse({"errors": [], "warnings": []})


def telemetry(_: Call) -> Response:
    """POST /v1/telemetry, from the Xet client: accept and ignore."""
    return Response(status_code=204)


def _named_repo(call: Call) -> tuple[str, str]:
    fields = call.fields()
    repo_type = fields.get("type") or "model"
    if repo_type not in REPO_TYPES:
        raise BadRequest(f"Invalid repo type: {repo_type}")
    namespace, _, name = str(get_field(fields, "name", str)).rpartition("/")
    return repo_type, f"{fields.get('organization') or namespace or USER}/{name}"


def create_repo(call: Call) -> Response:
    """POST /api/repos/create."""
    repo_type, repo_id = _named_repo(call)
    if call.role != "write":
        namespace = repo_id.rpartition("/")[0]
        raise Forbidden(f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')
    fields = call.fields()
    private = fields.get("visibility") == "private" or bool(fields.get("private"))
    files = {} if repo_type == "space" else {".gitattributes": GITATTRIBUTES}
    url = repo_url(call.endpoint, repo_type, repo_id)
    try:
        call.hub.store.create_repo(repo_type, repo_id, private=private, author=USER, files=files)
    except Exists as refusal:
        raise Exists(refusal.message, url=url) from None
    return JSONResponse({"url": url, "name": repo_id, "id": _hex_id(repo_id)})


def delete_repo(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    call.hub.store.delete_repo(*_named_repo(call))
    return Response("OK")


def repo_info(call: Call) -> Response:
    """GET /api/Ts/{id}[/revision/{rev}]."""
    repo = call.hub.store.repo_info(*call.repo)
    history = call.hub.store.history(*call.repo, call.path_params.get("rev", MAIN))
    head = next(history)
    siblings = [_sibling(call, head, path) for path in head.tree]
    return JSONResponse(
        {
            "_id": _hex_id(repo.id),
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": head.oid,
            "lastModified": head.date,
            "createdAt": repo.created,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            **({"modelId": repo.id} if repo.type == "model" else {}),
        }
    )


def _sibling(call: Call, head: Commit, path: str) -> dict[str, Any]:
    if not call.flag("blobs"):
        return {"rfilename": path}
    described = file_json(path, head.tree[path])
    lfs = described.get("lfs")
    more = {"lfs": {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}} if lfs else {}
    return {"rfilename": path, "size": described["size"], "blobId": described["oid"], **more}


def commits(call: Call) -> Response:
    """GET /api/Ts/{id}/commits/{rev}."""
    history = call.hub.store.commits(*call.repo, call.path_params["rev"])
    return page(call, [_commit_json(commit) for commit in history], COMMITS_PER_PAGE)


def _commit_json(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "date": commit.date,
        "authors": [{"user": commit.author}],
        "parents": [commit.parent] if commit.parent else [],
        "formatted": {"title": commit.title, "message": commit.message},
    }


def refs(call: Call) -> Response:
    """GET /api/Ts/{id}/refs."""
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
        for name, oid in call.hub.store.branches(*call.repo).items()
    ]
    return JSONResponse({"branches": branches, "converts": [], "tags": [], "pullRequests": []})


def create_branch(call: Call) -> Response:
    """POST /api/Ts/{id}/branch/{rev}."""
    start = call.fields().get("startingPoint") or MAIN
    call.hub.store.create_branch(*call.repo, call.path_params["rev"], str(start))
    return JSONResponse({"ok": True})


def delete_branch(call: Call) -> Response:
    """DELETE /api/Ts/{id}/branch/{rev}."""
    call.hub.store.delete_branch(*call.repo, call.path_params["rev"])
    return JSONResponse({"ok": True})


def super_squash(call: Call) -> Response:
    """POST /api/Ts/{id}/super-squash/{rev}."""
    message = call.fields().get("message") or f"Super-squash branch '{call.path_params['rev']}'"
    call.hub.store.squash(*call.repo, call.path_params["rev"], message=str(message), author=USER)
    return JSONResponse({"ok": True})


def _hex_id(text: str) -> str:
    """Return a stable id of 24 hex digits, the format of the real Hub's database ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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
    """HEAD and GET [/Ts]/{id}/resolve/{rev}/{path}, whole or a range."""
    store = call.hub.store
    commit = store.commit(*call.repo, call.path_params["rev"])
    entry = store.entry(*call.repo, call.path_params["path"], commit.oid)
    return FileResponse(store.blob_path(entry), headers=_content_headers(call, commit, entry))


def _content_headers(call: Call, commit: Commit, entry: TreeEntry) -> dict[str, str]:
    etag = f'"{entry.sha256 if entry.lfs else entry.oid}"'
    headers = {"X-Repo-Commit": commit.oid}
    if entry.lfs:
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": etag}
    return headers | file_headers(call, etag, entry.xet_hash, f"/{commit.oid}")


def file_headers(call: Call, etag: str, xet_hash: str | None, revision: str) -> dict[str, str]:
    """Return the headers that the content of a file has in a repository and in a bucket."""
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(call.path_params['path'].rpartition('/')[2])}",
    }
    if call.hub.xet and xet_hash:
        repo_type, repo_id = call.repo
        route = f"{call.endpoint}/api/{repo_type}s/{repo_id}/xet-read-token{revision}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}
    return headers


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
    with call.hub.quota.commit(call.repo, time.monotonic()):
        new = store.apply(
            *call.repo,
            branch,
            changes,
            title=get_field(header, "summary", str),
            message=str(header.get("description") or ""),
            author=USER,
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
