"""What programs print whose processes log: whole transcripts. Each line comes once, whichever process tells it.

The programs are in `tests/helpers/multiprocess_programs.py`. Each process logs until all that log at once have begun,
so that none is the last one by chance.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from multiprocess_programs import PROGRAMS, begun, names
from programs import wait_for
from repository import HELPERS
from runs import LOG_AND_EXIT, check_oracle, kill_uploaders
from transcripts import (
    CREATED,
    DONE,
    STARTS,
    STARTS_IN_AN_OUTAGE,
    UNREACHABLE,
    UNSENT,
    VISIBLE,
    WRONG_TOKEN,
    normalised,
)

from hf_mpwriter.localhub import LocalHub

DOWN = "http://127.0.0.1:9"
FROM_A_FILE = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"  # spawned children import it
ALL = ["ddp-by-spawn", "process-fork", "process-spawn", "daemon", "nested"]
ALL += ["pool-fork", "pool-spawn", "pool-one-task", "executor"]
LEFT = r"but no uploader runs; .*: (?=hf-mpwriter sync)"
GOES_ON = UNSENT.partition("stays there, ")[2].partition("hf-mpwriter")[0]
NO_END = {"HF_MPWRITER_EXIT_TIMEOUT": "1000"}  # seconds: who waits for it is late for every deadline


class Ran:
    """A program that has run to its end."""

    def __init__(self, start, folder: Path, name: str, env: dict[str, str]) -> None:
        self.program, self.run, self._endpoint = PROGRAMS[name], folder / "runs" / "exp1", env.get("HF_ENDPOINT", "-")
        self.run_dirs = self.program.run_dirs(self.run)
        source, go = folder / "program.py", folder / "go"
        source.write_text(self.program.source)
        go.unlink(missing_ok=True)
        before, ranks = begun(self.run_dirs), [{}]
        if self.program.is_launched:  # what torchrun gives them
            ranks = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"} for rank in "01"]
        started = [start(FROM_A_FILE, source, self.run, "me/run", env=env | rank | {"GO": str(go)}) for rank in ranks]
        wait_for(lambda: begun(self.run_dirs) >= before + self.program.logs, "all that log at once have begun")
        go.touch()
        finished = [program.finish() for program in started]
        self.errors = "".join(errors for _, _, errors in finished)
        assert [code for code, _, _ in finished] == [0] * len(finished), self.errors

    @property
    def lines(self) -> Counter[str]:
        """How often each line was printed; without the number of files, and what an end says of an outage.

        A run that is over before its start was told has both in one line, which says who can read it.
        """
        found = (normalised(line, self.run, self._endpoint) for line in self.errors.splitlines())
        lines = [one for line in found for one in (_start_and_end(line) if line.startswith("done: ") else [line])]
        lines = (re.sub(r"in \d files? of", "in 1 file of", line) for line in lines)
        return Counter(re.sub(r"(?<=not on the Hub yet): .*?(?=\. What)", "", line) for line in lines)

    def told(self, *lines: str) -> Counter[str]:
        """Each of these lines, which are those of exp1, once for each run directory."""
        trials = [trial.name for trial in self.run_dirs] if self.program.runs > 1 else []
        places = [(f"RUN/{trial}", f"tensorboard/{trial}") for trial in trials] or [("RUN", "tensorboard/exp1")]
        return Counter(
            line.replace("RUN", run).replace("tensorboard/exp1", folder) for line in lines for run, folder in places
        )

    def is_told(self, outage: str) -> None:
        """Each run directory has told its start, and at its end the command; the outage before that, or at the end.

        An uploader whose token is refused leaves, before that end or after it.
        """
        lines = self.lines
        if outage == WRONG_TOKEN:
            lines = Counter(re.sub(LEFT, GOES_ON, line) for line in lines.elements())
        assert lines.pop(outage, 0) <= len(self.run_dirs), self.errors
        assert lines == self.told(STARTS_IN_AN_OUTAGE, UNSENT), self.errors


def _start_and_end(line: str) -> list[str]:
    """An end, after the start if it says what that has to."""
    end = line.removesuffix(" (public)")
    folder = end.rpartition("/tensorboard/")[2]
    start = STARTS.replace("tensorboard/exp1", f"tensorboard/{folder}")
    run = "RUN" if folder == "exp1" else f"RUN/{folder}"
    return [end] if end == line else [start.replace("RUN", run), end]


@pytest.fixture
def runs(start, tmp_path, monkeypatch):
    """Run a program to its end, with torch if it needs that. The uploaders would stay where the Hub is down."""
    run_dirs = set()

    def run(name: str, **env: str) -> Ran:
        if name == "ddp-by-spawn":
            pytest.importorskip("torch.distributed", reason="torch is not installed")
            monkeypatch.setenv("PYTHONPATH", str(HELPERS / "watch"))
            monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        run_dirs.update(PROGRAMS[name].run_dirs(tmp_path / "runs" / "exp1"))
        return Ran(start, tmp_path, name, env)

    yield run
    for run_dir in run_dirs:
        kill_uploaders(run_dir)


@pytest.mark.parametrize("name", ["ddp-by-spawn", "process-fork"])
def test_processes_of_one_run_tell_its_start_and_its_end_once(runs, hub, name):
    """Also where the parent logs nothing. What they have logged is on the Hub then, in directories of their names."""
    ran = runs(name, HF_ENDPOINT=hub.endpoint)
    assert ran.lines == Counter([CREATED, VISIBLE, STARTS, DONE]), ran.errors
    report = check_oracle(ran.run, hub, f"{ran.run}.journals")
    assert {str(Path(path).parent) for path in report.files} == set(ran.program.directories)


def test_trials_of_a_pool_tell_their_start_and_their_end_once(runs, hub):
    """Each has a logdir of its own, in which it is alone; that the repository is public is told once for all."""
    HfApi(endpoint=hub.endpoint).create_repo("me/run")
    ran = runs("pool-spawn", HF_ENDPOINT=hub.endpoint)
    assert ran.lines == ran.told(STARTS, DONE) + Counter([VISIBLE]), ran.errors
    for trial in ran.run_dirs:
        report = check_oracle(trial, hub, f"{trial}.journals", folder=f"tensorboard/{trial.name}")
        assert [str(Path(path).parent) for path in report.files] == ["."]


@pytest.mark.parametrize("name", ["daemon", "nested", "pool-one-task"])
def test_while_the_hub_is_down_each_run_tells_its_start_and_once_the_command(runs, name):
    """No end waits for `exit_timeout`: the uploader goes on without it, and the line says how to wait for that."""
    runs(name, HF_ENDPOINT=DOWN, **NO_END).is_told(UNREACHABLE)


def test_a_token_that_is_refused_is_told_once_for_each_run(runs, tmp_path):
    """With what helps, and at the end with the command."""
    with LocalHub(tmp_path / "hub", token="hf_right") as hub:
        runs("pool-fork", HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_wrong", **NO_END).is_told(WRONG_TOKEN)


@pytest.mark.parametrize("name", ALL)
def test_names_are_the_same_after_a_restart_in_another_order(runs, name):
    """Of each child, rank and trial."""
    before = names(runs(name, HF_MPWRITER_DISABLED="1").run_dirs)
    assert names(runs(name, HF_MPWRITER_DISABLED="1", BACKWARDS="1").run_dirs) == before
    assert [len(directories) for directories in before.values()] == [1] * len(before)


def test_a_rank_with_a_disk_of_its_own_tells_its_start_at_a_restart_too(hub, run_dir, start):
    """It reports at its end, as no lower rank comes; before that it only sees that the start can be told."""
    for _ in range(2):
        code, _, errors = start(LOG_AND_EXIT, run_dir, 10, env={"RANK": "1", "WORLD_SIZE": "2"}).finish()
        lines = [normalised(line, run_dir, hub.endpoint) for line in errors.splitlines()]
        assert (code, lines[-1]) == (0, f"{DONE} (public)"), errors
