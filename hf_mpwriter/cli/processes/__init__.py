"""Commands about the processes of a run: what they log, and how they are ended."""
