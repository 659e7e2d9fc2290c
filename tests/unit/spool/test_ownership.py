"""Whose spool is followed: this user's own, or one that is shared within a group on purpose."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from forks import in_child
from programs import succeed
from shared_spools import GROUP, ONE, TWO, modes, root_only

from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership, share_tree
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place


@pytest.mark.parametrize(
    ("mode", "says", "shares"),
    [
        *((0o777, "everybody", shares) for shares in "01"),
        *((0o2772, "everybody", shares) for shares in "01"),
        *((0o770, "its group", shares) for shares in "01"),
        *((0o750, "", shares) for shares in "01"),
        (0o2770, "its group", "0"),
        (0o2770, "", "1"),
    ],
)
def test_a_spool_into_which_others_may_write_is_refused(own_spool, monkeypatch, mode, says, shares):
    """Unless it is open to its group on purpose: the mode alone does not tell."""
    monkeypatch.setenv("HF_MPWRITER_GROUP", shares)
    os.chmod(own_spool.root, mode)
    with pytest.raises(ForeignSpoolError, match=says) if says else contextlib.nullcontext():
        own_spool.create()
    with pytest.raises(ForeignSpoolError, match=says) if says else contextlib.nullcontext():
        assert own_spool.destination() is None


def test_a_spool_that_is_a_link_is_refused(own_spool):
    """Also if it leads to a spool of ours."""
    os.rename(own_spool.root, own_spool.run_dir + "-spool")
    os.symlink(own_spool.run_dir + "-spool", own_spool.root)
    with pytest.raises(ForeignSpoolError, match="symbolic link"):
        own_spool.create()


@root_only
@pytest.mark.root
@pytest.mark.parametrize("group_access", ["", "1"])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2770])
def test_the_spool_of_another_user_is_refused(open_place, monkeypatch, mode, group_access):
    """Unless both share it within a group that this user is in."""
    own_spool = Spool(str(open_place / "exp1"))
    own_spool.create()
    monkeypatch.setenv("HF_MPWRITER_GROUP", group_access)
    os.chown(own_spool.root, ONE, GROUP)
    os.chmod(own_spool.root, mode)
    with pytest.raises(ForeignSpoolError, match=f"belongs to user {ONE}"):
        check_ownership(own_spool.directory)

    def as_colleague() -> None:
        os.setgroups([GROUP])
        os.setuid(TWO)
        check_ownership(own_spool.directory)

    assert in_child(as_colleague) == (0 if group_access and mode == 0o2770 else 1)


def test_a_project_directory_that_is_open_to_its_group_does_not_open_the_spool(tmp_path, monkeypatch):
    """2775, as administrators make them: who may log there may not send this user's token elsewhere, unless asked."""
    run_dir = tmp_path / "exp1"
    run_dir.mkdir()
    run_dir.chmod(0o2775)
    own_spool = Spool(str(run_dir))
    own_spool.create()
    disk.make_dirs(own_spool.host("h").outbox)
    assert {mode & 0o077 for mode in modes(own_spool.root).values()} == {0}
    monkeypatch.setenv("HF_MPWRITER_GROUP", "1")
    own_spool.create()
    assert set(modes(own_spool.root).values()) == {0o2770, 0o660}


def test_a_spool_is_opened_to_the_group_while_files_come_and_go_in_it(own_spool, monkeypatch):
    """Ranks that start at once have temporary files there: no start fails because one of them has gone."""
    real = Place.scan
    temporary = Path(own_spool.root, ".FORMAT.1.tmp")
    temporary.touch()

    def scan(place):
        found = real(place)
        temporary.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Place, "scan", scan)
    share_tree(Place(own_spool.directory), os.getegid())
    assert set(modes(own_spool.root).values()) == {0o2770, 0o660}


def test_a_private_spool_is_opened_by_the_next_start_of_its_owner(own_spool, monkeypatch):
    """All that is in it already, too; and not by a start without the variable."""
    disk.make_dirs(own_spool.host("h").outbox)
    own_spool.record_destination(Destination("http://hub", "me/run"))
    own_spool.create()
    assert set(modes(own_spool.root).values()) == {0o700, 0o600}
    monkeypatch.setenv("HF_MPWRITER_GROUP", "1")
    own_spool.create()
    assert set(modes(own_spool.root).values()) == {0o2770, 0o660}
    monkeypatch.delenv("HF_MPWRITER_GROUP")
    succeed(
        "import sys; from hf_mpwriter import SummaryWriter; SummaryWriter(sys.argv[1]).add_scalar('a', 1, 1)",
        own_spool.run_dir,
    )
    assert set(modes(own_spool.root).values()) == {0o2770, 0o660}, "the spool tells later processes"
