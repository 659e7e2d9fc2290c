"""Journals of a run whose disk was lost: what it took is forgotten, so that the oracle judges the rest."""

from __future__ import annotations

import json
import os
from collections import Counter

from hf_mpwriter.testing import journal
from hf_mpwriter.testing.oracle import keys


def forget_lost(journals: str, run_dir: str) -> int:
    """Remove the notes of what a lost disk may take: neither flushed nor in the event files.

    The number of removed notes.
    """
    there: dict[str, Counter[tuple[str, int]]] = {}
    forgotten = 0
    for path in journal.journals(journals):
        kept = []
        for note in journal.read_journal(path):
            if note.path not in there:
                there[note.path] = keys(os.path.join(run_dir, note.path))
            found = there[note.path]
            if note.flushed or found[note.tag, note.step]:
                found[note.tag, note.step] -= 1
                kept.append(note)
            else:
                forgotten += 1
        _rewrite(path, kept)
    return forgotten


def _rewrite(path: str, notes: list[journal.Returned]) -> None:
    """Replace the notes of one process; all of them count as flushed."""
    lines: list[dict[str, object]] = [
        {"step": note.step, "path": note.path} | ({"tags": note.together} if note.together else {"tag": note.tag})
        for note in notes
        if note.tag in note.together[:1] or not note.together  # the first one stands for all of its record
    ]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*lines, {"flushed": True}])
