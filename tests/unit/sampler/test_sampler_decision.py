"""What a sampler does next, over every situation."""

from __future__ import annotations

from itertools import product

import pytest

from hf_mpwriter.sampler.loop import LINGER, SamplerAction, SamplerSituation, decide

FLAGS = (False, True)
ALL = [SamplerSituation(*fields) for fields in product(FLAGS, (0.0, LINGER + 1), FLAGS, FLAGS, FLAGS)]


@pytest.mark.parametrize(
    ("situation", "action"),
    [
        (SamplerSituation(True, 0.0, True, True, False), SamplerAction.SAMPLE),
        (SamplerSituation(True, 0.0, False, True, False), SamplerAction.WAIT),
        (SamplerSituation(False, 0.0, True, True, False), SamplerAction.SEAL),
        (SamplerSituation(False, LINGER + 1, True, True, False), SamplerAction.SEAL),
        (SamplerSituation(False, 0.0, True, False, False), SamplerAction.WAIT),
        (SamplerSituation(False, LINGER + 1, True, False, False), SamplerAction.LEAVE),
        (SamplerSituation(True, 0.0, True, True, True), SamplerAction.LEAVE),
    ],
)
def test_each_situation_has_its_action(situation, action):
    """The table of the module."""
    assert decide(situation) is action


def test_nothing_is_sampled_without_a_worker_and_a_living_one_is_left_only_on_sigterm():
    """In every situation; the uploader may have gone, and what is opened then would stay here."""
    assert {s.has_workers for s in ALL if decide(s) is SamplerAction.SAMPLE} == {True}
    assert all(s.is_ending for s in ALL if decide(s) is SamplerAction.LEAVE and s.has_workers)
