"""The parts of `soak.py`: the run, the processes in it, and every kind of fault that strikes them."""
