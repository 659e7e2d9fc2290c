"""The code in the documents: Python compiles and runs, commands exist and accept their arguments."""

from __future__ import annotations

import ast
import builtins
import configparser
import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import click
import pytest
import yaml
from documents import BLOCKS, COMMANDS, CURLS, DOCS, OURS, PACKAGE, PYTHON, SETTINGS, Block, Command, exists
from programs import DEADLINE, wait_for
from repository import HELPERS, ROOT

from hf_mpwriter.cli.main import main
from hf_mpwriter.testing import processes

CONTEXT = """
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir="runs/exp1")
writer.add_scalar("loss", 1.0, 1)
"""  # the context of a block that uses `writer`
OF_THE_READER = {"train.py"}  # programs that a document does not contain
FROM_A_FILE = "import os, sys; os.execv(sys.executable, [sys.executable, 'program.py'])"  # spawned processes import it
STARTERS = {"torch", "joblib", "optuna", "ray"}  # what starts processes; not everyone has all of them


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One local Hub for all blocks."""
    from hf_mpwriter.localhub import LocalHub

    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch):
    """The local Hub, and HF_ENDPOINT pointing at it."""
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    yield server
    server.clear_faults()


# blocks


def test_every_block_is_of_a_kind_that_is_checked():
    """Python is run or compiled, an indented block is commands, a text block is a picture, others are for launchers."""
    assert {block.language for block in BLOCKS} == {"python", "shell", "text", "bash", "yaml"}
    assert len(PYTHON) >= 10
    assert len(COMMANDS) >= 50


def free_names(tree: ast.Module) -> set[str]:
    """The names that a block uses and does not define."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return {node.id for node in names} - bound - set(dir(builtins))


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The modules, and the names that are imported from them ("" for the module itself)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def defined_in(module: str) -> set[str]:
    """The top-level names of a module of ours, read without an import: it may need a framework."""
    tree = ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def test_python_compiles_and_what_it_imports_of_ours_is_there(subtests):
    """No block has a syntax error or a name that was renamed."""
    for block in PYTHON:
        with subtests.test(str(block)):
            for module, name in imports(ast.parse(block.text)):
                if module.startswith("hf_mpwriter.integrations."):
                    assert not name or name in defined_in(module)
                elif module.startswith("hf_mpwriter"):
                    assert not name or hasattr(importlib.import_module(module), name)


def packages(block: Block) -> set[str]:
    """The packages that a block imports, other than ours and those that are always there."""
    modules = {module.split(".")[0] for module, _ in imports(ast.parse(block.text))}
    return modules - {"hf_mpwriter", "numpy", *sys.stdlib_module_names}


def starts_processes(block: Block) -> bool:
    """Whether it is a program that may be imported: what it starts does that."""
    return 'if __name__ == "__main__":' in block.text


def is_self_contained(block: Block) -> bool:
    """Whether the block can run: it needs no framework but to start processes, and no context but a writer."""
    tree = ast.parse(block.text)
    is_light = packages(block) <= (STARTERS if starts_processes(block) else set())
    return is_light and "hf_mpwriter.integrations" not in block.text and free_names(tree) <= {"writer"}


