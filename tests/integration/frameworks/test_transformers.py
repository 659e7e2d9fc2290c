"""The Trainer of transformers with our callback: what is logged, into which run, and what is on the Hub in the end."""

from __future__ import annotations

import re
import signal
import subprocess

from frameworks import command, frameworks, logged, needs, running, shown, together, train
from programs import wait_for
from runs import bucket_of, check_oracle, no_uploader

pytestmark = needs("transformers", "optuna", "sklearn", "tensorboard")
__all__ = ["frameworks"]  # a fixture

PROGRAM = """
import contextlib, os, signal, sys
from digits import Network, digits
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from hf_mpwriter.integrations.transformers import HubTensorBoardCallback
ROWS, TESTS = digits()
DEFAULTS = {
    "max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 0.01, "logging_steps": 1,
    "eval_strategy": "steps", "eval_steps": 10, "save_strategy": "no", "use_cpu": True,
    "disable_tqdm": False,  # else the callback that prints removes "total_flos" for the callbacks after it
}

def trainer(output, *callbacks, **arguments):
    arguments = TrainingArguments(output, **DEFAULTS | arguments)
    return Trainer(
        model_init=Network, args=arguments, train_dataset=ROWS, eval_dataset=TESTS, callbacks=[*callbacks]
    )
"""


def runs(output):
    """The run directories of an output directory, the oldest first."""

    def started(run):
        return min(path.name.split(".")[3] for path in run.glob("*tfevents*")), run.name

    return sorted((output / "_tensorboard").iterdir(), key=started)


def oracle_report(hub, run, repo="me/run"):
    """The oracle's report on a run directory."""
    return check_oracle(run, hub, repo=repo, folder=f"tensorboard/{run.name}")


EQUAL = """
from torch.utils.tensorboard import SummaryWriter

os.environ["HF_MPWRITER_DISABLED"] = "1"

@contextlib.contextmanager
def into(name):
    os.makedirs(name)
    with contextlib.chdir(name):
        yield

def rest(it):
    it.train()
    it.evaluate()

with into("theirs"):
    rest(trainer("out", report_to="tensorboard"))
with into("both"):
    rest(trainer("out", HubTensorBoardCallback(), report_to="tensorboard"))
with into("added"):
    it = trainer("out", report_to="tensorboard")
    it.add_callback(HubTensorBoardCallback)
    rest(it)
with into("given"):
    given = TensorBoardCallback(tb_writer=SummaryWriter("given"))
    rest(trainer("out", given, HubTensorBoardCallback(), report_to="tensorboard"))
with into("evaluated"):
    it = trainer("out", report_to="tensorboard")
    it.add_callback(HubTensorBoardCallback())
    it.evaluate()
with into("apart"):
    trainer("one", HubTensorBoardCallback(), max_steps=1).train()
    rest(trainer("out", report_to="tensorboard"))
"""
RUN_TIMES = re.compile(r"(runtime|_per_second|_time)$")


def steady(events):
    """The events whose values do not depend on run times."""
    return [event for event in events if not RUN_TIMES.search(event[2])]


RUNS = """
ours = HubTensorBoardCallback("me/run", live="me/board")
it = trainer("out", ours)
it.train()
it.evaluate()
it.predict(TESTS)
trainer("out", ours).evaluate()

it = trainer("search", HubTensorBoardCallback("me/run"), max_steps=3)
space = lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1)}
it.hyperparameter_search(space, n_trials=2, backend="optuna")
it.hyperparameter_search(space, n_trials=1, backend="optuna", hp_name=lambda trial: f"rate/{trial.number}")
it.train()
"""
TRIALS = ("trial_0", "trial_1", "rate_0")
USES = """
from hf_mpwriter import HFSummaryWriter

class Extra(TrainerCallback):
    def __init__(self, writer):
        self.writer = writer
    def on_step_end(self, args, state, control, **kwargs):
        self.writer.add_scalar("extra", state.global_step, state.global_step)

with HFSummaryWriter("me/run", logdir="beside") as writer:
    os.environ["TENSORBOARD_LOGGING_DIR"] = "beside"
    it = trainer("other", Extra(writer), report_to="tensorboard")
    it.train()
    for name, parameter in it.model.named_parameters():
        writer.add_histogram(f"parameters/{name}", parameter, it.state.global_step)
    for record in it.state.log_history:
        for name, value in record.items():
            writer.add_scalar(f"again/{name}", value, record["step"])
    it.evaluate()
    del os.environ["TENSORBOARD_LOGGING_DIR"]

writer = HFSummaryWriter("me/run", logdir="passed")
it = trainer("other", TensorBoardCallback(tb_writer=writer), Extra(writer))
it.train()
for name, value in it.evaluate().items():
    writer.add_scalar(f"last/{name}", value, it.state.global_step)
"""


