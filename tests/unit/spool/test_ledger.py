"""The ledger: claims only what a commit carried, for one destination, whole at any kill."""

from __future__ import annotations

import copy
import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Held, Ledger, Quarantined

HERE = Destination("https://hub", "me/run", path_in_repo="logs")


@pytest.fixture
def place(tmp_path) -> Spool:
    """A spool with two hosts."""
    made = Spool(str(tmp_path / "exp1"))
    for host in ("h1", "h2"):
        os.makedirs(made.host(host).root)
    return made


def ledger_of(**lengths: int) -> Ledger:
    """A ledger with these lengths."""
    made = Ledger(HERE, "me/run")
    made.acknowledge({path: Sent(length, f"sha{length}") for path, length in lengths.items()}, "c1", 5.0)
    return made


def test_a_ledger_is_what_was_acknowledged():
    """Lengths with digest, commit and time; unknown paths have none; gone ones are forgotten."""
    made = ledger_of(a=10)
    assert (made.length("a"), made.length("b")) == (10, 0)
    assert made.files["a"] == Held(10, "sha10", "c1", 5.0)
    made.quarantine("a", "refused", 1)
    made.acknowledge({"a": Sent(12, "x"), "b": Sent(3, "y")}, "c2", 6.0)
    assert (made.length("a"), made.length("b"), made.quarantined) == (12, 3, {})
    made.acknowledge({"a": Sent(0, "")}, "c3", 7.0)
    assert made.length("a") == 0


def test_a_saved_ledger_is_loaded_unchanged(place):
    """Every field survives."""
    made = ledger_of(a=10, b=20)
    made.quarantine("c", "why", 2, 5.0)
    made.note_checked("h1", 5.0)
    made.taken_over, made.private = frozenset({"h2 1 2"}), True
    made.save(place.host("h1").ledger)
    assert ledger.load(place, HERE) == made
    assert ledger.set_aside(place, "h1") is None


def test_something_has_arrived_once_a_commit_is_known():
    """Before, a repository that is not there may be created; afterwards it was taken away."""
    made = Ledger(HERE)
    assert made.has_arrived is False
    made.quarantine("a", "refused", 1)
    made.release("a")
    assert made.has_arrived is False
    assert ledger_of(a=10).has_arrived is True


def test_a_comparison_counts_in_milliseconds_and_always_grows():
    """A ledger that was lost starts above its predecessor; a clock that is set back takes nothing away."""
    made = Ledger(HERE)
    for now, number in ((1_700_000_000.5, 1_700_000_000_500), (1_700_000_000.5, 1_700_000_000_501), (5.0, None)):
        made.note_checked("h1", now)
        assert made.checks == {"h1": number or 1_700_000_000_502}


@pytest.mark.parametrize("field", ["files", "quarantined", "uncertain"])
def test_a_path_outside_the_run_directory_or_a_negative_length_is_damage(field):
    """What a ledger names is read and compared: it never leads out of the run directory."""
    values = {"files": Held(1, "", "", 0.0), "quarantined": Quarantined(1, 0.0, "why"), "uncertain": [Sent(1, "")]}
    Ledger(HERE, **{field: {"a.tfevents": values[field]}})
    for path in ("../a.tfevents", "/a.tfevents", ".hf_mpwriter/a.tfevents"):
        with pytest.raises(ValueError, match="not a path"):
            Ledger(HERE, **{field: {path: values[field]}})
    for wrong in ({"files": {"a": Held(-5, "", "", 0.0)}}, {"uncertain": {"a": [Sent(-5, "")]}}):
        with pytest.raises(ValueError, match="length"):
            Ledger(HERE, **wrong)


def test_of_several_hosts_the_greatest_length_counts(place):
    """All hosts' ledgers are read; per path the maximum, with its own digest."""
    ledger_of(a=10, b=20).save(place.host("h1").ledger)
    ledger_of(a=30, c=5).save(place.host("h2").ledger)
    merged = ledger.load(place, HERE)
    assert {path: held.length for path, held in merged.files.items()} == {"a": 30, "b": 20, "c": 5}
    assert merged.files["a"].sha256 == "sha30"


