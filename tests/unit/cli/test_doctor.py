"""`doctor`: what the answers of the Hub mean, the filesystem of a logdir, and how a run would be kept there."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from runs import run
from strange_servers import StrangeServer

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import LogdirError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import staging_root
from hf_mpwriter.cli import doctor as cli_doctor
from hf_mpwriter.cli.doctor import Check, Health, endpoint_check, repository_check, token_check, token_source
from hf_mpwriter.cli.runs import storage_at
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.filesystem import find_mount

HERE = Destination("https://hub", "me/run")
OK, WARN, FAIL = Health.OK, Health.WARN, Health.FAIL


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The Hub is not asked, which is a failure."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def doctor(directory: object) -> dict[str, str]:
    """What the command says, by check."""
    done = run("doctor", directory)
    assert done.exit_code == 4, done.output
    return {line.split()[1]: line[18:] for line in done.output.splitlines()}


def test_a_filesystem_is_told_with_how_a_run_is_kept(tmp_path):
    """A directory that is not there yet is not made, and nothing is left behind."""
    logdir = tmp_path / "runs" / "exp1"
    told, mount = doctor(logdir), find_mount(str(tmp_path))
    assert told["filesystem"] == f"{mount.fstype} of {mount.source} at {mount.point}: a disk of this host"
    assert told["storage"].startswith("direct")
    assert told["files"] == f"event files in {logdir}, the spool is {logdir}/.hf_mpwriter"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_staged_is_told_with_its_places(tmp_path, monkeypatch):
    """Because of the variable, or because the logdir is a URL, of which no filesystem is known."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path))
    for logdir in (tmp_path / "exp1", "s3://bucket/exp1"):
        told = doctor(logdir)
        assert told["storage"].startswith("staged")
        assert told["files"].startswith(f"event files in {tmp_path}/{staging_root(os.geteuid())}/")
    assert "filesystem" not in told


@pytest.mark.parametrize("staging", ["never", "some/where"])
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, staging):
    """A URL without staging, a variable that is not valid, and a file."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", staging)
    done = run("doctor", "s3://bucket/exp1")
    assert done.exit_code == 1
    assert "HF_MPWRITER_STAGING" in done.output
    (tmp_path / "file").touch()
    done = run("doctor", tmp_path / "file")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "is not a directory" in done.output


def refused(directory: object) -> str:
    """What `doctor` and a writer say, the same, of a directory in which no run can be begun; without the prefix."""
    done = run("doctor", directory)
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

    monkeypatch.setattr(cli_doctor.tempfile, "mkdtemp", read_only)
    done = run("doctor", tmp_path / "exp1")
    assert (done.exit_code, "cannot be written: Read-only file system. Give another" in done.output) == (1, True)
    Spool(str(tmp_path / "exp1")).create()
    assert doctor(tmp_path / "exp1")["storage"].startswith("direct")


def test_an_endpoint_that_is_no_url_is_a_failed_check(monkeypatch):
    """The client of the Hub cannot even be imported then."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:80x")
    done = run("doctor")
    assert done.exit_code == 4
    line = "fail endpoint HF_ENDPOINT is 'http://127.0.0.1:80x'. It needs a host, and a port is a number"
    assert line in [" ".join(shown.split()) for shown in done.output.splitlines()]


def test_the_hub_that_is_asked_is_that_of_the_environment(tmp_path, monkeypatch):
    """Of a run that is recorded for another one: what fails is not said of that."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    Spool(str(tmp_path)).create()
    Spool(str(tmp_path)).record_destination(Destination("http://127.0.0.1:10", "me/run"))
    told = doctor(tmp_path)["endpoint"]
    assert told.startswith("http://127.0.0.1:9: the Hub cannot be reached at http://127.0.0.1:9. "), told


def test_no_run_directory_of_another_uploader_is_looked_at(tmp_path, monkeypatch):
    """It may be on a mount that hangs. Nor is any other process asked what it does."""
    (run_dir := tmp_path / "exp1").mkdir()
    looked = tmp_path / "looked"  # by another process
    monkeypatch.setattr(cli_doctor, "storage_at", lambda path: looked.write_text(path) and storage_at(path))
    done = run("doctor")
    assert [line.split()[1] for line in done.output.splitlines()] == ["versions", "endpoint", "disk"]
    assert not looked.exists()
    doctor(run_dir)
    assert looked.read_text() == str(run_dir)


SLACK = 4.0  # seconds more, on a busy machine; what drips here would do so for minutes


def test_it_answers_within_its_time_whatever_drips_or_hangs(tmp_path, monkeypatch):
    """A server that sends a byte a second, a name service, a mount: what does not answer fails, the rest is told."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(cli_doctor, "LIMIT", 1.5)
    monkeypatch.setenv("NO_PROXY", "*")
    over = threading.Event()
    with StrangeServer(lambda server, _: server.drip()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        began = time.monotonic()
        told = doctor(tmp_path)
        assert time.monotonic() - began < 1.5 + SLACK
        assert told["endpoint"].startswith(f"{server.endpoint}: no answer within five seconds")
        assert {"disk", "storage", "files"} <= set(told)
    monkeypatch.setattr(cli_doctor, "nearest", lambda _: over.wait())
    told = doctor(tmp_path)
    assert told["disk"].startswith(f"{tmp_path}: no answer. A mount may hang there")


# what the answers of the Hub mean


def who(role: str) -> dict[str, object]:
    """An answer to whoami."""
    return {"name": "me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": role}}}


