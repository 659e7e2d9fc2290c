"""The environment of a program below a supervisor, and what the command needs for it."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from forks import fork, reap

from hf_mpwriter.cli.main import main
from hf_mpwriter.supervisor.loop import Supervisor, environment_below
from hf_mpwriter.supervisor.program import end_orphans
from hf_mpwriter.system import contact, process
from hf_mpwriter.worker import role
from hf_mpwriter.worker.role import default_logdir

NAME = "hf-mpwriter.1.2.3.0123456789abcdef"


def test_all_ranks_below_supervisors_of_their_own_agree_on_the_start_of_their_launcher():
    """Each supervisor started at another time; the time that the launcher of both started counts."""
    below = environment_below({"RANK": "1"}, NAME, 25.0)
    assert role.launch_time(1, below) == pytest.approx(process.parent_started_at(), abs=0.5)
    inner = environment_below(below, NAME, 25.0)
    assert role.launch_time(1, inner) == role.launch_time(1, below), "also of one below another"


def test_a_supervisor_outside_a_launcher_tells_no_start():
    """Below a shell, the start of the shell means nothing; nor does what an outer rank was told."""
    outer = {contact.VARIABLE: contact.value(NAME, 17.0)}
    assert environment_below(outer, NAME, 25.0)[contact.VARIABLE] == NAME


@pytest.mark.parametrize(
    ("text", "time"),
    [(f"{NAME}@17.5", 17.5), (NAME, None), (f"{NAME}@nan", None), (f"{NAME}@", None), ("@17.5", None), ("", None)],
)
def test_a_start_that_is_no_time_is_ignored(text, time):
    """The variable may come from anywhere."""
    assert contact.launched_at({contact.VARIABLE: text}) == time


@pytest.mark.parametrize("environ", [{}, {"RANK": "3"}])
def test_what_is_below_knows_its_supervisor(environ):
    """Whether or not it is told when a launcher has started."""
    below = environment_below(environ, contact.Inbox().name, 25.0)
    assert role.agent_of(role.Role(None, "Process-1"), below) == process.Process.current()


@pytest.mark.parametrize(
    ("given", "grace", "longest"),
    [("", 25.0, "22"), ("40", 25.0, "22"), ("10", 25.0, "10"), ("", 1.0, "0"), ("", 300.0, "60"), ("90", 300.0, "90")],
)
def test_no_wait_below_lasts_until_the_kill_or_longer_than_without_a_supervisor(given, grace, longest):
    """A process ends by itself before, and says what is missing; the supervisor waits on."""
    environ = {"HF_MPWRITER_EXIT_TIMEOUT": given} if given else {}
    assert environment_below(environ, NAME, grace)["HF_MPWRITER_EXIT_TIMEOUT"] == longest


def test_a_supervisor_that_is_no_ancestor_is_none():
    """Its name came with the environment, from another host or an earlier job: its end makes no orphan."""
    assert contact.supervisor({contact.VARIABLE: NAME}) is None
    with subprocess.Popen(["sleep", "60"]) as other:  # it lives, but this process does not run below it
        one = process.Process.of(other.pid)
        name = f"hf-mpwriter.{one.namespace}.{one.pid}.{one.ticks}.0123456789abcdef"
        assert contact.supervisor({contact.VARIABLE: name}) is None
        other.kill()


@pytest.mark.parametrize(("one", "parent"), [(role.Role(3, None), True), (role.Role(None, None), False)])
def test_without_a_supervisor_the_launcher_of_a_rank_is_its_agent(one, parent):
    """A program that was started by hand has none, so it is never an orphan."""
    agent = role.agent_of(one, {})
    assert (agent == process.Process.of(os.getppid())) if parent else agent is None


@pytest.mark.parametrize(("environ", "logdir"), [({"HF_MPWRITER_LOGDIR": "/runs/a"}, "/runs/a-x"), ({}, None)])
def test_writers_without_a_logdir_take_the_one_that_a_supervisor_was_given(environ, logdir):
    """The comment is appended; without the variable, the name of the job counts as ever."""
    found = default_logdir("-x", environ)
    assert found == logdir or (logdir is None and found.startswith("runs/"))


def test_orphans_are_ended_in_a_run_directory_that_is_named():
    """Before it starts, a program has told none."""
    result = CliRunner().invoke(main, ["run", "--kill-orphans", "--", "true"])
    assert (result.exit_code, "--kill-orphans needs --logdir" in result.output) == (2, True)


def test_a_directory_without_a_spool_has_no_orphans(tmp_path):
    """As before the first attempt; nothing is made there."""
    assert list(end_orphans(str(tmp_path / "none"))) == []
    assert list(tmp_path.iterdir()) == []


def test_what_derives_all_ranks_has_ended_whoever_has_collected_it():
    """As process 1, the thread that sees to uploaders collects our zombies, too; nothing waits for it in vain then."""
    child = SimpleNamespace(status=None, reap=lambda: None)
    nothing = SimpleNamespace(read=lambda: ())
    one = Supervisor(child, nothing, nothing, 1.0, shares_group=False, has_peers=False, derives_ranks=True)
    ended = fork(lambda: None)
    reap(ended)
    one._ranks = {"/runs/exp1": ended}
    assert not one._turn()
    assert one._ranks == {}
