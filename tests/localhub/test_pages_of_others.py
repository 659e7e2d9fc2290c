"""What a page of another address can have a browser send to a local Hub, and who may read and control one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from forks import in_child
from hub_clients import ask, commit, file, offer, requests_of
from shared_spools import ONE, TWO, modes, root_only
from starlette.routing import Route

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.config import CONTROL, READY_PATH, ServerError
from hf_mpwriter.localhub.endpoints.app import ROUTES, STYLE_PATH

SAMPLES = {  # of a part of a path, by its kind
    "api": "models/me/r",
    "bucket": "me/r",
    "cas": "0" * 12,
    "hash": "0" * 64,
    "part": "main",
    "path": "a",
    "repo": "me/r",
    "tail": "/a",
    "view": "me/r",
}
FORMS = (
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)
CHANGED = ("POST", "/api/repos/create", {"name": "r"})


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub without tokens."""
    with LocalHub(tmp_path_factory.mktemp("hub"), xet=False) as running:
        yield running


def example(route: Route) -> str:
    """A path of a route."""
    return re.sub(r"{\w+:(?:hub_)?(\w+)}", lambda match: SAMPLES[match[1]], route.path)


def changing() -> list[tuple[str, Route]]:
    """All routes that are not for reading, each with its method."""
    return [
        (method, route) for route in ROUTES for method in route.methods or {"POST"} if method not in ("GET", "HEAD")
    ]


@pytest.mark.parametrize(
    "told",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another port of localhost
        {"Sec-Fetch-Site": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_no_route_takes_a_change_from_a_page_of_another_address(hub, told):
    """Whatever it is for: each route of the table says so, before anything else."""
    headers = {name: value.format(port=hub.port) for name, value in told.items()}
    assert len(changing()) >= 20
    for method, route in changing():
        assert ask(hub, method, example(route), {}, headers)[0] == 403, route.path
    assert hub.store.repos() == []


@pytest.mark.parametrize("kind", FORMS)
def test_no_route_takes_a_form(hub, kind):
    """A page may have one sent anywhere. Where nothing is changed one is taken, and where the secret is asked for."""
    answers = {
        route.path: ask(hub, method, example(route), {}, {"Content-Type": kind})[0]
        for method, route in changing()
        if method == "POST"
    }
    assert {path for path, status in answers.items() if status != 415} == {
        "/api/{repo:hub_api}/paths-info/{rev:hub_part}",
        "/{repo:hub_view}/tensorboard/board/{path:path}",
        "/-/faults",
    }
    assert answers["/-/faults"] == 401
    assert hub.store.repos() == []


def test_the_hubs_own_pages_and_other_programs_may_change_something(tmp_path):
    """A browser says so; the client says nothing."""
    own = {"Origin": "http://127.0.0.1:{port}"}
    with LocalHub(tmp_path / "hub", xet=False) as hub:
        for number, told in enumerate([{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"} | own, own]):
            headers = {name: value.format(port=hub.port) for name, value in told.items()}
            headers["Content-Type"] = "application/json"
            assert ask(hub, "POST", "/api/repos/create", {"name": f"r{number}"}, headers)[0] == 200
        assert len(hub.store.repos()) == 4


def test_only_the_secret_controls_a_hub(tmp_path):
    """No token does. It is in a file of the folder, for a person and for `LocalHub`; the request log has nothing."""
    with LocalHub(tmp_path / "hub", token="hf_right", xet=False) as hub:
        hub.fault("/-/|/api/ 500 times=0")
        secret = (tmp_path / "hub" / "secret").read_text()
        for word in ("", "hf_right", "hf_right-read", secret[:-1], secret + "0"):
            headers = {"Authorization": f"Bearer {word}"} if word else {}
            for method, path, body in (
                ("POST", "faults", b"/commit/ 503"),
                ("GET", "faults", None),
                ("DELETE", "faults", None),
                ("PUT", "token", {"token": None}),
            ):
                assert ask(hub, method, f"/-/{path}", body, headers)[0] == 401
        others = {route.path for route in ROUTES if route.path.startswith(CONTROL) and route.endpoint.auth != "control"}
        assert others == {READY_PATH, STYLE_PATH}
        (standing,) = hub.faults()
        assert standing.hits == 0, "control requests are not hit"
        assert requests_of(hub) == []


def test_nothing_of_a_hub_is_for_others(tmp_path):
    """Whatever the umask: folders 0700, files 0600."""
    code = """
import os, sys
os.umask(0)
from hf_mpwriter.localhub import LocalHub
with LocalHub(sys.argv[1], xet=True) as hub:
    print(hub.port, flush=True)
    sys.stdin.readline()
"""
    root = tmp_path / "above" / "hub"
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        hub = LocalHub(root, port=int(process.stdout.readline()))
        assert ask(hub, *CHANGED)[0] == 200
        oid, actions = offer(hub, b"content")
        assert ask(hub, "PUT", actions["upload"]["href"], b"content")[0] == 200
        lfs = ("lfsFile", {"path": "a.tfevents", "algo": "sha256", "oid": oid, "size": 7})
        assert commit(hub, file("small", b"x"), lfs)[0] == 200
        assert ask(hub, "GET", "/local-user/r/tensorboard")[0] == 200
        found = modes(str(root))
        process.stdin.close()
        process.wait()
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}
    assert {"secret", "server.log", "requests.jsonl"} < found.keys()
    assert any(path.startswith("tmp/") for path in found), "of the board, too"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o1777, 0o711])
def test_a_folder_that_is_not_the_users_alone_is_refused(tmp_path, mode):
    """Others may have put things there, such as a secret that they know. It stays as it is."""
    root = tmp_path / "hub"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(ServerError, match="has to be yours alone"):
        LocalHub(root, xet=False).start()
    command = [sys.executable, "-m", "hf_mpwriter", "hub", "--root", str(root), "--port", "0"]
    if mode == 0o755:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "Another folder: --root" in done.stderr) == (1, True), done.stderr
    assert os.listdir(root) == []


@root_only
@pytest.mark.root
def test_another_user_reads_nothing_of_a_hub_with_a_token(open_place):
    """Two accounts of a machine; nor does a Hub begin in a folder of the other one."""
    root = open_place / "hub"
    open_place.chmod(0o1777)
    told = json.dumps({"name": "r", "private": True}).encode()

    def be(user: int) -> None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

    with LocalHub(root, xet=False, token="hf_right") as hub:
        assert ask(hub, "POST", "/api/repos/create", told, {"Authorization": "Bearer hf_right"})[0] == 200

        def read() -> None:
            be(TWO)
            for path in (root, *(root / name for name in ("secret", "server.log", "requests.jsonl", "repos", "blobs"))):
                with pytest.raises(PermissionError):
                    os.open(path, os.O_RDONLY)
            assert ask(hub, "GET", "/api/models/local-user/r")[0] == 401
            assert ask(hub, "GET", "/-/faults")[0] == 401

        def make() -> None:
            be(ONE)
            (open_place / "theirs").mkdir(mode=0o700)

        assert [in_child(read), in_child(make)] == [0, 0]
    with pytest.raises(ServerError, match="has to be yours alone"):
        LocalHub(open_place / "theirs", xet=False).start()
