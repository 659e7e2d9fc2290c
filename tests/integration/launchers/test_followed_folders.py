"""`hf-mpwriter run --follow` with real processes: event files of other writers, during training and at its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest
from programs import wait_for
from supervised import Supervised, event_bytes

FOREIGN = """
import os, signal, sys, time
from tensorboardX import SummaryWriter
folder, code, waits = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "waits"
writer = SummaryWriter(folder)
writer.add_scalar("loss", 1.0, 0)
writer.flush()
def last(*_):
    writer.add_scalar("loss", 0.5, 1)
    writer.close()
    os._exit(code)
signal.signal(signal.SIGTERM, last)
print("logged", flush=True)
while waits:
    time.sleep(60)
last()
"""


@pytest.fixture
def below(run_dir, run_below) -> Callable[..., Supervised]:
    """Start a program with a writer of others below a supervisor."""

    def begin(kind: str, code: int, *options: str) -> Supervised:
        return run_below(sys.executable, "-c", FOREIGN, run_dir, code, kind, options=("--grace", "120", *options))

    return begin


def on_hub(hub, run_dir) -> int:
    """Bytes of the event files of a run on the Hub."""
    try:
        tree = hub.store.tree("model", "me/run", "main")
    except Exception:  # noqa: BLE001 - there is no repository yet
        return 0
    return sum(entry.size for path, entry in tree.items() if path.startswith(f"tensorboard/{run_dir.name}/events"))


def test_a_followed_folder_is_on_the_hub_during_training_and_after_its_last_record(hub, run_dir, below):
    """What the program writes when a signal ends it, as well. The exit code is that of the program."""
    one = below("waits", 7, "--follow", str(run_dir), "--repo-id", "me/run")
    assert one.line() == "logged\n"
    first = wait_for(lambda: on_hub(hub, run_dir), "the first record is on the Hub while the program runs")
    one.supervisor.send_signal(signal.SIGTERM)
    code, _, errors = one.finish()
    assert code == 7, errors
    assert on_hub(hub, run_dir) == event_bytes(run_dir) > first, errors
    assert f"hf-mpwriter run: {run_dir} goes to " in errors
    assert f"of {run_dir} are on the Hub: " in errors


def test_a_run_directory_is_followed_with_its_repository_and_what_holds_nothing_is_told(hub, run_dir, below, tmp_path):
    """The program ends before the next look: what it has written is sent at its end."""
    empty, absent = tmp_path / "empty", tmp_path / "absent"
    empty.mkdir()
    places = ("--follow", str(empty), "--follow", str(absent))
    one = below("ends", 3, "--logdir", str(run_dir), "--repo-id", "me/run", *places)
    code, _, errors = one.finish()
    assert code == 3, errors
    assert on_hub(hub, run_dir) == event_bytes(run_dir) > 0, errors
    assert f"nothing of {empty} was uploaded: it has no event files" in errors
    assert f"nothing of {absent} was uploaded: it does not exist" in errors
