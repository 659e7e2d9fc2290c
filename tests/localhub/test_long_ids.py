"""The local Hub with ids of 64 hex digits, as independent Hubs have them."""

from __future__ import annotations

import pytest

from hf_mpwriter.localhub.errors import StaleParent
from hf_mpwriter.localhub.storage.writing import Change, WritableStore


def test_commits_have_ids_of_64_digits_and_parents_are_named_by_a_beginning(tmp_path):
    """They are found whole; a store may hold both kinds."""
    short = WritableStore(tmp_path)
    short.prepare()
    short.create_repo("model", "me/run", private=False, author="me", files={})
    store = WritableStore(tmp_path, long_ids=True)
    change = Change("put", "a", store.put_regular(b"a"))
    first = store.resolve("model", "me/run")
    made = store.apply("model", "me/run", "main", [change], title="t", author="me", parent=first)
    assert (len(first), len(made.oid)) == (40, 64)
    assert store.commit("model", "me/run", made.oid) == made
    assert [commit.oid for commit in store.commits("model", "me/run")] == [made.oid, first]
    store.apply("model", "me/run", "main", [change], title="t", author="me", parent=made.oid[:40])
    with pytest.raises(StaleParent):
        store.apply("model", "me/run", "main", [change], title="t", author="me", parent=made.oid[:40])
