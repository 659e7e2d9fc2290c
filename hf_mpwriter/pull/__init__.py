"""Brings a run back from the Hub into a run directory, for another machine to continue. The command line calls it."""
