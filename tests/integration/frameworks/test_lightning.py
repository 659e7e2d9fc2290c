"""Lightning: the Trainer and Fabric with our logger, beside the same with theirs."""

from __future__ import annotations

import csv
import shutil
import sys

import pytest
from frameworks import common, frameworks, logged, needs, shown, together, train, train_once  # noqa: F401 - fixtures among them
from repository import HELPERS
from runs import bucket_of, check_oracle
from supervised import Supervised
from support import events

from hf_mpwriter.localhub import LocalHub

pytestmark = needs("lightning", "pytorch_lightning", "sklearn", "tensorboard")

PROGRAM = HELPERS / "lightning_program.py"
RUN = "digits/version_0"


@pytest.fixture
def trained(frameworks, common):  # noqa: F811 - a fixture that is imported
    """One process for many runs."""
    scenarios = ("equal", "fabric", "folders", "refusals", "pickled", "first", "without_checkpoint", "ddp_fork")
    return train_once(PROGRAM, *scenarios, cwd=common)


@pytest.fixture
def resumed(trained, common):  # noqa: F811 - a fixture that is imported
    """Another process, which resumes the runs of the first."""
    return train_once(PROGRAM, "second", "ddp_spawn", cwd=common)


def as_theirs(found):
    """With torch's names for the runs of add_scalars, where tensorboardX and we nest directories."""
    return [(directory.replace("/", "_"), *rest) for directory, *rest in found]


def graphs(run_dir):
    """The graphs in the event files of a directory."""
    return [event.graph_def for path in sorted(run_dir.glob("*tfevents*")) for event in events(path) if event.graph_def]


def test_everything_is_logged_as_by_lightnings_own_logger(trained):
    """Tags, steps, values, their order; the graph, hyper-parameters, and what the writer itself is called with."""
    hub, top, _ = trained
    theirs, ours = logged(top / "theirs" / RUN), logged(top / "ours" / RUN)
    assert as_theirs(ours) == theirs
    assert {directory for directory, *_ in ours} == {".", "p-pair/a", "p-pair/b"}
    expected = {"p-loss_step", "p-validation", "p-test", "p-hp_metric", "digit", "network.body.0.weight", "weights"}
    assert expected <= {tag for _, _, tag, _ in ours}
    steps = [tags for tags in together(top / "ours" / RUN) if "p-loss_step" in tags]
    assert steps == [{"p-loss_step", "p-attempt", "p-epoch"}] * 12, "the scalars of a step are one record"
    assert graphs(top / "ours" / RUN) == graphs(top / "theirs" / RUN) != []
    check_oracle(top / "ours" / RUN, hub, repo="me/equal", folder=f"tensorboard/{RUN}")


def test_a_run_goes_on_on_another_machine(trained, tmp_path):
    """Below `run --pull`, which needs no more than the directory and the repository."""
    first, top, _ = trained
    run_dir, program = tmp_path / "ours" / RUN, (sys.executable, PROGRAM, "elsewhere")
    shutil.copytree(first.store.root, tmp_path / "there")
    with LocalHub(tmp_path / "there") as hub:
        environ = {"HF_ENDPOINT": hub.endpoint, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        options = ("--pull", "--repo-id", "me/equal", "--logdir", str(run_dir))
        code, _, err = Supervised(*program, options=options, cwd=tmp_path, **environ).finish()
        assert code == 0, err
        before, after = ({tag for _, _, tag, _ in logged(where)} for where in (top / "ours" / RUN, run_dir))
        assert after == before | {"more"}
        check_oracle(run_dir, hub, repo="me/equal", folder=f"tensorboard/{RUN}")


def test_hyperparameters_are_written_as_by_lightnings_own_logger(trained):
    """hparams.yaml is in the directory of the run."""
    _, top, _ = trained
    ours, theirs = ((top / whose / RUN / "hparams.yaml").read_text() for whose in ("ours", "theirs"))
    assert ours == theirs != ""


def test_the_trainer_of_the_other_package_logs_the_same(trained):
    """`pytorch_lightning` is `lightning.pytorch` under another name, with classes of its own."""
    _, top, _ = trained
    assert logged(top / "other" / RUN) == logged(top / "ours" / RUN)
    assert graphs(top / "other" / RUN) != []


def test_a_run_is_where_theirs_would_be_and_its_folder_on_the_hub_has_its_names(trained):
    """The version is the next free one, a number or a name; also sub_dir, no name, a directory with `~`."""
    found = [answer[1:] for answer in trained[2] if answer[0] == "folders"]
    assert all(theirs == ours for theirs, ours, *_ in found)
    assert [(place, folder) for _, place, _, folder in found] == [
        ("runs/lightning_logs/version_0", "tensorboard/lightning_logs/version_0"),
        ("runs/lightning_logs/version_1", "tensorboard/lightning_logs/version_1"),
        ("runs/lightning_logs/version_7", "tensorboard/lightning_logs/version_7"),
        ("runs/lightning_logs/version_8", "tensorboard/lightning_logs/version_8"),
        ("runs/lightning_logs/best", "tensorboard/lightning_logs/best"),
        ("runs/lightning_logs/best/a/b", "tensorboard/lightning_logs/best/a/b"),
        ("runs/nameless", "tensorboard/nameless"),
        ("runs/version_0", "tensorboard/version_0"),
        ("runs/group/digits/version_0", "tensorboard/group/digits/version_0"),
        ("at_home/lightning_logs/version_0", "tensorboard/lightning_logs/version_0"),
        ("named/lightning_logs/version_0", "tensorboard/lightning_logs/version_0"),
        ("runs/lightning_logs/version_9", "logs/version_9"),
    ]
    assert [repo for _, _, repo, _ in found] == ["me/folders"] * (len(found) - 1) + ["me/named"]


def test_wrong_settings_raise_when_the_logger_is_constructed(trained):
    """No destination, an unknown option and a repository as folder are errors at once, not after data was loaded."""
    missing, unknown, url = (answer[1:] for answer in trained[2] if answer[0] == "refusals")
    assert missing[0] == "SettingsError"
    assert "HF_MPWRITER_REPO_ID" in missing[1]
    assert unknown[0] == "TypeError"
    assert "colour" in unknown[1]
    assert url[0] == "LogdirError"
    assert "hf://me/runs" in url[1]


def test_no_token_is_in_a_pickle_of_a_logger(trained):
    """All its other arguments are."""
    assert ["pickled", False, {"repo_id": "me/run", "token": None, "commit_every": 2.0}] in trained[2]


def test_fabric_logs_to_two_loggers_and_goes_on_at_the_purge_step(trained):
    """Log and log_dict reach both; with purge_step the repeated steps are shown once."""
    hub, top, _ = trained
    run_dir = top / "fabric" / RUN / "a" / "b"
    (points,) = shown(run_dir).values()
    assert points["loss"] == [(step, step + 0.5) for step in range(6)]
    assert points["first"] == [(step, 3.0 if step >= 3 else 0.0) for step in range(6)]
    check_oracle(run_dir, hub, repo="me/fabric", folder=f"tensorboard/{RUN}/a/b")
    assert bucket_of(run_dir) == "me/board"
    with open(top / "csv" / "digits" / "version_0" / "metrics.csv", encoding="utf-8") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]] == [step + 0.5 for step in range(6)]


