"""The push: what it reads back, and how it ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import pytest
from conftest import wait_for
from support import run_python

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Sent, Unknown
from hf_mpwriter.push import commit as commit_module
from hf_mpwriter.push import handle
from hf_mpwriter.push import process as process_module
from hf_mpwriter.push.client import Remote
from hf_mpwriter.push.job import Job
from hf_mpwriter.system import disk, launch


def read_back(one: Job, there: dict[str, Remote]):
    """Compare everything that is known or to be sent."""
    return commit_module.read_back(one, {*one.known, *(file.path for file in one.files)}, there)


def remote(content: bytes) -> Remote:
    """An LFS file on the Hub."""
    return Remote(len(content), hashlib.sha256(content).hexdigest(), "")


def job(run_dir, known=(), files=("a.tfevents",), endpoint="http://127.0.0.1:9") -> Job:
    """A job whose entry wants five bytes of each file."""
    return Job(
        run_dir=str(run_dir),
        copies=str(run_dir / "copies"),
        destination=Destination(endpoint, "me/run"),
        private=None,
        squash=False,
        files=tuple(LocalFile(path, 5, growing=True) for path in files),
        known=dict(known),
        uncertain={},
        own_head=None,
        fenced=True,
        xet=True,
    )


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with one file of six bytes."""
    (tmp_path / "a.tfevents").write_bytes(b"abcdef")
    return tmp_path


def test_a_prefix_on_the_hub_is_taken_over(run_dir):
    """The ledger knows nothing, the Hub has three bytes of ours: they count, whoever sent them."""
    assert read_back(job(run_dir), {"a.tfevents": remote(b"abc")}) == (
        {"a.tfevents": Sent(3, remote(b"abc").sha256)},
        {},
    )


def test_a_small_regular_file_is_compared_by_its_git_id(run_dir):
    """Without LFS the Hub tells git's blob id only."""
    blob = hashlib.sha1(b"blob 3\0abc").hexdigest()  # noqa: S324 - git's own digest
    assert read_back(job(run_dir), {"a.tfevents": Remote(3, None, blob)})[0] == {"a.tfevents": Sent(3, "")}
    assert read_back(job(run_dir), {"a.tfevents": Remote(3, None, "0" * 40)})[1].keys() == {"a.tfevents"}


def test_what_is_gone_from_the_hub_counts_as_gone(run_dir):
    """The ledger claims a length that the Hub does not have any more: it is dropped."""
    known = {"a.tfevents": Sent(3, remote(b"abc").sha256), "other.tfevents": Sent(7, "00")}
    assert read_back(job(run_dir, known), {}) == ({"a.tfevents": Sent(0, ""), "other.tfevents": Sent(0, "")}, {})


def test_what_the_ledger_says_is_not_hashed_again(run_dir):
    """Size and digest as known: nothing to say, nothing to read."""
    known = {"missing.tfevents": Sent(3, remote(b"abc").sha256)}
    assert read_back(job(run_dir, known, files=()), {"missing.tfevents": remote(b"abc")}) == ({}, {})


def test_another_content_is_never_overwritten(run_dir):
    """Same path, not a prefix: differing."""
    found, differing = read_back(job(run_dir), {"a.tfevents": remote(b"xyz")})
    assert (found, list(differing)) == ({}, ["a.tfevents"])


def test_a_local_file_that_is_shorter_than_the_hubs_is_left_alone(run_dir):
    """A restored backup, or a file that is gone: what the Hub has is more, and counts as held."""
    there = {"a.tfevents": remote(b"abcdefgh"), "gone.tfevents": remote(b"x")}
    known = {"a.tfevents": Sent(7, "00")}
    found, differing = read_back(job(run_dir, known, files=("a.tfevents", "gone.tfevents")), there)
    assert found == {
        "a.tfevents": Sent(8, there["a.tfevents"].sha256),
        "gone.tfevents": Sent(1, there["gone.tfevents"].sha256),
    }
    assert differing == {}


def test_a_longer_copy_that_was_never_ours_is_not_believed(run_dir):
    """Nobody has ever sent this path from here, and the Hub has more under its name: quarantined, not acknowledged."""
    found, differing = read_back(job(run_dir), {"a.tfevents": remote(b"xxxxxxxx")})
    assert (found, list(differing)) == ({}, ["a.tfevents"])


@pytest.mark.parametrize(
    "verdict",
    [
        Done("c" * 40, own=True, repo_id="me/run", files={"a.tfevents": Sent(5, "00")}),
        Retry("why", 3.0),
        Unknown("why"),
        Refused("why", "what to do"),
        Quarantine({"a.tfevents": "why"}),
    ],
)
def test_a_verdict_survives_the_pipe(verdict):
    """What the push writes is what the uploader reads."""
    read, write = os.pipe()
    process_module.Notify(write).verdict(verdict)
    assert handle.parse_verdict(json.loads(os.read(read, 10_000))) == verdict
    os.close(read)
    os.close(write)


