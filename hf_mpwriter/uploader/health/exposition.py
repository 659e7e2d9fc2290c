"""The text format of Prometheus: families of samples, each with its help and its type.

    # HELP hf_mpwriter_commits_total Commits made by this uploader.
    # TYPE hf_mpwriter_commits_total counter
    hf_mpwriter_commits_total{run="/data/runs/exp1",repo="me/run"} 3

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, section "Text-based format". The names follow
https://prometheus.io/docs/practices/naming/: a counter ends in `_total`, and times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """What one name stands for."""

    name: str  # of the metric
    kind: str  # counter, gauge or summary
    help: str  # one sentence
    # each with the end of its name ("" but for a summary), its own labels and its value
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)


def render(families: Iterable[Family], labels: Mapping[str, str]) -> str:
    """Return the text of a file."""
    lines = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for ending, own, value in family.samples:
            pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in {**labels, **own}.items())
            lines.append(f"{family.name}{ending}{{{pairs}}} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return a value of a label; a byte that is no UTF-8 becomes "?", as the format is UTF-8."""
    known = text.encode("utf-8", "replace").decode()
    return known.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
