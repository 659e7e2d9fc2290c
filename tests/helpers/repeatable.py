"""Hypothesis, set up when this is imported."""

from __future__ import annotations

import hypothesis

# The same examples in every run, no clock in any verdict, nothing left in the working directory.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")
