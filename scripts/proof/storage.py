#!/usr/bin/env python3
"""Wherever a run logs to, no returned record is lost, none is doubled, and `push` says the truth.

    python scripts/proof/storage.py                          # all rows: as root
    python scripts/proof/storage.py --only gcsfuse s3fs      # these alone
    python scripts/proof/storage.py --list                   # the rows, and which cannot be tried here

A row is a filesystem, a FUSE model of a mount, or a URL. In each, four processes log 500 records of mixed size. One of
them is killed while it logs, with the uploader and the mirror; the others end; four start again in the same directory;
then what was on the local disk is taken away, and one process starts as on another machine.

Judged in each row: every record whose call had returned is once in the logdir, as other hosts see it, once on the Hub,
and TensorBoard shows it once on the mount; no `push` said True before, but for mounts that publish closed files later
by themselves; no process fails; none stays behind. While the run goes on, others and TensorBoard come to see all that
was logged before they looked, and nothing twice.

Exit code 0 if all held, 1 if something was lost, doubled, or not as said. `./scripts/packages` installs what rows need.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, make_parser
from lib.isolation import isolate, own_mounts

HEAD = ("row", "way", "built", "open: there", "shown", "closed: shown", "lost there", "on Hub", "doubled", "push", "s")
WIDTHS = (22, 12, 8, 12, 12, 14, 11, 7, 8, 13, 5)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], help="these rows (default: all)")
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--ranks", type=int, default=4, help="processes at once (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="print what took how long, and what users were told")
    parser.add_argument("--keep", action="store_true", help="keep the files of rows that fail")
    add_directory(parser)
    return parser.parse_args(arguments)


def line(cells: tuple[object, ...]) -> str:
    """A row of the table."""
    return " ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def main() -> int:
    """Run the rows; 1 if something is wrong."""
    options = options_of()
    own_mounts()  # whatever ends this process, no mount of it stays
    from storing.places import ROWS, prepared, why_not
    from storing.run import Run, on_a_hub

    if unknown := sorted(set(options.only) - set(ROWS)):
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
        return 2
    if options.list:
        print(*(f"{row:24}{why_not(row)}".rstrip() for row in ROWS), sep="\n")
        return 0
    top = Path(tempfile.mkdtemp(prefix="storage-", dir=options.dir))
    isolate(top)
    print(line(HEAD), flush=True)
    failed = []
    for row in options.only or ROWS:
        if reason := why_not(row):
            print(f"{row:22} skipped: {reason}", flush=True)
            continue
        folder = top / row
        with on_a_hub(folder) as hub, prepared(row, folder / "place") as place:
            found = Run(row, place, folder / "run", hub, options.ranks).go()
        pushes = f"{sum(found.pushed)}/{len(found.pushed)}"
        pushes += f" ({found.later} later)" * bool(found.later) + f" ({found.dishonest} wrong)" * bool(found.dishonest)
        print(
            line(
                (
                    *(
                        row,
                        found.way,
                        f"{1000 * found.built:.0f} ms",
                        f"{found.open_there}/{found.half}",
                        found.open_shown,
                    ),
                    *(f"{found.shown}/{found.returned}", found.lost_there, found.lost_on_hub, found.doubled),
                    *(pushes, round(found.seconds)),
                )
            )
        )
        print(*(f"    {problem}" for problem in found.problems), sep="\n", end="\n" * bool(found.problems), flush=True)
        if options.show:
            print(*(f"    | {said}" for said in (found.reached, *found.said)), sep="\n", flush=True)
        if found.problems:
            failed.append(row)
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
