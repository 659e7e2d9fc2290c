"""Buckets of the local Hub, as the real client sees them: files that change, and the feed of their changes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from hub_clients import ANY_TOKEN, ask, client

from hf_mpwriter.localhub import LocalHub

ID = "local-user/live"
BUCKET = f"/api/buckets/{ID}"
READERS = 80  # more than any pool of threads in the Hub
IMPORTS = """
os.chdir(os.environ["HF_HOME"])
from huggingface_hub.errors import BucketBatchError, BucketNotFoundError, EntryNotFoundError
def listing(**options):
    return {e.path: getattr(e, "size", None) for e in api.list_bucket_tree(ID, **options)}
def put(**files):
    api.batch_bucket_files(ID, add=[(content, path.replace("__", "/")) for path, content in files.items()])
ID = "local-user/live"
"""


@pytest.fixture
def hub(tmp_path):
    """A Hub for one test."""
    with LocalHub(tmp_path / "hub") as running:
        yield running


def buckets(hub: LocalHub, home, code: str, **options):
    """Run the real client on buckets; Xet brings all content."""
    home.mkdir(exist_ok=True)
    return client(hub, home, IMPORTS + textwrap.dedent(code), xet=True, **options)


def batch(hub: LocalHub, *operations: dict[str, object]):
    """Post a batch and return status and JSON."""
    status, _, answer = ask(hub, "POST", f"{BUCKET}/batch", b"\n".join(json.dumps(o).encode() for o in operations))
    return status, json.loads(answer)


def test_the_client_creates_describes_moves_and_deletes_buckets(hub, tmp_path):
    """Private or public; a second creation and a missing bucket raise the right exceptions."""
    seen = buckets(
        hub,
        tmp_path / "home",
        """
        seen["url"] = [api.create_bucket("live", private=True).url, api.create_bucket(ID, exist_ok=True).bucket_id]
        seen["again"] = refused(HfHubHTTPError, api.create_bucket, ID)
        api.create_bucket("some-org/open")
        info = api.bucket_info(ID)
        seen["info"] = [info.id, info.private, info.size, info.total_files, info.created_at.year > 2000]
        seen["listed"] = [[b.id for b in api.list_buckets(**o)]
            for o in ({}, {"namespace": "some-org"}, {"search": "liv"}, {"search": "x"})]
        api.update_bucket_settings(ID, private=False)
        api.move_bucket(ID, "some-org/moved")
        seen["moved"] = [api.bucket_info("some-org/moved").private, refused(BucketNotFoundError, api.bucket_info, ID)]
        seen["taken"] = refused(HfHubHTTPError, api.move_bucket, "some-org/moved", "some-org/open")
        api.delete_bucket("some-org/moved")
        api.delete_bucket("some-org/moved", missing_ok=True)
        seen["gone"] = [refused(BucketNotFoundError, call, "some-org/moved") for call in
            (api.bucket_info, api.delete_bucket, lambda b: list(api.list_bucket_tree(b)))]
        """,
    )
    assert seen["url"] == [f"{hub.endpoint}/buckets/{ID}", ID]
    assert (seen["again"], seen["taken"]) == (409, 409)
    assert seen["info"] == [ID, True, 0, 0, True]
    assert seen["listed"] == [[ID], ["some-org/open"], [ID], []]
    assert seen["moved"] == [False, 404]
    assert seen["gone"] == [404, 404, 404]
    assert hub.store.repos() == [], "a bucket is not a repository"


def test_files_of_a_bucket_grow_are_copied_and_deleted(hub, tmp_path):
    """Listings, metadata and downloads of the client have the newest content; an empty file is one, too."""
    seen = buckets(
        hub,
        tmp_path / "home",
        """
        api.create_bucket("live"), api.create_bucket("other")
        data = random.Random(1).randbytes(300_000)
        put(a__b__events=data[:200_000], a__empty=b"", top=b"x", a_b__z=b"y")
        seen["all"] = listing(recursive=True)
        seen["level"] = [listing(), listing(prefix="a"), listing(prefix="a/b/"), listing(prefix="none")]
        put(a__b__events=data)
        digest = [file.xet_hash for file in api.get_bucket_paths_info(ID, ["a/b/events"])][0]
        api.batch_bucket_files("local-user/other", copy=[("bucket", ID, digest, "copied")])
        api.batch_bucket_files(ID, delete=["top"])
        seen["paths"] = [[i.path, i.size] for i in api.get_bucket_paths_info(ID, ["top", "a", "a/b/events"])]
        seen["size"] = [api.bucket_info(ID).size, api.get_bucket_file_metadata(ID, "a/b/events").size]
        api.download_bucket_files(ID, [("a/b/events", "grown"), ("a/empty", "empty")])
        api.download_bucket_files("local-user/other", [("copied", "copied")])
        seen["same"] = [open(name, "rb").read() == data for name in ("grown", "copied")]
        seen["missing"] = refused(EntryNotFoundError, api.get_bucket_file_metadata, ID, "top")
        """,
    )
    assert seen["all"] == {"a/b/events": 200_000, "a/empty": 0, "a_b/z": 1, "top": 1}
    assert seen["level"] == [
        {"a": None, "a_b": None, "top": 1},
        {"a/b": None, "a/empty": 0, "a_b": None},
        {"a/b/events": 200_000},
        {},
    ]
    assert seen["paths"] == [["a/b/events", 300_000]]
    assert seen["size"] == [300_001, 300_000]
    assert seen["same"] == [True, True]
    assert seen["missing"] == 404
    assert not (tmp_path / "hub" / "blobs").exists(), "what is in the Xet store is not stored once more"


def test_a_batch_does_what_it_can_and_names_the_rest(hub, tmp_path):
    """200 if something was done, 422 if nothing was; a path out of the bucket, unknown content, a missing file."""
    seen = buckets(
        hub,
        tmp_path / "home",
        """
        api.create_bucket("live")
        for paths in (["ok", "../out"], ["a/../b", "/c"]):
            try:
                api.batch_bucket_files(ID, add=[(b"x", path) for path in paths])
            except BucketBatchError as error:
                seen[paths[0]] = [error.response.status_code, [failure["path"] for failure in error.failures]]
        seen["files"] = listing(recursive=True)
        """,
    )
    assert seen["ok"] == [200, ["../out"]]
    assert seen["a/../b"] == [422, ["a/../b", "/c"]]
    assert seen["files"] == {"ok": 1}
    unknown = {"type": "addFile", "path": "u", "xetHash": "1" * 64, "mtime": 1}
    empty = {"type": "addFile", "path": "e", "xetHash": "0" * 64, "mtime": 1}
    status, answer = batch(
        hub, empty, unknown, {"type": "deleteFile", "path": "gone"}, {"type": "deleteFile", "path": "ok"}
    )
    assert (status, answer["success"], answer["succeeded"]) == (200, False, 2)
    assert [failure["path"] for failure in answer["failed"]] == ["u", "gone"]
    assert batch(hub, {"type": "moveFile", "path": "e"})[0] == 400
    assert batch(hub, *[empty] * 1001)[0] == 400
    assert json.loads(ask(hub, "GET", f"{BUCKET}/tree")[2])[0].items() >= {"path": "e", "size": 0}.items()


def test_a_range_of_a_file_is_served(hub, tmp_path):
    """What a follower asks for: the bytes behind those that it has, of a file that its name is quoted in any way."""
    buckets(hub, tmp_path / "home", "api.create_bucket('live'); put(a__f=bytes(range(100)))")
    content = bytes(range(100))
    asked = {None: (200, content), "bytes=10-19": (206, content[10:20]), "bytes=90-": (206, content[90:])}
    asked |= {"bytes=-5": (206, content[95:]), "bytes=95-200": (206, content[95:]), "bytes=0-1,3-4": (200, content)}
    for header, expected in asked.items():
        status, headers, body = ask(
            hub, "GET", f"/buckets/{ID}/resolve/a%2Ff", headers={"Range": header} if header else {}
        )
        assert (status, body) == expected, header
        assert headers["X-Linked-Size"] == "100"
    status, headers, _ = ask(hub, "GET", f"/buckets/{ID}/resolve/a/f", headers={"Range": "bytes=100-"})
    assert (status, headers["Content-Range"]) == (416, "bytes */100")
    status, headers, body = ask(hub, "HEAD", f"/buckets/{ID}/resolve/a/f")
    assert (status, headers["Content-Length"], body) == (200, "100", b"")
    with ThreadPoolExecutor(READERS) as pool:
        answers = pool.map(lambda _: ask(hub, "GET", f"/buckets/{ID}/resolve/a/f")[2], range(READERS))
        assert set(answers) == {content}, "each waits for requests of the Hub to itself"
    batch(hub, {"type": "addFile", "path": "e", "xetHash": "0" * 64, "mtime": 1})
    assert ask(hub, "GET", f"/buckets/{ID}/resolve/e")[::2] == (200, b"")


def test_who_may_read_may_not_change_a_bucket(tmp_path):
    """The token to read gets 403 for each change, none at all 401; faults strike as they strike commits."""
    with LocalHub(tmp_path / "hub", token="hf_w") as hub:
        buckets(hub, tmp_path / "home", "api.create_bucket('live', private=True); put(f=b'x')", token="hf_w")
        seen = buckets(
            hub,
            tmp_path / "home",
            """
            seen["read"] = [listing(), api.bucket_info(ID).private]
            seen["changes"] = [refused(HfHubHTTPError, *call) for call in (
                (api.create_bucket, "new"), (api.delete_bucket, ID), (api.move_bucket, ID, "local-user/b"))]
            seen["batch"] = refused(HfHubHTTPError, api.batch_bucket_files, ID, delete=["f"])
            stranger = HfApi(token=False)
            seen["stranger"] = refused(BucketNotFoundError, stranger.bucket_info, ID)
            """,
            token="hf_w-read",
        )
        assert seen["read"] == [{"f": 1}, True]
        assert seen["changes"] == [403, 403, 403]
        assert seen["batch"] == 403
        assert seen["stranger"] == 401
        for path in ("xet-write-token", "batch", "settings"):
            method = {"xet-write-token": "GET", "batch": "POST", "settings": "PUT"}[path]
            assert ask(hub, method, f"{BUCKET}/{path}", headers={"Authorization": "Bearer hf_w-read"})[0] == 403
        hub.fault(f"{BUCKET}/batch 501")
        assert ask(hub, "POST", f"{BUCKET}/batch", headers={"Authorization": "Bearer hf_w"})[0] == 501


def test_the_command_of_the_client_works_on_buckets(hub, tmp_path, monkeypatch):
    """`hf buckets`: create, sync there and back, list, delete."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", ANY_TOKEN)
    (tmp_path / "there" / "runs").mkdir(parents=True)
    (tmp_path / "there" / "runs" / "events").write_bytes(b"12345")

    def hf(*words: str) -> str:
        command = [sys.executable, "-m", "huggingface_hub.cli.hf", "buckets", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    hf("create", ID, "--private")
    hf("sync", str(tmp_path / "there"), f"hf://buckets/{ID}")
    hf("sync", f"hf://buckets/{ID}", str(tmp_path / "back"))
    assert (tmp_path / "back" / "runs" / "events").read_bytes() == b"12345"
    assert "runs/events" in hf("list", ID, "--recursive", "--quiet")
    assert '"private": true' in hf("info", ID).lower()
    hf("delete", ID, "--yes")
    assert ask(hub, "GET", BUCKET)[0] == 404


def test_the_file_system_of_the_client_reads_buckets(hub, tmp_path):
    """What TensorBoard and the like use: listings, whole files, and a part of one."""
    seen = buckets(
        hub,
        tmp_path / "home",
        """
        from huggingface_hub import HfFileSystem
        api.create_bucket("live")
        put(runs__one__events=b"0123456789", runs__two__events=b"")
        fs, root = HfFileSystem(), "buckets/" + ID
        seen["found"] = sorted(fs.find(root))
        seen["ls"] = sorted(fs.ls(root + "/runs", detail=False))
        seen["whole"] = fs.cat_file(root + "/runs/one/events").decode()
        with fs.open(root + "/runs/one/events", "rb", block_size=4) as file:
            file.seek(3)
            seen["part"] = file.read(4).decode()
        """,
    )
    root = f"buckets/{ID}/runs"
    assert seen["found"] == [f"{root}/one/events", f"{root}/two/events"]
    assert seen["ls"] == [f"{root}/one", f"{root}/two"]
    assert (seen["whole"], seen["part"]) == ("0123456789", "3456")
