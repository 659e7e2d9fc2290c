"""The branch: which runs go together, what a failure of one means for the others, and whose copies are read back."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from attached import write
from uploaders import EVENT_FILE

from hf_mpwriter.base.files import BATCH_BYTES, BATCH_IN_MEMORY, PAYLOAD_LIMIT, LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause, Done, Moved, Quarantine, Refused, Retry, Sent, Split, Unknown
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.system import disk
from hf_mpwriter.uploader.branch import Parcel, failure_of_all, together

replace, numbers = disk.replace, itertools.count()


def parcel(*lengths: int, growing: bool = True, creates: bool = False) -> Parcel:
    """A batch of files of these lengths, of a run that may create the repository or not."""
    files = tuple(LocalFile(f"{number}.tfevents", length, growing) for number, length in enumerate(lengths))
    ledger = SimpleNamespace(destination=Destination("https://hub", "me/run", path_in_repo=str(next(numbers))))
    return Parcel(SimpleNamespace(creates=creates, ledger=ledger), None, Batch(1, files))


SMALL, LARGE = (1000,), (PAYLOAD_LIMIT + 1,)
TOGETHER = {  # what waits, how many runs and files may go at once, which go
    "small ones": ([parcel(*SMALL) for _ in range(3)], 100, 100, [0, 1, 2]),
    "no more runs than may": ([parcel(*SMALL) for _ in range(3)], 2, 100, [0, 1]),
    "no more files than may": ([parcel(1, 1), parcel(1, 1), parcel(1)], 100, 3, [0, 2]),
    "the first one has more": ([parcel(1, 1, 1), parcel(1)], 100, 2, [0]),
    "no more bytes": ([parcel(BATCH_BYTES, growing=False), parcel(1), parcel()], 100, 100, [0, 2]),
    "no more memory": ([parcel(1), parcel(BATCH_IN_MEMORY), parcel(1)], 100, 100, [0, 2]),
    "a large file goes alone": ([parcel(*LARGE), parcel(1)], 100, 100, [0]),
    "nor does it join": ([parcel(1), parcel(*LARGE), parcel(1)], 100, 100, [0, 2]),
    "only some may create": ([parcel(1), parcel(1, creates=True), parcel(1)], 100, 100, [0, 2]),
    "others may not": ([parcel(1, creates=True), parcel(1), parcel(1, creates=True)], 100, 100, [0, 2]),
    "a mere read-back": ([parcel(), parcel(1)], 100, 100, [0, 1]),
}


@pytest.mark.parametrize(("waiting", "runs", "files", "going"), TOGETHER.values(), ids=TOGETHER)
def test_a_commit_has_the_first_run_and_as_many_others_as_there_is_room_for(waiting, runs, files, going):
    """What does not fit stays behind, and those behind it may still go."""
    chosen = together(waiting, runs, files, exists=False)
    assert [any(one is each for each in chosen) for one in waiting] == [
        number in going for number in range(len(waiting))
    ]


def test_a_new_run_goes_along_once_the_repository_is_known_to_exist(sweep):
    """A trial that begins costs no commit of its own; nothing is created then."""
    one = sweep.add("a")
    assert sweep.push(one) == ["a"]
    assert sweep.jobs[-1].create
    sweep.arrives("1", "0")
    new = sweep.add("b")
    sweep.log(one)
    assert sweep.push(one, new) == ["a", "b"]
    assert not sweep.jobs[-1].create
    sweep.conclude(*[Refused("it is gone", "sync --create")] * 2)
    sweep.now += 4000
    assert sweep.push(one, new) == ["a"], "it may be gone, so who may create it again is to be known"


DONE, ONE_FILE = Done("c" * 40, own=True, repo_id="me/run", files={}), Quarantine({"a.tfevents": "no"})
OF_THE_DISK, DOWN = Retry("EIO", cause=Cause.DISK), Retry("503", 60.0, cause=Cause.HUB)
FAILURES = {  # the verdicts on the runs of a push, and which of them is of all
    "one has arrived": ([DONE, DOWN], None),
    "a file": ([ONE_FILE], None),
    "a file, beside others of its batch": ([Split("400")], None),
    "a file of one of them": ([Split("400"), Split("400")], 0),
    "a disk": ([OF_THE_DISK], None),
    "a full disk": ([Retry("full", cause=Cause.DISK_FULL)], None),
    "disks and files": ([OF_THE_DISK, ONE_FILE], None),
    "the Hub, for one of them": ([OF_THE_DISK, ONE_FILE, DOWN], 2),
    "the Hub": ([DOWN, DOWN], 0),
    "the branch": ([Moved("412")], 0),
    "the outcome": ([Unknown("504"), Unknown("504")], 0),
    "the token": ([Refused("401", "")], 0),
}


@pytest.mark.parametrize(("verdicts", "expected"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_of_all_only_if_it_cannot_be_of_one_alone(verdicts, expected):
    """What is of one is no reason for the others to wait."""
    failure = failure_of_all([(parcel(1), verdict) for verdict in verdicts])
    assert failure is (None if expected is None else verdicts[expected])


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        ((OF_THE_DISK, ONE_FILE), False),
        ((DOWN, DOWN), True),
    ],
)
def test_what_one_run_fails_with_holds_up_no_other(sweep, verdicts, holds):
    """Its own wait is over before it is tried again; that of the branch is one of all."""
    one, two, third = (sweep.add(name) for name in ("a", "b", "c"))
    assert sweep.push(one, two) == ["a", "b"]
    sweep.conclude(*verdicts)
    assert (third.sending.next_try > sweep.now) is holds
    assert (sweep.branch.pacing.next_try > sweep.now) is holds
    assert one.sending.next_try > sweep.now
    assert (two.sending.next_try > sweep.now) is holds, "a quarantined file costs its run no wait"


def test_a_read_back_beside_it_makes_no_commit_of_a_failure(sweep, monkeypatch):
    """The Hub asks all runs to wait, also if one of the push had nothing to send; no commit was made of the token."""
    one, two = sweep.add("a"), sweep.add("b")
    tokens = []
    monkeypatch.setattr(sweep.branch.limit, "give_back", lambda: tokens.append(1))
    sweep.push(one, two)
    sweep.conclude(Done("1", own=False, repo_id="me/run", files={}, parent="1"), DOWN)
    assert tokens == [1]
    assert (sweep.branch.pacing.next_try, sweep.branch.pacing.may_hurry) == (sweep.now + DOWN.after, False)
    assert two.status.status.kind == "Retry"
    assert one.status.status.kind == ""


def test_of_a_run_that_joins_all_is_read_back_and_of_the_others_only_what_is_new(sweep):
    """Trusted are those that were compared at the last commit of ours, or before it in an unbroken row."""
    one, two = sweep.add("a"), sweep.add("b")

    def trusted(*uploads) -> tuple[str | None, list[bool]]:
        sweep.log(*uploads)
        sweep.push(*uploads)
        return sweep.jobs[-1].own_head, [part.is_trusted for part in sweep.jobs[-1].parts]

    assert trusted(one, two) == (None, [False, False])
    sweep.arrives("1", "0")
    third = sweep.add("c")
    third.sending.ledger.acknowledge({"sent.before": Sent(1, "0" * 64)}, "0", 1.0)
    assert trusted(one, two, third) == ("1", [True, True, False])
    sweep.arrives("2", "1")
    assert trusted(one) == ("2", [True])
    sweep.arrives("3", "2")
    assert trusted(one, two, third) == ("3", [True, True, True]), "nobody else has committed in between"
    sweep.conclude(*[DOWN] * 3)
    sweep.now += 1000
    assert trusted(one, two, third) == (None, [False, False, False]), "a failure trusts none"
    sweep.arrives("5", "4")
    assert trusted(one, two) == ("5", [True, True])
    sweep.arrives("7", "6")  # others have committed; of these two the copies were compared after that
    assert trusted(one, two, third) == ("7", [True, True, False])
    sweep.arrives("8", "7")
    one.requests.audit = True
    assert trusted(one, two) == (None, [False, False]), "an audit believes no ledger"


def test_a_file_of_one_run_that_differs_costs_the_others_no_read_back(sweep):
    """The commit of the others was made at the head of ours; what the one has there is known to differ."""
    one, two = sweep.add("a"), sweep.add("b")
    sweep.push(one, two)
    sweep.arrives("1", "0")
    sweep.log(one, two)
    sweep.push(one, two)
    sweep.conclude(Done("2", own=True, repo_id="me/run", files={}, parent="1"), ONE_FILE)
    sweep.push(one, two)
    assert [(job.own_head, [part.is_trusted for part in job.parts]) for job in sweep.jobs[-1:]] == [("2", [True, True])]


def test_what_is_refused_as_a_whole_goes_with_half_as_many_runs(sweep):
    """Until one run is left to blame; then its files are found one by one. What arrives doubles it again."""
    uploads = [sweep.add(name) for name in "abcd"]
    assert sweep.push(*uploads) == ["a", "b", "c", "d"]
    for expected in (2, 1):
        sweep.conclude(*[Split("400")] * len(sweep.jobs[-1].parts))
        sweep.now += 10
        assert len(sweep.push(*sweep.one.uploads)) == expected
    assert [upload.sending.ledger.quarantined for upload in uploads] == [{}] * 4, "no file was to blame yet"
    (alone,) = (upload for upload in uploads if sweep.branch.carries(upload.sending.in_flight))
    sweep.conclude(Split("400"))
    assert list(alone.sending.ledger.quarantined), "its only file is"
    others = [upload for upload in uploads if upload is not alone]
    (first,) = sweep.push(*others)
    sweep.arrives("1", "0")
    suspects = [upload for upload in others if upload.sending.ledger.destination.path_in_repo != first]
    assert len(sweep.push(*suspects)) == 2


def test_no_run_that_is_not_suspected_goes_with_one_that_is(sweep):
    """So a refused file holds up the runs only that were in one commit with it, and those only until they arrive."""
    one, two = sweep.add("a"), sweep.add("b")
    sweep.push(one, two)
    sweep.conclude(Split("400"), Split("400"))
    third, fourth = sweep.add("c"), sweep.add("d")
    sweep.now += 10
    assert sweep.push(third, one, two, fourth) == ["c", "d"]
    sweep.arrives("1", "0")
    assert sweep.push(one, two) == ["a"]
    sweep.arrives("2", "1")
    sweep.log(one, third)
    assert sweep.push(one, third, two) == ["a", "c"], "it has arrived, so it is not to blame"
    sweep.arrives("3", "2")


def test_a_run_that_is_to_blame_goes_alone_until_nothing_of_it_waits(sweep):
    """Its batch is halved until the file is found; no half is tried with other runs."""
    one, two = sweep.add("a"), sweep.add("b")
    sweep.push(one, two)
    sweep.arrives("1", "0")
    sweep.log(one, two)
    write(one.run_dir, "x.tfevents.2", (Path(one.run_dir) / EVENT_FILE).read_bytes())
    assert sweep.push(one) == ["a"]
    sweep.conclude(Split("400"))
    two.sending.scan()
    for commit in (2, 3):
        sweep.now += 10
        sweep.one._push((upload, upload.sending.events) for upload in (one, two))
        assert [(part.folder, len(part.files)) for part in sweep.jobs[-1].parts] == [("a", 1)]
        sweep.arrives(str(commit), str(commit - 1))
    sweep.log(one)
    assert sweep.push(one, two) == ["a", "b"]


@pytest.mark.parametrize(
    ("failure", "runs"),
    [
        (DOWN, 4),
        (Retry("429", 3600.0, cause=Cause.LIMITED), 4),
        (Moved("412"), 4),
        (Refused("401", ""), 4),
        (Unknown("504", cause=Cause.HUB), 4),
        (Unknown("504", cause=Cause.HUB, too_slow=True), 2),
        (Unknown("the push ended by signal 9"), 2),
        (Retry("UnicodeEncodeError"), 2),
    ],
)
def test_only_what_one_run_may_have_led_to_makes_the_next_commit_smaller(sweep, failure, runs):
    """After a night in which the Hub was away, one commit carries all runs as before."""
    uploads = [sweep.add(name) for name in "abcd"]
    sweep.push(*uploads)
    sweep.conclude(*[failure] * 4)
    sweep.now += 4000
    assert len(sweep.push(*uploads)) == runs


def test_the_size_of_commits_is_learned_whoever_is_to_blame(sweep, monkeypatch):
    """A 413 of one run alone makes its next batches smaller, and those of others."""
    one = sweep.add("a")
    sweep.push(one)
    job = sweep.jobs[-1]
    monkeypatch.setattr(sweep.branch, "_sent", [Parcel(one.sending.in_flight, one.sending.events, Batch(1, many(80)))])
    assert len(job.parts) == 1
    sweep.conclude(Split("413", too_large=True))
    assert sweep.branch.size.files == 40


def many(count: int) -> tuple[LocalFile, ...]:
    """Files that are nowhere."""
    return tuple(LocalFile(f"{number}.tfevents", 1, growing=False) for number in range(count))


def test_a_run_whose_disk_refuses_the_record_of_a_push_stays_behind(sweep, monkeypatch):
    """The others go; it waits for itself, and says why."""
    one, two = sweep.add("a"), sweep.add("b")
    refused = str(one.host.in_flight)

    def refuse(path, data: bytes, word: str, *, durable: bool = True) -> None:
        if str(path) == refused:
            raise OSError(28, "No space left on device")
        replace(path, data, word, durable=durable)

    monkeypatch.setattr(disk, "replace", refuse)
    assert sweep.push(one, two) == ["b"]
    assert (one.status.status.kind, two.status.status.kind) == ("Retry", "")
    assert one.sending.next_try > sweep.now >= two.sending.next_try
    sweep.arrives("1", "0")
    tokens = []
    monkeypatch.setattr(sweep.branch.limit, "give_back", lambda: tokens.append(1))
    assert sweep.push(one) == []
    assert tokens == [1], "no push has taken the token"


def test_a_run_whose_disk_does_not_tell_of_other_hosts_stays_behind(sweep, monkeypatch):
    """Nothing is known of who else may send it, so no commit without a parent may have it."""
    one, two = sweep.add("a"), sweep.add("b")
    sweep.branch.pacing._counts[Moved] = 100

    def refuse() -> bool:
        raise OSError(5, "EIO")

    monkeypatch.setattr(one.sending.in_flight, "_is_alone", refuse)
    assert sweep.push(one, two) == ["b"]
    assert not sweep.jobs[-1].fenced
    assert one.status.status.kind == "Retry"


def test_attachments_that_one_run_alone_fails_with_hold_up_none_of_its_event_files(sweep):
    """A copy that cannot be read is tried again later; the loss curve goes on."""
    one = sweep.add("a")
    write(one._spool.run.path, "a.txt", b"one")
    one.sending.attachments.request()
    one.sending.scan_attachments()
    assert sweep.one._push([(one, one.sending.attachments)])
    sweep.conclude(OF_THE_DISK)
    assert one.sending.next_try <= sweep.now < one.sending.attachments.alone.next_try
    sweep.now = one.sending.attachments.alone.next_try
    one.sending.scan_attachments()
    assert sweep.one._push([(one, one.sending.attachments)])
    sent = {file.path: file.content for file in sweep.jobs[-1].files}
    sweep.conclude(Done("1", own=True, repo_id="me/run", files=sent))
    assert one.sending.attachments.alone.attempts == 0
