"""Every error of the Hub, of the network and of the environment, in real pushes: its verdict, and the recovery."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import os
import time

import pytest
from programs import wait_for
from pushing import NAME, Pushes, hits, is_as

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.base.verdicts import Cause, Done, Moved, Refused, Retry, Split, Unknown
from hf_mpwriter.push import classify, commit

pytest_plugins = ("pushing",)

NEVER_BUSY = "Cannot create repo: another conflicting operation is in progress"

TO_A_COMMIT = [  # the answer, the verdict, how often the commit is sent
    ("503 header=Retry-After:7", Unknown, {"after": 7.0}, 1),
    ("close", Unknown, {}, 1),
    ("200 body=<html>Welcome</html>", Unknown, {}, 1),
    ("200 message={}", Unknown, {}, 1),
    ("401 code=RepoNotFound", Refused, {"cause": Cause.NO_TOKEN}, 1),
    ("401 message='Invalid credentials in Authorization header'", Refused, {"cause": Cause.NO_TOKEN}, 1),
    ("403 message='You have read access only'", Refused, {"cause": Cause.RIGHTS}, 1),
    ("403 message='Private repository storage limit reached, please upgrade'", Refused, {"cause": Cause.STORAGE}, 1),
    ("404", Refused, {"cause": Cause.ENDPOINT}, 1),
    ("404 code=RepoNotFound", Retry, {"after": None}, 1),
    ("404 code=RevisionNotFound", Retry, {"after": None}, 1),
    ("409 message='Another commit operation is in progress for this repository.'", Retry, {"after": 3.0}, 1),
    ("412", Moved, {}, commit.MOVED_TRIES),
    (
        "429 message='rate limit for repository commits (128 per hour). Retry in about 1 hour.'",
        Retry,
        {"after": 3600.0},
        1,
    ),
    ("429 message='You have exceeded our hourly quotas for action: commit'", Retry, {"after": classify.QUOTA_WAIT}, 1),
    ("400", Split, {}, 2),  # the second time without the model card
    ("413", Split, {}, 2),
    ("400 message='LFS pointer pointed to a file that does not exist'", Retry, {"xet": "failing"}, 1),
]


@pytest.mark.parametrize(("answer", "kind", "fields", "sent"), TO_A_COMMIT, ids=lambda value: str(value)[:40])
def test_each_answer_to_a_commit_has_its_verdict_is_not_hammered_and_passes(hub, run, answer, kind, fields, sent):
    """The real client raises it; when the fault is over, the same batch arrives."""
    hub.fault(f"POST /commit/ {answer} times=0")
    verdict = run.push()
    assert is_as(verdict, kind, **fields), verdict
    assert hits(hub) == [sent]
    run.arrives(hub)


def refused_object(message: str) -> str:
    """The answer of an LFS batch request that refuses an object."""
    error = {"code": 422, "message": message}
    return json.dumps({"objects": [{"oid": "0" * 64, "size": 1, "error": error}]})


BEFORE_A_COMMIT = [
    ("GET /revision/ 503", Retry, {}, 1),
    ("GET /revision/ 401", Refused, {"cause": Cause.NO_TOKEN}, 1),
    ("GET /revision/ 200 body=<html>Welcome</html>", Retry, {}, 1),
    ("GET /revision/ 302 header=Location:/api/models/me/run/revision/main", Retry, {}, 21),
    ("POST /paths-info/ 500", Retry, {}, 1),
    ("POST /preupload/ 503", Retry, {}, 6),
    ("POST /preupload/ 503 header=Retry-After:3600", Retry, {"after": 3600.0}, 1),
    ("POST /preupload/ 429 'header=ratelimit:\"api\";r=0;t=300'", Retry, {"after": 301.0}, 1),
    ("POST /preupload/ 200 message=portal", Retry, {}, 1),
    ("POST /preupload/ 422", Split, {}, 2),
    ("objects/batch 200 message=portal", Retry, {}, 1),
    (f"objects/batch 200 'body={refused_object('Invalid object')}'", Split, {}, 2),
    (f"objects/batch 200 'body={refused_object('storage limit reached')}'", Refused, {"cause": Cause.STORAGE}, 1),
    ("PUT /lfs/ 403", Retry, {}, 1),  # an upload URL that is too old; no token could help
    ("PUT /lfs/ 500", Retry, {}, 6),
    ("PUT /lfs/ 413", Split, {}, 2),
    ("objects/verify 503", Retry, {}, 6),
]


@pytest.mark.parametrize(("fault", "kind", "fields", "asked"), BEFORE_A_COMMIT, ids=lambda value: str(value)[:40])
def test_whatever_fails_before_the_commit_has_a_known_outcome_and_passes(hub, run, fault, kind, fields, asked):
    """No content of ours can be on the Hub; the reason names the failure although the client wraps it."""
    hub.fault(f"{fault} times=0")
    verdict = run.push()
    assert is_as(verdict, kind, **fields), verdict
    assert "Error while uploading" not in verdict.reason
    assert hits(hub) == [asked]
    run.arrives(hub)


def test_a_date_in_retry_after_is_heeded_too(hub, run):
    """The date is by the server's own clock."""
    then = email.utils.formatdate(time.time() + 1800, usegmt=True)
    hub.fault(f"POST /preupload/ 429 'header=Retry-After:{then}' times=0")
    assert run.push().after == pytest.approx(1800, abs=30)
    assert hits(hub) == [1]


