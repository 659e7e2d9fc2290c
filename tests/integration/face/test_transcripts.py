"""What a user reads while training runs: whole transcripts, with a real Hub here, as `docs/operations.md` has them.

A program logs until the test has read what it waits for: so an outage is told while training still runs, and not at its
end. What differs from run to run stands as HUB, RUN, LOG, SIZE, N and TIME.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from programs import Program, wait_for
from repository import ROOT
from runs import kill_uploaders, no_uploader, run
from transcripts import (
    CREATED,
    DONE,
    LATER,
    LINK,
    STARTS,
    STARTS_IN_AN_OUTAGE,
    UNREACHABLE,
    UNSENT,
    VISIBLE,
    WRONG_TOKEN,
    normalised,
)

from hf_mpwriter.localhub import LocalHub

TRAINS = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
step = 0
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=float(sys.argv[3])) as writer:
    while not os.path.exists(sys.argv[2]):
        writer.add_scalar("loss", 1.0, step)
        writer.push()  # so that no wait of the uploader is long
        step += 1
        time.sleep(0.05)
"""
AGAIN = "uploading again, after TIME"
LOGIN = "run `hf auth login`; log: LOG"
ENDS = {  # a fault of the Hub, and what is told of it until it is over
    "404 code=RepoNotFound": (
        f"not uploading: me/run, or its branch main, is not found (404): check repo_id and repo_revision; {LATER}"
    ),
    "401": f"not uploading: no token (401): {LOGIN}",
    "403 message='You have read access only'": (
        "not uploading: the token lacks rights to me/run (403): run `hf auth login` with a token that may write; "
        "log: LOG"
    ),
    "402": (
        "not uploading: the storage of the account is used up (402): see https://huggingface.co/settings/billing; "
        "log: LOG"
    ),
    "429 header=Retry-After:1": (
        f"not uploading: the rate limit of the Hub is reached (429): a larger commit_every needs fewer commits; {LATER}"
    ),
    "503": f"not uploading: the Hub fails (503); {LATER}",
    "close": f"not uploading: HUB has ended the connection; {LATER}",
}
NOT_THERE, NO_TOKEN, *OTHERS_OF_A_HUB = ENDS
OUTAGES = [(NOT_THERE, OTHERS_OF_A_HUB), (NO_TOKEN, [])]  # these two differ where something is on the Hub
UNKNOWN_NAME = f"not uploading: the name of HUB is not known (DNS): check the network; {LATER}"
REFUSED_FILE = "not uploading events.out.tfevents: the Hub refuses it (400: not like this); what else there is goes on"
GONE = (
    "not uploading: me/run (branch main) at HUB is gone, or the token has no access to it any more. If it was deleted, "
    "a new one is made by: hf-mpwriter sync RUN --create. If it was renamed, or access to it was withdrawn: check its "
    "name and the token (hf auth login). A new run directory starts anew, too; log: LOG"
)
OTHERS = (
    f"{LINK} has event files that are not of this run directory: of another run of its name, or of an earlier attempt "
    "on another disk. TensorBoard shows them as one run. If it is one, bring them here before its next start: "
    "hf-mpwriter pull RUN. If they are two, give one of them another path_in_repo."
)
NO_ROOM = f"not uploading: the disk is full: free space on the disk of RUN/.hf_mpwriter; {LATER}"
NO_RECORDS = "RUN/events.out.tfevents: the disk refuses event records (No space left on device)"


class Training:
    """A program that logs, and what it prints."""

    def __init__(self, start, run_dir: Path, endpoint: str, env: dict[str, str] | None = None, timeout=120.0) -> None:
        self._run_dir, self._endpoint, self._go = run_dir, endpoint, run_dir.parent / "go"
        self._program: Program = start(TRAINS, run_dir, self._go, timeout, env={"HF_ENDPOINT": endpoint, **(env or {})})
        self.lines: list[str] = []

    def reads(self, wanted: str) -> None:
        """Read on until a line comes that begins so; the program goes on logging."""
        for line in self._program.process.stderr:
            self.lines.append(normalised(line, self._run_dir, self._endpoint))
            if self.lines[-1].startswith(wanted):
                assert self._program.process.poll() is None, "it was told while training ran"
                return
        pytest.fail(f"{wanted!r} was never told: {self.lines}")

    def ends(self) -> list[str]:
        """Let the program end; all that it has told."""
        self._go.touch()
        self.lines += self._rest()
        assert self._program.process.wait() == 0, self.lines
        return self.lines

    def is_ended_by(self, number: signal.Signals) -> list[str]:
        """End the program by a signal; what it still tells."""
        self._program.process.send_signal(number)
        assert self._program.process.wait() == -number
        return self._rest()

    def _rest(self) -> list[str]:
        return [normalised(line, self._run_dir, self._endpoint) for line in self._program.process.stderr]


@pytest.fixture
def trains(run_dir, start):
    """Start training."""
    yield lambda endpoint, **more: Training(start, run_dir, endpoint, **more)
    kill_uploaders(run_dir)


