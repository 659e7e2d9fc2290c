"""`hf-mpwriter run --pull`: a program on an empty disk starts behind what the Hub has of its run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import url_places
from programs import wait_for
from runs import run
from supervised import Supervised
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.testing import processes

NAME = "events.out.tfevents.1000000000.there.1.0123abcd"
FOUND = ("sh", "-c", 'cd "$HF_MPWRITER_LOGDIR" 2>/dev/null && find . -name "*tfevents*" | sort; exit 7')
LAST = """
import os
from hf_mpwriter import HFSummaryWriter
print(HFSummaryWriter("me/run", logdir=os.environ["HF_MPWRITER_LOGDIR"]).last_step("loss"))
"""


def pulling(
    run_dir: Path, *command: str, repo_id: str = "me/run", options: tuple[str, ...] = (), **environ: str
) -> Supervised:
    """Start a program below a supervisor that pulls first."""
    options = ("--pull", "--repo-id", repo_id, "--logdir", str(run_dir), *options)
    return Supervised(*command, options=options, **environ)


def rank(number: int) -> dict[str, str]:
    """What torchrun tells a rank of two."""
    return {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}


def on_their_way(run_dir: Path) -> set[Path]:
    """The files that a pull is bringing, or was when it was killed."""
    found = os.walk(run_dir / ".hf_mpwriter" / "pulling" / ".cache")  # a pull may remove what is listed
    return {Path(directory, name) for directory, _, names in found for name in names if name.endswith(".incomplete")}


@pytest.fixture
def store(hub, api, tmp_path) -> Callable[[str, int], None]:
    """Store a file of a run on the Hub."""
    api.create_repo("me/run")

    def put(name: str, count: int) -> None:
        event_file(tmp_path / "stored", count, "loss")
        where = f"tensorboard/exp1/{name}"
        api.upload_file(path_or_fileobj=str(tmp_path / "stored"), path_in_repo=where, repo_id="me/run")

    return put


def test_a_program_starts_behind_what_the_hub_has_of_its_run(hub, run_dir, store):
    """Each rank brings its own at once, rank 0 also what the world has no more; exit codes are kept."""
    for name in (NAME, f"rank_00001/{NAME}", f"rank_00002/{NAME}"):
        store(name, 5)
    hub.fault("GET /api/models/me/run 503 times=1")  # it has just started, too
    ranks = [pulling(run_dir, *FOUND, **rank(number)) for number in range(2)]
    ended = [one.finish() for one in ranks]
    assert [code for code, _, _ in ended] == [7, 7], ended
    assert {f"./{NAME}", f"./rank_00002/{NAME}"} <= set(ended[0][1].split()), ended
    assert f"./rank_00001/{NAME}" in ended[1][1].split(), ended
    assert (ended[0][2].count("\n"), "2 files" in ended[0][2], ended[1][2]) == (1, True, ""), ended
    code, out, err = pulling(run_dir, sys.executable, "-c", LAST, **rank(1)).finish()
    assert (code, out, err) == (0, "4\n", "")
    (before := run_dir / NAME).write_bytes(b"another")
    code, out, err = pulling(run_dir, *FOUND, **rank(0)).finish()
    assert (code, before.read_bytes()) == (7, b"another")
    assert f"{NAME} was not pulled: it differs" in err, err
    wait_for(lambda: not processes.left_behind(str(run_dir)), "the uploader leaves")


@pytest.fixture
def heeded() -> Iterator[None]:
    """What starts here heeds SIGINT, which is ignored in the background of a shell, and then by all that is below."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_a_signal_ends_a_pull(hub, run_dir, store):
    """As it would end the program, which does not start; the next start pulls again."""
    store(NAME, 30_000)
    hub.fault("GET /resolve/ slow seconds=60 times=0")
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        left = on_their_way(run_dir)
        one = pulling(run_dir, *FOUND)
        wait_for(lambda left=left: on_their_way(run_dir) - left, "a file on its way")
        one.supervisor.send_signal(number)
        assert one.finish() == (expected, "", "")
    hub.clear_faults()
    assert pulling(run_dir, *FOUND).finish()[:2] == (7, f"./{NAME}\n")


def test_a_program_starts_without_its_past_where_that_cannot_be_had(hub, api, run_dir):
    """One line says so; what could not be had has its consequence named."""
    down = pulling(run_dir, *FOUND, HF_ENDPOINT="http://127.0.0.1:9")
    ended = {"no repository": pulling(run_dir, *FOUND, options=("--or-new",)).finish()}
    api.create_repo("me/run")
    ended["nothing of this run"] = pulling(run_dir, *FOUND, options=("--or-new",)).finish()
    hub.fault("GET /api/models/me/run 403")
    ended["forbidden"] = pulling(run_dir, *FOUND).finish()
    hub.clear_faults()
    hub.fault("GET /api/models/me/run 429 header=Retry-After:3600 times=0")
    ended["busy for an hour"] = pulling(run_dir, *FOUND).finish()
    ended["offline"] = pulling(run_dir, *FOUND, HF_HUB_OFFLINE="1").finish()
    ended["down"] = down.finish()
    for case, (code, out, err) in ended.items():
        assert (code, out, err.count("\n")) == (7, "", 1), (case, err)
        assert ("drawn over its past" in err) == (case not in ("no repository", "nothing of this run")), (case, err)
    assert not run_dir.exists(), "it is left to the program"