def runnable() -> Iterator[object]:
    """The blocks that can run; one that needs what is not installed is skipped."""
    for block in filter(is_self_contained, PYTHON):
        missing = sorted(name for name in packages(block) if importlib.util.find_spec(name) is None)
        marks = [pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")]
        marks += [pytest.mark.torch] * ("torch" in packages(block))
        yield pytest.param(block, id=str(block), marks=marks)


@pytest.mark.parametrize("block", list(runnable()))
def test_python_that_is_self_contained_runs(hub, tmp_path, monkeypatch, start, block):
    """Each runs as a program; what it logs for the Hub is there at its end."""
    monkeypatch.chdir(tmp_path)
    if packages(block):
        monkeypatch.setenv("PYTHONPATH", str(HELPERS / "watch"))  # with the real torch
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no file in the home of the developer
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    given = CONTEXT if free_names(ast.parse(block.text)) else ""
    (tmp_path / "program.py").write_text(given + block.text)
    code, out, err = start(FROM_A_FILE if starts_processes(block) else given + block.text).finish()
    assert code == 0, err
    assert "not on the Hub" not in out + err
    assert not starts_processes(block) or "done: " in out + err, "the user is told its end"
    for spool in tmp_path.glob("runs/*/.hf_mpwriter"):
        wait_for(lambda run=str(spool.parent): not processes.left_behind(run), "the uploader leaves")


# commands


def check_test_command(words: tuple[str, ...]) -> None:
    """`./scripts/test`: its own option, pytest's, and paths; `-k` names something there."""
    paths = [word for word in words if "/" in word]
    assert all(map(exists, paths))
    files = [file for path in paths or ["tests"] for file in [ROOT / path, *(ROOT / path).rglob("test_*.py")]]
    if "-k" in words:
        wanted = words[words.index("-k") + 1]
        assert any(wanted in file.name or wanted in file.read_text() for file in files if file.is_file())
        words = tuple(word for word in words if word not in ("-k", wanted))
    assert set(words) - set(paths) <= {"--all"}


def check_pip(words: tuple[str, ...]) -> None:
    """`pip install`: of this repository with extras that it has, or of packages that the text names."""
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    assert words[0] == "install"
    for word in words[1:]:
        match = re.fullmatch(r"\.(?:\[(.*)\])?", word)
        wanted = set((match[1] or "").split(",")) - {""} if match else set()
        assert wanted <= set(extras["options.extras_require"])
        assert match or word in {"-e", "tensorboard", "scikit-learn"}


def check_ours(words: tuple[str, ...]) -> None:
    """`hf-mpwriter`: a command that is there, with options and values that it takes."""
    if words[0].startswith("--"):
        assert words[0] in {"--help", "--version"}
        return
    with contextlib.suppress(click.exceptions.Exit):  # --help
        main.get_command(None, words[0]).make_context(words[0], list(words[1:]))


def test_a_file_for_a_launcher_is_valid_and_runs_a_supervisor(subtests):
    """YAML is YAML, a script is one for bash; the command takes its options, and ends in a program of the reader."""
    for block in BLOCKS:
        if block.language in ("bash", "yaml"):
            with subtests.test(str(block)):
                check_launcher(block)


def check_launcher(block: Block) -> None:
    """A file for a launcher."""
    text = block.text
    if block.language == "yaml":
        yaml.safe_load(text)
        text = re.sub(r"command: \[(.*?)\]", lambda match: re.sub(r'[,"]', " ", match[1]), text, flags=re.DOTALL)
        text = re.sub(r"\n {16,}--", " --", text)
    else:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    commands = re.findall(r"hf-mpwriter +run .*", text.replace("\\\n", " "))
    assert len(commands) == ("hf-mpwriter" in text)
    for command in commands:
        words = tuple(shlex.split(command))
        check_ours(words[1:])
        assert words[-1] in OF_THE_READER
        if "--pull" in words:
            named = {"--repo-id": "HF_MPWRITER_REPO_ID", "--logdir": "HF_MPWRITER_LOGDIR"}
            assert all(option in words or name in text for option, name in named.items())


def test_a_command_exists_and_takes_what_it_is_given(subtests):
    """The program, its paths and options, and the variables before it."""
    for command in COMMANDS:
        with subtests.test(str(command)):
            check_command(command)


def check_command(command: Command) -> None:
    """A line of a shell block."""
    assert all(name in SETTINGS for name in command.variables)
    program, *rest = command.words
    words = tuple(rest)
    if program.startswith("./scripts/"):
        assert os.access(ROOT / program, os.X_OK)
        if program == "./scripts/test":
            check_test_command(words)
        elif program == "./scripts/demo":
            check_ours(("demo", *words))
        else:
            assert not words
    elif program == "python":
        assert words[0] in OF_THE_READER or exists(words[0])
    elif program == "pip":
        check_pip(words)
    elif program == "hf-mpwriter":
        check_ours(words)
    elif program == "torchrun":
        assert words[-1] in OF_THE_READER
    else:
        assert command.words in {("hf", "auth", "login"), ("tensorboard", "--logdir", "runs")} or program == "curl"


def script_commands() -> dict[str, list[list[str]]]:
    """The arguments of our scripts in the documents, by script."""
    found = defaultdict(list)
    for command in COMMANDS:
        if command.words[0] == "python" and command.words[1] not in OF_THE_READER:
            found[command.words[1]].append(list(command.words[2:]))
    return found


OF_A_SCRIPT = """
import os, runpy, sys
sys.argv[:1] = []
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # as the interpreter runs it


def takes(start, script: str, arguments: list[str]) -> str:
    """The reason why a script refuses these arguments, "" if it accepts them.

    Values are checked before `--help`, which ends the program; unknown options would be found only after it.
    """
    _, out, errors = start(OF_A_SCRIPT, ROOT / script, *arguments, "--help").finish()
    known = re.findall(r"--[a-z-]+", out)
    unknown = [word for word in arguments if word.startswith("--") and word not in known]
    return errors or " ".join(unknown)


def test_a_script_takes_the_options_that_are_shown(start, subtests):
    """All options at once, or one command after the other where they exclude each other."""
    for script, given in script_commands().items():
        with subtests.test(script):
            check_script(start, script, given)


def check_script(start, script: str, given: list[list[str]]) -> None:
    """A script, and all arguments that are shown."""
    if script.startswith("scripts/examples/"):  # they need a framework
        options = {word for words in given for word in words if word.startswith("--")}
        assert all(f'"{option}"' in (ROOT / script).read_text() for option in options)
    elif takes(start, script, [*itertools.chain(*given)]):
        assert [takes(start, script, arguments) for arguments in given] == [""] * len(given)


def faults() -> list[str]:
    """The faults that the documents show."""
    pairs = [pair for command in OURS for pair in itertools.pairwise(command.words)]
    shown = {fault for option, fault in pairs if option == "--fault"}
    return sorted(shown | set(re.findall(r'hub\.fault\("(.*?)"\)', DOCS)))


def test_a_fault_is_valid(hub, subtests):
    """The local Hub accepts it."""
    for number, fault in enumerate(faults()):
        with subtests.test(fault):
            hub.fault(fault)
            assert len(hub.faults()) == number + 1


def test_requests_to_the_local_hub_are_answered(tmp_path):
    """All curl commands run in their order, at a Hub with tokens."""
    from hf_mpwriter.localhub import LocalHub

    assert len(CURLS) >= 5
    with LocalHub(tmp_path, xet=False, token="hf_a") as hub:
        secret = (tmp_path / "secret").read_text()
        for command in CURLS:
            words = [word.replace("http://127.0.0.1:8765", hub.endpoint) for word in command.words]
            subprocess.run(
                [*(word.replace("$(cat hub-data/secret)", secret) for word in words), "--fail", "--silent"],
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=DEADLINE,
            )
