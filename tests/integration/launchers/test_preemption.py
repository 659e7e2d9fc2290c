"""Launchers that lose ranks, agents, nodes and hosts: every record is on the Hub, and the next attempt goes on.

The cases are in `tests/helpers/launching/`; `scripts/proof/launchers.py` has all of them, with the waits of users.
"""

from __future__ import annotations

import pytest
from hazards import needs_torch
from launching import first, hosts, preemption, torchrun
from supervised import why_no_namespace

GRACE = 120.0  # seconds, more than a busy machine needs
REASON = why_no_namespace()
needs_namespace = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


@pytest.mark.torch
@needs_torch
def test_a_job_that_is_preempted_goes_on_on_nodes_with_empty_disks(stage):
    """The recipe for spot nodes, twice: every step of every rank once in both readers, nothing is missing."""
    assert len(preemption.preempted(stage, GRACE)) == preemption.ATTEMPTS


@pytest.mark.torch
@needs_torch
def test_agents_that_share_a_run_directory_lose_ranks_and_one_another(stage):
    """SIGKILL of a rank, which all restart after, and of an agent; SIGTERM to the other one; one uploader in all."""
    assert len(torchrun.two_agents_of_two(stage)) == 3


@pytest.mark.root
@needs_namespace
def test_hosts_that_share_a_run_directory_take_over_from_each_other(stage):
    """Each is lost once with its uploader; the other one sends what it had logged, and it comes back."""
    assert len(hosts.take_over(stage)) == 2


def test_a_slurm_job_that_is_requeued_goes_on_in_its_default_run_directory(stage):
    """The batch script of the documents: all is on the Hub before SLURM kills what is left of the step."""
    assert set(hosts.requeued(stage)) == {"SIGTERM", "the end"}


@pytest.mark.root
@needs_namespace
def test_the_container_of_the_documents_sends_what_it_has_logged(stage):
    """The command of the Kubernetes recipe, as process 1."""
    assert first.of_kubernetes(stage)
