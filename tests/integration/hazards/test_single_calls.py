"""Hazards of single calls.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

import os
import threading
import time

import tensorboardX
from forks import Staged
from hazards import PRELUDE, event_paths, runs, shown, steps
from programs import succeed
from tensorboardX.crc32c import _crc32c

from hf_mpwriter import SummaryWriter


def test_fifty_tags_of_add_scalars_start_no_thread(tmp_path):
    """h09: one directory and one file per tag, as many threads as before, one descriptor per file at most."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(50)}, step)
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 50 + 10
    assert runs(tmp_path) == {f"loss/t{number}": steps(0, 3, "loss") for number in range(50)}
    assert len(list(tmp_path.rglob("*tfevents*"))) == 50


def test_sub_runs_have_the_directories_that_tensorboardx_gives_them(tmp_path):
    """h09: the same calls leave the same runs with the same records, whatever the tags look like."""
    for kind, name in ((SummaryWriter, "ours"), (tensorboardX.SummaryWriter, "theirs")):
        with kind(str(tmp_path / name)) as writer:
            for main_tag in ("loss", "train/loss", "with space", "ünïcode", "trailing/"):
                writer.add_scalars(main_tag, {"train": 1.0, "a/b": 2.0, "c d": 3.0, "é": 4.0}, 7)
            writer.add_hparams({"lr": 0.1}, {"accuracy": 0.5}, name="trial/1", global_step=3)
    theirs = runs(tmp_path / "theirs")
    assert theirs.pop(".") == []  # tensorboardX makes its main file even if nothing is logged into it
    assert runs(tmp_path / "ours") == theirs


def test_no_tag_leads_out_of_the_run_directory(tmp_path):
    """A tag with a leading slash or with `..` names a sub-run like any other."""
    with SummaryWriter(str(tmp_path / "deep" / "run")) as writer:
        writer.add_scalars(str(tmp_path / "absolute"), {"a": 1.0}, 1)
        writer.add_scalars("loss", {str(tmp_path / "tag"): 1.0, "../../../up": 2.0}, 1)
        writer.add_hparams({"lr": 0.1}, {"accuracy": 0.5}, name=str(tmp_path / "trial"))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]
    assert len(runs(tmp_path / "deep" / "run")) == 4


def test_the_checksum_of_a_large_record_is_not_computed_in_python(tmp_path):
    """h10: 16 MiB take a fraction of what the checksum in pure Python takes on the same machine."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("small", "x", 1)
        text = "x" * (16 << 20)
        before = time.process_time()
        writer.add_text("large", text, 1)
        taken, before = time.process_time() - before, time.process_time()
        _crc32c(text[: 1 << 20].encode())
        assert taken < 16 * (time.process_time() - before) / 2
    assert runs(tmp_path) == {".": [("small/text_summary", 1), ("large/text_summary", 1)]}


def test_close_and_log_again_in_the_same_second_keeps_everything(tmp_path, monkeypatch):
    """h11: the clock stands still; close, hparams, reopen and a second writer make new files, all whole."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    writer = SummaryWriter(str(tmp_path))
    threads = threading.active_count()
    for step in range(0, 40, 10):
        for n in range(step, step + 10):
            writer.add_scalar("a", 0.5, n)
        writer.close()
    writer.add_hparams({"lr": 0.1}, {"accuracy": 0.5}, name="trial")
    writer.close()
    writer.add_scalars("sub", {"run": 1.0}, 1)
    writer.add_scalar("a", 0.5, 40)
    writer.file_writer.close()
    writer.file_writer.reopen()
    writer.add_scalar("a", 0.5, 41)
    writer.close()
    with SummaryWriter(str(tmp_path)) as second:
        second.add_scalar("a", 0.5, 42)
    found = runs(tmp_path)
    assert found.pop("trial")[-1] == ("accuracy", 0)
    assert found == {".": steps(0, 43), "sub/run": [("sub", 1)]}
    assert threading.active_count() == threads


