"""Settings: where a run goes, how it goes there, and the one reader of the environment.

    Destination    where a run goes; written once, into run.json
    Settings       how it goes there; in the member file of each worker, and the newest living worker wins
    Environment    the variables below

Environment:

    HF_ENDPOINT                     URL of the Hub, https://huggingface.co if not set
    HF_TOKEN, HF_HOME               read by huggingface_hub in the push
    HF_HUB_OFFLINE                  1: nothing is sent, and no process waits for the Hub
    HF_MPWRITER_DISABLED            1: a writer is local only, and nothing is uploaded
    HF_MPWRITER_EXIT_TIMEOUT        seconds that no wait at the end of a process exceeds; `hf-mpwriter run` sets it
    HF_MPWRITER_COMMITS_PER_HOUR    to one repository, by all runs of a user on a host; 100 if not set
    HF_MPWRITER_NODES               of the job, if its launcher does not tell; read by base/job.py
    HF_MPWRITER_LOGDIR              the run directory of a writer without one
    HF_MPWRITER_STAGING             where runs are kept on their way to a logdir, or `never`; read by base/storage.py
    HF_MPWRITER_LIVE                1, or a bucket: event files go there within seconds, see `live_bucket`
    HF_MPWRITER_SYSTEM_METRICS      1: what the machine does is logged too, see `Settings`
    HF_MPWRITER_SUPERVISOR          set by `hf-mpwriter run`, see system/contact.py
    HF_MPWRITER_PYTHON              the Python of uploaders and pushes without `sys.executable`; see system/launch.py
    HF_MPWRITER_FAILPOINT           faults for tests, see system/failpoints.py
    HF_MPWRITER_TIMING              shorter waits for tests; read by base/timing.py
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from hf_mpwriter.base.arguments import check_endpoint, switch
from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.names import is_attachment, is_embedding, is_hidden, is_loss, name_on_hub
from hf_mpwriter.system.interrupts import ours, suppress

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_ALLOW_PATTERNS = ("*.tfevents.*",)
DEFAULT_COMMIT_EVERY = 5.0  # minutes, as in huggingface_hub
DEFAULT_EXIT_TIMEOUT = 60.0  # seconds
DEFAULT_COMMITS_PER_HOUR = 100.0  # the Hub refuses more than 128 per repository, as measured
SECONDS = "It is a number of seconds, 0 or more."
OFFLINE = "HF_HUB_OFFLINE is set"
REPO_TYPES = ("model", "dataset", "space")

PREFIX = "HF_MPWRITER_"
SWITCHES = frozenset(PREFIX + name for name in ("DISABLED", "SYSTEM_METRICS"))
VARIABLES = SWITCHES | {
    PREFIX + name
    for name in (
        *("COMMITS_PER_HOUR", "EXIT_TIMEOUT", "LIVE", "LOGDIR", "NODES", "PYTHON"),
        *("REPO_ID", "REPO_PRIVATE", "STAGING"),
        "SUPERVISOR",  # set by `hf-mpwriter run`
        *("FAILPOINT", "LOCALHUB_TOKEN"),  # for tests, also of users
        *("SABOTAGED", "SOAK", "SOAK_HUB", "TEST_LOCK_CHECK", "TIMING"),  # for tests and proofs of this package
    )
}
ON, OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

# The rule of huggingface_hub/utils/_validators.py, copied so that training does not load the client.
_REPO_ID = re.compile(r"(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)

_UNNAMEABLE = re.compile(r"[^\w.]+|\.\.+", re.ASCII)  # what no name has


def check_repo_id(repo_id: object, name: str = "repo_id") -> str:
    """Check the id of a repository, or of a bucket, which has another name; the same id."""
    if not isinstance(repo_id, str):
        raise SettingsError(f"{name} is {repo_id!r}, but must be a string.", hint="Use 'name' or 'namespace/name'.")
    if not _REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise SettingsError(
            f"{name} {repo_id!r} is not valid.",
            hint="Use 'name' or 'namespace/name' of letters, digits, '-', '_' and '.', at most 96 characters, "
            "without '--', '..' or '.git' at the end.",
        )
    return repo_id


def typed_repo_id(text: str) -> tuple[str, str]:
    """The type and the id of a repository as the Hub writes it: `me/run` is a model, `datasets/me/run` a dataset."""
    kind = next((kind for kind in REPO_TYPES if text.startswith(f"{kind}s/")), "model")
    return kind, check_repo_id(text.removeprefix(f"{kind}s/"))


@dataclass(frozen=True)
class Destination:
    """Where a run goes: one folder of one branch of one repository."""

    endpoint: str  # URL of the Hub
    repo_id: str  # repository, with or without a namespace
    repo_type: str = "model"  # `model`, `dataset` or `space`
    revision: str = "main"  # branch
    path_in_repo: str = ""  # folder in the repository, "" for its root; see `name_on_hub`

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise SettingsError(f"{field.name} is {getattr(self, field.name)!r}, but must be a string.")
        check_repo_id(self.repo_id)
        if self.repo_type not in REPO_TYPES:
            raise SettingsError(f"repo_type is {self.repo_type!r}.", hint=f"Use one of {', '.join(REPO_TYPES)}.")
        check_endpoint(self.endpoint)
        object.__setattr__(self, "path_in_repo", name_on_hub(self.path_in_repo))
        if ".." in self.path_in_repo.split("/"):
            raise SettingsError(f"path_in_repo {self.path_in_repo!r} leads out of the repository.")

    def path(self, relative: str) -> str:
        """Path in the repository of a file of the run directory."""
        return f"{self.path_in_repo}/{relative}" if self.path_in_repo else relative

    def is_same(self, other: Destination) -> bool:
        """Whether both are one place, even if the URL of the Hub is written in another way."""
        return self.is_at(other.endpoint) and self == dataclasses.replace(other, endpoint=self.endpoint)

    def is_at(self, endpoint: str) -> bool:
        """Whether the Hub is that of a URL, however it is written: a token belongs to one Hub."""
        return normalised_endpoint(self.endpoint) == normalised_endpoint(endpoint)

    def can_be(self, repo_id: str) -> bool:
        """Whether this is the full name of the repository, as far as names tell; the Hub adds a namespace."""
        return repo_id == self.repo_id or ("/" not in self.repo_id and repo_id.endswith(f"/{self.repo_id}"))

    def resolved(self, repo_id: str) -> Destination:
        """The same with the full name of its repository, if this is one."""
        try:
            return dataclasses.replace(self, repo_id=repo_id) if self.can_be(repo_id) else self
        except ours(SettingsError):
            return self

    @property
    def url(self) -> str:
        """The page of the folder on the Hub; it opens once a push has made it, if the repository has its full name."""
        branch, folder = _quoted(self.revision, kept=""), _quoted(self.path_in_repo)
        return f"{self.repository_url(self.repo_id)}/tree/{branch}/{folder}".rstrip("/")

    def repository_url(self, repo_id: str) -> str:
        """The page of the repository on the Hub, by its full name."""
        return f"{self.endpoint.rstrip('/')}/{self._kind}{repo_id}"

    def commit_url(self, commit: str) -> str:
        """The page of a commit on the Hub."""
        return f"{self.repository_url(self.repo_id)}/commit/{_quoted(commit)}"

    @property
    def typed_repo_id(self) -> str:
        """The repository as it is typed: `me/run`, `datasets/me/run`."""
        return f"{self._kind}{self.repo_id}"

    @property
    def _kind(self) -> str:
        return "" if self.repo_type == "model" else f"{self.repo_type}s/"

    def __str__(self) -> str:
        """`endpoint/[datasets/]repo@branch/folder`."""
        return f"{self.endpoint}/{self._kind}{self.repo_id}@{self.revision}/{self.path_in_repo}".rstrip("/")


def _quoted(text: str, kept: str = "/") -> str:
    from urllib.parse import quote  # here: training imports this module

    return quote(text, kept, errors="surrogateescape")


@dataclass(frozen=True)
class Settings:
    """How a run is uploaded."""

    # minutes between two commits, and between two copies of a staged run to its logdir; fractions are allowed
    commit_every: float = DEFAULT_COMMIT_EVERY
    squash_history: bool = False  # whether to squash the branch after commits of ours
    private: bool | None = None  # whether a repository that has to be created is private; None for the Hub's default
    # shell patterns of the files to upload; None for all, event files or not, but those with a dot in front
    allow_patterns: tuple[str, ...] | None = DEFAULT_ALLOW_PATTERNS
    ignore_patterns: tuple[str, ...] = ()  # shell patterns of files to leave out
    exit_timeout: float = DEFAULT_EXIT_TIMEOUT  # seconds that the end of a process may wait for the Hub
    system_metrics: bool = False  # whether one process per host logs processor, memory, disk, network and GPUs
    live: str = ""  # the bucket that gets event files within seconds, "" for none

    def __post_init__(self) -> None:
        if not (isinstance(self.commit_every, (int, float)) and 0 < self.commit_every < math.inf):
            raise SettingsError(f"commit_every is {self.commit_every!r}.", hint="It is a number of minutes above 0.")
        for name in ("squash_history", "system_metrics"):
            object.__setattr__(self, name, switch(name, getattr(self, name)))
        if self.private not in (None, True, False):
            raise SettingsError(f"repo_private is {self.private!r}.", hint="It is True, False or None.")
        if not (isinstance(self.exit_timeout, (int, float)) and 0 <= self.exit_timeout < math.inf):
            raise SettingsError(f"exit_timeout is {self.exit_timeout!r}.", hint=SECONDS)
        # 1, True and numpy's numbers are accepted, but a member file needs exact types: else it counts as damaged
        exact = {
            "commit_every": float(self.commit_every),
            "private": None if self.private is None else bool(self.private),
            "exit_timeout": float(self.exit_timeout),
        }
        for name, value in exact.items():
            object.__setattr__(self, name, value)

    def within(self, longest: float | None) -> Self:
        """The same settings, with no longer wait at the end than some seconds."""
        return self if longest is None else dataclasses.replace(self, exit_timeout=min(self.exit_timeout, longest))

    def allows(self, relative: str) -> bool:
        """Whether to upload a file of the run directory, by the rule of huggingface_hub for patterns.

        As in a shell, only a pattern with a dot in front of a name has files like `.env`; event files are no secrets.
        What the run has lost goes with it.
        """
        if is_loss(relative):
            return True
        if any(fnmatch.fnmatch(relative, pattern) for pattern in self.ignore_patterns):
            return False
        allowed = self.allow_patterns
        if is_hidden(relative) and is_attachment(relative) and not is_embedding(relative):
            allowed = tuple(filter(is_hidden, allowed or ()))
        return allowed is None or any(fnmatch.fnmatch(relative, pattern) for pattern in allowed)


@dataclass(frozen=True)
class Environment:
    """The variables of the environment that concern this package."""

    endpoint: str  # URL of the Hub, without a trailing slash
    disabled: bool  # whether writers are local only
    exit_timeout: float | None  # seconds that no end of a process exceeds, None if not set
    commits_per_hour: float = DEFAULT_COMMITS_PER_HOUR  # to one repository
    system_metrics: bool = False
    live: bool | str = False

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read and check the variables."""
        commits = _number(environ, "HF_MPWRITER_COMMITS_PER_HOUR", 2, "It is a number of commits, 2 or more.")
        return cls(
            endpoint=(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"),
            disabled=is_on(environ.get("HF_MPWRITER_DISABLED", "")),
            exit_timeout=_number(environ, "HF_MPWRITER_EXIT_TIMEOUT", 0, SECONDS),
            commits_per_hour=DEFAULT_COMMITS_PER_HOUR if commits is None else commits,
            system_metrics=is_on(environ.get("HF_MPWRITER_SYSTEM_METRICS", "")),
            live=_on_or_name(environ.get("HF_MPWRITER_LIVE", "")),
        )


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether huggingface_hub would stay offline, by its own rule."""
    value = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def normalised_endpoint(url: str) -> str:
    """The form in which URLs of a Hub are compared: lower-case scheme and host, no default port, no trailing slash.

    A URL with characters that readers of URLs treat differently is returned as it is.
    """
    url = url.strip()
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url or "#" in url:
        return url
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    default_port = {"https": ":443", "http": ":80"}.get(scheme.lower(), ":")
    return f"{scheme.lower()}://{host.lower().removesuffix(default_port)}/{path}".rstrip("/")


def unclear_switches(environ: Mapping[str, str]) -> dict[str, str]:
    """The switches whose value is neither on nor off, each with the value."""
    found = {name: environ[name] for name in sorted(SWITCHES & environ.keys())}
    return {name: value for name, value in found.items() if value.strip().lower() not in ON + OFF}


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables that have our prefix and do not exist."""
    return [name for name in sorted(environ) if name.startswith(PREFIX) and name not in VARIABLES]


def _number(environ: Mapping[str, str], name: str, least: float, hint: str) -> float | None:
    if (value := environ.get(name)) is None:
        return None
    with suppress(ValueError):
        if least <= (number := float(value)) < math.inf:
            return number
    raise SettingsError(f"{name} is {value!r}.", hint=hint)


def _on_or_name(text: str) -> bool | str:
    return is_on(text) if text.strip().lower() in ON + OFF else text


def live_bucket(live: bool | str | None, destination: Destination | None) -> str:
    """The bucket that a run asks for, "" for none."""
    if not live or destination is None:
        return ""
    return check_repo_id(default_bucket(destination) if live is True else live, "live")


def default_bucket(destination: Destination) -> str:
    """The bucket of a run that names none: those of an account have one namespace, whatever they are for."""
    kind = "" if destination.repo_type == "model" else f"-{destination.repo_type}"
    branch = "" if destination.revision == "main" else f"-{_UNNAMEABLE.sub('-', destination.revision).strip('-.')}"
    return f"{destination.repo_id}{kind}{branch}-live"


def full_bucket(live: str, repo_id: str) -> str:
    """The full name of the bucket that a run asks for, by the full name of its repository."""
    return live if "/" in live or not live else f"{repo_id.rpartition('/')[0]}/{live}".lstrip("/")


def is_on(text: str) -> bool:
    """Whether the text of a variable means yes."""
    return text.strip().lower() in ON
