"""What an uploader counts of its own work."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Done, Retry, Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.system import disk
from hf_mpwriter.uploader.health.metrics import EVENT_FILES, UploaderMetrics

EVENTS = "events.out.tfevents.0000000001.host.7.0123abcd"


@pytest.fixture
def host(tmp_path):
    """The files of a host's uploader."""
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    found = spool.host("here")
    disk.make_dirs(found.root)
    return found


class Clock:
    """Monotonic seconds, set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def done(**lengths: int) -> Done:
    """A commit of event files."""
    files = {f"{path}/{EVENTS}": Sent(length, "x") for path, length in lengths.items()}
    return Done("c" * 40, own=True, repo_id="me/run", files=files)


def publish(metrics: UploaderMetrics, waiting: int = 0, *, is_pushing: bool = False, is_over: bool = False) -> None:
    """End a tick."""
    metrics.publish(
        {EVENT_FILES: waiting, "attachments": 0},
        quarantined=2,
        repo_id="me/run",
        is_pushing=is_pushing,
        is_over=is_over,
    )


def samples(host) -> dict[str, float]:
    """What Prometheus reads, by name and the label that is not common to all."""
    found = {}
    for family in text_string_to_metric_families((disk.read(host.metrics) or b"").decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert [labels.pop(name) for name in ("run", "repo", "host")] == ["runs/exp1", "me/run", host.root.basename]
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def test_the_lag_grows_until_nothing_of_a_scan_waits_and_is_then_the_age_of_that_scan(host):
    """What is logged after the scan began is not counted as there."""
    clock = Clock()
    metrics = UploaderMetrics(host, "runs/exp1", clock, lambda: 5.0)
    clock.now = 1100.0
    metrics.scanned(1090.0)
    publish(metrics, waiting=1)
    assert samples(host)["hf_mpwriter_lag_seconds"] == 100
    clock.now = 1200.0
    publish(metrics)
    assert samples(host)["hf_mpwriter_lag_seconds"] == 110


def test_pushes_are_counted_by_verdict_with_their_seconds_and_what_was_new(host):
    """A file that has grown counts with what it has grown by, a commit of others not at all."""
    clock = Clock()
    metrics = UploaderMetrics(host, "runs/exp1", clock, lambda: 5.0)
    ledger = Ledger(Destination("http://127.0.0.1:9", "me/run"), settings=Settings())
    told = []
    for verdict in (done(a=100, b=50), Retry("down"), done(a=130)):
        publish(metrics, waiting=1, is_pushing=True)
        clock.now += 20
        publish(metrics, waiting=1, is_pushing=True)
        told.append(metrics.concluded(verdict, ledger))
        if isinstance(verdict, Done):
            ledger.acknowledge(verdict.files, verdict.commit, 5.0)
    metrics.concluded(Done("d" * 40, own=False, repo_id="me/run", files={}), ledger)  # it could not be started
    publish(metrics, is_over=True)
    found = samples(host)
    assert told == [(150, 20.0), (0, 20.0), (30, 20.0)]
    assert found["hf_mpwriter_sent_bytes_total"] == 180
    assert (found["hf_mpwriter_push_seconds_count"], found["hf_mpwriter_push_seconds_sum"]) == (4, 60)
    assert (found["hf_mpwriter_pushes_total done"], found["hf_mpwriter_pushes_total retry"]) == (3, 1)
    assert (found["hf_mpwriter_commits_total"], found["hf_mpwriter_refused_files"]) == (2, 2)
    assert (found["hf_mpwriter_up"], found["hf_mpwriter_success_timestamp_seconds"]) == (0, 5)


def test_nothing_is_written_unless_it_is_asked_for(host):
    """The file is opt-in."""
    metrics = UploaderMetrics(None, "runs/exp1", Clock())
    publish(metrics, is_over=True)
    assert not host.metrics.exists()


def test_a_disk_that_refuses_the_file_stops_nothing(host):
    """It is for display."""
    disk.make_dirs(host.metrics)
    publish(UploaderMetrics(host, "runs/exp1", Clock()))
