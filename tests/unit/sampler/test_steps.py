"""The steps of samples: seconds since the run was created, which only grow."""

from __future__ import annotations

import itertools
import os

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import scalar

from hf_mpwriter.events import framing
from hf_mpwriter.sampler.steps import Steps, created_at, last_step
from hf_mpwriter.spool.ownership import FORMAT_NAME
from hf_mpwriter.system.directory import at

SECONDS = st.floats(0, 1e9)


def test_a_step_is_the_whole_seconds_since_the_run_was_created():
    """Of a run that is 100.7 seconds old, whatever the machine's own clock begins with."""
    steps = Steps(100.7, None, 5000.0)
    assert [steps.take(5000.0 + after) for after in (0.0, 15.0, 30.2)] == [100, 115, 130]


@hypothesis_settings(max_examples=30)
@given(
    age=st.floats(-1e9, 1e9),
    last=st.one_of(st.none(), st.integers(0, 1 << 40)),
    times=st.lists(SECONDS, min_size=1, max_size=20),
)
def test_steps_only_grow_from_the_last_one_on_disk_on(age, last, times):
    """Also if samples come within a second, if a clock was set back, and if more steps are there than seconds."""
    steps = Steps(age, last, 0.0)
    taken = [-1 if last is None else last, *map(steps.take, sorted(times))]
    assert all(before < after for before, after in itertools.pairwise(taken))


def test_a_run_is_as_old_as_its_spool_or_its_oldest_event_file(own_spool):
    """The spool of a run that was pulled is new. Files of others, and times in the future, tell nothing."""
    os.utime(str(own_spool.directory / FORMAT_NAME), (2_000_000_000, 2_000_000_000))
    assert created_at(own_spool, 1_900_000_000.0) == 1_900_000_000.0
    os.makedirs(os.path.join(own_spool.run_dir, "rank_00001"))
    for name in (
        "rank_00001/events.out.tfevents.1800000000.there.1.0123abcd",
        "events.out.tfevents.1700000000.torch.1",
    ):
        open(os.path.join(own_spool.run_dir, name), "wb").close()
    assert created_at(own_spool, 1_900_000_000.0) == 1_800_000_000
    os.utime(str(own_spool.directory / FORMAT_NAME), (1_750_000_000, 1_750_000_000))
    assert created_at(own_spool, 1_900_000_000.0) == 1_750_000_000


def test_the_last_step_is_that_of_the_newest_file_with_a_sample(tmp_path):
    """A file that a kill has left without a record, or with a torn one, is no obstacle."""
    directory = at(tmp_path / "system")
    assert last_step(directory) is None
    (tmp_path / "system").mkdir()
    assert last_step(directory) is None
    name = "events.out.tfevents.180000000{}.there.1.0123abcd"
    records = [framing.frame(scalar(step)) for step in (15, 30)]
    (tmp_path / "system" / name.format(0)).write_bytes(b"".join(records))
    (tmp_path / "system" / name.format(1)).write_bytes(records[0][:-3])
    (tmp_path / "system" / name.format(2)).write_bytes(framing.frame(framing.version_event(1.0)))
    assert last_step(directory) == 30
