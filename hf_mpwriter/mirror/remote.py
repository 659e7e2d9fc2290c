"""The target of a logdir that is a URL, by fsspec.

    pipe_file              a file that is short
    one open .. close      a longer one; nothing is published before the close

Invariant: no other code imports fsspec, and this module only when it opens a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hf_mpwriter.base.names import ELSEWHERE, SPOOL_NAME
from hf_mpwriter.mirror.targets import CHUNK, LONGEST_PLACE, CopySource, check_is_free, without_other_runs
from hf_mpwriter.system import failpoints

MARK = (
    b"The state of this run is kept elsewhere; see .hf_mpwriter in the documentation.\n"  # no store takes empty files
)
PIPED = 16 << 20  # bytes up to which a file goes in one piece


class RemoteTarget:
    """A place that fsspec knows by its URL, see `Target`."""

    def __init__(self, to: str) -> None:
        import fsspec.core  # here: no other process of ours needs it

        self._filesystem: Any
        self._filesystem, self._root = fsspec.core.url_to_fs(to)
        self._to, self._is_marked = to, False  # whether it is known to have the name of a spool

    def _place(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}".rstrip("/")

    def length(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""
        try:
            return int(self._filesystem.info(self._place(path))["size"] or 0)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self) -> dict[str, int]:
        """Bytes of all files; those of other runs are listed behind the names of their spools."""
        start = self._place("") + "/"
        try:
            found = self._filesystem.find(self._root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        below = {name.removeprefix(start): entry for name, entry in found.items() if name.startswith(start)}
        others = {above for path in below for above, mark, _ in [path.partition(f"/{SPOOL_NAME}/")] if mark}
        files = {path: int(entry["size"] or 0) for path, entry in below.items() if SPOOL_NAME not in path.split("/")}
        return without_other_runs(files, others)

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file."""
        import fsspec.core

        filesystem, _ = fsspec.core.url_to_fs(self._to)  # of this thread, unless it is asynchronous
        with filesystem.open(self._place(path), "rb") as file:
            while piece := file.read(CHUNK):
                yield piece

    def last_place(self) -> bytes:
        """What `.hf_mpwriter/ELSEWHERE` holds, its beginning if it is long."""
        data: bytes = self._filesystem.cat_file(self._place(ELSEWHERE), start=0, end=LONGEST_PLACE)
        return data

    def name_place(self, data: bytes) -> None:
        """Have `.hf_mpwriter/ELSEWHERE` hold this."""
        self._filesystem.pipe_file(self._place(ELSEWHERE), data)

    def clean(self, directory: str) -> None:
        """Do nothing: there are no temporary files."""

    def put(self, source: CopySource, there: int | None) -> None:
        """Write a file as a whole, where so many bytes of it were seen, and see that it is there."""
        place = self._place(source.path)
        self._mark_run()
        check_is_free(self, source, there)
        self._making(place, lambda place: self._put(source, place))
        self._filesystem.invalidate_cache()
        if (size := int(self._filesystem.info(place)["size"])) != source.length:
            raise OSError(f"{size} of {source.length} bytes are there after {source.path} was written")

    def _making(self, place: str, put: Callable[[str], object]) -> None:
        """Put a file; where directories count, they are made."""
        try:
            put(place)
        except FileNotFoundError:
            if not self._filesystem.exists(place.partition("/")[0] or "/"):  # a bucket: a slip would make another one
                raise
            self._filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
            put(place)

    def _mark_run(self) -> None:
        """Leave the name of a spool in the logdir."""
        if not self._is_marked and self.length(ELSEWHERE) is None:
            self._making(self._place(ELSEWHERE), lambda place: self._filesystem.pipe_file(place, MARK))
        self._is_marked = True

    def _put(self, source: CopySource, place: str) -> None:
        if source.length <= PIPED:
            self._filesystem.pipe_file(place, b"".join(source.chunks()))
            return
        file = self._filesystem.open(place, "wb")  # no block: that would publish a part of it after an error
        for chunk in source.chunks():
            file.write(chunk)
            failpoints.reach("copy.write")
        file.close()
