"""The pictures in the documents: each is there, is small, and is shown."""

from __future__ import annotations

import re

from documents import TEXTS
from repository import ROOT

LARGEST = 100_000  # bytes: readers load all pictures of the README at once
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)\s]+)\)")


def test_every_picture_is_there_small_and_shown():
    """Each has a text in its place; none of the folder is left over."""
    shown = {(ROOT / document).parent / path for document, text in TEXTS.items() for path in PICTURE.findall(text)}
    sizes = {path.resolve(): path.resolve().stat().st_size for path in shown}
    assert set(sizes) == set((ROOT / "docs" / "images").iterdir())
    assert max(sizes.values()) < LARGEST
