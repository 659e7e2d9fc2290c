"""Plain words: failures, durations, and what is pasted into a shell."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.cli.destination import command_line
from hf_mpwriter.cli.words import ago, as_argument, cure, plain, sentence, span, typed


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("ConnectError: [Errno 111] Connection refused", "the Hub cannot be reached"),
        ("ConnectError: [Errno -2] Name or service not known", "the name of the Hub is not known (DNS)"),
        ("HfHubHTTPError: Client error '401 Unauthorized' for url 'https://hub'", "the token is refused (401)"),
        ("HfHubHTTPError: Client error '403 Forbidden' for url 'https://hub'", "the token may not do this (403)"),
        ("RepositoryNotFoundError: no", "no such repository, or the token may not see it (404)"),
        ("HfHubHTTPError: Server error '503 Service Unavailable'", "the Hub fails (503)"),
        ("HfHubHTTPError: 429 Too Many Requests", "the Hub has had too many requests or commits (429)"),
        ("ReadTimeout: The read operation timed out", "the Hub does not answer in time"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("https://hub cannot be reached: check the network", "the Hub cannot be reached"),
        ("token refused (401)", "the token is refused (401)"),
        ("UnansweredError: ConnectError: no", "the Hub cannot be reached"),
        ("ValueError: something else.", "something else"),
        ("its content has 5011 bytes", "its content has 5011 bytes"),
    ],
)
def test_a_failure_is_told_in_plain_words(reason, words):
    """What is not known is told as it is, without the name of its type."""
    assert plain(reason) == words


@pytest.mark.parametrize(
    ("reason", "environ", "words"),
    [
        ("HfHubHTTPError: 401 Client Error", {}, "hf auth login"),
        ("HfHubHTTPError: 401 Client Error", {"HF_TOKEN": "hf_x"}, "mend HF_TOKEN, which is set here"),
        ("HfHubHTTPError: 403 Client Error", {}, "hf auth login with a token that may write"),
        ("HfHubHTTPError: 403", {"HF_TOKEN": "x"}, "mend HF_TOKEN, which is set here, so that it may write"),
        (OFFLINE, {}, "unset HF_HUB_OFFLINE"),
        ("something", {}, "look there"),
    ],
)
def test_the_cure_fits_the_place_that_the_token_comes_from(reason, environ, words):
    """Where HF_TOKEN is set, `hf auth login` changes nothing."""
    assert cure(reason, "look there.", environ) == words


@pytest.mark.parametrize(
    ("helps", "words"),
    [
        (cure("401", environ={}), "Run: hf auth login"),
        (cure("403", environ={}), "Run: hf auth login with a token that may write"),
        (cure("401", environ={"HF_TOKEN": "x"}), "Mend HF_TOKEN, which is set here"),
        (cure("402", "see https://huggingface.co/settings/billing"), "See https://huggingface.co/settings/billing"),
        (cure("503", ""), ""),
    ],
)
def test_what_helps_begins_a_sentence_behind_a_full_stop(helps, words):
    """It is a command, or a phrase; nothing stays nothing."""
    assert sentence(helps) == words


def test_durations_are_short():
    """As a clock shows them, or in one unit."""
    assert [span(seconds) for seconds in (0, 34.4, 271, 3723)] == ["0:00", "0:34", "4:31", "1:02:03"]
    assert [ago(seconds) for seconds in (-1, 34, 300, 7200, 200_000)] == [
        *("0 s ago", "34 s ago", "5 min ago", "2 h ago", "2 days ago")
    ]


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
