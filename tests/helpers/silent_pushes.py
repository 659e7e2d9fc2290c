"""A stand-in for a push, for tests of the loop that starts it."""

from __future__ import annotations


class Silent:
    """A push that says nothing."""

    pid = 1
    asked_at = 0.0
    is_answered = False
    lingers = False

    def listen(self):
        """Nothing yet."""
        return [], None

    def wait(self, timeout: float) -> None:
        """Nothing to wait for."""

    def take(self, *_: object) -> bool:
        """It takes none: the next one is started anew."""
        return False

    def has_ended(self) -> bool:
        """It never ends."""
        return False

    def let_go(self) -> None:
        """Nothing is left of it."""
