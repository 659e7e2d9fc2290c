"""Links to what the Hub shows of a run."""

from __future__ import annotations

from urllib.parse import quote

from hf_mpwriter.base.settings import Destination

_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def repository_url(destination: Destination) -> str:
    """The page of the repository."""
    return f"{destination.endpoint}/{_PREFIXES[destination.repo_type]}{quote(destination.repo_id)}"


def run_url(destination: Destination) -> str:
    """The page of the run's folder."""
    branch = f"{repository_url(destination)}/tree/{quote(destination.revision, safe='')}"
    return f"{branch}/{quote(destination.path_in_repo)}".rstrip("/")


def commit_url(destination: Destination, commit: str) -> str:
    """The page of a commit."""
    return f"{repository_url(destination)}/commit/{quote(commit)}"
