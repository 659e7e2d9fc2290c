"""What surrounds a process: drawn at random from a seed, one choice per line, each of which a user has met.

place/            the example's own directory
cwd/            working directory, or the directory that is deleted under the process
home/           HOME where it is a usual one
closed/         a directory that cannot be written
file            a file where a directory should be
runs/<name>/    the run directory
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

UNSET = None
LOCALES: tuple[dict[str, str | None], ...] = (
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": UNSET, "LANG": UNSET, "LANGUAGE": UNSET},
    {"LC_ALL": "xx_XX.ISO-8859-1"},
)
NAMES = (b"exp1", b"exp1", b"exp 1", "Übung-1".encode(), b"it's\"$HOME", b"exp\xff1")


@dataclass(frozen=True)
class Surroundings:
    """One example."""

    environment: dict[str, str | None]  # variables; None removes one
    run_name: bytes  # name of the run directory
    umask: int  # of the process
    closed: tuple[int, ...]  # descriptors that are closed
    limits: dict[str, int]  # soft and hard limits, by name
    deleted_cwd: bool  # whether the working directory is deleted
    argument: int  # length of an argument that the program has
    import_path: int  # length of what is appended to its import path
    token_file: str  # where the token is, "" if it is in the environment
    moves: bool  # whether the program changes its directory after the writer is built

    @property
    def uploads(self) -> bool:
        """Whether an uploader can be started and can do its work."""
        return "RLIMIT_NPROC" not in self.limits

    @property
    def may_be_refused(self) -> bool:
        """Whether the constructor may say that this is not possible."""
        try:
            self.run_name.decode()
        except UnicodeDecodeError:
            return True
        return False


def draw(rng: random.Random, place: Path) -> Surroundings:
    """Draw an example; the directories of `place` exist."""
    deleted = rng.random() < 0.15
    homes = [str(place / "home")] * 3 + [UNSET, "", "home", str(place / "missing"), str(place / "file"), "/"]
    caches = [UNSET, UNSET, ".cache", str(place / "cache"), str(place / "closed"), str(place / "file" / "x")]
    hf_homes = [UNSET, UNSET, "./hf", "hf", "~/hf", str(place / "hf"), str(place / "closed"), str(place / "file")]
    tmps = [UNSET, UNSET, "tmp", str(place / "missing"), str(place / "closed"), str(place / "tmp"), ""]
    environment: dict[str, str | None] = {
        "HOME": rng.choice(homes),
        "XDG_CACHE_HOME": rng.choice(caches),
        "HF_HOME": rng.choice(hf_homes),
        "HF_HUB_CACHE": rng.choice([UNSET, UNSET, UNSET, "hub", str(place / "closed" / "hub")]),
        "HF_XET_CACHE": rng.choice([UNSET, UNSET, UNSET, "./xet", str(place / "file")]),
        "TMPDIR": rng.choice(tmps),
    }
    environment |= rng.choice(LOCALES)
    token_file = ""
    if not deleted and rng.random() < 0.5:
        token_file = rng.choice(["token", "./secret/token", str(place / "secret")])
        environment["HF_TOKEN_PATH"] = token_file
    limits: dict[str, int] = {}
    if rng.random() < 0.4:
        limits["RLIMIT_NOFILE"] = rng.choice([48, 64, 100])
    if rng.random() < 0.3:
        limits["RLIMIT_FSIZE"] = rng.choice([30_000, 200_000])
    if rng.random() < 0.1 and os.geteuid() == 0:
        limits["RLIMIT_NPROC"] = 1
    return Surroundings(
        environment=environment,
        run_name=rng.choice(NAMES),
        umask=rng.choice([0, 0o022, 0o027, 0o077]),
        closed=tuple(fd for fd in (0, 1, 2) if rng.random() < 0.2),
        limits=limits,
        deleted_cwd=deleted,
        argument=rng.choice([0, 0, 100_000]),
        import_path=rng.choice([0, 0, 0, 150_000, 400_000]),
        token_file=token_file,
        moves=rng.random() < 0.5,
    )
