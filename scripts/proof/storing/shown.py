"""What TensorBoard shows of a logdir, in a process of its own: a mount may hang, or break the reader.

One server loads TensorBoard; each question is a fork of it, with the variables of its place.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection

ALL = {"scalars": 0, "tensors": 0, "histograms": 0}
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tensorboard.backend.event_processing.event_multiplexer"])

Points = list[tuple[str, int]]  # tag, step


def points(logdir: str, variables: dict[str, str], patience: float) -> Points | str:
    """All points of all runs below a logdir, or why there is no answer."""
    ours, theirs = _FORKS.Pipe(duplex=False)
    reader = _FORKS.Process(target=_read, args=(theirs, logdir, variables), daemon=True)
    reader.start()
    theirs.close()
    try:
        answer: Points | str = ours.recv() if ours.poll(patience) else "no answer"
    except EOFError:
        answer = "it ended"
    finally:
        reader.kill()
        ours.close()
    return answer


def _read(answer: Connection, logdir: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    sys.path[:0] = filter(None, [variables.get("PYTHONPATH", "")])
    logging.disable(logging.CRITICAL)
    import fsspec
    from tensorboard.backend.event_processing import event_multiplexer

    fsspec.process_entries()  # of the path above: the server has loaded fsspec without it
    try:
        found = event_multiplexer.EventMultiplexer(size_guidance=ALL)
        found.AddRunsFromDirectory(logdir)
        found.Reload()
        shown: Points = []
        for run, tags in found.Runs().items():
            of_run = found.GetAccumulator(run)
            read = {"scalars": of_run.Scalars, "tensors": of_run.Tensors, "histograms": of_run.Histograms}
            shown += [(tag, event.step) for kind, events in read.items() for tag in tags[kind] for event in events(tag)]
    except Exception as error:  # noqa: BLE001 - it is the finding
        answer.send(repr(error))
    else:
        answer.send(shown)
