"""The documents: every link, path, command, setting, name and picture in them is right."""

from __future__ import annotations

import ast
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from documents import DESIGN, DOCS, PACKAGE, SETTINGS, TEXTS, exists, rows
from programs import wait_for
from repository import ROOT

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.base import verdicts
from hf_mpwriter.base.job import ROWS
from hf_mpwriter.cli.main import COMMANDS, main
from hf_mpwriter.testing import processes

SOURCES = "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))
HEADS = {  # the docstring of each module, by its path in the package
    path.relative_to(PACKAGE).as_posix(): ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    for path in sorted(PACKAGE.rglob("*.py"))
}
README_WORDS = 700  # a newcomer reads no more
VARIABLE = re.compile(r"\b(?:HF|HUGGING_?FACE)_[A-Z_]*[A-Z]\b")
FOLDERS = ("tests/", "scripts/", "./scripts/", "docs/", "hf_mpwriter/", ".ci/")


def test_the_readme_has_at_most_so_many_words():
    """Longer texts belong in docs/."""
    assert len(TEXTS["README.md"].split()) <= README_WORDS


# commands


def options() -> list[tuple[str, str]]:
    """Every option of every command, by its longest name."""
    return [
        (name, max(parameter.opts, key=len))
        for name in sorted(COMMANDS)
        for parameter in main.get_command(None, name).params
        if isinstance(parameter, click.Option)
    ]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name):
    """It has a help text, and docs/ show it."""
    assert main.get_command(None, name).help
    assert re.search(rf"(hf-mpwriter|scripts/){' ' * (name != 'demo')}{name}\b|hf-mpwriter {name}\b", DOCS)


@pytest.mark.parametrize(("name", "option"), options())
def test_every_option_is_documented(name, option):
    """docs/ name it, on the line of its command or in the text."""
    shown = any(
        option in line for line in DOCS.splitlines() if f"hf-mpwriter {name} " in line or f"scripts/{name} " in line
    )
    assert shown or f"`{option}`" in DOCS


def test_every_command_that_is_named_exists():
    """In all documents, also inside a sentence."""
    for name in re.findall(r"hf-mpwriter ([a-z]+)", "\n".join(TEXTS.values())):
        assert name in COMMANDS


def test_the_keys_of_a_status_are_documented(tmp_path):
    """docs/ name every key of `status --json`."""
    SummaryWriter(tmp_path).close()
    shown = CliRunner().invoke(main, ["status", str(tmp_path), "--json"])
    assert [key for key in json.loads(shown.output) if f"| `{key}` |" not in DOCS] == []


# settings


