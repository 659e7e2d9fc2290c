"""No secret leaves in a text: the shapes, the places, and whole runs whose every trace on disk is searched."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokens import ODD, SHAPED

from hf_mpwriter.base.errors import LogdirError, SettingsError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.system import redaction
from hf_mpwriter.system.redaction import known_tokens, redact

PLAIN = st.text("abc _.:/'\"\\{}\n", max_size=12)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"token {SHAPED} refused", "token <token> refused"),
        (f"Authorization: Bearer {ODD}", "Authorization: Bearer <token>"),
        ("{'authorization': 'bearer abc.def'}", "{'authorization': 'bearer <token>'}"),
        ("Proxy-Authorization: Basic dXNlcjpwYXNz", "Proxy-Authorization: Basic <token>"),
        ("via http://user:pa@ss@proxy:3128 now", "via http://...@proxy:3128 now"),
        ("to s3://KEY:SEC/RET@bucket/run now", "to s3://...@bucket/run now"),
        ("to s3://KEY%3aSEC/RET@bucket/run now", "to s3://...@bucket/run now"),
        ("at http://127.0.0.1:80/me/run@main now", "at http://127.0.0.1:80/me/run@main now"),
        ("PUT https://s3/x?X-Amz-Signature=abc&y=1 403", "PUT https://s3/x?... 403"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln ended", "<token> ended"),
        ("/runs/.hf_mpwriter/hosts/a: hf_mpwriter failed", "/runs/.hf_mpwriter/hosts/a: hf_mpwriter failed"),
        ("me@example.org asks: what?", "me@example.org asks: what?"),
        (r"'bad\nhf_abcdefghijklmnopqrstuvwxyz01234567'", r"'bad\n<token>'"),  # what is escaped stands right before it
        ("?x%3Dhf_abcdefghijklmnopqrstuvwxyz01234567", "?x%3D<token>"),
        ("sync runs/hf_llamainstruct8bfinetune", "sync runs/hf_llamainstruct8bfinetune"),
    ],
)
def test_what_looks_like_a_secret_is_redacted_and_nothing_else(text, clean):
    """Wherever it comes from: no source has to be known for these."""
    assert redact(text) == clean
    assert redact(clean) == clean


@given(
    PLAIN, PLAIN, st.sampled_from(["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]), st.text("ab#+/=%-", min_size=4, max_size=9)
)
def test_a_known_token_is_nowhere_in_what_is_left(before, after, name, token):
    """Of any shape, with blanks around it, beside any text."""
    assert token not in redact(f"{before}{token}{after}", redaction.environment_tokens({name: f" {token}\n"}))


@given(st.recursive(st.sampled_from([SHAPED, f"Bearer {ODD}", "http://a/?b=\\", "http://u:p@h/", '"', "\\"]), st.lists))
@hypothesis_settings(max_examples=30)
def test_redacted_json_is_json(value):
    """A secret ends before a quote and an escape, so what machines read can still be read."""
    json.loads(redact(json.dumps(value)))


@pytest.mark.parametrize("where", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "stored", "XDG"])
def test_every_place_that_a_token_can_come_from_is_known(tmp_path, where):
    """In the order of huggingface_hub."""
    environ = {"HF_HOME": str(tmp_path)}
    if where.startswith("HF_TOKEN_PATH"):
        environ["HF_TOKEN_PATH"] = str(tmp_path / "mine")
        (tmp_path / "mine").write_text(f"{ODD}\n")
    elif where == "HF_HOME":
        (tmp_path / "token").write_text(f"{ODD}\n")
    elif where == "stored":
        (tmp_path / "stored_tokens").write_text(f"[me]\nhf_token = {ODD}\nrefresh_token = {ODD[::-1]}\n")
        assert ODD[::-1] in known_tokens(environ)
    elif where == "XDG":
        environ = {"XDG_CACHE_HOME": str(tmp_path)}
        (tmp_path / "huggingface").mkdir()
        (tmp_path / "huggingface" / "token").write_text(ODD)
    else:
        environ[where] = ODD
    assert ODD in known_tokens(environ)


def test_a_token_file_that_cannot_be_read_is_no_error(tmp_path):
    """No file, a directory, a pipe without a writer, bytes that are no text."""
    (tmp_path / "token").mkdir()
    os.mkfifo(tmp_path / "stored_tokens")
    assert known_tokens({"HF_HOME": str(tmp_path)}) == set()
    assert known_tokens({"HF_HOME": "/dev/null/x"}) == set()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00" * 5)
    assert known_tokens({"HF_HOME": "/dev/null/x", "HF_TOKEN_PATH": str(tmp_path / "bytes")})


def test_what_is_printed_logged_and_raised_is_redacted(tmp_path):
    """A guarded process: print, an uncaught traceback, a warning of a library."""
    source = """
import os, sys, warnings, logging
from hf_mpwriter.system import redaction
redaction.guard()
print("out", os.environ["HF_TOKEN"])
warnings.warn("warned " + os.environ["HF_TOKEN"])
logging.getLogger("lib").warning("logged %s", os.environ["HF_TOKEN"])
raise RuntimeError(os.environ["HF_TOKEN"])
"""
    result = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | {"HF_TOKEN": ODD},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ODD not in result.stdout + result.stderr
    assert result.stdout == "out <token>\n"
    for line in ("warned <token>", "logged <token>", "RuntimeError: <token>"):
        assert line in result.stderr


def test_exceptions_and_warnings_of_ours_have_no_secret(monkeypatch, caplog):
    """What a user sees of a worker."""
    monkeypatch.setenv("HF_TOKEN", ODD)
    error = LogdirError(f"{ODD} is no directory", hint=f"not {ODD}")
    assert ODD not in f"{error} {error!r} {error.message} {error.hint}"
    with caplog.at_level(logging.WARNING):
        logging.getLogger("hf_mpwriter").warning("cannot: %s", RuntimeError(ODD))
    assert caplog.messages == ["cannot: <token>"]


@pytest.mark.parametrize("endpoint", ["http://me:password@hub", "https://hub?token=password"])
def test_an_endpoint_with_a_secret_is_refused(endpoint):
    """It would stand in run.json; and the client would send it in the place of the token."""
    with pytest.raises(SettingsError) as caught:
        Destination(endpoint, "me/run")
    assert "password@" not in str(caught.value)
    assert "=password" not in str(caught.value)
