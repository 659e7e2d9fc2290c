"""`patch()` and `hf-mpwriter run --patch`: code that cannot be changed gets our writers, and theirs back."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import partial

import programs
import pytest
from support import keys

# in interpreters of their own: what they have imported is what is tested
run_python, succeed = partial(programs.run_python, fresh=True), partial(programs.succeed, fresh=True)
THEIRS = "import tensorboardX, huggingface_hub\n"
KINDS = """
def kinds():
    return tensorboardX.SummaryWriter.__module__, huggingface_hub.HFSummaryWriter.__module__
"""
OURS = "hf_mpwriter.integrations.shared hf_mpwriter.writer.hf_summary_writer"
ORIGINAL = "tensorboardX.writer huggingface_hub._tensorboard_logger"


@pytest.mark.parametrize("order", [THEIRS + "hf_mpwriter.patch()", "hf_mpwriter.patch()\n" + THEIRS])
def test_the_names_are_ours_until_unpatch(order):
    """Whether the modules were there before or come later; patching twice is as patching once."""
    source = f"import hf_mpwriter\n{order}\n{KINDS}print(*kinds())\nhf_mpwriter.patch()\nhf_mpwriter.unpatch()\n"
    assert succeed(source + "print(*kinds())").splitlines() == [OURS, ORIGINAL]


def test_steps_with_a_fraction_are_cut_in_code_that_cannot_be_changed(tmp_path):
    """As torch and tensorboardX do; `unpatch` ends it. What is no number at all is refused as ever."""
    source = f"""
import hf_mpwriter
hf_mpwriter.patch()
import tensorboardX
with tensorboardX.SummaryWriter({str(tmp_path)!r}) as writer:
    writer.add_scalar("loss", 1.0, 1.7)
    hf_mpwriter.unpatch()
    for step in (1.7, "soon"):
        try:
            writer.add_scalar("loss", 1.0, step)
        except ValueError:
            print("refused")
"""
    assert succeed(source) == "refused\nrefused\n"
    assert [step for path in tmp_path.glob("*tfevents*") for _, step in keys(path)] == [1]


@pytest.mark.parametrize("first", ["hf_mpwriter", "tensorboardX"])
def test_our_writers_load_in_either_order(first):
    """They are built on tensorboardX, whose name is resolved to them; nothing is imported until it is used.

    A patched module is pickled by its name, as cloudpickle does for functions that use it.
    """
    source = f"""
import pickle, sys, hf_mpwriter
hf_mpwriter.patch()
print(*{{"torch", "tensorboardX", "numpy"}} & {{*sys.modules}})
from {first} import SummaryWriter
import tensorboardX
print(issubclass(tensorboardX.SummaryWriter, hf_mpwriter.SummaryWriter))
print(pickle.loads(pickle.dumps(tensorboardX)) is tensorboardX)
"""
    assert succeed(source) == "\nTrue\nTrue\n"


GLOBAL = """
import multiprocessing
import hf_mpwriter
hf_mpwriter.patch()
from tensorboardX import GlobalSummaryWriter, SummaryWriter

def work(number):
    writer.add_scalar("pool", number)
    return number

if __name__ == "__main__":
    first = GlobalSummaryWriter.getSummaryWriter()
    print(GlobalSummaryWriter.getSummaryWriter() is first, isinstance(first.smw, SummaryWriter))
    writer = GlobalSummaryWriter("runs/here")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(work, range(10))
    writer.add_text("note", "of the parent")
    writer.close()
    hf_mpwriter.unpatch()
    import tensorboardX
    print(tensorboardX.GlobalSummaryWriter.__module__)
"""


def test_the_global_writer_of_tensorboardx_is_ours_and_counts_steps_over_processes(monkeypatch, tmp_path):
    """Each process has files of its own; a tag has each step once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(GLOBAL)
    out = run_file_in(tmp_path)
    assert [line for line in out if "Using" not in line] == ["True True", "tensorboardX.global_writer"]
    found = [key for path in (tmp_path / "runs/here").rglob("*tfevents*") for key in keys(path)]
    assert sorted(found) == [("note/text_summary", 0), *(("pool", step) for step in range(10))]
    assert (tmp_path / "runs/here/.hf_mpwriter").is_dir()


