"""`hf-mpwriter doctor`: a line for each check.

    versions      of the package, Python and the libraries that matter
    endpoint      whether a Hub answers, in one request with a short timeout
    token         where it comes from, whose it is, what it may do
    repository    of the run in LOGDIR, in one more request
    disk          what is free
    filesystem    of LOGDIR
    storage       how a run there is kept, or would be, and why
    files         where its event files and its spool are
    uploader      what it does, if one runs

Exit codes: 0 if nothing fails, 4 if something does: a person is needed. 1 where a writer would refuse to begin a run.

A forked child looks at disks, then asks the Hub. It tells each check, and before what may hang what it looks at.

Invariants:
- It answers within five seconds, whatever hangs: a mount, the name service, a server that sends a byte a second. What
  is looked at then is the check that fails.
- A token goes only to the Hub of HF_ENDPOINT. A run that is recorded for another one is not asked about.
- No run directory but LOGDIR is looked at: another one may be on a mount that hangs.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click

from hf_mpwriter._version import __version__
from hf_mpwriter.base.arguments import check_endpoint
from hf_mpwriter.base.errors import HfMpWriterError, SettingsError
from hf_mpwriter.base.settings import OFFLINE, Destination, Environment, is_offline
from hf_mpwriter.base.storage import Layout, Storage, is_url, normalised_logdir
from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.base.words import sentence, size_text
from hf_mpwriter.cli.forked import Forked, Tell
from hf_mpwriter.cli.runs import examples, prepare_client, storage_at
from hf_mpwriter.cli.status import daemon_text
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.causes import TABLE
from hf_mpwriter.spool.layout import Spool, no_directory, unwritable
from hf_mpwriter.spool.storage import spool_of
from hf_mpwriter.system import hf_home, redaction
from hf_mpwriter.system.filesystem import find_mount, is_gone, nearest, reason_of
from hf_mpwriter.system.redaction import printable

LOGIN = "hf auth login"
FAILS = 4  # exit code
LIMIT = 4.2  # seconds; with the start of the command, five
ORDER = (
    "versions",
    "endpoint",
    "token",
    "repository",
    "run",
    "disk",
    "filesystem",
    "storage",
    "staging",
    "files",
    "uploader",
)
LIBRARIES = ("huggingface_hub", "tensorboardX", "filelock", "psutil")
LITTLE, NOTHING = 1e9, 50e6  # bytes that are free on a disk
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # the first one that is set counts
WRITES = ("write", "admin")  # roles of tokens that may write anywhere
KEPT = {
    Layout.DIRECT: "direct: all processes and hosts share the logdir and what is in it",
    Layout.LOCAL_SPOOL: "local spool: each host uploads what its own processes log",
    Layout.STAGED: "staged: written on this host, and copied to the logdir when a segment is complete",
}


class Health(enum.Enum):
    """Whether something is well; `fail` keeps uploads from working."""

    LOOK = "look"  # what is found comes next
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was found."""

    name: str  # what was looked at
    health: Health  # whether it is well
    text: str  # what was found
    cure: str = ""  # what helps, "" if nothing has to

    def __str__(self) -> str:
        cure = f". {self.cure}" if self.cure else ""
        return printable(f"{self.health.value:<4}  {self.name:<10}  {self.text}{cure}")


@click.command("doctor", epilog=examples("doctor", "doctor runs/exp1    also its run and its filesystem"))
@click.argument("directory", metavar="[LOGDIR]", required=False)
def examine(directory: str | None) -> None:
    """Find what keeps uploads from working: token, Hub, disk.

    With LOGDIR also its repository, its filesystem, and how a run there would be kept. It need not exist
    yet, and may be a URL. Each line begins with ok, warn or fail, and ends with what helps. Ends within five seconds.

    Exit code 0: nothing fails; 1: no run can be kept in LOGDIR; 4: something fails.
    """
    logdir = None if directory is None else normalised_logdir(directory)
    checks = _found(Forked(functools.partial(_look, logdir), LIMIT))
    for check in sorted(checks, key=lambda one: ORDER.index(one.name)):
        click.echo(str(check))
    click.get_current_context().exit(FAILS if any(check.health is Health.FAIL for check in checks) else 0)


