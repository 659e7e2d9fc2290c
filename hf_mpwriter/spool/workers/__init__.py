"""The workers of a run directory: who writes, and who lives."""