def run_file_in(directory) -> list[str]:
    """The lines that the program in a directory prints."""
    result = subprocess.run(
        [sys.executable, "program.py"], cwd=directory, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_tool_that_replaces_one_name_leaves_us_the_others():
    """Of a module with two names of ours."""
    source = """
import hf_mpwriter, tensorboardX
hf_mpwriter.patch()
tensorboardX.SummaryWriter = "another"
print(tensorboardX.SummaryWriter, tensorboardX.GlobalSummaryWriter.__name__)
hf_mpwriter.unpatch()
print(tensorboardX.SummaryWriter, tensorboardX.GlobalSummaryWriter.__name__)
"""
    assert succeed(source).split() == ["another", "GlobalEnvironmentWriter", "another", "GlobalSummaryWriter"]


WITH_TORCH = """
import hf_mpwriter
from torch.utils.tensorboard import SummaryWriter as Theirs

theirs = Theirs("theirs")
hf_mpwriter.patch()
from torch.utils import tensorboard
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import SummaryWriter as from_its_home

print(SummaryWriter.__module__, from_its_home is SummaryWriter, isinstance(theirs, SummaryWriter))
theirs.add_hparams({"rate": 0.1}, {"loss": 1.0}, run_name="trial")  # constructs a writer by the name in their module
theirs.close()
hf_mpwriter.unpatch()
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import SummaryWriter as from_its_home

print(SummaryWriter is Theirs, from_its_home is Theirs)
"""


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_hands_out_ours_and_its_own_writers_go_on(monkeypatch, tmp_path):
    """By both names that programs import; a writer of theirs that was made before stays one in all it does."""
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    assert succeed(WITH_TORCH).splitlines() == ["hf_mpwriter.integrations.shared True False", "True True"]
    assert not list(tmp_path.rglob(".hf_mpwriter")), "theirs has called its own writer"
    assert len(list(tmp_path.rglob("trial/*tfevents*"))) == 1


def test_what_else_finds_and_loads_modules_goes_on(tmp_path):
    """A finder of old times, that knows no specs; the loader of a zip file, which is one for all that is in it."""
    source = """
import sys, zipfile
import hf_mpwriter

class Old:
    def find_module(self, name, path=None):
        return None

archive = sys.argv[1]
with zipfile.ZipFile(archive, "w") as file:
    file.writestr("tensorboardX/__init__.py", "SummaryWriter = None")
    file.writestr("zipped.py", "")
sys.path.insert(0, archive)
sys.meta_path.insert(0, Old())
hf_mpwriter.patch()
import tensorboardX, zipped
print(tensorboardX.__file__.startswith(archive), type(tensorboardX) is type(sys), type(zipped) is type(sys))
"""
    assert succeed(source, tmp_path / "app.zip").split() == ["True", "False", "True"]


def test_a_tool_that_is_imported_later_and_finds_modules_first_gets_what_it_wants(tmp_path):
    """As Comet does, whose module is to be imported before all others: both have their way."""
    (tmp_path / "tool.py").write_text("""
import sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorboardX":
            print("found by the tool")
            return PathFinder.find_spec(name, path, target)

sys.meta_path.insert(0, Finder())
import tool_part
""")
    (tmp_path / "tool_part.py").touch()
    source = """
import sys
import hf_mpwriter
sys.path.insert(0, sys.argv[1])
hf_mpwriter.patch()
import tool
from tensorboardX import SummaryWriter
print(SummaryWriter.__name__)
hf_mpwriter.unpatch()
from tensorboardX import SummaryWriter
print(SummaryWriter.__module__)
"""
    assert succeed(source, tmp_path).splitlines() == ["found by the tool", "EnvironmentWriter", "tensorboardX.writer"]


PROGRAM = """
import sys
from tensorboardX import SummaryWriter

with SummaryWriter(sys.argv[1]) as writer:
    writer.add_scalar("loss", 0.5, 1)
"""


LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"


def test_a_command_logs_to_the_hub_that_knows_nothing_of_us(hub, tmp_path):
    """Also what it starts, as torchrun does; the destination is in the environment, an exit code is what it was."""
    program = tmp_path / "train.py"
    program.write_text(PROGRAM + "sys.exit(7)\n")
    command = ["run", "--patch", "--repo-id", "me/run", "--", sys.executable, "-c", LAUNCHER]
    command += [str(program), str(tmp_path / "exp")]
    result = run_python(f"from hf_mpwriter.cli.main import main\nmain({command!r})")
    assert result.returncode == 7, result.stderr
    assert any("tensorboard/exp/events" in path for path in hub.store.tree("model", "me/run", "main"))


def test_a_sitecustomize_of_the_users_runs_as_well(tmp_path, monkeypatch):
    """Ours stands before it, and hands on."""
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    program = "import builtins, sitecustomize\nprint(builtins.theirs, 'patching' in str(__import__('sys').modules))"
    command = ["run", "--patch", "--", sys.executable, "-c", program]
    result = run_python(f"from hf_mpwriter.cli.main import main\nmain({command!r})")
    assert result.stdout == "True True\n", result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--", "./nothing"], "No such file"), (["--repo-id", "a b", "--", "true"], "'a b'")]
)
def test_what_cannot_be_run_is_told_in_one_line(arguments, told, tmp_path, monkeypatch):
    """Before anything starts."""
    monkeypatch.chdir(tmp_path)
    result = run_python(f"from hf_mpwriter.cli.main import main\nmain({['run', *arguments]!r})")
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_repository_is_reported():
    """The run would stay on this disk; a program that names one itself is as good."""
    result = run_python("from hf_mpwriter.cli.main import main\nmain(['run', '--patch', '--', 'true'])")
    assert result.returncode == 0
    assert "HF_MPWRITER_REPO_ID" in result.stderr
