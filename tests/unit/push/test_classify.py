"""What an exception of the client means, and what the user reads of it: a sentence with the cure."""

from __future__ import annotations

import errno
import socket
import ssl

import httpx2
import pytest
from huggingface_hub import errors as hf
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from programs import succeed

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause, Moved, Refused, Retry, Split, Unknown
from hf_mpwriter.push.classify import BUSY_WAIT, QUOTA_WAIT, AnswerError, BusyError, ClientError, classify, plain
from hf_mpwriter.push.commit import note
from hf_mpwriter.spool.causes import TABLE, words
from hf_mpwriter.spool.status import UploaderStatus


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
        (ValueError("Cannot parse 'x' as a datetime."), Unknown),  # in an answer
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
@example("\x1b]0;the Hub's words\x07")
@hypothesis_settings(max_examples=30)
def test_a_reason_is_one_bounded_line(text):
    """It goes into logs and messages, and the Hub may have chosen its words."""
    for kind in (RuntimeError, ValueError):
        reason = classify(kind(text)).reason
        assert len(reason) <= 500
        assert reason.isprintable()


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


# in words

HUB = Destination("https://hub.example", "me/run")
LOUD = "the client's own text https://hub.example/api?x=1"


def answer(status: int, *, token: bool = True, said: str = "", kind: type = hf.HfHubHTTPError) -> Exception:
    """An answer of the Hub, as the client raises it."""
    headers = {"authorization": "Bearer x"} if token else {}
    request = httpx2.Request("POST", "https://hub.example/api/models/me/run/commit/main", headers=headers)
    return kind(LOUD, response=httpx2.Response(status, request=request), server_message=said or None)


def said_of(error: Exception, **environ: str) -> str:
    """What is said of an error, with what helps."""
    verdict = plain(error, HUB, environ)
    assert type(verdict) is type(classify(error))
    return UploaderStatus(reason=verdict.reason, hint=getattr(verdict, "hint", "")).why


OTHER = "set HF_TOKEN, or the token that the writer is given, to one that"
LOGIN = "run `hf auth login`"
REFUSALS = [
    (answer(401), {}, f"token refused (401): {LOGIN}"),
    (answer(401), {"HF_TOKEN": "hf_x"}, f"token refused (401): {OTHER} is valid"),
    (answer(401), {"HUGGING_FACE_HUB_TOKEN": "hf_x"}, f"token refused (401): {OTHER} is valid"),
    (answer(401, token=False), {}, f"no token (401): {LOGIN}"),
    (hf.LocalTokenNotFoundError("x"), {}, f"no token: {LOGIN}"),
    (answer(403), {}, f"the token lacks rights to me/run (403): {LOGIN} with a token that may write"),
    (
        answer(403),
        {"HF_TOKEN": "hf_x"},
        f"the token lacks rights to me/run (403): {OTHER} may write",
    ),
    (
        answer(402),
        {},
        "the storage of the account is used up (402): see https://huggingface.co/settings/billing",
    ),
    (
        answer(404),
        {},
        f"https://hub.example does not answer as a Hub does (404). {TABLE[Cause.ENDPOINT][1]}",
    ),
    (
        hf.HFValidationError(LOUD),
        {},
        "the Hub takes no such repository or branch. Check repo_id, repo_type and repo_revision.",
    ),
    (
        ClientError(LOUD),
        {},
        f"no connection can be made with these proxies and certificates. {TABLE[Cause.CLIENT][1]}",
    ),
]


@pytest.mark.parametrize(("error", "environ", "text"), REFUSALS, ids=lambda value: str(value)[:30])
def test_a_refusal_names_what_a_person_can_do(error, environ, text):
    """`hf auth login` does not help where the environment has a token."""
    assert said_of(error, **environ) == text


CONNECT = httpx2.ConnectError("[Errno -2] Name or service not known")
OUTAGES = [
    (answer(503), "the Hub fails (503)"),
    (answer(429), "the rate limit of the Hub is reached (429): a larger commit_every needs fewer commits"),
    (answer(409), "the Hub is busy with another commit (409)"),
    (answer(412), "others commit to me/run all the time (412)"),
    (
        answer(404, kind=hf.RepositoryNotFoundError),
        "me/run, or its branch main, is not found (404): check repo_id and repo_revision",
    ),
    (
        wrapped(CONNECT, socket.gaierror(-2, LOUD)),
        "the name of https://hub.example is not known (DNS): check the network",
    ),
    (
        wrapped(httpx2.ConnectError(LOUD), ConnectionRefusedError(111, LOUD)),
        "the Hub cannot be reached at https://hub.example: check the network",
    ),
    (
        wrapped(httpx2.ConnectError(LOUD), ssl.SSLCertVerificationError(LOUD)),
        "the certificate of https://hub.example is not trusted: check SSL_CERT_FILE",
    ),
    (
        httpx2.ProxyError(LOUD),
        "the proxy gives no connection to https://hub.example: check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY",
    ),
    (httpx2.ReadTimeout(LOUD), "https://hub.example does not answer in time: check the network"),
    (httpx2.RemoteProtocolError(LOUD), "https://hub.example has ended the connection"),
    (ConnectionResetError(104, LOUD), "https://hub.example has ended the connection"),
    (OSError(errno.ENOSPC, LOUD), "the disk is full: free some space"),
    (OSError(errno.EDQUOT, LOUD), "the quota of the disk is used up: free some space"),
    (OSError(errno.EIO, LOUD), "this disk fails: Input/output error"),
    (
        AnswerError("the answer is longer than any answer of a Hub"),
        "the answer is longer than any answer of a Hub. Is HF_ENDPOINT a Hugging Face Hub, and is a proxy in between?",
    ),
    (BusyError("another repository is being created"), "another repository is being created"),
    (KeyError(LOUD), "it is not known why (KeyError)"),
]


@pytest.mark.parametrize(("error", "text"), OUTAGES, ids=lambda value: str(value)[:30])
def test_an_outage_is_a_sentence(error, text):
    """Each with what can be checked; the verdict stays what it was."""
    assert said_of(error) == text


def test_of_a_refused_file_the_hub_may_say_why():
    """Its own words, cut, and without what could be a secret; 413 says enough."""
    assert said_of(answer(400, said="not like\n this")) == "the Hub refuses it (400: not like this)"
    assert said_of(answer(422)) == "the Hub refuses it (422)"
    assert said_of(answer(413, said="whatever")) == "it is too large for the Hub (413)"
    token = "hf_" + 30 * "A"
    assert token not in said_of(answer(400, said=f"Bearer {token}"))
    assert len(said_of(answer(400, said=1000 * "x"))) < 300
    half = answer(422, said="x" * 185 + " hf_" + "A" * 34, kind=hf.BadRequestError)
    assert "hf_A" not in said_of(half), "it is cut after the secrets have gone"


def test_a_name_with_braces_breaks_nothing():
    """Texts are filled in once."""
    error = answer(403)
    odd = Destination("https://hub.example", "me/run", revision="{endpoint}")
    assert "me/run" in plain(error, odd, {}).reason
    error = answer(404, kind=hf.RepositoryNotFoundError)
    assert "branch {endpoint}," in plain(error, odd, {}).reason


def test_what_the_client_says_goes_to_the_log(capsys):
    """The standard error of a push, with the time, as other lines there."""
    note(LOUD)
    line = capsys.readouterr().err
    assert line.endswith(f"the client says: {LOUD}\n")
    assert line.startswith("20")


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_has_words(cause):
    """One table has them all."""
    assert words(cause, HUB, 400).endswith(" (400)")
