"""Checks of the Hub: token, endpoint, clock, repository. Two requests with short timeouts, whatever the Hub does.

A token goes only to the Hub of HF_ENDPOINT. A run that is recorded for another one is not asked about.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from hf_mpwriter.base.arguments.values import check_endpoint
from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import OFFLINE, Destination, is_offline
from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.cli.doctor.checks import Check, Health
from hf_mpwriter.cli.words import LOGIN, is_debugging, sentence
from hf_mpwriter.spool.causes import TABLE
from hf_mpwriter.system import hf_home, redaction
from hf_mpwriter.system.process import start_directory

SKEW = 60.0  # seconds between our clock and that of the Hub, from which on it is told
WRITES = ("write", "admin")  # roles of tokens that may write anywhere


def hub_checks(endpoint: str, destination: Destination | None, *, has_pushed: bool = False) -> Iterator[Check]:
    """What the Hub says."""
    if is_offline():
        yield Check("endpoint", Health.FAIL, f"{OFFLINE}: nothing is sent", "Unset it to upload")
        return
    try:
        check_endpoint(endpoint)  # before the client reads it, and fails
    except SettingsError as error:
        yield Check("endpoint", Health.FAIL, str(error).rstrip("."))
        return
    os.environ["HF_ENDPOINT"] = endpoint  # read when the client is imported
    if not is_debugging():
        os.environ["HF_HUB_VERBOSITY"] = "error"
    os.environ |= hf_home.settled(os.environ, start_directory(), hf_home.account_home())
    from hf_mpwriter.push.account import Account
    from hf_mpwriter.push.words import explained

    account, source = Account(endpoint), token_source(os.environ)
    try:
        reply = account.whoami()
    except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
        why, helps = explained(error, destination or Destination(endpoint, "user/repository"), os.environ)
        helps = sentence(helps) or "Is the network up, and HF_ENDPOINT right? Until then everything is kept"
        yield Check("endpoint", Health.FAIL, f"{endpoint}: {why}", helps)
        yield Check("token", Health.WARN, f"{source}; not asked" if source else "there is none; not asked")
        return
    yield endpoint_check(endpoint, reply.status, reply.fields)
    yield token_check(reply.status, reply.fields, source)
    if reply.date is not None:
        yield clock_check(time.time() - reply.date)
    if destination is None:
        return
    if not destination.is_at(endpoint):
        text = f"the run is recorded for {destination.endpoint}, so it was not asked"
        yield Check("repository", Health.WARN, text, f"If your token may go there: HF_ENDPOINT={destination.endpoint}")
        return
    try:
        seen = account.repository(destination)
    except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
        why, helps = explained(error, destination, os.environ)
        yield Check("repository", Health.FAIL, f"{destination.url}: {why}", sentence(helps) or "Try again later")
        return
    yield repository_check(destination, seen.status, seen.fields, reply.fields, has_pushed=has_pushed)


def token_source(environ: Mapping[str, str]) -> str:
    """Where the token comes from, "" if there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environ.get(name):
            return f"from {name}"
    path = hf_home.token_files(environ)[0]
    return f"from {path}" if redaction.known_tokens({**environ}) and os.path.isfile(path) else ""


def endpoint_check(endpoint: str, status: int, fields: Mapping[str, Any]) -> Check:
    """Whether a Hub answers there."""
    if status >= 500:
        return Check("endpoint", Health.FAIL, f"{endpoint}: the Hub fails ({status})", "Try again later")
    if status == 429:
        return Check("endpoint", Health.WARN, f"{endpoint}: too many requests (429)", "It passes by itself")
    if not fields:
        return Check("endpoint", Health.FAIL, f"{endpoint}: what answers is no Hub", "Look at HF_ENDPOINT and proxies")
    return Check("endpoint", Health.OK, f"{endpoint} answers")


def token_check(status: int, fields: Mapping[str, Any], source: str) -> Check:
    """Whose token it is, and what it may do."""
    if status in (401, 403) or (status == 200 and not fields.get("name")):
        text = f"{source}: {TABLE[Cause.TOKEN][0]} ({status})" if source else "there is none"
        return Check("token", Health.FAIL, text, f"Run: {LOGIN}" if "HF_TOKEN" not in source else "Mend HF_TOKEN")
    if status != 200:
        return Check("token", Health.WARN, f"{source or 'none'}; not known what it may do ({status})")
    role, name = role_of(fields), fields.get("name")
    text = f"{source or 'none is needed'}: {name}, {role or 'rights not told'}"
    if role == "read":
        return Check("token", Health.FAIL, f"{text} only", f"Run: {LOGIN}, with a token that may write")
    return Check("token", Health.OK, text)


def role_of(fields: Mapping[str, Any]) -> str:
    """What a token may do: read, write or fineGrained; "" if the Hub does not say."""
    auth = fields.get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    role = token.get("role") if isinstance(token, dict) else None
    return role if isinstance(role, str) else ""


def clock_check(ahead: float) -> Check:
    """Whether our clock is right."""
    if abs(ahead) < SKEW:
        return Check("clock", Health.OK, "as that of the Hub")
    way = "ahead of" if ahead > 0 else "behind"
    text = f"{abs(ahead):.0f} s {way} that of the Hub"
    return Check("clock", Health.WARN, text, "Set it: the times of curves, and signed URLs, depend on it")


def repository_check(
    destination: Destination,
    status: int,
    fields: Mapping[str, Any],
    who: Mapping[str, Any],
    *,
    has_pushed: bool = False,
) -> Check:
    """Whether the repository is there, who can read it, and whether the token may write."""
    name = destination.repo_id
    if status in (401, 403, 404):
        text = f"{name} is not there, or this token may not see it"
        return Check("repository", Health.WARN, text, "The first push creates it, if the token may")
    if status != 200:
        return Check("repository", Health.WARN, f"{name}: answer {status}", "Try again later")
    text = f"{fields.get('id') or name}, {'private' if fields.get('private') else 'public'}"
    if role_of(who) == "read":
        return Check("repository", Health.FAIL, f"{text}, this token may not write", f"Run: {LOGIN}")
    namespace, own = str(fields.get("id") or name).partition("/")[0], _namespaces(who)
    if has_pushed:
        return Check("repository", Health.OK, f"{text}, the last push from here has succeeded")
    if own and namespace not in own:
        return Check("repository", Health.WARN, f"{text}, of {namespace}", "Whether this token may write is not known")
    return Check("repository", Health.OK, f"{text}, this token may write" if role_of(who) in WRITES else text)


def _namespaces(who: Mapping[str, Any]) -> set[str]:
    orgs = who.get("orgs")
    names = [org.get("name") for org in orgs if isinstance(org, dict)] if isinstance(orgs, list) else []
    return {name for name in (who.get("name"), *names) if isinstance(name, str)}
