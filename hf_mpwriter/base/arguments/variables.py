"""Variables of the environment whose name begins with HF_MPWRITER_: which ones there are, and which are misspelt."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mpwriter.base.arguments.names import nearest

PREFIX = "HF_MPWRITER_"
SETTINGS = (
    *("ALL_RANKS", "COMMITS_PER_HOUR", "DEBUG", "DISABLED", "EXIT_TIMEOUT", "GRACE", "GROUP", "JOB", "LOGDIR"),
    *("MIRROR_EVERY", "NODES", "PROMETHEUS", "PUSH_ON", "PYTHON", "REPO_ID", "REPO_PRIVATE", "REPO_TYPE", "STAGING"),
    *("SYSTEM_METRICS",),
)
INTERNAL = (
    *("LAUNCHED_AT", "SUPERVISOR"),  # set by `hf-mpwriter run`
    *("FAILPOINT", "LOCALHUB_READ_TOKEN", "LOCALHUB_TOKEN"),  # for tests, also of users
    *("SABOTAGED", "SOAK", "SOAK_HUB", "TEST_LOCK_CHECK"),  # for tests and proofs of this package
)
KNOWN = frozenset(PREFIX + name for name in (*SETTINGS, *INTERNAL))


def unknown(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have our prefix and do not exist.

    Returns:
        Per name a question with the nearest setting, "" if none is like it.
    """
    return {name: _question(name) for name in sorted(environ) if name.startswith(PREFIX) and name not in KNOWN}


def _question(name: str) -> str:
    found = nearest(name.removeprefix(PREFIX), SETTINGS)  # with the prefix, any two names are alike
    return f"Did you mean {PREFIX + found!r}?" if found else ""