CREATING = [
    (f"409 message='{NEVER_BUSY}'", Retry, {"after": classify.BUSY_WAIT}),
    ("400", Refused, {"cause": Cause.REPOSITORY}),
    ("403", Refused, {"cause": Cause.RIGHTS}),
    ("503", Retry, {}),
    ("409", Retry, {}),  # without the URL of the existing repository
]


@pytest.mark.parametrize(("answer", "kind", "fields"), CREATING, ids=lambda value: str(value)[:40])
def test_a_repository_that_cannot_be_created_is_asked_for_once_and_created_later(hub, new, answer, kind, fields):
    """Even where the client would ask at once and for ever; none of it counts against the files."""
    hub.fault(f"POST /api/repos/create {answer} times=0")
    verdict = new.push()
    assert is_as(verdict, kind, **fields), verdict
    assert hits(hub) == [1]
    new.arrives(hub)


def test_what_exists_already_is_created_all_the_same(hub, run):
    """409 of the repository and of the branch: the first request has not seen the head (a cache, a race).

    A 404 without a code is one of the repository, too, as other Hubs answer.
    """
    where = dataclasses.replace(run.destination, revision="exp/1")
    assert isinstance(run.push(destination=where), Done)
    run.log()
    hub.fault("GET /revision/ 404 code=RevisionNotFound")
    assert isinstance(run.push(destination=dataclasses.replace(where, path_in_repo="other")), Done)
    assert hits(hub) == [1]
    run.log()
    hub.fault("GET /revision/ 404")
    assert isinstance(run.push(destination=dataclasses.replace(where, path_in_repo="third")), Done)
    assert hits(hub) == [1, 1]


# local


def test_a_file_that_vanished_or_shrank_since_its_snapshot_is_scanned_again(hub, run):
    """Nothing is sent and nothing is quarantined: the next snapshot has the right length."""
    hub.fault("POST /commit/ 500 times=0")
    os.truncate(run.root / NAME, run.length - 1)
    assert isinstance(run.push(), Retry)
    os.unlink(run.root / NAME)
    assert isinstance(run.push(), Retry)
    assert hits(hub) == [0]


# hangs


@pytest.fixture(scope="module")
def hasty(running):
    """Pushes whose requests time out after some seconds, in which a slow Hub answers what does not hang."""
    made = Pushes(running.endpoint, "from hf_mpwriter.push import transport\ntransport._LIMITS['read'] = 5.0\n")
    yield made
    made.end()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_that_hangs_is_ended_and_found_or_sent_again(hub, run, hasty, when):
    """Its outcome is unknown; the push reads back whether it was applied, and sends no content twice."""
    hub.fault(f"POST /commit/ hang when={when} times=0")
    assert is_as(hasty.verdict(run.job({})), Unknown)
    if when == "before":
        hub.clear_faults()
    wait_for(lambda: run.is_there(hub), "the late commit")
    hub.clear_faults()
    assert is_as(run.push(), Done, own=False)


@pytest.mark.parametrize("where", ["GET /revision/", "POST /paths-info/", "POST /api/repos/create"])
def test_a_request_without_a_timeout_of_its_own_is_ended(hub, new, hasty, where):
    """The client passes None for some requests; nothing has been sent yet."""
    if "create" not in where:
        new.arrives(hub)
        new.log()
    hub.fault(f"{where} hang times=0")
    changes = {"destination": dataclasses.replace(new.destination, path_in_repo="other")}
    assert is_as(hasty.verdict(new.job(changes)), Retry)
    assert hits(hub) == [1]


SHORT = """
from hf_mpwriter.push import clock, job
job.DEADLINE_BASE, job.DEADLINE_RATE, clock.SENDS_EVERY = 1.5, 1e12, 0.1
"""


def test_a_push_outlives_its_time_while_its_content_goes(hub, run, running):
    """A slow line carries 50 GB in the end: the time of a push begins anew while the Hub takes content."""
    short = Pushes(running.endpoint, SHORT)
    with open(run.root / NAME, "r+b") as file:
        run.length = file.truncate(24 << 20)  # more than waits in the buffers of both
    hub.fault("PUT /lfs/ slow seconds=3 when=arrive")
    began = time.monotonic()
    assert is_as(short.verdict(run.job({})), Done)
    assert time.monotonic() - began > 2.5
    short.end()


