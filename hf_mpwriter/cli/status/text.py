"""The facts of a run as lines for people: one run in full, or a line for each of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hf_mpwriter.base.words import ago, command_line, counted, size_text, span
from hf_mpwriter.cli.status.facts import FileFacts, LogdirFacts, RunFacts, WorkerFacts
from hf_mpwriter.cli.status.judgement import Judgement
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.redaction import printable

NAMED = 6  # workers that are named; of more only the number is told
LISTED = 20  # files that are listed; of more only those that are not whole on the Hub, and no more than these


def full(facts: RunFacts, judgement: Judgement, logdir: str) -> Iterator[str]:
    """The lines of one run."""
    yield printable(_head(facts, logdir))
    for name, text in _rows(facts, logdir):
        yield printable(f"  {name:<12} {text}".rstrip())
    yield from map(printable, _files(facts, logdir))
    yield from map(printable, _troubles(facts, logdir))
    if judgement.next:
        yield printable(f"next: {judgement.next}")


def _head(facts: RunFacts, logdir: str) -> str:
    if facts.hub.destination is None:
        return f"{logdir} -> local only"
    return f"{logdir} -> {facts.hub.destination.url} ({_visibility(facts)})"


def _visibility(facts: RunFacts) -> str:
    return "not seen yet" if facts.hub.visibility == "unknown" else facts.hub.visibility


def _rows(facts: RunFacts, logdir: str) -> Iterator[tuple[str, str]]:
    """Names of rows and their texts."""
    if facts.logdir != facts.run_dir:
        yield "kept in", facts.run_dir
    yield "workers", workers_text(facts.workers) or "none"
    yield "logged", f"{size_text(facts.logged)} in {counted(len(facts.files), 'file')}"
    if facts.in_memory:
        yield "in memory", f"{counted(facts.in_memory, 'record')}, because the disk refuses them"
    if facts.hub.destination:
        yield "on the Hub", _on_hub(facts)
    if facts.there.to:
        there = sum(file.in_logdir or 0 for file in facts.files)
        where = "" if logdir == facts.there.to else f" in {facts.there.to}"
        yield "in logdir", f"{size_text(there)}{where}; an open file comes when it is sealed"
        if facts.there.mirror.returning or facts.there.mirror.unread:
            yield "only there", _only_there(facts)
    if facts.hub.destination:
        yield from _commits(facts)
        yield "uploader", daemon_text(facts.hub.uploader, facts.now, is_alive=facts.hub.is_alive)
    if facts.hub.destination and facts.hub.uploader.reason and facts.waiting:
        yield "error", failure_text(facts.hub.uploader)
    if facts.there.to:
        yield "mirror", _mirror_text(facts.there, facts.now)


def _only_there(facts: RunFacts) -> str:
    """What of the logdir is not here."""
    parts = [f"{counted(facts.there.mirror.returning, 'file')} on the way back"] if facts.there.mirror.returning else []
    if unread := facts.there.mirror.unread:
        path, reason = min(unread.items())
        parts.append(f"{counted(len(unread), 'file')} cannot be read there, such as {path}: {reason}")
    return "; ".join(parts)


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


def _commits(facts: RunFacts) -> Iterator[tuple[str, str]]:
    if (last := facts.hub.last_commit) is not None:
        when = ago(facts.now - last.time)
        yield "last commit", f"{last.id[:8]}, {when}: {last.url}"
    if facts.next_in is not None and (facts.alive or facts.waiting):
        yield ("next try" if facts.hub.uploader.failures else "next commit"), f"in {span(facts.next_in)}"


def daemon_text(status: UploaderStatus | MirrorStatus, now: float, *, is_alive: bool) -> str:
    """What an uploader or a mirror does, and when it was heard of last."""
    if not is_alive:
        return "none runs"
    if status.process is None or status.is_over:
        return "runs, it has not said yet what it does"
    seen = f"process {status.pid}{status.process.place}, last seen {ago(now - status.beat)}"
    return "; ".join(filter(None, [f"{status.phase}, {seen}", status.stillness(now)]))


def failure_text(status: UploaderStatus) -> str:
    """The last failure in plain words, how often it came, and what helps."""
    if not status.failures:
        return status.reason
    often = f" ({status.failures} times in a row)" if status.failures > 1 else ""
    helps = f". {status.hint[:1].upper()}{status.hint[1:]}" if status.hint else ""
    return f"{status.reason.rstrip('.')}{often}{helps}"


def _mirror_text(there: LogdirFacts, now: float) -> str:
    """What the mirror does, its last failure, and when it tries again."""
    mirror, parts = there.mirror, [daemon_text(there.mirror, now, is_alive=there.is_alive)]
    if mirror.failures:
        often = "1 failure" if mirror.failures == 1 else f"{mirror.failures} failures in a row"
        parts.append(f"{often}: {mirror.reason.rstrip('.')}")
        if there.is_alive and mirror.next_try > now:
            parts.append(f"next try in {span(mirror.next_try - now)}")
    return "; ".join(parts)


def _files(facts: RunFacts, logdir: str) -> Iterator[str]:
    listed: Sequence[FileFacts] = facts.files
    if len(listed) > LISTED:
        behind = [file for file in listed if facts.hub.destination and file.on_hub < file.bytes]
        listed = behind[:LISTED]
    for file in listed:
        yield file_text(file, is_local=facts.hub.destination is None)
    if more := len(facts.files) - len(listed):
        yield f"  {counted(more, 'more file')}; all of them: {command_line('status', logdir, '--json')}"


def file_text(file: FileFacts, *, is_local: bool = False) -> str:
    """A line about a file."""
    what = " (pulled)" if file.pulled else " (may still grow)" if file.growing else ""
    sizes = f"{size_text(file.on_hub):>9} of {size_text(file.bytes):>9}"
    if is_local:
        sizes = f"{size_text(file.bytes):>9}"
    if file.in_logdir is not None:
        here, there, hub = map(size_text, (file.bytes, file.in_logdir, file.on_hub))
        sizes = f"here {here:>9}, logdir {there:>9}" + ("" if is_local else f", Hub {hub:>9}")
    return f"  {sizes}  {file.path}{what}"


def _troubles(facts: RunFacts, logdir: str) -> Iterator[str]:
    for path, reason in facts.there.refused.items():
        yield f"not brought to the logdir: {path}: {reason}. To try again: {command_line('sync', logdir)}"
    for path, reason in facts.hub.quarantined.items():
        yield f"quarantined: {path}: {reason}"
    for one in facts.damage:
        yield f"{one.path} {one}"
    for worker in facts.workers:
        if worker.dropped:
            yield f"dropped: {counted(worker.dropped, 'record')} of {worker.name}, which the disk refused"


def table(runs: Sequence[tuple[str, RunFacts, Judgement]]) -> Iterator[str]:
    """A line for each of several runs, then what is to be done."""
    width = max((len(printable(logdir)) for logdir, _, _ in runs), default=0)
    for logdir, facts, judgement in runs:
        yield f"{printable(logdir):<{width}}  {printable(line(facts, judgement))}"
    for logdir, _, judgement in runs:
        if judgement.next:
            yield printable(f"next: {logdir}: {judgement.next}")


def _all_on_hub(facts: RunFacts) -> str:
    if not facts.files:
        return "nothing to upload"
    return "all that is whole on the Hub" if facts.damaged else "all on the Hub"


def line(facts: RunFacts, judgement: Judgement) -> str:
    """One line about a run."""
    parts = [f"{judgement.state.word:<9}", f"{size_text(facts.logged):>9} logged"]
    if facts.hub.destination is None:
        parts.append("local only")
    else:
        parts.append(f"{size_text(facts.waiting)} waiting" if facts.waiting else _all_on_hub(facts))
    if facts.there.to:
        parts.append(
            f"{size_text(facts.missing_there)} not in the logdir" if facts.missing_there else "all in the logdir"
        )
    parts.append(f"{len(facts.alive)} alive")
    if facts.waiting and facts.hub.uploader.failures:
        parts.append(facts.hub.uploader.reason)
    if facts.hub.destination and facts.files:  # without one, the page may not be there
        parts.append(facts.hub.destination.url)
    return "  ".join(parts)
