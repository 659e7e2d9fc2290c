"""`doctor`: what a filesystem can do, and how a run would be kept there, in aligned plain text."""

from __future__ import annotations

import errno
import os
import re

import pytest
from click.testing import CliRunner

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import LogdirError
from hf_mpwriter.base.home import staging_root
from hf_mpwriter.cli import doctor as cli_doctor
from hf_mpwriter.cli.destination import spool_at
from hf_mpwriter.cli.main import main
from hf_mpwriter.cli.storage import doctor as doctor_of_storage
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.filesystem.mounts import Mount, find_mount


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The filesystem only: the Hub is not asked, which is a failure."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def doctor(directory: object) -> tuple[int, dict[str, str]]:
    """The exit code of the command, and its lines."""
    done = CliRunner().invoke(main, ["doctor", str(directory)])
    about = done.output.partition("\n\n")[2].splitlines()
    lines = [re.split(" {2,}", line, maxsplit=1) for line in about]
    assert len({len(line) - len(text) for line, (_, text) in zip(about, lines, strict=True)}) == 1
    return done.exit_code, dict(lines)


def test_a_filesystem_that_is_known_by_name_is_not_asked(tmp_path):
    """A directory that is not there yet is not made, and nothing is left behind."""
    logdir = tmp_path / "runs" / "exp1"
    code, told = doctor(logdir)
    assert code == 4
    assert told["abilities"].startswith("all that is needed")
    assert told["a run there is kept"].startswith("direct")
    assert (told["event files"], told["spool"]) == (str(logdir), str(logdir / ".hf_mpwriter"))
    mount = find_mount(str(tmp_path))
    assert (told["filesystem"], told["mounted at"]) == (mount.fstype, mount.point)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_staged_is_told_with_its_places(tmp_path, monkeypatch):
    """Because of the variable, or because the logdir is a URL, of which no filesystem is known."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path))
    root = f"{tmp_path}/{staging_root(os.geteuid())}/"
    for logdir in (tmp_path / "exp1", "s3://bucket/exp1"):
        code, told = doctor(logdir)
        assert code == 4
        assert told["a run there is kept"].startswith("staged")
        assert told["event files"].startswith(root)
        assert told["because"]
    assert "filesystem" not in told


@pytest.mark.parametrize("staging", ["never", "some/where"])
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, staging):
    """A URL without staging, a variable that is not valid, and a file."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", staging)
    done = CliRunner().invoke(main, ["doctor", "s3://bucket/exp1"])
    assert done.exit_code == 1
    assert "HF_MPWRITER_STAGING" in done.output
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["doctor", str(tmp_path / "file")])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "is no directory" in done.output


def test_what_a_witness_does_not_answer_is_not_known(tmp_path, monkeypatch):
    """As on a mount that hangs for other processes: it is not waited for, and there is no traceback."""
    monkeypatch.setattr(doctor_of_storage, "PATIENCE", 0.01)
    monkeypatch.setattr(doctor_of_storage, "_WITNESS", "import time; time.sleep(600)")
    monkeypatch.setattr(doctor_of_storage, "find_mount", lambda _: Mount(str(tmp_path), "odd", "odd"))
    code, told = doctor(tmp_path / "exp1")
    assert code == 4
    assert told["show file and lock to another process"] == "not known"


def refused(directory: object) -> str:
    """What `doctor` and a writer say, the same, of a directory in which no run can be begun; without the prefix."""
    done = CliRunner().invoke(main, ["doctor", str(directory)])
    assert (done.exit_code, done.output.count("\n")) == (1, 1), done.output
    with pytest.raises(LogdirError) as told:
        SummaryWriter(str(directory))
    assert done.output == f"Error: {told.value}\n"
    return str(told.value)


def test_where_no_run_can_be_begun_it_says_so_as_a_writer_does(tmp_path):
    """On a filesystem that takes no directory, and below a file: that is no place where a run "is kept direct"."""
    assert "'/proc/exp1' cannot be written: " in refused("/proc/exp1")
    (tmp_path / "file").touch()
    told = refused(tmp_path / "file" / "runs" / "exp1")
    assert f"cannot be a directory: '{tmp_path}/file' is a file." in told


def test_a_disk_that_can_only_be_read_takes_no_new_run_and_keeps_an_old_one(tmp_path, monkeypatch):
    """Whose spool is there: then nothing is made, and all else is told."""

    def read_only(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr(doctor_of_storage.tempfile, "mkdtemp", read_only)
    done = CliRunner().invoke(main, ["doctor", str(tmp_path / "exp1")])
    assert (done.exit_code, "cannot be written: Read-only file system. Give another" in done.output) == (1, True)
    Spool(str(tmp_path / "exp1")).create()
    assert doctor(tmp_path / "exp1")[1]["a run there is kept"].startswith("direct")


def test_an_endpoint_that_is_no_url_is_a_failed_check(monkeypatch):
    """The client of the Hub cannot even be imported then."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:80x")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 4
    line = "fail endpoint HF_ENDPOINT is 'http://127.0.0.1:80x'. It needs a host, and a port is a number"
    assert line in [" ".join(shown.split()) for shown in done.output.splitlines()]


def test_no_run_directory_of_another_uploader_is_looked_at(tmp_path, monkeypatch):
    """It may be on a mount that hangs. Nor is any other process asked what it does."""
    looked = list[str]()
    monkeypatch.setattr(cli_doctor, "spool_at", lambda path: looked.append(path) or spool_at(path))
    done = CliRunner().invoke(main, ["doctor"])
    assert [line.split()[1] for line in done.output.splitlines()] == ["versions", "endpoint", "disk"]
    doctor(tmp_path)
    assert looked == [str(tmp_path)]
