"""What a run of `storage.py` showed."""

from __future__ import annotations

import dataclasses

Record = tuple[str, int]  # tag, step


@dataclasses.dataclass
class Found:
    """What a run showed.

    Attributes:
        row: its name.
        way: how the run was kept.
        built: seconds of the slowest constructor.
        half: records that all have logged at the half.
        open_there: of those, how many others see while the run goes on.
        open_shown: of those, how many TensorBoard shows on the mount.
        shown: records that TensorBoard shows in the end.
        returned: calls that returned.
        pushed: what `push` said in the processes that asked.
        later: how often that became true later, where the mount writes back.
        dishonest: how often that was not true.
        lost_there: returned records that are not in the logdir, as others see it.
        lost_on_hub: returned records that are not on the Hub.
        doubled: records that are somewhere twice.
        problems: what is wrong.
        said: the lines that the processes told their user, each once.
        seconds: of everything.
        reached: seconds after which each step was done.
    """

    row: str
    way: str = ""
    built: float = 0.0
    half: int = 0
    open_there: int = 0
    open_shown: int = 0
    shown: int = 0
    returned: int = 0
    pushed: list[bool] = dataclasses.field(default_factory=list)
    later: int = 0
    dishonest: int = 0
    lost_there: int = 0
    lost_on_hub: int = 0
    doubled: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    said: dict[str, None] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    reached: dict[str, float] = dataclasses.field(default_factory=dict)
