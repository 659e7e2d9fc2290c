#!/usr/bin/env python3
"""Wherever a run logs to, no returned record is lost, none is doubled, and `push` says the truth.

    python scripts/proof/storage.py                          # all rows: as root
    python scripts/proof/storage.py --only gcsfuse s3fs      # these alone
    python scripts/proof/storage.py --list                   # the rows, and which cannot be tried here
    python scripts/proof/storage.py --rounds 20 --ranks 1 2 4 --seed 1     # mounts that are cut

A row is a filesystem, a FUSE model of a mount, or a URL. In each, four processes log 500 records of mixed size. One of
them is killed while it logs, with the uploader and the mirror; the others end; four start again in the same directory;
then what was on the local disk is taken away, and one process starts as on another machine.

Judged in each row: every record whose call had returned is once in the logdir, as other hosts see it, once on the Hub,
and TensorBoard shows it once on the mount; no `push` said True before, but for mounts that publish closed files later
by themselves; no process fails; none stays behind. While the run goes on, others and TensorBoard come to see all that
was logged before they looked, and nothing twice.

With `--rounds` the mount is cut instead while processes log, at random moments: of sshfs (`-o reconnect`) its ssh is
killed, of bindfs the FUSE program, which is mounted anew later. Nothing may be lost, and `status`, which is asked each
second, never says that all is on the Hub while a returned record is not.

Exit code 0 if all held, 1 if something was lost, doubled, or not as said. `./scripts/packages` installs what rows need.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, add_seed, make_parser
from lib.isolation import isolate, own_mounts

if TYPE_CHECKING:
    from storing.found import Found

HEAD = ("row", "way", "built", "open: there", "shown", "closed: shown", "lost there", "on Hub", "doubled", "push", "s")
WIDTHS = (22, 12, 8, 12, 12, 14, 11, 7, 8, 13, 5)
HEAD_OF_ROUNDS = ("row", "ranks", "round", "cuts", "returned", "lost there", "on Hub", "doubled", "push", "status", "s")
WIDTHS_OF_ROUNDS = (8, 6, 6, 5, 9, 11, 7, 8, 5, 26, 4)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], help="these rows (default: all)")
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--ranks", nargs="+", type=int, default=[4], help="processes at once (default: 4)")
    parser.add_argument("--rounds", type=int, default=0, help="how often a mount is cut, of each row and --ranks")
    add_seed(parser)
    parser.add_argument("--show", action="store_true", help="print what took how long, and what users were told")
    parser.add_argument("--keep", action="store_true", help="keep the files of rows that fail")
    add_directory(parser)
    return parser.parse_args(arguments)


def line(cells: Iterable[object], widths: Sequence[int] = WIDTHS) -> str:
    """A row of the table."""
    return " ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def of_row(found: Found) -> str:
    """What a row has shown."""
    pushes = f"{sum(found.pushed)}/{len(found.pushed)}"
    pushes += f" ({found.later} later)" * bool(found.later) + f" ({found.dishonest} wrong)" * bool(found.dishonest)
    there = (f"{found.open_there}/{found.half}", found.open_shown, f"{found.shown}/{found.returned}")
    lost = (found.lost_there, found.lost_on_hub, found.doubled)
    return line((found.row, found.way, f"{1000 * found.built:.0f} ms", *there, *lost, pushes, round(found.seconds)))


def of_round(found: Found, ranks: int, number: int) -> str:
    """What a round has shown."""
    lost = (found.returned, found.lost_there, found.lost_on_hub, found.doubled)
    pushes, status = f"{sum(found.pushed)}/{len(found.pushed)}", f"asked {found.asked}, complete {found.complete}"
    return line((found.row, ranks, number, found.cuts, *lost, pushes, status, round(found.seconds)), WIDTHS_OF_ROUNDS)


def main() -> int:
    """Run the rows; 1 if something is wrong."""
    options = options_of()
    own_mounts()  # whatever ends this process, no mount of it stays
    from storing.cuts import Cuts
    from storing.places import CUT, ROWS, prepared, why_not
    from storing.run import Run, on_a_hub

    rows = CUT if options.rounds else ROWS
    if unknown := sorted(set(options.only) - set(rows)):
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(rows)}")
        return 2
    if options.list:
        print(*(f"{row:24}{why_not(row)}".rstrip() for row in rows), sep="\n")
        return 0
    top = Path(tempfile.mkdtemp(prefix="storage-", dir=options.dir))
    isolate(top)
    print(f"seed {options.seed}" if options.rounds else line(HEAD), flush=True)
    print(line(HEAD_OF_ROUNDS, WIDTHS_OF_ROUNDS) + "\n" if options.rounds else "", end="", flush=True)
    failed = []
    for row, ranks in itertools.product(options.only or rows, options.ranks):
        if reason := why_not(row):
            print(f"{row:22} skipped: {reason}", flush=True)
            continue
        for number in range(max(1, options.rounds)):
            name = f"{row}-{ranks}-{number}"
            folder, rng = top / name, random.Random(f"{options.seed} {name}")
            with on_a_hub(folder) as hub, prepared(row, folder / "place") as place:
                told = (row, place, folder / "run", hub, ranks)
                found = (Cuts(*told, rng) if options.rounds else Run(*told)).go()
            print(of_round(found, ranks, number) if options.rounds else of_row(found), flush=True)
            if found.problems:
                print(*(f"    {problem}" for problem in found.problems), sep="\n", flush=True)
                failed.append(name)
            if options.show or (found.problems and options.rounds):
                print(*(f"    | {said}" for said in (found.reached, *found.said)), sep="\n", flush=True)
            if not (found.problems and options.keep):
                shutil.rmtree(folder, ignore_errors=True)
    print(
        f"wrong: {', '.join(failed)}; see {top}"
        if failed
        else "every record is everywhere once, and push said the truth"
    )
    if not (failed and options.keep):
        shutil.rmtree(top, ignore_errors=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
