"""What the user reads of a failure: a sentence with the cure, and nothing of the client's text."""

from __future__ import annotations

import errno
import socket
import ssl

import httpx2
import pytest
from huggingface_hub import errors as hf

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.push.classify import AnswerError, BusyError, ClientError, classify, plain
from hf_mpwriter.push.commit import note
from hf_mpwriter.spool.causes import TABLE, words
from hf_mpwriter.spool.status import UploaderStatus

HUB = Destination("https://hub.example", "me/run")
LOUD = "the client's own text https://hub.example/api?x=1"


def http(status: int, *, token: bool = True, said: str = "", kind: type = hf.HfHubHTTPError) -> Exception:
    """An answer of the Hub, as the client raises it."""
    headers = {"authorization": "Bearer x"} if token else {}
    request = httpx2.Request("POST", "https://hub.example/api/models/me/run/commit/main", headers=headers)
    return kind(LOUD, response=httpx2.Response(status, request=request), server_message=said or None)


def caused(outer: Exception, inner: BaseException) -> Exception:
    """`raise outer from inner`."""
    outer.__cause__ = inner
    return outer


def said_of(error: Exception, **environ: str) -> str:
    """What is said of an error, with what helps."""
    verdict = plain(error, HUB, environ)
    assert type(verdict) is type(classify(error))
    return UploaderStatus(reason=verdict.reason, hint=getattr(verdict, "hint", "")).why


OTHER = "set HF_TOKEN, or the token that the writer is given, to one that"
LOGIN = "run `hf auth login`"
REFUSALS = [
    (http(401), {}, f"token refused (401): {LOGIN}"),
    (http(401), {"HF_TOKEN": "hf_x"}, f"token refused (401): {OTHER} is valid"),
    (http(401), {"HUGGING_FACE_HUB_TOKEN": "hf_x"}, f"token refused (401): {OTHER} is valid"),
    (http(401, token=False), {}, f"no token (401): {LOGIN}"),
    (hf.LocalTokenNotFoundError("x"), {}, f"no token: {LOGIN}"),
    (http(403), {}, f"the token lacks rights to me/run (403): {LOGIN} with a token that may write"),
    (
        http(403),
        {"HF_TOKEN": "hf_x"},
        f"the token lacks rights to me/run (403): {OTHER} may write",
    ),
    (
        http(402),
        {},
        "the storage of the account is used up (402): see https://huggingface.co/settings/billing",
    ),
    (
        http(404),
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
    (http(503), "the Hub fails (503)"),
    (http(429), "the rate limit of the Hub is reached (429): a larger commit_every needs fewer commits"),
    (http(409), "the Hub is busy with another commit (409)"),
    (http(412), "others commit to me/run all the time (412)"),
    (
        http(404, kind=hf.RepositoryNotFoundError),
        "me/run, or its branch main, is not found (404): check repo_id and repo_revision",
    ),
    (
        caused(CONNECT, socket.gaierror(-2, LOUD)),
        "the name of https://hub.example is not known (DNS): check the network",
    ),
    (
        caused(httpx2.ConnectError(LOUD), ConnectionRefusedError(111, LOUD)),
        "the Hub cannot be reached at https://hub.example: check the network",
    ),
    (
        caused(httpx2.ConnectError(LOUD), ssl.SSLCertVerificationError(LOUD)),
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
    assert said_of(http(400, said="not like\n this")) == "the Hub refuses it (400: not like this)"
    assert said_of(http(422)) == "the Hub refuses it (422)"
    assert said_of(http(413, said="whatever")) == "it is too large for the Hub (413)"
    token = "hf_" + 30 * "A"
    assert token not in said_of(http(400, said=f"Bearer {token}"))
    assert len(said_of(http(400, said=1000 * "x"))) < 300
    half = http(422, said="x" * 185 + " hf_" + "A" * 34, kind=hf.BadRequestError)
    assert "hf_A" not in said_of(half), "it is cut after the secrets have gone"


def test_a_name_with_braces_breaks_nothing():
    """Texts are filled in once."""
    error = http(403)
    odd = Destination("https://hub.example", "me/run", revision="{endpoint}")
    assert "me/run" in plain(error, odd, {}).reason
    error = http(404, kind=hf.RepositoryNotFoundError)
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
