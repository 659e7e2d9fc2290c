"""What an exception of the client means."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import errors as hf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from programs import succeed

from hf_mpwriter.base.verdicts import Moved, Refused, Retry, Split, Unknown
from hf_mpwriter.push.classify import BUSY_WAIT, QUOTA_WAIT, classify


def http(status: int, text: str = "", kind: type = hf.HfHubHTTPError, **headers: str) -> Exception:
    """An error as the client raises it."""
    request = httpx2.Request("POST", "https://hub/api/models/me/run/commit/main")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return kind(text, response=httpx2.Response(status, headers=named, request=request))


def wrapped(outer: Exception, inner: BaseException) -> Exception:
    """`raise outer from inner`."""
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, Split),
        (401, Refused),
        (402, Refused),
        (403, Refused),
        (404, Refused),
        (405, Refused),
        (408, Unknown),
        (409, Retry),
        (412, Moved),
        (413, Split),
        (422, Split),
        (429, Retry),
        (500, Unknown),
        (501, Refused),
        (502, Unknown),
        (503, Unknown),
        (504, Unknown),
    ],
)
def test_each_status_has_its_verdict(status, verdict):
    """Also if the client wrapped the error (RuntimeError around an LFS upload, ValueError around its batch)."""
    found = classify(http(status))
    assert type(found) is verdict
    assert getattr(found, "too_slow", False) == (status == 504), "a 504 is what a commit of too many files gets"
    for outer in (RuntimeError("Error while uploading"), ValueError("batch"), OSError("x")):
        assert type(classify(wrapped(outer, http(status)))) is verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (httpx2.ConnectError("refused"), Retry),
        (httpx2.ConnectTimeout("slow"), Retry),
        (httpx2.PoolTimeout("busy"), Retry),
        (httpx2.ReadTimeout("slow"), Unknown),
        (httpx2.WriteTimeout("slow"), Unknown),
        (httpx2.ReadError("reset"), Unknown),
        (httpx2.RemoteProtocolError("closed"), Unknown),
        (TimeoutError("slow"), Unknown),
        (ConnectionResetError("reset"), Unknown),
        (hf.OfflineModeIsEnabled("offline"), Refused),
        (hf.LocalTokenNotFoundError("no token"), Refused),
        (hf.HFValidationError("bad repo id"), Refused),
        (RuntimeError("Xet: authentication: Auth error"), Refused),
        (RuntimeError("request failed (401 Unauthorized)"), Refused),
        (ValueError("bad metadata"), Split),
        (FileNotFoundError("gone"), Retry),
        (OSError(28, "No space left on device"), Retry),
        (MemoryError(), Retry),
        (RuntimeError("anything else"), Unknown),
        (KeyError("x"), Unknown),
    ],
)
def test_each_exception_has_its_verdict(error, verdict):
    """What may have been applied is unknown; what never left is a retry; what will never work is refused or split."""
    assert type(classify(error)) is verdict
    if not isinstance(error, (ValueError, MemoryError)):
        assert type(classify(wrapped(RuntimeError("Error while uploading 'x'"), error))) in (verdict, Refused, Split)


def test_a_missing_repository_is_created_by_the_next_push():
    """404 with the Hub's own code is a retry (the next push creates it), 401 for the same means the token."""
    for kind in (hf.RepositoryNotFoundError, hf.RevisionNotFoundError):
        assert isinstance(classify(http(404, kind=kind)), Retry)
        assert isinstance(classify(http(401, kind=kind)), Refused)


@pytest.mark.parametrize(
    ("status", "text", "headers", "after"),
    [
        (429, "", {"ratelimit": '"api";r=0;t=55'}, 56.0),
        (429, "", {"ratelimit": '"api";r=120;t=55'}, QUOTA_WAIT),
        (429, "", {"retry_after": "7"}, 7.0),
        (503, "", {"retry_after": "30"}, 30.0),
        (503, "", {}, None),
        (503, "", {"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        (429, "rate limit for repository commits (128 per hour). Retry in about 10 minutes", {}, 600.0),
        (429, "you can retry this action in about an hour", {}, 3600.0),
        (429, "hourly quotas exceeded", {}, QUOTA_WAIT),
        (409, "another commit operation is in progress", {}, BUSY_WAIT),
    ],
)
def test_the_hubs_wish_is_heard(status, text, headers, after):
    """Headers first, then the text of a quota, then what experience says."""
    assert classify(http(status, text, **headers)).after == after


def test_a_number_is_not_taken_for_a_status():
    """401 as the beginning of a byte count says nothing about the token."""
    assert not isinstance(classify(OSError("short read (40123 of 50000 bytes)")), Refused)
    assert not isinstance(classify(RuntimeError("upload of a.tfevents (401234 bytes) failed")), Refused)


def test_a_token_is_never_in_a_reason(monkeypatch):
    """Also if the variable has blanks around it, which the client strips before it uses the token."""
    monkeypatch.setenv("HF_TOKEN", " an-odd-one\n")
    assert "an-odd-one" not in classify(RuntimeError("Authorization: an-odd-one was refused")).reason


@given(st.text())
@hypothesis_settings(max_examples=30)
def test_a_reason_is_one_bounded_line(text):
    """It goes into logs and messages."""
    reason = classify(RuntimeError(text)).reason
    assert len(reason) <= 500
    assert len(reason.splitlines()) == 1


def test_an_error_that_is_its_own_cause_has_a_verdict():
    """`raise error from error` makes a circle; a verdict comes all the same."""
    source = (
        "import signal\n"
        "from hf_mpwriter.push.classify import classify\n"
        "signal.setitimer(signal.ITIMER_VIRTUAL, 30)\n"
        "error = RuntimeError('x'); error.__cause__ = error\n"
        "print(type(classify(error)).__name__)\n"
    )
    # in a process of its own: the other outcome is a circle without end
    assert succeed(source) == "Unknown\n"
