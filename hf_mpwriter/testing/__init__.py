"""The oracle and the journal, shipped so that users can test their own set-up."""

from hf_mpwriter.testing.journal import Journal, read_journals
from hf_mpwriter.testing.oracle import FileReport, HubView, Report, check

__all__ = ["FileReport", "HubView", "Journal", "Report", "check", "read_journals"]
