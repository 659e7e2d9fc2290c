"""The writers: the interface of tensorboardX, torch and huggingface_hub, and what stands in the files."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tensorboardX
from tensorboardX.proto import event_pb2

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.base.errors import LogdirError, SettingsError
from hf_mpwriter.events import framing
from hf_mpwriter.system import process
from hf_mpwriter.writer.hf_summary_writer import WriterArguments
from hf_mpwriter.writer.summary_writer import named_for_users


def events(directory) -> list[event_pb2.Event]:
    """All events of a directory, in the order in which TensorBoard reads its files."""
    files = sorted(path for path in Path(directory).iterdir() if "tfevents" in path.name)
    return [event_pb2.Event.FromString(payload) for path in files for payload in framing.payloads(str(path))]


def values(directory) -> list[tuple[str, int, float]]:
    """Tag, step and value of the scalars of a directory."""
    return [(value.tag, event.step, value.simple_value) for event in events(directory) for value in event.summary.value]


def test_the_signature_is_that_of_huggingface_hub():
    """A drop-in takes the same arguments with the same defaults, and those of SummaryWriter by name."""
    import huggingface_hub

    theirs, ours = (
        [(one.name, one.kind, one.default) for one in inspect.signature(kind.__init__).parameters.values()]
        for kind in (huggingface_hub.HFSummaryWriter, HFSummaryWriter)
    )
    assert ours == theirs


def test_both_writers_have_the_same_arguments():
    """With the same defaults and types; `repo_id` is required where it says what the writer is for."""
    local, ours = (dict(inspect.signature(writer).parameters) for writer in (SummaryWriter, HFSummaryWriter))
    assert ours.pop("kwargs").annotation == "Unpack[WriterArguments]"
    passed = {name: kind.__forward_arg__ for name, kind in WriterArguments.__annotations__.items()}
    assert {*ours, *passed} == set(local)
    assert passed.items() <= {name: found.annotation for name, found in local.items()}.items()
    assert {name for name in ours if ours[name].default != local[name].default} == {"repo_id"}
    assert {name for name in ours if ours[name].annotation != local[name].annotation} == {"repo_id"}


@pytest.mark.parametrize(("writer", "given"), [(SummaryWriter, []), (HFSummaryWriter, ["me/run"])])
def test_an_argument_that_does_not_exist_is_named(tmp_path, monkeypatch, writer, given):
    """Before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as found:
        writer(*given, repoid="x")
    assert str(found.value).startswith(f"{writer.__name__}.__init__() got an unexpected keyword argument 'repoid'")
    assert os.listdir(tmp_path) == []


class Inner:
    """A base, which users do not know by its name."""

    def log(self, step):
        """Log."""

    def _keep(self, step):
        """Keep."""


@named_for_users
class Outer(Inner, json.JSONEncoder):
    """What users hold."""


def test_what_others_call_keeps_its_name():
    """A method of another package, or that nobody but us calls; the rest can be pickled by its new name."""
    assert Outer.log.__qualname__ == "Outer.log"
    assert Outer._keep.__qualname__ == "Inner._keep"
    assert Outer.iterencode.__qualname__ == "JSONEncoder.iterencode"
    assert pickle.loads(pickle.dumps(Outer.log)) is Outer.log  # noqa: S301


