"""The operating system: files, locks, processes and secrets, and nothing of ours. Called by every other folder."""