def _look(logdir: str | None, tell: Tell) -> None:
    for check in _checks(logdir):
        tell(check)


def _found(child: Forked) -> list[Check]:
    """What a child finds in its time; else what it looks at is a check that failed."""
    found, looks = list[Check](), list[Check]()
    for check in child.told():
        (looks if check.health is Health.LOOK else found).append(check)
    return found if child.code == 0 else [*found, *(replace(look, health=Health.FAIL) for look in looks[-1:])]


def _checks(logdir: str | None) -> Iterator[Check]:
    """All checks; where no run can be begun, what a writer raises."""
    yield versions_check()
    place = logdir or os.getcwd()
    yield Check("disk", Health.LOOK, f"{printable(place)}: no answer", "A mount may hang there")
    if logdir is not None and not is_url(logdir) and os.path.lexists(logdir) and not os.path.isdir(logdir):
        raise click.ClickException(f"{printable(logdir)} is not a directory. Give the logdir of a run.")
    destination, has_pushed = None, False
    storage = None if logdir is None else _storage(logdir)
    if storage is None:
        yield disk_check(place)
    else:
        try:
            spool = spool_of(storage)
            destination, has_pushed, uploader = _destination(spool), _has_pushed(spool), _uploader(spool)
            yield from [uploader] if uploader else []
        except (HfMpWriterError, OSError) as error:
            yield Check("run", Health.FAIL, str(error))
        yield from map(disk_check, on_different_disks(storage.run_dir, storage.spool))
        yield from storage_checks(storage)
    endpoint = Environment.read().endpoint
    yield Check("endpoint", Health.LOOK, f"{endpoint}: no answer within five seconds", "Check the network")
    yield from hub_checks(endpoint, destination, has_pushed=has_pushed)


def _destination(spool: Spool) -> Destination | None:
    """Where a run goes, with the full name of the repository; None if there is no run, or a local one."""
    if not spool.exists() or (recorded := spool.destination()) is None:
        return None
    ledger = HubSink(spool).ledger()
    return recorded.resolved(ledger.repo_id if ledger else "")


def _uploader(spool: Spool) -> Check | None:
    """What the uploader of a run does; None if none runs."""
    if not spool.exists() or not (hub := HubSink(spool)).is_alive():
        return None
    status, now = hub.status(), time.time()
    health = Health.WARN if status.stillness(now) else Health.OK
    return Check("uploader", health, daemon_text(status, now, is_alive=True))


def _has_pushed(spool: Spool) -> bool:
    """Whether the last push of a run from this machine has succeeded."""
    status = HubSink(spool).status()
    is_here = status.process is None or not status.process.place
    return status.succeeded_at > 0 and not status.kind and is_here


