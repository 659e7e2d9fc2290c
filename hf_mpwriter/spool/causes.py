"""Causes: what is said of each cause of failure, and what helps. All that speaks of a failure takes it from here.

    Cause.DNS     the name of {endpoint} is not known (DNS)     check the network
    Cause.TOKEN   token refused                                 run `hf auth login`

A status of HTTP stands behind the words: `token refused (401)`. Where the words end and the cure begins is seen by its
first letter: `words: cure`, `words. Cure`.

Invariants:
- A token of the environment counts before that of `hf auth login`, so then it is the one to be replaced.
- No token is judged that was not tried: who looks at a run later may have another one than its uploader.
"""

from __future__ import annotations

from collections.abc import Mapping

from hf_mpwriter.base.settings import OFFLINE, Destination
from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.redaction import VARIABLES

LOGIN = "run `hf auth login`"
SET = "set HF_TOKEN, or the token that the writer is given, to one that {}"
UNLESS = "unless HF_TOKEN here is another one than the run had, set it to one that {}"
_HUB = "Is HF_ENDPOINT a Hugging Face Hub, and is a proxy in between?"
_TOKEN = (Cause.NO_TOKEN, Cause.TOKEN, Cause.RIGHTS)

TABLE: dict[Cause, tuple[str, str]] = {
    Cause.OTHER: ("it is not known why ({detail})", ""),
    Cause.DNS: ("the name of {endpoint} is not known (DNS)", "check the network"),
    Cause.UNREACHABLE: ("the Hub cannot be reached at {endpoint}", "check the network"),
    Cause.TIMEOUT: ("{endpoint} does not answer in time", "check the network"),
    Cause.BROKEN: ("{endpoint} has ended the connection", ""),
    Cause.CERTIFICATE: ("the certificate of {endpoint} is not trusted", "check SSL_CERT_FILE"),
    Cause.PROXY: ("the proxy gives no connection to {endpoint}", "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"),
    Cause.CLIENT: (
        "no connection can be made with these proxies and certificates",
        "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
    ),
    Cause.OFFLINE: (OFFLINE, "unset HF_HUB_OFFLINE to upload"),
    Cause.NOT_A_HUB: ("the answer is not that of a Hub", _HUB),
    Cause.ENDPOINT: ("{endpoint} does not answer as a Hub does", _HUB),
    Cause.HUB: ("the Hub fails", ""),
    Cause.XET: ("the Xet storage of the Hub fails", "if that lasts, LFS takes its place"),
    Cause.BUSY: ("the Hub is busy with another commit", ""),
    Cause.LIMITED: ("the rate limit of the Hub is reached", "a larger commit_every needs fewer commits"),
    Cause.MOVED: ("others commit to {repo_id} all the time", ""),
    Cause.NOT_FOUND: (
        "{repo_id}, or its branch {revision}, is not found",
        "check repo_id and repo_revision",
    ),
    Cause.REPOSITORY: ("the Hub takes no such repository or branch", "Check repo_id, repo_type and repo_revision."),
    Cause.NO_TOKEN: ("no token", LOGIN),
    Cause.TOKEN: ("token refused", LOGIN),
    Cause.RIGHTS: ("the token lacks rights to {repo_id}", f"{LOGIN} with a token that may write"),
    Cause.VISIBILITY: ("the repository is public", "make it private, or log without repo_private=True"),
    Cause.STORAGE: ("the storage of the account is used up", "see https://huggingface.co/settings/billing"),
    Cause.CONTENT: ("the Hub refuses it", ""),
    Cause.TOO_LARGE: ("it is too large for the Hub", ""),
    Cause.DISK_FULL: ("the disk is full", "free some space"),
    Cause.DISK_QUOTA: ("the quota of the disk is used up", "free some space"),
    Cause.DISK: ("this disk fails: {detail}", ""),
}


def words(cause: Cause, destination: Destination, status: int | None = None, detail: str = "") -> str:
    """What is said of a cause."""
    text = TABLE[cause][0].format_map(vars(destination) | {"detail": detail})
    return f"{text} ({status})" if status else text


def cure(cause: Cause, environ: Mapping[str, str]) -> str:
    """What helps against a cause, "" if only time does."""
    if cause not in _TOKEN or not _has_variable(environ):
        return TABLE[cause][1]
    return SET.format(_wanted(cause))


def cure_here(cause: Cause | None, hint: str, failed_at: float, environ: Mapping[str, str]) -> str:
    """What helps where another uploader would be started, "" if that one has a token that was not tried.

    `hint`, `failed_at` (unix time): what the last uploader has found out, with the tokens of its own environment.
    """
    if cause not in _TOKEN:
        return hint
    changed_at = hf_home.token_stamp(environ)[1] / 1e9  # of the file, 0 without one
    tried_variable = cause is not Cause.NO_TOKEN and hint != TABLE[cause][1]
    if _has_variable(environ):
        return UNLESS.format(_wanted(cause)) if tried_variable else ""
    is_untried = changed_at > 0 if tried_variable or cause is Cause.NO_TOKEN else changed_at > failed_at
    return "" if is_untried else hint


def _has_variable(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name) for name in VARIABLES)


def _wanted(cause: Cause) -> str:
    return "may write" if cause is Cause.RIGHTS else "is valid"
