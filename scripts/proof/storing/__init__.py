"""The parts of `storage.py`: where a run may log to, the processes that log, and what is left of their records."""
