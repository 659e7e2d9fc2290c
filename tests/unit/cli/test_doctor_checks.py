"""`doctor`: what the answers of the Hub mean for token, endpoint and repository."""

from __future__ import annotations

import pytest

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.doctor import Check, Health, endpoint_check, lines, repository_check, token_check, token_source

HERE = Destination("https://hub", "me/run")
OK, WARN, FAIL = Health.OK, Health.WARN, Health.FAIL


def who(role: str) -> dict[str, object]:
    """An answer to whoami."""
    return {"name": "me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": role}}}


@pytest.mark.parametrize(
    ("status", "fields", "source", "health", "words"),
    [
        (200, who("write"), "from HF_TOKEN", OK, "from HF_TOKEN: me, write"),
        (200, who("fineGrained"), "from /token", OK, "me, fineGrained"),
        (200, who("read"), "from /token", FAIL, "Run: hf auth login, with a token that may write"),
        (401, {"error": "no"}, "from HF_TOKEN", FAIL, "Mend HF_TOKEN"),
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
    assert words in next(lines([check]))


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
        (200, {"id": "other/run"}, "write", WARN, "of other"),
        (404, {"error": "no"}, "write", WARN, "The first push creates it"),
        (500, {}, "write", WARN, "Try again later"),
    ],
)
def test_a_repository_is_told_with_who_may_read_and_write(status, fields, role, health, words):
    """One that is not there yet is created by the first push."""
    check = repository_check(HERE, status, fields, who(role))
    assert check.health is health
    assert words in next(lines([check]))


def test_the_source_of_a_token_is_named_and_never_the_token(tmp_path):
    """The environment counts before the file."""
    environ = {"HF_HOME": str(tmp_path)}
    assert token_source(environ) == ""
    (tmp_path / "token").write_text("hf_secret")
    assert token_source(environ) == f"from {tmp_path / 'token'}"
    assert token_source(environ | {"HF_TOKEN": "hf_other"}) == "from HF_TOKEN"


def test_a_line_begins_with_its_health_and_ends_with_what_helps():
    """Aligned, so that a failure is seen."""
    found = list(lines([Check("disk", FAIL, "full", "Free space"), Check("versions", OK, "1")]))
    assert found == ["fail  disk      full. Free space", "ok    versions  1"]


def test_a_token_that_has_just_written_may_write():
    """Whoever the repository belongs to; a token that may only read now is named all the same."""
    seen = {"id": "others/run", "private": False}
    assert repository_check(HERE, 200, seen, who("write")).health is Health.WARN
    check = repository_check(HERE, 200, seen, who("write"), has_pushed=True)
    assert (check.health, check.text) == (Health.OK, "others/run, public, the last push from here has succeeded")
    assert repository_check(HERE, 200, seen, who("read"), has_pushed=True).health is Health.FAIL
