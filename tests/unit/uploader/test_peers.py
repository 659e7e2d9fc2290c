"""Who uploads here: what a look has found is not forgotten, whatever the disk refuses meanwhile."""

from __future__ import annotations

import pytest
from uploaders import uploader

from hf_mpwriter.uploader import peers


def test_a_look_that_fails_forgets_no_host_that_has_left(own_spool, monkeypatch):
    """What that host was to send is scanned for at the next tick."""
    from hf_mpwriter.base.settings import Destination

    own_spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    now, others = [1000.0], [frozenset({"other-12345678"})]
    monkeypatch.setattr(peers, "living_others", lambda *_: others[0])
    with_peer = uploader(own_spool, lambda: now[0])
    with_peer.tick()
    with_peer.sending.events.has_scanned, others[0] = True, frozenset()
    now[0] += peers.LOOK_EVERY
    with monkeypatch.context() as failing:
        failing.setattr(with_peer.peers.members, "all", lambda: (_ for _ in ()).throw(OSError(5, "EIO")))
        with pytest.raises(OSError, match="EIO"):
            with_peer.peers.look()
    with_peer.peers.look()
    with_peer.sending.note()
    assert not with_peer.sending.events.has_scanned
