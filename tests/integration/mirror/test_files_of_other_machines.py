"""Two machines that log to one logdir, one after the other: what another one has written is never taken for less."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import url_places
from programs import wait_for
from runs import acknowledged, living_uploader, no_uploader, run
from staged import event_files, mirror_pid
from support import keys

from hf_mpwriter.spool import storage
from hf_mpwriter.spool.layout import Spool

DIES = """
import os, signal, sys, time
from hf_mpwriter import HFSummaryWriter
logdir, goes_on = sys.argv[1:]
writer = HFSummaryWriter("me/run", logdir=logdir, commit_every=600)
for step in range(150):
    writer.add_scalar("A", step, step)
writer.flush()
while not os.path.exists(goes_on):
    time.sleep(0.02)
for step in range(150, 250):
    writer.add_scalar("A", step, step)
writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""

GOES_ON = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
logdir, goes_on = sys.argv[1:]
with HFSummaryWriter("me/run", logdir=logdir) as writer:
    for first in (0, 20):
        for step in range(first, first + 20):
            writer.add_scalar("B", step, step)
        print(writer.push(100), flush=True)
        while not os.path.exists(goes_on):
            time.sleep(0.02)
"""


def logged(directory: Path, tag: str) -> list[int]:
    """The steps of a tag in all event files of a directory."""
    return sorted(step for path in event_files(directory).values() for name, step in keys(path) if name == tag)


class Machine:
    """A machine of its own: its local disk, its cache, and the name by which it knows the logdir."""

    def __init__(self, tmp_path: Path, name: str, logdir: str, monkeypatch) -> None:
        self.env = {"HF_MPWRITER_STAGING": str(tmp_path / name), "XDG_CACHE_HOME": str(tmp_path / f"cache_{name}")}
        self.logdir, self._monkeypatch = logdir, monkeypatch
        for folder in self.env.values():
            os.makedirs(folder)

    @property
    def spool(self) -> Spool:
        """The spool of the run on its disk."""
        return storage.spool_of(storage.find(self.logdir, self.env))

    @property
    def here(self) -> Path:
        """The run on its disk."""
        return Path(self.spool.run_dir)

    def run(self, command: str, *options: str) -> str:
        """What a command on it prints, that succeeds."""
        with self._monkeypatch.context() as patch:
            for name, value in self.env.items():
                patch.setenv(name, value)
            result = run(command, self.logdir, *options)
        assert result.exit_code == 0, result.output
        return result.output

    def hang(self) -> list[int]:
        """Its daemons do nothing more, and no others start."""
        pids = [living_uploader(self.here), wait_for(lambda: mirror_pid(self.spool), "a mirror lives")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids


def test_the_beginning_of_a_file_of_another_machine_holds_nothing_up_and_replaces_nothing(
    hub, run_dir, tmp_path, monkeypatch, start
):
    """A dies with a part of its segment on the Hub; B pulls and goes on; A comes back with the whole one.

    B's mirror could not bring the beginning before that, and tries again without a list of what is there.
    """
    url_places.install(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{tmp_path / 'path'}")
    monkeypatch.syspath_prepend(tmp_path / "path")
    one, two = (
        Machine(tmp_path, name, logdir, monkeypatch)
        for name, logdir in (("A", str(run_dir)), ("B", url_places.url(run_dir)))
    )
    dies, ends = tmp_path / "dies", tmp_path / "ends"
    program = start(DIES, one.logdir, dies, env=one.env)
    wait_for(lambda: acknowledged(one.here), "a part of it is on the Hub")
    daemons = one.hang()
    dies.touch()
    code, _, err = program.finish()
    assert code == -signal.SIGKILL, err
    for pid in daemons:  # the machine is gone, and all that runs there
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(one.here) and not mirror_pid(one.spool), "they are gone")
    (segment,) = event_files(one.here)
    assert logged(one.here, "A") == list(range(250))
    assert not event_files(run_dir)

    run_dir.mkdir(parents=True, exist_ok=True)
    refuses = url_places.beside(run_dir / segment, "refuses")
    refuses.touch()
    two.run("pull", "--repo-id", "me/run")
    assert 0 < len(logged(two.here, "A")) < 250
    goes_on = start(GOES_ON, two.logdir, ends, env=two.env)
    assert goes_on.process.stdout.readline() == "True\n", "what is B's is there"
    assert logged(run_dir, "A") == []
    one.run("sync")
    refuses.unlink()
    ends.touch()
    code, out, err = goes_on.finish()
    assert (code, out) == (0, "True\n"), err
    assert (logged(run_dir, "A"), logged(run_dir, "B")) == (list(range(250)), list(range(40)))
    size, there = ((place / segment).stat().st_size for place in (two.here, run_dir))
    shown = two.run("verify")
    assert f"{segment}: beginning of another machine's file, {size} of {there} bytes here" in shown
    assert re.search(r"^Whole on the Hub: \d+ files", shown, re.MULTILINE), shown  # B may have sealed one by time
    assert "(beginning of another machine's file)" in two.run("status")

    two.run("sync")
    for machine in (one, two):
        assert "beginning of another" not in machine.run("verify")
    assert (two.here / segment).read_bytes() == (one.here / segment).read_bytes() == (run_dir / segment).read_bytes()
