"""`patch()` and `hf-mpwriter run --patch`: code that cannot be changed gets our writers, and theirs back."""

from __future__ import annotations

import sys

import pytest
from support import run_python, succeed

THEIRS = "import tensorboardX, huggingface_hub\n"
KINDS = """
def kinds():
    return tensorboardX.SummaryWriter.__module__, huggingface_hub.HFSummaryWriter.__module__
"""
OURS = "hf_mpwriter.integrations.fromenv hf_mpwriter.hfwriter"
ORIGINAL = "tensorboardX.writer huggingface_hub._tensorboard_logger"


@pytest.mark.parametrize("order", [THEIRS + "hf_mpwriter.patch()", "hf_mpwriter.patch()\n" + THEIRS])
def test_the_names_are_ours_until_unpatch(order):
    """Whether the modules were there before or come later; patching twice is as patching once."""
    source = f"import hf_mpwriter\n{order}\n{KINDS}print(*kinds())\nhf_mpwriter.patch()\nhf_mpwriter.unpatch()\n"
    assert succeed(source + "print(*kinds())").splitlines() == [OURS, ORIGINAL]


def test_patching_imports_nothing():
    """A program that uses none of them pays nothing."""
    source = "import sys, hf_mpwriter\nhf_mpwriter.patch()\nprint({'torch', 'tensorboardX', 'numpy'} & {*sys.modules})"
    assert succeed(source).strip() == "set()"


def test_our_writers_load_whoever_comes_first():
    """They are built on tensorboardX, whose name is resolved to them."""
    for first in ("from hf_mpwriter import SummaryWriter", "from tensorboardX import SummaryWriter"):
        source = f"import hf_mpwriter\nhf_mpwriter.patch()\n{first}\nimport tensorboardX\n"
        assert succeed(source + "print(issubclass(tensorboardX.SummaryWriter, hf_mpwriter.SummaryWriter))") == "True\n"


def test_torch_hands_out_ours_too(monkeypatch):
    """`from torch.utils.tensorboard import SummaryWriter`, in a program that is not changed."""
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.delenv("PYTHONPATH")
    source = "import hf_mpwriter\nhf_mpwriter.patch()\nfrom torch.utils.tensorboard import SummaryWriter\n"
    assert succeed(source + "print(SummaryWriter.__module__)") == "hf_mpwriter.integrations.fromenv\n"


PROGRAM = """
import sys
from tensorboardX import SummaryWriter

with SummaryWriter(sys.argv[1]) as writer:
    writer.add_scalar("loss", 0.5, 1)
"""


def test_a_command_logs_to_the_hub_that_knows_nothing_of_us(hub, tmp_path):
    """The destination is in the environment, and an exit code is what it was."""
    program = tmp_path / "train.py"
    program.write_text(PROGRAM + "sys.exit(7)\n")
    command = ["run", "--patch", "--repo-id", "me/run", "--", sys.executable, str(program), str(tmp_path / "exp")]
    result = run_python(f"from hf_mpwriter.cli import main\nmain({command!r})")
    assert result.returncode == 7, result.stderr
    assert any("tensorboard/exp/events" in path for path in hub.store.tree("model", "me/run", "main"))


def test_a_sitecustomize_of_the_users_runs_as_well(tmp_path, monkeypatch):
    """Ours stands before it, and hands on."""
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    program = "import builtins, sitecustomize\nprint(builtins.theirs, 'patching' in str(__import__('sys').modules))"
    command = ["run", "--patch", "--", sys.executable, "-c", program]
    result = run_python(f"from hf_mpwriter.cli import main\nmain({command!r})")
    assert result.stdout == "True True\n", result.stderr


def test_a_command_that_is_not_there_is_told(tmp_path):
    """In one line."""
    command = ["run", "--", str(tmp_path / "nothing")]
    result = run_python(f"from hf_mpwriter.cli import main\nmain({command!r})")
    assert result.returncode == 1
    assert "No such file" in result.stderr
    assert "Traceback" not in result.stderr
