"""The lock check in the processes that tests start.

This directory is on the PYTHONPATH of those processes.
"""

from lock_check import install_on_import

install_on_import()
