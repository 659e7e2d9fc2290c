"""The part of a worker in a staged run: what it seals for the mirror, and how an earlier run comes back at its start."""
