"""The `add_*` methods: the signatures of tensorboardX and of torch, in one.

    add_hparams      tensorboardX -> FileWriter.add_summary, into the directory of the trial
    add_embedding    tensorboardX -> files in the worker directory
    add_*            tensorboardX -> FileWriter.add_summary -> EventFile.append

Every method raises `NotLoggableError` for what cannot be logged. Where tensorboardX and torch differ, both parameter
names are accepted. By position, the type of the argument decides which parameter is meant. All but scalars is encoded
by tensorboardX.
"""

from __future__ import annotations

from hf_mpwriter.writer.methods.distributions import DistributionMethods
from hf_mpwriter.writer.methods.graphs import ChartMethods, GraphMethods
from hf_mpwriter.writer.methods.images import ImageMethods
from hf_mpwriter.writer.methods.media import MediaMethods
from hf_mpwriter.writer.methods.points import PointMethods
from hf_mpwriter.writer.methods.trials import TrialMethods
from hf_mpwriter.writer.refusals import refusing


class AddMethods(
    ImageMethods, MediaMethods, DistributionMethods, PointMethods, ChartMethods, GraphMethods, TrialMethods
):
    """All that can be logged; `SummaryWriter` adds construction, closing and pickling."""


for _name in dir(AddMethods):
    if _name.startswith("add_") and _name != "add_scalar":  # the short path has it in its own body
        setattr(AddMethods, _name, refusing(getattr(AddMethods, _name)))
