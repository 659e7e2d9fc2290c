"""Transcripts: what status, verify, logs and doctor print of runs as they are met, on a real local Hub.

One fixture makes all runs, by real writers. What differs from one time to the next is replaced by a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import DEADLINE, Program, wait_for
from runs import living_uploader, no_uploader, run
from support import event_file
from transcripts import VALID_TOKEN

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.testing import processes

TOKEN = "hf_" + "w" * 30
READ_TOKEN = f"{TOKEN}-read"
LOG = """
import sys, time
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=1000) as writer:
    for step in range(10):
        writer.add_scalar("loss", 1.0, step)
    if sys.argv[2] == "lives":
        writer.push(wait=200)
        for step in range(10, 20):
            writer.add_scalar("loss", 1.0, step)
        print("waits", flush=True)
        time.sleep(1000)
"""
KINDS = (  # what is replaced, and by which word
    (r"http://127\.0\.0\.1:\d+", "HUB"),
    (r"events\.out\.tfevents\.\d{10}\.[\w.-]+?\.\d+\.[0-9a-f]{8}", "EVENTS"),
    (r"/commit/[0-9a-f]{40}", "/commit/COMMIT"),
    (r"\b[0-9a-f]{8}, (\d+ \w+) ago", "COMMIT, SOME TIME ago"),
    (r"last seen \d+ \w+ ago", "last seen SOME TIME ago"),
    (r"(for|in) \d+:\d\d(:\d\d)?", r"\1 TIME"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
    (r"(process|pid|uploader|\[)(\s?)\d+", r"\1\2PID"),
    (r"[\d.]+ (B|kB|MB|GB)\b", "SIZE"),
    (r"(?m)^ +SIZE of +SIZE", "  SIZE of SIZE"),
    (r"\(\d+ times in a row\)", "(N times in a row)"),
)


class Place(NamedTuple):
    """Where the runs are."""

    hub: LocalHub  # the Hub of the healthy ones
    folder: Path  # the current folder of the commands
    env: dict[str, str]  # their environment


def transcript(place: Place, *words: str, **environ: str) -> tuple[int, str]:
    """The exit code of a command and what it prints, without what differs each time."""
    done = subprocess.run(
        [sys.executable, "-m", "hf_mpwriter", *words],
        cwd=place.folder,
        env=place.env | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    text = done.stdout + done.stderr
    assert TOKEN not in text
    assert words[0] == "logs" or not re.search(r"[\w)`]\. [a-z]|[^.]\.\.(?!\.|/)", text), "sentences of ours"
    for pattern, word in KINDS:
        text = re.sub(pattern, word, text)
    return done.returncode, text.replace(str(place.folder), "FOLDER")


@pytest.fixture(scope="module")
def place(tmp_path_factory, without_torch) -> Iterator[Place]:
    """A Hub with tokens, and a folder with a healthy run, a live one, and one whose host has died."""
    folder = tmp_path_factory.mktemp("face")
    with LocalHub(folder / "hub", token=TOKEN) as hub:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_"))}
        own = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_MPWRITER_EXIT_TIMEOUT": "120",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": without_torch,
        }
        env = kept | own
        away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_MPWRITER_EXIT_TIMEOUT": "0"}
        live = Program(LOG, folder / "runs" / "live", "lives", env=env)
        dead = Program(LOG, folder / "down" / "dead", "ends", env=env | away)
        try:
            Program(LOG, folder / "runs" / "exp1", "ends", env=env).succeed()
            dead.succeed()
            assert live.process.stdout.readline() == "waits\n"
            wait_for(lambda: no_uploader(folder / "runs" / "exp1"), "the uploader of the healthy run leaves")
            down = HubSink(Spool(str(folder / "down" / "dead")))
            wait_for(lambda: down.status().failures, "the outage is noticed")
            alive = HubSink(Spool(str(folder / "runs" / "live")))
            wait_for(lambda: alive.status().phase == "idle" and alive.status().next_in > 0, "it is at rest")
            wait_for(lambda: alive.status().serves == 1, "it has let go of the healthy run")
            yield Place(hub, folder, env)
        finally:
            live.process.kill()
            live.process.communicate()
            for name in ("runs/live", "down/dead", "more/exp2"):
                for pid in processes.left_behind(str(folder / name)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


HEALTHY = """\
runs/exp1 -> HUB/me/run/tree/main/tensorboard/exp1 (public)
  workers      1 ended: main
  logged       SIZE in 1 file
  on the Hub   SIZE, everything
  last commit  COMMIT, SOME TIME ago: HUB/me/run/commit/COMMIT
  uploader     none runs
  SIZE of SIZE  EVENTS
