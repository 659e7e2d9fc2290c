"""What a mirror finds: embeddings beside event files, as often as they change."""

from __future__ import annotations

import os

from support import event_file

from hf_mpwriter.base import names
from hf_mpwriter.mirror.outgoing import OutgoingFiles
from hf_mpwriter.mirror.posix import PosixTarget
from hf_mpwriter.mirror.targets import CopySource, bring
from hf_mpwriter.spool.copies import Item
from hf_mpwriter.system.directory import Directory

EVENTS = "events.out.tfevents.1795233002.h.1.00000001"
CONFIG = "rank_00001/projector_config.pbtxt"


def test_embeddings_are_found_again_when_they_change(tmp_path):
    """What else is in the run directory is not for the logdir; an embedding may go at once."""
    event_file(tmp_path / EVENTS, 2)
    (tmp_path / "rank_00001").mkdir()
    (tmp_path / CONFIG).write_text("embeddings {}\n")
    (tmp_path / "notes.txt").write_text("of the user")
    outgoing = OutgoingFiles(Directory(tmp_path), lambda _: 0)

    def waiting() -> list[str]:
        outgoing.scan([], tuple)
        return [item.path for item in outgoing.waiting(frozenset())]

    assert waiting() == waiting() == [EVENTS, CONFIG]
    for path in (EVENTS, CONFIG):
        outgoing.arrived(path, (tmp_path / path).stat().st_size)
    assert waiting() == []
    (tmp_path / CONFIG).write_text("EMBEDDINGS {}\n")
    os.utime(tmp_path / CONFIG, (1, 1))
    assert waiting() == [CONFIG]


def test_an_embedding_is_replaced_and_an_event_file_never(tmp_path):
    """Also by a shorter one; one that is the same is not written again."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    target, path, kept = PosixTarget(str(tmp_path / "there"), ".mark"), tmp_path / "there" / "metadata.tsv", []
    for content in (b"a\nb\n", b"a\nb\n", b"c\nd\n", b"c\n"):
        (tmp_path / "here" / "metadata.tsv").write_bytes(content)
        source = CopySource(Directory(tmp_path / "here"), Item("metadata.tsv", len(content)))
        bring(target, source)
        source.close()
        assert path.read_bytes() == content
        kept.append(path.stat().st_ino)
    assert kept[0] == kept[1]
    assert sorted(os.listdir(tmp_path / "there")) == [names.SPOOL_NAME, "metadata.tsv"]
