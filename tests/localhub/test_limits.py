"""Accounts and the quota of the local Hub, as the real client and as raw requests meet them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hub_clients import REPO, ask, client, commit, file, requests_of

from hf_mpwriter.cli.main import main
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.config import HOUR, HubConfig
from hf_mpwriter.localhub.endpoints.routing import BODY_LIMIT
from hf_mpwriter.localhub.errors import RateLimited, StaleParent
from hf_mpwriter.localhub.serving import RequestCount

WRITE, READ = "hf_write", "hf_write-read"  # tokens
WHOAMI = "/api/whoami-v2"


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A Hub with both tokens and a private repository."""
    with LocalHub(tmp_path_factory.mktemp("hub"), xet=False, token=WRITE) as hub:
        body = {"name": "r", "visibility": "private"}
        assert ask(hub, "POST", "/api/repos/create", body, bearer(WRITE))[0] == 200
        yield hub


def test_a_stranger_cannot_tell_a_private_repository_from_one_that_does_not_exist(guarded, tmp_path):
    """No token: 401 and RepositoryNotFoundError for both; a wrong one: 401 that says so; the right one sees it."""
    for path in ("/api/models/local-user/r", "/api/models/local-user/none", "/local-user/r/resolve/main/README.md"):
        status, headers, body = ask(guarded, "GET", path)
        assert (status, headers["X-Error-Code"]) == (401, "RepoNotFound")
        assert json.loads(body) == {"error": "Invalid username or password."}
        assert headers["WWW-Authenticate"].startswith("Bearer ")
        status, headers, _ = ask(guarded, "GET", path, headers=bearer("hf_wrong"))
        assert (status, headers["X-Error-Message"]) == (401, "Invalid credentials in Authorization header")
    code = """
    seen["info"] = refused(RepositoryNotFoundError, api.repo_info, "local-user/r")
    seen["whoami"] = refused(HfHubHTTPError, HfApi(token="hf_x").whoami)
    """
    assert client(guarded, tmp_path, code, token=None) == {"info": 401, "whoami": 401}
    assert client(guarded, tmp_path, 'seen["private"] = api.repo_info("local-user/r").private', token=READ)["private"]


def test_a_body_that_would_fill_the_memory_is_refused(tmp_path):
    """It is not read to its end: what is sent in pieces announces no length."""
    with LocalHub(tmp_path / "hub", xet=False) as hub:
        connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=60)
        connection.putrequest("POST", "/api/repos/create")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        piece, sent = b"%x\r\n%s\r\n" % (8 << 20, bytes(8 << 20)), 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent <= BODY_LIMIT:
                connection.send(piece)
                sent += 8 << 20
        assert connection.getresponse().status == 413
        assert ask(hub, "GET", WHOAMI)[0] == 200
        connection.close()


def test_only_what_the_real_client_sends_without_a_token_passes_without_one(guarded):
    """Every route of the table refuses a stranger, but those that carry a signature or reveal nothing."""
    from hf_mpwriter.localhub.endpoints.app import ROUTES

    known = {"harness": ("GET", "/api/agent-harnesses", 404), "yaml": ("POST", "/api/validate-yaml", 200)}
    for method, path, status in known.values():
        assert ask(guarded, method, path, {} if method == "POST" else None)[0] == status
    open_routes = {route.path for route in ROUTES if route.endpoint.auth == "none"}
    signed = {path for path in open_routes if "/lfs/" in path or "/fetch/" in path}
    assert len(signed) == 2
    assert open_routes - signed == {
        "/-/ready",
        "/-/style.css",
        "/api/validate-yaml",
        "/v1/telemetry",
        "/{path:path}",  # not found
    }


def test_a_read_token_reads_and_changes_nothing(guarded, tmp_path):
    """The real client reads a private repository with it; creating, committing and branching are refused with 403."""
    before = guarded.store.resolve(*REPO)
    seen = client(
        guarded,
        tmp_path,
        """
        repo = "local-user/r"
        seen["files"] = api.list_repo_files(repo)
        seen["role"] = api.whoami()["auth"]["accessToken"]["role"]
        seen["exists"] = str(api.create_repo(repo, exist_ok=True))
        def text(call, *args, **kwargs):
            try:
                call(*args, **kwargs)
            except HfHubHTTPError as error:
                return [error.response.status_code, error.server_message]
        seen["refused"] = [
            text(api.create_repo, "other"),
            text(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id=repo),
            text(api.create_branch, repo, branch="b"),
            text(api.super_squash_history, repo),
            text(api.delete_repo, repo),
        ]
        """,
        token=READ,
    )
    assert seen["files"] == [".gitattributes"]
    assert seen["role"] == "read"
    assert seen["exists"].endswith("/local-user/r")
    assert seen["refused"][0] == [403, 'You don\'t have the rights to create a model under the namespace "local-user"']
    assert seen["refused"][1:] == [[403, "You must use a write token to upload to a repository."]] * 4
    for path in ("commit/main", "preupload/main"):
        assert ask(guarded, "POST", f"/api/models/local-user/r/{path}", b"", bearer(READ))[0] == 403
    assert ask(guarded, "GET", "/api/models/local-user/r/xet-write-token/main", headers=bearer(READ))[0] == 403
    assert ask(guarded, "POST", "/local-user/r.git/info/lfs/objects/batch", b"", bearer(READ))[0] == 403
    assert guarded.store.resolve(*REPO) == before


