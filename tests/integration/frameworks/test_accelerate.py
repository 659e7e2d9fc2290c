"""Accelerate: a training loop with our tracker, beside the same with theirs."""

from __future__ import annotations

import re

import pytest
from frameworks import common, frameworks, logged, needs, shown, together, train, train_once  # noqa: F401 - fixtures among them
from repository import HELPERS
from runs import bucket_of, check_oracle
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary

pytestmark = needs("accelerate", "sklearn", "tensorboard")

PROGRAM = HELPERS / "accelerate_program.py"
RUN = "group/run"


@pytest.fixture
def trained(frameworks, common):  # noqa: F811 - a fixture that is imported
    """One process for all tests of this module: its hub, its directory, and the JSON that it printed."""
    return train_once(PROGRAM, "equal", "others", "refusals", "first", cwd=common)


def named(found):
    """What was logged, with torch's names for the runs of add_scalars, and one name for the configuration's run."""
    return [(re.sub(r"^\d+\.\d+$", "hparams", directory).replace("/", "_"), *rest) for directory, *rest in found]


def configuration(found):
    """The values of the hyper-parameters."""
    (start,) = [value for *_, tag, value in found if tag == "_hparams_/session_start_info"]
    content = Summary.Value.FromString(start).metadata.plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def but_for_the_configuration(found):
    """The configuration differs in bytes: tensorboardX writes a bool as a bool, torch as 0 or 1."""
    return [event for event in found if not event[2].startswith("_hparams_")]


def test_everything_is_logged_as_by_accelerates_own_tracker(trained):
    """Tags, steps, values, their order; scalars, texts, dictionaries, images, and direct calls of the writer."""
    hub, top, printed = trained
    theirs, ours = (named(logged(top / whose / RUN)) for whose in ("theirs", "ours"))
    assert but_for_the_configuration(ours) == but_for_the_configuration(theirs)
    assert {directory for directory, *_ in ours} == {".", "pair_a", "pair_b", "hparams"}
    expected = {"loss", "tensor", "note/text_summary", "digits", "digit", "body.0.weight", "evaluation"}
    assert expected <= {tag for _, _, tag, _ in ours}
    assert together(top / "ours" / RUN) == [{"loss", "first", "tensor"}] * 6, "the scalars of a step are one record"
    assert ["equal", True] in printed, "get_tracker() unwraps the writer"
    check_oracle(top / "ours" / RUN, hub, repo="me/equal", folder=f"tensorboard/{RUN}")
    assert bucket_of(top / "ours" / RUN) == "me/board"


def test_the_configuration_is_stored_as_by_accelerates_own_tracker(trained):
    """The configuration is stored as hyper-parameters, and in a file."""
    _, top, _ = trained
    theirs, ours = (named(logged(top / whose / RUN)) for whose in ("theirs", "ours"))
    values = {"rate": 0.1, "layers": 2, "name": "digits", "nesterov": False}
    assert configuration(ours) == configuration(theirs) == values
    (one,), (other,) = ((top / whose / RUN).glob("*/hparams.yml") for whose in ("theirs", "ours"))
    assert one.read_text() == other.read_text() != ""


def test_a_tracker_logs_the_same_however_it_is_named(trained):
    """As an instance, and registered once more; the environment names the destination."""
    _, top, printed = trained
    ours = named(logged(top / "ours" / RUN))
    assert named(logged(top / "instance" / "run")) == named(logged(top / "registered" / RUN)) == ours
    assert ["others", "me/others", f"tensorboard/{RUN}"] in printed


def test_wrong_settings_raise_when_the_trackers_are_constructed(trained):
    """No destination, and an unknown option, are errors of the constructor."""
    missing, unknown = (answer[1:] for answer in trained[2] if answer[0] == "refusals")
    assert missing[0] == "SettingsError"
    assert "HF_MPWRITER_REPO_ID" in missing[1]
    assert unknown[0] == "TypeError"
    assert "colour" in unknown[1]


def test_a_resumed_run_shows_every_step_once(trained, frameworks):  # noqa: F811 - imported
    """purge_step does it, in the run itself and in the runs of its dictionaries."""
    _, top, _ = trained
    train(PROGRAM, "second", cwd=top)
    run_dir = top / "resumed" / RUN
    found = shown(run_dir)
    points = [(step, 0.0 if step < 3 else 3.0) for step in range(9)]
    assert found["."]["first"] == found["pair/b"]["pair"] == points
    assert found["pair/a"]["pair"] == [(step, float(step)) for step in range(9)]
    assert found["."]["evaluation"] == [(9, 0.5)]
    assert {directory for directory, *_ in named(logged(run_dir))} == {".", "pair_a", "pair_b", "hparams"}
    check_oracle(run_dir, frameworks, repo="me/resumed", folder=f"tensorboard/{RUN}")
