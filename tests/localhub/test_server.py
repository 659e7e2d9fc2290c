"""The local Hub as a process and as bytes on a wire: restarts, crashes, refusals, ranges, the log."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import subprocess
import sys
import threading

import pytest
from hub_clients import REPO, SECONDS, ask, commit, file, offer

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.config import ServerError
from hf_mpwriter.localhub.errors import StaleParent
from hf_mpwriter.localhub.serving import _lock_root
from hf_mpwriter.localhub.store import Change, WritableStore


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub without Xet, with one repository."""
    with LocalHub(tmp_path_factory.mktemp("hub"), xet=False) as running:
        assert ask(running, "POST", "/api/repos/create", {"name": "r"})[0] == 200
        yield running


def test_content_that_differs_from_its_oid_is_refused(hub):
    """A PUT with other bytes, another size or another signature leaves no blob, and no commit can name it."""
    oid, actions = offer(hub, b"requested")
    href = actions["upload"]["href"]
    assert ask(hub, "PUT", href, b"different")[0] == 400
    assert ask(hub, "PUT", href, b"requested and more")[0] == 400
    assert ask(hub, "PUT", href[:-1] + ("0" if href[-1] != "0" else "1"), b"requested")[0] == 403
    assert ask(hub, "POST", actions["verify"]["href"], {"oid": oid, "size": 9})[0] == 404
    before = hub.store.resolve(*REPO)
    lfs_file = ("lfsFile", {"path": "a.tfevents", "algo": "sha256", "oid": oid, "size": 9})
    status, answer = commit(hub, lfs_file)
    assert (status, answer["error"]) == (400, f"LFS pointer pointed to a file that does not exist: {oid}")
    assert hub.store.resolve(*REPO) == before
    assert ask(hub, "PUT", href, b"requested")[0] == 200
    assert ask(hub, "POST", actions["verify"]["href"], {"oid": oid, "size": 9})[0] == 200
    assert offer(hub, b"requested") == (oid, None)
    assert commit(hub, lfs_file)[0] == 200
    assert hub.store.read_blob(*REPO, "a.tfevents") == b"requested"


def test_resolve_serves_ranges_and_the_headers_that_downloads_need(hub):
    """HEAD returns commit, ETag and size; GET serves the whole, a range, a tail, and refuses a range beyond."""
    content = bytes(range(256)) * 40
    assert commit(hub, file("docs/ü.bin", content))[0] == 200
    path = "/local-user/r/resolve/main/docs/%C3%BC.bin"
    status, headers, body = ask(hub, "HEAD", path)
    entry = hub.store.entry(*REPO, "docs/ü.bin")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(content)))
    assert headers["X-Repo-Commit"] == hub.store.resolve(*REPO)
    assert headers["ETag"] == f'"{entry.oid}"'
    assert ask(hub, "GET", path)[2] == content
    for asked, want in (("0-99", content[:100]), ("500-", content[500:]), ("-7", content[-7:]), ("0-99999", content)):
        status, headers, body = ask(hub, "GET", path, headers={"Range": f"bytes={asked}"})
        assert body == want
        assert status == 206
    assert ask(hub, "GET", path, headers={"Range": f"bytes={len(content)}-"})[0] == 416
    status, headers, _ = ask(hub, "HEAD", "/local-user/r/resolve/main/nothing")
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")
    status, headers, _ = ask(hub, "HEAD", "/local-user/r/resolve/gone/nothing")
    assert (status, headers["X-Error-Code"]) == (404, "RevisionNotFound")


def test_lists_come_in_pages_that_the_client_can_follow(hub):
    """Tree and history have absolute links to the next page, and the client's own paging follows them."""
    for k in range(3):
        assert commit(hub, file(f"pages/{k}.txt", b"%d" % k))[0] == 200
    code = """
import json, sys
from huggingface_hub.utils._pagination import paginate
for path, key in (("tree/main/pages", "path"), ("commits/main", "id")):
    url = sys.argv[1] + "/api/models/local-user/r/" + path
    print(json.dumps([item[key] for item in paginate(url, params={"limit": 2}, headers={})]))
"""
    command = [sys.executable, "-c", code, hub.endpoint]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout.splitlines()
    assert json.loads(lines[0]) == [f"pages/{k}.txt" for k in range(3)]
    assert json.loads(lines[1]) == [commit.oid for commit in hub.store.commits(*REPO)]


def test_paths_and_names_cannot_lead_out_of_the_store(hub):
    """A path with dots, an absolute path and a name with dots are refused and write nothing."""
    for path in ("../x", "/x", "a/../../x", "", ".git/config"):
        assert commit(hub, file(path, b"x"))[0] == 400
    for name in ("..", "../x", "a/../b", "%2e%2e"):
        assert ask(hub, "POST", "/api/repos/create", {"name": name})[0] == 404
    assert ask(hub, "POST", "/api/models/local-user/r/branch/..%2f..%2fx", {})[0] == 404
    assert ask(hub, "GET", "/local-user/r/resolve/main/%2e%2e/%2e%2e/repo.json")[0] == 404


