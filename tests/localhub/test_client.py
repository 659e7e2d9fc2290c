"""The local Hub as the real client sees it: every call of huggingface_hub, by LFS and by Xet.

Clients run in processes of their own, because they read endpoint, home and Xet switch when they are imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import random

import pytest
from hub_clients import client, log_end, requests_of

from hf_mpwriter.localhub import LocalHub


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub for all tests of this file that need no other one."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A client home that several clients share, as pushes of one machine do."""
    return tmp_path_factory.mktemp("home")


def test_the_client_finds_repositories_branches_and_refusals_as_at_the_real_hub(hub, home):
    """Repositories and branches are created, listed, described and deleted; refusals raise the right exceptions."""
    seen = client(
        hub,
        home,
        """
        seen["whoami"] = api.whoami()["name"]
        seen["url"] = str(api.create_repo("calls", private=True))
        seen["again"] = str(api.create_repo("calls", exist_ok=True))
        seen["conflict"] = refused(HfHubHTTPError, api.create_repo, "calls")
        seen["dataset"] = str(api.create_repo("some-org/data", repo_type="dataset"))
        info = api.repo_info("local-user/calls", files_metadata=True)
        seen["info"] = [info.id, info.private, info.sha, [s.rfilename for s in info.siblings]]
        seen["short"] = api.repo_info("calls").id
        seen["exists"] = [api.repo_exists("local-user/calls"), api.repo_exists("local-user/nothing")]
        seen["no_repo"] = refused(RepositoryNotFoundError, api.repo_info, "local-user/nothing")
        seen["no_repo_commit"] = refused(RepositoryNotFoundError, api.upload_file, path_or_fileobj=b"x",
            path_in_repo="x", repo_id="local-user/nothing")
        api.create_branch("local-user/calls", branch="exp/1")
        api.create_branch("local-user/calls", branch="exp/1", exist_ok=True)
        seen["branch_conflict"] = refused(HfHubHTTPError, api.create_branch, "local-user/calls", branch="exp/1")
        on_branch = api.upload_file(path_or_fileobj=b"a,b", path_in_repo="x.csv", repo_id="local-user/calls",
            revision="exp/1")
        seen["commit_url"] = [on_branch.commit_url, on_branch.oid]
        seen["repo_of_commit"] = on_branch.repo_url.repo_id
        refs = api.list_repo_refs("local-user/calls")
        seen["refs"] = {b.name: b.target_commit for b in refs.branches}
        seen["files"] = [api.list_repo_files("local-user/calls", revision=r) for r in ("main", "exp/1")]
        seen["no_branch"] = [
            refused(RevisionNotFoundError, api.upload_file, path_or_fileobj=b"x", path_in_repo="x",
                repo_id="local-user/calls", revision="gone"),
            refused(RevisionNotFoundError, api.list_repo_files, "local-user/calls", revision="gone"),
        ]
        api.delete_branch("local-user/calls", branch="exp/1")
        seen["left"] = [b.name for b in api.list_repo_refs("local-user/calls").branches]
        api.delete_repo("some-org/data", repo_type="dataset")
        seen["deleted"] = api.repo_exists("some-org/data", repo_type="dataset")
        """,
    )
    assert seen["whoami"] == "local-user"
    assert seen["url"] == seen["again"] == f"{hub.endpoint}/local-user/calls"
    assert seen["conflict"] == seen["branch_conflict"] == 409
    assert seen["dataset"] == f"{hub.endpoint}/datasets/some-org/data"
    head = hub.store.resolve("model", "local-user/calls")
    assert seen["info"] == ["local-user/calls", True, head, [".gitattributes"]]
    assert seen["short"] == seen["repo_of_commit"] == "local-user/calls"
    assert seen["exists"] == [True, False]
    assert [seen["no_repo"], seen["no_repo_commit"], seen["no_branch"]] == [404, 404, [404, 404]]
    assert seen["commit_url"][0] == f"{hub.endpoint}/local-user/calls/commit/{seen['commit_url'][1]}"
    assert seen["refs"] == {"main": head, "exp/1": seen["commit_url"][1]}
    assert seen["files"] == [[".gitattributes"], [".gitattributes", "x.csv"]]
    assert seen["left"] == ["main"]
    assert not seen["deleted"]


