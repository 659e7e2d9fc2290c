"""Fixtures: a clean environment, a local Hub, and programs that run in processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import lock_check
import psutil
import pytest
import repeatable  # noqa: F401 - sets hypothesis up
import zygote
from dealing import dealt
from mounts import detach_below
from programs import Program
from repository import HELPERS
from waits import timing

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch, process_state

HELPERS_THAT_ASSERT = ("durability", "hub_clients", "launching", "modelled_branch", "pushing", "runs")
pytest.register_assert_rewrite(*HELPERS_THAT_ASSERT)

lock_check.install(process_state)

LAUNCHERS = (
    "SLURM_",
    "OMPI_",
    "PMI",
    "TORCHELASTIC_",
    "MV2_",
    "JSM_",
    "MASTER_",
    "RAY_",
    "PBS_",
    "LSB_",
    "SKYPILOT_",
    "TORCHX_",
)
PREFIXES = (*LAUNCHERS, "HF_", "HUGGING_FACE_", "ACCELERATE_", "TENSORBOARD_")
SUFFIXES = ("RANK", "WORLD_SIZE", "JOB_ID", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests; else one of them ends last, and the other cores wait for it."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    paths = [PurePath(os.path.relpath(item.path, TESTS)) for item in items]
    items[:] = [items[index] for index in dealt(paths, processes)]


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory) -> str:
    """A directory in which importing torch fails. tensorboardX would import it, for more than a second a process."""
    directory = tmp_path_factory.mktemp("without_torch")
    (directory / "torch.py").write_text("raise ImportError('hidden from this test')")
    return str(directory)


@pytest.fixture(scope="session", autouse=True)
def no_mount_stays(tmp_path_factory) -> Iterator[None]:
    """No mount outlives the tests of a process. Those of tests that were killed are detached in the next run.

    pytest renames the directories of old runs to `garbage-*` and warns in each run until it can remove them.
    """
    base = tmp_path_factory.getbasetemp()
    yield
    roots = [root for root in base.parents if root.name.startswith("pytest-of-")]
    detach_below(*(old for root in roots for old in root.glob("garbage-*")))
    left = detach_below(base)
    assert not left, f"tests have left mounts behind: {left}"


@pytest.fixture(scope="session", autouse=True)
def no_process_stays(tmp_path_factory) -> Iterator[None]:
    """No process of these tests lives on. An uploader of a Hub that is down would for minutes, so it is ended here."""
    yield
    base, strange = f"{tmp_path_factory.getbasetemp()}{os.sep}", list[str]()
    for _ in range(100):  # one that is killed may have started another
        left = list(of_these_tests(base))
        if not left:
            break
        for process, command in left:
            if not any(module in command for module in launch.KINDS.values()):
                strange.append(command)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
    assert not left, f"processes do not end: {left}"
    assert not strange, f"tests have left processes behind: {strange}"


def of_these_tests(base: str) -> Iterator[tuple[psutil.Process, str]]:
    """The living processes that have a place of these tests in their command or environment, each with its command."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if process.pid == os.getpid() or any("multiprocessing" in word for word in command):
                continue  # a server of forks ends with this process
            words = [*command, *process.environ().values()]
            if any(word.startswith(base) for word in words) and process.status() != psutil.STATUS_ZOMBIE:
                yield process, " ".join(command)


@pytest.fixture(scope="session", autouse=True)
def zygote_lives() -> None:
    """It is started before any test counts the descriptors of its process."""
    zygote.of_process(os.getpid())


@pytest.fixture(scope="session", autouse=True)
def no_signal_to_all() -> Iterator[None]:
    """A process id that is not known yet is 0, which stands for all processes of the group: pytest and its workers."""
    kill = os.kill

    def checked(pid: int, number: int) -> None:
        assert pid > 0, "the process id is not known yet"
        kill(pid, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", checked)
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path, without_torch):
    """No variable of the developer's shell, launcher or Hub account reaches a test."""
    monkeypatch.setenv("PYTHONPATH", f"{without_torch}:{HELPERS / 'watch'}")
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name.endswith(SUFFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # else a run is found that an older test has staged
    monkeypatch.setenv("HF_MPWRITER_TIMING", timing())
    monkeypatch.setenv("HF_MPWRITER_COMMITS_PER_HOUR", "100000")  # no test waits an hour
    monkeypatch.setenv("HF_MPWRITER_EXIT_TIMEOUT", "120")  # seconds, in which a slow machine delivers too
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def lock_report(monkeypatch, tmp_path_factory) -> Iterator[Path]:
    """No thread, in no process of a test, calls `logging` while it holds a thread lock of ours."""
    found = tmp_path_factory.getbasetemp() / f"lock_report.{time.monotonic_ns()}"
    monkeypatch.setenv(lock_check.REPORT, str(found))
    yield found
    if found.exists():
        pytest.fail(found.read_text())


@pytest.fixture
def unhurried(monkeypatch):
    """Processes wait as long as they do for users."""
    monkeypatch.setenv("HF_MPWRITER_TIMING", "")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator:
    """A local Hub, and HF_ENDPOINT pointing at it."""
    import warm_hubs

    from hf_mpwriter.localhub import LocalHub
    from hf_mpwriter.localhub import server as local_hub

    monkeypatch.setattr(local_hub, "ChildServer", warm_hubs.WarmServer)
    with LocalHub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Start programs and kill those that still run at the end of the test."""
    started: list[Program] = []

    def begin(source: str, *arguments: object, env: dict[str, str] | None = None) -> Program:
        started.append(Program(source, *arguments, env=env))
        return started[-1]

    yield begin
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.process.communicate()


@pytest.fixture
def api(hub):
    """The real client, as another user of the repository."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run directory that does not exist yet."""
    return tmp_path / "runs" / "exp1"


@pytest.fixture
def frozen(monkeypatch):
    """A clock that stands still."""
    monkeypatch.setattr(time, "time", lambda: 1795233002.25)


@pytest.fixture
def spool(tmp_path):
    """A spool with a destination where no server listens."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    return spool


@pytest.fixture
def own_spool(tmp_path):
    """A spool of this user."""
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    return spool


@pytest.fixture
def open_place():
    """A directory that other users can reach; pytest's are root's own."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)