def test_closing_and_logging_again_purges_nothing_twice(tmp_path):
    """h12: both of TensorBoard's Python readers show each step once, in the sub-runs too."""
    attempts = [(None, [(0, 80)]), (50, [(50, 60), (60, 70), (70, 100)])]
    for purge_step, parts in attempts:
        writer = SummaryWriter(str(tmp_path), purge_step=purge_step)
        for first, last in parts:
            for step in range(first, last):
                writer.add_scalar("a", 0.5, step)
                writer.add_scalars("sub", {"run": 1.0}, step)
            writer.close()
    assert shown(tmp_path) == list(range(100))
    assert shown(tmp_path / "sub" / "run", "sub") == list(range(100))


def test_a_resumed_childs_directory_is_purged_once_in_an_attempt(run_dir):
    """h12: purge_step counts for forked children's directories, and only for the first child in one of them."""
    source = """
purge, first, middle, last = (int(word) for word in sys.argv[2:])
writer = SummaryWriter(sys.argv[1], purge_step=purge or None)
log(writer, first, last)
good(named(lambda: log(writer, first, middle), "Reader-1"))
good(named(lambda: log(writer, middle, last), "Reader-1"))  # the next epoch
"""
    succeed(PRELUDE + source, run_dir, 0, 0, 40, 80)
    succeed(PRELUDE + source, run_dir, 50, 50, 60, 100)
    assert shown(run_dir) == list(range(100))
    assert shown(run_dir / "Reader-1") == list(range(100))


def test_a_smaller_world_purges_the_ranks_that_are_gone_and_no_living_one(run_dir):
    """On resume rank 0 hides what ranks beyond WORLD_SIZE logged at purge_step and later, unless they live."""

    def rank(number: int, world: int, purge_step: int | None, first: int, last: int):
        os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world)}
        with SummaryWriter(str(run_dir), purge_step=purge_step) as writer:
            for step in range(first, last):
                writer.add_scalar("a", 0.5, step)
            yield

    old = [Staged(rank(number, 4, None, 0, 80)) for number in range(4)]
    assert [old[number].finish() for number in range(3)] == [0] * 3
    new = [Staged(rank(number, 2, 50, 50, 100)) for number in range(2)]
    assert [child.finish() for child in new] == [0, 0]
    assert shown(run_dir) == shown(run_dir / "rank_00001") == list(range(100))
    assert shown(run_dir / "rank_00003") == list(range(80)), "rank 3 of the crashed launcher lives"
    assert len(event_paths(run_dir / "rank_00003")) == 1
    assert old[3].finish() == 0
    assert shown(run_dir / "rank_00002") == list(range(50))


def test_embeddings_of_four_processes_do_not_overwrite_each_other(run_dir):
    """h16: each in its own worker directory, with a projector configuration of its own."""
    source = """
def work(rank):
    os.environ["RANK"] = str(rank)
    writer = SummaryWriter(sys.argv[1])
    writer.add_embedding(np.full((3, 2), float(rank)), metadata=[f"{rank}{n}" for n in range(3)], global_step=1)
    writer.close()
assert [code(pid) for pid in [forked(lambda rank=rank: work(rank)) for rank in range(4)]] == [0] * 4
"""
    succeed(PRELUDE + source, run_dir)
    for rank, name in enumerate([".", "rank_00001", "rank_00002", "rank_00003"]):
        assert (run_dir / name / "projector_config.pbtxt").read_text().count("embeddings {") == 1
        (tensors,) = (run_dir / name / "00001").rglob("tensors.tsv")
        (metadata,) = (run_dir / name / "00001").rglob("metadata.tsv")
        assert tensors.read_text() == f"{float(rank)}\t{float(rank)}\n" * 3
        assert metadata.read_text() == "".join(f"{rank}{n}\n" for n in range(3))