def test_commits_carry_regular_and_lfs_files_deletions_parents_and_history(hub, home):
    """What create_commit, upload_folder, model cards and squashing do is what tree, history and downloads show."""
    seen = client(
        hub,
        home,
        """
        import pathlib, tempfile
        repo = "local-user/work"
        api.create_repo(repo)
        data = random.Random(1).randbytes(50_000)
        first = api.create_commit(repo, [Add("runs/a.tfevents.1", data), Add("notes.txt", b"hello"),
            Add("empty.tfevents.0", b"")], commit_message="first", commit_description="why")
        same = api.create_commit(repo, [Add("runs/a.tfevents.1", data), Add("notes.txt", b"hello")],
            commit_message="same")
        seen["same"] = same.oid == first.oid
        api.create_commit(repo, [Delete("notes.txt"), Add("runs/deep/b.bin", b"\\0" * 10)], commit_message="second",
            parent_commit=first.oid)
        seen["stale"] = refused(HfHubHTTPError, api.create_commit, repo, [Add("z", b"z")], commit_message="stale",
            parent_commit=first.oid)
        seen["missing_delete"] = refused(RemoteEntryNotFoundError, api.create_commit, repo, [Delete("nothing")],
            commit_message="no")
        seen["tree"] = [[f.path, getattr(f, "size", None), f.lfs.sha256 if getattr(f, "lfs", None) else None]
            for f in api.list_repo_tree(repo, recursive=True)]
        seen["expanded"] = {f.path: f.last_commit.title for f in api.list_repo_tree(repo, expand=True)}
        seen["paths"] = [f.path for f in api.get_paths_info(repo, ["runs", "runs/a.tfevents.1", "nothing"])]
        seen["commits"] = [[c.title, c.message, c.authors] for c in api.list_repo_commits(repo)]
        for name in ("runs/a.tfevents.1", "empty.tfevents.0", "runs/deep/b.bin"):
            with open(hf_hub_download(repo, name), "rb") as file:
                seen[name] = hashlib.sha256(file.read()).hexdigest()
        seen["data"] = hashlib.sha256(data).hexdigest()
        seen["exists"] = [api.file_exists(repo, "runs/a.tfevents.1"), api.file_exists(repo, "nothing")]
        seen["no_card"] = refused(RemoteEntryNotFoundError, ModelCard.load, repo)
        ModelCard("---\\ntags:\\n- one\\n---\\n# Title").push_to_hub(repo)
        card = ModelCard.load(repo)
        card.data.tags.append("two")
        card.push_to_hub(repo)
        seen["tags"] = ModelCard.load(repo).data.tags
        with tempfile.TemporaryDirectory() as folder:
            for k in range(3):
                pathlib.Path(folder, f"e.tfevents.{k}").write_bytes(bytes([k]) * 100)
            api.upload_folder(repo_id=repo, folder_path=folder, path_in_repo="folder")
        api.delete_folder("runs", repo)
        seen["before"] = sorted(api.list_repo_files(repo))
        api.super_squash_history(repo, commit_message="squashed")
        seen["after"] = sorted(api.list_repo_files(repo))
        seen["squashed"] = [c.title for c in api.list_repo_commits(repo)]
        """,
    )
    assert seen["same"]
    assert seen["stale"] == 412
    assert seen["missing_delete"] == 404
    assert seen["tree"] == [
        [".gitattributes", seen["tree"][0][1], None],
        ["empty.tfevents.0", 0, None],
        ["runs", None, None],
        ["runs/a.tfevents.1", 50_000, seen["data"]],
        ["runs/deep", None, None],
        ["runs/deep/b.bin", 10, hashlib.sha256(bytes(10)).hexdigest()],
    ]
    assert seen["expanded"] == {".gitattributes": "initial commit", "empty.tfevents.0": "first", "runs": "second"}
    assert seen["paths"] == ["runs", "runs/a.tfevents.1"]
    assert [title for title, _, _ in seen["commits"]] == ["second", "first", "initial commit"]
    assert seen["commits"][1][1:] == ["why", ["local-user"]]
    assert seen["runs/a.tfevents.1"] == seen["data"]
    assert seen["empty.tfevents.0"] == hashlib.sha256(b"").hexdigest()
    assert seen["exists"] == [True, False]
    assert seen["no_card"] == 404
    assert seen["tags"] == ["one", "two"]
    folder = [f"folder/e.tfevents.{k}" for k in range(3)]
    assert seen["before"] == seen["after"] == sorted([".gitattributes", "README.md", "empty.tfevents.0", *folder])
    assert seen["squashed"] == ["squashed"]