def test_a_run_that_is_not_there_begins_only_where_that_is_said(hub, api, run_dir, tmp_path, store):
    """Exit code 4, with what is there, and nothing starts. A rank without files of a run that is there does start."""
    other = run_dir.with_name("exp2")
    code, out, err = pulling(run_dir, *FOUND, repo_id="me/other").finish()
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert "is not there yet" in err
    assert "If this is the first start of a run, add --or-new." in err
    store(NAME, 5)
    code, out, err = pulling(other, *FOUND, **rank(1)).finish()
    assert (code, out, "Runs in tensorboard: exp1. To pull the first: " in err) == (4, "", True), err
    assert pulling(other, *FOUND, options=("--or-new",), **rank(1)).finish() == (7, "", ""), "rank 0 tells it"
    assert pulling(run_dir, *FOUND, **rank(1)).finish() == (7, "", "")
    event_file(other / NAME, 1)
    assert pulling(other, *FOUND).finish()[:2] == (7, f"./{NAME}\n")
    assert "--or-new goes with --pull" in run("run", "--or-new", "--", "true").output


def test_a_run_that_began_while_the_hub_was_down_goes_on(hub, run_dir, tmp_path, monkeypatch):
    """No repository was made yet; its event files are here, or in the logdir of a staged run, on another machine."""
    event_file(run_dir / NAME, 3)
    code, out, err = pulling(run_dir, *FOUND).finish()
    assert (code, out, err.count("\n")) == (7, f"./{NAME}\n", 1), err
    assert "is not there yet" in err
    assert "the run has begun here, or in its logdir" in err
    url_places.install(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{tmp_path / 'path'}")
    for place, expected in ((run_dir, 7), (run_dir.with_name("other"), 4)):
        options = ("--pull", "--repo-id", "me/run", "--logdir", url_places.url(place))
        one = Supervised(
            "sh", "-c", "exit 7", options=options, HF_MPWRITER_STAGING=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)
        )
        code, _, err = one.finish()
        assert code == expected, err
        assert ("the run has begun" in err) == (code == 7), err
    unreachable = url_places.beside(run_dir, "hangs")
    unreachable.touch()
    fresh = {"HF_MPWRITER_STAGING": str(tmp_path / "fresh"), "XDG_CACHE_HOME": str(tmp_path / "fresh")}
    (tmp_path / "fresh").mkdir()
    options = ("--pull", "--repo-id", "me/run", "--logdir", url_places.url(run_dir))
    code, _, err = Supervised("sh", "-c", "exit 7", options=options, **fresh).finish()
    assert (code, "is not known yet" in err) == (7, True), err


def test_the_type_of_the_repository_stands_before_its_id(hub, api, run_dir, tmp_path):
    """A model of the same name is another run."""
    event_file(tmp_path / "stored", 5, "loss")
    for kind, name in (("model", NAME), ("dataset", NAME.replace("there", "dataset"))):
        api.create_repo("me/run", repo_type=kind)
        where = f"tensorboard/exp1/{name}"
        api.upload_file(path_or_fileobj=str(tmp_path / "stored"), path_in_repo=where, repo_id="me/run", repo_type=kind)
    assert pulling(run_dir, *FOUND, repo_id="datasets/me/run").finish()[:2] == (7, f"./{name}\n")


def test_what_cannot_be_the_run_is_an_error_before_anything_starts(run_dir, monkeypatch):
    """No name, no such program, a run directory of another repository, or of another Hub."""
    for name in ("HF_MPWRITER_REPO_ID", "HF_MPWRITER_LOGDIR"):
        monkeypatch.setenv(name, "")  # the command sets them in this process
    assert "--pull needs --repo-id and --logdir" in run("run", "--pull", "--", "true").output
    options = ("--pull", "--logdir", run_dir, "--repo-id")
    assert "nosuch: No such file" in run("run", *options, "me/run", "--", "nosuch").output
    spool = Spool(str(run_dir))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run", path_in_repo="elsewhere"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for other in ("me/other", "datasets/me/run"):
        assert "is recorded for" in run("run", *options, other, "--", "true").output
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8")
    assert "--endpoint http://127.0.0.1:9" in run("run", *options, "me/run", "--", "true").output
