"""The client: one destination on the Hub, as a push and the oracle need it.

    Hub(destination)      create, head, sizes, copy, commit, squash            what a push does
                          commits, tree, names, content, pushed                what the oracle and a pull read besides
    Account(endpoint)     whoami, repository                                   for people who look for a fault

Invariants:
- What goes wrong is raised as huggingface_hub raises it; `classify` knows what it means.
- A commit holds exactly the snapshot's lengths: a file that may still grow is cut there, any other is checked before
  it is read and before the request for the commit is sent.

Facts behind this module (huggingface_hub 2.4.0):
- `create_commit` never retries its POST.
- `hf_hub_download` retries for minutes, and its exception for "could not ask" is a subclass of "is not there". The
  model card is read by one request instead, and used only if it has the digest that the Hub reports: what a proxy or a
  portal answers must not be committed in its place.
- `parent_commit` takes 5 to 40 hex digits. An independent Hub may have longer ids; then the first 40 are named.
- A repository that was renamed answers its old name with a redirect, which the client follows; `repo_info` tells the
  new one.
- A file object among the operations would switch Xet off for the whole commit: bytes and paths only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import (
    BucketFile,
    BucketInfo,
    CommitOperationAdd,
    HfApi,
    ModelCard,
    RepoFile,
    RepoFolder,
    constants,
    get_session,
    hf_hub_url,
)
from huggingface_hub.errors import (
    BucketBatchError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from tqdm import tqdm

from hf_mpwriter.base.files import PAYLOAD_LIMIT, LocalFile, digest, feed, git_hasher
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent, Split
from hf_mpwriter.push.classify import classify, status_of
from hf_mpwriter.push.clock import PERSON_LIMIT, PUSH_LIMIT, Clock
from hf_mpwriter.push.job import Quota
from hf_mpwriter.push.transport import Contact, Transport
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import at

PATHS_PER_REQUEST = (500, 50)  # fewer where the Hub searches the history, too
ATTACHMENTS, EVENTS = "Add attachments (", "Add TensorBoard events ("  # so begin the titles of our commits
RUNS_NAMED = 3  # in a title
CARD_TIMEOUT = 15.0  # seconds; the events do not wait longer for a model card
LARGEST_FILE = 50 << 30  # bytes that the Hub takes in one file
PARENT_DIGITS = 40  # hex digits of a commit id that the client can name
ANSWER_TIMEOUT = 3.0  # seconds for all that `Account` asks
FoundT = TypeVar("FoundT")
TAG = "hf-summary-writer"  # what huggingface_hub's HFSummaryWriter adds to the model card


class SourceError(OSError):
    """A local file is not any more what was to be sent; nothing was sent of it."""

    def __init__(self, target: str, why: str) -> None:
        super().__init__(why)
        self.target = target  # path in the repository


class PathError(ValueError):
    """The client takes no file at this path of the repository; nothing was sent of it."""

    def __init__(self, target: str, why: str) -> None:
        super().__init__(why)
        self.target = target


class NotQuietError(OSError):
    """Files have changed while they were sent by their paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        super().__init__(f"changed while it was sent: {', '.join(sorted(self.paths))}")


@dataclass(frozen=True)
class Source:
    """A local file that is sent."""

    file: LocalFile  # as it was at the snapshot
    path: str  # where its content is read: it leads to one file, whatever becomes of names
    target: str  # path in the repository


Stamps = dict[Source, tuple[int, int]]  # size and modification time (ns) of files before they were read


def check_unchanged(stamps: Stamps) -> None:
    """Raise NotQuietError if a file is not any more what it was; a commit of it is not to be sent then."""
    if changed := [source.target for source, stamp in stamps.items() if _stamp(os.stat(source.path)) != stamp]:
        raise NotQuietError(changed)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Remote:
    """A file on the Hub."""

    size: int  # bytes
    sha256: str | None  # of an LFS or Xet file, None of a small regular one
    oid: str  # git's id: of the content of a regular file, else of the pointer to it

    def is_beginning_of(self, file: str | int) -> bool:
        """Whether a local file, by its path or open, begins with it."""
        if self.sha256 is not None:
            return digest(file, self.size) == self.sha256
        return feed(git_hasher(self.size), file, self.size) == self.oid

    @classmethod
    def of_copy(cls, path: str) -> Self:
        """What a downloaded copy really is."""
        size = os.stat(path).st_size
        return cls(size, digest(path, size), feed(git_hasher(size), path, size))