def test_garbage_is_no_verdict():
    """A verdict that cannot be read is none; the uploader then takes the outcome as unknown."""
    assert handle.parse_verdict({"verdict": "Sent", "length": 1, "sha256": "", "x": 1}) is None
    assert handle.parse_verdict({"verdict": "nonsense"}) is None
    assert handle.parse_verdict({"verdict": "Done"}) is None


def test_a_push_that_is_killed_has_an_unknown_outcome(run_dir):
    """SIGKILL: no verdict, so unknown, with the signal in the reason."""
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 300.0)
    os.kill(process.pid, signal.SIGKILL)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push ended by signal 9")


@pytest.mark.parametrize("text", ["a line\n", "no end of line", "5\n"])
def test_what_the_start_of_python_prints_is_no_message_of_the_push(run_dir, tmp_path, monkeypatch, text):
    """A `sitecustomize` that greets on standard output ends no uploader, and no verdict is lost in its line."""
    (tmp_path / "sitecustomize.py").write_text(f"print({text!r}, end='', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 300.0)
    assert isinstance(wait_for(lambda: process.listen()[1], "the end"), Retry)


def test_a_push_against_nobody_says_so(run_dir):
    """Connection refused: nothing was changed, try again."""
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 300.0)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert isinstance(verdict, Retry)
    assert "refused" in verdict.reason


def test_a_push_ends_at_once_and_what_libraries_have_printed_is_in_the_log():
    """Buffered text goes out; what Python would do at the end of an interpreter is not waited for."""
    program = """
import atexit, sys
from hf_mpwriter.push import process
atexit.register(print, "taken apart")
print("out", flush=False)
print("err", end="", file=sys.stderr, flush=False)
process.end()
"""
    ended = run_python(program, env={"PYTHONUNBUFFERED": ""})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "out\n", "err")


def test_a_push_dies_with_its_uploader(run_dir):
    """The parent is killed while its push hangs: the push is gone too."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        in_flight = str(run_dir / "in_flight.json")
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        disk.publish(in_flight, json.dumps({"job": job(run_dir, endpoint=endpoint).to_json()}).encode(), "test")
        source = "import sys,time\nfrom hf_mpwriter.push.handle import PushHandle\np = PushHandle(sys.argv[1], 300.0)\n"
        source += "print(p.pid, flush=True)\ntime.sleep(100)"
        parent = subprocess.Popen([sys.executable, "-c", source, in_flight], stdout=subprocess.PIPE, text=True)
        pid = int(parent.stdout.readline())
        connection, _ = silent.accept()
        parent.kill()
        parent.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{pid}") or zombie(pid), "the push is gone")
        connection.close()


def zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be collected."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_push_that_hangs_ends_by_its_own_timer(run_dir, monkeypatch):
    """A server that accepts and never answers: the timer's signal ends the push whatever its threads do."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        in_flight = str(run_dir / "in_flight.json")
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        disk.publish(in_flight, json.dumps({"job": job(run_dir, endpoint=endpoint).to_json()}).encode(), "test")
        monkeypatch.setattr(
            launch, "PUSH_BOOT", launch.PUSH_BOOT.replace("push.main", "push.DEADLINE_BASE=1.0;process.main")
        )
        process = handle.PushHandle(in_flight, 300.0)
        verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 300 s", xet="failing")


def test_a_push_that_is_stopped_is_ended_by_the_uploader(run_dir, monkeypatch):
    """SIGSTOP: its own timer cannot end it, so the uploader does when its time and some grace are over."""
    monkeypatch.setattr(handle, "GRACE", 0.1)
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 0.1)
    os.kill(process.pid, signal.SIGSTOP)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 0 s", xet="failing")


# attachments

ONE, TWO = (
    LocalFile("a.tsv", len(data), False, hashlib.sha256(data).hexdigest(), hashlib.sha1(data).hexdigest())  # noqa: S324
    for data in (b"one", b"two2")
)


def lfs(file: LocalFile) -> Remote:
    """An attachment on the Hub, as LFS keeps it."""
    return Remote(file.length, file.sha256, oid="0" * 40)


def regular(file: LocalFile) -> Remote:
    """An attachment on the Hub, as a small text is kept."""
    return Remote(file.length, None, oid=file.blob_id)


