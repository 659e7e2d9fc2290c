"""Jobs of pushes."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.push.job import Job, Part

OF_PARTS, OF_JOBS = ({field.name for field in dataclasses.fields(kind)} for kind in (Part, Job))


def part(run_dir, known=(), files=("a.tfevents",), **changes: Any) -> Part:
    """What is sent of a run: these files, or five bytes of each path."""
    fields = {
        "run_dir": str(run_dir),
        "folder": "",
        "copies": "copies",
        "cache": "cache",
        "private": None,
        "files": tuple(LocalFile(one, 5, growing=True) if isinstance(one, str) else one for one in files),
        "known": dict(known),
        "uncertain": {},
        "is_trusted": False,
    }
    return Part(**fields | changes)


def job_of(*parts: Part, **changes: Any) -> Job:
    """The job of a push of these runs, with these changes of what they share."""
    fields = {
        "destination": Destination("http://127.0.0.1:9", "me/run"),
        "parts": parts,
        "private": None,
        "squash": False,
        "own_head": None,
        "fenced": True,
        "xet": True,
    }
    return Job(**fields | changes)


def job(run_dir, **changes: Any) -> Job:
    """The job of a push of one run, with these changes of its part or of the job."""
    of_part, of_job = ({name: changes[name] for name in changes.keys() & names} for names in (OF_PARTS, OF_JOBS))
    assert changes.keys() <= OF_PARTS | OF_JOBS
    return job_of(part(run_dir, **of_part), **of_job)


# attachments

ONE, TWO = (
    LocalFile("a.tsv", len(data), False, hashlib.sha256(data).hexdigest(), hashlib.sha1(data).hexdigest())  # noqa: S324
    for data in (b"one", b"two2")
)
