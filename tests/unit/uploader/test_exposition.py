"""The text format of Prometheus, read by its own client."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hf_mpwriter.uploader.health.exposition import Family, render


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False))
def test_prometheus_reads_what_was_written(run, value):
    """Whatever stands in a label, and whatever a number is."""
    family = Family("hf_mpwriter_lag_seconds", "gauge", "How long ago.", [("", {"lane": "a"}, value)])
    (found,) = text_string_to_metric_families(render([family], {"run": run}))
    assert (found.name, found.type, found.documentation) == ("hf_mpwriter_lag_seconds", "gauge", "How long ago.")
    assert [(sample.labels, sample.value) for sample in found.samples] == [({"run": run, "lane": "a"}, value)]


def test_a_byte_that_is_no_utf_8_does_not_spoil_the_file():
    """Names of directories may hold any byte."""
    text = render([Family("x", "gauge", "It.", [("", {}, 1)])], {"run": "runs/\udcff"})
    (found,) = text_string_to_metric_families(text.encode().decode())
    assert found.samples[0].labels == {"run": "runs/?"}
