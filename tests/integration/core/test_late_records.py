"""What is logged after the end of a process was told: by a hook that runs after ours, or by a `__del__`."""

from __future__ import annotations

import pytest
from programs import wait_for
from runs import check_oracle, no_uploader, run

from hf_mpwriter.base.words import command_line
from hf_mpwriter.delivery.sentences import shown

LATE = """
import atexit, logging, os, signal, sys, time
run_dir, how = sys.argv[1:]
def log_late():
    while locks.is_held(writer._worker.spool.uploader_lock):
        time.sleep(0.02)  # until the uploader has left: nobody looks any more
    if how == "refused":
        os.posix_spawn = refuse
    late = writer if how != "another run" else HFSummaryWriter("me/run", logdir=run_dir + "-late")
    late.flush()
    for step in range(10, 20):
        late.add_scalar("loss", 1.0, step)
def refuse(*_, **__):
    raise BlockingIOError(11, "Resource temporarily unavailable")
if how != "__del__":
    atexit.register(log_late)  # before ours, so it runs after it
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system import locks
class Late:
    def __init__(self, writer, lock, is_held, sleep):
        self.writer, self.lock, self.is_held, self.sleep = writer, lock, is_held, sleep
    def __del__(self):
        while self.is_held(self.lock):
            self.sleep(0.02)
        self.writer.add_scalar("loss", 1.0, 10)
class Ending(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if "waiting up to" in record.getMessage():
            os.kill(os.getpid(), signal.SIGTERM)
if how == "raises":
    os.environ["HF_MPWRITER_TIMING"] += " quiet_wait=-1000"  # the wait is announced at once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    logging.getLogger().addHandler(Ending())
    logging.getLogger().setLevel(logging.INFO)
writer = HFSummaryWriter("me/run", logdir=run_dir)
for step in range(10):
    writer.add_scalar("loss", 1.0, step)
if how == "__del__":
    kept = Late(writer, writer._worker.spool.uploader_lock, locks.is_held, time.sleep)
"""


def told(errors: str) -> list[str]:
    """The lines from the end on, without their prefix."""
    lines = [line.removeprefix("hf_mpwriter: ") for line in errors.splitlines()]
    return lines[next(number for number, line in enumerate(lines) if line.startswith("done: ")) :]


@pytest.mark.parametrize("how", ["hook", "another run", "__del__"])
def test_what_comes_after_the_end_reaches_the_hub_and_nobody_is_said_to_have_died(hub, run_dir, start, how):
    """No uploader lives any more: the record has one started, and one line says so."""
    code, _, errors = start(LATE, run_dir, how, env={"HF_ENDPOINT": hub.endpoint}).finish()
    late_dir = run_dir.with_name(f"{run_dir.name}-late") if how == "another run" else run_dir
    came = f"{shown(str(late_dir))}: records came after the end of this process. They are on their way"
    assert (code, told(errors)[-1]) == (0, f"{came}; to wait for that: {command_line('sync', late_dir)}"), errors
    wait_for(lambda: no_uploader(late_dir), "all is sent")
    check_oracle(late_dir, hub, folder=f"tensorboard/{late_dir.name}")
    status = run("status", late_dir)
    assert (status.exit_code, "  workers      1 ended: main\n" in status.output) == (0, True), status.output


def test_a_handler_that_raises_in_the_wait_does_not_end_the_watch_for_late_records(hub, run_dir, start):
    """Its SystemExit ends the wait of the end; what is logged after that has an uploader and the line all the same."""
    hub.fault("/commit/ slow seconds=3")
    code, _, errors = start(LATE, run_dir, "raises", env={"HF_ENDPOINT": hub.endpoint}).finish()
    assert (code, "SystemExit: 3" in errors) == (0, True), errors
    assert f"{shown(str(run_dir))}: records came after the end of this process." in errors.splitlines()[-1], errors
    wait_for(lambda: no_uploader(run_dir), "all is sent")
    check_oracle(run_dir, hub)
    status = run("status", run_dir)
    assert (status.exit_code, "  workers      1 ended: main\n" in status.output) == (0, True), status.output


def test_where_no_uploader_can_be_started_a_line_names_the_command(hub, run_dir, start):
    """As where no process can be started any more. The command brings it in."""
    code, _, errors = start(LATE, run_dir, "refused", env={"HF_ENDPOINT": hub.endpoint}).finish()
    lacks = f"{shown(str(run_dir))}: records came after the end of this process, and no uploader runs any more. "
    assert (code, told(errors)[-1]) == (0, f"{lacks}To finish: {command_line('sync', run_dir)}"), errors
    status = run("status", run_dir)
    assert (status.exit_code, "  workers      1 ended: main\n" in status.output) == (4, True), status.output
    assert run("sync", run_dir).exit_code == 0
    check_oracle(run_dir, hub)
