"""The exceptions that a user can meet."""

from __future__ import annotations

import pickle

import pytest

from hf_mpwriter.base.errors import DestinationError, ForeignSpoolError, LogdirError, SettingsError, SpoolFormatError
from hf_mpwriter.writer.hf_summary_writer import UploadError


@pytest.mark.parametrize(
    "kind", [DestinationError, ForeignSpoolError, LogdirError, SettingsError, SpoolFormatError, UploadError]
)
def test_an_error_can_be_pickled_and_shown(kind):
    """A pool that cannot load the error of a child waits for ever; many places show `error.strerror or error`."""
    error = pickle.loads(pickle.dumps(kind("it is bad.", hint="Mend it.")))  # noqa: S301
    assert type(error) is kind
    assert (error.message, error.hint, str(error)) == ("it is bad.", "Mend it.", "it is bad. Mend it.")
    assert getattr(error, "strerror", None) is None
