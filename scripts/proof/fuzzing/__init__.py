"""The parts of `fuzz.py`: a real run, what becomes of its files and of the Hub's answers, and those who read them."""
