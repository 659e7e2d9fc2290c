"""What a process says once about its environment."""

from __future__ import annotations

import logging
import os

import pytest

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.worker.messages import environment


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch, caplog) -> None:
    """As in a new process, with a handler that takes information."""
    monkeypatch.setattr(environment, "_told", set())
    caplog.set_level(logging.INFO, "hf_mpwriter")


def said(caplog) -> list[tuple[str, str]]:
    """Level and text of what was logged."""
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_variable_that_does_not_exist_is_named_once(tmp_path, monkeypatch, caplog):
    """A second writer says nothing."""
    monkeypatch.setenv("HF_MPWRITER_EXIT_TIMOUT", "5")
    for name in ("a", "b"):
        SummaryWriter(tmp_path / name).close()
    text = "HF_MPWRITER_EXIT_TIMOUT is set, but hf_mpwriter has no such variable."
    assert said(caplog) == [("WARNING", text)]


@pytest.mark.parametrize("name", ["ALL_RANKS", "DISABLED", "SYSTEM_METRICS"])
def test_a_switch_that_is_neither_on_nor_off_is_told(tmp_path, monkeypatch, caplog, name):
    """It counts as off, in whatever language it was meant to be on."""
    monkeypatch.setenv(f"HF_MPWRITER_{name}", "ja")
    SummaryWriter(tmp_path).close()
    text = f"HF_MPWRITER_{name} is 'ja', which is neither on nor off, and counts as off. On is 1, off is 0."
    assert said(caplog) == [("WARNING", text)]


def test_it_is_said_once_that_uploads_are_off(tmp_path, monkeypatch, caplog):
    """By HF_MPWRITER_DISABLED; switched off it says nothing."""
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "0")
    HFSummaryWriter("me/run", logdir=str(tmp_path / "a"), exit_timeout=0).scheduler.stop()
    assert said(caplog) == []
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    for name in ("b", "c"):
        HFSummaryWriter("me/run", logdir=str(tmp_path / name)).close()
    assert said(caplog) == [("INFO", "disabled by HF_MPWRITER_DISABLED: nothing is uploaded")]


def test_a_local_run_says_once_what_it_has_no_uploader_for(tmp_path, monkeypatch, caplog):
    """A run with a destination does not, and neither does one whose uploads are disabled on purpose."""
    monkeypatch.setenv("HF_MPWRITER_ALL_RANKS", "1")
    HFSummaryWriter("me/run", logdir=str(tmp_path / "hub"), exit_timeout=0).scheduler.stop()
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    HFSummaryWriter("me/run", logdir=str(tmp_path / "disabled")).close()
    monkeypatch.delenv("HF_MPWRITER_DISABLED")
    assert said(caplog) == [("INFO", "disabled by HF_MPWRITER_DISABLED: nothing is uploaded")]
    caplog.clear()
    for run in ("a", "b"):
        SummaryWriter(tmp_path / run).close()
    assert said(caplog) == [("WARNING", f"all_ranks_view is on, {environment.NO_UPLOADER}")]


def test_gpus_that_nothing_measures_are_told_once(tmp_path, monkeypatch, caplog):
    """With the package that does; not on a machine without GPUs, and not where nothing is to be measured."""
    on, off = Settings(system_metrics=True), Settings()
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(environment, "NVIDIA", str(tmp_path / "none"))
    environment.tell_idle(on, uploads=True)
    monkeypatch.setattr(environment, "NVIDIA", str(tmp_path))
    environment.tell_idle(off, uploads=True)
    assert said(caplog) == []
    environment.tell_idle(on, uploads=True)
    environment.tell_idle(on, uploads=False)
    text = "system_metrics leaves out the GPUs of this machine: pip install nvidia-ml-py"
    assert said(caplog) == [("WARNING", text)]


def test_gpus_that_are_measured_need_no_word(tmp_path, monkeypatch, caplog):
    """The package is looked for, not imported: training keeps what it loads."""
    monkeypatch.setattr(environment, "NVIDIA", str(tmp_path))
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object() if name == "pynvml" else None)
    environment.tell_idle(Settings(system_metrics=True), uploads=True)
    assert said(caplog) == []


def test_one_rank_speaks_for_all(tmp_path, monkeypatch, caplog):
    """Rank 0."""
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    monkeypatch.setenv("HF_MPWRITER_XYZ", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    SummaryWriter(tmp_path).close()
    assert said(caplog) == []


def test_a_forked_child_says_nothing_again(tmp_path, monkeypatch, caplog):
    """It inherits what was said."""
    monkeypatch.setenv("HF_MPWRITER_XYZ", "5")
    SummaryWriter(tmp_path).close()
    if not (pid := os.fork()):
        caplog.clear()
        environment.tell(disabled=False)
        os._exit(len(caplog.records))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(caplog.records) == 1