def test_a_ledger_of_another_destination_is_not_read(place):
    """What was sent elsewhere was not sent here; nor is it damaged."""
    made = ledger_of(a=10)
    made.destination = dataclasses.replace(HERE, repo_id="me/other")
    made.save(place.host("h1").ledger)
    assert ledger.load(place, HERE).files == {}
    assert ledger.set_aside(place, "h1") is None


# attachments

OLD = LocalFile("a.tsv", 4, growing=False, sha256="1" * 64, blob_id="2" * 40)
NEW = LocalFile("a.tsv", 3, growing=False, sha256="3" * 64, blob_id="4" * 40)


def test_an_attachment_is_covered_when_the_hub_holds_exactly_its_content():
    """Not when it holds more bytes; an empty one is not one that is gone."""
    made = Ledger(HERE)
    made.acknowledge({"a.tsv": OLD.content}, "c1", 5.0)
    assert (made.covers(OLD), made.covers(NEW)) == (True, False)
    empty = LocalFile("e.tsv", 0, growing=False, sha256="5" * 64, blob_id="6" * 40)
    made.acknowledge({"a.tsv": NEW.content, "e.tsv": empty.content}, "c2", 6.0)
    assert (made.covers(OLD), made.covers(NEW), made.covers(empty)) == (False, True, True)
    assert made.known() == {"a.tsv": NEW.content, "e.tsv": empty.content}
    made.acknowledge({"e.tsv": Sent(0, "")}, "c3", 7.0)
    made.quarantine("a.tsv", "refused", 1)
    assert (made.covers(empty), made.known()) == (False, {})


def test_contents_of_unknown_outcome_are_remembered_until_one_is_known(place, monkeypatch):
    """Of all hosts, bounded; event files need none; what is gone says nothing about what is still under way."""
    made, other = Ledger(HERE), Ledger(HERE)
    assert made.mark_uncertain([OLD, LocalFile("a.tfevents", 5, growing=True)])
    assert not made.mark_uncertain([OLD]), "no news"
    other.mark_uncertain([NEW])
    made.save(place.host("h1").ledger)
    other.save(place.host("h2").ledger)
    merged = ledger.load(place, HERE)
    assert merged.uncertain == {"a.tsv": [OLD.content, NEW.content]}
    merged.acknowledge({"a.tsv": Sent(0, "")}, "c1", 5.0)
    assert merged.uncertain
    merged.acknowledge({"b.tsv": dataclasses.replace(OLD.content, foreign=True)}, "c1", 5.0)
    assert not merged.mark_uncertain([dataclasses.replace(OLD, path="b.tsv")]), "others have a file there"
    merged.acknowledge({"a.tsv": NEW.content}, "c2", 6.0)
    assert merged.uncertain == {}
    monkeypatch.setattr(ledger, "UNCERTAIN_LIMIT", 3)
    for length in range(9):
        made.mark_uncertain([dataclasses.replace(OLD, length=length)])
    assert [one.length for one in made.uncertain["a.tsv"]] == [6, 7, 8]


def test_what_loses_a_merge_is_still_known_as_ours(place):
    """The path is not covered until the Hub is read back, then no more. What others sent stays theirs."""
    for host, file, when in (("h1", OLD, 5.0), ("h2", NEW, 6.0)):
        made = Ledger(HERE)
        theirs = Sent(file.length, "9" * 64, "8" * 40, foreign=True)
        made.acknowledge({"a.tsv": file.content, "b.tsv": dataclasses.replace(theirs, length=int(when))}, "c", when)
        made.save(place.host(host).ledger)
    merged = ledger.load(place, HERE)
    assert merged.files["b.tsv"].foreign
    assert merged.files["a.tsv"].sent == OLD.content
    assert merged.uncertain == {"a.tsv": [OLD.content, NEW.content], "b.tsv": []}
    assert not merged.covers(OLD)
    merged.acknowledge({"a.tsv": NEW.content}, "c", 7.0)
    assert merged.covers(NEW)
    merged.save(place.host("h2").ledger)
    assert ledger.load(place, HERE).covers(NEW), "the record that has lost does not make it uncertain again"