class Hub:
    """One destination on the Hub, for a person who waits or not. The token comes from the environment."""

    def __init__(
        self,
        destination: Destination,
        clock: Clock | None = None,
        *,
        is_impatient: bool = False,
        contact: Contact = lambda _: None,
    ) -> None:
        self.clock = clock or Clock(PERSON_LIMIT if is_impatient else PUSH_LIMIT, is_patient=is_impatient)
        self._transport = Transport(destination.endpoint, self.clock, is_impatient=is_impatient, contact=contact)
        self.private: bool | None = None  # whether the repository is private, None as long as the Hub has not said it
        self.created_at = ""  # when the repository was created, as the Hub tells it; a new one of its name has another
        self._destination = destination
        self._client = HfApi(endpoint=destination.endpoint)
        self._where: dict[str, Any] = {"repo_id": destination.repo_id, "repo_type": destination.repo_type}

    @property
    def _api(self) -> HfApi:
        """The client, for one question."""
        self._transport.question()
        return self._client

    @property
    def repo_id(self) -> str:
        """Name of the repository; the full one after `create` or `head`."""
        return str(self._where["repo_id"])

    @property
    def commits_sent(self) -> int:
        """Requests for a commit that were sent; only these can have an unknown outcome."""
        return self._transport.commits_sent

    @property
    def quota(self) -> Quota | None:
        """What is left of the requests of the account, None if the Hub does not tell."""
        return self._transport.quota

    def create(self, *, private: bool | None) -> None:
        """Create the repository and the branch where they are missing."""
        sdk = "static" if self._destination.repo_type == "space" else None
        url = self._api.create_repo(**self._where, private=private, exist_ok=True, space_sdk=sdk)
        self._where["repo_id"] = url.repo_id
        if self._destination.revision != "main":
            self._api.create_branch(**self._where, branch=self._destination.revision, exist_ok=True)

    def go_by_lfs(self) -> None:
        """Send content by LFS from here on, as the Hub has no Xet storage."""
        constants.HF_HUB_DISABLE_XET = True

    def is_private(self) -> bool | None:
        """Whether the repository is private, None if the Hub does not say."""
        if self.private is None:
            self.private = self._api.repo_info(**self._where).private
        return self.private

    def head(self) -> str | None:
        """The commit at the head of the branch, None if the repository or the branch does not exist."""
        info = _if_there(lambda: self._api.repo_info(**self._where, revision=self._destination.revision))
        if info is None:
            return None
        self._where["repo_id"], self.private = info.id or self._where["repo_id"], info.private
        self.created_at = str(getattr(info, "created_at", None) or "")
        return info.sha

    def sizes(self, paths: Iterable[str], revision: str) -> dict[str, Remote]:
        """What the Hub holds of paths of the run directory at one commit; missing ones are left out."""
        return {path: _remote(info) for path, info in self._infos(paths, revision, expand=False)}

    def _infos(self, paths: Iterable[str], revision: str, *, expand: bool) -> Iterator[tuple[str, RepoFile]]:
        wanted, step = {self._destination.path(path): path for path in paths}, PATHS_PER_REQUEST[expand]
        for start in range(0, len(wanted), step):
            chunk = list(wanted)[start : start + step]
            for info in self._api.get_paths_info(**self._where, paths=chunk, revision=revision, expand=expand):
                if isinstance(info, RepoFile) and info.path in wanted:
                    yield wanted[info.path], info

    @contextlib.contextmanager
    def copy(
        self, path: str, revision: str, size: int, scratch: str, came: Callable[[int], object] = lambda _: None
    ) -> Iterator[str]:
        """A block with the Hub's copy of a file, which the client downloads into `scratch` of the caller's.

        `came`: is told how many bytes are here.
        """
        where: dict[str, Any] = {**self._where, "filename": self._destination.path(path), "revision": revision}
        disk.remove_tree(at(scratch))
        try:
            with self._transport.expecting(size), _without_xet():
                copy = self._api.hf_hub_download(**where, local_dir=scratch, tqdm_class=_telling(came))
            yield copy
        finally:
            disk.remove_tree(at(scratch))

    def commit(
        self, sources: Sequence[Source], parent: str, *, fenced: bool, tag_card: bool
    ) -> tuple[str, dict[str, Sent]]:
        """Commit the snapshot's lengths of these files.

        The commit, and what it holds per target; not in it are those that the repository's .gitignore leaves out.

        `tag_card`: add the tag to the model card in the same commit. It is left out without a named parent,
        because it could undo what others have just written there, and if the Hub refuses the commit because of
        it.
        """
        named = parent if fenced else None
        if card := self._card_operation(parent) if tag_card and fenced else []:
            try:
                return self._commit(sources, card, named)
            except Exception as error:
                if not isinstance(classify(error), Split):
                    raise
        return self._commit(sources, [], named)

    def _commit(
        self, sources: Sequence[Source], card: list[CommitOperationAdd], parent: str | None
    ) -> tuple[str, dict[str, Sent]]:
        stamps: Stamps = {}
        additions = [_addition(source, stamps) for source in sources]
        self._transport.before_commit = functools.partial(check_unchanged, stamps)
        sent_before = self.commits_sent
        try:
            info = self._api.create_commit(
                **self._where,
                operations=additions + card,
                commit_message=title_of(sources),
                revision=self._destination.revision,
                parent_commit=parent and parent[:PARENT_DIGITS],
            )
        except Exception:
            if self.commits_sent == sent_before:  # a storage may refuse more bytes than it was told of
                check_unchanged(stamps)
            raise
        return info.oid, dict(filter(None, map(_sent, sources, additions)))

    def squash(self) -> None:
        """Squash the history of the branch."""
        self._api.super_squash_history(**self._where, branch=self._destination.revision)

    def _card_operation(self, revision: str) -> list[CommitOperationAdd]:
        """The model card with our tag; nothing if it is there, or if the card cannot be read for certain.

        Only on the main branch, and a Space without a card gets none: its card is its configuration.
        """
        if self._destination.revision != "main":
            return []
        try:
            text = self._read("README.md", revision)
            card = ModelCard(text or "", ignore_metadata_errors=False)
        except Exception:  # noqa: BLE001 - whatever is wrong with the user's card, it is left alone
            return []
        is_configuration = text is None and self._destination.repo_type == "space"
        tags = card.data.get("tags") or []
        if is_configuration or not isinstance(tags, list) or TAG in tags:
            return []
        card.data["tags"] = [*tags, TAG]
        return [CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=str(card).encode())]

    def _read(self, path: str, revision: str) -> str | None:
        """A small regular file as it surely is, None if it surely is not there."""
        found = self._api.get_paths_info(**self._where, paths=[path], revision=revision)
        if not found:
            return None
        url = hf_hub_url(**self._where, filename=path, revision=revision, endpoint=self._destination.endpoint)
        data = self._transport.read(url, CARD_TIMEOUT)
        blob = git_hasher(len(data))
        blob.update(data)
        if not isinstance(found[0], RepoFile) or blob.hexdigest() != found[0].blob_id:
            raise ValueError(f"{path} cannot be read")
        return data.decode()

    # a bucket

    def bucket(self, bucket: str) -> BucketInfo | None:
        """What a bucket is, None if there is none."""
        return _if_there(lambda: self._api.bucket_info(bucket))

    def create_bucket(self, bucket: str, *, private: bool | None) -> None:
        """Make a bucket where it is missing."""
        self._api.create_bucket(bucket, private=private, exist_ok=True)

    def bucket_sizes(self, bucket: str, folder: str) -> dict[str, int]:
        """Bytes of the files below a folder of a bucket, by their paths relative to it."""
        below = f"{folder}/" if folder else ""
        found = self._api.list_bucket_tree(bucket, prefix=below or None, recursive=True)
        files = (one for one in found if isinstance(one, BucketFile) and one.path.startswith(below))
        return {one.path.removeprefix(below): one.size for one in files}

    @property
    def pause(self) -> float:
        """Seconds between two requests of one kind, for half of what the account has left of them."""
        return self._transport.pause

    @contextlib.contextmanager
    def bucket_events(self, bucket: str, cursor: str, clock: Clock) -> Iterator[tuple[int, Iterator[bytes]]]:
        """A block with the feed of a bucket, by a clock of its own: its status, 0 if it is no feed, and what comes.

        For a thread of its own: it goes beside all other requests.
        """
        query = f"?cursor={quote(cursor, safe='')}" if cursor else ""
        url = f"{self._destination.endpoint}/api/buckets/{quote(bucket)}/events{query}"
        with Transport(self._destination.endpoint, clock, is_shared=False).stream(url) as answer:
            is_feed = answer.headers.get("content-type", "").startswith("text/event-stream")
            yield answer.status_code if is_feed or answer.status_code != HTTPStatus.OK else 0, answer.iter_raw()

    def put_into_bucket(self, bucket: str, sources: Sequence[Source]) -> dict[str, str]:
        """Put the snapshot's lengths of these files into a bucket; why some were refused, per target."""
        if not sources:
            return {}
        try:
            self._api.batch_bucket_files(bucket, add=[(_cut(source), source.target) for source in sources])
        except BucketBatchError as error:
            return {str(one.get("path")): str(one.get("error")) for one in error.failures}
        return {}

    def delete_from_bucket(self, bucket: str, targets: Sequence[str]) -> None:
        """Delete files of a bucket."""
        if targets:
            self._api.batch_bucket_files(bucket, delete=list(targets))

    def read_bucket(self, bucket: str, target: str, start: int, length: int) -> bytes:
        """A range of a file of a bucket: fewer bytes where it ends."""
        url = f"{self._destination.endpoint}/buckets/{bucket}/resolve/{quote(target, safe='')}"
        self._transport.question()
        with self._transport.expecting(length):
            return self._transport.read_range(url, start, length)

    # what the oracle and a pull ask

    def pushed(self, paths: Iterable[str], revision: str) -> set[str]:
        """The attachments among these paths that a push has committed last, as the titles of commits say."""
        found = {path: info.last_commit for path, info in self._infos(paths, revision, expand=True)}
        return {path for path, commit in found.items() if commit and commit.title.startswith(ATTACHMENTS)}

    def commits(self) -> list[str]:
        """The commits of the branch, newest first; none if there is no repository or branch."""
        try:
            commits = self._api.list_repo_commits(**self._where, revision=self._destination.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return []
        return [commit.commit_id for commit in commits]

    def content(self, path: str, revision: str) -> Remote:
        """What a download gives of a file at one commit: its real size and sha256, whatever `tree` says."""
        with (
            tempfile.TemporaryDirectory() as folder,
            self.copy(path, revision, LARGEST_FILE, os.path.join(folder, "copy")) as copy,
        ):
            return Remote.of_copy(copy)

    def tree(self, revision: str, directory: str | None = None) -> dict[str, Remote]:
        """All files below the destination's folder at one commit, or those in one directory, by path relative to it."""
        place = self._destination.path(directory or "").rstrip("/")
        entries, folder = self._entries(place, revision, is_recursive=directory is None), self._destination.path("")
        return {one.path.removeprefix(folder): _remote(one) for one in entries if isinstance(one, RepoFile)}

    def names(self, above: str, revision: str) -> dict[str, bool]:
        """The names in a folder of the repository, and whether each is a folder; none if that is not there."""
        entries = self._entries(above, revision, is_recursive=False)
        return {entry.path.rpartition("/")[2]: isinstance(entry, RepoFolder) for entry in entries}

    def _entries(self, place: str, revision: str, *, is_recursive: bool) -> list[RepoFile | RepoFolder]:
        """What is below a folder of the repository, "" for its root; nothing that a Hub lists besides."""
        where: dict[str, Any] = {**self._where, "path_in_repo": place or None, "recursive": is_recursive}
        try:
            found = list(self._api.list_repo_tree(**where, revision=revision))
        except EntryNotFoundError:
            return []
        below = f"{place}/" if place else ""
        own = (entry for entry in found if entry.path.startswith(below))
        return [entry for entry in own if is_recursive or "/" not in entry.path[len(below) :]]


@dataclass(frozen=True)
class HubReply:
    """What the Hub has answered."""

    status: int  # of HTTP
    fields: dict[str, Any]  # of the JSON object in it, {} if it is none


class Account:
    """The account of the token in the environment; an answer of the Hub, whatever its status, is no error."""

    def __init__(self, endpoint: str) -> None:
        Transport(endpoint, Clock(ANSWER_TIMEOUT), is_impatient=True)
        self._endpoint = endpoint

    def whoami(self) -> HubReply:
        """Whose token it is, and what it may do."""
        return self._ask("whoami-v2")

    def repository(self, destination: Destination) -> HubReply:
        """What the token sees of a repository."""
        return self._ask(f"{destination.repo_type}s/{quote(destination.repo_id)}")

    def _ask(self, path: str) -> HubReply:
        url = f"{self._endpoint}/api/{path}"
        response: httpx2.Response = get_session().get(url, headers=build_hf_headers(), timeout=ANSWER_TIMEOUT)
        fields = None
        with contextlib.suppress(ValueError):
            fields = json.loads(response.content)
        return HubReply(response.status_code, fields if isinstance(fields, dict) else {})


@contextlib.contextmanager
def _without_xet() -> Iterator[None]:
    """Let the client download by our transport: no timeout of ours reaches hf_xet."""
    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _if_there(ask: Callable[[], FoundT]) -> FoundT | None:
    """What the Hub tells of something, None if that is not there."""
    try:
        return ask()
    except HfHubHTTPError as error:  # some Hubs give no code that says what was not found
        is_missing = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))
        if is_missing or status_of(error) == HTTPStatus.NOT_FOUND:
            return None
        raise


