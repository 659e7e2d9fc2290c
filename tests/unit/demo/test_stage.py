"""The processes of the demo, as its display sees them."""

from __future__ import annotations

from pathlib import Path

from hf_mpwriter.demo.stage import Folder, Rank


def rank_with_log(directory, text: str) -> Rank:
    """A rank that never started, with a log."""
    place = Folder(str(directory / "demo"))
    place.make()
    rank = Rank(place, 0, [], {})
    Path(place.log(0)).write_text(text)
    return rank


def test_the_progress_of_a_rank_is_its_last_step_however_much_it_is_told_after_it(tmp_path):
    """A message at the end of a rank, with long paths in it, hides no step: the demo would wait for that in vain."""
    step = "step 80 loss 0.31 accuracy 0.90"
    message = "waiting until 20.2 kB are on the Hub " + "x" * 1000
    rank = rank_with_log(tmp_path, f"begins at step 0\nstep 79 loss 0.32 accuracy 0.89\n{step}\n{message}\n")
    assert rank.progress() == (80, "loss 0.31 accuracy 0.90")


def test_a_rank_that_has_printed_no_step_is_at_step_0(tmp_path):
    """Also when it has printed something else."""
    assert rank_with_log(tmp_path, "begins at step 0\n").progress() == (0, "")