def test_a_token_can_expire_while_the_hub_runs(tmp_path):
    """From one request to the next the old one is refused and the new one accepted, after a restart too."""
    with LocalHub(tmp_path, xet=False, token=WRITE) as hub:
        assert ask(hub, "GET", WHOAMI, headers=bearer(WRITE))[0] == 200
        hub.set_token("hf_new")
        for _ in range(2):
            tokens = (WRITE, READ, "hf_new-read", "hf_new")
            assert [ask(hub, "GET", WHOAMI, headers=bearer(token))[0] for token in tokens] == [401, 401, 200, 200]
            hub.kill()
            hub.start()
        assert "hf_new" not in json.dumps(requests_of(hub))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("evil.example:8765", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:80@evil.example", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ],
)
def test_a_request_that_was_sent_to_another_name_is_refused(guarded, host, status):
    """A page of a web site whose name leads to loopback (DNS rebinding) gets nothing, token or not."""
    assert ask(guarded, "GET", WHOAMI, headers={"Host": host, **bearer(WRITE)})[0] == status


def test_commits_above_the_quota_get_the_text_of_the_real_hub(tmp_path):
    """Two an hour: the third is refused and not applied; what was refused for another reason does not count."""
    with LocalHub(tmp_path / "hub", xet=False, commits_per_hour=2) as hub:
        assert ask(hub, "POST", "/api/repos/create", {"name": "r"})[0] == 200
        assert commit(hub, file("x", b"stale"), parent="0" * 40)[0] == 412
        assert [commit(hub, file("x", content))[0] for content in (b"1", b"2")] == [200, 200]
        seen = client(
            hub,
            tmp_path / "home",
            """
            try:
                api.upload_file(path_or_fileobj=b"3", path_in_repo="x", repo_id="local-user/r")
            except HfHubHTTPError as error:
                seen["answer"] = [error.response.status_code, error.server_message]
            """,
        )
        text = (
            "You have exceeded the rate limit for repository commits (2 per hour). "
            "You can retry this action in about 1 hour."
        )
        assert seen["answer"] == [429, text]
        assert hub.store.read_blob(*REPO, "x") == b"2"


def test_the_requests_of_an_account_are_told_and_limited(tmp_path):
    """Every answer tells what is left; above it 429, with the time until the window ends."""
    with LocalHub(tmp_path / "hub", xet=False, requests=2) as hub:
        seen = client(
            hub,
            tmp_path / "home",
            """
            from huggingface_hub import get_session
            from huggingface_hub.utils import parse_ratelimit_headers
            seen["answers"] = []
            for _ in range(3):
                answer = get_session().get(api.endpoint + "/api/whoami-v2")
                info = parse_ratelimit_headers(answer.headers)
                seen["answers"].append([answer.status_code, info.remaining, info.limit, info.window_seconds])
            """,
        )
        assert seen["answers"] == [[200, 1, 2, 300], [200, 0, 2, 300], [429, 0, 2, 300]]


def test_the_command_line_sets_fields_of_the_hub(tmp_path):
    """What waits for the next commit can be rehearsed in minutes; what is no field, value or fault is one line."""
    for option, word, told in (
        ("--set", "xat=true", "xat=true: there is no such field"),
        ("--set", "xet=yes", "xet=yes: not a value such as true"),
        ("--set", "commits_per_hour", "commits_per_hour: not a value such as 0"),
        ("--set", "commits_per_hour=Infinity", "commits_per_hour=Infinity: not a value such as 0"),
        ("--set", "commit_window=0", "commit_window=0: it is a number of seconds above 0"),
        ("--fault", "/commit/", "A fault is:"),
    ):
        refused = CliRunner().invoke(main, ["hub", "--root", str(tmp_path), option, word])
        assert refused.exit_code == 1
        assert told in refused.output
    command = [sys.executable, "-m", "hf_mpwriter", "hub", "--root", str(tmp_path), "--port", "0"]
    limits = ["--set", "xet=false", "--set", "commits_per_hour=1", "--set", "commit_window=240"]
    limits += ["--fault", f"GET {WHOAMI} 418"]
    with subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split(",")[0].split()[-1]
            hub = LocalHub(tmp_path, port=int(url.rpartition(":")[2]))
            assert [ask(hub, "GET", WHOAMI)[0] for _ in range(2)] == [418, 200]
            assert ask(hub, "POST", "/api/repos/create", {"name": "r"})[0] == 200
            assert commit(hub, file("x", b"1"))[0] == 200
            status, answer = commit(hub, file("x", b"2"))
            assert status == 429
            assert re.search("in about [1-4] minute", answer["error"])
        finally:
            process.terminate()
            process.wait()


def test_the_quota_is_that_of_the_last_hour():
    """The wait is until the oldest commit is an hour old; another repository has a quota of its own."""
    short = RequestCount(HubConfig(commits_per_hour=1, commit_window=180.0))
    with short.commit(("model", "a"), 0.0):
        pass
    with pytest.raises(RateLimited, match="in about 3 minutes"), short.commit(("model", "a"), 1.0):
        pass
    with short.commit(("model", "a"), 180.0):
        pass
    quota = RequestCount(HubConfig(commits_per_hour=2))
    repo, other = ("model", "a/r"), ("dataset", "a/r")

    def spend(name: tuple[str, str], now: float) -> str:
        """Commit, and return the wait that the Hub names."""
        try:
            with quota.commit(name, now):
                return ""
        except RateLimited as refusal:
            return re.search("in about (.*)\\.", refusal.message)[1]

    assert [spend(repo, now) for now in (0.0, 100.0)] == ["", ""]
    assert [spend(repo, now) for now in (100.0, HOUR - 600, HOUR - 30, HOUR - 0.1)] == [
        "59 minutes",
        "10 minutes",
        "1 minute",
        "1 minute",
    ]
    assert spend(other, 100.0) == ""
    assert [spend(repo, now) for now in (HOUR, HOUR + 1)] == ["", "2 minutes"]
    with pytest.raises(StaleParent), quota.commit(other, 200.0):
        raise StaleParent
    assert spend(other, 300.0) == ""