def test_fabric_logs_the_graph_of_any_module_that_is_given(trained):
    """It logs that of a LightningModule without a Trainer, and that of a plain module."""
    found = [graphs(trained[1] / "graphs" / "lightning_logs" / f"version_{number}") for number in (0, 1)]
    assert [len(of) for of in found] == [1, 1]


@pytest.mark.parametrize(("name", "next_step"), [("middle", 4), ("epoch", 6), ("between", 6), ("two", 4)])
def test_a_fit_that_goes_on_from_a_checkpoint_shows_every_step_once(resumed, name, next_step):
    """Steps after the checkpoint are from the second attempt, all before it from the first.

    The checkpoint is in the middle of an epoch, after one, after its last batch and before its validation (there with
    `pytorch_lightning`), and that of two optimizers, whose global_step is twice what is logged.
    """
    _, top, _ = resumed
    runs = {found: points for found, points in shown(top / "resumed").items() if found.split("/")[0] == name}
    points = runs[name]
    attempts = [(step, 2.0 if step >= next_step else 1.0) for step in range(12)]
    assert points["attempt"] == attempts
    assert runs[f"{name}/pair/b"]["pair"] == attempts
    assert [step for step, _ in points["loss_step"]] == [*range(12)]
    assert [step for step, _ in points["validation"]] == [step for step, _ in points["loss_epoch"]] == [5, 11]


def test_what_callbacks_log_where_a_fit_starts_is_shown(resumed):
    """It is at the step of the checkpoint, the first step of the first attempt that is hidden."""
    found = shown(resumed[1] / "resumed")
    assert found["middle"]["started"] == [(0, 0.0), (4, 4.0)]
    assert found["between"]["started"] == [(0, 0.0), (6, 6.0)]


def test_a_resumed_run_is_on_the_hub_with_what_its_first_attempt_had_left(resumed):
    """The first attempt had no Hub; the second delivers its events too."""
    hub, top, _ = resumed
    check_oracle(top / "resumed" / "middle", hub, repo="me/resumed", folder="tensorboard/middle")


def test_a_fit_without_a_checkpoint_hides_nothing(trained):
    """Neither a fit that starts afresh in an existing version, nor a fit of a trainer that has resumed before."""
    found = shown(trained[1] / "resumed")
    assert found["anew"]["attempt"] == [(step, attempt) for attempt in (1.0, 2.0) for step in range(6)]
    assert [step for step, _ in found["again"]["attempt"]] == [*range(18)]
    assert found["again"]["later"] == [(100, 2.0), (100, 3.0)]


def only_the_run_itself(run_dir, steps):
    """Check that the first rank logged all: one directory, beside those of add_scalars, and each step once."""
    found = shown(run_dir)
    assert set(found) == {".", "pair/a", "pair/b"}
    assert [step for step, _ in found["."]["attempt"]] == [*range(steps)]
    assert {path.name for path in run_dir.iterdir() if path.is_dir()} == {".hf_mpwriter", "pair"}
    return found["."]


def test_of_two_processes_that_are_forked_the_first_logs(trained):
    """As in a notebook: two train, then two test, into the same run. test_examples has the rest."""
    assert "test" in only_the_run_itself(trained[1] / "ranks" / "ddp_fork", 6)


def test_a_process_that_is_spawned_continues_the_run_of_its_parent(resumed):
    """The parent continues the run afterwards."""
    hub, top, _ = resumed
    found = only_the_run_itself(top / "ranks" / "ddp_spawn", 12)
    assert len(found["hp_metric"]) == 2
    assert found["later"] == [(100, 1.0)]
    check_oracle(top / "ranks" / "ddp_spawn", hub, repo="me/ddp_spawn", folder="tensorboard/ddp_spawn")
