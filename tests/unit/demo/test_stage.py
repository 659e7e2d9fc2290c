"""The processes of the demo, as its story sees them."""

from __future__ import annotations

from hf_mpwriter.demo.stage import last_step


def test_the_progress_of_a_rank_is_its_last_step_however_much_it_is_told_after_it():
    """A message at the end of a rank, with long paths in it, hides no step: the demo would wait for that in vain."""
    steps = "step 79 loss 0.32 accuracy 0.89\nstep 80 loss 0.31 accuracy 0.90\n"
    message = "waiting until 20.2 kB are on the Hub " + "x" * 1000
    assert last_step(f"begins at step 0\n{steps}{message}\n") == 80


def test_a_rank_that_has_printed_no_step_is_at_step_0():
    """Also when it has printed something else."""
    assert last_step("begins at step 0\n") == last_step("") == 0
