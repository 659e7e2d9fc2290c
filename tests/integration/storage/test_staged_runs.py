"""Staged runs with real processes: event files are kept on this disk, and the logdir gets what is sealed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
import staged
import url_places
from programs import wait_for
from runs import all_acknowledged, check_oracle, run
from support import event_file, events, keys
from tensorboard.backend.event_processing import event_accumulator

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import LogdirError, SettingsError
from hf_mpwriter.base.names import event_second
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.ledger import load
from hf_mpwriter.spool.staging import Mirrored, MirrorRecord
from hf_mpwriter.system.process import host_id

START = 1  # SessionLog.START

RANK = """
import json, os, pickle, signal, sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.testing import Journal
os.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0.1"
logdir, journals, rank = sys.argv[1:]
os.environ |= {"RANK": rank, "WORLD_SIZE": "2"}
with HFSummaryWriter("me/run", logdir=logdir, commit_every=60) as writer:
    journal = Journal(journals)
    for step in range(40):
        writer.add_scalar("loss", step, step)
        journal.note(writer, "loss", step)
    writer.add_scalars("many", {"a": 1.0}, 1)
    writer.add_hparams({"lr": 0.1}, {"best": 1.0}, name="trial")
    print(json.dumps([
        writer.logdir, writer.log_dir, writer.get_logdir(), writer.file_writer.get_logdir(),
        pickle.loads(pickle.dumps(writer)).logdir, writer.scheduler.path_in_repo,
    ]))
    writer.flush()
    print(json.dumps([writer.file_writer.event_writer.file.is_open, writer.push(100)]), flush=True)
    assert not writer.file_writer.event_writer.file.is_open
    writer.add_scalar("loss", 40, 40)
    journal.note(writer, "loss", 40)
    if rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.fork() == 0:
        writer.add_scalar("child", 1, 1)
        writer.close()
        os._exit(0)
    os.wait()
"""


def files_below(directory: Path) -> dict[str, bytes]:
    """The event files below a directory, by their relative paths."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*tfevents*")}


@pytest.fixture
def local(tmp_path, monkeypatch) -> Path:
    """A directory in which every run is staged."""
    directory = tmp_path / "local"
    directory.mkdir()
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(directory))
    return directory


def test_a_staged_run_is_whole_in_its_logdir_and_on_the_hub(hub, run_dir, local, tmp_path, start, unhurried):
    """Two ranks, a fork and sub-writers, a SIGKILL, and a push that seals and waits for both places."""
    ranks = [start(RANK, run_dir, tmp_path / "journals", rank) for rank in (0, 1)]
    code, out, err = ranks[1].finish(200)
    assert code == -signal.SIGKILL, err
    told = [json.loads(line) for line in (ranks[0].succeed(200) + out).splitlines()]
    assert told == [
        [str(run_dir)] * 5 + ["tensorboard/exp1"],
        [True, True],
        [*[str(run_dir)] * 3, str(run_dir / "rank_00001"), str(run_dir), "tensorboard/exp1"],
        [True, True],
    ]
    kept = storage.find(str(run_dir))
    assert kept.run_dir.startswith(str(local))
    assert MirrorRecord.read(storage.spool_of(kept)).to == str(run_dir)
    here = Path(kept.run_dir)
    wait_for(lambda: files_below(run_dir) == files_below(here), "what the killed rank logged is in the logdir")
    assert len(files_below(here)) == 2 * 4 + 1
    assert os.listdir(run_dir / ".hf_mpwriter") == ["ELSEWHERE"]
    wait_for(lambda: all_acknowledged(here), "all of it is on the Hub")
    check_oracle(here, hub, tmp_path / "journals")
    check_oracle(run_dir, hub, tmp_path / "journals")


ATTEMPT = """
import json, sys
from hf_mpwriter import HFSummaryWriter
logdir, first, purge = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with HFSummaryWriter("me/run", logdir=logdir, purge_step=None if purge < 0 else purge) as writer:
    print(json.dumps(writer.last_step()))
    for step in range(first, first + 5):
        writer.log({"loss": step})  # counts on from the purge, or behind what came back
        writer.add_scalars("many", {"a": 1.0}, step)
"""


def test_an_attempt_continues_behind_those_of_other_machines(hub, run_dir, tmp_path, start):
    """From A to B and back to A: what the others logged is there, hidden where it is repeated, and sent from here."""
    found, told = {}, []
    for machine, first, purge, disabled in (("A", 0, -1, "1"), ("B", 3, 3, ""), ("A", 8, -1, "")):
        env = staged.machine(tmp_path / machine) | {"HF_MPWRITER_DISABLED": disabled}
        told.append(json.loads(start(ATTEMPT, run_dir, first, purge, env=env).succeed(100)))
        before, found = found, files_below(run_dir)
        assert {path: found[path] for path in before} == before, "nothing in the logdir is written again"
        assert len(found) == len(before) + 2
        kept = storage.find(str(run_dir), env)
        assert files_below(Path(kept.run_dir)) == found
        lengths = {path: len(content) for path, content in found.items()}
        assert Mirrored.read(storage.spool_of(kept).host(host_id())).files == lengths
    assert told == [None, 2, 7], "what the purge hides does not count"
    order = [os.path.join(run_dir, path) for path in sorted(path for path in found if "/" not in path)]
    assert [step for path in order for _, step in keys(path)] == [*range(5), *range(3, 8), *range(8, 13)]
    starts = [[event.step for event in events(path) if event.session_log.status == START] for path in order]
    assert starts == [[], [3, 3], []]
    wait_for(lambda: all_acknowledged(Path(kept.run_dir)), "all of it is on the Hub")
    check_oracle(run_dir, hub)


