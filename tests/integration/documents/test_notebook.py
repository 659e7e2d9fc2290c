"""The notebook among the documents runs, twice, as it does after a kernel that died."""

from __future__ import annotations

import nbclient
import nbformat
from programs import DEADLINE, wait_for
from repository import ROOT

from hf_mpwriter import SummaryWriter
from hf_mpwriter.localhub import View
from hf_mpwriter.testing import check, processes


def run_notebook(directory) -> list[object]:
    """Run the notebook with a kernel of its own; return what its cells show."""
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    resources = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(notebook, timeout=DEADLINE, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]


def test_the_notebook_runs_and_continues_its_run(hub, tmp_path, monkeypatch):
    """`push()` is True each time, the second time continues behind the first, and all of it is on the Hub."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run_dir = tmp_path / "runs" / "notebook"
    for steps in (100, 200):
        assert run_notebook(tmp_path) == ["True"]
        with SummaryWriter(run_dir) as writer:
            assert writer.last_step("loss") == steps - 1
    wait_for(lambda: not processes.left_behind(str(run_dir)), "the uploader leaves")
    report = check(str(run_dir), View(hub.store, "me/notebook", "tensorboard/notebook"))
    assert report.problems == []
    assert sum(file.hub_events for file in report.files.values()) >= 200
