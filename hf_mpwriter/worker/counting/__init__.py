"""Counting: the steps of those who log without saying which step it is.

The worker holds the count; `SummaryWriter.log` takes from it.
"""