def _telling(came: Callable[[int], object]) -> Any:
    """A progress bar of the client that draws nothing."""

    class Telling(tqdm):  # type: ignore[type-arg]  # it cannot be subscripted when it runs
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"disable": True})

        def update(self, count: float | None = 1) -> None:
            self.n += count or 0
            came(int(self.n))

    return Telling


def _remote(info: RepoFile) -> Remote:
    return Remote(info.size, info.lfs.sha256 if info.lfs else None, oid=info.blob_id)


def title_of(sources: Sequence[Source]) -> str:
    """The title of a commit: what it has, of which runs."""
    what = ATTACHMENTS if all(source.file.sha256 for source in sources) else EVENTS
    folders = dict.fromkeys(source.target.removesuffix(source.file.path).rstrip("/") for source in sources)
    runs = [folder.rpartition("/")[2] for folder in folders if folder]
    more = f" and {count} more" if (count := len(runs) - RUNS_NAMED) > 0 else ""
    whose = f" of {', '.join(runs[:RUNS_NAMED])}{more}" if runs else ""
    return f"{what}{len(sources)} file{'s' if len(sources) > 1 else ''}{whose})"


def _addition(source: Source, stamps: Stamps) -> CommitOperationAdd:
    """A file that may still grow goes as bytes cut at the snapshot's length, a finished one or a copy as a path.

    A large one that may grow has been copied, see `snapshot/large_files`.
    """
    file, status = source.file, os.stat(source.path)
    size = status.st_size
    if file.sha256 and (size != file.length or digest(source.path, size) != file.sha256):
        raise SourceError(source.target, f"the copy of {file.path} is damaged")
    if size == file.length and (not file.growing or file.is_large):
        if not file.sha256:
            stamps[source] = _stamp(status)
        return _operation(source.target, source.path)
    return _operation(source.target, _cut(source))


def _cut(source: Source) -> bytes:
    """The content of a file, cut at the snapshot's length."""
    file = source.file
    if file.length > PAYLOAD_LIMIT:
        raise SourceError(source.target, f"{file.path} is too long to be held in memory")
    with open(source.path, "rb") as opened:
        data = opened.read(min(file.length, PAYLOAD_LIMIT))
    if len(data) != file.length:
        raise SourceError(source.target, f"{file.path} is shorter than its snapshot")
    return data


def _operation(target: str, content: str | bytes) -> CommitOperationAdd:
    try:
        return CommitOperationAdd(path_in_repo=target, path_or_fileobj=content)
    except ValueError as error:
        raise PathError(target, str(error)) from None


def _sent(source: Source, addition: CommitOperationAdd) -> tuple[str, Sent] | None:
    """What a commit holds of a file, by its target; None if the repository's .gitignore leaves it out."""
    file = source.file
    if os.stat(source.path).st_size < file.length:
        raise FileNotFoundError(f"{file.path} became shorter while it was sent")
    if getattr(addition, "_should_ignore", False):
        return None
    if file.sha256:
        return source.target, file.content
    known = addition.upload_info.sha256
    return source.target, Sent(file.length, known.hex() if known else digest(source.path, file.length))
