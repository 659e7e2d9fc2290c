"""Plain words: failures, durations, and what is pasted into a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.words import ago, as_argument, as_path, command_line, duration, sentence, span, typed


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


@given(names=st.lists(NAMES.filter(str.isprintable), min_size=1, max_size=20))
def test_what_is_shown_can_be_pasted_into_a_shell(names):
    """Whatever characters a name has: bash reads the same words."""
    program = "import os,sys;sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {typed(*names)}', sys.executable, program], capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0") == names


@given(name=NAMES, odd=st.sampled_from(["\n", "\x1b[31m", "\udcff", "\u202e"]))
def test_what_a_terminal_would_not_print_or_would_obey_is_never_a_command(name, odd):
    """It is shown escaped, and quoted all the same."""
    line = command_line("sync", name + odd)
    assert line.isprintable()
    assert line.startswith("sync of ")
    assert line.endswith(", a name that cannot be pasted")
    assert len(shlex.split(line)) == 9


def test_a_path_is_neither_option_nor_home_nor_url(monkeypatch):
    """A found folder may begin with a dash or a tilde; what a user has typed with one is his home."""
    monkeypatch.setenv("HOME", "/home/me")
    assert [as_argument(name) for name in ("-x", "~root", "a/b")] == ["./-x", "./~root", "a/b"]
    assert command_line("sync", "-odd run", "--create") == "hf-mpwriter sync './-odd run' --create"
    paths = {
        "a": "./a",
        ".": ".",
        "../a": "../a",
        "..a": "./..a",
        "/a": "/a",
        "~/a": "/home/me/a",
        "s3://b/a": "s3://b/a",
    }
    assert {path: as_path(path) for path in paths} == paths
