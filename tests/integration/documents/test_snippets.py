"""The examples in the documentation of the three libraries run with nothing but the import changed."""

from __future__ import annotations

import inspect
import re
import textwrap

import huggingface_hub
import numpy as np
import pytest
import tensorboardX
from programs import wait_for
from runs import check_oracle, no_uploader

import hf_mpwriter
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool

try:
    import torch
    from torch.utils.tensorboard import SummaryWriter as TorchWriter
except ImportError:
    torch = TorchWriter = None

IMPORT = re.compile(r"from (tensorboardX|torch\.utils\.tensorboard|huggingface_hub) import")
LIBRARIES = [tensorboardX.SummaryWriter] + [TorchWriter] * bool(TorchWriter)


def examples_of(method) -> list[str]:
    """The code blocks behind "Examples::" in a docstring."""
    blocks = re.findall(r"^Examples?::\n(.*?)(?=^\S|\Z)", inspect.getdoc(method) or "", re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block.strip("\n")) for block in blocks]


SNIPPETS = {
    f"{library.__module__}.{name}": (library, block)
    for library in LIBRARIES
    for name, method in inspect.getmembers(library, inspect.isfunction)
    for block in examples_of(method)
}


def run(code: str, writer_class: type) -> Exception | None:
    """Run a snippet with a writer; its error."""
    names = {"np": np, "torch": torch, "SummaryWriter": writer_class, "writer": writer_class("snippet")}
    try:
        exec(code, names)  # noqa: S102 - the documentation of a library that this project builds on
    except Exception as error:  # noqa: BLE001 - whatever a snippet raises
        return error
    finally:
        names["writer"].close()
    return None


def test_there_are_examples():
    """The search for examples still finds some."""
    assert sum("tensorboardX" in name for name in SNIPPETS) >= 14
    assert torch is None or sum("torch" in name for name in SNIPPETS) >= 15


@pytest.mark.parametrize("name", SNIPPETS)
def test_an_example_runs_with_the_import_changed(tmp_path, monkeypatch, name):
    """Every documented constructor form and method works; an example may fail if it fails in its own library."""
    library, code = SNIPPETS[name]
    if torch is None and "torch" in code:
        pytest.skip("torch is not installed")
    (tmp_path / "theirs").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    theirs = run(code, library)
    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "ours")
    ours = run(IMPORT.sub("from hf_mpwriter import", code), hf_mpwriter.SummaryWriter)
    assert ours is None or isinstance(ours, type(theirs)), ours
    if "add" in name:
        assert theirs is not None or list((tmp_path / "ours").rglob("*tfevents*")) or "embedding" in name


def test_the_examples_of_hfsummarywriter_end_on_the_hub(hub, tmp_path, start, monkeypatch):
    """Both of them, run as programs; the first never closes its writer."""
    doc = inspect.getdoc(huggingface_hub.HFSummaryWriter)
    (diff,) = re.findall(r"```diff\n(.*?)```", doc, re.DOTALL)
    (session,) = re.findall(r"```py\n(.*?)```", doc, re.DOTALL)
    programs = [
        "\n".join(line.removeprefix("+ ") for line in diff.splitlines() if not line.startswith("- ")),
        "\n".join(re.sub(r"^(>>>|\.\.\.) ", "", line) for line in session.splitlines()),
    ]
    counts = []
    for number, program in enumerate(programs):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        start(IMPORT.sub("from hf_mpwriter import", program)).succeed()
        (run_dir,) = (tmp_path / str(number) / "runs").iterdir()
        wait_for(lambda run_dir=run_dir: no_uploader(run_dir), "the uploader leaves")
        ledger = HubSink(Spool(str(run_dir))).ledger()
        report = check_oracle(run_dir, hub, repo=ledger.repo_id, folder=f"tensorboard/{run_dir.name}")
        counts += [file.hub_events for file in report.files.values()]
    assert counts == [400, 2]
