"""Names: event files, worker directories, sub-directories, and paths of the run directory.

    runs/exp1/                                           run directory
      events.out.tfevents.<second>.<host>.<pid>.<8 hex><suffix>
      rank_00003/, rank_00003~2/, proc_00001/            worker directories; "main" is the run directory itself
        <sub-directory>/                                 of `add_scalars` and `add_hparams`
      _system/<host>/                                    of the sampler of a host, whose worker is `~system-<host>`
      _lost/<member file>.<records>.json                 what the disk has refused of a worker, see `losses`
      .hf_mpwriter/                                      spool

Invariants:
- Names of event files sort in time order within a directory, whatever the clock does. New ones sort behind files of
  others, too, whose names have a time, however far ahead: a TensorBoard that runs reads on in the order of names.
- No name that is made here leads out of its directory, or into the spool.
- A path that comes from a file of ours is checked by `is_run_path` before it is used.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.system.interrupts import ours

SPOOL_NAME = ".hf_mpwriter"
ELSEWHERE = f"{SPOOL_NAME}/ELSEWHERE"  # in a logdir whose spool is elsewhere: so it is not a part of another run
MAIN_WORKER = "main"
SYSTEM_DIRECTORY = "_system"
VIEW_DIRECTORY = "_all_ranks"  # of what is derived from all ranks
LOSS_DIRECTORY = "_lost"
_LOSS = re.compile(rf"{LOSS_DIRECTORY}/[\w~-]+\.[\w-]+\.\d{{1,20}}\.\d{{1,20}}-\d{{1,20}}\.\d{{1,20}}\.json")
OBSERVER_MARK = "~"  # begins the names of members that are not workers
SAMPLER_PREFIX = "~system-"  # of the worker name of a sampler; no other process can be called so
EVENT_MARK = "tfevents"
CONFIG_NAME = "projector_config.pbtxt"  # names all embeddings of a directory, and only grows
EMBEDDING_NAMES = frozenset({CONFIG_NAME, "tensors.tsv", "metadata.tsv", "sprite.png"})
LONGEST_NAME = 200  # bytes; filesystems allow 255
LONGEST_HOST = 64  # bytes of a host name, as on Linux; other hosts of a run may have longer names than this one
LONGEST_EVENT_NAME = len("events.out.tfevents.99999999990123456789..4194304.01234567") + LONGEST_HOST  # no suffix
LONGEST_PATH = 4096  # characters; PATH_MAX of Linux

_TEN_NINES = 9_999_999_999
_LAST_SECOND = 2 * _TEN_NINES - 10**9  # what lies behind is no time, and need not be sorted behind

_EVENT_NAME = re.compile(r"events\.out\.tfevents\.(?P<second>[0-9]+)\.")
_OUR_EVENT_NAME = re.compile(
    r"events\.out\.tfevents\.(?:9{10})?[0-9]{10}\.(?P<host>[A-Za-z0-9.-]+)\.\d+\.[0-9a-f]{8}(?P<suffix>.*)", re.DOTALL
)
_PROCESS = re.compile(_EVENT_NAME.pattern + r"(?P<process>[A-Za-z0-9.-]+\.\d+)\.[0-9a-f]+")
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # what Python makes of such bytes
_RANK_DIRECTORY = re.compile(r"rank_(?P<rank>\d{5}|[1-9]\d{5,})(?!\d)")


def is_event_file(name: str) -> bool:
    """Whether TensorBoard takes a file of this base name for an event file."""
    return EVENT_MARK in name


@functools.lru_cache(1 << 14)  # a wait asks it for all paths of a run, many times a second
def is_attachment(path: str) -> bool:
    """Whether a file of the run directory is an attachment: any file but an event file."""
    return not is_event_file(os.path.basename(path))


def is_embedding(path: str) -> bool:
    """Whether a file of the run directory is one of those that `add_embedding` writes."""
    return os.path.basename(path) in EMBEDDING_NAMES


def is_loss(path: str) -> bool:
    """Whether a file of the run directory says what a worker has lost."""
    return _LOSS.fullmatch(path) is not None


def is_config(path: str) -> bool:
    """Whether a file of the run directory is the list of embeddings that `add_embedding` appends to."""
    return os.path.basename(path) == CONFIG_NAME


def is_of_ours(name: str) -> bool:
    """Whether a name in a run directory is the spool, or something of ours that is there for a moment."""
    return name == SPOOL_NAME or name.startswith(f"{SPOOL_NAME}-")


def is_hidden(path: str) -> bool:
    """Whether a file of the run directory has, or lies below, a name with a dot in front."""
    return path.startswith(".") or "/." in path


def is_run_path(path: object) -> bool:
    """Whether this is a path of a file in a run directory: a string, relative, not upwards, not in the spool."""
    if not isinstance(path, str) or len(path) > LONGEST_PATH or "\0" in path:
        return False
    return not {"", ".", "..", SPOOL_NAME} & set(path.split("/"))


def name_on_hub(path: str) -> str:
    """A path as the Hub can take it: bytes that are no UTF-8 as `%FF`."""
    return _NO_UTF8.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", path)


def check_suffix(suffix: object, longest_name: Callable[[], int]) -> str:
    """Check a suffix of event files; a host name of any length has to fit into the name too; the same suffix."""
    if not isinstance(suffix, str):
        raise SettingsError(f"filename_suffix is {suffix!r}, but must be a string.")
    try:
        size = len(suffix.encode())
    except ours(UnicodeEncodeError):
        raise SettingsError(f"filename_suffix {suffix!r} is no valid text.", hint="Use letters and digits.") from None
    if {"/", "\0", os.sep, os.altsep} & set(suffix):
        raise SettingsError(
            f"filename_suffix {suffix!r} holds a character that no file name may.", hint="Leave it out."
        )
    if size and (most := longest_name() - LONGEST_EVENT_NAME) < size:
        raise SettingsError(
            f"filename_suffix has {size} bytes; the filesystem has room for {max(0, most)}.", hint="Use a shorter one."
        )
    return suffix


def event_second(name: str) -> int:
    """The second in the name of an event file, 0 if the name has none: what sorts like it, however many digits it has.

    Behind 9999999999 come 99999999990000000001, and so on.
    """
    match = _EVENT_NAME.match(name)
    if match is None:
        return 0
    second, more = int(match["second"][:10].ljust(10, "0")), match["second"][10:20]
    return second + int(more.ljust(10, "0")) if second == _TEN_NINES else second


def last_second(names: Iterable[str]) -> int:
    """The greatest second in names of event files that is a time; 0 if there is none."""
    return _last(map(event_second, names))


def _last(seconds: Iterable[int]) -> int:
    return max((second for second in seconds if second <= _LAST_SECOND), default=0)


def is_ours(name: str) -> bool:
    """Whether an event file has a name as `event_name` makes it."""
    return _OUR_EVENT_NAME.fullmatch(name) is not None


def event_suffix(name: str) -> str:
    """The user's filename_suffix in the name of an event file of ours, "" for another's."""
    match = _OUR_EVENT_NAME.fullmatch(name)
    return match["suffix"] if match else ""


def event_host(name: str) -> str:
    """The host in the name of an event file of ours, "" for another's."""
    match = _OUR_EVENT_NAME.fullmatch(name)
    return match["host"] if match else ""


