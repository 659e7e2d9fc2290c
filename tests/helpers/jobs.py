"""Jobs of pushes."""

from __future__ import annotations

import hashlib

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.push.job import Job


def job(run_dir, known=(), files=("a.tfevents",), endpoint="http://127.0.0.1:9") -> Job:
    """Make a job that sends five bytes of each file."""
    return Job(
        run_dir=str(run_dir),
        copies="copies",
        cache="cache",
        destination=Destination(endpoint, "me/run"),
        private=None,
        squash=False,
        files=tuple(LocalFile(path, 5, growing=True) for path in files),
        known=dict(known),
        uncertain={},
        own_head=None,
        fenced=True,
        xet=True,
    )


# attachments

ONE, TWO = (
    LocalFile("a.tsv", len(data), False, hashlib.sha256(data).hexdigest(), hashlib.sha1(data).hexdigest())  # noqa: S324
    for data in (b"one", b"two2")
)