def test_a_known_blob_is_not_put_again(hub, home):
    """A second upload of the same content makes no PUT; 12 MB are what was sent."""
    start = log_end(hub)
    seen = client(
        hub,
        home,
        """
        api.create_repo("sizes")
        large = random.Random(2).randbytes(12 << 20)
        for path in ("a.tfevents.1", "b.tfevents.2"):
            api.upload_file(path_or_fileobj=large, path_in_repo=path, repo_id="local-user/sizes")
        seen["sha256"] = hashlib.sha256(large).hexdigest()
        """,
    )
    log = requests_of(hub, start)
    assert [line["in"] for line in log if line["method"] == "PUT"] == [12 << 20]
    assert sum(line["path"].endswith("/commit/main") for line in log) == 2
    tree = hub.store.tree("model", "local-user/sizes")
    assert tree["a.tfevents.1"] == tree["b.tfevents.2"]
    assert tree["a.tfevents.1"].sha256 == seen["sha256"]
    content = hub.store.read_blob("model", "local-user/sizes", "b.tfevents.2")
    assert hashlib.sha256(content).hexdigest() == seen["sha256"]


def test_a_file_that_grows_by_xet_is_the_local_one_after_each_commit_and_sends_little(hub, home):
    """Every commit by the real hf_xet holds the local bytes; a growing file costs its growth, not its length."""
    start = log_end(hub)
    steps, grow, base = 4, 50_000, 3_000_000
    seen = client(
        hub,
        home,
        f"""
        api.create_repo("grown")
        source = random.Random(3)
        data = source.randbytes({base})
        seen["sha256"] = []
        for _ in range({steps}):
            data += source.randbytes({grow})
            api.upload_file(path_or_fileobj=data, path_in_repo="runs/x.tfevents.1", repo_id="local-user/grown")
            seen["sha256"].append(hashlib.sha256(data).hexdigest())
        path = hf_hub_download("local-user/grown", "runs/x.tfevents.1")
        with open(path, "rb") as file:
            seen["downloaded"] = hashlib.sha256(file.read()).hexdigest()
        """,
        xet=True,
    )
    history = hub.store.commits("model", "local-user/grown")[-2::-1]
    assert [commit.tree["runs/x.tfevents.1"].sha256 for commit in history] == seen["sha256"]
    for commit in history:
        content = hub.store.read_blob("model", "local-user/grown", "runs/x.tfevents.1", commit.oid)
        assert hashlib.sha256(content).hexdigest() == commit.tree["runs/x.tfevents.1"].sha256
        assert commit.tree["runs/x.tfevents.1"].xet_hash
    assert seen["downloaded"] == seen["sha256"][-1]
    log = requests_of(hub, start)
    xorbs = [line["in"] for line in log if "/v1/xorbs/" in line["path"]]
    assert xorbs[0] > base
    # One chunk is 128 KiB at most: the growth and the chunk it changes.
    assert all(sent < grow + 2 * 131072 for sent in xorbs[1:])
    assert not any(line["method"] == "PUT" for line in log)
    assert any("/fetch/" in line["path"] for line in log), "the client downloads by Xet too"


@pytest.mark.parametrize("xet", [False, True], ids=["LFS", "Xet"])
def test_a_hub_that_discards_answers_as_any_other_and_keeps_no_content(tmp_path, xet):
    """A growing file is committed and read back by size and digest, and its versions take no space on disk."""
    with LocalHub(tmp_path / "hub", discard=True) as hub:
        seen = client(
            hub,
            tmp_path / "home",
            """
            api.create_repo("grown")
            data, where = b"", {"repo_id": "local-user/grown", "path_in_repo": "x.tfevents.1"}
            for _ in range(3):
                data += random.Random(4).randbytes(200_000)
                api.upload_file(path_or_fileobj=data, **where)
            api.upload_file(path_or_fileobj=data, **where)
            (there,) = api.get_paths_info("local-user/grown", "x.tfevents.1")
            seen["reported"] = [there.size, there.lfs.sha256]
            seen["true"] = [len(data), hashlib.sha256(data).hexdigest()]
            """,
            xet=xet,
        )
        assert seen["reported"] == seen["true"]
        assert len(hub.store.commits("model", "local-user/grown")) == 4
        blobs = [path.stat() for path in (tmp_path / "hub" / "blobs" / "sha256").rglob("*") if path.is_file()]
        assert sorted((blob.st_size, blob.st_blocks) for blob in blobs) == [(200_000, 0), (400_000, 0), (600_000, 0)]


