"""Endpoints of the account and of repositories: whoami, create, delete, info, branches, history, squash."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from hf_mpwriter.localhub.endpoints.content import file_json, page
from hf_mpwriter.localhub.endpoints.routing import get_field, repo_url
from hf_mpwriter.localhub.errors import BadRequest, Exists, Forbidden
from hf_mpwriter.localhub.storage.store import MAIN, REPO_TYPES

if TYPE_CHECKING:
    from hf_mpwriter.localhub.endpoints.routing import Call
    from hf_mpwriter.localhub.storage.store import Commit

COMMITS_PER_PAGE = 100
#: The part of the real Hub's file in new model and dataset repositories that decides about uploads of this package.
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.gz", "*.npy", "*.npz", "*.pt", "*.pth", "*.safetensors", "*.zip", "*tfevents*")
).encode()


def whoami(call: Call) -> Response:
    """GET /api/whoami-v2."""
    user = call.hub.config.user
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": call.role}}
    return JSONResponse({"type": "user", "id": _hex_id(user), "name": user, "fullname": user, "orgs": [], "auth": auth})


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
    return repo_type, f"{fields.get('organization') or namespace or call.hub.config.user}/{name}"


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
        call.hub.store.create_repo(repo_type, repo_id, private=private, author=call.hub.config.user, files=files)
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
    call.hub.store.squash(*call.repo, call.path_params["rev"], message=str(message), author=call.hub.config.user)
    return JSONResponse({"ok": True})


def _hex_id(text: str) -> str:
    """Return a stable id of 24 hex digits, the format of the real Hub's database ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
