"""Each filesystem that can be mounted here is mounted, keeps a file, and is gone afterwards."""

from __future__ import annotations

import contextlib
import os

import pytest
import real_mounts
from mounts import places
from programs import wait_for
from s3_server import S3Server

pytestmark = pytest.mark.root


def parameter(kind: str):
    """A kind, skipped where it cannot be mounted."""
    reason = real_mounts.why_not(kind)
    return pytest.param(kind, marks=pytest.mark.skipif(bool(reason), reason=f"{kind}: {reason}"))


@pytest.mark.parametrize("kind", [parameter(kind) for kind in real_mounts.KINDS])
def test_a_filesystem_is_mounted_and_unmounted(kind, tmp_path):
    """A closed file is there for others; nothing stays, although a file is open at the end."""
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(S3Server()) if real_mounts.needs_s3(kind) else None
        mount = stack.enter_context(real_mounts.mounted(kind, tmp_path / "top", s3))
        (mount.place / "file").write_bytes(b"content")
        wait_for(lambda: mount.elsewhere("file") == b"content", "the file behind the mount")
        assert mount.elsewhere("missing") is None
        fd = os.open(mount.place / "open", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):  # most of them are dead by now
        os.close(fd)
    assert [place for place in places() if place.startswith(str(tmp_path))] == []
