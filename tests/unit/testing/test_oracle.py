"""The oracle finds every broken promise, and none where all hold."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from forks import in_child
from support import event_file

from hf_mpwriter import SummaryWriter
from hf_mpwriter.events import framing
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.testing import Journal, check, oracle, read_journals
from hf_mpwriter.testing.journal import Returned, journals, read_journal

PATH = "events.out.tfevents.0000000001.h.1.aa"
RANK = "rank_00001/events.out.tfevents.0000000001.h.2.bb"


@dataclass(frozen=True)
class Copy:
    """A file on the Hub."""

    size: int
    sha256: str | None
    oid: str = ""


class FakeHub:
    """A history of trees, oldest first, given as contents."""

    def __init__(self, *trees: dict[str, bytes]) -> None:
        self.trees = trees

    def commits(self) -> list[str]:
        """Newest first."""
        return [str(n) for n in reversed(range(len(self.trees)))]

    def tree(self, revision: str) -> dict[str, Copy]:
        """As the Hub tells it."""
        return {
            path: Copy(len(data), hashlib.sha256(data).hexdigest()) for path, data in self.trees[int(revision)].items()
        }


@pytest.fixture
def run(tmp_path) -> SimpleNamespace:
    """Two event files of five scalars, and where their records end."""
    for path in (PATH, RANK):
        event_file(tmp_path / path, 5, os.path.dirname(path) or "main")
    data = (tmp_path / PATH).read_bytes()
    ends = [0]
    for payload in framing.payloads(str(tmp_path / PATH)):
        ends.append(ends[-1] + len(framing.frame(payload)))
    return SimpleNamespace(dir=str(tmp_path), data=data, other=(tmp_path / RANK).read_bytes(), ends=ends)


def problems(run, *trees, returned=(), drained=True) -> list[str]:
    """What the oracle says."""
    return check(run.dir, FakeHub(*trees), returned, drained=drained).problems


def returned(path: str, tag: str, steps=range(5), pid: int = 7) -> list[Returned]:
    """A journal."""
    return [Returned(pid, path, tag, step) for step in steps]


def test_a_sound_run_has_no_problems(run):
    """It grew by whole records, is complete, and every returned record is there once."""
    trees = [{}, {PATH: run.data[: run.ends[2]]}, {PATH: run.data[: run.ends[4]]}, {PATH: run.data, RANK: run.other}]
    notes = returned(PATH, "main") + returned(RANK, "rank_00001", pid=8)
    report = check(run.dir, FakeHub(*trees), notes)
    assert report.problems == []
    assert (report.commits, report.returned, report.lost, report.duplicated) == (4, 10, 0, 0)
    assert (report.files[PATH].commits, report.files[PATH].hub_events, report.files[RANK].commits) == (3, 5, 1)


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_copy_cut_inside_a_record_is_found(run, cut):
    """At any commit, also if a later one repaired it."""
    trees = [{PATH: run.data[: run.ends[3] - cut % 30 - 1]}, {PATH: run.data, RANK: run.other}]
    assert any("inside a record" in problem for problem in problems(run, *trees))


class InconsistentHub(FakeHub):
    """A Hub whose tree says of one version what is not so; a download gives the content."""

    def tree(self, revision: str) -> dict[str, Copy]:
        """Size and digest of the first version do not fit to its content."""
        wrong = {PATH: Copy(len(self.trees[-1][PATH]) + 1, "0" * 64)} if revision == "0" else {}
        return super().tree(revision) | wrong

    def content(self, path: str, revision: str) -> Copy:
        """As a download tells it."""
        return super().tree(revision)[path]


def test_a_version_whose_tree_is_inconsistent_is_judged_by_its_content(run):
    """Without a download it counts as too long, and the next one as shrunk; with one, only what is really wrong."""
    full = {PATH: run.data, RANK: run.other}
    hub = InconsistentHub({PATH: run.data[: run.ends[3]]}, full)
    assert len(check(run.dir, hub).problems) == 2
    report = check(run.dir, hub, fetch=hub.content)
    assert (report.problems, report.files[PATH].differs) == ([], False)
    broken = InconsistentHub({PATH: b"x"}, {PATH: b"y"})
    report = check(run.dir, broken, fetch=broken.content)
    assert sum("is not the beginning" in problem for problem in report.problems) == 2
    assert report.files[PATH].differs


def test_a_copy_that_shrank_or_vanished_is_found(run):
    """Over the whole history, not only at the head."""
    full = {PATH: run.data, RANK: run.other}
    assert any("shrank" in p for p in problems(run, full, {**full, PATH: run.data[: run.ends[3]]}, full))
    assert any("vanished" in p for p in problems(run, full, {RANK: run.other}, full))


def test_another_content_is_found(run):
    """Of the same size, or of a file that does not exist here, or longer than ours."""
    full = {PATH: run.data, RANK: run.other}
    assert problems(run, full) == []
    assert any("beginning" in p for p in problems(run, {**full, RANK: run.data[: len(run.other)]}, full))
    assert any("no local file" in p for p in problems(run, {**full, "x.tfevents": b"x"}))
    assert any("longer" in p for p in problems(run, {**full, PATH: run.data + b"x"}))


def test_what_is_missing_after_a_drain_is_found(run):
    """A file that is shorter on the Hub, or not there at all; before the drain that is no problem."""
    short = {PATH: run.data[: run.ends[3]]}
    assert len(problems(run, short)) == 2
    assert problems(run, short, drained=False) == []


def test_a_lost_returned_record_is_found(run):
    """The journal knows it, the Hub does not; before the drain only what is not even on disk is lost."""
    full, short = {PATH: run.data, RANK: run.other}, {PATH: run.data[: run.ends[3]]}
    lost, kept = returned(PATH, "main", range(6)), returned(PATH, "main")
    assert any("not on the Hub" in p for p in problems(run, full, returned=lost))
    assert problems(run, full, returned=kept) == []
    assert problems(run, short, returned=kept, drained=False) == []
    assert problems(run, {PATH: run.data}, returned=lost, drained=False)


def test_a_duplicated_record_is_found(tmp_path):
    """A record written twice, one call."""
    data = event_file(tmp_path / PATH, 3)
    with open(tmp_path / PATH, "r+b") as file:
        content = file.read()
        file.write(content[-(data - 40) // 3 :])
    full = {PATH: (tmp_path / PATH).read_bytes()}
    notes = returned(PATH, "loss", range(3))
    report = check(str(tmp_path), FakeHub(full), notes)
    assert report.duplicated == 1
    assert any("more than once" in problem for problem in report.problems)


def test_a_path_written_by_two_processes_is_found(run):
    """Two journals name one file."""
    notes = returned(PATH, "main", range(2), pid=7) + returned(PATH, "main", range(2, 5), pid=8)
    assert any("2 processes" in problem for problem in problems(run, {PATH: run.data, RANK: run.other}, returned=notes))


def test_a_torn_tail_of_a_killed_writer_is_not_expected_on_the_hub(run):
    """The local file counts up to its last whole record."""
    with open(os.path.join(run.dir, PATH), "ab") as file:
        file.write(b"torn")
    assert problems(run, {PATH: run.data, RANK: run.other}) == []


def test_a_journal_says_what_returned_and_forked_children_have_their_own(tmp_path):
    """One line per note, by the pid that made it; a torn last line is not there."""
    file = SimpleNamespace(place=Directory(tmp_path / "run") / "a" / "x.tfevents")
    writer = SimpleNamespace(file_writer=SimpleNamespace(event_writer=SimpleNamespace(file=file)))
    directory = str(tmp_path / "journal")
    mine = Journal(directory)
    mine.note(writer, "loss", 1)
    assert in_child(lambda: Journal(directory).note(writer, "loss", 2)) == 0
    os.write(mine._fd, b'{"tag": "torn')
    notes = list(read_journals(directory))
    assert {(note.step, note.pid == os.getpid()) for note in notes} == {(1, True), (2, False)}
    assert {note.path for note in notes} == {"a/x.tfevents"}
    assert json.dumps([note.tag for note in notes]) == '["loss", "loss"]'
    os.close(mine._fd)


def test_attachments_are_expected_only_by_whoever_names_them(run):
    """Equal after a drain; they may have shrunk and changed before; by default none is expected."""
    text = b"the last content"
    with open(os.path.join(run.dir, "a.tsv"), "wb") as file:
        file.write(text)
    full = {PATH: run.data, RANK: run.other}
    assert problems(run, full) == []

    def problems_of(*trees, drained=True) -> list[str]:
        hub = FakeHub(*trees)
        return check(run.dir, hub, drained=drained, attachments=lambda path: path.endswith(".tsv")).problems

    assert problems_of({**full, "a.tsv": text * 2}, {**full, "a.tsv": text}) == []
    assert problems_of(full) == ["a.tsv: not on the Hub"]
    assert problems_of({**full, "a.tsv": text[:-1]}) == ["a.tsv: another content is on the Hub"]
    assert problems_of({**full, "a.tsv": text}, full) == ["a.tsv: not on the Hub"]
    assert problems_of(full, drained=False) == []


def test_an_attachment_without_sha256_is_compared_by_its_git_id(run):
    """Small regular files on the Hub have no other."""
    with open(os.path.join(run.dir, "a.tsv"), "wb") as file:
        file.write(b"text")
    git = hashlib.sha1(b"blob 4\0text").hexdigest()  # noqa: S324 - git's own digest
    for oid, wrong in ((git, []), ("0" * 40, ["a.tsv: another content is on the Hub"])):
        hub = FakeHub({PATH: run.data, RANK: run.other})
        tree = hub.tree("0") | {"a.tsv": SimpleNamespace(size=4, sha256=None, oid=oid)}
        hub.tree = lambda _, tree=tree: tree
        assert check(run.dir, hub, attachments=lambda path: path == "a.tsv").problems == wrong


def test_an_attachment_that_cannot_be_read_is_a_problem_not_an_error(run, monkeypatch):
    """The rest of the report is given."""

    def refuse(path: str) -> tuple[int, str, str]:
        raise PermissionError(13, "Permission denied", path)

    with open(os.path.join(run.dir, "a.tsv"), "wb") as file:
        file.write(b"four")
    monkeypatch.setattr(oracle, "_digests", refuse)
    found = check(run.dir, FakeHub({PATH: run.data}), attachments=lambda path: path == "a.tsv")
    assert "a.tsv: cannot be read: Permission denied" in found.problems
    assert PATH in found.files


def test_files_of_other_machines_are_no_problem_unless_they_shrink(run):
    """One that is not here, and one that was pulled and goes on there; what is here is compared as ever."""
    gone, longer = "rank_00002/" + PATH, run.other + run.data
    trees = [{PATH: run.data, RANK: run.other, gone: run.data}, {PATH: run.data, RANK: longer, gone: longer}]

    def found(*trees: dict[str, bytes]) -> list[str]:
        return check(run.dir, FakeHub(*trees), elsewhere=lambda path, _: path != PATH).problems

    assert found(*trees) == []
    assert len(problems(run, *trees)) == 5
    assert ["shrank" in problem for problem in found(*reversed(trees))] == [True, True]
    assert found(trees[1], {PATH: run.data, RANK: longer}) == [f"{gone}: vanished from the Hub"]
    assert "is not the beginning of the local file" in found({**trees[0], RANK: run.data})[0]
    assert len(found({gone: run.data, PATH: run.data})) == 1, "it was pulled, and is not there any more"


STEP = ("acc", "loss")


def step_file(path, *records: tuple[int, tuple[str, ...]]) -> bytes:
    """Write an event file of such steps and tags; return its content."""
    encoded = [framing.StepEncoder(tags).record(1.0, step, [0.5] * len(tags)) for step, tags in records]
    data = framing.frame(framing.version_event(1.0)) + b"".join(encoded)
    path.write_bytes(data)
    return data


def test_a_step_that_is_not_in_one_record_is_found(tmp_path):
    """In two records, or partly there; one that is wholly lost is another problem."""
    data = step_file(tmp_path / PATH, (1, STEP), (2, STEP[:1]), (2, STEP[1:]), (3, STEP[:1]), (5, STEP[:1]))
    notes = [Returned(7, PATH, tag, step, together=STEP) for step in (1, 2, 3, 4) for tag in STEP]
    report = check(str(tmp_path), FakeHub({PATH: data}), notes)
    assert (report.split, report.lost, report.returned) == (2, 3, 8)
    assert "2 steps are not in one record each" in report.problems
    whole = [note for note in notes if note.step == 1]
    assert check(str(tmp_path), FakeHub({PATH: data}), whole).problems == []


def test_a_journal_says_which_values_a_step_had(tmp_path):
    """Each of them returned."""
    with SummaryWriter(tmp_path / "run") as writer:
        journal = Journal(str(tmp_path / "journal"))
        writer.log({"loss": 0.5, "acc": 1}, 3)
        journal.note_step(writer, STEP, 3)
        writer.add_scalar("loss", 0.5, 4)
        journal.note(writer, "loss", 4)
        journal.flushed()
        place = writer.file_writer.event_writer.file.place.name
    (path,) = journals(str(tmp_path / "journal"))
    notes = read_journal(path)
    assert [(note.tag, note.step, note.together, note.flushed) for note in notes] == [
        ("acc", 3, STEP, True),
        ("loss", 3, STEP, True),
        ("loss", 4, (), True),
    ]
    assert {note.path for note in notes} == {place}
