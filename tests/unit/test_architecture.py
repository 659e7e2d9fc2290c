"""The layers: a module imports from lower ones only, and each dangerous thing has one owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import succeed

import hf_mpwriter

PACKAGE = Path(hf_mpwriter.__file__).parent

LAYERS = {
    0: {"errors", "disk", "locks", "settings", "redaction", "hfhome"},
    1: {
        "records",
        "identity",
        "spool",
        "retry",
        "decision",
        "daemon",
        "eventfile",
        "exported",
        "limits",
        "segment",
        "summaries",
        "trust",
        "values",
    },
    2: {"purge", "roster", "snapshot", "attachment", "queue", "ledger", "progress", "bulletin", "budget"},
    3: {"hub", "judge", "transport"},
    4: {
        "push",
        "pace",
        "audience",
        "attaching",
        "election",
        "uploader",
        "ending",
        "worker",
        "workers",
        "filewriter",
        "scheduler",
    },
    5: {"adders", "writer", "hfwriter", "cli", "demo", "integrations"},
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules}
APART = {"localhub": set(), "testing": {0, 1, 2}}  # the layers that they may use
ANYBODY = {"_version"}
DOORS = 5


def name_of(path: Path) -> str:
    """`queue` for a module, `localhub.app` for one of a subpackage."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def top(module: str) -> str:
    """The module or subpackage directly below the package."""
    return module.partition(".")[0]


def for_types_only(node: ast.stmt) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt) and for_types_only(node):
            continue
        yield node
        yield from statements(node)


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for dotted in imported(FILES[module]):
        head, _, rest = dotted.partition(".")
        if head == "hf_mpwriter" and rest:
            parts = rest.split(".")
            candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            name = next((c for c in candidates if c in FILES or f"{c}.__init__" in FILES), None)
            if name is not None:
                found.add(name)
    return found


def importers(*packages: str) -> set[str]:
    """The modules of ours that import one of these packages."""
    return {m for m, tree in FILES.items() if any(dotted.partition(".")[0] in packages for dotted in imported(tree))}


def without(modules: set[str], *apart: str) -> set[str]:
    """Modules that are in none of these subpackages or modules."""
    return {module for module in modules if top(module) not in apart}


def test_every_module_has_a_layer():
    """A new module must be given its place in the table."""
    modules = {top(module) for module in FILES} - {"__init__", "__main__"} - ANYBODY - set(APART)
    assert modules - set(LAYER) == set()
    assert set(LAYER) - modules <= {"demo"}, "the table names modules that do not exist"


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_from_its_layer_and_lower_ones(module):
    """What stands apart keeps to what it may use, and only doors use it."""
    for other in ours(module) - ANYBODY:
        if top(other) == top(module):
            continue
        if top(module) in APART:
            assert LAYER.get(top(other)) in APART[top(module)], f"{module} may not import {other}"
        elif module in ("__init__", "__main__"):
            assert LAYER[top(other)] == DOORS
        elif top(other) in APART:
            assert LAYER[top(module)] == DOORS, f"only doors use {top(other)}"
        else:
            assert LAYER[top(other)] <= LAYER[top(module)], f"{module} ({LAYER[top(module)]}) imports {other}"


def test_formats_build_on_each_other_in_order():
    """Within layer 1 only these are imported by others."""
    used = {other for module in LAYERS[1] for other in ours(module) if LAYER.get(other) == 1}
    assert used <= {"identity", "limits", "records", "segment", "spool", "trust", "values"}


def test_no_modules_import_each_other():
    """No circle, of any length, lazy imports included (the facade in __init__ excepted)."""
    graph = {module: ours(module) for module in FILES if module != "__init__"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for other in graph.get(module, graph.get(f"{module}.__init__", set())):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        if not module.endswith("__init__"):
            visit(module, ())


def test_only_the_remote_layer_imports_the_network_client():
    """What touches huggingface_hub and httpx2 is one layer, which only the push uses."""
    assert without(importers("huggingface_hub", "httpx2"), "localhub", "demo") == LAYERS[3]


def test_only_locks_imports_file_locks():
    """Filelock and fcntl have one caller; the table of descriptors would not be complete otherwise."""
    assert without(importers("filelock", "fcntl"), "localhub", "demo", "testing") == {"locks"}


def test_only_the_uploader_and_its_daemon_import_psutil():
    """Training never loads it; whoever shows status may."""
    assert without(importers("psutil"), "testing", "localhub", "demo", "cli") <= {"daemon", "uploader"}


def calls(tree: ast.AST) -> set[str]:
    """`module.function` of every call and every other use of such an attribute."""
    return {
        f"{n.value.id}.{n.attr}"
        for n in statements(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }


def test_only_disk_syncs_links_and_renames():
    """One module may make names and durable content, so faults have one seam; the local Hub is another program."""
    owned = {f"os.{name}" for name in ("fsync", "fdatasync", "link", "rename", "replace", "symlink", "sync")}
    users = {module: sorted(calls(tree) & owned) for module, tree in FILES.items() if calls(tree) & owned}
    assert set(without(set(users), "localhub", "demo")) == {"disk"}
    names = {
        n
        for m in without(set(FILES), "localhub", "demo", "testing")
        for n in imported(FILES[m])
        if n.startswith(("os.", "shutil"))
    }
    assert names & (owned | {"shutil"}) == set()


def test_nothing_of_ours_starts_processes_from_training_but_the_election():
    """`subprocess` can block when another thread forks; only the uploader, of one thread, starts pushes with it."""
    assert without(importers("subprocess"), "testing", "localhub", "demo", "cli") == {"push"}
    assert {m for m, tree in FILES.items() if "os.posix_spawn" in calls(tree)} == {"election"}


LOADED = """
import sys
{}
print(" ".join(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
HEAVY = {"huggingface_hub", "httpx2", "tensorboardX", "torch", "numpy", "google"}


def loaded(statement: str) -> set[str]:
    """The top-level modules in a fresh interpreter after a statement."""
    return set(succeed(LOADED.format(statement)).split())


def test_importing_the_package_loads_nothing_else():
    """Names resolve on first use."""
    assert loaded("import hf_mpwriter") & (HEAVY | {"filelock", "psutil", "click"}) == set()


def test_the_uploader_is_light():
    """It lives as long as the run, on every host: no client, no numpy, no protobuf."""
    assert loaded("import hf_mpwriter.uploader.loop") & HEAVY == set()


def test_a_writer_loads_no_network_client():
    """Training pays for tensorboardX and filelock, not for the Hub's client and psutil."""
    found = loaded("from hf_mpwriter import HFSummaryWriter")
    assert found & {"huggingface_hub", "httpx2", "psutil", "hf_xet"} == set()


def test_no_module_is_too_long():
    """About 300 lines, the guard rail of the style guide; the biggest today are the loop and the door."""
    long = {name: len((PACKAGE / f"{name.replace('.', '/')}.py").read_text().splitlines()) for name in FILES}
    assert {name: lines for name, lines in long.items() if lines > 450} == {}
