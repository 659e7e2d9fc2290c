"""What `hf-mpwriter sync` says of what is not on the Hub."""

from __future__ import annotations

import pytest

from hf_mpwriter.cli.sync import shortfall_text
from hf_mpwriter.spool.status import UploaderStatus

AGAIN = "hf-mpwriter sync runs/a"
TOKEN = UploaderStatus(kind="Refused", reason="token refused (401)", hint="run `hf auth login`")
GONE = UploaderStatus(
    kind="Refused", reason="me/run is gone.", hint="To make it anew: hf-mpwriter sync --create runs/a"
)
DOWN = UploaderStatus(kind="Retry", reason="ConnectError: [Errno 111] Connection refused")


@pytest.mark.parametrize(
    ("missing", "refused", "uploader", "asked", "text"),
    [
        (
            93,
            [],
            TOKEN,
            False,
            f"93 B are not on the Hub: the token is refused (401). Run: hf auth login; then: {AGAIN}",
        ),
        (0, [], TOKEN, False, "The Hub does not tell what it has: the token is refused (401). Run: hf"),
        (93, [], GONE, False, "93 B are not on the Hub: me/run is gone. To make it anew: hf-mpwriter sync --create"),
        (93, [], DOWN, False, "The Hub could not be asked: the Hub cannot be reached. By what it last answered, 93 B"),
        (0, [], UploaderStatus(), False, "The Hub could not be asked. By what it last answered, everything is there."),
        (93, [], DOWN, True, "93 B are not on the Hub yet: the Hub cannot be reached."),
        (93, ["a: too large", "a: too large"], TOKEN, True, "93 B are not on the Hub yet: a: too large."),
    ],
)
def test_what_is_missing_is_told_once_with_its_reason_and_cure(missing, refused, uploader, asked, text, monkeypatch):
    """A Hub that refuses was asked; only one that gives no answer could not be."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    said = shortfall_text(missing, refused, uploader, AGAIN, asked=asked)
    assert said.startswith(text), said
    assert said.count("hf-mpwriter sync") == (uploader.kind == "Refused" and not refused)