def test_it_logs_what_theirs_logs_into_a_run_for_each_training_and_beside_writers_of_the_user(frameworks, tmp_path):
    """Equal events, the right run for them, and the code that people write today."""
    env = {"SLURM_JOB_ID": "7"}  # else the names of runs contain the second
    train(PROGRAM + RUNS + USES + EQUAL, cwd=tmp_path, env=env)
    check_runs(frameworks, tmp_path)
    check_uses(frameworks, tmp_path)
    check_equal(tmp_path)


def check_runs(hub, top):
    """`evaluate()` and `predict()` stay in the run of `train()`; the next Trainer and each trial have their own.

    The same holds for one callback. No run is inside another, or it would be uploaded twice, and no two share a folder
    on the Hub.
    """
    trained, evaluated = runs(top / "out")
    searched = runs(top / "search")
    assert {run.name for run in searched} == {"slurm_7_3", *(f"slurm_7_3_{name}" for name in TRIALS)}
    for run in (trained, evaluated, *searched):
        report = oracle_report(hub, run)
        assert all("/" not in path for path in report.files)
    assert bucket_of(trained) == "me/board"
    seen = shown(trained)["."]
    assert [step for step, _ in seen["train/loss"]] == [*range(1, 21)]
    assert [step for step, _ in seen["eval/loss"]] == [10, 20, 20]
    assert [step for step, _ in seen["test/loss"]] == [20]
    assert [step for step, _ in shown(evaluated)["."]["eval/loss"]] == [0]
    points = [shown(run)["."] for run in searched]
    assert all([step for step, _ in tags["train/loss"]] == [1, 2, 3] for tags in points)
    assert len({tags["train/learning_rate"][0] for tags in points}) == 3, "in the end, those of the last trial"


def check_equal(top):
    """The same events in the same order, by the bytes: all but run times. One run, in any order of callbacks.

    Theirs logs nothing beside it. A writer that the user gave to their callback gets all of the training; Trainers
    without ours are as they were.
    """
    (run,) = (top / "theirs" / "out" / "runs").iterdir()
    theirs = steady(logged(run))
    assert {tag for _, _, tag, _ in theirs} > {"args/text_summary", "train/loss", "train/train_loss", "eval/loss"}
    assert len(theirs) > 4 * 20
    for name in ("both", "added", "given"):
        (run,) = runs(top / name / "out")
        assert steady(logged(run)) == theirs, name
        assert sum("train/loss" in tags for tags in together(run)) == 20, "the scalars of a step are one record"
    given = steady(logged(top / "given" / "given"))
    assert given == theirs[: len(given)]
    assert given[-1][1:3] == (20, "train/epoch")
    (run,) = (top / "apart" / "out" / "runs").iterdir()
    assert steady(logged(run)) == theirs
    assert len(runs(top / "evaluated" / "out")) == 1
    for name in ("both", "added", "given", "evaluated"):
        assert not (top / name / "out" / "runs").exists(), name


