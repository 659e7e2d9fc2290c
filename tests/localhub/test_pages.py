"""The pages of the local Hub as bytes: addresses, contents, escaping, tokens. `integration/pages` opens them."""

from __future__ import annotations

import base64
import json
import re
from html import unescape

import pytest
from hub_clients import ask, commit, file

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.pages.handlers import LONGEST_TEXT, Links

RUN = Links("model", "local-user/r")
HOSTILE = """<script>alert('"')</script>"""
PAGES = ("", "/tree/main", "/tree/main/docs", "/blob/main/docs/a.txt", "/commits/main", "/commit/main", "/tensorboard")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with a model and a dataset."""
    with LocalHub(tmp_path_factory.mktemp("hub"), xet=False) as running:
        for repo_type in ("model", "dataset"):
            assert ask(running, "POST", "/api/repos/create", {"name": "r", "type": repo_type})[0] == 200
        assert (
            commit(running, file("README.md", b"---\nlicense: mit\n---\n# A card"), file("docs/a.txt", b"first"))[0]
            == 200
        )
        assert commit(running, file("docs/a.txt", b"second & last"))[0] == 200
        yield running


def page(hub, path: str, status: int = 200, headers: dict[str, str] | None = None) -> str:
    """Return a page, which must have this status."""
    answered, _, body = ask(hub, "GET", path, headers=headers)
    assert answered == status, body
    return body.decode()


def basic(token: str) -> dict[str, str]:
    """The header with which a browser sends a token."""
    return {"Authorization": "Basic " + base64.b64encode(f"any:{token}".encode()).decode()}


def addresses(text: str) -> list[str]:
    """All links of a page."""
    return [unescape(link) for link in re.findall(r'href="(/[^"]*)"', text)]


def test_a_bucket_is_listed_with_its_files(tmp_path):
    """The first page leads to the bucket, that to the content; names are escaped."""
    with LocalHub(tmp_path / "hub") as hub:
        assert ask(hub, "POST", "/api/buckets/local-user/live", {"visibility": "private"})[0] == 200
        name = f"runs/{HOSTILE}"
        line = json.dumps({"type": "addFile", "path": name, "xetHash": "0" * 64, "mtime": 1}).encode()
        assert ask(hub, "POST", "/api/buckets/local-user/live/batch", line)[0] == 200
        assert "/buckets/local-user/live" in addresses(page(hub, "/"))
        text = page(hub, "/buckets/local-user/live")
        assert "<script" not in text
        assert "private" in text
        (content,) = [link for link in addresses(text) if "/resolve/" in link]
        assert ask(hub, "GET", content)[0] == 200


def test_all_pages_are_found_from_the_first_one(hub):
    """Every link inside the Hub opens; the pages of a model and a dataset are among them."""
    seen, ahead = set(), ["/"]
    while ahead:
        path = ahead.pop()
        seen.add(path)
        status, headers, body = ask(hub, "GET", path)
        assert status == 200, path
        if headers["Content-Type"].startswith("text/html"):
            ahead += [link for link in addresses(body.decode()) if link not in seen]
    assert {RUN.home, RUN.tree(), RUN.blob("main", "docs/a.txt"), RUN.commits()} < seen
    assert {"/datasets/local-user/r", "/datasets/local-user/r/tree/main"} < seen


def test_pages_show_what_the_repository_has(hub):
    """Card, folder with the commit that changed each entry, file, history, and what a commit changed."""
    card = page(hub, RUN.home)
    assert "<h1>A card</h1>" in card
    assert "license" not in card, "metadata is no text"
    newest, older, first = hub.store.commits("model", "local-user/r")
    rows = re.findall(r"<tr>.*?</tr>", page(hub, RUN.tree()), re.DOTALL)
    assert [("docs/" in row, newest.oid in row, older.oid in row, first.oid in row) for row in rows] == [
        (True, True, False, False),
        (False, False, False, True),
        (False, False, True, False),
    ]
    assert "<pre>second &amp; last</pre>" in page(hub, RUN.blob("main", "docs/a.txt"))
    assert "<pre>first</pre>" in page(hub, RUN.blob(older.oid, "docs/a.txt"))
    history = page(hub, RUN.commits())
    places = [history.index(commit.oid) for commit in (newest, older, first)]
    assert places == sorted(places)
    assert "5 Bytes → 13 Bytes" in page(hub, RUN.commit(newest.oid))
    assert page(hub, RUN.commit(older.oid)).count("added, ") == 2


def test_what_others_wrote_is_text(hub):
    """Names, contents, titles, cards, branches and addresses: none of them becomes an element or an attribute."""
    name = f"{HOSTILE}.txt".replace("/", "")
    card = f'{HOSTILE}\n\n[x](javascript:alert(1)) ![y](javascript:alert(2) "{HOSTILE}")'.encode()
    header = ("header", {"summary": HOSTILE, "description": HOSTILE})
    assert commit(hub, header, file("README.md", card), file(name, HOSTILE.encode()))[0] == 200
    (branch,) = (HOSTILE.replace("/", "").replace(" ", ""),)
    assert ask(hub, "POST", f"/api/models/local-user/r/branch/{branch}", {})[0] in (200, 404)
    paths = [RUN.home, RUN.tree(), RUN.blob("main", name), RUN.commits(), RUN.commit("main"), RUN.tree(HOSTILE)]
    texts = [ask(hub, "GET", path)[2].decode() for path in [*paths, RUN.blob("main", HOSTILE), f"/{HOSTILE}/r"]]
    for text in texts:
        assert "<script" not in text
        assert not re.search(r'(href|src)="?javascript', text)
    assert sum("&lt;script&gt;" in text for text in texts) >= 6


def test_a_browser_may_run_no_script_of_a_page(hub):
    """Each page, refusals too, forbids scripts, forms and everything from elsewhere."""
    for path in ["/", *(RUN.home + page for page in PAGES), "/nobody/nothing"]:
        policy = ask(hub, "GET", path)[1]["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "form-action 'none'" in policy


@pytest.mark.parametrize("way", ["..", "%2e%2e", "docs/../..", "..%2F..", "/etc", "%2Fetc", "docs%00"])
def test_no_address_leads_out_of_a_commit(hub, way):
    """The Hub's own files, and those of the machine, are in no page."""
    for kind in ("tree", "blob", "resolve"):
        for path in (
            f"{RUN.home}/{kind}/main/{way}/secret",
            f"{RUN.home}/{kind}/main/{way}",
            f"/{way}/r/{kind}/main/x",
        ):
            assert ask(hub, "GET", path)[0] in (404, 400), path
    for path in (f"{RUN.home}/tree/{way}", f"{RUN.home}/commit/{way}", f"{RUN.home}/tensorboard/board/{way}/x"):
        assert ask(hub, "GET", path)[0] in (404, 400), path