def versions_check() -> Check:
    """The versions of what matters."""
    found = [f"hf-mpwriter {__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return Check("versions", Health.OK, ", ".join(found))


def on_different_disks(*paths: str) -> list[str]:
    """The first one of each disk; what cannot be asked is one of its own."""
    found: dict[object, str] = {}
    for path in paths:
        disk: object = path
        with contextlib.suppress(OSError):
            disk = os.stat(nearest(path)[0]).st_dev
        found.setdefault(disk, path)
    return list(found.values())


def disk_check(path: str) -> Check:
    """How much is free where a run is kept."""
    try:
        status = os.statvfs(nearest(path)[0])
    except OSError as error:
        cure = "" if is_gone(error) else "Give another logdir"
        return Check("disk", Health.FAIL, f"{path}: {reason_of(error)}", cure)
    free = status.f_bavail * status.f_frsize
    text = f"{size_text(free)} free for {path}"
    if free < NOTHING or (status.f_files and not status.f_favail):
        return Check("disk", Health.FAIL, text, "Free space: what the disk refuses waits in memory")
    return Check("disk", Health.WARN if free < LITTLE else Health.OK, text, "Free space" if free < LITTLE else "")


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
    prepare_client(endpoint)
    from hf_mpwriter.push.classify import explained
    from hf_mpwriter.push.client import Account

    asked = Destination(endpoint, "user/repository")
    try:
        account = Account(endpoint)
        who = account.whoami()
        yield endpoint_check(endpoint, who.status, who.fields)
        yield token_check(who.status, who.fields, token_source(os.environ))
        if destination is not None and destination.is_at(endpoint):
            asked = destination
            seen = account.repository(destination)
            yield repository_check(destination, seen.status, seen.fields, who.fields, has_pushed=has_pushed)
        elif destination is not None:
            text = f"the run is recorded for {destination.endpoint}, so it was not asked"
            cure = f"If your token may go there: HF_ENDPOINT={destination.endpoint}"
            yield Check("repository", Health.WARN, text, cure)
    except Exception as error:  # noqa: BLE001 - every error of the client has a verdict
        why, helps = explained(error, asked, os.environ)
        cure = sentence(helps) or "Is the network up, and HF_ENDPOINT right? Until then nothing is uploaded"
        yield Check("endpoint", Health.FAIL, f"{endpoint}: {why}", cure)


def token_source(environ: Mapping[str, str]) -> str:
    """Where the token comes from, "" if there is none."""
    for name in TOKEN_VARIABLES:
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
        return Check("token", Health.FAIL, text, _other_token(source))
    if status != 200:
        return Check("token", Health.WARN, f"{source or 'none'}; not known what it may do ({status})")
    role, name = role_of(fields), fields.get("name")
    text = f"{source or 'none is needed'}: {name}, {role or 'rights not told'}"
    if role == "read":
        return Check("token", Health.FAIL, f"{text} only", _other_token(source, " that may write"))
    return Check("token", Health.OK, text)


def _other_token(source: str, which: str = "") -> str:
    """How to use another token: a variable overrides a login."""
    name = next((name for name in TOKEN_VARIABLES if source.startswith(f"from {name}")), "")
    if name:
        return f"Set {name} to a token{which or ' that is valid'}"
    return f"Run: {LOGIN}" + (f", with a token{which}" if which else "")


def role_of(fields: Mapping[str, Any]) -> str:
    """What a token may do: read, write or fineGrained; "" if the Hub does not say."""
    found: Any = fields
    for key in ("auth", "accessToken", "role"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


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
        return Check(
            "repository", Health.WARN, f"{text}, of another account", "Whether this token may write is not known"
        )
    return Check("repository", Health.OK, f"{text}, this token may write" if role_of(who) in WRITES else text)


def _namespaces(who: Mapping[str, Any]) -> set[str]:
    orgs = who.get("orgs")
    names = [org.get("name") for org in orgs if isinstance(org, dict)] if isinstance(orgs, list) else []
    return {name for name in (who.get("name"), *names) if isinstance(name, str)}


def storage_checks(storage: Storage) -> Iterator[Check]:
    """The filesystem of a logdir, and how a run there is kept, or would be."""
    if not is_url(storage.logdir):
        mount, health, trouble = find_mount(storage.logdir), Health.OK, ""
        about = f"{mount.fstype} of {mount.source} at {mount.point}: {mount.kind.value}" if mount else "not known"
        try:
            nearest(storage.logdir)
        except OSError as error:
            health, trouble = Health.FAIL, f"; {reason_of(error)}"
        yield Check("filesystem", health, f"{about}{trouble}")
    why = storage.why or "files can grow in place there, and locks and modes work"
    yield Check("storage", Health.OK, f"{KEPT[storage.layout]}, because {why}")
    if told := f"{storage.refused} {storage.lost}".strip():
        yield Check("staging", Health.WARN, told.rstrip("."))
    yield Check("files", Health.OK, f"event files in {storage.run_dir}, the spool is {storage.spool}")


def _storage(logdir: str) -> Storage:
    """How a run is kept, or would be; where none can be begun, what a writer raises."""
    storage = storage_at(logdir)
    if storage.layout is not Layout.STAGED and not spool_of(storage).exists():
        _try_directory(storage.run_dir)
    return storage


def _try_directory(path: str) -> None:
    """Make and remove a directory where a run directory, or a spool in it, would be made."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".hf_mpwriter-try-{os.geteuid()}-", dir=nearest(path)[0]))
    except NotADirectoryError as error:
        raise no_directory(path, error) from error
    except OSError as error:
        raise unwritable(path, error) from error
