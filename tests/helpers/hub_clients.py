"""Clients of a local Hub: the real one in a process of its own, and single requests; and the Hub's log of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import subprocess
import sys
import textwrap

from hf_mpwriter.localhub import LocalHub

CLIENT_SECONDS = 200
ANY_TOKEN = "hf_any"  # a Hub without a token believes any

PRELUDE = """
import hashlib, json, os, random, sys
from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete, HfApi, ModelCard
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    BadRequestError, HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
)
api = HfApi()
seen = {}
def refused(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        response = getattr(error, "response", None)
        return response.status_code if response is not None else type(error).__name__
    raise AssertionError(f"{call} was not refused")
"""


def popen_client(hub: LocalHub, home: os.PathLike[str], code: str, *, xet: bool = False, token: str | None = ANY_TOKEN):
    """Start the real client with a home of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "0" if xet else "1"}
    if token is not None:
        environment["HF_TOKEN"] = token
    script = PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(seen))\n"
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def client_result(process):
    """Wait for a client and return what it saw."""
    try:
        out, err = process.communicate(timeout=CLIENT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def client(hub: LocalHub, home: os.PathLike[str], code: str, *, xet: bool = False, token: str | None = ANY_TOKEN):
    """Run the real client and return what it saw."""
    return client_result(popen_client(hub, home, code, xet=xet, token=token))


def requests_of(hub: LocalHub, since: int = 0):
    """Return the requests that the Hub logged, from a byte offset of the log on."""
    with open(os.path.join(hub.root, "requests.jsonl"), "rb") as file:
        file.seek(since)
        return [json.loads(line) for line in file]


def log_end(hub: LocalHub) -> int:
    """Return the present end of the request log."""
    return os.path.getsize(os.path.join(hub.root, "requests.jsonl"))


SECONDS = 200
REPO = ("model", "local-user/r")


def ask(hub: LocalHub, method: str, path: str, body: object = None, headers: dict[str, str] | None = None):
    """Send one request and return status, headers and body."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path.removeprefix(hub.endpoint), body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def commit(hub: LocalHub, *operations: tuple[str, dict[str, object]], parent: str | None = None, branch: str = "main"):
    """Post a commit and return status and JSON."""
    header = {"summary": "s", "description": ""} | ({"parentCommit": parent} if parent else {})
    lines = [{"key": key, "value": value} for key, value in (("header", header), *operations)]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    status, _, answer = ask(hub, "POST", f"/api/models/local-user/r/commit/{branch}", body)
    return status, json.loads(answer)


def file(path: str, content: bytes) -> tuple[str, dict[str, object]]:
    """Return the operation that puts a regular file."""
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def offer(hub: LocalHub, content: bytes):
    """Ask for an upload and return oid and actions."""
    oid = hashlib.sha256(content).hexdigest()
    body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(content)}]}
    status, _, answer = ask(hub, "POST", "/local-user/r.git/info/lfs/objects/batch", body)
    assert status == 200
    return oid, json.loads(answer)["objects"][0].get("actions")
