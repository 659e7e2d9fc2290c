"""What the integrations share: which versions, which destination, and the scalars of a step as one record."""

from __future__ import annotations

import configparser
from functools import partial
from pathlib import Path

import programs
import pytest
from runs import bucket_of
from support import events

import hf_mpwriter
from hf_mpwriter import SummaryWriter, integrations
from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.integrations.shared import EnvironmentWriter, add_scalars, split_scalars, with_destination

# in interpreters of their own: what they have imported is what is tested
run_python, succeed = partial(programs.run_python, fresh=True), partial(programs.succeed, fresh=True)
FRAMEWORKS = sorted(integrations.MINIMUM)


def test_the_minimum_versions_are_those_of_the_extras():
    """An extra installs versions that are accepted."""
    parser = configparser.ConfigParser()
    parser.read(Path(hf_mpwriter.__file__).parent.parent / "setup.cfg")
    extras = parser["options.extras_require"]
    for framework, minimum in integrations.MINIMUM.items():
        assert f"{framework} >= {minimum}" in extras[framework].splitlines()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_that_is_too_old_is_refused_with_the_version_that_is_needed(framework, tmp_path, monkeypatch):
    """Before it is imported, by what it says of itself on disk."""
    metadata = tmp_path / f"{framework}-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {framework}\nVersion: 0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run_python(f"import hf_mpwriter.integrations.{framework}")
    assert result.returncode == 1
    minimum = integrations.MINIMUM[framework]
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("ImportError")]
    assert f"{framework} 0.1 is too old, {minimum} is needed" in told
    assert f"Run in the clone: pip install -U '.[{framework}]'" in told


def test_a_framework_that_is_missing_is_told_with_the_extra_that_brings_it():
    """A name that is not on disk."""
    with pytest.raises(ImportError, match=r"no_such is not installed. Run in the clone: pip install -U '.\[no_such\]'"):
        integrations.require("no_such")


NAMED = {"HF_MPWRITER_REPO_ID": "datasets/me/env", "HF_MPWRITER_REPO_PRIVATE": "1"}


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({"repo_id": "me/run"}, NAMED, {"repo_id": "me/run"}),
        ({"commit_every": 1}, NAMED, {"commit_every": 1, "repo_id": "me/env", "repo_type": "dataset"}),
        ({"repo_id": None, "repo_private": False}, NAMED, {"repo_id": "me/env", "repo_private": False}),
        ({}, {"HF_MPWRITER_REPO_ID": "me/env"}, {"repo_id": "me/env", "repo_type": "model"}),
        ({"commit_every": 1}, {"HF_MPWRITER_DISABLED": "1"}, {"commit_every": 1}),
    ],
)
def test_what_is_given_comes_before_the_environment(options, environ, expected):
    """A repository of one's own leaves out all that the environment says of another."""
    found = with_destination(options, environ)
    assert found.items() >= expected.items()
    assert ("repo_private" in found) == ("repo_private" in expected or found.get("repo_type") == "dataset")


def test_a_run_without_a_destination_is_refused():
    """It would stay on this disk without notice; HF_MPWRITER_DISABLED asks for that."""
    with pytest.raises(SettingsError, match=r"No repository is named.*HF_MPWRITER_REPO_ID"):
        with_destination({}, {})


def test_an_option_of_no_writer_is_refused_at_once():
    """Not when the first rank logs, minutes later."""
    with pytest.raises(TypeError, match="repo_ip"):
        with_destination({"repo_ip": "me/run"}, {})


def test_the_writer_of_the_environment_takes_what_torch_s_and_tensorboardx_s_take(tmp_path, hub, monkeypatch):
    """By position and by name; its destination is in the environment, or there is none."""
    local = EnvironmentWriter(str(tmp_path / "local"), "", None, filename_suffix=".x")
    local.add_scalar("loss", 1.0, 1)
    local.close()
    monkeypatch.setenv("HF_MPWRITER_REPO_ID", "me/run")
    monkeypatch.setenv("HF_MPWRITER_LIVE", "me/board")
    with EnvironmentWriter(log_dir=str(tmp_path / "exp")) as writer:
        writer.add_scalar("loss", 1.0, 1)
    tree = hub.store.tree("model", "me/run", "main")
    assert [path.rpartition("/")[0] for path in tree if "tfevents" in path] == ["tensorboard/exp"]
    assert bucket_of(tmp_path / "exp") == "me/board"
    assert len(list((tmp_path / "local").glob("*.tfevents.*.x"))) == 1


def logged(directory) -> list[tuple[int, list[tuple[str, float]]]]:
    """Step and values of each record."""
    found = [event for path in directory.glob("*tfevents*") for event in events(path)[1:]]
    return [(event.step, [(value.tag, value.simple_value) for value in event.summary.value]) for event in found]


def test_the_scalars_of_a_step_are_one_record(tmp_path):
    """And no scalars are none."""
    with SummaryWriter(tmp_path) as writer:
        add_scalars(writer, {"a": 1.0, "b": 2}, 5)
        add_scalars(writer, {}, 6)
    assert logged(tmp_path) == [(5, [("a", 1.0), ("b", 2.0)])]


def test_scalars_without_a_step_count_none(tmp_path):
    """They are at step 0, as in frameworks' own loggers, or at that of the default metadata."""
    with SummaryWriter(tmp_path) as writer:
        for _ in range(2):
            add_scalars(writer, {"a": 1.0, "b": 2.0}, None)
        with writer.use_metadata(global_step=9, walltime=1.0):
            add_scalars(writer, {"a": 1.0}, None)
    assert logged(tmp_path) == [(0, [("a", 1.0)]), (0, [("b", 2.0)])] * 2 + [(9, [("a", 1.0)])]


def test_names_that_are_equal_in_the_file_are_no_error_of_a_framework(tmp_path):
    """Both values are kept."""
    with SummaryWriter(tmp_path) as writer:
        add_scalars(writer, {"a b": 1.0, "a_b": 2.0}, 5)
        with pytest.raises(TypeError):
            add_scalars(writer, {5: 1.0}, 5)
    assert logged(tmp_path) == [(5, [("a_b", 1.0), ("a_b_2", 2.0)])]


def test_values_are_split_by_their_type():
    """In their order."""
    given = {"a": 1, "t": "text", "b": 0.5, "c": {"x": 1.0}, "d": True}
    assert split_scalars(given) == ({"a": 1, "b": 0.5, "d": True}, {"t": "text", "c": {"x": 1.0}})
