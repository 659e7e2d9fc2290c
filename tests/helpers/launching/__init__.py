"""Cases of launchers, with real processes: for the tests of launchers, and for `scripts/proof/launchers.py`."""
