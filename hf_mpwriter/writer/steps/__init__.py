"""Steps: all scalars of a training step as one record, `SummaryWriter.log`.

`SummaryWriter` inherits it; the record goes to the event file of the worker as any other.
"""