@pytest.mark.parametrize("name", ["add_scalar", "add_image", "add_scalars", "add_text", "log", "close", "last_step"])
def test_a_wrong_call_is_named_by_the_class_that_users_hold(tmp_path, name):
    """Not by the one of ours that has the code: nobody finds that in the documents."""
    with SummaryWriter(tmp_path) as writer, pytest.raises(TypeError) as found:
        getattr(writer, name)(colour="red")
    assert str(found.value).startswith(f"SummaryWriter.{name}() got an unexpected keyword argument 'colour'")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"repo_allow_patterns": 5}, "repo_allow_patterns is 5"),
        ({"repo_allow_patterns": {"*": 1}}, "repo_allow_patterns is"),
        ({"repo_allow_patterns": b"*"}, "repo_allow_patterns is"),
        ({"repo_ignore_patterns": ["*", 3]}, "repo_ignore_patterns holds 3"),
        ({"squash_history": "false"}, "squash_history is 'false'"),
        ({"squash_history": None}, "squash_history is None"),
        ({"squash_history": 2}, "squash_history is 2"),
        ({"repo_private": "yes"}, "repo_private is 'yes'"),
        ({"token": b"hf_secret"}, "token must be a string, not a value of type bytes"),
        ({"token": True}, "token must be a string, not a value of type bool"),
        ({"path_in_repo": 5}, "path_in_repo is 5"),
        ({"repo_type": "models"}, "repo_type is 'models'"),
        ({"repo_revision": 5}, "revision is 5"),
        ({"purge_step": 1.5}, "purge_step is 1.5"),
        ({"purge_step": "5"}, "purge_step is '5'"),
        ({"memory_limit": "1 GB"}, "memory_limit is '1 GB'"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused_by_its_name(tmp_path, monkeypatch, wrong, told):
    """A SettingsError, before anything is written; a secret is not shown."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as found:
        HFSummaryWriter("me/run", **wrong)
    assert str(found.value).startswith(told)
    assert "hf_secret" not in str(found.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"repo_allow_patterns": "*.csv"}, {"allow_patterns": ("*.csv",)}),
        ({"repo_allow_patterns": ("*.csv", "logs/")}, {"allow_patterns": ("*.csv", "logs/*")}),
        ({"repo_allow_patterns": None}, {"allow_patterns": None}),
        ({"repo_ignore_patterns": ["*.tmp"]}, {"ignore_patterns": ("*.tmp",)}),
        ({"squash_history": True}, {"squash_history": True}),
        ({"squash_history": np.True_}, {"squash_history": True}),
        ({"squash_history": 0}, {"squash_history": False}),
    ],
)
def test_an_argument_of_a_right_type_is_taken(tmp_path, given, kept):
    """One pattern or several, and a bool of numpy too."""
    with SummaryWriter(tmp_path, **given) as writer:
        assert {name: getattr(writer._settings, name) for name in kept} == kept


def test_the_attributes_are_those_of_huggingface_hub(run_dir, monkeypatch):
    """`logdir`, `repo_id`, `repo_type`, `repo_revision` and the scheduler's; the constructor asks nothing."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    writer = HFSummaryWriter("me/run", logdir=str(run_dir), commit_every=15, path_in_repo="logs/", exit_timeout=0)
    scheduler = writer.scheduler
    assert isinstance(writer, tensorboardX.SummaryWriter)
    assert (writer.logdir, writer.repo_id, writer.repo_type, writer.repo_revision) == (
        str(run_dir),
        "me/run",
        None,
        None,
    )
    assert (scheduler.path_in_repo, scheduler.folder_path, scheduler.every) == ("logs/exp1", run_dir, 15)
    assert (scheduler.token, scheduler.last_future, scheduler.repo_type) == (None, None, None)
    with scheduler.lock:
        pass
    scheduler.stop()
    assert scheduler.trigger().result() is None, "a stopped scheduler pushes nothing"
    writer.close()


def test_closing_and_logging_again_opens_a_new_file_and_purges_once(tmp_path):
    """What came before close() stays; purge_step is not applied a second time."""
    writer = SummaryWriter(str(tmp_path), purge_step=5)
    writer.add_scalar("a", 1.0, 5)
    writer.close()
    writer.close()
    writer.add_scalar("a", 2.0, 6)
    writer.close()
    assert values(tmp_path) == [("a", 5, 1.0), ("a", 6, 2.0)]
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [5, 5]


def test_two_writers_of_one_process_share_an_event_file(tmp_path):
    """The same directory and suffix: one file, complete after both have closed; another suffix: another file."""
    first, second = SummaryWriter(str(tmp_path)), SummaryWriter(str(tmp_path))
    first.add_scalar("a", 1.0, 1)
    second.add_scalar("b", 2.0, 2)
    first.close()
    second.add_scalar("b", 3.0, 3)
    other = SummaryWriter(str(tmp_path), filename_suffix=".eval")
    other.add_scalar("c", 4.0, 4)
    other.close()
    second.close()
    names = sorted(path.name for path in tmp_path.iterdir() if "tfevents" in path.name)
    assert len(names) == 2
    assert names[1].endswith(".eval")
    assert values(tmp_path) == [("a", 1, 1.0), ("b", 2, 2.0), ("b", 3, 3.0), ("c", 4, 4.0)]


def test_a_writer_that_may_not_write_writes_nothing(tmp_path):
    """`write_to_disk=False`."""
    with SummaryWriter(str(tmp_path / "run"), write_to_disk=False) as writer:
        writer.add_scalar("a", 1.0, 1)
        writer.add_scalars("b", {"c": 1.0}, 1)
        writer.add_text("t", "x")
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_the_default_logdir_is_the_same_for_all_ranks_of_a_job(tmp_path, monkeypatch):
    """The launcher's job id names the run directory, also after a requeue; torch's `log_dir` is taken too."""
    monkeypatch.chdir(tmp_path)
    for rank in ("0", "1"):
        for name, value in {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": rank}.items():
            monkeypatch.setenv(name, value)
        writer = SummaryWriter(comment="_x")
        assert writer.logdir == str(tmp_path / "runs" / "slurm_77_x")
        writer.close()
    assert SummaryWriter(log_dir=tmp_path / "other").log_dir == str(tmp_path / "other")


def test_what_cannot_be_done_is_said(tmp_path):
    """A repository as logdir, a path that cannot be, an interval that is none, Comet."""
    with pytest.raises(LogdirError, match="repo_id="):
        SummaryWriter("hf://me/run")
    with pytest.raises(LogdirError, match="NUL"):
        SummaryWriter(f"{tmp_path}/a\0b")
    with pytest.raises(SettingsError, match="commit_every"):
        SummaryWriter(str(tmp_path), commit_every=0)
    with pytest.raises(SettingsError, match="Comet"):
        SummaryWriter(str(tmp_path), comet_config={"disabled": False})


LONGEST = 255 - len("events.out.tfevents.01234567890123456789..4194304.01234567") - 64  # bytes of a suffix


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("\0x", "character"),
        ("/x", "character"),
        ("a/b", "character"),
        ("\udcff", "valid text"),
        (5, "a string"),
        (b"x", "a string"),
        ("x" * 300, "300 bytes"),
        ("x" * (LONGEST + 1), "room for"),
        ("ü" * (LONGEST // 2 + 1), "room for"),
    ],
)
def test_a_suffix_that_no_event_file_can_have_is_refused_by_the_constructor(tmp_path, suffix, reason):
    """With the reason, before anything is made on disk."""
    with pytest.raises(SettingsError, match=reason):
        SummaryWriter(str(tmp_path / "run"), filename_suffix=suffix)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", ["", ".x", "x" * LONGEST, " a b\n", "ü" * (LONGEST // 2)])
def test_a_suffix_that_is_accepted_works_for_all_event_files(tmp_path, monkeypatch, suffix):
    """Also on a host with the longest name, and for those of `add_scalars` and of trials."""
    monkeypatch.setattr(process.socket, "gethostname", lambda: "h" * 64)
    with SummaryWriter(str(tmp_path), filename_suffix=suffix) as writer:
        writer.add_scalar("a", 1.0, 1)
        writer.add_scalars("group", {"x" * 300: 1.0}, 1)
        writer.add_hparams({"lr": 1}, {"a": 1.0}, name="trial")
        assert not any(file.waiting for file in writer._worker.files._all())
    assert [path.name.endswith(suffix) for path in tmp_path.rglob("*tfevents*")] == [True] * 3


@pytest.mark.parametrize("end", ["sys.exit(0)", "one.close(); two.close(); sys.exit(0)"])
def test_one_writer_whose_end_fails_keeps_no_other_from_its_end(tmp_path, start, end):
    """In one run directory and in another: the others' files are sealed, and what waits is written."""
    source = f"""
import os, resource, sys
from hf_mpwriter import SummaryWriter
one = SummaryWriter(f"{{sys.argv[1]}}/first", filename_suffix=".one")
two, three = (SummaryWriter(f"{{sys.argv[1]}}/{{name}}") for name in ("first", "second"))
one.file_writer.event_writer.file._series._suffix = "\\0"  # an error that was not thought of
one.add_scalar("a", 0.0, 0)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
two.add_scalar("a", 0.0, 1)
three.add_scalar("a", 0.0, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
{end}
"""
    code, _, told = start(source, tmp_path).finish()
    assert code == 0
    assert "null" in told
    assert values(tmp_path / "first") == [("a", 1, 0.0)]
    assert values(tmp_path / "second") == [("a", 2, 0.0)]


def test_a_writer_tells_its_run_and_where_it_goes(tmp_path, monkeypatch):
    """Without asking the Hub or reading a file for its `repr`; a local one has no page."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    link = "http://127.0.0.1:9/me/run/tree/main/tensorboard/exp1"
    with SummaryWriter(tmp_path / "local") as local:
        assert (local.url, repr(local)) == (None, f"<SummaryWriter of {tmp_path / 'local'} to this machine only>")
    writer = HFSummaryWriter("me/run", logdir=str(tmp_path / "exp1"))
    assert (writer.url, repr(writer)) == (link, f"<HFSummaryWriter of {tmp_path / 'exp1'} to {link}>")
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    disabled = HFSummaryWriter("me/run", logdir=str(tmp_path / "off"))
    assert (disabled.url, "this machine only" in repr(disabled)) == (None, True)
    disabled.close()
    assert repr(disabled).endswith("to this machine only, closed>")
    assert repr(SummaryWriter(tmp_path / "none", write_to_disk=False)).endswith("to nowhere>")
    assert "SummaryWriter of None" in repr(SummaryWriter.__new__(SummaryWriter)), (
        "an exception has left its constructor"
    )


@pytest.mark.parametrize("kind", [SummaryWriter, HFSummaryWriter])
def test_the_help_of_a_writer_explains_each_parameter(kind):
    """It is ours, and not that of the class below: tensorboardX's says what is not true here."""
    told = set(re.findall(r"^    (\w+)(?:, (\w+))?: ", inspect.getdoc(kind), re.MULTILINE))
    names = {name for pair in told for name in pair if name}
    assert set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"} <= names
    assert inspect.getdoc(kind.__init__) == kind.__init__.__doc__
    assert "tensorboardX" not in kind.__init__.__doc__
