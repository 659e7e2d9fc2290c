"""Plain words: failures, durations, and what is pasted into a shell."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.words import ago, as_argument, command_line, duration, sentence, span, typed


def test_what_helps_begins_a_sentence_behind_a_full_stop():
    """It is a command, or a phrase; nothing stays nothing."""
    assert sentence("run `hf auth login`") == "Run `hf auth login`"
    assert sentence("Check repo_id.") == "Check repo_id"
    assert sentence("") == ""


def test_durations_are_short():
    """As a clock shows them, or in one unit."""
    assert [span(seconds) for seconds in (0, 34.4, 271, 3723)] == ["0:00", "0:34", "4:31", "1:02:03"]
    assert [ago(seconds) for seconds in (-1, 34, 300, 7200, 200_000)] == [
        *("0 s ago", "34 s ago", "5 min ago", "2 h ago", "2 days ago")
    ]
    assert [duration(seconds) for seconds in (59, 240, 7_200, 259_200)] == ["59 s", "4 min", "2 h", "3 days"]


NAMES = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1)


@given(names=st.lists(NAMES, min_size=1, max_size=20))
def test_what_is_shown_can_be_pasted_into_a_shell(names):
    """Whatever characters a name has: bash reads the same words, and no terminal obeys one of them."""
    line = typed(*names)
    assert line.isprintable()
    program = "import os,sys;sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {line}', sys.executable, program], capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0") == names


def test_no_name_is_taken_for_an_option():
    """A logdir may begin with a dash."""
    assert as_argument("-x") == "./-x"
    assert command_line("sync", "-odd run", "--create") == "hf-mpwriter sync './-odd run' --create"
