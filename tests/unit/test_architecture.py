"""The architecture beyond the layers, which import-linter checks: each dangerous thing has one owner."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import succeed

import hf_mpwriter

PACKAGE = Path(hf_mpwriter.__file__).parent
LONGEST = 600  # lines of a module
PUBLIC = {"__init__", "integrations", "localhub", "testing", "demo"}  # their __init__ may import


def name_of(path: Path) -> str:
    """`spool.outbox` for a module, `spool.__init__` for that of a folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """All modules, parsed once by the processes that run these tests, not by each that collects them."""
    return {name: ast.parse(path.read_text()) for name, path in PATHS.items()}


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


def used(tree: ast.AST) -> set[str]:
    """`module.function` of every call and every other use of such an attribute."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in statements(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def words(tree: ast.AST) -> set[str]:
    """All strings."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def ours(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for dotted in imported(trees()[module]):
        head, _, rest = dotted.partition(".")
        if head == "hf_mpwriter" and rest:
            parts = rest.split(".")
            prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            names = [name for prefix in prefixes for name in (prefix, f"{prefix}.__init__") if name in trees()]
            found.update(names[:1])
    return found


def importers(*packages: str) -> set[str]:
    """The modules of ours that import one of these packages."""
    return {m for m, tree in trees().items() if any(dotted.partition(".")[0] in packages for dotted in imported(tree))}


def without(modules: set[str], *folders: str) -> set[str]:
    """Modules that are in none of these folders."""
    return {module for module in modules if module.partition(".")[0] not in folders}


def test_no_modules_import_each_other():
    """No circle, of any length, lazy imports included (the facade in __init__ excepted)."""
    graph = {module: ours(module) for module in trees() if module != "__init__"}
    assert sum(map(len, graph.values())) > 200, "the imports are found"
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_locks_imports_file_locks():
    """Locks are taken in one module; the table of descriptors would not be complete otherwise."""
    apart = ("localhub", "demo", "testing")
    assert without(importers("filelock"), *apart) == {"system.locks"}
    locking = {module for module, tree in trees().items() if used(tree) & {"fcntl.flock", "fcntl.lockf"}}
    assert without(locking, *apart) == {"system.locks"}


def test_only_disk_syncs_links_and_renames():
    """One module may make names and durable content, so faults have one seam; another one in a foreign logdir.

    The local Hub is another program.
    """
    owned = {f"os.{name}" for name in ("fsync", "fdatasync", "link", "rename", "replace", "symlink", "sync")}
    users = {module for module, tree in trees().items() if used(tree) & owned}
    owners = {"system.disk", "mirror.posix"}
    assert without(users, "localhub", "demo") == owners
    names = {
        name
        for module in without(set(trees()), "localhub", "demo", "testing") - owners
        for name in imported(trees()[module])
        if name.startswith(("os.", "shutil"))
    }
    assert names & (owned | {"shutil"}) == set()


def test_no_mode_of_what_is_found_is_changed():
    """Whoever could write there before could do so after; `private` of `system/directory` refuses it instead."""
    changes = {"chmod", "fchmod", "lchmod", "chown", "fchown", "lchown"}
    found = {name for name, tree in trees().items() for used_one in used(tree) if used_one.split(".")[1] in changes}
    assert without(found, "localhub") == {"uploader.meeting"}, "a socket of its own, before it has a name"