def test_a_healthy_run_tells_where_it_goes_and_what_is_there_in_the_end(trains, hub):
    """Four lines, of which two are about a new repository."""
    training = trains(hub.endpoint)
    training.reads("uploading")
    assert training.ends() == [CREATED, VISIBLE, STARTS, DONE]
    assert any(path.startswith("tensorboard/exp1/") for path in hub.store.tree("model", "me/run", "main"))


@pytest.mark.parametrize(("first", "others"), OUTAGES)
def test_outages_are_told_while_they_last_and_when_they_are_over(trains, hub, first, others):
    """Each in a sentence with what helps. The line of the start comes first; who can read it, when that is known."""
    hub.fault(f"/api/ {first} times=0")
    training = trains(hub.endpoint, env={"HF_HUB_DISABLE_XET": "1"})  # whose requests are others
    training.reads("not uploading")
    assert training.lines == [STARTS_IN_AN_OUTAGE, ENDS[first]]
    hub.clear_faults()
    training.reads(AGAIN)
    assert training.lines[2:] in ([CREATED, VISIBLE, AGAIN], [AGAIN]), training.lines
    for fault in others:
        told = len(training.lines)
        hub.fault(f"/api/ {fault} times=0")
        training.reads("not uploading")
        hub.clear_faults()
        training.reads(AGAIN)
        assert training.lines[told:] == [ENDS[fault], AGAIN]
    assert training.ends()[-1] == DONE


def test_a_refused_token_is_told_while_training_runs(trains, tmp_path):
    """With accounts: the Hub knows no such token. When it does, the upload goes on, and nothing was lost."""
    with LocalHub(tmp_path / "hub", token="hf_right") as server:
        training = trains(server.endpoint, env={"HF_TOKEN": "hf_wrong"})
        training.reads("not uploading")
        assert training.lines == [STARTS_IN_AN_OUTAGE, WRONG_TOKEN]
        server.set_token("hf_wrong")
        training.reads(AGAIN)
        assert training.ends()[-1] == DONE


def test_a_run_without_a_token_that_is_looked_at_with_one_needs_nothing_but_sync(
    trains, tmp_path, run_dir, monkeypatch
):
    """The token of this shell was not tried; without one, the first step is to have one."""
    with LocalHub(tmp_path / "hub", token="hf_right") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        training = trains(server.endpoint, timeout=0.5)
        training.reads("not uploading")
        training.ends()
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves, as it has no token")
        sync = f"hf-mpwriter sync {run_dir}"
        assert run("status", run_dir).output.splitlines()[-1] == f"next: run `hf auth login`; then: {sync}"
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        status = run("status", run_dir)
        assert (status.output.splitlines()[-1], "hf auth login" in status.output) == (f"next: {sync}", False)
        synced = run("sync", run_dir)
        assert synced.exit_code == 0, synced.output


@pytest.mark.parametrize(
    ("endpoint", "line"), [("http://127.0.0.1:9", UNREACHABLE), ("http://nonexistent.invalid", UNKNOWN_NAME)]
)
def test_a_hub_that_cannot_be_reached_is_told_once_and_its_command_at_the_end(trains, endpoint, line):
    """The reason is not repeated at the end, as it is known."""
    training = trains(endpoint)
    training.reads("not uploading")
    assert training.ends() == [STARTS_IN_AN_OUTAGE, line, UNSENT]


def test_a_file_that_the_hub_refuses_is_named_with_what_the_hub_says(trains, hub):
    """The other files go on; the end names the command."""
    hub.fault("POST /commit/ 400 times=0 message='not like this'")
    training = trains(hub.endpoint, timeout=30.0)
    training.reads("not uploading")
    told = training.ends()
    assert told.count(REFUSED_FILE) == 1, told
    assert "hf-mpwriter sync RUN" in told[-1]


def test_a_repository_that_was_deleted_is_told_with_how_to_make_it_again(trains, hub):
    """It is not created again unasked."""
    training = trains(hub.endpoint, timeout=0.5)
    training.reads(STARTS)
    HfApi(endpoint=hub.endpoint).delete_repo("me/run")
    training.reads("not uploading")
    assert training.lines[-1] == GONE
    assert "hf-mpwriter sync RUN" in training.ends()[-1]