def event_process(name: str) -> str:
    """Host and process id in the name of an event file, ours or torch's; all but the time of any other."""
    match = _PROCESS.match(name)
    return match["process"] if match else _EVENT_NAME.sub("", name)


def event_name(existing: Iterable[str], now: float, host: str, pid: int, suffix: str) -> str:
    """A new name that sorts behind every event file in `existing` whose name has a time."""
    taken = set(map(event_second, existing))
    second = max(min(int(now), _LAST_SECOND), 1 + _last(taken))
    while second in taken:  # behind the last one
        second += 1
    digits = f"{second:010d}" if second <= _TEN_NINES else f"{_TEN_NINES}{second - _TEN_NINES:010d}"
    return f"events.out.tfevents.{digits}.{host}.{pid}.{os.urandom(4).hex()}{suffix}"


def worker_dir(worker: str) -> str:
    """Directory of a worker, relative to the run directory; "" for the run directory itself."""
    return "" if worker == MAIN_WORKER else worker


def sampler_name(host: str) -> str:
    """The worker name that the sampler of a host wants."""
    return SAMPLER_PREFIX + host


def is_sampler(worker: str) -> bool:
    """Whether a worker name is that of a sampler."""
    return worker.startswith(SAMPLER_PREFIX)


def is_worker(name: str) -> bool:
    """Whether a member of this name is a worker: not one that samples, sends or derives."""
    return not name.startswith(OBSERVER_MARK)


def sampler_directory(worker: str) -> str:
    """Directory of a sampler, relative to the run directory."""
    return f"{SYSTEM_DIRECTORY}/{worker.removeprefix(SAMPLER_PREFIX)}"


def is_of_no_worker(path: str) -> bool:
    """Whether a file of the run directory is of a sampler, or derived from those of all ranks."""
    return path.partition("/")[0] in (SYSTEM_DIRECTORY, VIEW_DIRECTORY)


def rank_of_directory(name: str) -> int | None:
    """The rank in the name of a worker directory of it or of its child; None for any other directory."""
    match = _RANK_DIRECTORY.match(name)
    return int(match["rank"]) if match else None


def worker_of(path: str) -> str:
    """The rank, as the name of its worker, that has written a file of the run directory, itself or by its children.

    What names no rank is that of rank 0, or of a process alone: "main".
    """
    top, slash, _ = path.partition("/")
    match = _RANK_DIRECTORY.match(top) if slash else None
    return match[0] if match and int(match["rank"]) else MAIN_WORKER


def is_reserved(name: str) -> bool:
    """Whether a child cannot be called so, because ranks are."""
    return name == MAIN_WORKER or _RANK_DIRECTORY.match(name) is not None


def sub_directory(*names: str) -> str:
    """Directory of a sub-writer, relative to the worker directory: as in tensorboardX, but never outside of it."""
    parts = "/".join(names).replace("\0", "_").split("/")
    return "/".join(_harmless(part) for part in parts if part not in ("", "."))


def _harmless(part: str) -> str:
    if part in ("..", SPOOL_NAME):
        return part.replace(".", "_")
    data = part.encode(errors="replace")
    if len(data) <= LONGEST_NAME:
        return data.decode()
    digest = hashlib.sha256(data).hexdigest()[:8]
    return data[: LONGEST_NAME - 9].decode(errors="ignore") + "~" + digest


def candidates(worker: str, substitute: str = "") -> Iterable[str]:
    """The names that a worker may claim, best first: the wanted one, then up to 100,000 others."""
    yield worker
    substitute = substitute or worker
    if substitute == MAIN_WORKER or re.fullmatch(r"proc_\d{5}", substitute):
        yield from (name for n in range(1, 10**5) if (name := f"proc_{n:05d}") != worker)
    else:
        yield from (f"{substitute}~{n}" for n in range(2, 10**5))
