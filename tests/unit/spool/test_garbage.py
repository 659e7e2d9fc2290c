"""Garbage in the place of a file of the spool: every reader goes on as if there were none, and the next one writes it.

`host/test_hostile_input` puts it there under a real uploader.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import JSON, event_file

from hf_mpwriter.base.errors import HfMpWriterError, SpoolFormatError
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Outbox, interrupted
from hf_mpwriter.spool.staging import Mirrored, MirrorStatus, mirrored_place
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system.directory import Place

HERE = Destination("https://hub", "me/run")
FILE = LocalFile("a.tfevents", 10, True)
MEMBER = MemberName("main", "h-1", 1, 2, 3)


@pytest.fixture
def spool(tmp_path) -> Spool:
    """A spool with two hosts, one of which has a ledger."""
    made = Spool(str(tmp_path / "exp1"))
    made.create()
    event_file(Path(made.run_dir, FILE.path), 3)
    for host in ("h1", "h2"):
        os.makedirs(made.host(host).outbox)
    known = Ledger(HERE)
    known.acknowledge({"b.tfevents": Sent(5, "")}, "c", 1.0)
    known.save(made.host("h2").ledger)
    return made


def see_in_flight(_: Spool, host: HostSpool) -> None:
    """Anything may have been under way: without a fence."""
    found = interrupted(host)
    assert found is not None
    assert not found.fenced


def see_batch(spool: Spool, host: HostSpool) -> None:
    """The outbox opens without it, and can be used."""
    outbox = Outbox(host, spool.run)
    assert outbox.batches == []
    outbox.put([[FILE]])
    assert [batch.files for batch in Outbox(host, spool.run).batches] == [(FILE,)]
    outbox.put([])


def see_ledger(spool: Spool, host: HostSpool) -> None:
    """The other hosts' count; it is set aside, which makes room for a new one."""
    assert list(ledger.load(spool, HERE).files) == ["b.tfevents"]
    aside = ledger.set_aside(spool, "h1")
    assert not os.path.lexists(host.ledger)
    Ledger(HERE).save(host.ledger)
    if aside:
        os.rename(aside, f"{host.root}/of-before")


def see_destination(spool: Spool, _: HostSpool) -> None:
    """There is none, or an exception of ours says so; no other destination is recorded over it."""
    with contextlib.suppress(SpoolFormatError):
        assert Spool(spool.run_dir).destination() is None
    with contextlib.suppress(HfMpWriterError):
        spool.record_destination(HERE)


def see_members(spool: Spool, _: HostSpool) -> None:
    """It is no member."""
    with contextlib.suppress(OSError):  # of an observer that is new: what cannot be read may live
        assert Members(spool).all() == []


def see_nothing(read: Callable[[HostSpool], object]) -> Callable[[Spool, HostSpool], None]:
    """What a reader makes of it is what it makes of no file."""

    def see(_: Spool, host: HostSpool) -> None:
        found = read(host)
        assert found == type(found)()

    return see


FILES: dict[str, tuple[Callable[[Spool, HostSpool], Place], Callable[[Spool, HostSpool], None]]] = {
    "in flight": (lambda _, host: host.in_flight, see_in_flight),
    "batch": (lambda _, host: host.outbox / "00000009.json", see_batch),
    "ledger": (lambda _, host: host.ledger, see_ledger),
    "destination": (lambda spool, _: spool.directory / "run.json", see_destination),
    "member": (lambda spool, _: spool.members / str(MEMBER), see_members),
    "status": (lambda _, host: host.daemon("uploader").status, see_nothing(UploaderStatus.read)),
    "mirrored": (lambda _, host: mirrored_place(host), see_nothing(Mirrored.read)),
    "mirror": (lambda _, host: host.daemon("mirror").status, see_nothing(MirrorStatus.read)),
}


@pytest.mark.parametrize("kind", FILES)
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"batch": Infinity, "fenced": true, "attachments": []}')
@example(b'{"batch": 4, "fenced": 1, "attachments": []}')
@example(b'{"destination": {}}')
@example(b'{"files": {"../x": 1}, "refused": {}, "way": ""}')
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_bytes_in_a_file_of_the_spool_count_as_none(spool, kind, data):
    """Half a file after a power cut on a bad disk, JSON of another version, anything."""
    place, see = FILES[kind]
    path, host = place(spool, spool.host("h1")), spool.host("h1")
    with open(path, "wb") as file:
        file.write(data)
    see(spool, host)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, lambda path: os.symlink("elsewhere", path)])
def test_what_is_no_file_counts_as_none(spool, kind, put):
    """A directory, a pipe that nobody writes to, a link: nothing follows it, waits for it, or fails to start."""
    place, see = FILES[kind]
    put(place(spool, spool.host("h1")))
    see(spool, spool.host("h1"))
    assert not os.path.exists(os.path.join(spool.host("h1").root, "elsewhere"))
