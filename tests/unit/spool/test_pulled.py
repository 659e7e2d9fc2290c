"""Whose an event file is, as far as this machine knows."""

from __future__ import annotations

import pytest

from hf_mpwriter.spool.pulled import Whose, note_pulled, pulled_files, whose


@pytest.mark.parametrize(
    ("path", "elsewhere", "growing", "owner"),
    [
        ("own", 0, False, Whose.OURS),
        ("own", 0, True, Whose.GROWING),
        ("own", 9, False, Whose.OURS),  # a backup was restored: its writer was here
        ("pulled", 5, False, Whose.PULLED),
        ("pulled", 3, False, Whose.PULLED),
        ("pulled", 6, True, Whose.BEGINNING),  # one of another writer's, whose names say nothing of its end
    ],
)
def test_whose_a_file_is(path, elsewhere, growing, owner):
    """What was pulled is another machine's, and its beginning where more of it is known to be."""
    assert whose(path, 5, {"pulled"}, elsewhere, growing=growing) is owner


def test_what_is_another_file_than_the_hubs_is_recorded_no_more(own_spool):
    """Whatever was believed of it before."""
    assert pulled_files(own_spool) == {}
    note_pulled(own_spool, {"a": 1, "b": 2})
    note_pulled(own_spool, {"b": 3}, ["a", "c"])
    assert pulled_files(own_spool) == {"b": 3}