"""
LIVE = """\
runs/live -> HUB/me/run/tree/main/tensorboard/live (public)
  workers      1 alive: main (pid PID)
  logged       SIZE in 1 file
  on the Hub   SIZE; SIZE waiting, the oldest record for TIME
  last commit  COMMIT, SOME TIME ago: HUB/me/run/commit/COMMIT
  next commit  in TIME
  uploader     idle, process PID, last seen SOME TIME ago
  SIZE of SIZE  EVENTS (may still grow)
"""


def test_the_status_of_a_healthy_run_and_of_a_live_one(place):
    """Complete is 0 and needs no `next`; what is logged since the last commit waits for the next one: 3."""
    assert transcript(place, "status", "runs/exp1") == (0, HEALTHY)
    assert transcript(place, "status", "runs/live") == (3, LIVE)


def test_the_status_of_all_runs_below_a_folder(place):
    """A line each; the highest exit code counts."""
    code, text = transcript(place, "status")
    heads = [line.split()[:2] for line in text.splitlines()]
    assert (code, heads) == (3, [["down/dead", "waiting"], ["runs/exp1", "complete"], ["runs/live", "waiting"]])
    assert "the Hub cannot be reached" in text.splitlines()[0]


def test_the_status_while_the_hub_is_down_and_after_its_uploader_has_died(place):
    """It waits as long as an uploader tries; with its host dead, a person has to finish it."""
    code, text = transcript(place, "status", "down/dead")
    assert code == 3
    assert "\n  error        the Hub cannot be reached" in text
    run_dir = place.folder / "down" / "dead"
    os.kill(living_uploader(run_dir), signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "it is gone")
    code, text = transcript(place, "status", "down/dead")
    assert (code, text.splitlines()[-1]) == (4, "next: hf-mpwriter sync ./down/dead"), text
    assert "  uploader     none runs\n" in text
    assert transcript(place, "stop", "down/dead")[0] == 0


def test_a_bad_token_and_one_that_may_only_read_are_told_by_verify_and_doctor(place):
    """One line with the cure: HF_TOKEN is set, so a login would change nothing."""
    assert transcript(place, "verify", "runs/exp1", HF_TOKEN="hf_wrong") == (
        1,
        f"Error: Nothing was compared: token refused (401). S{VALID_TOKEN[1:]}\n",
    )
    code, text = transcript(place, "doctor", "runs/exp1", HF_TOKEN="hf_wrong")
    assert (
        code,
        "fail  token       from HF_TOKEN: token refused (401). Set HF_TOKEN to a token that is valid\n" in text,
    ) == (
        4,
        True,
    ), text
    code, text = transcript(place, "doctor", "runs/exp1", HF_TOKEN=READ_TOKEN)
    assert (code, "fail  repository  me/run, public, this token may not write." in text) == (4, True), text
    assert "fail  token       from HF_TOKEN: local-user, read only." in text
    assert transcript(place, "verify", "runs/exp1", HF_TOKEN=READ_TOKEN)[0] == 0, "to read is enough"


def test_sync_of_a_healthy_run_and_with_a_bad_token(place):
    """A link that opens; the refusal once, and not as if the Hub had given no answer."""
    last = "All SIZE of FOLDER/runs/exp1 are on the Hub: HUB/me/run/tree/main/tensorboard/exp1"
    code, text = transcript(place, "sync", "runs/exp1")
    assert (code, text.splitlines()[0]) == (0, last), text
    wait_for(lambda: no_uploader(place.folder / "runs" / "exp1"), "its uploader leaves")
    code, text = transcript(place, "sync", "runs/exp1", HF_TOKEN="hf_wrong")
    error = (
        f"Error: The Hub does not tell what it has: token refused (401). S{VALID_TOKEN[1:]}; then: "
        "hf-mpwriter sync ./runs/exp1"
    )
    assert (code, [line for line in text.splitlines() if "401" in line]) == (1, [error]), text
    assert transcript(place, "stop", "runs/exp1")[0] == 0
    wait_for(lambda: no_uploader(place.folder / "runs" / "exp1"), "the uploader with that token is gone")


def test_a_hub_that_is_down_or_fails_is_one_line(place):
    """No traceback, no word of the client's own tries, and nothing is said of the data."""
    place.hub.fault("/tree/ 503 times=0")
    line = "Error: Nothing was compared: the Hub fails (503). Try again later; what is wrong: hf-mpwriter doctor\n"
    assert transcript(place, "verify", "runs/exp1") == (1, line)
    place.hub.clear_faults()
    trees = [json.loads(line) for line in (Path(place.hub.root) / "requests.jsonl").read_text().splitlines()]
    assert sum("/tree/" in one["path"] and one["status"] == 503 for one in trees) == 2, "tried twice, not six times"
    code, text = transcript(place, "doctor", HF_ENDPOINT="http://127.0.0.1:9")
    (line,) = (line for line in text.splitlines() if "endpoint" in line)
    said = " ".join(line.split()).partition(". ")[0]
    assert (code, said) == (4, "fail endpoint HUB: the Hub cannot be reached at HUB"), text


