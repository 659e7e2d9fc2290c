"""One record: the scalars that a framework logs at a step, together.

    scalars, a step            SummaryWriter.log
    no step                    add_scalar for each: nothing says that they belong together
    names that `log` refuses   add_scalar for each: what the framework's own logger takes is never an error here

A framework's own logger adds them one by one. Values, tags and steps are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mpwriter.writer.summary_writer import SummaryWriter


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scalars among values, and all others."""
    scalars = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return scalars, {name: value for name, value in values.items() if name not in scalars}


def add(writer: SummaryWriter, scalars: Mapping[str, Any], step: int | None) -> None:
    """Log scalars, as one record if that is possible."""
    if step is not None:
        try:
            writer.log(scalars, step)
        except (TypeError, ValueError):  # nothing is written then
            pass
        else:
            return
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)
