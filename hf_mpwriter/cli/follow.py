"""`hf-mpwriter pull --follow`: the run of LOGDIR comes from its bucket while it goes on, and TensorBoard shows it.

    the bucket           what is done
    is there             what it has in addition comes, round after round
    is not, or refuses   one line; the repository is pulled once a minute, and the bucket looked for
    does not answer      it is asked again; after --until-quiet the exit code is 1

A pull of the repository comes first, as of any pull.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.words import ago, counted, size_text
from hf_mpwriter.cli.output import LiveLine
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import kernel
from hf_mpwriter.system.launch import Child
from hf_mpwriter.system.redaction import printable

if TYPE_CHECKING:
    from hf_mpwriter.pull.follow import Seen
    from hf_mpwriter.pull.repository import Pulled
    from hf_mpwriter.push.client import Hub

BOARD_START = 60.0  # seconds until a TensorBoard names its address
PULL_EVERY = 60.0  # seconds between two pulls of the repository without a bucket
NO_BUCKET = "The bucket {} is not there, or this token may not read it ({}): the repository is pulled once a minute."


def follow(
    spool: Spool,
    destination: Destination,
    wanted: Callable[[str], bool],
    again: Callable[[], Pulled],
    bucket: str,
    until_quiet: float | None,
    *,
    opens: bool,
) -> None:
    """Go on with what the bucket gets, until Ctrl-C or the run is quiet; `again` pulls the repository once more."""
    if opens and importlib.util.find_spec("tensorboard") is None:
        raise click.ClickException("--open needs TensorBoard, which is not installed here: pip install tensorboard")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, before)
        from hf_mpwriter.pull.follow import following

        with following(spool):
            if not spool.has_destination():
                spool.record_destination(destination)
            to = spool.destination() or destination
            _Following(spool, to, wanted, again, bucket).go_on(until_quiet, opens=opens)


class _Following:
    """A follower, and what is shown of it."""

    def __init__(
        self,
        spool: Spool,
        destination: Destination,
        wanted: Callable[[str], bool],
        again: Callable[[], Pulled],
        bucket: str,
    ) -> None:
        from hf_mpwriter.pull.follow import Follower

        self._spool, self._destination, self._again = spool, destination, again
        self._bucket = bucket
        self._follower = Follower(spool, self._hub(), bucket, destination, wanted)
        self._line, self._told = LiveLine(), set[str]()

    def go_on(self, until_quiet: float | None, *, opens: bool) -> None:
        """Follow; an error if it ends because the run is quiet, and the Hub does not answer."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            stack.callback(self._follower.close)
            if opens:
                stack.enter_context(_board(self._spool.run_dir))
            pulled_at = time.monotonic()
            for seen in self._follower.rounds():
                if not seen.has_bucket:
                    self._say(NO_BUCKET.format(self._bucket, seen.status))
                    if time.monotonic() > pulled_at + PULL_EVERY:
                        pulled_at = time.monotonic()
                        self._pull(seen)
                self._say_left(seen.left)
                self._line.show(self._state(seen))
                if until_quiet is not None and not seen.lacks and time.monotonic() > seen.at + until_quiet:
                    if seen.why and seen.has_bucket:
                        raise click.ClickException(printable(f"{self._bucket}: {seen.why}"))
                    return

    def _hub(self) -> Hub:
        from hf_mpwriter.push.client import Hub
        from hf_mpwriter.push.clock import PERSON_LIMIT, Clock

        return Hub(self._destination, Clock(PERSON_LIMIT, is_patient=True), is_impatient=True)

    def _pull(self, seen: Seen) -> None:
        """Pull the repository, as there is no bucket."""
        try:
            found = self._again()
        except click.ClickException as error:
            self._say(error.message)
        else:
            self._say_left(found.left)
            if found.fetched:
                seen.at = time.monotonic()
        self._follower.use(self._hub())

    def _say_left(self, left: dict[str, str]) -> None:
        for path, reason in left.items():
            self._say(f"{path}: {reason}")

    def _say(self, text: str) -> None:
        """Print a line, each once."""
        if text not in self._told:
            self._told.add(text)
            self._line.say(text)

    def _state(self, seen: Seen) -> str:
        """The newest step and its age, or why there is none."""
        if seen.why and seen.has_bucket:
            return f"{self._bucket}: not now: {seen.why}"
        if seen.step is None:
            return f"{self._bucket}: nothing new yet"
        left = f", {size_text(seen.lacks)} to come" if seen.lacks else ""
        return f"{self._bucket}: step {seen.step}, {ago(time.time() - seen.wall_time)}{left}"

    def _end(self) -> None:
        """What came."""
        self._line.close()
        seen = self._follower.seen
        came = f"{size_text(seen.came)} of {self._bucket} came, in {counted(len(seen.files), 'file')}"
        click.echo(printable(f"{came}: {self._spool.run_dir}"))


@contextlib.contextmanager
def _board(run_dir: str) -> Iterator[None]:
    """A block in which a TensorBoard shows the run, in the browser."""
    child = Child("board", b"", run_dir, {})
    try:
        until, lines = time.monotonic() + BOARD_START, list[bytes]()
        while not (lines or child.has_ended() or time.monotonic() > until):
            child.wait(0.2)
            lines = child.lines()
        if not lines:
            raise click.ClickException(f"TensorBoard {'ended' if child.code is not None else 'does not start'}.")
        url = lines[0].decode(errors="replace")
        click.echo(printable(f"TensorBoard: {url}"))
        webbrowser.open(url)
        yield
    finally:
        child.end(1.0)


def main() -> None:
    """Be that TensorBoard, on a free port of this machine; it prints its address."""
    from tensorboard import program

    kernel.die_with_parent(int(sys.argv[3]))
    board = program.TensorBoard()
    board.configure(
        logdir=sys.argv[1], host="127.0.0.1", port=0, load_fast="false", reload_interval=1, reload_multifile=True
    )
    print(board.launch(), flush=True)
    while True:
        signal.pause()