def test_pages_need_a_token_where_the_hub_has_one(tmp_path):
    """Without one a browser is told to ask for it, and sees no name; it sends the token as a password."""
    with LocalHub(tmp_path, xet=False, token="hf_w") as hub:
        bearer = {"Authorization": "Bearer hf_w"}
        assert ask(hub, "POST", "/api/repos/create", {"name": "r", "private": True}, bearer)[0] == 200
        for path in ["/", *(RUN.home + page for page in PAGES), RUN.board + "/"]:
            for headers in ({}, basic("hf_wrong"), {"Authorization": "Basic !"}):
                status, answer, body = ask(hub, "GET", path, headers=headers)
                assert (status, answer["WWW-Authenticate"][:6]) == (401, "Basic ")
                assert b"local-user" not in body
        assert "private" in page(hub, "/", headers=basic("hf_w-read"))
        assert "local-user/r" in page(hub, RUN.home, headers=basic("hf_w"))
        assert ask(hub, "GET", RUN.resolve("main", ".gitattributes"), headers=basic("hf_w-read"))[0] == 200


def test_a_password_changes_nothing(tmp_path):
    """A browser adds it to requests that other pages make, so it is no key to what changes a repository."""
    with LocalHub(tmp_path, xet=False, token="hf_w") as hub:
        assert ask(hub, "POST", "/api/repos/create", {"name": "r"}, basic("hf_w"))[0] == 401
        assert ask(hub, "POST", "/-/faults", "/ 500", basic("hf_w"))[0] == 401
        assert hub.store.repos() == []


def test_large_files_and_binary_ones_are_not_shown(hub):
    """There is a link to them."""
    contents = {"large.txt": b"x" * (LONGEST_TEXT + 1), "binary": b"a\0b", "latin": b"\xe9t\xe9"}
    assert commit(hub, *(file(name, content) for name, content in contents.items()))[0] == 200
    for name in contents:
        text = page(hub, RUN.blob("main", name))
        assert "This file is not shown" in text
        assert "<pre>" not in text
        assert f"/{name}" in text


def test_an_unknown_address_of_the_api_is_refused_as_before(hub):
    """It is no page of a repository called `api/...`, which the client would take for a missing repository."""
    status, headers, _ = ask(hub, "GET", "/api/nothing")
    assert (status, headers["X-Error-Code"], headers["Content-Type"]) == (404, None, "application/json")
