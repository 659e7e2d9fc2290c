"""`hf-mpwriter status`: which runs, in which form, once or again and again.

    no LOGDIR, or several   a line for each run
    one LOGDIR              the run in full
    --json                  one LOGDIR: an object; else a list. docs/operations.md names every key
    --watch                 drawn anew on a terminal until the last process has ended; else printed then, once

Exit codes: 0 complete, 3 waiting, 4 a person is needed; of several runs the highest. 1: the only one is no run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.words import (
    ago,
    as_argument,
    command_line,
    counted,
    duration,
    sentence,
    size_text,
    span,
    with_cure,
)
from hf_mpwriter.cli.facts import FileFacts, Judgement, RunFacts, RunHealth, WorkerFacts, gather, judge
from hf_mpwriter.cli.runs import examples, existing_spool, named, others_below, runs_below
from hf_mpwriter.delivery.sentences import BEGINNING
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.losses import Loss, note_seen
from hf_mpwriter.system.redaction import printable

EVERY = 2.0  # seconds between two looks of `--watch`
CLEAR = "\x1b[H\x1b[2J"  # of a terminal
NAMED = 6  # workers that are named; of more only the number is told
LISTED = 20  # files that are listed; of more only those that are not whole on the Hub, and no more than these
VERSION = 1  # of the JSON; raised when a key changes its meaning or goes


class SeenRun(NamedTuple):
    """What was found of one run."""

    logdir: str  # as it was typed, or found
    facts: RunFacts | None  # None if it cannot be read
    judgement: Judgement  # on it

    @property
    def is_live(self) -> bool:
        """Whether a process lives that may change something."""
        facts = self.facts
        return facts is not None and bool(facts.alive or facts.uploader_is_alive or facts.mirror_is_alive)


@click.command(
    "status",
    epilog=examples(
        "status                  all runs below this folder",
        "status runs/exp1        one in full",
        "status runs/exp1 --watch",
    ),
)
@click.argument("logdirs", metavar="[LOGDIR]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, see docs/operations.md.")
@click.option("--watch", is_flag=True, help="Look again every two seconds, until no process of the runs lives.")
@click.option("--seen", is_flag=True, help="What was lost of each LOGDIR was seen: it is not told again.")
def show_status(logdirs: tuple[str, ...], *, as_json: bool, watch: bool, seen: bool) -> None:
    """Show how much of a run is on the Hub, and what is to be done.

    Without LOGDIR, one line for each run below the current folder. Asks the disk only, not the Hub.

    Exit code 0: complete; 1: no run; 3: waiting, it comes by itself; 4: a person is needed, the last line says for
    what.
    """
    if seen and not logdirs:
        raise click.UsageError("--seen needs a LOGDIR.")
    for logdir in logdirs if seen else ():
        note_seen(existing_spool(logdir))
    while True:
        runs = look(logdirs)
        goes_on = watch and any(run.is_live for run in runs)
        is_drawn = watch and sys.stdout.isatty() and not as_json
        if is_drawn or not goes_on:
            shown = as_json_text(runs, logdirs) if as_json else as_text(runs, logdirs)
            click.echo(f"{CLEAR if is_drawn else ''}{shown}")
        if not goes_on:
            break
        try:
            time.sleep(EVERY)
        except KeyboardInterrupt:  # so a watch is ended
            break
    click.get_current_context().exit(max((run.judgement.state.value for run in runs), default=0))


def look(logdirs: Sequence[str]) -> list[SeenRun]:
    """Look at runs; without a name, at those below the current folder."""
    names = logdirs or [as_argument(found) for found in runs_below(os.getcwd())]
    return [_look(name, is_single=len(logdirs) == 1) for name in names]


def _look(logdir: str, *, is_single: bool) -> SeenRun:
    """Look at one run; what cannot be read is a matter for a person, and hides no other run."""
    try:
        facts = gather(existing_spool(logdir))
    except (HfMpWriterError, OSError) as error:
        return SeenRun(logdir, None, Judgement(RunHealth.PERSON, str(error)))
    except click.ClickException as error:
        if is_single:
            raise
        return SeenRun(logdir, None, Judgement(RunHealth.PERSON, error.message))
    return SeenRun(logdir, facts, judge(facts, logdir))


# for programs


def as_json_text(runs: Sequence[SeenRun], logdirs: Sequence[str]) -> str:
    """An object for one name, else a list."""
    found = [to_json(run) for run in runs]
    return json.dumps(found[0] if len(logdirs) == 1 else found, indent=1)


def to_json(run: SeenRun) -> dict[str, Any]:
    """The object of one run: times are unix seconds, durations seconds, and what is not known is null."""
    facts = run.facts
    head = {"version": VERSION, "logdir": facts.logdir if facts else run.logdir}
    state = {"state": run.judgement.state.word, "next": run.judgement.next or None}
    if facts is None:
        return head | state
    to, uploader, mirror = facts.destination, facts.uploader, facts.mirror
    return {
        **head,
        "run_dir": facts.run_dir,
        **state,
        "destination": to and {"url": to.url, **asdict(to)},
        "visibility": facts.visibility,
        "workers": [asdict(worker) for worker in facts.workers],
        "bytes": {"logged": facts.logged, "on_hub": facts.on_hub, "waiting": facts.waiting},
        "live": {**asdict(uploader.live), "bucket": facts.bucket} if facts.bucket else None,
        "lag": facts.lag,
        "last_commit": facts.last_commit and asdict(facts.last_commit),
        "uploader": {
            "alive": facts.uploader_is_alive,
            "phase": uploader.phase or None,
            "pid": uploader.pid or None,
            "serves": uploader.serves,
            "host": uploader.process.host.rpartition("-")[0] if uploader.process else None,
            "last_seen": uploader.beat or None,
            "next_in": facts.next_in,
        },
        "mirror": {
            "to": facts.to,
            "alive": facts.mirror_is_alive,
            "phase": mirror.phase or None,
            "missing": facts.missing_there,
            "error": mirror.reason or None,
            "next_in": max(0.0, mirror.next_try - facts.now) if facts.mirror_is_alive and mirror.next_try else None,
            "refused": facts.refused_there,
            "returning": mirror.returning,
            "unread": mirror.unread,
        }
        if facts.to
        else None,
        "error": {
            "cause": uploader.cause,
            "text": uploader.reason,
            "hint": uploader.hint or None,
            "failures": uploader.failures,
            "time": uploader.failed_at or None,
        }
        if uploader.failures
        else None,
        "notices": facts.notices,
        "files": [asdict(file) for file in facts.files],
        "quarantined": facts.quarantined,
        "deleted": facts.deleted,
        "damaged": {one.path: str(one) for one in facts.damage},
        "left_out": facts.left_out,
        "lost": [asdict(one) for one in facts.lost],
        "apart": facts.apart,
    }


# for people


def as_text(runs: Sequence[SeenRun], logdirs: Sequence[str]) -> str:
    """One run in full, or a line for each of several; then what is to be done. A terminal obeys nothing of it."""
    if len(logdirs) == 1:
        (run,) = runs
        lines = [f"{run.logdir} cannot be read"] if run.facts is None else list(full(run.facts, run.logdir))
        lines += [f"next: {run.judgement.next}"] if run.judgement.next else []
    else:
        lines = list(table(runs)) if runs else [_no_run_below(os.getcwd())]
    return "\n".join(map(printable, lines))


def table(runs: Sequence[SeenRun]) -> Iterator[str]:
    """A line for each of several runs, then what is to be done."""
    width = max(len(printable(run.logdir)) for run in runs)
    for run in runs:
        yield f"{printable(run.logdir):<{width}}  {line(run.facts, run.judgement) if run.facts else 'cannot be read'}"
    for run in runs:
        if run.judgement.next:
            yield f"next: {run.logdir}: {run.judgement.next}"


def _no_run_below(folder: str) -> str:
    if others := [as_argument(other) for other in others_below(folder, ())]:
        return (
            f"No run below this folder. Event files of other writers: {named(others)}. To upload them: hf-mpwriter "
            "sync --all --repo-id NAME"
        )
    return "No run below this folder. Give the logdir of a run: hf-mpwriter status LOGDIR"


def line(facts: RunFacts, judgement: Judgement) -> str:
    """One line about a run."""
    parts = [f"{judgement.state.word:<9}", f"{size_text(facts.logged):>9} logged"]
    if facts.destination is None:
        parts.append("local only")
    elif facts.waiting:
        parts.append(f"{size_text(facts.waiting)} waiting")
    else:
        but = (" that is whole" if facts.damaged else "") + (" but what was deleted there" if facts.deleted else "")
        parts.append(f"all{but} on the Hub" if facts.files else "nothing logged")
    if facts.to:
        missing = f"{size_text(facts.missing_there)} not" if facts.missing_there else "all"
        parts.append(f"{missing} in the logdir")
    if facts.alive:
        parts.append(f"{len(facts.alive)} alive")
    if facts.lost:
        parts.append(f"{counted(sum(one.records for one in facts.lost), 'record')} lost")
    if facts.waiting and facts.uploader.failures:
        parts.append(facts.uploader.reason)
    if facts.destination and facts.files:  # without one, the page may not be there
        parts.append(facts.destination.url)
    return "  ".join(parts)


def full(facts: RunFacts, logdir: str) -> Iterator[str]:
    """The lines of one run."""
    if facts.destination is None:
        yield f"{logdir} -> local only"
    else:
        seen = "not seen yet" if facts.visibility == "unknown" else facts.visibility
        yield f"{logdir} -> {facts.destination.url} ({seen})"
    for name, text in _rows(facts, logdir):
        yield f"  {name:<12} {text}".rstrip()
    yield from _files(facts, logdir)
    for path, reason in facts.refused_there.items():
        yield f"not brought to the logdir: {path}: {reason}. To try again: {command_line('sync', logdir)}"
    for path, reason in facts.quarantined.items():
        yield f"quarantined: {path}: {reason}"
    for path in facts.deleted:
        yield f"deleted on the Hub: {path}. To send it again: {command_line('sync', logdir, '--again')}"
    for one in facts.damage:
        yield f"{one.path} {one}"
    for what in facts.left_out:
        yield f"left out: {what}"
    for place in facts.apart:
        yield f"part of it is only in {place}"
    for loss in facts.lost:
        yield f"lost: {'' if loss.is_exact else 'up to '}{counted(loss.records, 'record')} of {_of(loss)}: {loss.why}"


def _of(loss: Loss) -> str:
    """Whose a loss is, and since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(loss.since))
    return f"{loss.worker} (process {loss.pid} on {loss.host}) since {since}"