BOUNDED = """
import os, sys, time
from hf_mpwriter import SummaryWriter
url, goes_on = sys.argv[1:3]
os.environ["HF_MPWRITER_TIMING"] += f" logdir_wait={sys.argv[3]}"
with SummaryWriter(url) as writer:
    for step in range(5):
        writer.add_scalar("loss", step, step)
    print(writer.push(0.1), flush=True)
    while not os.path.exists(goes_on):
        time.sleep(0.05)
"""


def test_training_goes_on_although_its_url_hangs_or_refuses(run_dir, local, tmp_path, monkeypatch, start):
    """After a bounded wait, with a word. Nothing there is overwritten, and all comes there when it can."""
    url_places.install(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{tmp_path / 'path'}")
    run_dir.mkdir(parents=True)
    goes_on, url = tmp_path / "goes_on", url_places.url(run_dir)
    hangs = url_places.beside(run_dir, "hangs")
    hangs.touch()
    program = start(BOUNDED, url, goes_on, 2.0)
    assert program.process.stdout.readline() == "False\n", "the push is honest"
    assert files_below(run_dir) == {}
    hangs.unlink()
    goes_on.touch()
    code, _, err = program.finish(200)
    assert code == 0, err
    assert "is not known yet: it did not answer within" in err
    assert "last_step" in err
    (first,) = found = files_below(run_dir)
    assert [step for _, step in keys(run_dir / first)] == list(range(5))

    earlier = run_dir / "events.out.tfevents.4000000000.other.1.00000000"  # of another machine, by its own clock
    event_file(earlier, 3)
    found |= {earlier.name: earlier.read_bytes()}
    url_places.beside(earlier, "refuses").touch()
    env = staged.machine(tmp_path / "another")
    code, _, err = start(BOUNDED, url, goes_on, 100.0, env=env).finish(200)
    assert code == 0, err
    url_places.beside(earlier, "refuses").unlink()
    assert {path: content for path, content in files_below(run_dir).items() if path in found} == found
    (new,) = files_below(run_dir).keys() - found.keys()
    assert event_second(new) == 4_000_000_001, "its name sorts behind what is there and did not come"


RESUMED = """
import os, sys
from hf_mpwriter import HFSummaryWriter
os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
os.environ["HF_MPWRITER_TIMING"] += f" logdir_wait={sys.argv[2]}"
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=100, purge_step=1) as writer:
    writer.add_scalar("loss", 1.0, 1)
    print(writer.push(100))
"""


def test_what_comes_back_late_is_hidden_and_sent_and_holds_nothing_up(
    hub, run_dir, local, tmp_path, monkeypatch, start
):
    """START stands in files that sort behind it; the Hub gets it when it is here, and TensorBoard shows one curve."""
    url_places.install(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{tmp_path / 'path'}")
    monkeypatch.syspath_prepend(tmp_path / "path")  # of `sync`, which runs here
    earlier, gone = (run_dir / sub / "events.out.tfevents.1795233002.other.1.00000000" for sub in ("", "rank_00001"))
    for path in (earlier, gone):  # of a rank that is no more, too
        event_file(path, 3)
        url_places.beside(path, "refuses").touch()
    url = url_places.url(run_dir)
    assert start(RESUMED, url, 100).succeed(200) == "True\n", "nothing waits for it"
    spool = storage.spool_of(storage.find(url))
    here = Path(spool.run_dir)
    assert not (here / earlier.name).exists()
    for path in (earlier, gone):
        url_places.beside(path, "refuses").unlink()
    result = run("sync", url)
    assert result.exit_code == 0, result.output
    held = load(spool, spool.destination())
    assert files_below(here) == files_below(run_dir)
    assert {path: held.length(path) for path in files_below(here)} == {
        path: len(content) for path, content in files_below(here).items()
    }
    for directory in (here, here / "rank_00001"):
        shown = event_accumulator.EventAccumulator(str(directory)).Reload()
        tag = shown.Tags()["scalars"][0]
        assert [event.step for event in shown.Scalars(tag)] == ([0, 1] if directory == here else [0])
    check_oracle(here, hub)


def test_a_pull_waits_until_all_of_the_logdir_is_here(run_dir, local, tmp_path):
    """On a machine that has nothing of the run; one file that cannot be read is an error that names it."""
    earlier = run_dir / "events.out.tfevents.1795233002.other.1.00000000"
    result = run("pull", str(run_dir))
    assert (result.exit_code, f"Nothing was pulled: {run_dir} has no event files." in result.output) == (4, True)
    event_file(earlier, 3)
    result = run("pull", str(run_dir))
    assert result.exit_code == 0, result.output
    here = Path(storage.find(str(run_dir)).run_dir)
    assert f"All of {run_dir} is in {here}" in result.output
    assert files_below(here) == files_below(run_dir)
    later = earlier.with_name(earlier.name.replace("1795233002", "1795233003"))
    event_file(later, 3)
    later.chmod(0)
    result = run("pull", str(run_dir))
    if os.geteuid():
        assert result.exit_code == 1
        assert later.name in result.output


def test_a_url_that_cannot_be_a_logdir_is_refused_with_what_helps(local, monkeypatch):
    """An unknown protocol, a package that is missing, a repository on the Hub, no fsspec; nothing is left behind."""
    for url, word in (("nosuch://bucket/exp1", "nosuch"), ("oss://bucket/exp1", "ossfs")):
        with pytest.raises(SettingsError, match=word):
            SummaryWriter(url)
    with pytest.raises(LogdirError, match="repo_id="):
        SummaryWriter("hf://me/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="pip install fsspec"):
        SummaryWriter("s3://bucket/exp1")
    assert not list(local.rglob("mirror.json"))