def test_what_doctor_says_where_all_is_well(place):
    """Each check has a line."""
    code, text = transcript(place, "doctor", "runs/exp1")
    lines, names = text.splitlines(), ["versions", "endpoint", "token", "repository", "disk"]
    assert [line.split()[1] for line in lines] == [*names, "filesystem", "storage", "files"], text
    assert code == 0, text
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}


def test_verify_and_logs_of_a_healthy_run(place):
    """The log says what the uploader did."""
    code, text = transcript(place, "verify", "runs/exp1")
    assert (code, text.splitlines()[-1].startswith("Whole on the Hub: 1 file; no event file shrank in")) == (0, True)
    code, text = transcript(place, "logs", "runs/exp1")
    assert (code, text.splitlines()[0]) == (0, "DATE [PID] took the uploader lock of FOLDER/runs/exp1"), text
    pushes = [line for line in text.splitlines() if line.startswith("DATE [PID] pushed SIZE in 1 file, commit ")]
    assert pushes
    assert re.search(r" commit [0-9a-f]{8}, [\d.]+ s$", pushes[0]), text


def test_ps_shows_which_repository_an_uploader_is_for(place):
    """Its last argument is for people."""
    pid = living_uploader(place.folder / "runs" / "live")
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2] == b"hf-mpwriter uploader me/run"


def test_a_file_that_is_refused_is_quarantined_and_a_person_is_needed(place):
    """The path, the reason in plain words, and the command for when it is mended."""
    run_dir, name = place.folder / "more" / "exp2", "events.out.tfevents.1700000000.other"
    event_file(run_dir / name, 1)
    Spool(str(run_dir)).create()
    place.hub.fault(f"PUT /lfs/{hashlib.sha256((run_dir / name).read_bytes()).hexdigest()} 413 times=0")
    options = ("--repo-id", "me/run", "--timeout", "150")
    assert transcript(place, "sync", "more/exp2", *options, HF_HUB_DISABLE_XET="1")[0] == 1
    code, text = transcript(place, "status", "more/exp2")
    place.hub.clear_faults()
    assert (code, f"quarantined: {name}: " in text) == (4, True), text
    assert text.splitlines()[-1] == f"next: see why {name} is refused; then: hf-mpwriter sync ./more/exp2"


def test_a_logdir_of_others_and_one_that_is_none(place, monkeypatch):
    """Each line names what helps."""
    other = place.folder / "other"
    Spool(str(other)).create()
    (other / ".hf_mpwriter").chmod(0o777)
    code, text = transcript(place, "status", "other")
    assert code == 4
    assert "next: FOLDER/other/.hf_mpwriter can be written by everybody, so it is not used. Run: chmod o-w" in text
    (other / ".hf_mpwriter").rename(place.folder / "away")
    assert transcript(place, "status", "other")[1] == "Error: other has no event files, and no run below it.\n"
    monkeypatch.chdir(place.folder)
    line = "Error: none does not exist. Runs below this folder: hf-mpwriter status\n"
    for command in ("status", "logs", "stop", "verify", "sync"):
        assert (run(command, "none").exit_code, run(command, "none").output) == (1, line)


def test_an_uploader_is_ended_and_what_is_left_is_told(place):
    """It makes a last commit before it ends, so nothing is left; what training logs next starts another one."""
    live = place.folder / "runs" / "live"
    living_uploader(live)
    code, text = transcript(place, "stop", "runs/live")
    assert (code, text.splitlines()[0]) == (0, "uploader PID is ended"), text
    assert "1 worker still alive: what is logged next starts another uploader" in text
    assert re.fullmatch(r"runs/live +complete .* all on the Hub  1 alive  HUB/.*", text.splitlines()[-1]), text
    assert transcript(place, "stop", "runs/exp1")[1].splitlines()[0] == "no uploader runs"


def test_a_port_that_is_taken_is_one_line(place):
    """With the option that helps."""
    port = str(place.hub.port)
    code, text = transcript(place, "hub", "--root", "hub2", "--port", port)
    assert (code, text.count("\n"), "is taken" in text, "--port 0" in text) == (1, 1, True, True), text
