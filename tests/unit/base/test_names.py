"""Names that are safe in a path."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.system.process import safe_name
from hf_mpwriter.base.names import is_event_file


@given(st.text())
def test_a_safe_name_is_one_part_of_a_path_and_no_event_file(text):
    """No separator, no dot, nothing that TensorBoard opens, not too long, and stable."""
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,64}", name)
    assert not is_event_file(name)
    assert safe_name(name) == name
