"""tensorboardX's `GlobalSummaryWriter` on a writer of ours: it counts steps per tag, over all processes.

    add_scalar, add_image, add_text   tensorboardX: the next step of the tag -> smw.add_*
    smw                               EnvironmentWriter

Only `patch()` hands it out. New code does not need it: writers of one process on one run directory share a file.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tensorboardX.global_writer import GlobalSummaryWriter as _GlobalSummaryWriter

from hf_mpwriter.integrations.from_environment import EnvironmentWriter


class GlobalEnvironmentWriter(_GlobalSummaryWriter):
    """A `GlobalSummaryWriter` with the destination of the environment; local if the environment has none.

    Args:
        *args: of `SummaryWriter`.
        coalesce_process: accepted and ignored, as tensorboardX does.
        **kwargs: of `SummaryWriter`.
    """

    _shared: ClassVar[GlobalEnvironmentWriter | None] = None

    def __init__(self, *args: Any, coalesce_process: bool = True, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(write_to_disk=False)
        self.smw = EnvironmentWriter(*args, **kwargs)

    @staticmethod
    def getSummaryWriter() -> GlobalEnvironmentWriter:  # noqa: N802 - tensorboardX's name
        """Return the one of this program; the first call makes it."""
        cls = GlobalEnvironmentWriter
        writer = cls._shared = cls._shared or cls()
        print("Using the global logger in:", writer.smw.get_logdir())
        return writer
