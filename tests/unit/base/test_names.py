"""Names that are safe in a path."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base import names
from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.system.process import safe_name


@given(st.text())
def test_a_safe_name_is_one_part_of_a_path_and_no_event_file(text):
    """No separator, no dot, nothing that TensorBoard opens, not too long, and stable."""
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,64}", name)
    assert not is_event_file(name)
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("events.out.tfevents.0000000001.host.4711.0123abcd.eval", "host.4711"),
        ("events.out.tfevents.1700000000.10.0.0.1.4711.0", "10.0.0.1.4711"),
        ("events.out.tfevents.1700000000.host", "host"),
        ("mine.tfevents", "mine.tfevents"),
    ],
)
def test_the_name_of_an_event_file_tells_the_process(name, process):
    """Ours and torch's; tensorboardX gives the host only."""
    assert names.event_process(name) == process


@pytest.mark.parametrize(
    ("where", "url"),
    [
        (("model", "me/run", "main", "tensorboard/exp1"), "me/run/tree/main/tensorboard/exp1"),
        (("dataset", "me/run", "main", ""), "datasets/me/run/tree/main"),
        (("space", "me/run", "v/1", "a b/é#?%"), "spaces/me/run/tree/v%2F1/a%20b/%C3%A9%23%3F%25"),
    ],
)
def test_a_page_of_the_hub_opens(where, url):
    """The prefix of its kind; a branch is one part of the path; everything else that a browser would read is quoted."""
    for endpoint in ("http://127.0.0.1:9", "http://127.0.0.1:9/"):
        there = Destination(endpoint, where[1], where[0], *where[2:])
        assert there.url == f"http://127.0.0.1:9/{url}"
        assert there.commit_url("0123abcd") == f"http://127.0.0.1:9/{url.split('/tree/')[0]}/commit/0123abcd"
