"""`hf-mpwriter run`: replace this process by a program, whose writers may be replaced too.

`--patch` puts `integrations/site/` first into PYTHONPATH. Each Python that the program starts runs the
`sitecustomize.py` in there, which calls `hf_mpwriter.patch()`.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

import click

from hf_mpwriter.base.settings import check_repo_id

SITE = Path(__file__).parent.parent / "integrations" / "site"


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--patch", is_flag=True, help="Replace the SummaryWriter classes that the program imports.")
@click.option(
    "--repo-id", help="Repository for writers that name none. Sets HF_MPWRITER_REPO_ID, which has the same effect."
)
@click.argument("command", nargs=-1, required=True)
def run_program(*, patch: bool, repo_id: str | None, command: tuple[str, ...]) -> None:
    """Run a program: hf-mpwriter run --patch -- python train.py.

    With --patch, torch.utils.tensorboard.SummaryWriter, tensorboardX.SummaryWriter and
    huggingface_hub.HFSummaryWriter are those of hf_mpwriter in every Python process that the program starts. A Python
    that ignores PYTHONPATH (python -I, python -E) is not patched.
    """
    if repo_id is not None:
        os.environ["HF_MPWRITER_REPO_ID"] = check_repo_id(repo_id)
    if patch:
        _patch_pythons(os.environ)
    try:
        os.execvp(command[0], command)  # noqa: S606 - it is the user's own command
    except OSError as error:
        raise click.ClickException(f"{command[0]}: {error.strerror}") from error


def _patch_pythons(environ: MutableMapping[str, str]) -> None:
    """Let every Python with this environment call `patch()` when it starts."""
    if not environ.get("HF_MPWRITER_REPO_ID"):
        click.echo("No --repo-id and no HF_MPWRITER_REPO_ID: writers that name no repository stay local.", err=True)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SITE), environ.get("PYTHONPATH")]))