def test_content_that_came_by_xet_is_still_known_after_a_crash(hub, home, tmp_path):
    """After SIGKILL a client that remembers its chunks, and one that does not, send them no second time."""
    code = """
    api.create_repo("crash", exist_ok=True)
    data = random.Random(7).randbytes(2_000_000) + random.Random({k}).randbytes(30_000)
    api.upload_file(path_or_fileobj=data, path_in_repo="w{k}.tfevents.1", repo_id="local-user/crash")
    """
    client(hub, home, code.format(k=1), xet=True)
    hub.kill()
    hub.start()
    start = log_end(hub)
    client(hub, home, code.format(k=2), xet=True)
    client(hub, tmp_path / "new-home", code.format(k=3), xet=True)
    sent = [line["in"] for line in requests_of(hub, start) if "/v1/xorbs/" in line["path"]]
    assert 0 < sum(sent) < 500_000
    for k in (1, 2, 3):
        entry = hub.store.entry("model", "local-user/crash", f"w{k}.tfevents.1")
        content = hub.store.read_blob("model", "local-user/crash", f"w{k}.tfevents.1")
        assert hashlib.sha256(content).hexdigest() == entry.sha256


def test_a_new_store_on_an_old_port_is_not_taken_for_the_old_one(tmp_path):
    """A client that remembers chunks of another store at this address sends them again to the new one."""
    code = """
    api.create_repo("r")
    data = random.Random(8).randbytes(1_000_000)
    api.upload_file(path_or_fileobj=data, path_in_repo="a.tfevents.1", repo_id="local-user/r")
    """
    with LocalHub(tmp_path / "old") as old:
        client(old, tmp_path / "home", code, xet=True)
    with LocalHub(tmp_path / "new", port=old.port) as new:
        client(new, tmp_path / "home", code, xet=True)
        assert len(new.store.read_blob("model", "local-user/r", "a.tfevents.1")) == 1_000_000


def test_a_hub_without_xet_refuses_its_token_and_no_log_has_the_secret(tmp_path):
    """Without Xet a client that wants it fails as at the real Hub. Neither log nor command line has the token."""
    secret = "hf_" + random.Random(5).randbytes(12).hex()
    with LocalHub(tmp_path / "hub", xet=False, token=secret) as hub:
        seen = client(
            hub,
            tmp_path / "home",
            """
            api.create_repo("r")
            card = ModelCard("---\\ntags:\\n- one\\n---\\n# Title")
            card.push_to_hub("local-user/r")
            seen["xet"] = refused(ConnectionError, api.upload_file, path_or_fileobj=b"\\0" * 2000,
                path_in_repo="a.tfevents.1", repo_id="local-user/r")
            """,
            xet=True,
            token=secret,
        )
        assert seen["xet"] == "ConnectionError"
        code = """
        api.upload_file(path_or_fileobj=b"\\0" * 3_000_000, path_in_repo="a.tfevents.1", repo_id="local-user/r")
        """
        client(hub, tmp_path / "home", code, token=secret)
        content = hub.store.read_blob("model", "local-user/r", "a.tfevents.1")
        assert content == bytes(3_000_000)
        with open(f"/proc/{hub.pid}/cmdline", "rb") as file:
            assert secret.encode() not in file.read()
        logged = requests_of(hub)
        assert secret not in json.dumps(logged)
        # Upload URLs carry a signature in place of the token.
        assert [line["auth"] for line in logged if line["method"] == "PUT"] == [False]
    with open(os.path.join(hub.root, "server.log"), encoding="utf-8") as file:
        assert secret not in file.read()
