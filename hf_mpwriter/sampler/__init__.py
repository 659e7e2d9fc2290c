"""The sampler: the process that logs what the machine does, one per run directory and host; workers start it."""