def test_the_stamp_of_what_the_hub_has_is_noted_once(place):
    """A wait compares it with the file; it survives saving and an acknowledgement of the same content."""
    made, seen = Ledger(HERE), dataclasses.replace(OLD, stamp=(1, 2, 3, 4))
    assert not made.note_stamps([seen]), "the Hub has nothing"
    made.acknowledge({"a.tsv": OLD.content}, "c1", 5.0)
    assert made.note_stamps([seen])
    assert not made.note_stamps([seen])
    assert not made.note_stamps([dataclasses.replace(NEW, stamp=(5, 6, 7, 8))]), "another content"
    made.acknowledge({"a.tsv": OLD.content}, "c2", 6.0)
    made.save(place.host("h1").ledger)
    assert ledger.load(place, HERE).files["a.tsv"].stamp == (1, 2, 3, 4)
    made.acknowledge({"a.tsv": NEW.content}, "c3", 7.0)
    assert made.files["a.tsv"].stamp == ()


def test_each_new_stamp_of_a_file_raises_its_generation(place):
    """The file was replaced by one with the same content, perhaps an older one: the first stamp replaces none."""
    made = Ledger(HERE)
    made.acknowledge({"a.tsv": OLD.content}, "c1", 5.0)
    for stamp, generation in (((5, 4, 9, 9), 0), ((6, 4, 9, 9), 1), ((2, 4, 3, 3), 2), ((7, 4, 9, 9), 3)):
        assert made.note_stamps([dataclasses.replace(OLD, stamp=stamp)])
        assert (made.files["a.tsv"].stamp, made.files["a.tsv"].generation) == (stamp, generation)


def test_a_ledger_is_ahead_of_a_hub_that_has_lost_something():
    """A shorter event file, another attachment; a shorter attachment that is the same is none."""
    made = Ledger(HERE)
    made.acknowledge({"a.tsv": OLD.content, "a.tfevents": Sent(5, "7" * 64)}, "c1", 5.0)
    assert not made.is_ahead("a.tsv", OLD.content)
    assert made.is_ahead("a.tsv", NEW.content)
    assert made.is_ahead("a.tsv", Sent(0, ""))
    assert not made.is_ahead("a.tfevents", Sent(6, "8" * 64))
    assert made.is_ahead("a.tfevents", Sent(4, "8" * 64))
    assert not made.is_ahead("unknown.tsv", OLD.content)


def test_what_was_deleted_stays_so_whatever_other_hosts_know_until_it_is_asked_for():
    """Though it is longer here now, or another content; the Hub is asked for it, as somebody may restore it."""
    before, made = Ledger(HERE), Ledger(HERE)
    for one in (before, made):
        one.acknowledge({"a.tsv": OLD.content, "a.tfevents": Sent(5, "7" * 64)}, "c1", 5.0)
    gone = Sent(0, "", deleted=True)
    made.acknowledge({"a.tsv": gone, "a.tfevents": gone}, "c2", 6.0)
    made.merge(before)
    assert made.deleted == {"a.tsv", "a.tfevents"} == {path for path, sent in made.known().items() if sent == gone}
    assert made.covers(NEW)
    assert made.covers(LocalFile("a.tfevents", 9, growing=True))
    assert made.send_again()
    assert not made.send_again()
    before.merge(made)
    assert (before.deleted, before.known(), before.covers(NEW)) == (set(), {}, False)


# several hosts

HOSTS = ("h1", "h2", "h3")
SENT = st.builds(
    Sent, st.integers(0, 3), st.sampled_from(["", "1" * 64, "2" * 64]), st.just(""), st.booleans()
)  # of few values, so that records are equal, or differ in one thing
HELD = st.builds(
    Held,
    st.integers(0, 3),
    st.sampled_from(["", "1" * 64, "2" * 64]),
    st.sampled_from(["", "c1"]),
    st.sampled_from([0.0, 5.0]),
    st.just(""),
    st.booleans(),
    generation=st.integers(0, 2),
)
PATHS = st.sampled_from(["a.tfevents", "b.tsv"])
LEDGERS = st.builds(
    Ledger,
    st.just(HERE),
    st.sampled_from(["", "me/run"]),
    st.dictionaries(PATHS, HELD),
    st.dictionaries(PATHS, st.builds(Quarantined, st.integers(0, 2), st.sampled_from([0.0, 5.0]), st.just("why"))),
    st.none(),
    st.dictionaries(st.sampled_from(HOSTS), st.integers(0, 3)),
    st.dictionaries(st.just("b.tsv"), st.lists(SENT, max_size=2)),
    st.sampled_from([None, True, False]),
    st.integers(0, 2),
    st.frozensets(st.sampled_from(["h1 1 1", "h2 1 1"])),
)


