"""Whose spool is followed: only this user's own."""

from __future__ import annotations

import os

import pytest
from forks import in_child
from shared_spools import GROUP, ONE, TWO, modes, root_only

from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.system import disk


@pytest.mark.parametrize(
    ("mode", "says"), [(0o777, "everybody"), (0o2772, "everybody"), (0o770, "its group"), (0o2770, "its group")]
)
def test_a_spool_into_which_others_may_write_is_refused(own_spool, mode, says):
    """Whoever may write there could send this user's token elsewhere."""
    os.chmod(own_spool.root, mode)
    with pytest.raises(ForeignSpoolError, match=says):
        own_spool.create()
    with pytest.raises(ForeignSpoolError, match=says):
        own_spool.destination()


def test_a_spool_that_others_may_read_is_used(own_spool):
    """As after a `chmod -R` on the logs."""
    os.chmod(own_spool.root, 0o750)  # noqa: S103 - that is what is tested
    own_spool.create()
    assert own_spool.destination() is None


def test_a_spool_that_is_a_link_is_refused(own_spool):
    """Also if it leads to a spool of ours."""
    os.rename(own_spool.root, own_spool.run_dir + "-spool")
    os.symlink(own_spool.run_dir + "-spool", own_spool.root)
    with pytest.raises(ForeignSpoolError, match="symbolic link"):
        own_spool.create()


@root_only
@pytest.mark.root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2770])
def test_the_spool_of_another_user_is_refused(open_place, mode):
    """In whatever mode, also by a member of its group; the message says what to do."""
    own_spool = Spool(str(open_place / "exp1"))
    own_spool.create()
    os.chown(own_spool.root, ONE, GROUP)
    os.chmod(own_spool.root, mode)
    text = f"belongs to user {ONE}, so it is not used. A run directory is for one user: give another logdir."
    with pytest.raises(ForeignSpoolError, match=text):
        check_ownership(own_spool.directory)

    def as_colleague() -> None:
        os.setgroups([GROUP])
        os.setuid(TWO)
        with pytest.raises(ForeignSpoolError, match=text):
            check_ownership(own_spool.directory)

    assert in_child(as_colleague) == 0


def test_a_project_directory_that_is_open_to_its_group_does_not_open_the_spool(tmp_path):
    """2775, as administrators make them: who may log there may not send this user's token elsewhere."""
    run_dir = tmp_path / "exp1"
    run_dir.mkdir()
    run_dir.chmod(0o2775)
    own_spool = Spool(str(run_dir))
    own_spool.create()
    disk.make_dirs(own_spool.host("h").outbox)
    disk.replace(own_spool.host("h").ledger, b"{}", "w")
    assert {mode & 0o077 for mode in modes(own_spool.root).values()} == {0}
