"""torchrun: agents that share a run directory, and lose ranks and one another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
from frameworks import shown
from programs import wait_for

from launching.ranks import RANK
from launching.stage import PATIENCE, Laps, Stage, free_port

AGENT = [sys.executable, "-m", "torch.distributed.run"]
BEFORE_IT_GOES_ON_ALONE = 15  # seconds that a smaller world waits for more agents


def two_agents_of_two(stage: Stage) -> Laps:
    """A rank dies and all restart; an agent dies and its ranks go on; the other agent gets SIGTERM."""
    agents = _agents(stage, "--nnodes=2", "--max-restarts=1")
    ranks = _wait_for_attempt(stage, 0, range(4))
    wait_for(lambda: len(stage.uploaders()) == 1, "one uploader", PATIENCE)
    laps = {"SIGKILL of a rank": _kill_rank(stage, ranks[stage.random.randrange(4)])}
    ranks = _wait_for_attempt(stage, 1, range(4))
    since, theirs = time.monotonic(), psutil.Process(agents[1].pid).children()
    agents[1].kill()
    agents[1].wait()
    assert len(theirs) == 2
    assert all(rank.is_running() for rank in theirs)
    for rank in theirs:
        rank.kill()
    laps["SIGKILL of an agent and its ranks"] = stage.seconds_until_on_hub(since, _lengths_of(stage, theirs))
    since = time.monotonic()
    agents[0].send_signal(signal.SIGTERM)
    assert agents[0].wait(PATIENCE) != 0
    laps["SIGTERM to torchrun"] = stage.seconds_until_on_hub(since, stage.lengths())
    assert len(stage.judge().files) == 8
    for points in shown(stage.run_dir).values():
        steps = [step for step, _ in points["loss"]]
        assert steps == list(range(len(steps)))
    return laps


def elastic(stage: Stage) -> Laps:
    """A node of two is lost: its ranks' peers fail, the agent that is left goes on with two ranks, and ends well."""
    agents = _agents(stage, "--nnodes=1:2", "--max-restarts=3", more=f",last_call_timeout={BEFORE_IT_GOES_ON_ALONE}")
    _wait_for_ranks(stage, agents, 4)
    since, theirs = time.monotonic(), psutil.Process(agents[1].pid).children()
    for process in (psutil.Process(agents[1].pid), *theirs):
        process.kill()
    (stage.shared / "lost").write_text("4")
    laps = {"SIGKILL of a node": stage.seconds_until_on_hub(since, _lengths_of(stage, theirs))}
    _wait_for_ranks(stage, agents[:1], 2)
    last = stage.let_end()
    stage.succeed(agents[0])
    ended = max(int((stage.shared / f"ended_{rank}").read_text()) for rank in range(2))
    laps["the end"] = stage.seconds_until_on_hub(ended / 1e9, stage.lengths())
    stage.judge()
    curves = shown(stage.run_dir)
    for run in (".", "rank_00001"):
        assert [step for step, _ in curves[run]["loss"]] == list(range(last))
    return laps


def _agent(stage: Stage, *options: str) -> subprocess.Popen:
    train = stage.program(RANK)
    command = [*AGENT, *options, "--nproc-per-node=2", train, stage.shared, stage.run_dir]
    return stage.start(*command, torch=True)


def _agents(stage: Stage, *options: str, more: str = "") -> list[subprocess.Popen]:
    """Start two agents; the first is where they meet."""
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=1"]
    local = ["--local-addr=127.0.0.1", *options, *meeting]
    return [_agent(stage, *local, f"--rdzv-conf=is_host={is_host}{more}") for is_host in (1, 0)]


def _wait_for_ranks(stage: Stage, agents: list[subprocess.Popen], count: int) -> None:
    """Wait until the agents have so many ranks in all, each of which has logged."""

    def are_there() -> bool:
        ranks = {str(rank.pid) for agent in agents for rank in psutil.Process(agent.pid).children()}
        marks = {path.read_text() for path in stage.shared.glob("logged_*")}
        return len(ranks) == count and ranks <= marks

    wait_for(are_there, f"{count} ranks log", PATIENCE)


def _wait_for_attempt(stage: Stage, attempt: int, ranks: range) -> list[psutil.Process]:
    """Wait until these ranks have logged; their processes."""
    stage.wait_for_marks(*(f"logged_{attempt}_{rank}" for rank in ranks))
    return [psutil.Process(int((stage.shared / f"logged_{attempt}_{rank}").read_text())) for rank in ranks]


def _kill_rank(stage: Stage, rank: psutil.Process) -> float:
    since = time.monotonic()
    rank.kill()
    return stage.seconds_until_on_hub(since, _lengths_of(stage, [rank]))


def _lengths_of(stage: Stage, ranks: list[psutil.Process]) -> dict[str, int]:
    """Bytes of the event files of these processes."""
    pids = {str(rank.pid) for rank in ranks}
    found = {path: size for path, size in stage.lengths().items() if pids & set(path.split("."))}
    assert len(found) == len(pids)
    return found
