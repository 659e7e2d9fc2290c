"""What a process decides at its end: how long it waits. The waits themselves are in `worker/shutdown`."""
