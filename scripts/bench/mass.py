#!/usr/bin/env python3
"""How much there is to read, at several commits: a row for each.

    scripts/bench/mass.py                 HEAD
    scripts/bench/mass.py 89cb576 HEAD    before and after

| column | what is counted |
|---|---|
| lines, code | of the package; code has a token that is neither comment nor docstring |
| docstrings, functions, modules | of the package |
| wide | classes with more than ten attributes that are set in `__init__` or as fields |
| parameters | of `HFSummaryWriter`, without `self` and `**kwargs` |
| variables | `HF_MPWRITER_*` in docs/settings.md |
| flags | options of the commands |
| tests | lines below tests/ |
| words | README.md and docs/ |
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.paths import ROOT

COLUMNS = (
    "lines",
    "code",
    "docstrings",
    "functions",
    "modules",
    "wide",
    "parameters",
    "variables",
    "flags",
    "tests",
    "words",
)
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MANY = 10  # attributes of a class


def git(*arguments: str) -> str:
    """Return what git prints."""
    return subprocess.check_output(["git", "-C", str(ROOT), *arguments], text=True)  # noqa: S607 - found on PATH


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines of all docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node) is not None:
            found.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines with a token, docstrings among them."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return found


def attributes(node: ast.ClassDef) -> set[str]:
    """Return the fields of a class, and what its `__init__` sets on `self`."""
    found = {
        part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            stored = (
                one for one in ast.walk(part) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)
            )
            found |= {one.attr for one in stored if isinstance(one.value, ast.Name) and one.value.id == "self"}
    return found


def parameters(tree: ast.Module) -> int:
    """Return the number of parameters of `HFSummaryWriter`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "HFSummaryWriter":
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    return len(part.args.args) + len(part.args.kwonlyargs) - 1
    return 0


def flags(tree: ast.Module) -> int:
    """Return the number of options of commands."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(isinstance(func, ast.Attribute) and func.attr == "option" for func in calls)


def row(commit: str) -> Iterator[int]:
    """Yield the columns of a commit."""
    names = git("ls-tree", "-r", "--name-only", commit).split()
    package = {name: git("show", f"{commit}:{name}") for name in names if re.fullmatch(r"hf_mpwriter/.*\.py", name)}
    trees = {name: ast.parse(source) for name, source in package.items()}
    documented = {name: docstring_lines(tree) for name, tree in trees.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    yield sum(source.count("\n") for source in package.values())
    yield sum(len(code_lines(source) - documented[name]) for name, source in package.items())
    yield sum(map(len, documented.values()))
    yield sum(isinstance(node, FUNCTIONS) for node in nodes)
    yield len(package)
    yield sum(isinstance(node, ast.ClassDef) and len(attributes(node)) > MANY for node in nodes)
    yield parameters(trees["hf_mpwriter/writer/hf_summary_writer.py"])
    settings = git("show", f"{commit}:docs/settings.md")
    yield len(set(re.findall(r"^\| `(HF_MPWRITER_\w+)`", settings, re.MULTILINE)))
    yield sum(flags(tree) for name, tree in trees.items() if name.startswith("hf_mpwriter/cli/"))
    yield sum(git("show", f"{commit}:{name}").count("\n") for name in names if re.fullmatch(r"tests/.*\.py", name))
    texts = (name for name in names if re.fullmatch(r"README\.md|docs/[^/]*\.md", name))
    yield sum(len(git("show", f"{commit}:{name}").split()) for name in texts)


def main() -> None:
    """Print a row for each commit."""
    parser = make_parser(__doc__)
    parser.add_argument("commits", nargs="*", default=["HEAD"], metavar="COMMIT")
    print(f"{'':10}", *(f"{name:>10}" for name in COLUMNS))
    for commit in parser.parse_args().commits:
        print(f"{commit[:10]:10}", *(f"{value:>10,}" for value in row(commit)), flush=True)


if __name__ == "__main__":
    main()
