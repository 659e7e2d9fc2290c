"""Logdirs: one name for one place, and a clear word for what cannot be one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

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


def test_a_password_in_a_url_is_refused_and_not_repeated():
    """The logdir is written to disk and told in messages."""
    with pytest.raises(LogdirError) as caught:
        storage.normalised_logdir("sftp://me:hunter2@host/exp1")
    assert "hunter2" not in str(caught.value)
    assert "password" in str(caught.value)


def test_a_url_without_fsspec_names_what_to_install(monkeypatch):
    """And a path needs none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="Run: pip install fsspec"):
        storage.normalised_logdir("s3://bucket/exp1")
    assert storage.normalised_logdir("/data/exp1") == "/data/exp1"
