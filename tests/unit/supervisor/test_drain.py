"""When a supervisor has nothing to wait for any more."""

from __future__ import annotations

import os

import pytest
from programs import wait_for
from support import event_file

from hf_mpwriter.base.settings import OFFLINE, Destination, Settings
from hf_mpwriter.cli.folders import followed
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.delivery.sentences import report
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import SUPERVISOR, MemberFile
from hf_mpwriter.supervisor import drain
from hf_mpwriter.supervisor.drain import Drain, Upload
from hf_mpwriter.system.process import Process


def test_a_rank_that_ends_first_does_not_wait_for_those_that_still_follow_the_folder(tmp_path, monkeypatch):
    """All is on the Hub, and the uploader stays for the others. The last one waits until it has left."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(HubSink, "is_alive", lambda _: True)
    monkeypatch.setattr(HubSink, "missing", lambda *_, **__: {})
    event_file(tmp_path / "exp1" / "events.out.tfevents.1700000000.host", 1)
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run", path_in_repo="tensorboard/exp1"))
    other = MemberFile(spool, SUPERVISOR, Process.current(), Settings())
    assert Upload(spool, with_others=True).finish().is_over
    other.leave()
    assert not Upload(spool, with_others=True).finish().is_over


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_folder_that_its_program_removes_is_followed_anew_as_soon_as_it_is_back(tmp_path, monkeypatch, comes_back):
    """Many programs clear their logdir when they start. The end tells of what is there then, not of what was."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # so nothing is waited for
    monkeypatch.setattr(Election, "ensure", lambda *_: False)
    monkeypatch.setattr(drain, "LOOK_EVERY", 0.01)
    folder, said, one = tmp_path / "exp1", list[str](), Drain()
    event_file(folder / "events.out.tfevents.1700000000.host", 1)
    one.follow(followed([str(folder)], None, "me/run", {}), said.append)
    one.start()
    wait_for(lambda: len(said) == 1, "it is followed")
    os.rename(folder, tmp_path / "removed")
    if comes_back:
        event_file(folder / "events.out.tfevents.1700000001.host", 5)
        wait_for(lambda: len(said) == 2, "it is followed again")
    one.finish()
    wait_for(lambda: one.is_over, "the thread ends")
    (outcome,) = one.outcomes
    line = report(outcome, is_first=False, is_quiet=False)
    if comes_back:
        assert said[0].partition(" (")[0] == said[1].partition(" (")[0]
        assert outcome.deliveries[0].total == (folder / "events.out.tfevents.1700000001.host").stat().st_size
        assert Spool(str(folder)).destination() is not None
    else:
        assert line == f"nothing more of {folder} was uploaded: it does not exist"


def test_a_folder_that_is_made_anew_goes_where_its_writer_says_once_it_has_said_it(tmp_path, monkeypatch):
    """A script clears the logdir of its program, which then takes seconds to start: there is no spool meanwhile."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # so nothing is waited for
    monkeypatch.setattr(Election, "ensure", lambda *_: False)
    folder, one = tmp_path / "exp1", Drain()
    folder.mkdir()
    one.add(str(folder))
    one._tend(str(folder), 1, is_finishing=False)
    event_file(folder / "events.out.tfevents.1700000000.here.1.0123abcd", 1)
    spool = Spool(str(folder))
    spool.create()
    one._tend(str(folder), 2, is_finishing=False)
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run", path_in_repo="tensorboard/exp1"))
    outcome = one._tend(str(folder), 3, is_finishing=True)
    line = report(outcome, is_first=False, is_quiet=False)
    assert f"are not on the Hub: {OFFLINE}" in line