@pytest.mark.parametrize(
    ("status", "fields", "source", "health", "words"),
    [
        (200, who("write"), "from HF_TOKEN", OK, "from HF_TOKEN: me, write"),
        (200, who("fineGrained"), "from /token", OK, "me, fineGrained"),
        (200, who("read"), "from /token", FAIL, "Run: hf auth login, with a token that may write"),
        (401, {"error": "no"}, "from HF_TOKEN", FAIL, "Set HF_TOKEN to a token that is valid"),
        (401, {"error": "no"}, "from /token", FAIL, "token refused (401). Run: hf auth login"),
        (401, {"error": "no"}, "", FAIL, "there is none. Run: hf auth login"),
        (503, {}, "from /token", WARN, "not known what it may do (503)"),
        (200, {"auth": 7, "name": "me"}, "", OK, "rights not told"),
    ],
)
def test_a_token_is_told_with_its_source_and_its_rights(status, fields, source, health, words):
    """A token that may only read uploads nothing."""
    check = token_check(status, fields, source)
    assert check.health is health
    assert words in str(check)


@pytest.mark.parametrize(
    ("status", "fields", "health"),
    [(200, {"name": "me"}, OK), (401, {"error": "no"}, OK), (503, {}, FAIL), (429, {}, WARN), (200, {}, FAIL)],
)
def test_an_endpoint_is_well_if_a_hub_answers_there(status, fields, health):
    """A refusal is an answer, too; a page of a portal is none."""
    assert endpoint_check("https://hub", status, fields).health is health


@pytest.mark.parametrize(
    ("status", "fields", "role", "health", "words"),
    [
        (200, {"id": "me/run", "private": True}, "write", OK, "me/run, private, this token may write"),
        (200, {"id": "team/run", "private": False}, "write", OK, "team/run, public"),
        (200, {"id": "me/run"}, "read", FAIL, "this token may not write"),
        (200, {"id": "other/run"}, "write", WARN, "of another account"),
        (404, {"error": "no"}, "write", WARN, "The first push creates it"),
        (500, {}, "write", WARN, "Try again later"),
    ],
)
def test_a_repository_is_told_with_who_may_read_and_write(status, fields, role, health, words):
    """One that is not there yet is created by the first push."""
    check = repository_check(HERE, status, fields, who(role))
    assert check.health is health
    assert words in str(check)


def test_a_line_begins_with_its_health_and_ends_with_what_helps():
    """Aligned, so that a failure is seen."""
    assert str(Check("disk", FAIL, "full", "Free space")) == "fail  disk        full. Free space"


def test_the_source_of_a_token_is_named_and_never_the_token(tmp_path):
    """The environment counts before the file."""
    environ = {"HF_HOME": str(tmp_path)}
    assert token_source(environ) == ""
    (tmp_path / "token").write_text("hf_secret")
    assert token_source(environ) == f"from {tmp_path / 'token'}"
    assert token_source(environ | {"HF_TOKEN": "hf_other"}) == "from HF_TOKEN"


def test_a_token_that_has_just_written_may_write():
    """Whoever the repository belongs to; a token that may only read now is named all the same."""
    seen = {"id": "others/run", "private": False}
    assert repository_check(HERE, 200, seen, who("write")).health is Health.WARN
    check = repository_check(HERE, 200, seen, who("write"), has_pushed=True)
    assert (check.health, check.text) == (Health.OK, "others/run, public, the last push from here has succeeded")
    assert repository_check(HERE, 200, seen, who("read"), has_pushed=True).health is Health.FAIL
