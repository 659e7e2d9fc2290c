"""The rows of `storage.py`: where a run may log to, and what others see there.

a real filesystem     tmpfs, ext4, bindfs, ...      (tests/helpers/real_mounts.py)
a FUSE model          gcsfuse, hf-mount, ...        (tests/helpers/fuse_models.py)
a URL                 s3, on moto's server          (tests/helpers/s3_server.py)
                      local, fsspec's own
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from lib.paths import HELPERS

sys.path.insert(0, str(HELPERS))

import fuse_models
import real_mounts
import s3_server
from mounts import contents
from s3_server import S3Server

RUN = "runs/exp1"
BUCKET = "runs"
URLS = ("s3", "local-url")
WRITE_BACK = ("rclone-writes", "rclone-full")  # a cache that uploads some time after close
MODELS = {model.name: model for model in fuse_models.MODELS}
CUT = ("sshfs", "bindfs")  # direct, and what carries them can be killed: the connection, the program
ROWS = (*real_mounts.KINDS, *MODELS, *URLS)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run logs to."""

    logdir: str  # path or URL
    everything: Callable[[], dict[str, bytes]]  # what other hosts see below the logdir: content by relative path
    shown: str  # where TensorBoard reads it
    # whether the mount itself takes a closed file, and publishes it later; no one on its host can know
    writes_back: bool = False
    cut: Callable[[float], None] = lambda _: None  # see `real_mounts`
    # of the environment of every process
    variables: dict[str, str] = dataclasses.field(default_factory=dict)


def why_not(row: str) -> str:
    """Return why a row cannot be tried here, "" if it can."""
    if row in URLS:
        return s3_server.why_not("fsspec", "s3fs") if row == "s3" else ""
    return fuse_models.why_not() if row in MODELS else real_mounts.why_not(row)


def needs_s3(row: str) -> bool:
    """Whether a row needs an S3."""
    return row == "s3" or (row in real_mounts.KINDS and real_mounts.needs_s3(row))


def _below(everything: Callable[[], dict[str, bytes]]) -> Callable[[], dict[str, bytes]]:
    prefix = f"{RUN}/"
    return lambda: {path[len(prefix) :]: data for path, data in everything().items() if path.startswith(prefix)}


@contextlib.contextmanager
def prepared(row: str, top: Path) -> Iterator[Place]:
    """Make the place of a row; it is gone at the end."""
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(S3Server()) if needs_s3(row) else None
        if s3 and row in URLS:
            s3.client().create_bucket(Bucket=BUCKET)
            url = f"s3://{BUCKET}/{RUN}"
            yield Place(url, _below(lambda: s3.objects(BUCKET)), url, variables=s3.variables)
        elif row in URLS:
            run = top / "files" / RUN
            yield Place(f"local://{run}", lambda: contents(run), str(run))
        elif row in MODELS:
            model = stack.enter_context(fuse_models.mounted(MODELS[row], top / "mount"))
            run = model.place / RUN
            yield Place(str(run), _below(model.everything), str(run))
        else:
            mount = stack.enter_context(real_mounts.mounted(row, top, s3))
            run = mount.place / RUN
            yield Place(str(run), _below(mount.everything), str(run), row in WRITE_BACK, mount.cut)