STEPS = ["logs", "sends", "reads back", "loses", "is refused", "is let in", "is uncertain", "is seen"]


def merged(*ledgers: Ledger) -> Ledger:
    """The ledgers in one; uncertain contents in a fixed order, as theirs does not matter."""
    made = Ledger(HERE)
    for one in ledgers:
        made.merge(copy.deepcopy(one))
    made.uncertain = {path: sorted(contents, key=repr) for path, contents in made.uncertain.items()}
    return made


@given(LEDGERS, LEDGERS, LEDGERS)
def test_the_order_in_which_ledgers_are_merged_does_not_matter(one, two, three):
    """Commutative, associative and idempotent."""
    assert merged(one, two) == merged(two, one)
    assert merged(one, one) == merged(one)
    assert merged(one, two, one) == merged(one, two)
    assert merged(merged(one, two), three) == merged(one, merged(two, three))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(HOSTS),
            st.sampled_from(STEPS),
            st.sampled_from(["a.tfevents", "b.tsv"]),
        ),
        max_size=30,
    ),
    st.dictionaries(st.sampled_from(HOSTS), st.sampled_from([-7200.0, 7200.0])),
)
def test_what_the_last_host_knows_is_what_all_ledgers_say(steps, wrong_by):
    """One host after the other uploads, with clocks two hours apart; nothing that was lost or over comes back."""
    saved: dict[str, Ledger] = {}
    local, there = dict.fromkeys(["a.tfevents", "b.tsv"], 1), dict[str, Sent]()
    for number, (host, step, path) in enumerate(steps):
        known, now = merged(*saved.values()), 10_000.0 + number + wrong_by.get(host, 0.0)
        if step == "logs":
            local[path] += 1
        if step == "loses":
            there.pop(path, None)
        if step == "sends":
            there[path] = Sent(local[path], f"{local[path]:064}")
        if step in ("sends", "reads back"):
            known.acknowledge({path: there.get(path, Sent(0, ""))}, f"c{number}", now)
        if step == "is refused":
            before = known.quarantined.get(path)
            known.quarantine(path, "why", before.refusals + 1 if before else 1, number)
        if step == "is let in":
            known.release(path)
        if step == "is uncertain":
            known.mark_uncertain([dataclasses.replace(OLD, path="b.tsv")])
        if step == "is seen":
            length = local["b.tsv"]
            known.note_stamps([dataclasses.replace(OLD, length=length, sha256=f"{length:064}", stamp=(1, -number))])
        known.saves += 1
        saved[host] = known
        assert says(merged(*saved.values())) == says(merged(known))


def says(one: Ledger) -> object:
    """What counts of a ledger: at which commit and when it became known does not."""
    files = {path: (held.sent, held.stamp, held.generation) for path, held in one.files.items()}
    return files, one.quarantined, one.uncertain, one.saves


def test_a_comparison_by_any_host_is_news_whatever_its_clock_says(place):
    """The number that `sync` waits for grows, though another host was two hours ahead, or a ledger was lost."""
    ahead, behind = Ledger(HERE), Ledger(HERE)
    ahead.note_checked("h1", 10_000.0)
    ahead.save(place.host("h1").ledger)
    before = ledger.load(place, HERE).checked
    behind.note_checked("h2", 2_800.0)
    behind.save(place.host("h2").ledger)
    after = ledger.load(place, HERE).checked
    assert after > before
    again = Ledger(HERE)
    again.note_checked("h2", 2_801.0)
    again.save(place.host("h2").ledger)
    assert ledger.load(place, HERE).checked > after
