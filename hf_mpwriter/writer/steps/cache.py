"""The cache of step encoders, per names in their order.

    this dictionary  --is full-->  old  --is replaced by the next full one-->  gone
      ^------is used again---------'

Two generations keep what was used last, without a note of each use: a hit is one look into a dictionary.

Invariants:
- Sets of names that fit into one generation all stay, in whatever order they are used.
- Beside the set that was used last, no more than two generations are kept.
- Threads need no lock: the worst that a race does is to encode names once more.
"""

from __future__ import annotations

from hf_mpwriter.writer.steps.encoder import StepEncoder
from hf_mpwriter.writer.steps.metrics import tags_of

GENERATION = 32_768  # names of a generation
SET_COST = 16  # names that each set counts in addition: many small sets take memory too

Names = tuple[str, ...]


class EncoderCache(dict[Names, StepEncoder]):
    """The encoders of the names that were logged last; an encoder that is not there is made."""

    def __init__(self) -> None:
        super().__init__()
        self._old: dict[Names, StepEncoder] = {}
        self._size = 0

    def __missing__(self, names: Names) -> StepEncoder:
        """Return the encoder of an older generation, or a new one."""
        encoder = self[names] = self._old.get(names) or StepEncoder(tags_of(names))
        self._size += len(names) + SET_COST
        if self._size > GENERATION:
            self._old, self._size = self.copy(), 0
            self.clear()
        return encoder

    @property
    def kept(self) -> int:
        """How many names are kept, those of both generations once."""
        return sum(map(len, {**self._old, **self}))
