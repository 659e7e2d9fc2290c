"""Variables of the environment whose name begins with HF_MPWRITER_: which ones there are, and which are misspelt."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mpwriter.base.arguments.names import nearest

PREFIX = "HF_MPWRITER_"
SETTINGS = (
    *("COMMITS_PER_HOUR", "DEBUG", "DISABLED", "EXIT_TIMEOUT", "GRACE", "GROUP", "JOB", "LOGDIR"),
    *("MIRROR_EVERY", "NODES", "PROMETHEUS", "PUSH_ON", "PYTHON", "REPO_ID", "REPO_PRIVATE", "REPO_TYPE", "STAGING"),
    *("SYSTEM_METRICS",),
)
PARAMETERS = (  # of writers; no variable stands for them
    *("COMMIT_EVERY", "FILENAME_SUFFIX", "MEMORY_LIMIT", "PATH_IN_REPO", "PURGE_STEP", "REPO_ALLOW_PATTERNS"),
    *("REPO_IGNORE_PATTERNS", "REPO_REVISION", "SQUASH_HISTORY"),
)
INTERNAL = (
    *("LAUNCHED_AT", "SUPERVISOR"),  # set by `hf-mpwriter run`
    *("FAILPOINT", "LOCALHUB_READ_TOKEN", "LOCALHUB_TOKEN"),  # for tests, also of users
    *("SABOTAGED", "SOAK", "SOAK_HUB", "TEST_LOCK_CHECK"),  # for tests and proofs of this package
)
KNOWN = frozenset(PREFIX + name for name in (*SETTINGS, *INTERNAL))
SWITCHES = frozenset(PREFIX + name for name in ("DISABLED", "GROUP", "PROMETHEUS", "SYSTEM_METRICS"))
ON, OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def unclear(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the switches whose value is neither on nor off, each with the value."""
    found = {name: environ[name] for name in sorted(SWITCHES & environ.keys())}
    return {name: value for name, value in found.items() if value.strip().lower() not in ON + OFF}


def unknown(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have our prefix and do not exist.

    Per name a question with the nearest setting, or the parameter that it means, "" if none is like it.
    """
    return {name: _question(name) for name in sorted(environ) if name.startswith(PREFIX) and name not in KNOWN}


def _question(name: str) -> str:
    found = nearest(name.removeprefix(PREFIX), (*SETTINGS, *PARAMETERS))  # with the prefix, any two names are alike
    if found in PARAMETERS:
        return f"{found.lower()} is a parameter of the writer, and has no variable."
    return f"Did you mean {PREFIX + found!r}?" if found else ""