def test_one_function_opens_what_is_shared_with_other_users():
    """The staging directory and the folders in the cache; a new one would have to be checked in the same way."""
    at = {name for name, tree in trees().items() if used(tree) & {"hf_home.cache_folder", "tempfile.gettempdir"}}
    assert at == {"system.user_cache"}
    assert {"spool.storage", "system.user_cache"} == {
        name for name, tree in trees().items() if list(calls(tree, "private"))
    }


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """All calls of a builtin function."""
    for node in statements(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def test_one_function_opens_files_in_training():
    """It keeps descriptors above the standard streams; a builtin `open` uses it, or takes an open descriptor."""
    training = without(
        set(trees()), "localhub", "demo", "testing", "push", "uploader", "mirror", "sampler", "cli", "supervisor"
    )
    training -= {"daemon.background"}
    assert {module for module in training if "os.open" in used(trees()[module])} == {"system.process"}
    assert {module for module in training if used(trees()[module]) & {"os.dup", "os.memfd_create", "os.pipe"}} == {
        "system.launch",  # after `take_standard`
    }
    others = [
        f"{module}:{call.lineno}"
        for module in training
        for call in calls(trees()[module], "open")
        if ast.unparse(call.args[0]) != "fd" and "open_above" not in ast.unparse(call)
    ]
    assert others == []


LISTING = {"listdir", "scandir", "walk", "fwalk", "iterdir", "rglob", "glob", "iglob"}
LISTERS = {  # functions that may find what lies below a directory
    "system.directory.scan": "how all others list",
    "system.directory.names": "the same, without kinds",
    "snapshot.search._list": "the run directory, without other runs below it",
    "events.last_step._names": "a worker directory",
    "ranks.look": "the directories of ranks, without other runs",
    "mirror.posix._entries": "the logdir of a staged run",
    "cli.runs._folders": "the folders of a user who looks for runs",
    "spool.storage.staged_places": "the runs that are staged",
    "spool.storage._folders": "the directories of the runs that are staged",
    "cli.clean._size_and_use": "the bytes of one of them, which go or stay together",
    "cli.folders._writing": "/proc",
    "spool.workers.losses._written": "the folder of what was lost, for which no name there is a run",
    "uploader.siblings._is_alone": "the directory above the run directory",
    "uploader.siblings._listed": "the same",
    "system.process.processes": "/proc",
    "daemon.background._close_above": "/proc",
}


def listers(tree: ast.Module) -> Iterator[str]:
    """The functions that list a directory, by its path or as a `Place`."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call) and not node.args)
            places = (node for node in called if isinstance(node, ast.Attribute) and node.attr == "scan")
            found = (node for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr in LISTING)
            if any(places) or any(not ast.unparse(node).startswith("event_files.") for node in found):
                yield function.name


def test_one_function_lists_a_run_directory():
    """Another one would find what runs below have; by its path, it would follow what takes the place of a directory."""
    modules = without(set(trees()), "localhub", "demo", "testing")
    assert {f"{module}.{name}" for module in modules for name in listers(trees()[module])} == set(LISTERS)
    by_name = {f"{module}.{name}" for module in ("os", "glob") for name in LISTING}
    assert not [module for module in modules if by_name.intersection(imported(trees()[module]))]


def test_only_launch_starts_processes():
    """`subprocess` can block when another thread forks."""
    assert importers("subprocess") == {"localhub.child", "cli.daemons"}  # the latter starts `tail`
    assert {module for module, tree in trees().items() if "os.posix_spawn" in used(tree)} == {"system.launch"}


def test_two_functions_start_a_python():
    """One for the local Hub, which knows nothing of the rest: any other would have the current folder on its path."""
    starting = {module for module, tree in trees().items() if {"-m", "-c"} & words(tree)}
    assert starting == {"system.launch", "localhub.child"}
    assert all("-P" in words(trees()[module]) for module in starting)
    assert {module for module, tree in trees().items() if "sys.executable" in used(tree)} == starting | {
        "uploader.meeting",  # what two uploaders have to have in common
        "demo.verdict",  # where the commands are that it prints
        "integrations.site.sitecustomize",  # prints it
    }
    known = re.compile(
        r"os\.(exec|spawn|system|popen|posix_spawnp)|subprocess\.(?!(Popen|TimeoutExpired|PIPE|DEVNULL)$)"
    )
    assert {name for tree in trees().values() for name in used(tree) if known.match(name)} == {
        "os.execvpe",  # of the user's program
    }


TRAINING = ("base", "daemon", "delivery", "events", "integrations", "snapshot", "spool", "system", "worker", "writer")
SWALLOWING = {f"os.path.{name}" for name in ("exists", "isdir", "isfile", "islink", "ismount", "lexists", "realpath")}
SWALLOWING |= {"os.makedirs", "shutil.rmtree", "tempfile.TemporaryFile", "tempfile.gettempdir"}


def of_training() -> Iterator[tuple[str, ast.Module]]:
    """The modules that training loads; those beside them in a folder have the same rules."""
    yield from ((name, tree) for name, tree in trees().items() if name.partition(".")[0] in TRAINING)


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether an `except` ends with a bare `raise`, and nowhere else."""
    last, within = handler.body[-1], (node for statement in handler.body for node in ast.walk(statement))
    leaves = any(isinstance(node, ast.Return | ast.Continue | ast.Break) for node in within)
    return isinstance(last, ast.Raise) and last.exc is None and not leaves


def test_training_catches_nothing_that_a_signal_handler_of_the_program_raises():
    """Each `except` is one of `ours`, or raises again; write `except ours(OSError):`, see `system/interrupts`."""
    found = [
        f"{module}:{node.lineno}"
        for module, tree in of_training()
        if module != "integrations.site.sitecustomize"  # before the program begins
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and not raises_again(node)
        and not (isinstance(node.type, ast.Call) and ast.unparse(node.type.func) == "ours")
    ]
    assert found == []
    swallowing = {module for module, tree in of_training() if "contextlib.suppress" in {*used(tree), *imported(tree)}}
    assert swallowing == set()


def test_in_training_no_function_of_the_library_swallows_what_a_signal_handler_raises():
    """`os.path.isdir` takes any OSError for a no; code that runs while an object is deleted loses every exception."""
    users = {
        module
        for module, tree in of_training()
        if SWALLOWING & {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    }
    assert users == {
        "snapshot.large_files",  # the uploader
        "spool.layout",  # a constructor
        "spool.storage",  # a constructor
        "system.disk",  # a constructor; the uploader
        "system.filesystem",  # a constructor
        "system.hf_home",  # a push
        "system.launch",  # strictly; without memfd
        "worker.messages",  # a constructor
    }
    deleting = {m for m, tree in of_training() for node in ast.walk(tree) if getattr(node, "name", "") == "__del__"}
    assert deleting == {"system.directory"}, "of a directory that is held"


CLIENTS = ("aiohttp", "ftplib", "httpx", "pycurl", "requests", "smtplib", "urllib3", "websockets")


def test_only_the_transport_makes_a_client_of_the_network():
    """It removes the token where it must not go, and ends each request by a clock: no other way leads to a server."""
    ours = without(set(trees()), "localhub")  # another program
    assert importers(*CLIENTS) & ours == set()
    ways = re.compile(
        r"http\.client|urllib\.request|.*\.create_connection|.*\.set_(async_)?client_factory"
        r"|httpx2\.(\w*Client|\w*Transport|get|head|post|put|patch|delete|options|stream|request)$"
    )
    dotted = {module: [*imported(trees()[module]), *used(trees()[module])] for module in ours}
    assert {module for module, names in dotted.items() if any(map(ways.match, names))} == {"push.transport"}
    assert {module for module in ours if "socket.AF_INET" in used(trees()[module])} == set()


def test_whoever_asks_a_hub_has_made_a_transport():
    """Else the client of huggingface_hub would be its own, which knows none of these rules."""
    owners = {}
    for node in trees()["push.client"].body:
        names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        if names & {"HfApi", "get_session", "http_backoff", "paginate"}:
            owners[getattr(node, "name", ast.unparse(node))] = "Transport" in names
    assert owners == {"Hub": True, "Account": True}


def variables(tree: ast.Module) -> Iterator[str]:
    """The variables of a module: names in lower case that it sets; a logger and a lock between threads are none."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            made = ast.unparse(node.value)
            if made.startswith(("logging.getLogger(", "thread_lock(", "process_state.thread_lock(", "click.")):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (target.id for target in targets if isinstance(target, ast.Name))
            yield from (name for name in names if name.islower() and not name.startswith("__"))


def test_process_state_says_what_a_fork_does_to_each_variable():
    """A module that keeps something for its process has to decide what a forked child has of it."""
    apart = ("localhub", "demo", "testing")
    in_training = without(set(trees()), *apart) - {"integrations.site.sitecustomize", "system.process_state"}
    found = {f"{module}.{name}" for module in in_training for name in variables(trees()[module])}
    told = re.findall(r"^    (\w+(?:\.\w+)+) ", PATHS["system.process_state"].read_text(), re.MULTILINE)
    assert sorted(told) == sorted(found)


def test_only_process_state_knows_of_forks():
    """Rules run in the order in which they were given; nothing else makes state anew."""
    users = {module for module, tree in trees().items() if "os.register_at_fork" in used(tree)}
    assert without(users, "localhub", "demo", "testing") == {"system.process_state"}
    assert not [m for m, tree in trees().items() if any(isinstance(node, ast.Global) for node in ast.walk(tree))]


LOADED = """
import json, os, sys
for statement in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if not os.fork():
        exec(statement)
        os.write(writing, " ".join({name.partition(".")[0] for name in sys.modules}).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        print(pipe.read())
"""
HEAVY = {"huggingface_hub", "httpx2", "tensorboardX", "torch", "numpy", "google"}
FRAMEWORKS = {"accelerate", "lightning", "pytorch_lightning", "transformers"}
LIGHT = {  # statement -> what it must not load
    "import hf_mpwriter": HEAVY | {"filelock", "psutil", "click"},
    "import hf_mpwriter.uploader.usher": HEAVY | {"filelock", "psutil"},  # one is started for each run
    "import hf_mpwriter.uploader.loop": HEAVY,  # it lives as long as the run, on every host
    "import hf_mpwriter.sampler": HEAVY,  # so does it
    "import hf_mpwriter.supervisor.loop, hf_mpwriter.supervisor.program": HEAVY | {"psutil", "tqdm"},  # so does it
    "from hf_mpwriter import HFSummaryWriter": {"huggingface_hub", "httpx2", "psutil", "hf_xet"},  # training
    "from hf_mpwriter.cli.main import COMMANDS, main; [main.get_command(None, name) for name in COMMANDS]": HEAVY
    | FRAMEWORKS
    | {"starlette", "uvicorn", "sklearn", "tensorboard"},  # the doors it opens later
    "import hf_mpwriter.integrations.shared; hf_mpwriter.patch()": FRAMEWORKS,
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The top-level modules that each statement loads, each in a fork of one fresh interpreter."""
    lines = succeed(LOADED, json.dumps(list(LIGHT)), fresh=True).splitlines()
    return dict(zip(LIGHT, [set(line.split()) for line in lines], strict=True))


@pytest.mark.parametrize("statement", LIGHT)
def test_an_import_loads_no_more_than_it_needs(loaded, statement):
    """The package alone next to nothing, the uploader no client, training no client and no psutil."""
    assert "hf_mpwriter" in loaded[statement], "the statement was executed"
    assert loaded[statement] & LIGHT[statement] == set()


COMMANDS = "hf-mpwriter|hf|chmod|chown|chgrp|rm|mv|cp|kill|pip|python|tensorboard|unset|export"
VALUE = "\0"  # in place of a value in a text
PASTED = re.compile(rf"(?<![\w./-])({COMMANDS}|{VALUE}OURS) [^.:;]*?({VALUE}|\{{|%[sdr])")
NOT_PASTED = {  # module -> texts with such words that nobody pastes
    "base.words": {"verb of \0"},
    "cli.doctor": {"hf-mpwriter \0"},  # its version
    "cli.runs": {"  hf-mpwriter \0"},  # examples of help texts, which are constants
    "demo.verdict": {"hf-mpwriter"},  # files
    "system.launch": {"hf-mpwriter \0 \0"},  # titles of processes
}


def text_of(node: ast.AST) -> str:
    """A text with a mark in place of each value; "" for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else mark_of(part.value) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        left, right = text_of(node.left), text_of(node.right)
        return f"{left}{right or VALUE}" if left else ""
    return ""


def mark_of(value: ast.AST) -> str:
    """The mark of a value in a text; the name of our program is no value, but a word."""
    return f"{VALUE}OURS" if isinstance(value, ast.Name) and value.id == "OURS" else VALUE


def pasted(tree: ast.AST) -> Iterator[str]:
    """The texts in which a command is followed by a value in its clause, and our program as one of several words."""
    for parent in ast.walk(tree):
        if isinstance(parent, ast.Expr):  # a docstring, if it is a text
            continue
        for text in filter(None, map(text_of, ast.iter_child_nodes(parent))):
            is_word = isinstance(parent, ast.List | ast.Tuple) and re.fullmatch("hf-mpwriter( [a-z]+)?", text)
            if is_word or PASTED.search(text):
                yield text


def test_a_command_that_is_printed_is_made_by_one_function():
    """It quotes all values, and offers nothing where a name cannot be pasted; see `base/words`."""
    found = {(name, text) for name, tree in trees().items() for text in pasted(tree)}
    assert {(name, text) for name, text in found if text not in NOT_PASTED.get(name, ())} == set()


@pytest.mark.parametrize(
    "place",
    [
        'f"To go on: hf-mpwriter sync {logdir}"',
        'f"Run: chmod o-w {root}."',
        '"is run by: hf-mpwriter sync --create {}. Else".format(logdir)',
        '"To end it: kill %s" % pid',
        '"then: hf-mpwriter status " + logdir',
        'f"then: {OURS} status {logdir}"',
        '" ".join(["hf-mpwriter sync", logdir])',
    ],
)
def test_a_new_command_with_a_value_is_found(place):
    """However it is put together."""
    assert list(pasted(ast.parse(f"print({place})")))


def test_no_module_is_too_long():
    """A module is one concept, which one can hold in one's head."""
    lines = {module: len(path.read_text().splitlines()) for module, path in PATHS.items()}
    assert {module: count for module, count in lines.items() if count > LONGEST} == {}


def test_no_two_classes_share_a_name():
    """A name in a traceback or a text leads to one place."""
    names = Counter(node.name for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} == set()


FOLDERS = sorted(module for module in PATHS if module.endswith("__init__"))


@pytest.mark.parametrize("module", FOLDERS)
def test_a_folder_says_what_it_is_responsible_for(module):
    """In the docstring of its __init__, which imports nothing unless the folder is public."""
    tree = trees()[module]
    docstring = ast.get_docstring(tree) or ""
    assert docstring.rstrip("`").endswith("."), "it ends with a sentence"
    assert "TODO" not in docstring
    if module.partition(".")[0] not in PUBLIC:
        assert len(tree.body) == 1, "it holds nothing else"


LOADERS = {"readall", "readlines", "read_text", "read_bytes"}
NOT_FILES = {  # what has a `read` of another kind, beside classes
    "response",  # of the Hub: the transport bounds each answer
    "self._transport",  # the same
    "self._stream",  # of a connection, by its client
    "self._queue",  # signals
    "self._inbox",  # datagrams
    "self._inputs",  # chunks of records
    "search",  # the same, for the last step
    "disk",  # a whole file of ours, bounded there
    "state",  # the same, with its type
    "status",  # the same, of a daemon
    "cls",  # the same
    "super()",  # the same
    "STATUSES[self._kind]",  # the same
    "found",  # lines of a member file
    "(reading := Reading(name))",  # the same
}
READERS = {  # functions that say otherwise how much they read
    "system.disk.read": "a file of ours that was seen to be short enough",
    "testing.journal.read_journal": "what a test has written itself",
    "events.framing._long_record": "into a buffer of a chunk",
    "events.segment.written_since_removal": "records of this process that no file has any more",
}


def is_bounded(size: ast.expr) -> bool:
    """Whether an expression names a bound: a constant, the least of one and others, or what is in memory already."""
    match size:
        case ast.Call(func=ast.Name(id="min")):
            return any(map(is_bounded, size.args))
        case ast.Call(func=ast.Name(id="max")):
            return all(map(is_bounded, size.args))
        case ast.Call(func=ast.Name(id="len")) | ast.Constant(value=int()):
            return True
        case ast.IfExp():
            return is_bounded(size.body) and is_bounded(size.orelse)
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id=name), attr="size") | ast.Attribute(attr=name):
            return name.isupper()
    return False


def is_unbounded(call: ast.Call) -> bool:
    """Whether a call may read as much as a file has; of a file that others wrote, that is any number."""
    called = ast.unparse(call.func)
    of, _, name = called.rpartition(".")
    if called in ("os.read", "os.pread", "os.readv", "os.preadv"):
        return not is_bounded(call.args[1])
    if name == "read_all" and call.args[1:]:
        return not is_bounded(call.args[1])
    if called in ("json.load", "pickle.load", "tomllib.load") or name in LOADERS:
        return True
    if name == "readline":
        return not (call.args and is_bounded(call.args[0]))
    if name != "read" or not of or of in NOT_FILES or of[:1].isupper():
        return False
    return not (call.args and is_bounded(call.args[0]))


def unbounded(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Function and line of each read without a bound."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and is_unbounded(node):
                    yield function.name, node.lineno


def test_every_read_of_a_file_names_a_bound():
    """A stranger's file, or one of ours that a power cut has spoilt, has any length: it must not fill the memory."""
    found = {
        f"{module}.{function}": line
        for module in without(set(trees()), "localhub", "demo")
        for function, line in unbounded(trees()[module])
    }
    assert {where: line for where, line in found.items() if where not in READERS} == {}
    assert READERS.keys() == found.keys() & READERS.keys(), "each is needed"


@pytest.mark.parametrize(
    "place",
    [
        "open(path).read()",
        "file.read(size)",
        "file.read(header.length)",
        "file.read(-1)",
        "file.readlines()",
        "Path(path).read_bytes()",
        "json.load(file)",
        "os.read(fd, os.fstat(fd).st_size)",
        "os.pread(fd, end - start, start)",
        "os.preadv(fd, [bytearray(length)], 0)",
        "os.pread(fd, max(CHUNK, length), 0)",
        "read_all(fd, length)",
    ],
)
def test_a_new_read_without_a_bound_is_found(place):
    """The rule above sees each way to write one, and lets the bounded ones be."""
    assert list(unbounded(ast.parse(f"def new():\n    return {place}"))) == [("new", 2)]
    bounded = (
        "os.pread(fd, min(CHUNK, left), 0), file.read(4), file.read(LIMIT), Status.read(host), framing.header(length)"
    )
    assert not list(unbounded(ast.parse(f"def new():\n    return {bounded}")))
