"""The part of a worker in a staged run: what it seals, and how an earlier run comes back at the start."""
