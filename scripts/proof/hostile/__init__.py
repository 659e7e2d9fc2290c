"""The parts of `hostile_user.py`: the two users, the attacks, the ranks under attack, the server of a stranger."""
