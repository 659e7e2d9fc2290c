"""The facts of a run as JSON. `docs/operations.md` names every key; what is not there is no promise.

Times are unix seconds, durations seconds. What is not known is null.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hf_mpwriter.cli.status.facts import RunFacts
from hf_mpwriter.cli.status.judgement import Judgement, RunHealth

VERSION = 1  # raised when a key changes its meaning or goes


def to_json(facts: RunFacts, judgement: Judgement) -> dict[str, Any]:
    """The object of one run."""
    to = facts.hub.destination
    return {
        "version": VERSION,
        "logdir": facts.logdir,
        "run_dir": facts.run_dir,
        "state": judgement.state.word,
        "next": judgement.next or None,
        "destination": to and {"url": to.url, **asdict(to)},
        "visibility": facts.hub.visibility,
        "workers": [asdict(worker) for worker in facts.workers],
        "bytes": {"logged": facts.logged, "on_hub": facts.on_hub, "waiting": facts.waiting},
        "lag": facts.lag,
        "last_commit": facts.hub.last_commit and asdict(facts.hub.last_commit),
        "uploader": _uploader(facts),
        "mirror": _mirror(facts),
        "error": _error(facts),
        "notices": list(facts.notices),
        "files": [asdict(file) for file in facts.files],
        "quarantined": dict(facts.hub.quarantined),
        "damaged": {one.path: str(one) for one in facts.damage},
    }


def unreadable(logdir: str, error: str) -> dict[str, Any]:
    """The object of a run that cannot be read."""
    return {"version": VERSION, "logdir": logdir, "state": RunHealth.PERSON.word, "next": error}


def _uploader(facts: RunFacts) -> dict[str, Any]:
    uploader = facts.hub.uploader
    host = uploader.process.host.rpartition("-")[0] if uploader.process else None
    return {
        "alive": facts.hub.is_alive,
        "phase": uploader.phase or None,
        "pid": uploader.pid or None,
        "host": host,
        "last_seen": uploader.beat or None,
        "next_in": facts.next_in,
    }


def _mirror(facts: RunFacts) -> dict[str, Any] | None:
    if not facts.there.to:
        return None
    mirror = facts.there.mirror
    return {
        "to": facts.there.to,
        "alive": facts.there.is_alive,
        "phase": mirror.phase or None,
        "missing": facts.missing_there,
        "error": mirror.reason or None,
        "next_in": max(0.0, mirror.next_try - facts.now) if facts.there.is_alive and mirror.next_try else None,
        "refused": dict(facts.there.refused),
        "returning": mirror.returning,
        "unread": dict(mirror.unread),
    }


def _error(facts: RunFacts) -> dict[str, Any] | None:
    uploader = facts.hub.uploader
    if not uploader.failures:
        return None
    return {
        "cause": uploader.cause,
        "text": uploader.reason,
        "hint": uploader.hint or None,
        "failures": uploader.failures,
        "time": uploader.failed_at or None,
    }
