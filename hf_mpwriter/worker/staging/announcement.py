"""Announcement: what the user is told, once at the start, of a run that is not kept in its logdir."""

from __future__ import annotations

from hf_mpwriter.base.settings import DEFAULT_ALLOW_PATTERNS, Settings
from hf_mpwriter.base.storage import Layout, Storage


def announcement(storage: Storage, settings: Settings, *, uploads: bool) -> str:
    """Where a run is kept, and what that means; "" if it is kept in its logdir."""
    if storage.layout is Layout.DIRECT:
        return ""
    if storage.layout is Layout.LOCAL_SPOOL:
        kept = f"Locks and the state of the upload are kept in {storage.spool}"
        return f"{storage.logdir}: {storage.why}. {kept}, and each host uploads what it has written."
    every = f"every {settings.mirror_every:g} minutes, less often in a long run, at push() and at the end"
    text = f"Event files are written to {storage.run_dir}, and copied to the logdir {every}"
    lost = "If this machine is lost, so is what it has logged since"
    others = uploads and settings.allow_patterns != DEFAULT_ALLOW_PATTERNS
    more = " Of other files, those in that directory are uploaded, and none that is in the logdir." if others else ""
    return f"{storage.logdir}: {storage.why}. {text}. {lost}.{more}"
