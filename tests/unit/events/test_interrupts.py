"""Event files when a signal handler logs or raises behind any call."""

from __future__ import annotations

import dis
import itertools
import os
import sys
from collections.abc import Callable, Iterator

import pytest
from support import scalar

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.events import deferred_log, event_file, framing, segment, series
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.system import disk


class Interrupted(BaseException):
    """What a signal handler raises."""


def raise_interrupted() -> None:
    """A signal handler that raises."""
    raise Interrupted


MODULES = (event_file, series, segment, deferred_log, disk, framing)
SOURCES = {module.__file__ for module in MODULES}


def interrupted(n: int, action, handler=raise_interrupted) -> bool:
    """Run `action`; behind its n-th call within our modules, where a signal handler may run, one does.

    Returns whether it was interrupted.
    """
    passed, last, ran = itertools.count(1), {}, []

    def trace(frame, event, _):
        if frame.f_code.co_filename not in SOURCES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = last.get(frame)
            last[frame] = frame.f_lasti
            if before is not None and dis.opname[frame.f_code.co_code[before]].startswith("CALL") and next(passed) == n:
                ran.append(n)
                handler()
        return trace

    sys.settrace(trace)
    try:
        action()
    except Interrupted:
        pass
    finally:
        sys.settrace(None)
    return bool(ran)


def each_call(place, least: int = 7) -> Iterator[Callable[..., bool]]:
    """For each call in turn, in an empty directory: a function that runs an action and interrupts it behind that call.

    The last one interrupts nothing, as the action has no more calls; `least`: there were at least so many.
    """
    for n in itertools.count(1):
        ran = []

        def interrupting(action, handler=raise_interrupted, n=n, ran=ran) -> bool:
            ran.append(interrupted(n, action, handler))
            return ran[-1]

        place.reported.clear()
        yield interrupting
        for path in place.paths():
            os.unlink(path)
        if not any(ran):
            assert n > least
            return


def with_steps(place, *steps: int, **arguments) -> EventFile:
    """An event file with records of these steps."""
    file = place.file(**arguments)
    for step in steps:
        file.append(scalar(step))
    return file


@pytest.mark.parametrize("work", ["append", "flush", "close", "check"])
def test_what_a_signal_handler_logs_behind_any_call_is_kept_and_tears_nothing(place, work, caplog):
    """It logs behind every single call: each record is there once, and our length of the file is the true one."""
    payload = scalar(4)
    for interrupting in each_call(place, least=1):
        file = with_steps(place, 1, 2, 3)

        def handler(file=file):
            file.append(scalar(10))
            file.append(scalar(11, "a longer tag"))

        again = interrupting(
            lambda file=file: file.append(payload) if work == "append" else getattr(file, work)(), handler
        )
        assert not file.path or not file.length or file.length == os.path.getsize(file.path)
        interrupted(1, lambda file=file: file.append(scalar(5)), lambda file=file: file.append(scalar(12)))
        file.check()
        file.append(scalar(6))
        file.close()
        assert sorted(place.steps()) == sorted([1, 2, 3, *[4] * (work == "append"), 5, 6, *[10, 11] * again, 12])
        sealed = {path: length for kind, path, length in place.reported if kind == "seal"}
        assert all(sealed[path] == os.path.getsize(path) for path in place.paths())
    assert "changed" not in caplog.text, "no check takes it for damage"


def test_an_exception_of_a_signal_handler_never_duplicates_tears_or_loses_a_returned_record(place):
    """Raised behind every single call inside `append`: at most the record of that very append is missing."""
    payload = scalar(4)
    for interrupting in each_call(place, least=5):
        file = with_steps(place, 1, 2, 3)
        interrupting(lambda file=file: file.append(payload))
        file.append(scalar(5))
        file.append(scalar(6))
        file.close()
        assert place.steps() in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 6])
        assert not file._busy


def test_an_exception_while_a_segment_is_opened_holds_nothing_back(place):
    """Interrupted behind every call of the first append: later records are kept, and no file counts as growing."""
    payload = scalar(1)
    for interrupting in each_call(place):
        file = place.file(purge=3)
        interrupting(lambda file=file: file.append(payload))
        file.append(scalar(2))
        file.close()
        assert place.steps() in ([1, 2], [2])
        opened = {path for kind, path, _ in place.reported if kind == "open"}
        sealed = {path for kind, path, _ in place.reported if kind == "seal"}
        assert [path for path in opened - sealed if os.path.exists(path)] == [], "they count as growing for ever"


def test_an_exception_while_a_segment_is_sealed_spoils_neither_our_files_nor_anybody_elses(
    place, monkeypatch, tmp_path
):
    """Interrupted behind every call of the append that rotates: nothing raises later, no foreign file is touched."""
    monkeypatch.setattr(series, "SEGMENT_MIN", 150)  # the third record is the last
    payload = scalar(3)
    for interrupting in each_call(place):
        file = with_steps(place, 1, 2)
        interrupting(lambda file=file: file.append(payload))
        stranger = os.open(tmp_path / "stranger", os.O_RDWR | os.O_CREAT)
        for step in (4, 5, 6, 7):
            file.append(scalar(step))
        file.close()
        assert os.fstat(stranger).st_size == 0
        os.close(stranger)
        assert place.steps() in ([1, 2, 3, 4, 5, 6, 7], [1, 2, 4, 5, 6, 7])


def test_an_exception_while_waiting_records_are_written_loses_none_of_them(place):
    """The disk refused them, their calls had returned: a Ctrl-C while they are written is no loss."""
    for interrupting in each_call(place):
        file = with_steps(place, 1)
        file._refuse(OSError("refused"))
        for step in (2, 3, 4):
            file.append(scalar(step))
        assert file.waiting == 3
        place.now += USUAL.disk_retry_first
        interrupting(file.flush)
        file.append(scalar(5))
        file.close()
        assert place.steps() == [1, 2, 3, 4, 5]
        assert file._backlog.size == 0


@pytest.mark.parametrize("size", [-5, 0])
def test_after_an_interrupted_write_a_torn_record_is_cut_off_and_a_whole_one_stays(place, size):
    """An uploader may have seen a whole record: it is never taken back, although its call did not return."""
    file = place.file()
    file.append(scalar(1))
    record = framing.frame(scalar(2))
    os.write(file._series.current.fd, record[: len(record) + size])
    file._series.current.under_way = (record,)
    file.append(scalar(3))
    assert place.steps() == ([1, 3] if size else [1, 2, 3])
    assert os.path.getsize(file.path) == file.length


def test_the_memory_bound_holds_after_an_interruption(place):
    """Bookkeeping that was interrupted does not make a later append raise from an empty queue."""
    payload = scalar(1, "x" * 500)
    for interrupting in each_call(place):
        file = place.file(memory=100)
        interrupting(lambda file=file: file.append(payload))
        place.refuse = True
        file._refuse(OSError("refused"))
        file.append(scalar(2))
        place.refuse = False
        file.close()
