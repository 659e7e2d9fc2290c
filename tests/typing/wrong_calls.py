"""What type checkers must find. Each comment silences one mistake: a checker that no longer finds it complains of that.

It is checked, and never run.
"""

from __future__ import annotations

from hf_mpwriter import HFSummaryWriter, SummaryWriter


def construct() -> None:
    """A misspelt argument, one that is missing, and wrong types."""
    HFSummaryWriter(repoid="me/run")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    HFSummaryWriter()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    HFSummaryWriter("me/run", "runs/exp1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    HFSummaryWriter("me/run", commit_evry=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    HFSummaryWriter("me/run", squash_history="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HFSummaryWriter("me/run", repo_allow_patterns=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HFSummaryWriter("me/run", token=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HFSummaryWriter("me/run", flush_secs="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SummaryWriter(repoid="me/run")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    SummaryWriter("runs/exp1", purge_step=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def log(writer: SummaryWriter) -> None:
    """Wrong types and names in `add_*` methods."""
    writer.add_scalar(5, 0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    writer.add_scalar("loss", None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    writer.add_scalar("loss", 0.5, 1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    writer.add_scalar("loss", 0.5, globalstep=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    writer.add_image("sample", "picture.png")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    writer.add_image("sample", [], dataformat="HWC")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    writer.add_text("text", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    writer.add_hparams(["lr"], {})  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    writer.add_custom_scalars(["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
