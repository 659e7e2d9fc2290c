"""The step count: each step once, from where it begins, with one look at the disk."""

from __future__ import annotations

import threading

from hf_mpwriter.worker.step_count import StepCount


def test_it_begins_with_what_is_on_disk_and_asks_once():
    """And not at all as long as no step is taken."""
    asked = []
    count = StepCount(lambda: asked.append(1) or 7)
    assert asked == []
    assert [count.take() for _ in range(3)] == [7, 8, 9]
    assert asked == [1]


def test_a_given_start_comes_before_the_disk():
    """The disk is asked again once it is forgotten."""
    count = StepCount(lambda: 7)
    count.start(100)
    assert [count.take(), count.take()] == [100, 101]
    count.start(3)
    assert count.take() == 3
    count.forget()
    assert count.take() == 7


def test_threads_that_begin_together_share_one_count():
    """Though each of them asks the disk."""
    gate = threading.Barrier(4)

    def first() -> int:
        gate.wait()
        return 5

    count, found = StepCount(first), []
    threads = [threading.Thread(target=lambda: found.append(count.take())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [5, 6, 7, 8]


def test_the_same_step_given_again_begins_again():
    """Though it is the same integer."""
    count = StepCount(lambda: 7)
    for _ in range(3):
        count.given = tuple([5])  # noqa: C409 - a constant would be one and the same
        assert [count.take(), count.take()] == [6, 7]


def test_a_signal_handler_that_takes_a_step_while_another_begins_gets_one_of_its_own():
    """It may run while the disk is asked: then both go on with one count."""
    found: list[int] = []

    def first() -> int:
        if not found:
            found.append(-1)
            found.append(count.take())
        return 5

    count = StepCount(first)
    assert [count.take(), *found] == [6, -1, 5]


def test_a_step_given_while_another_thread_asks_the_disk_is_where_it_goes_on():
    """What was given last is never forgotten, and no step behind it is taken twice."""
    found: list[int] = []

    def first() -> int:
        count.given = (40,)
        found.append(count.take())
        return 5

    count = StepCount(first)
    assert [count.take(), count.take(), *found] == [42, 43, 41]