def test_another_run_in_the_folder_is_told_once_while_training_runs(trains, hub):
    """As `runs/a/exp1` and `runs/b/exp1` are, which one repository puts into one folder. Both are kept."""
    theirs = "tensorboard/exp1/events.out.tfevents.1700000000.there.1"
    api = HfApi(endpoint=hub.endpoint)
    api.create_repo("me/run")
    api.upload_file(repo_id="me/run", path_or_fileobj=b"theirs", path_in_repo=theirs)
    training = trains(hub.endpoint)
    training.reads(OTHERS)
    if STARTS not in training.lines:  # either may come first, and an end without this one names who can read it
        training.reads(STARTS)
    told = training.ends()
    assert (told.count(OTHERS), told[-1]) == (1, DONE), told
    assert hub.store.read_blob("model", "me/run", theirs, "main") == b"theirs"


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[bool], object]]:
    """A disk of a megabyte at a place, and what fills it again and again, or frees it.

    What the uploader itself frees is taken at once.
    """
    place.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "small", str(place)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount a disk")
    filler, is_over, is_filling = place / ".filler", threading.Event(), threading.Event()

    def fill() -> None:
        while not is_over.wait(0.05):
            with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
                while is_filling.is_set():
                    file.write(bytes(4096))

    def set_full(is_full: bool) -> None:
        (is_filling.set if is_full else is_filling.clear)()
        if not is_full:
            wait_for(lambda: filler.unlink(missing_ok=True) is None and not filler.exists(), "there is room")

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield set_full
    finally:
        is_over.set()
        thread.join()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.root
def test_an_uploader_without_room_is_told_while_training_runs(trains, hub, run_dir):
    """Only its own disk is full, as where the spool is kept aside. status, doctor and sync say what is to be freed."""
    run_dir.mkdir(parents=True)
    with small_disk(run_dir / ".hf_mpwriter") as set_full:
        training = trains(hub.endpoint, timeout=300.0)
        training.reads(STARTS)
        set_full(True)
        training.reads("not uploading")
        assert training.lines[-1] == NO_ROOM
        status, sync = run("status", run_dir), run("sync", run_dir, "--timeout", "1")
        cure = f"free space on the disk of {run_dir}/.hf_mpwriter"
        assert (status.exit_code, status.output.splitlines()[-1]) == (
            4,
            f"next: {cure}; then: hf-mpwriter sync {run_dir}",
        )
        assert "  error        the disk is full. Free space on the disk of" in status.output
        assert sync.exit_code == 1
        assert cure in sync.output or "No space left on device. Free space" in sync.output, sync.output
        (disk,) = (line for line in run("doctor", run_dir).output.splitlines() if line.startswith("fail  disk"))
        assert f"free for {run_dir}/.hf_mpwriter. Free space" in disk
        set_full(False)
        training.reads(AGAIN)
        assert training.ends()[-1] == DONE
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves before its disk does")


@pytest.mark.root
def test_records_that_a_full_disk_refuses_are_told_with_what_becomes_of_them(trains, hub, run_dir):
    """All of the run is on a full disk: while training goes on nothing is lost, and its end says what is."""
    with small_disk(run_dir.parent) as set_full:
        training = trains(hub.endpoint, timeout=0.5)
        training.reads(STARTS)
        set_full(True)
        training.reads(NO_RECORDS)
        counted = re.compile(r"in memory +\d+ records?, because the disk refuses them")
        wait_for(lambda: counted.search(run("status", run_dir).output), "the next housekeeping counts them")
        status = run("status", run_dir)
        assert status.exit_code == 4
        assert status.output.splitlines()[-1].startswith(f"next: free space on the disk of {run_dir}: what waits in")
        (disk,) = (line for line in run("doctor", run_dir).output.splitlines() if line.startswith("fail  disk"))
        assert f"free for {run_dir}. Free space" in disk
        ended = training.ends()  # the count of the run follows if it could be written by then
        lost = re.compile(r"\d+ records? (is|are) lost: the disk refuses them \(No space left on device\)")
        assert {"hf-mpwriter sync RUN" in line for line in ended if lost.search(line)} == {True}, ended
        set_full(False)
        synced = run("sync", run_dir)
        assert (synced.exit_code, "are on the Hub" in synced.output) == (3, True), synced.output
        assert re.search(r"^Error: lost: \d+ records? of main since", synced.output, re.MULTILINE), synced.output
        assert run("status", run_dir).exit_code == 4
        run("status", run_dir, "--seen")
        wait_for(lambda: run("status", run_dir).exit_code == 0, "what was lost is on the Hub, too")
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves before its disk does")


def test_a_rank_that_its_launcher_ends_says_nothing_more_and_status_says_it(trains, hub, run_dir):
    """As torchrun ends the other ranks when one was killed. What they have logged goes on its way."""
    hub.fault("/api/ 503 times=0")
    training = trains(hub.endpoint, env={"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    training.reads("not uploading")
    assert training.is_ended_by(signal.SIGTERM) == []
    status = run("status", run_dir)
    assert (status.exit_code, "1 died: main" in status.output) == (3, True), status.output
    assert "  error        the Hub fails (503)" in status.output
    hub.clear_faults()
    assert run("sync", run_dir).exit_code == 0
    assert run("status", run_dir).exit_code == 0


def test_the_session_of_the_documents_has_lines_that_are_read_here():
    """A line for each thing that happens; those between the links are written out."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## What training prints")[2]
    shown = text.partition("```text\n")[2].partition("```")[0].splitlines()
    lines = [normalised(line, Path("runs/exp1"), "https://huggingface.co") for line in shown]
    assert lines == [CREATED, VISIBLE, STARTS, ENDS["503"], AGAIN, DONE]
