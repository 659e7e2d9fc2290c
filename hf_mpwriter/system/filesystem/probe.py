"""The probe: what a filesystem can do, tried out in a directory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Abilities:
    """What a filesystem can do.

    Attributes:
        exclusive: create a file only if there is none.
        append: open a file again, and append to it.
        read_open: read what was written to a file that is open.
        truncate: cut a file.
        rename: put a file in place of another one.
        link: give a file a second name.
        lock: refuse a lock that another open file holds.
        durable: show after fsync what was written.
        private: keep owner and mode of what is made.
    """

    exclusive: bool = True
    append: bool = True
    read_open: bool = True
    truncate: bool = True
    rename: bool = True
    link: bool = True
    lock: bool = True
    durable: bool = True
    private: bool = True