@pytest.mark.parametrize("kind", [lfs, regular])
def test_an_attachment_replaces_only_what_this_run_has_sent(run_dir, kind):
    """Known by the ledger, or uncertain with an unknown outcome: ours. Anything else is quarantined with what to do."""
    wants_two = dataclasses.replace(job(run_dir), files=(TWO,))
    assert read_back(dataclasses.replace(wants_two, known={"a.tsv": ONE.content}), {"a.tsv": kind(ONE)}) == ({}, {})
    uncertain = dataclasses.replace(wants_two, uncertain={"a.tsv": [ONE.content]})
    assert read_back(uncertain, {"a.tsv": kind(ONE)}) == ({"a.tsv": ONE.content}, {})
    found, differing = read_back(wants_two, {"a.tsv": kind(ONE)})
    assert found == {}
    assert "remove it there" in differing["a.tsv"]


@pytest.mark.parametrize("kind", [lfs, regular])
def test_an_attachment_that_is_there_already_is_acknowledged(run_dir, kind):
    """Whoever has sent it; if it was not this run, it is foreign."""
    wants_two = dataclasses.replace(job(run_dir), files=(TWO,))
    theirs = dataclasses.replace(TWO.content, foreign=True)
    assert read_back(wants_two, {"a.tsv": kind(TWO)}) == ({"a.tsv": theirs}, {})
    uncertain = dataclasses.replace(wants_two, uncertain={"a.tsv": [TWO.content]})
    assert read_back(uncertain, {"a.tsv": kind(TWO)}) == ({"a.tsv": TWO.content}, {})


def test_what_is_known_is_told_again_while_an_offer_is_open(run_dir):
    """So the outcome of the offer is known, and nobody asks again."""
    known = dataclasses.replace(job(run_dir), files=(TWO,), known={"a.tsv": TWO.content})
    assert read_back(known, {"a.tsv": lfs(TWO)}) == ({}, {})
    uncertain = dataclasses.replace(known, uncertain={"a.tsv": [ONE.content]})
    assert read_back(uncertain, {"a.tsv": lfs(TWO)}) == ({"a.tsv": TWO.content}, {})


class HubOfOne:
    """A Hub with one attachment; nobody may commit."""

    repo_id = "me/run"
    commits_sent = 0

    def __init__(self, there: Remote) -> None:
        self.there = there

    def head(self) -> str:
        """The head."""
        return "c" * 40

    def sizes(self, paths, _) -> dict[str, Remote]:
        """What is there."""
        return dict.fromkeys(paths, self.there)


def test_what_others_have_sent_is_not_replaced_when_ours_changes(run_dir):
    """It was equal, so it counted as there; nothing of ours is uncertain by the refusal."""
    theirs = dataclasses.replace(ONE.content, foreign=True)
    wants = dataclasses.replace(job(run_dir), files=(TWO,), known={"a.tsv": theirs})
    verdict = commit_module.carry(wants, HubOfOne(lfs(ONE)), lambda _: None, random.Random(1))
    assert isinstance(verdict, Quarantine)
    assert (list(verdict.paths), verdict.committed) == (["a.tsv"], False)


def test_an_attachment_that_is_gone_or_rewritten_is_noticed_though_nothing_is_to_be_sent(run_dir):
    """A moved head: all that is known is read back. A shorter copy is no beginning of anything."""
    known = dataclasses.replace(job(run_dir, files=()), known={"a.tsv": TWO.content})
    assert read_back(known, {}) == ({"a.tsv": Sent(0, "")}, {})
    assert list(read_back(known, {"a.tsv": lfs(ONE)})[1]) == ["a.tsv"]
    assert read_back(known, {"a.tsv": lfs(TWO)}) == ({}, {})


def test_a_job_survives_its_way_to_the_push(run_dir):
    """What the uploader writes is what the push reads; a digest that is none is refused."""
    one = dataclasses.replace(
        job(run_dir), files=(TWO,), known={"a.tsv": ONE.content}, uncertain={"a.tsv": [ONE.content, TWO.content]}
    )
    data = json.loads(json.dumps(one.to_json()))
    assert Job.from_json(data) == one
    data["files"][0]["sha256"] = "../../etc/passwd"
    with pytest.raises(ValueError, match="not the digests"):
        Job.from_json(data)


@pytest.mark.parametrize("when", ["read", "commit"])
def test_an_outcome_is_unknown_only_after_the_commit_has_begun(run_dir, when):
    """A read-back that fails has uncertain nothing: what is on the Hub does not become ours by it."""
    one = HubOfOne(lfs(ONE))
    if when == "read":
        one.sizes = lambda *_: timeout()
    one.is_private = lambda: None

    def commit(*_, **__):
        one.commits_sent += 1
        timeout()

    one.commit = commit
    (run_dir / "copies").mkdir(parents=True)
    (run_dir / "copies" / TWO.sha256).touch()
    verdict = commit_module.carry(
        dataclasses.replace(job(run_dir), files=(TWO,), known={"a.tsv": ONE.content}), one, str, random.Random(1)
    )
    assert type(verdict) is (Retry if when == "read" else Unknown)


def timeout() -> None:
    """The Hub does not answer."""
    raise TimeoutError