def _rows(facts: RunFacts, logdir: str) -> Iterator[tuple[str, str]]:
    """Names of rows and their texts."""
    if facts.logdir != facts.run_dir:
        yield "kept in", facts.run_dir
    yield "workers", workers_text(facts.workers) or "none"
    yield "logged", f"{size_text(facts.logged)} in {counted(len(facts.files), 'file')}"
    if facts.in_memory:
        yield "in memory", f"{counted(facts.in_memory, 'record')}, because the disk refuses them"
    if facts.destination:
        yield "on the Hub", _on_hub(facts)
    if facts.bucket:
        yield "safe", _safe(facts)
    if facts.to:
        yield from _logdir_rows(facts, logdir)
    if (last := facts.last_commit) is not None:
        yield "last commit", f"{last.id[:8]}, {ago(facts.now - last.time)}: {last.url}"
    if facts.destination and facts.next_in is not None and (facts.alive or facts.waiting):
        yield ("next try" if facts.uploader.failures else "next commit"), f"in {span(facts.next_in)}"
    yield from _daemon_rows(facts)


def _safe(facts: RunFacts) -> str:
    """What the live bucket is known to have, as the uploader has seen it last."""
    live, bucket = facts.uploader.live, facts.bucket
    if not live.at and not live.safe:
        return f"nothing is known to be in {bucket}{f': {live.why}' if live.why else ' yet'}"
    has = f"; {size_text(facts.unsafe)} not yet" if facts.unsafe else ", everything"
    seen = f", {ago(facts.now - live.at)}" if live.at else ""
    rest = f"; a round every {duration(live.interval)}" if live.interval and facts.uploader_is_alive else ""
    size = f"; {size_text(live.size)} in the bucket" if live.size else ""
    return f"{size_text(live.safe)}{has}, in {bucket}{seen}{f'; then: {live.why}' if live.why else rest}{size}"


