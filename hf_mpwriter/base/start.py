"""The start record: what an uploader gets from the worker that starts it.

    worker  --JSON, on an inherited descriptor-->  uploader
    {"run_dir": "/home/me/runs/exp1", "destination": {"endpoint": "...", ...}, "token_issued_at": 1795236610.0,
     "seeks_siblings": true, "nodes": {"count": 16, "rank": 3}}

The token travels in the environment of the uploader, and it belongs to this endpoint. What stands in the files of a
spool is input: others may have written it. So the destination of an uploader is the one of its start record, from the
environment and the arguments of the worker, and no file changes it.

A path that is no UTF-8 survives: JSON keeps the escapes by which Python stands for its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_mpwriter.base.nodes import Nodes
from hf_mpwriter.base.settings import Destination


@dataclass(frozen=True)
class StartRecord:
    """What an uploader needs to know at its start.

    Attributes:
        run_dir: absolute path.
        destination: the only one that it sends to.
        token_issued_at: unix time when the worker that brings the token joined.
        seeks_siblings: whether it starts uploaders of unfinished runs beside this one.
        nodes: of the job that the worker belongs to.
    """

    run_dir: str
    destination: Destination
    token_issued_at: float = 0.0
    seeks_siblings: bool = False
    nodes: Nodes = field(default_factory=Nodes)
