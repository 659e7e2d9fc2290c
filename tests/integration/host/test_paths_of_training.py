"""While it logs, training touches its run directory and nothing else, and no process of a run opens that by its path.

So nothing else can stop training, and what takes the place of a directory is not followed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hanging import hanging
from hanging import why_not as why_no_hang
from programs import wait_for
from repository import ROOT
from runs import check_oracle, no_uploader
from traced import BEGIN, COMMAND, END, WITHOUT, Touched, touched

TRAINING = f"""
import os, sys, time
from hf_mpwriter import HFSummaryWriter
os.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0.05"
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.005, exit_timeout=float(sys.argv[2]))
os.path.exists({BEGIN!r})
for step in range(40):
    writer.add_scalar("loss", 1.0, step)
    writer.add_text("notes", "some words", step)
    writer.add_scalars("both", {{"a": 1.0, "b": 2.0}}, step)
    writer.add_histogram("weights", [1.0, 2.0, 3.0], step)
    time.sleep(0.02)
writer.add_hparams({{"rate": 0.1}}, {{"final": 1.0}})
writer.flush()
writer.push()
writer.status()
writer.close()
writer.add_scalar("loss", 2.0, 41)
writer.close(wait=True)
os.path.exists({END!r})
print("trained")
"""

# What a training process may touch outside its run directory, and why.
ALLOWED = {
    "/proc/self": "its own threads, descriptors and start time",
    "/proc/sys/kernel/random/boot_id": "which boot of the machine this is",
    "/proc/sys/fs/protected_hardlinks": "whether a stranger may give files of others a second name",
    "/proc/1/comm": "whether a container ends with this process",
    "/proc/stat": "when the machine was started",
    "/etc/machine-id": "which machine this is",
    "/var/lib/dbus/machine-id": "the same",
    "/dev/null": "standard input of the uploader",
    "/etc/localtime": "the date in a name",
    sys.prefix: "imports",
    sys.base_prefix: "imports",
    sysconfig.get_path("stdlib"): "imports",
    str(ROOT / "hf_mpwriter"): "imports",
    os.path.dirname(os.path.realpath(sys.executable)): "the interpreter of the uploader",
}


PROCESS = re.compile(r"/proc/\d+/stat")  # whether a process still lives, and since when
HARMLESS = ("stat", "newfstatat", "lstat", "statx", "readlink", "access", "faccessat", "faccessat2", "execve")
CALL = re.compile(r"^\S*\s*(?P<call>\w+)\((?P<arguments>.*)")


def opened_by_path(log: Path, run_dir: Path) -> list[str]:
    """The calls of any process that open, make or change by its absolute path what is below the run directory."""
    wrong = []
    for match in filter(None, map(CALL.match, log.read_text(errors="replace").splitlines())):
        named = re.findall(r'"((?:[^"\\]|\\.)*)"', match["arguments"])
        below = [path for path in named if path.startswith(f"{run_dir}/") and "/cache/" not in path]
        if below and match["call"] not in HARMLESS:
            wrong.append(match[0])
    return wrong


def is_below(path: str, tops: list[str]) -> bool:
    """Whether a path is one of these, or below one."""
    return any(path == top or path.startswith(f"{top.rstrip('/')}/") for top in tops)


def outside(found: list[Touched], run_dir: Path, pid: int, imports: list[str]) -> list[Touched]:
    """What is neither in the run directory nor in the list, nor on the way to what is in the list."""
    tops = [str(run_dir), f"/proc/{pid}", *ALLOWED, *imports]
    found = [one for one in found if not PROCESS.fullmatch(one.path)]
    ways = {str(way) for top in (*ALLOWED, *imports, sys.executable) for way in Path(top).parents}
    return [one for one in found if not is_below(one.path, tops) and one.path not in ways]


@pytest.mark.timeout(900)  # strace slows it down many times
@pytest.mark.root
@pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT or "-")
def test_training_touches_nothing_outside_its_run_directory(hub, run_dir, tmp_path, monkeypatch):
    """From the first call to the end: no look at what lies beside it, none into HOME, none at the Hub's caches.

    By no process is anything below it opened by its path: only beneath descriptors.
    """
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    (run_dir.parent / "beside").mkdir(parents=True)
    log = tmp_path / "strace"
    command = [*COMMAND, "-o", str(log), sys.executable, "-P", "-c", TRAINING, str(run_dir), "120"]
    result = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    pid = int(log.read_text(errors="replace").split()[0])
    found = touched(log, str(cwd))
    assert sum(one.path.startswith(str(run_dir)) for one in found) > 20, "strace sees what it touches"
    imports = [place for place in os.environ["PYTHONPATH"].split(":") if place]
    strange = sorted({f"{one.call} {one.path}" for one in outside(found, run_dir, pid, imports)})
    assert not strange, "\n".join(strange)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub)
    assert "hf_mpwriter.push.process" in log.read_text(errors="replace"), "the trace is of all processes"
    assert opened_by_path(log, run_dir) == []


@pytest.mark.root
@pytest.mark.skipif(bool(why_no_hang()), reason=why_no_hang() or "-")
def test_a_mount_that_hangs_outside_the_run_directory_does_not_stop_training(
    hub, run_dir, tmp_path, monkeypatch, start
):
    """Beside it and in the place of HOME: every look-up waits for ever; training logs, closes, and ends in time."""
    home = tmp_path / "home"
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    run_dir.parent.mkdir(parents=True)
    with hanging(run_dir.parent / "beside"), hanging(home):
        program = start(TRAINING, run_dir, 3, env={"HOME": str(home)})
        code, out, errors = program.finish()
    assert (code, out) == (0, "trained\n"), errors
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")


CONSTRUCT = """
import os, sys
from hf_mpwriter import SummaryWriter
SummaryWriter(sys.argv[1] + "/first").close()
os.path.exists("/begins")
writer = SummaryWriter(sys.argv[1] + "/run")
os.path.exists("/ends")
"""


@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT or "-")
def test_a_constructor_makes_few_calls(tmp_path):
    """Each use of a held directory could compare it: a constructor compares once a step."""
    trace = tmp_path / "trace"
    command = ["strace", "-q", "-e", "trace=%file,%desc,%creds", "-o", str(trace), sys.executable, "-c"]
    subprocess.run([*command, CONSTRUCT, str(tmp_path)], check=True, timeout=800)
    _, _, constructor = trace.read_text(errors="replace").partition('"/begins"')
    calls = Counter(re.findall(r"^\w+", constructor.partition('"/ends"')[0], re.MULTILINE))
    stats = sum(count for call, count in calls.items() if "stat" in call)
    assert 0 < calls["openat"] <= 16, calls
    assert 0 < stats <= 66, calls  # three of them for what a mount that is gone has left in staging directories
    assert calls["fsync"] == 3, calls
