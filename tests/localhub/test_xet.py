"""Content of many files that came by Xet becomes blobs together, and only what is whole becomes one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_clients import client

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.store import WritableStore
from hf_mpwriter.localhub.xet import FileRecord, Shard, Term, XetStore


class Session:
    """Stands for the client of Xet: a download writes what the file hash says."""

    def __init__(self) -> None:
        self.groups: list[int] = []  # how many downloads each group had
        self.fails = False  # whether a group fails at its end, as one does that misses a file

    def new_file_download_group(self, **_: object) -> Session:
        """Begin a group."""
        self.groups.append(0)
        return self

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(self, *_: object) -> None:
        """End a group."""
        if self.fails:
            raise OSError("no such xorb")

    def start_download_file(self, info: SimpleNamespace, target: str) -> None:
        """Download a file."""
        self.groups[-1] += 1
        Path(target).write_bytes(info.hash.encode())


def sha256(content: str) -> str:
    """The digest of a content."""
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def xet(tmp_path) -> XetStore:
    """A store that knows three files, the last of them under a wrong digest."""
    pytest.importorskip("hf_xet")
    store = WritableStore(str(tmp_path))
    store.prepare()
    xet = XetStore(store, lambda: ("", "", 0, {}))
    digests = {"one": sha256("one"), "two": sha256("two"), "bad": sha256("good")}
    files = [FileRecord(text, (Term("x", len(text), 0, 1),), digest) for text, digest in digests.items()]
    xet._index("shard", Shard(tuple(files), ()))
    xet._session = Session()
    return xet


def test_one_client_rebuilds_what_is_known(xet):
    """To start one for each file costs more than the file; content twice, unknown or false makes no blob more."""
    xet.materialise([sha256("one"), sha256("two"), sha256("one"), sha256("good"), sha256("nobody's")])
    assert xet._session.groups == [3]
    blobs = xet._store.blobs
    assert [Path(blobs.lfs_path(sha256(text))).read_text() for text in ("one", "two")] == ["one", "two"]
    assert blobs.lfs_size(sha256("good")) is None
    xet.materialise([])
    xet.materialise([sha256("nobody's")])
    assert xet._session.groups == [3]
    assert not list(Path(xet._store.disk.tmp).iterdir())


def test_what_fails_leaves_no_blob_and_no_scratch(xet):
    """A group fails as a whole: its files may be short."""
    xet._session.fails = True
    with pytest.raises(OSError, match="no such xorb"):
        xet.materialise([sha256("one"), sha256("two")])
    assert xet._store.blobs.lfs_size(sha256("one")) is None
    assert not list(Path(xet._store.disk.tmp).iterdir())


def test_a_commit_of_many_small_files_by_xet_holds_each_of_them(tmp_path):
    """New content, the same content twice, and content that the Hub has already, in one commit."""
    with LocalHub(tmp_path / "hub") as hub:
        seen = client(
            hub,
            tmp_path / "home",
            """
            from huggingface_hub import CommitOperationAdd
            api.create_repo("many")
            data = [b"\\0" + random.Random(k).randbytes(100 + k) for k in range(40)]
            data[1] = data[0]
            api.upload_file(path_or_fileobj=data[2], path_in_repo="2.bin", repo_id="local-user/many")
            adds = [CommitOperationAdd(f"{k}.bin", content) for k, content in enumerate(data)]
            api.create_commit("local-user/many", adds, commit_message="many")
            seen["sha256"] = [hashlib.sha256(content).hexdigest() for content in data]
            """,
            xet=True,
        )
        contents = [hub.store.read_blob("model", "local-user/many", f"{k}.bin") for k in range(40)]
        assert [hashlib.sha256(content).hexdigest() for content in contents] == seen["sha256"]
        tree = hub.store.tree("model", "local-user/many")
        assert all(tree[f"{k}.bin"].xet_hash for k in range(40))