def _logdir_rows(facts: RunFacts, logdir: str) -> Iterator[tuple[str, str]]:
    """What of a staged run is in its logdir, and only there."""
    there, mirror = sum(file.in_logdir or 0 for file in facts.files), facts.mirror
    where = "" if logdir == facts.to else f" in {facts.to}"
    yield "in logdir", f"{size_text(there)}{where}; an open file comes when it is sealed"
    if mirror.returning:
        yield "only there", f"{counted(mirror.returning, 'file')} on the way back"
    if mirror.unread:
        path, reason = min(mirror.unread.items())
        yield "unread", f"{counted(len(mirror.unread), 'file')} of the logdir, such as {path}: {reason}"


def _daemon_rows(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """What uploader and mirror do, and why their last try failed."""
    uploader, mirror = facts.uploader, facts.mirror
    if facts.destination:
        yield "uploader", daemon_text(uploader, facts.now, is_alive=facts.uploader_is_alive)
        if uploader.reason and facts.waiting:
            yield "error", with_cure(_failure(uploader), sentence(uploader.hint))
    if facts.to:
        yield "mirror", daemon_text(mirror, facts.now, is_alive=facts.mirror_is_alive)
        if mirror.failures:
            left = mirror.next_try - facts.now
            again = f". Next try in {span(left)}" if facts.mirror_is_alive and left > 0 else ""
            yield "error", f"{_failure(mirror)}{again}"


def workers_text(workers: Sequence[WorkerFacts]) -> str:
    """How many workers live, ended and died, with their names while these are few."""
    parts = []
    for state in ("alive", "ended", "died"):
        found = [worker for worker in workers if worker.state == state]
        if found:
            names = ", ".join(map(_named, found[:NAMED])) + (", ..." if len(found) > NAMED else "")
            parts.append(f"{len(found)} {state}: {names}")
    return "; ".join(parts)


def _named(worker: WorkerFacts) -> str:
    where = "" if worker.is_here or not worker.host else f" on {worker.host}"
    pid = f" (pid {worker.pid})" if worker.state == "alive" and worker.is_here else ""
    return f"{worker.name}{where}{pid}"


def _on_hub(facts: RunFacts) -> str:
    if not facts.files:
        return "nothing, as nothing was logged"
    if not facts.waiting:
        return f"{size_text(facts.on_hub)}, everything{' that is whole' if facts.damaged else ''}"
    since = "" if facts.lag is None else f", the oldest record for {span(facts.lag)}"
    return f"{size_text(facts.on_hub)}; {size_text(facts.waiting)} waiting{since}"


def serving(status: UploaderStatus | MirrorStatus) -> str:
    """How many runs the process of an uploader serves, "" if it is this one alone."""
    if not isinstance(status, UploaderStatus) or status.serves < 2:
        return ""
    of = f" of {status.repo_id}" if status.repo_id else ""
    return f" (serves {status.serves} runs{of})"


def daemon_text(status: UploaderStatus | MirrorStatus, now: float, *, is_alive: bool) -> str:
    """What an uploader or a mirror does, and when it was heard of last."""
    if not is_alive:
        return "none runs"
    if status.process is None or status.is_over:
        return "runs, it has not said yet what it does"
    seen = f"process {status.pid}{status.process.place}{serving(status)}, last seen {ago(now - status.beat)}"
    return "; ".join(filter(None, [f"{status.phase}, {seen}", status.stillness(now)]))


def _failure(status: UploaderStatus | MirrorStatus) -> str:
    """The last failure, and how often it came."""
    often = f" ({status.failures} times in a row)" if status.failures > 1 else ""
    return f"{status.reason.rstrip('.')}{often}"


def _files(facts: RunFacts, logdir: str) -> Iterator[str]:
    listed: Sequence[FileFacts] = facts.files
    if len(listed) > LISTED:
        behind = [file for file in listed if facts.destination and file.on_hub < file.bytes]
        listed = behind[:LISTED]
    for file in listed:
        yield file_text(file, is_local=facts.destination is None)
    if more := len(facts.files) - len(listed):
        yield f"  {counted(more, 'more file')}; all of them: {command_line('status', logdir, '--json')}"


def file_text(file: FileFacts, *, is_local: bool = False) -> str:
    """A line about a file."""
    what = f" ({BEGINNING})" if file.beginning else " (pulled)" if file.pulled else ""
    what = what or (" (may still grow)" if file.growing else "")
    here, hub = f"{size_text(file.bytes):>9}", f"{size_text(file.on_hub):>9}"
    sizes = here if is_local else f"{hub} of {here}"
    if file.in_logdir is not None:
        sizes = f"here {here}, logdir {size_text(file.in_logdir):>9}" + ("" if is_local else f", Hub {hub}")
    return f"  {sizes}  {file.path}{what}"
