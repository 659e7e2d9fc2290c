"""The batch in flight: what becomes of it when its outcome is not known."""

from __future__ import annotations

from hf_mpwriter.spool.layout import Spool


def test_the_settle_time_outlives_the_uploader(tmp_path):
    """A request without a parent may still be under way: the record of it stays until the time is over.

    A later success of the same batch does not end it, and a successor waits for it too.
    """
    import random

    from hf_mpwriter.base.settings import Destination
    from hf_mpwriter.base.verdicts import Done, Sent, Unknown
    from hf_mpwriter.events import framing
    from hf_mpwriter.spool import outbox
    from hf_mpwriter.system import locks
    from hf_mpwriter.uploader.decision import Action, decide
    from hf_mpwriter.uploader.in_flight import SETTLE_TIME
    from hf_mpwriter.uploader.loop import Uploader

    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    name = "events.out.tfevents.1700000000.here.1.0123abcd"
    (tmp_path / "run" / name).write_bytes(framing.frame(framing.version_event(1.0)))
    lock, now = locks.try_exclusive(spool.uploader_lock), [1000.0]

    def successor() -> Uploader:
        return Uploader(spool, spool.destination(), lock, lambda: now[0], random.Random(1))

    one = successor()
    one._scan([])
    batch = one._events.batches[0]
    one._in_flight._fenced = False
    one._in_flight._outbox.mark_in_flight(batch, fenced=False)
    one._in_flight._sent = (one._events, batch)
    one._conclude(Unknown("504"))
    one._in_flight._sent = (one._events, batch)
    one._conclude(Done("c" * 40, own=True, repo_id="me/run", files={name: Sent(batch.files[0].length, "00")}))
    assert decide(one._situation([])) is Action.WAIT, "it does not leave before the time is over"
    two = successor()
    assert decide(two._situation([])) is Action.WAIT, "its successor makes no scan either"
    now[0] += SETTLE_TIME
    two._in_flight.catch_up()
    assert decide(two._situation([])) is Action.SCAN
    assert outbox.interrupted(two._host) is None
