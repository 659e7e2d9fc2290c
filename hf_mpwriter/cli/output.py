"""Lines of text about files and uploaders, and the progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.spool.progress import size_text
from hf_mpwriter.spool.status import UploaderStatus

if TYPE_CHECKING:
    from hf_mpwriter.testing import Report


def printable(text: str) -> str:
    """Return a text with everything escaped that no terminal could print, such as a file name that is not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def counted(count: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def uploader_line(uploader: UploaderStatus, now: float, *, alive: bool) -> str:
    """Return a line about an uploader: what it does, when it last wrote its status, what holds it up.

    Args:
        uploader: as it last described itself.
        now: unix time.
        alive: whether it holds the uploader lock.
    """
    parts = [f"uploader {uploader.pid} is {uploader.phase}" if alive else "no uploader runs"]
    if alive and uploader.beat:
        parts[0] += f", last seen {max(0, now - uploader.beat):.0f} s ago"
    if alive and (stillness := uploader.stillness(now)):
        parts.append(stillness)
    if uploader.reason:
        failures = "1 failure" if uploader.failures == 1 else f"{uploader.failures} failures in a row"
        parts.append(f"{failures}: {uploader.reason} {uploader.hint}")
    return "; ".join(parts).rstrip()


def file_line(file: LocalFile, on_hub: int) -> str:
    """Return a line about a file of a run directory, of which the Hub holds `on_hub` bytes."""
    growing = " (growing)" if file.growing else ""
    return f"  {_sizes(on_hub, file.length)}  {printable(file.path)}{growing}"


def comparison_lines(report: Report) -> Iterator[str]:
    """Return a line for each file that the oracle compared with the Hub's copy."""
    for file in report.files.values():
        events = f"{file.hub_events:>8} of {file.local_events:>8} events"
        yield f"  {_sizes(file.hub_bytes, file.local_bytes)} {events}  {printable(file.path)}"
    for file in report.attachments.values():
        yield f"  {_sizes(file.hub_bytes, file.local_bytes)} {'':27}  {printable(file.path)}"


def _sizes(part: int, total: int) -> str:
    return f"{size_text(part):>9} of {size_text(total):>9}"


class UploadBar:
    """A progress bar of bytes on the Hub; above it, the reason of a failed push, once each.

    Args:
        total: bytes of all files.
        missing: bytes that are not on the Hub yet.
    """

    def __init__(self, total: int, missing: int) -> None:
        self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="on the Hub", initial=total - missing)
        self._total = total
        self._last_failure = ""

    def update(self, missing: int) -> None:
        """Show what is missing now; the bar never goes back."""
        self._bar.n = max(self._bar.n, self._total - missing)
        self._bar.refresh()

    def show_failure(self, uploader: UploaderStatus) -> None:
        """Print why the last push failed, unless that was printed last time."""
        if uploader.failures and uploader.reason and uploader.reason != self._last_failure:
            self._last_failure = uploader.reason
            self._bar.write(f"not yet: {uploader.reason} {uploader.hint}".rstrip())

    def close(self) -> None:
        """Leave the bar on the screen as it is."""
        self._bar.close()