@pytest.mark.parametrize(("where", "kind"), [("GET /revision/", Retry), ("POST /commit/", Unknown)])
def test_an_answer_that_unpacks_to_a_gigabyte_takes_no_memory_and_says_so(hub, run, pushes, where, kind):
    """One megabyte of gzip: it is not unpacked as a whole, the reason names it, and it passes with the fault."""
    hub.fault(f"{where} bomb size=1024 when=after")
    verdict = run.push()
    assert is_as(verdict, kind)
    assert "longer than any answer" in verdict.reason
    assert pushes.peak < 400_000
    assert hits(hub) == [1]
    hub.clear_faults()
    assert is_as(run.push(), Done)


def test_a_long_answer_that_is_none_too_long_is_read(hub, run):
    """A packed answer within the bound is what the Hub has sent."""
    hub.fault("POST /paths-info/ bomb size=31")
    verdict = run.push()
    assert "longer" not in str(verdict)
    hub.clear_faults()
    assert is_as(run.push(), Done)


def test_an_answer_in_a_packing_that_was_not_asked_for_is_refused(hub, run):
    """The client could unpack some of them, without a bound."""
    hub.fault("GET /revision/ 200 header=Content-Encoding:br body=x")
    verdict = run.push()
    assert is_as(verdict, Retry)
    assert "packed by 'br'" in verdict.reason


# Xet


@pytest.fixture(scope="module")
def by_xet(running):
    """Pushes by Xet that give up soon."""
    env = {"HF_HUB_DISABLE_XET": "0", "HF_XET_CLIENT_READ_TIMEOUT": "5s"}
    env |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    made = Pushes(running.endpoint, env=env)
    yield made
    made.end()


XET = [
    ("xet-write-token 401", Refused, {"cause": Cause.TOKEN}),
    ("xet-write-token 404", Done, {"own": True}),  # there is none: the same push goes by LFS
    ("xet-write-token 429", Retry, {"xet": "", "after": classify.RATE_WAIT}),
    ("xet-write-token 503", Retry, {"xet": "failing"}),
    ("xet-write-token hang", Retry, {"xet": "failing"}),
    ("/v1/xorbs close", Retry, {"xet": "failing"}),
    ("/v1/xorbs 403", Refused, {"cause": Cause.TOKEN}),
    ("/shards 500", Retry, {"xet": "failing"}),
]


@pytest.mark.parametrize(("fault", "kind", "fields"), XET)
def test_what_fails_in_the_xet_storage_is_recognised_and_lfs_works(hub, run, by_xet, fault, kind, fields):
    """Its errors are Python builtins with the status in the text only. Nothing is committed yet."""
    hub.fault(f"{fault} times=0")
    verdict = by_xet.verdict(run.job({"xet": True}))
    assert is_as(verdict, kind, **fields), verdict
    assert is_as(run.push(), Done), "by LFS, while Xet still fails"
    assert run.on_hub(hub) == (run.root / NAME).read_bytes()


# the environment of a push


ENVIRONMENTS = [
    ({"HF_HUB_OFFLINE": "1"}, Refused, {"reason": OFFLINE}),
    ({"HF_TOKEN": "hf_\u201cpasted\u201d"}, Refused, {"cause": Cause.TOKEN}),
    ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}, Retry, {}),
    ({"HTTP_PROXY": "gopher://127.0.0.1:9", "NO_PROXY": ""}, Refused, {"cause": Cause.CLIENT}),
    ({"SSL_CERT_FILE": "/nonexistent/ca.pem"}, Refused, {"cause": Cause.CLIENT}),
]


@pytest.mark.parametrize(("env", "kind", "fields"), ENVIRONMENTS, ids=str)
def test_an_environment_in_which_no_push_can_work_blames_no_file_and_reaches_no_hub(hub, run, env, kind, fields):
    """Offline by choice, a token that was pasted with its quotes, invalid proxies and certificates."""
    hub.fault("/ 500 times=0")
    verdict = run.push_from_scratch(env)
    assert is_as(verdict, kind, **fields), verdict
    assert hits(hub) == [0]


@pytest.mark.parametrize("endpoint", ["http://nonexistent.invalid", "https://127.0.0.1:{port}"])
def test_an_endpoint_that_does_not_answer_is_tried_again(hub, run, endpoint):
    """An unknown host, TLS to a server without it; what cannot be a URL is no destination."""
    where = dataclasses.replace(run.destination, endpoint=endpoint.format(port=hub.port))
    verdict = run.push_from_scratch({}, destination=where)
    assert is_as(verdict, Retry), verdict