def parameters(writer: type) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor that have a name."""
    found = inspect.signature(writer).parameters
    return {name: value for name, value in found.items() if value.kind is not inspect.Parameter.VAR_KEYWORD}


def test_every_parameter_of_a_writer_is_documented_with_its_default():
    """No other parameter is documented. HFSummaryWriter has the same ones."""
    section = SETTINGS.split("## Constructor")[1].split("\n## ")[0]
    documented = {row[0]: row[1] for row in rows(section)[1:]}
    ours = parameters(SummaryWriter)
    assert documented == {f"`{name}`": f"`{parameter.default!r}`" for name, parameter in ours.items()}
    for name, parameter in parameters(HFSummaryWriter).items():
        assert name == "repo_id" or parameter.default == ours[name].default


def test_every_parameter_of_an_integration_is_documented_with_its_default():
    """No other parameter is documented; the frameworks need not be installed."""
    section = SETTINGS.split("## Integrations")[1].split("\n## ")[0]
    documented, name = {}, ""
    for row in rows(section)[1:]:
        name = row[0].strip("`") or name
        documented[name, row[1].strip("`")] = row[2].strip("`")
    ours = {}
    for path in sorted((PACKAGE / "integrations").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Hub"):
                ours |= {(node.name, key): value for key, value in defaults(node)}
    assert documented == ours


def defaults(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The parameters of the constructor of a class, each with its default, "" if there is none."""
    (made,) = (item.args for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
    found = [*made.args[1:], *made.kwonlyargs]
    given = [None] * (len(made.args) - 1 - len(made.defaults)) + [*made.defaults, *made.kw_defaults]
    for argument, default in zip(found, given, strict=True):
        yield argument.arg, ast.unparse(default) if default else ""


def test_every_variable_is_documented_and_none_is_invented():
    """The settings list each variable of the package; the package has each variable of the documents."""
    named = set(VARIABLE.findall(SOURCES))
    assert {name for name in named if name not in SETTINGS} == set()
    assert set(VARIABLE.findall("\n".join(TEXTS.values()))) - named == set()


def test_every_system_that_names_jobs_is_in_the_guide():
    """In the order in which they are asked, each with the beginning of its run directories."""
    table = TEXTS["docs/guide.md"].split("The first row that matches decides:")[1].split("\n\n")[1]
    systems = [re.findall(r"`runs/([a-z]*)", row[1])[0] for row in rows(table)[1:-1]]
    assert systems == list(ROWS)


# names


LARGEST = 100_000  # bytes of a picture: readers load all of the README at once
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def anchors(document: str) -> set[str]:
    """The anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", TEXTS[document], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", TEXTS)
def test_every_link_leads_somewhere(document):
    """Links to files and headings of the repository; other addresses are not requested."""
    for target in LINK.findall(TEXTS[document]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / document).parent / path if path else ROOT / document
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.resolve().relative_to(ROOT).as_posix()), target


def test_every_picture_is_there_small_and_shown():
    """Each has a text in its place; none of the folder is left over."""
    shown = {(ROOT / document).parent / path for document, text in TEXTS.items() for path in PICTURE.findall(text)}
    sizes = {path.resolve(): path.resolve().stat().st_size for path in shown}
    assert set(sizes) == set((ROOT / "docs" / "images").iterdir())
    assert max(sizes.values()) < LARGEST


def inline(text: str) -> list[str]:
    """The code inside sentences."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@pytest.mark.parametrize("document", TEXTS)
def test_every_path_that_is_named_exists(document):
    """Each is a file or folder of the repository; `<name>` stands for any."""
    named = [code.split()[0] for code in inline(TEXTS[document]) if code.startswith(FOLDERS)]
    assert [path for path in named if "<" not in path and not exists(path)] == []


def test_every_test_of_a_failure_exists():
    """The list of differences names the numbered tests by the start of their names."""
    differences = TEXTS["docs/differences.md"]
    (path,) = re.findall(r"without a path are in `(.*?)`", differences)
    source = (ROOT / path).read_text()
    named = re.findall(r"`(test_\w+_)\.\.\.`", differences)
    assert named
    assert [name for name in named if f"def {name}" not in source] == []


def test_the_picture_of_the_layers_has_every_folder():
    """And nothing else but the rooms that are one module."""
    picture = DESIGN.split("## Layers")[1].split("```text\n")[1].split("```")[0]
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert set(re.findall(r"\b(\w+)/(?=\s)", picture)) == rooms
    modules = {path.stem for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}
    assert [name for name in modules if not re.search(rf"  {name}  ", picture)] == []


def test_every_module_has_a_head():
    """Its first sentence says what it is responsible for, so no document lists the modules."""
    firsts = {module: text.partition("\n\n")[0].rstrip() for module, text in HEADS.items()}
    assert [module for module, first in firsts.items() if not first.endswith(".")] == []


@pytest.mark.parametrize("document", ["docs/design.md", "CONTRIBUTING.md"])
def test_every_module_that_is_named_exists(document):
    """Each module that a document names by folder and module."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = [code for code in inline(TEXTS[document]) if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", code)]
    assert [code for code in named if code.split("/")[0] in folders and not (PACKAGE / f"{code}.py").exists()] == []


def test_every_verdict_is_in_the_table():
    """The table names each verdict and its consequence."""
    section = DESIGN.split("### Verdicts")[1].split("\n### ")[0]
    assert [row[0].strip("`") for row in rows(section)[1:]] == [
        verdict.__name__ for verdict in typing.get_args(verdicts.Verdict)
    ]


# claims

LOG = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/disk", logdir=sys.argv[1]) as writer:
    writer.add_scalar("loss", 1.0, 1)
    writer.push()
    sys.stdin.readline()
"""


def generic(path: str) -> str:
    """A path in the spool as the picture names it."""
    first, *rest = path.split("/")
    if first == "hosts":
        rest[0] = "<host>"
        rest[-1] = re.sub(r"^\d{8}\.json$", "00000042.json", re.sub(r"^[0-9a-f]{64}$", "<sha256>", rest[-1]))
        rest[-1] = re.sub(r"^(uploader|mirror|sampler)(?=[_.](?!lock))", "<kind>", rest[-1])
    if first in ("claims", "members"):
        rest = [f"<worker>{Path(path).suffix}" if first == "claims" else "<worker>.<host>.<pid>.<ticks>-<n>"]
    return "/".join([first, *rest])


def keys(path: Path) -> set[str]:
    """The top-level keys of a JSON file, which may have one value a line."""
    return {key for line in path.read_text().splitlines() for key in json.loads(line)}


SPOOL = DESIGN.split("## On disk")[1].split("\n## ")[0]  # with the picture of it


def owners(name: str) -> list[str]:
    """The modules whose heads show a file: a line of theirs is its name in the picture, with JSON there or below."""
    shown = re.compile(rf"^ {{4,}}{re.escape(name)}(?: +\{{.*|\n    \{{.*)$", re.MULTILINE)
    return [module for module, text in HEADS.items() if shown.search(text)]


def test_the_json_of_every_file_in_the_spool_is_at_one_head():
    """At that of the module that owns it, unless the picture says that a file is as another one."""
    files = re.findall(r"^    (\S+\.json|members/\S+) +(.*)$", SPOOL, re.MULTILINE)
    assert len(files) > 10
    assert {name: owners(name) for name, text in files if not text.startswith("as ") and len(owners(name)) != 1} == {}


def undocumented(spool: Path) -> dict[str, set[str]]:
    """The files on disk that the picture lacks, and those of which the head of the owner lacks keys."""
    found = {}
    for path in [path for path in spool.rglob("*") if path.is_file() and path.suffix != ".tmp"]:
        name = generic(path.relative_to(spool).as_posix())
        if f"    {name} " not in SPOOL:
            found[name] = {"not in the picture"}
        elif path.suffix == ".json" or path.parent.name == "members":
            [owner] = owners(name)
            found[name] = {key for key in keys(path) if f'"{key}"' not in HEADS[owner]}
    return {name: lacking for name, lacking in found.items() if lacking}


def test_the_picture_of_the_spool_is_what_is_on_disk(hub, run_dir, start):
    """It has every file of a run, while a push is under way and at the end; the heads of the owners have every key."""
    hub.fault("/commit/ hang")
    program = start(LOG, run_dir)
    spool = run_dir / ".hf_mpwriter"
    wait_for(lambda: hub.faults()[0].held, "a commit is under way")
    assert undocumented(spool) == {}
    assert f'"{(spool / "FORMAT").read_text().strip()}"' in SPOOL
    hub.clear_faults()
    assert "not on the Hub" not in program.process.communicate("\n", timeout=200)[1]
    wait_for(lambda: not processes.left_behind(str(run_dir)), "the uploader leaves")
    assert undocumented(spool) == {}


@pytest.mark.parametrize("logdir", ["hf://me/run", "hf://datasets/me/run/exp1"])
def test_a_logdir_that_is_a_repository_is_refused(logdir):
    """The error names what helps."""
    with pytest.raises(OSError, match="repo_id="):
        SummaryWriter(logdir)
