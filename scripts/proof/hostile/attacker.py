"""The attacks of a second user, in seeded order, each undone after a while.

He may rename, remove and make things in the run directory (or only in its parent), and change the mode of what is his.
He sees in /proc when an uploader or a push starts, and strikes then. What is not his he never opens: whatever reaches a
canary was led there by a link of his, or by a directory that he put in place of another.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hostile.users import GROUP, Place

SPOOL = ".hf_mpwriter"
HELD = (0.0, 0.005, 0.05, 0.3, 0.3, 1.0, 3.0)  # seconds that something is in the wrong place
BETWEEN = (0.0, 0.5)  # seconds between two attacks, unless a process starts
DELAY = (0.0, 0.0, 0.05, 0.3, 0.8)  # seconds from the start of a process to an attack
YOUNG = 0.2  # seconds in which a new process may still become an uploader or a push
FLAPPING = (0.1, 1.0)  # seconds of quick changes to and fro
PAUSE = 200e-6  # seconds between two of them, at most
POLL = 0.001  # seconds between two looks at /proc
STARTING = {b"hf_mpwriter.push": "a push", b"hf_mpwriter.uploader": "an uploader"}  # words of their command lines
_EXCHANGE, _HERE = 2, -100  # of renameat2

_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: str, other: str) -> None:
    """Swap two names in one step."""
    if _libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2", one)


class Attacker:
    """The second user."""

    def __init__(self, place: Place, forged: Path, seed: str, *, only_parent: bool) -> None:
        self._run, self._attic, self._private = str(place.run_dir), str(place.attic), str(place.private)
        self._forged, self._rng, self._only_parent = str(forged), random.Random(seed), only_parent
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._busy: set[str] = set()
        self._known: set[str] = set()
        self._young: dict[str, float] = {}
        self._number = 0
        self.tally: Counter[str] = Counter()

    def strike_until(self, stop: Path) -> None:
        """Strike until a file appears; then undo everything."""
        following = 0.0
        while not stop.exists():
            now = time.monotonic()
            if started := self._who_started(now):
                self.tally[f"at the start of {started}"] += 1
                self._later(self._strike_at_start, self._rng.choice(DELAY))
            if now >= following:
                self._strike()
                following = now + self._rng.uniform(*BETWEEN)
            self._undo_due(now)
            time.sleep(POLL)
        while self._undo:
            self._undo_due(float("inf"))

    def _who_started(self, now: float) -> str:
        """Return what has started since the last look: an uploader, a push, or neither."""
        pids = {name for name in os.listdir("/proc") if name.isdecimal()}
        self._young |= dict.fromkeys(pids - self._known, now)
        self._known = pids
        found = ""
        for pid, seen in list(self._young.items()):
            command = b""
            with contextlib.suppress(OSError):
                command = Path("/proc", pid, "cmdline").read_bytes()
            kinds = [kind for word, kind in STARTING.items() if word in command]
            found = kinds[0] if kinds else found
            if kinds or now > seen + YOUNG:
                del self._young[pid]
        return found

    def _undo_due(self, now: float) -> None:
        due = [action for then, action in self._undo if then <= now]
        self._undo = [(then, action) for then, action in self._undo if then > now]
        for action in reversed(due):
            with contextlib.suppress(OSError):
                action()

    def _later(self, action: Callable[[], None], held: float | None = None) -> None:
        self._undo.append((time.monotonic() + (self._rng.choice(HELD) if held is None else held), action))

    def _new_name(self) -> str:
        self._number += 1
        return f"x{self._number:05d}"

    def _strike_at_start(self) -> None:
        """A process is about to open what it needs: lead it to the stranger, once or by turns."""
        path, kind = (self._run, "run") if self._only_parent else (os.path.join(self._run, SPOOL), "spool")
        self._try(self._rng.choice([lambda: self._replace(path, kind), lambda: self._flap(path, kind)]))

    def _strike(self) -> None:
        if self._only_parent:
            self._try(self._rng.choice([self._swap_run, self._add_beside]))
            return
        self._try(self._rng.choice([self._swap_spool] + [self._swap, self._add] * 3))

    def _try(self, attack: Callable[[], str]) -> None:
        try:
            self.tally[attack()] += 1
        except OSError as error:
            self.tally[f"refused: {error.strerror}"] += 1

    # what is put in place of something; all of it is made in the attic

    def _made(self, *kinds: str) -> tuple[str, str]:
        """Make something; return its path and its kind."""
        kind = self._rng.choice(kinds)
        path = os.path.join(self._attic, self._new_name())
        getattr(self, f"_make_{kind}")(path)
        return path, kind

    def _make_spool(self, path: str) -> None:
        """A spool of his own, which leads to his server."""
        shutil.copytree(self._forged, path)
        self._open(path)

    def _make_run(self, path: str) -> None:
        """A run directory of his own."""
        os.mkdir(path)
        self._make_spool(os.path.join(path, SPOOL))
        self._make_record(os.path.join(path, "events.out.tfevents.1795233003.his.1.0"))
        os.symlink(os.path.join(self._private, "secret.txt"), os.path.join(path, "secret.txt"))
        os.symlink(self._private, os.path.join(path, "rank_00001"))
        os.chmod(path, 0o777)  # noqa: S103 - the victim is to enter

    def _make_link_to_run(self, path: str) -> None:
        self._make_run(f"{path}.target")
        os.symlink(f"{path}.target", path)

    def _make_link_to_spool(self, path: str) -> None:
        self._make_spool(f"{path}.target")
        os.symlink(f"{path}.target", path)

    def _make_link_to_private(self, path: str) -> None:
        os.symlink(self._private, path)

    def _make_link_to_canary(self, path: str) -> None:
        names = ("secret.txt", "events.out.tfevents.1795233002.canary.1.0")
        os.symlink(os.path.join(self._private, self._rng.choice(names)), path)

    def _make_link_to_proc(self, path: str) -> None:
        os.symlink(self._rng.choice(["/proc/self", "/proc/self/fd/1", "/dev/zero", "/dev/tty", path]), path)

    def _make_directory(self, path: str) -> None:
        os.mkdir(path)
        os.chmod(path, self._rng.choice([0o777, 0o755, 0o2775, 0]))

    def _make_fifo(self, path: str) -> None:
        os.mkfifo(path)
        os.chmod(path, 0o666)  # noqa: S103 - the victim may wait for it for ever

    def _make_socket(self, path: str) -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as it:
            it.bind(path)

    def _make_record(self, path: str) -> None:
        """An event file, or a part of one; it is his own."""
        with open(path, "wb") as file:
            file.write(self._rng.choice([b"", b"\0" * 24, os.urandom(1000)]))
        os.chmod(path, self._rng.choice([0o644, 0o666, 0]))

    def _make_twin(self, path: str) -> None:
        """A file with two names."""
        self._make_record(path)
        os.link(path, f"{path}.twin")

    def _make_hard_link(self, path: str) -> None:
        """A hard link to a canary; most systems refuse it."""
        os.link(os.path.join(self._private, "secret.txt"), path)

    def _make_nothing(self, path: str) -> None:
        """Leave the name empty."""

    def _open(self, top: str) -> None:
        """Let everybody read and write, as the owner's own spool would look to the owner, or as a group's."""
        directory, file = self._rng.choice([(0o777, 0o666), (0o755, 0o644), (0o2770, 0o660), (0o700, 0o600)])
        for path, names, files in os.walk(top):
            for name in names:
                os.chown(os.path.join(path, name), -1, GROUP)
                os.chmod(os.path.join(path, name), directory)
            for name in files:
                with contextlib.suppress(OSError):
                    os.chmod(os.path.join(path, name), file)
        os.chmod(top, directory)

    # attacks

    def _swap_run(self) -> str:
        return self._replace(
            self._run, "run", "run", "run", "link_to_run", "directory", "fifo", "link_to_proc", "nothing"
        )

    def _swap_spool(self) -> str:
        kinds = (
            "spool",
            "spool",
            "spool",
            "link_to_spool",
            "link_to_private",
            "directory",
            "fifo",
            "record",
            "nothing",
        )
        return self._replace(os.path.join(self._run, SPOOL), *kinds)

    def _swap(self) -> str:
        """Replace something in the run directory."""
        names = [name for name in os.listdir(self._run) if name != SPOOL and not name.startswith("x")]
        if not names:
            return "nothing to replace"
        path = os.path.join(self._run, self._rng.choice(names))
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return self._replace(path, "directory", "link_to_private", "link_to_proc", "fifo", "record", "nothing")
        kinds = ("fifo", "link_to_canary", "link_to_proc", "record", "twin", "hard_link", "directory", "nothing")
        return self._replace(path, *kinds)

    def _replace(self, path: str, *kinds: str) -> str:
        made, kind = self._made(*kinds)
        name = os.path.basename(path) if path.endswith((SPOOL, "exp1")) else "something"
        return self._put(path, made, f"{kind.replace('_', ' ')} in place of {name}")

    def _put(self, path: str, made: str, what: str) -> str:
        """Put what was made in place of something, for a while."""
        if path in self._busy:
            return "already replaced"
        aside = os.path.join(os.path.dirname(path), self._new_name())
        number = os.lstat(made).st_ino if os.path.lexists(made) else 0
        if not number:
            os.rename(path, aside)
        elif self._rng.random() < 0.5:
            with contextlib.suppress(OSError):
                os.rename(made, aside)
            try:
                exchange(aside, path)
            except OSError:
                self._discard(aside)
                raise
        else:
            os.rename(path, aside)
            with contextlib.suppress(OSError):  # the victim has made it again; what is aside is put back all the same
                os.rename(made, path)
        self._busy.add(path)
        self._later(lambda: self._put_back(path, aside, number))
        return what

    def _put_back(self, path: str, aside: str, number: int) -> None:
        """Put back what was there; what others made there in between goes away. The number is his inode's."""
        if any(path.startswith(f"{outer}/") for outer in self._busy):  # its directory is somewhere else at the moment
            self._later(lambda: self._put_back(path, aside, number), POLL)
            return
        self._busy.discard(path)
        if not os.path.lexists(aside):  # it was removed meanwhile, or it was in a directory of his own
            self._take_away(path, number)
            return
        try:
            exchange(aside, path)
        except OSError:
            os.rename(aside, path)
            return
        self._discard(aside)

    def _flap(self, path: str, kind: str) -> str:
        """Put his own in place of something and back, as often as possible: between a check and a use."""
        if path in self._busy:
            return "already replaced"
        made, _ = self._made(kind)
        aside = os.path.join(os.path.dirname(path), self._new_name())
        os.rename(made, aside)
        end, there = time.monotonic() + self._rng.uniform(*FLAPPING), False
        try:
            while time.monotonic() < end or there:
                exchange(aside, path)
                there = not there
                time.sleep(self._rng.uniform(0, PAUSE))
        finally:
            self._discard(aside)
        return f"{kind} by turns in place of {os.path.basename(path)}"

    def _add_beside(self) -> str:
        """Add a run directory of his own beside it, which looks unfinished."""
        path = os.path.join(os.path.dirname(self._run), f"exp{self._rng.randrange(2, 10**6)}")
        made, kind = self._made("run", "link_to_run", "link_to_private", "fifo")
        os.rename(made, path)
        self._later(lambda: self._discard(path))
        return f"{kind.replace('_', ' ')} beside the run directory"

    def _add(self) -> str:
        """Add something to the run directory."""
        n = self._rng.randrange(10**6)
        name = self._rng.choice([f"events.out.tfevents.1795{n:06d}.his.1.0", f"note{n}.txt", f"rank_{n % 20:05d}"])
        path = os.path.join(self._run, name)
        made, kind = self._made(
            "link_to_canary", "link_to_private", "link_to_proc", "directory", "fifo", "socket", "record", "twin"
        )
        number = os.lstat(made).st_ino
        os.rename(made, path)
        self._later(lambda: self._take_away(path, number))
        return f"{kind.replace('_', ' ')} added"

    def _take_away(self, path: str, number: int) -> None:
        """Remove what he has made, known by its inode; while he has replaced it himself, it is not there."""
        if path in self._busy:
            self._later(lambda: self._take_away(path, number), POLL)
        elif os.lstat(path).st_ino == number:
            self._discard(path)

    def _discard(self, path: str) -> None:
        """Remove what is his; what others made in it goes to the attic with it."""
        with contextlib.suppress(OSError):
            os.rename(path, os.path.join(self._attic, self._new_name()))
            return
        with contextlib.suppress(OSError):
            os.unlink(path)


def forge(spool: Path, forged: Path, run_dir: Path) -> None:
    """Make of a spool of the attacker's own one that speaks of the victim's run directory."""
    own = str(spool.parent)
    shutil.copytree(spool, forged, ignore=shutil.ignore_patterns("*.lock"))
    for path in forged.rglob("*.json"):
        with contextlib.suppress(UnicodeDecodeError):
            path.write_text(path.read_text().replace(json.dumps(own)[1:-1], json.dumps(str(run_dir))[1:-1]))
