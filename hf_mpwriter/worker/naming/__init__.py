"""The name of this process in a run directory, and the names that other processes hold or have left."""