def test_a_refused_request_is_read_to_its_end(hub):
    """A large body to a route that does not exist gets its answer, not a reset."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=SECONDS)
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request("POST", "/api/no/such/route", bytes(8 << 20))
            response = connection.getresponse()
            assert response.status == 404
            assert response.headers["X-Request-Id"]
            response.read()


def test_racing_commits_all_arrive_and_racing_parents_all_but_one_are_refused(hub):
    """Commits of many threads make one line of history; of those that name the same parent one wins."""
    before = hub.store.resolve(*REPO)
    outcomes = []

    def race(k: int) -> None:
        """Commit twice: freely, then on a parent that all name."""
        free = commit(hub, file(f"race/{k}", b"%d" % k))
        barrier.wait()
        outcomes.append((free, commit(hub, file(f"parent/{k}", b"%d" % k), parent=parents[0])))

    parents: list[str] = []
    barrier = threading.Barrier(6, action=lambda: parents.append(hub.store.resolve(*REPO)))
    threads = [threading.Thread(target=race, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert [free[0] for free, _ in outcomes] == [200] * 6
    assert sorted(second[0] for _, second in outcomes) == [200] + [412] * 5
    history = [item.oid for item in hub.store.commits(*REPO)]
    assert {free[1]["commitOid"] for free, _ in outcomes} <= set(history)
    assert history.index(before) == 7


CRASHES = """
import os, sys
from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.localhub.store import Change, WritableStore

STEPS = ("open", "os.rename", "os.remove", "os.mkdir")
NAME = ("model", "local-user/r")
left = None

def count_down(event, _):
    "End as by SIGKILL at the chosen step."
    global left
    if left is not None and event in STEPS:
        left -= 1
        if left < 0:
            os._exit(9)

def write(store):
    "Do all that changes a store."
    store.prepare()
    store.create_repo(*NAME, private=False, author="a", files={"x": b"x"})
    old = store.put_regular(b"one")
    store.apply(*NAME, "main", [Change("put", "y", old)], title="1", author="a")
    store.create_branch(*NAME, "exp/1")
    store.apply(*NAME, "exp/1", [Change("put", "y", store.put_regular(b"two"))], title="2", author="a")
    store.squash(*NAME, "main", message="3", author="a")
    store.delete_branch(*NAME, "exp/1")
    store.delete_repo(*NAME)

def check(root):
    "Read all that a crash left."
    store = WritableStore(root)
    store.prepare()
    try:
        branches = store.branches(*NAME)
    except RepoNotFound:
        store.create_repo(*NAME, private=False, author="a", files={})
        return
    assert "main" in branches, branches
    for branch in branches:
        for commit in store.commits(*NAME, branch):
            for path, entry in commit.tree.items():
                assert len(store.read_blob(*NAME, path, commit.oid)) == entry.size
        store.apply(*NAME, branch, [Change("put", "z", store.put_regular(b"z"))], title="after", author="a")

sys.addaudithook(count_down)
crashed = True
steps = 0
while crashed:
    root = os.path.join(sys.argv[1], str(steps))
    pid = os.fork()
    if pid == 0:
        left = steps
        write(WritableStore(root))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9), status
    crashed = status == 9
    check(root)
    steps += 1
print(steps)
"""


def test_a_crash_at_any_step_of_any_write_leaves_a_store_that_is_whole(tmp_path):
    """Ending the process at each single open, rename, removal and mkdir leaves whole commits, and writing goes on."""
    command = [sys.executable, "-c", CRASHES, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) > 50


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    """SIGKILL to the parent ends the Hub; the end of the thread that started it does not."""
    code = """
import os, signal, sys, threading
from hf_mpwriter.localhub import LocalHub
hub = LocalHub(sys.argv[1], xet=False)
thread = threading.Thread(target=hub.start)
thread.start()
thread.join()
print(hub.pid, flush=True)
sys.stdin.readline()
assert hub.pid is not None
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "hub")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.stdin.write(b"now\n")
        parent.stdin.close()
        assert parent.wait(SECONDS) == -9
        ready, _, _ = select.select([pidfd], [], [], SECONDS)
        os.close(pidfd)
        assert ready


def test_a_root_has_one_server(hub):
    """A second server for a root in use is refused."""
    with pytest.raises(ServerError, match="Another local Hub"):
        _lock_root(hub.root, deadline=0)


def test_commits_have_ids_of_64_digits_and_parents_are_named_by_a_beginning(tmp_path):
    """They are found whole; a store may hold both kinds."""
    short = WritableStore(tmp_path)
    short.prepare()
    short.create_repo("model", "me/run", private=False, author="me", files={})
    store = WritableStore(tmp_path, long_ids=True)
    change = Change("put", "a", store.put_regular(b"a"))
    first = store.resolve("model", "me/run")
    made = store.apply("model", "me/run", "main", [change], title="t", author="me", parent=first)
    assert (len(first), len(made.oid)) == (40, 64)
    assert store.commit("model", "me/run", made.oid) == made
    assert [commit.oid for commit in store.commits("model", "me/run")] == [made.oid, first]
    store.apply("model", "me/run", "main", [change], title="t", author="me", parent=made.oid[:40])
    with pytest.raises(StaleParent):
        store.apply("model", "me/run", "main", [change], title="t", author="me", parent=made.oid[:40])
