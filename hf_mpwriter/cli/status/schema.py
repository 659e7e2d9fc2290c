"""The facts of a run as JSON. `docs/operations.md` names every key; what is not there is no promise.

Times are unix seconds, durations seconds. What is not known is null.
"""

from __future__ import annotations

from typing import Any

from hf_mpwriter.cli.status.facts import RunFacts
from hf_mpwriter.cli.status.judgement import Judgement, RunHealth

VERSION = 1  # raised when a key changes its meaning or goes


def to_json(facts: RunFacts, judgement: Judgement) -> dict[str, Any]:
    """The object of one run."""
    return {
        "version": VERSION,
        "logdir": facts.logdir,
        "run_dir": facts.run_dir,
        "state": judgement.state.word,
        "next": judgement.next or None,
        "destination": _destination(facts),
        "visibility": facts.visibility,
        "workers": [
            {
                "name": worker.name,
                "state": worker.state,
                "host": worker.host or None,
                "pid": worker.pid or None,
                "dropped": worker.dropped,
                "in_memory": worker.in_memory,
            }
            for worker in facts.workers
        ],
        "bytes": {"logged": facts.logged, "on_hub": facts.on_hub, "waiting": facts.waiting},
        "lag": facts.lag,
        "last_commit": _last_commit(facts),
        "uploader": _uploader(facts),
        "mirror": _mirror(facts),
        "error": _error(facts),
        "notices": list(facts.notices),
        "files": [
            {
                "path": file.path,
                "bytes": file.size,
                "on_hub": file.on_hub,
                "in_logdir": file.in_logdir,
                "growing": file.growing,
                "pulled": file.pulled,
            }
            for file in facts.files
        ],
        "quarantined": dict(facts.quarantined),
        "damaged": {one.path: str(one) for one in facts.damage},
    }


def unreadable(logdir: str, error: str) -> dict[str, Any]:
    """The object of a run that cannot be read."""
    return {"version": VERSION, "logdir": logdir, "state": RunHealth.PERSON.word, "next": error}


def _destination(facts: RunFacts) -> dict[str, str] | None:
    if (to := facts.destination) is None:
        return None
    return {
        "url": to.url,
        "endpoint": to.endpoint,
        "repo_id": to.repo_id,
        "repo_type": to.repo_type,
        "revision": to.revision,
        "path_in_repo": to.path_in_repo,
    }


def _last_commit(facts: RunFacts) -> dict[str, Any] | None:
    if (last := facts.last_commit) is None or facts.destination is None:
        return None
    return {"id": last.commit, "time": last.time, "url": facts.destination.commit_url(last.commit)}


def _uploader(facts: RunFacts) -> dict[str, Any]:
    uploader = facts.uploader
    host = uploader.process.host.rpartition("-")[0] if uploader.process else None
    return {
        "alive": facts.uploader_is_alive,
        "phase": uploader.phase or None,
        "pid": uploader.pid or None,
        "host": host,
        "last_seen": uploader.beat or None,
        "next_in": facts.next_in,
    }


def _mirror(facts: RunFacts) -> dict[str, Any] | None:
    if not facts.to:
        return None
    mirror = facts.mirror
    return {
        "to": facts.to,
        "alive": facts.mirror_is_alive,
        "phase": mirror.phase or None,
        "missing": facts.missing_there,
        "error": mirror.reason or None,
        "next_in": max(0.0, mirror.next_try - facts.now) if facts.mirror_is_alive and mirror.next_try else None,
        "refused": dict(facts.refused_there),
    }


def _error(facts: RunFacts) -> dict[str, Any] | None:
    uploader = facts.uploader
    if not uploader.failures:
        return None
    return {
        "cause": uploader.cause,
        "text": uploader.reason,
        "hint": uploader.hint or None,
        "failures": uploader.failures,
        "time": uploader.failed_at or None,
    }
