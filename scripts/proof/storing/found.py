"""What a run of `storage.py` showed."""

from __future__ import annotations

import dataclasses

Record = tuple[str, int]  # tag, step


@dataclasses.dataclass
class Found:
    """What a run showed."""

    row: str  # its name
    way: str = ""  # how the run was kept
    built: float = 0.0  # seconds of the slowest constructor
    half: int = 0  # records that all have logged at the half
    open_there: int = 0  # of those, how many others see while the run goes on
    open_shown: int = 0  # of those, how many TensorBoard shows on the mount
    shown: int = 0  # records that TensorBoard shows in the end
    returned: int = 0  # calls that returned
    pushed: list[bool] = dataclasses.field(default_factory=list)  # what `push` said in the processes that asked
    later: int = 0  # how often that became true later, where the mount writes back
    dishonest: int = 0  # how often that was not true
    lost_there: int = 0  # returned records that are not in the logdir, as others see it
    lost_on_hub: int = 0  # returned records that are not on the Hub
    cuts: int = 0  # how often the mount was cut
    asked: int = 0  # how often `status` was asked meanwhile
    complete: int = 0  # how often it said that all is on the Hub
    doubled: int = 0  # records that are somewhere twice
    problems: list[str] = dataclasses.field(default_factory=list)  # what is wrong
    # the lines that the processes told their user, each once
    said: dict[str, None] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # of everything
    reached: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds after which each step was done