def check_uses(hub, top):
    """Use a writer with `report_to="tensorboard"` in one directory, or passed to their callback; used after `train()`.

    Histograms of all parameters, the log replayed, `evaluate()`: all of it is on the Hub, theirs' files too.
    """
    wait_for(lambda: no_uploader(top / "beside"), "no process waits at its end for what others write")
    steps = [*range(1, 21)]
    report = oracle_report(hub, top / "beside")
    assert len(report.files) == 3, "of our writer, of theirs, and of theirs after training"
    seen = shown(top / "beside")["."]
    for tag in ("extra", "train/loss", "again/loss"):
        assert [step for step, _ in seen[tag]] == steps, tag
    assert seen["again/loss"] == seen["train/loss"]
    assert [step for step, _ in seen["eval/loss"]] == [10, 20, 20]
    histograms = {tag for _, _, tag, _ in logged(top / "beside") if tag.startswith("parameters/")}
    assert histograms == {f"parameters/body.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    oracle_report(hub, top / "passed")
    seen = shown(top / "passed")["."]
    for tag in ("extra", "train/loss"):
        assert [step for step, _ in seen[tag]] == steps, tag
    assert [step for step, _ in seen["last/eval_loss"]] == [20]


INTERRUPTED = """
import multiprocessing

class Kill(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == 15:
            os.kill(os.getpid(), signal.SIGKILL)

saves = {"save_strategy": "steps", "save_steps": 10}

def in_a_child(output, *callbacks, **how):
    train = lambda: trainer(output, HubTensorBoardCallback("me/run"), *callbacks, **saves).train(**how)
    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join()

in_a_child("child", Kill())
in_a_child("child", resume_from_checkpoint=True)
os.environ["SLURM_JOB_ID"] = "7"
in_a_child("anew", Kill())
in_a_child("anew")
del os.environ["SLURM_JOB_ID"]
whole = trainer("whole", HubTensorBoardCallback("me/run"), **saves)
whole.train()
whole.train(resume_from_checkpoint="whole/checkpoint-10")
trainer("foreign", **saves).train()
trainer("out", HubTensorBoardCallback("me/run"), Kill(), **saves).train()
"""
RESUMED = """
trainer("out", HubTensorBoardCallback("me/run")).evaluate()
trainer("out", HubTensorBoardCallback("me/run")).train(resume_from_checkpoint=True)
for output, more in ("foreign", {}), ("whole", {"restore_callback_states_from_checkpoint": True}):
    it = trainer(output, HubTensorBoardCallback("me/run"), **more)
    it.train(resume_from_checkpoint=f"{output}/checkpoint-10")
"""


def test_a_resumed_training_goes_on_in_the_run_of_the_checkpoint(frameworks, tmp_path):
    """The steps after the checkpoint are hidden, and logged again with the same values.

    After a kill, although a Trainer that only evaluated has made another run meanwhile; in the same process; in
    children of one program; with states of callbacks restored. A checkpoint that was made without us starts a run. A
    requeued job that starts afresh hides all that it has logged.
    """
    interrupted = command(PROGRAM + INTERRUPTED)
    with running(interrupted, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    (killed,) = runs(tmp_path / "out")
    (whole,) = runs(tmp_path / "whole")
    assert max(step for _, step, _, _ in logged(killed)) == 15
    first = shown(whole)
    train(PROGRAM + RESUMED, cwd=tmp_path)
    resumed, evaluated = runs(tmp_path / "out")
    assert resumed == killed
    assert [step for step, _ in shown(evaluated)["."]["eval/loss"]] == [0]
    assert runs(tmp_path / "whole") == [whole]
    (foreign,) = runs(tmp_path / "foreign")
    (child,), (anew,) = runs(tmp_path / "child"), runs(tmp_path / "anew")
    for run in (resumed, evaluated, whole, foreign, child, anew):
        oracle_report(frameworks, run)
    for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "eval/loss"):
        points = first["."][tag]
        assert [step for step, _ in points] == ([10, 20] if tag == "eval/loss" else [*range(1, 21)]), tag
        for run in (resumed, whole, child, anew):
            assert shown(run)["."][tag] == points, (run, tag)
        assert shown(foreign)["."][tag] == [(step, value) for step, value in points if step > 10], tag
    again = [value for _, step, tag, value in logged(whole) if (step, tag) == (15, "train/loss")]
    assert again == again[:1] * 3, "without a break, resumed in the same process, in another one"


ADDRESSED = """
import json, logging
from hf_mpwriter.base.errors import SettingsError

def measured(output, *arguments, **options):
    it = trainer(output, HubTensorBoardCallback(*arguments), hub_token=sys.argv[1], **options)
    it.evaluate()

both = {"hub_model_id": "me/arguments", "push_to_hub": True}
os.environ["HF_MPWRITER_REPO_ID"] = "me/environment"
measured("first", "me/given", **both)
measured("second", **both)
measured("third", push_to_hub=True)
measured("fourth", hub_private_repo=True)
del os.environ["HF_MPWRITER_REPO_ID"]
try:
    trainer("fifth", HubTensorBoardCallback())
except SettingsError as error:
    print(error)
"""
PUSHED = """
class Meanwhile(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        assert ours.tb_writer.push(wait=60)

for strategy in ("every_save", "checkpoint"):
    ours = HubTensorBoardCallback()
    it = trainer(
        strategy, ours, Meanwhile(), save_strategy="steps", save_steps=10, push_to_hub=True, hub_strategy=strategy,
        hub_model_id="me/run", hub_always_push=True, hub_token=sys.argv[1], hub_private_repo=True,
    )
    it.train()
"""
LOGDIRS = """
os.environ["HF_MPWRITER_DISABLED"] = "1"
os.environ["TENSORBOARD_LOGGING_DIR"] = "from_environment"
trainer("out", HubTensorBoardCallback("me/run"), max_steps=1).train()
trainer("out", HubTensorBoardCallback("me/run", logdir="given")).evaluate()
saves = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
ours = HubTensorBoardCallback("me/run", logdir="shared")
for checkpoint in None, "out/checkpoint-1":
    trainer("out", ours, **saves).train(resume_from_checkpoint=checkpoint)
trainer("out", ours).evaluate()
logging.basicConfig(stream=sys.stdout)
for logdir in ("third/runs", "third/_runs", "elsewhere"):
    trainer("third", HubTensorBoardCallback(logdir=logdir), push_to_hub=True, hub_token=sys.argv[1])
"""


def test_the_arguments_name_the_destination_and_the_trainer_pushes_there_itself(frameworks, tmp_path):
    """Both use the token of the arguments; the Hub requires one, and it is nowhere else."""
    frameworks.set_token("hf_of_the_arguments")
    output = train(PROGRAM + ADDRESSED + PUSHED + LOGDIRS, "hf_of_the_arguments", cwd=tmp_path)
    check_addresses(frameworks, tmp_path)
    check_pushes(frameworks, tmp_path)
    assert "No repository is named." in output
    assert [len(list((tmp_path / logdir).glob("*tfevents*"))) for logdir in ("from_environment", "given")] == [1, 1]
    steps = {tag: [step for step, _ in points] for tag, points in shown(tmp_path / "shared")["."].items()}
    assert (steps["train/loss"], steps["eval/loss"]) == ([1, 2], [0]), "an evaluation hides nothing"
    assert not (tmp_path / "out").joinpath("_tensorboard").exists()
    assert re.findall(r"The Trainer pushes (\S+) too", output) == [str(tmp_path / "third" / "runs")]


def check_addresses(hub, top):
    """Our argument, then the Trainer's, then the environment's name the repository, as private as requested."""
    addressed = {"first": "me/given", "second": "me/arguments", "third": "local-user/third", "fourth": "me/environment"}
    for output, repo in addressed.items():
        (run,) = runs(top / output)
        oracle_report(hub, run, repo)
        assert hub.store.repo_info("model", repo).private == (output == "fourth")


def check_pushes(hub, top):
    """Both make progress, and the Trainer pushes nothing of a run directory."""
    for strategy in ("every_save", "checkpoint"):
        (run,) = runs(top / strategy)
        (report,) = oracle_report(hub, run).files.values()
        assert report.commits >= 3, "one while the Trainer pushes each checkpoint, one at the end"
    commits = list(hub.store.commits("model", "me/run", "main"))
    titles = [commit.title for commit in commits]
    for step in (10, 20):
        assert titles.count(f"Training in progress, step {step}") == 2
        assert titles.count(f"Training in progress, step {step}, checkpoint") == 1
    paths = {path for commit in commits for path in commit.tree}
    assert {"model.safetensors", "training_args.bin", "last-checkpoint/trainer_state.json"} < paths
    assert [path for path in paths if "_tensorboard" in path] == []


RANKS = """
for every in (False, True):
    it = trainer(f"all_{every}", HubTensorBoardCallback("me/run", all_ranks=every), report_to="tensorboard")
    it.train()
    it.evaluate()
"""


def test_the_first_rank_logs_or_all_of_them(frameworks, tmp_path):
    """All log into directories of one run; a rank that does not log leaves no file behind."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + RANKS)
    train(program, cwd=tmp_path, ranks=2)
    for every, expected in (False, {"."}), (True, {".", "rank_00001"}):
        (run,) = runs(tmp_path / f"all_{every}")
        oracle_report(frameworks, run)
        assert {subdirectory for subdirectory, *_ in logged(run)} == expected
        assert {path.parent.name for path in run.rglob("*tfevents*")} == {run.name} | (expected - {"."})
        for seen in shown(run).values():
            assert [step for step, _ in seen["train/loss"]] == [*range(1, 21)]
            assert [step for step, _ in seen["eval/loss"]] == [10, 20, 20]
        assert not (tmp_path / f"all_{every}" / "runs").exists()
