"""Logdirs: one name for one place, and a clear word for what cannot be one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from runs import run

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base import storage
from hf_mpwriter.base.errors import LogdirError, SettingsError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("s3://bucket/exp1", "s3://bucket/exp1"),
        ("S3://bucket/runs//exp1/", "s3://bucket/runs/exp1"),
        ("s3://bucket/runs/./Exp1///", "s3://bucket/runs/Exp1"),
        ("gs://bucket", "gs://bucket"),
        ("abfs://runs@account.dfs.core.windows.net/exp1", "abfs://runs@account.dfs.core.windows.net/exp1"),
        ("hdfs:///user/me/exp1", "hdfs:///user/me/exp1"),
        ("abfs://exp1", "abfs://exp1"),
        ("file:///data/runs/../exp1/", "/data/exp1"),
        ("FILE://localhost/data/exp1", "/data/exp1"),
        (Path("/data/exp1"), "/data/exp1"),
    ],
)
def test_a_place_has_one_name(given, wanted):
    """However it is written; and what is normalised stays as it is."""
    assert storage.normalised_logdir(given) == wanted
    assert storage.normalised_logdir(wanted) == wanted
    assert storage.is_url(wanted) == ("://" in wanted)


def test_a_path_is_made_absolute(monkeypatch, tmp_path):
    """With the home directory in place of "~"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.normalised_logdir("runs/exp1") == str(tmp_path / "runs" / "exp1")
    assert storage.normalised_logdir("~/exp1") == "/home/me/exp1"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("hf://me/run", "repo_id="),
        ("hf://datasets/me/run/exp1", "repo_id="),
        ("s3://bucket/../exp1", "without"),
        ("s3://", "bucket"),
        ("s3:///./", "bucket"),
        ("https://example.com/exp1", "read"),
        ("memory://exp1", "memory of one process"),
        ("s3://bucket/exp1?versionId=3", "query"),
        ("simplecache::s3://bucket/exp1", "neither"),
        ("zip://exp1::s3://bucket/a.zip", "another URL"),
        ("runs/x://y", "neither"),
        ("file://host/exp1", "file:///path"),
        ("file://", "file:///path"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_logdir_is_refused_with_a_hint(wrong, word):
    """The message says what helps."""
    with pytest.raises(LogdirError) as caught:
        storage.normalised_logdir(wrong)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sftp://me:hunter2@host/exp1",
        "s3://KEY:hunter2/with/slashes@bucket/run",  # as AWS makes them
        "s3://KEY%3Ahunter2@bucket/run",
        "s3://KEY%253ahunter2@bucket/run",
        "s3://KEY:hunter2#x?y@bucket/run",
        "simplecache::s3://KEY:hunter2/x@bucket/run",
        "https://me:hunter2/x@host/run",
        "file://me:hunter2@host/run",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url, tmp_path, monkeypatch):
    """The logdir is written to disk and told in messages; no writer and no command does either."""
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogdirError, match="holds a password") as caught:
        SummaryWriter(url)
    assert "hunter2" not in f"{caught.value!r} {caught.value}"
    for words in (["status"], ["sync"], ["verify"], ["pull"], ["logs"], ["stop"], ["doctor"], ["ranks"]):
        assert "hunter2" not in run(*words, url).output, words
    assert "hunter2" not in run("run", "--logdir", url, "true").output
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []
    assert not any("hunter2" in path for path in map(str, tmp_path.rglob("*")))


def test_a_url_and_a_path_with_an_at_sign_are_none():
    """A container, a port, and a directory of this host."""
    for url in ("abfs://box@account.dfs.core.windows.net/a:b", "sftp://host:22/exp1", "s3://bucket/me@host"):
        assert storage.normalised_logdir(url) == url
    assert storage.normalised_logdir("file:///data/a:b@c") == "/data/a:b@c"


def test_a_url_without_fsspec_names_what_to_install(monkeypatch):
    """And a path needs none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="Run: pip install fsspec"):
        storage.normalised_logdir("s3://bucket/exp1")
    assert storage.normalised_logdir("/data/exp1") == "/data/exp1"
