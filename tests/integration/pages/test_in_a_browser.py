"""The pages of the local Hub in a real browser: the demo as its user sees it, and what arrives while one looks."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import MISSING, browser
from demos import listen_to_ctrl_c, processes_of, without_sklearn
from hub_clients import ask, requests_of
from programs import DEADLINE, wait_for

from hf_mpwriter.localhub import LocalHub, Store
from hf_mpwriter.testing import processes

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

REPO = ("model", "demo/digits")
RUN = "tensorboard/digits"
CHARTS = """
const charts = {}, below = (node, name) => [...node.querySelectorAll("*")].flatMap(
    (element) => [...(element.matches(name) ? [element] : []),
                  ...(element.shadowRoot ? below(element.shadowRoot, name) : [])]);
for (const card of below(document, "tf-scalar-card"))
    charts[card.tag] = below(card.shadowRoot, "path.symbol").length;
return charts;
"""  # tag -> how many curves its chart has; TensorBoard draws a symbol at the end of each


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """`demo --open` in a directory, with its output; it does not outlive the test."""
    without_sklearn(tmp_path / "packages", monkeypatch)
    directory, said = tmp_path / "demo", tmp_path / "said"
    command = [sys.executable, "-m", "hf_mpwriter", "demo", "--open", "--dir", str(directory)]
    with said.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            preexec_fn=listen_to_ctrl_c,  # noqa: PLW1509 - it makes one system call
        )
    yield process, directory, said
    if process.poll() is None:
        process.terminate()
        process.wait(DEADLINE)


def shown(driver) -> dict[str, int]:
    """How many curves the charts of the page's TensorBoard have, by tag; empty while it loads."""
    from selenium.common.exceptions import WebDriverException

    driver.switch_to.default_content()
    with suppress(WebDriverException):  # the frame changes while it is asked
        driver.switch_to.frame(driver.find_element("css selector", "iframe"))
        return driver.execute_script(CHARTS)
    return {}


def boards_of(directory: Path) -> list[int]:
    """Process ids of the TensorBoards of a demo's Hub."""
    return [
        process.pid
        for process in processes_of(directory)
        if "hf_mpwriter.localhub.pages.board_process" in process.cmdline()
    ]


def commit_one_more(endpoint: str, store: Store, logged: bytes) -> None:
    """Commit rank 0's file with more at its end, as an uploader does."""
    from huggingface_hub import HfApi

    path = max(path for path in store.tree(*REPO) if re.fullmatch(rf"{RUN}/[^/]*tfevents[^/]*", path))
    grown = store.read_blob(*REPO, path) + logged
    HfApi(endpoint=endpoint).upload_file(path_or_fileobj=grown, path_in_repo=path, repo_id=REPO[1])


def is_seen_after_a_reload(driver, tag: str) -> bool:
    """Reload the page once; whether TensorBoard then has a chart with a curve of this tag."""
    driver.switch_to.default_content()
    driver.refresh()
    charts = wait_for(lambda: shown(driver), "TensorBoard shows charts")
    return charts.get(tag, 0) > 0


@pytest.mark.timeout(600)
def test_the_demo_is_seen_with_all_its_workers_and_what_arrives_later_too(demo, tmp_path):
    """Its links open. Each chart has a curve of each worker. A commit shows after a reload, in the same TensorBoard.

    Ctrl-C ends the Hub and TensorBoard, with the exit code of the verdict.
    """
    process, directory, said = demo
    wait_for(lambda: process.poll() is not None or "Ctrl-C ends" in said.read_text(), "the demo is open")
    links = re.findall(r"^  (http://\S+) ", said.read_text(), re.MULTILINE)
    assert len(links) == 3, said.read_text()
    metrics, files, bucket = links
    with browser() as driver:
        driver.get(bucket)
        assert len(driver.find_elements("css selector", ".list tr")) >= 4
        driver.get(files)
        assert [link.text for link in driver.find_elements("css selector", "nav a.open")] == ["Files and versions"]
        driver.find_element("link text", "tensorboard/").click()
        driver.find_element("link text", "digits/").click()
        names = [link.text for link in driver.find_elements("css selector", ".list td:first-child a")]
        assert names[:3] == ["rank_00001/", "rank_00002/", "rank_00003/"]
        driver.find_element("link text", "Training metrics").click()
        assert driver.current_url == metrics
        wait_for(lambda: shown(driver).get("train/loss") == 4, "the chart of all four workers")
        boards = boards_of(directory)
        commit_one_more(metrics.split("/demo/")[0], Store(directory / "hub"), event("late/arrival", tmp_path))
        wait_for(lambda: is_seen_after_a_reload(driver, "late/arrival"), "the commit that arrived")
        assert len(boards) == 1
        assert boards_of(directory) == boards
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0, said.read_text()
    assert processes_of(directory) == []


ATTACK = """<iframe name="out"></iframe>
<form action="HUB/api/repos/create" method="post" target="out" enctype="text/plain"><input name='{"name": "form", "a'
 value='": 1}'></form>
<script>
const body = (name) => JSON.stringify({name, type: "model"});
const send = (path, content) => fetch("HUB" + path, {method: "POST", mode: "no-cors", body: content});
document.forms[0].submit();
Promise.allSettled([
    send("/api/repos/create", body("text")),
    send("/api/repos/create", new Blob([body("blob")])),
    send("/api/models/local-user/own/super-squash/main", "{}"),
    send("/-/faults", "/api/ 500 times=0"),
    fetch("HUB/api/repos/create", {method: "POST", body: body("json"), headers: {"Content-Type": "application/json"}}),
    fetch("HUB/-/faults", {method: "DELETE"}),
]).then(() => { document.title = "sent"; });
</script>"""


def test_a_page_of_another_port_changes_nothing_on_a_hub_without_a_token(hub, tmp_path):
    """All that it can have a browser send arrives there and is refused."""
    assert ask(hub, "POST", "/api/repos/create", {"name": "own"})[0] == 200
    before = hub.store.resolve("model", "local-user/own")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text(ATTACK.replace("HUB", hub.endpoint))
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "page")))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    with pages, browser() as driver:
        driver.get(f"http://127.0.0.1:{pages.server_port}/index.html")
        wait_for(lambda: driver.title == "sent", "the page has sent its requests")
        wait_for(lambda: len(refused(hub)) >= 4, "what comes as a form, as text, as a file, and for another path")
        pages.shutdown()
    assert set(refused(hub)) == {403}
    assert [repo.id for repo in hub.store.repos()] == ["local-user/own"]
    assert hub.store.resolve("model", "local-user/own") == before
    assert hub.faults() == []


def refused(hub: LocalHub) -> list[int]:
    """The answers to what was sent to change something, but for the first."""
    return [line["status"] for line in requests_of(hub) if line["method"] == "POST"][1:]


def event(tag: str, directory: Path) -> bytes:
    """Return the records of one scalar."""
    from hf_mpwriter import SummaryWriter

    with SummaryWriter(directory / "late") as writer:
        writer.add_scalar(tag, 1.0, 1)
    (file,) = (directory / "late").glob("*tfevents*")
    assert not processes.left_behind(str(directory / "late"))
    return file.read_bytes()
