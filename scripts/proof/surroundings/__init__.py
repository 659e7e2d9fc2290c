"""The parts of `environments.py`: what surrounds a process, and the program that runs in it."""
