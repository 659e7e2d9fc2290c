"""Sentences: what users are told of a delivery, with the next step. All that tells of one takes its words from here.

While training runs:

    the Hub has taken a push    uploading runs/exp1 to https://huggingface.co/me/run/tree/main/tensorboard/exp1 (public)
    the run asks for a bucket   the same; live in me/run-live: hf-mpwriter pull ./live/exp1 --repo-id me/run --follow
    it has not yet              runs/exp1 goes to https://huggingface.co/me/run/tree/main/tensorboard/exp1
    an outage begins            not uploading: token refused (401): run `hf auth login`; log: PATH
    the logdir gets nothing     s3://bucket/exp1: REASON. What is on disk (PATH) stays there, and all is tried again
    all is there                done: 8.3 kB in 3 commits: LINK, and who can read it unless that was told
    something comes after that  runs/exp1: records came after the end of this process. They are on their way; ...

At the end of a process, when a wait takes long (`announcement`) and when it is over (`message`):

    4.7 kB in 2 files of RUN are not on the Hub yet: REASON. All of it is in the logdir. OUTLOOK: COMMAND

| what keeps it from there       | outlook                                                                             |
|--------------------------------|-------------------------------------------------------------------------------------|
| offline                        | it stays; the command, for later                                                    |
| all that is missing is refused | it is tried again slowly; the command                                               |
| no process carries it          | when the last one left; the command                                                 |
| that process does not work     | what lets it go on; the command, for then                                           |
| it ends with this process      | that it does; the command, for the next start                                       |
| it waits for its turn, but a   | safe in me/run-live, on the Hub at 14:05; how to wait for that                      |
|   live bucket has all          |                                                                                     |
| it lives                       | when it tries again, and until when at least; how to wait for that                  |

The reason that was announced, or told of an outage before, is not repeated. The command is: it ends the last line.

At the end of `hf-mpwriter run`, a line per run directory (`report`):

    all 12.3 MB of RUN_DIR are on the Hub: LINK
    1.2 MB of the 12.3 MB of RUN_DIR are not on the Hub yet: REASON. An uploader goes on trying. To finish: COMMAND
    RUN_DIR could not be read in time: REASON. To finish: COMMAND
    nothing of RUN_DIR was uploaded: REASON                          it was to be followed
    nothing more of RUN_DIR was uploaded: REASON                     the same, once it was removed

Invariant: only what is in files is said to be on disk. Records that wait in memory, or are lost, are counted apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_mpwriter.base.names import is_event_file, is_ours
from hf_mpwriter.base.settings import OFFLINE, Destination, default_bucket, full_bucket
from hf_mpwriter.base.verdicts import Retry, Unknown
from hf_mpwriter.base.words import command_line, counted, sentence, size_text
from hf_mpwriter.delivery.sinks import Carrier, Delivery
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.redaction import printable

if TYPE_CHECKING:
    from hf_mpwriter.spool.workers.losses import Loss

BEGINNING = "beginning of another machine's file"  # of which more is on the Hub, or in the logdir
HALF_A_DAY = 43_200.0  # seconds
MINUTES = 100.0  # seconds, from which on a time of day is told
LONG_WAIT = 60.0  # seconds; the next try is named if it is later
OTHERS_NAMED = 10  # event files of other writers that are listed
SEVERAL = 3  # failures of a mirror in a row: one is ordinary on a network
INTERRUPT = "Ctrl-C ends the wait and nothing else"
WAIT = "to wait for it: close(wait=True), or"
TRIES_AGAIN = (Retry.__name__, Unknown.__name__)  # kinds of verdicts


def amount(missing: Mapping[str, int], name: str = "") -> str:
    """What is missing: bytes, files and the run, for people."""
    what = f"{size_text(sum(missing.values()))} in {counted(len(missing), 'file')}"
    return f"{what} of {name}" if name else what


def damage_text(paths: Iterable[str]) -> str:
    """A sentence about files that were damaged before the Hub had them, "" if there are none."""
    named = ", ".join(paths)
    return f"records are lost: another program or the disk has changed {named:.300}." if named else ""


def lost_text(losses: Sequence[Loss], logdir: str) -> str:
    """What a run has lost, and how to say that it was seen; "" for nothing."""
    if not losses:
        return ""
    count = counted(sum(loss.records for loss in losses), "record")
    first, *others = dict.fromkeys(loss.worker for loss in losses)
    whose = f"{first} and {counted(len(others), 'other worker')}" if others else first
    said = "; ".join(dict.fromkeys(loss.why for loss in losses if loss.why))
    up_to = "" if all(loss.is_exact for loss in losses) else "up to "
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(loss.since for loss in losses)))
    seen = command_line("status", logdir, "--seen")
    because = f"the disk refused them{f' ({said:.300})' if said else ''}"
    return f"lost: {up_to}{count} of {whose} since {since}, as {because}. Once you have seen it: {seen}"


def of_other_writers(paths: Iterable[str]) -> str:
    """The event files of other writers among those that are uploaded, with their number; "" if there are none."""
    names = ((path, os.path.basename(path)) for path in paths)
    found = sorted(path for path, name in names if is_event_file(name) and not is_ours(name))
    if not found:
        return ""
    more = f" and {len(found) - OTHERS_NAMED} more" if len(found) > OTHERS_NAMED else ""
    return f"{counted(len(found), 'event file')} of other writers: {', '.join(found[:OTHERS_NAMED])}{more}"


def is_refused_whole(delivery: Delivery) -> bool:
    """Whether each missing path is refused."""
    return bool(delivery.missing) and len(delivery.refused) == len(delivery.missing)


def why(delivery: Delivery) -> str:
    """Why something is missing, "" if that is not known."""
    if is_refused_whole(delivery):
        first, *others = dict.fromkeys(delivery.refused.values())
        return f"it refuses {first}{f', and {len(others)} more' if others else ''}"
    return delivery.carrier.reason if _is_offline(delivery) else delivery.carrier.why


def reasons(delivery: Delivery) -> str:
    """The same, with each refusal."""
    return "; ".join(dict.fromkeys(delivery.refused.values())) or delivery.carrier.why


def trouble(delivery: Delivery) -> str:
    """What keeps something from a sink, as a sentence; "" if nothing is known, or nothing is missing."""
    found = (why(delivery) or delivery.carrier.stillness).rstrip(".") if delivery.missing else ""
    return f"{delivery.to}: {found}." if found else ""


def safety(delivery: Delivery, now: float, *, goes_on: bool) -> str:
    """The live bucket that has all that a sink lacks, and when the sink is to have it; "" if none has.

    `goes_on`: whether what brings it there outlives this process.
    """
    due, carrier = delivery.carrier.next_try, delivery.carrier
    waits = goes_on and carrier.is_alive and carrier.outlook.turn_in > 0 and due > now
    when = f", {delivery.place} at {_clock(due, now)}" if waits else ""
    return f"safe in {delivery.safe_in}{when}" if delivery.safe_in else ""


def _is_offline(delivery: Delivery) -> bool:
    return delivery.carrier.reason == OFFLINE


def _lack(what: str, delivery: Delivery, because: str) -> str:
    yet = "" if is_refused_whole(delivery) or _is_offline(delivery) else " yet"
    text = f"{what} are not {delivery.place}{yet}{f': {because}' if because else ''}"
    return f"{text.rstrip('.')}."


# while training runs


def beginning(logdir: str, destination: Destination, status: UploaderStatus, live: str = "") -> str:
    """Where a run goes, and who can read it there; that it is uploaded once an uploader has done so.

    `live`: the bucket that it asks for; it is named with the command that follows it, unless it is refused already.
    """
    to = destination.resolved(status.repo_id)
    place = to.url if "/" in to.repo_id else f"the repository {to.repo_id} of your account"  # a link has to open
    goes = f"uploading {shown(logdir)} to" if status.reaches_hub else f"{shown(logdir)} goes to"
    is_live = live and "/" in to.repo_id and (status.live.at or not status.live.why)
    return printable(f"{goes} {place}{_readers(status.private)}{_follow(to, live) if is_live else ''}")


def _follow(to: Destination, live: str) -> str:
    """The bucket of a run, and what follows it from anywhere: into a folder that is no logdir of its writers."""
    bucket, (above, name) = full_bucket(live, to.repo_id), os.path.split(to.path_in_repo)
    options = ["--repo-id", to.typed_repo_id]
    options += ["--revision", to.revision] * (to.revision != "main")
    options += ["--path-in-repo", above] * (above != "tensorboard")
    options += ["--live", bucket] * (bucket != default_bucket(to))
    return f"; live in {bucket}: {command_line('pull', f'live/{name}', *options, '--follow')}"


def _readers(private: bool | None) -> str:
    return "" if private is None else " (private)" if private else " (public)"


def outage(status: UploaderStatus, log: str) -> str:
    """Why nothing gets to the Hub, what helps, and where more is said."""
    again = ""
    if status.kind in TRIES_AGAIN:
        due = time.strftime("%H:%M", time.localtime(status.beat + status.blocked_for))
        again = f"; next try at {due}" if status.blocked_for > LONG_WAIT else "; it is tried again by itself"
    return printable(f"not uploading: {status.why.rstrip('.')}{again}; log: {shown(log)}")


def done(ledger: Ledger, destination: Destination, *, has_begun: bool) -> str:
    """What the Hub has of a run, and where; a run that has not begun for the user is a short one, as of a sweep."""
    size, commits = sum(held.length for held in ledger.files.values()), sum(ledger.commits.values())
    times = f" in {counted(commits, 'commit')}" if commits else ""
    who = "" if has_begun else _readers(ledger.private)
    return printable(f"done: {size_text(size)}{times}: {destination.resolved(ledger.repo_id).url}{who}")


def late(logdir: str, lack: str) -> str:
    """What becomes of records that came after the end was told; `lack`: why nothing brings them in, "" if it does."""
    becomes = f", {lack}. To finish: " if lack else ". They are on their way; to wait for that: "
    came = f"{shown(logdir)}: records came after the end of this process"
    return printable(f"{came}{becomes}{command_line('sync', logdir)}")


def mirror_trouble(status: MirrorStatus, refused: Mapping[str, str]) -> str:
    """What keeps files from the logdir, or from coming back, and has to be told; "" if that is nothing."""
    if status.is_over:
        return ""
    if status.failures and (status.is_refused or status.phase == "stuck" or status.failures >= SEVERAL):
        return status.reason
    if found := refused or status.unread:
        path, reason = min(found.items())
        lead = "" if refused else "cannot be read there: "
        return f"{path}: {lead}{reason.rstrip('.')}{f', and {len(found) - 1} more' if len(found) > 1 else ''}"
    return ""


def shown(path: str) -> str:
    """A path as it is shown: relative to the working directory if it lies there."""
    with suppress(OSError, ValueError):
        relative = os.path.relpath(path) if os.path.isabs(path) else path
        return path if relative.startswith("..") else relative
    return path


# at the end of a process


@dataclass(frozen=True)
class ProcessEnd:
    """What holds when the end of a process is told."""

    logdir: str  # the run as its user knows it
    run_dir: str  # absolute path
    deliveries: tuple[Delivery, ...]  # to each sink that something was to be in
    at: float  # unix time
    logged: Logged = field(default_factory=lambda: Logged({}))
    told: str = ""  # what the user knows of an outage already
    is_short: bool = False  # whether the user may wait for longer
    ends_with: str = ""  # what takes the carriers along, see `patience`

    @property
    def late(self) -> tuple[Delivery, ...]:
        """Those of which something is missing."""
        return tuple(delivery for delivery in self.deliveries if delivery.missing)

    def why(self, delivery: Delivery) -> str:
        """Why something is missing, unless it was told."""
        found = why(delivery)
        return "" if found == self.told else found


def announcement(ending: ProcessEnd, longest: float) -> str:
    """What is told when a wait takes long."""
    missing: dict[str, int] = {}
    for delivery in reversed(ending.late):
        missing |= delivery.missing
    places = " and ".join(delivery.place for delivery in ending.late)
    found = "; ".join(text.rstrip(".") for text in map(ending.why, ending.late) if text)
    waits = f"waiting up to {longest:.0f} s until {amount(missing, ending.logdir)} are {places}"
    ways = f"{INTERRUPT}; if this process is killed before: {command_line('sync', ending.logdir)}"
    return printable(f"{waits}{f' ({found})' if found else ''}. {ways}")


def message(ending: ProcessEnd, announced: ProcessEnd | None = None) -> str:
    """The message at the end of a wait, "" if there is nothing to say. For its rows, see the head of this module."""
    memory = _in_memory(ending.logged)
    there = [delivery.place for delivery in ending.deliveries if delivery.total and not delivery.missing]
    if not ending.late:
        told = [f"{ending.logdir}: all of it is {' and '.join(there)} now."] if announced else []
        waits = [f"{ending.logdir}: {memory}"] if ending.logged.in_memory else []
        return printable(" ".join(told + waits))
    first, *others = ending.late
    known = {announced.why(delivery) for delivery in announced.late} if announced else set[str]()
    because = "" if ending.why(first) in known else ending.why(first)
    parts = [_lack(amount(first.missing, ending.logdir), first, because)]
    parts += [_lack(amount(other.missing), other, ending.why(other)) for other in others]
    parts += [f"All of it is {' and '.join(there)}."] * bool(there)
    return printable(" ".join(filter(None, [*parts, memory, _outlook(first, ending)])))


def _outlook(delivery: Delivery, ending: ProcessEnd) -> str:
    """What becomes of it, and the command."""
    command, carrier = command_line("sync", ending.logdir), delivery.carrier
    stays = "What is on disk stays there"
    if ending.logdir != ending.run_dir:
        stays = f"What is on disk ({ending.run_dir}) stays there"
    safe = safety(delivery, ending.at, goes_on=not ending.ends_with)
    if safe:
        stays = f"What is on disk is {safe}"
    if _is_offline(delivery):
        return f"{stays}; without it, this uploads it: {command}"
    if is_refused_whole(delivery):
        return f"{stays}, and is tried again slowly; at once by: {command}"
    if not carrier.is_alive:
        last = f"; the last one tried until {_clock(carrier.until, ending.at)}" if carrier.until else ""
        return f"{stays}, but no {carrier.name} runs{last}. To finish: {command}"
    if carrier.stillness:
        return f"{stays}, but the {carrier.name} does not work: {carrier.stillness}. To finish then: {command}"
    if ending.ends_with:
        return f"{stays}; the {carrier.name} ends with {ending.ends_with}. To finish: {command}"
    until = f", until {_clock(carrier.until, ending.at)} at least" if carrier.until else ""
    lead = WAIT if ending.is_short else "then"
    goes_on = f", and {_article(carrier)} {_goes_on(carrier, ending.at)}{until}"
    return f"{stays}{'' if f', {delivery.place} at ' in safe else goes_on}; {lead}: {command}"


def _article(carrier: Carrier) -> str:
    return f"an {carrier.name}" if carrier.name[0] in "aeiou" else f"a {carrier.name}"


def _goes_on(carrier: Carrier, now: float) -> str:
    if (left := carrier.next_try - now) >= 1:
        return f"tries again {f'in {left:.0f} s' if left < MINUTES else f'at {_clock(carrier.next_try, now)}'}"
    return "tries again now and then" if carrier.is_refused else "goes on trying"


def _in_memory(logged: Logged) -> str:
    because = f"the disk refuses them{f' ({logged.disk_error})' if logged.disk_error else ''}"
    if logged.in_memory:
        return f"{logged.in_memory} records wait in memory: {because}, and they are lost when the process ends."
    return f"{logged.dropped} records are lost: {because}." if logged.dropped else ""


def _clock(unix_time: float, now: float) -> str:
    """A time of day, with the date where that of the nearest day would be wrong."""
    is_near = abs(unix_time - now) < HALF_A_DAY
    return time.strftime("%H:%M" if is_near else "%Y-%m-%d %H:%M", time.localtime(unix_time))


# at the end of `hf-mpwriter run`


@dataclass(frozen=True)
class RunEnd:
    """What is known of one run directory of a program that has ended, or ends."""

    run_dir: str  # absolute path
    logdir: str = ""  # as its user knows it, "" before the run directory was read
    deliveries: tuple[Delivery, ...] = ()  # to its sinks
    is_known: bool = False  # whether the run directory was read
    trouble: str = ""  # why nothing is known, "" if nothing failed
    is_over: bool = False  # whether there is nothing to wait for
    was_sent: bool = False  # whether it went to the Hub before it was removed
    is_expected: bool = False  # whether the user has named it to be uploaded
    lost: str = ""  # what the disk has refused for good, see `lost_text`


def report(end: RunEnd, *, is_first: bool, is_quiet: bool) -> str:
    """The line of one run directory, "" if there is nothing to say; `is_first`: of the processes of a container."""
    if not end.is_known and end.is_over:
        if not end.is_expected:
            return ""
        return printable(f"nothing {'more ' * end.was_sent}of {end.run_dir} was uploaded: {end.trouble}")
    if not end.is_known:
        because = f": {end.trouble}".rstrip(".") if end.trouble else ""
        finish = command_line("sync", end.run_dir)
        return printable(f"{end.run_dir} could not be read in time{because}. To finish: {finish}")
    late = [delivery for delivery in end.deliveries if delivery.missing]
    total = max((delivery.total for delivery in end.deliveries), default=0)
    if late:
        return printable(_unfinished(end, late, is_first=is_first))
    if is_quiet or not total:
        return ""
    places = ", and ".join(f"{delivery.place}: {delivery.to}" for delivery in end.deliveries)
    taken = " that the disk has taken" if end.lost else ""
    return printable(f"all {size_text(total)}{taken} of {end.run_dir} are {places}")


def _unfinished(end: RunEnd, late: list[Delivery], *, is_first: bool) -> str:
    first, *others = late
    what = f"{size_text(sum(first.missing.values()))} of the {size_text(first.total)} of {end.run_dir}"
    text = _lack(what, first, reasons(first))
    text = " ".join([text, *(_lack(amount(other.missing), other, reasons(other)) for other in others)])
    name = first.carrier.name
    finish = command_line("sync", end.logdir or end.run_dir)
    if safe := safety(first, time.time(), goes_on=not is_first):
        text = f"{text} They are {safe}."
    if is_first:
        return f"{text} The {name} ends with this process, the first of its container. Keep the disk; then: {finish}"
    if first.carrier.is_alive:
        lives = f"{sentence(_article(first.carrier))} goes on trying, as long as this machine lets it"
        return f"{text} {lives}. To finish: {finish}"
    return f"{text} They stay on disk, and no {name} runs. To finish: {finish}"


# of `hf-mpwriter sync`


def unsent(delivery: Delivery, again: str, since: float, *, asked: bool) -> str:
    """What is not on the Hub, or not known to be there, why, and what helps; `again`: the command."""
    size, carrier = size_text(sum(delivery.missing.values())), delivery.carrier
    if delivery.refused:
        return f"{size} are not on the Hub yet: {reasons(delivery)}."
    if not carrier.is_news(since):
        carrier = Carrier()
    because, helps = carrier.reason.rstrip("."), sentence(carrier.hint)
    because = f": {because}" if because else ""
    if carrier.is_refused:  # the Hub was asked, and has answered
        then = "" if "hf-mpwriter sync" in helps else f"{'; then' if helps else 'To try again'}: {again}"
        lead = f"{size} are not on the Hub" if delivery.missing else "The Hub does not tell what it has"
        return f"{lead}{because}. {helps}{then}"
    if asked:
        return f"{size} are not on the Hub yet{because}."
    known = f"{size} are not there yet" if delivery.missing else "everything is there"
    return f"The Hub could not be asked{because}. By what it last answered, {known}."
