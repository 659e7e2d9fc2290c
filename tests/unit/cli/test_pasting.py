"""What the commands and training print to be pasted, of folders whose names a stranger has chosen."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from forks import in_child
from programs import run_python
from runs import run
from shared_spools import GROUP, ONE, TWO, become, root_only
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool

HUB = "http://127.0.0.1:9"
QUOTED = ["exp1;touch ~/PWNED;#", "a b", "it's", 'say "x"', "-rf", "~root", "$(touch PWNED)", "`touch PWNED` x"]
UNPASTABLE = ["one\ntouch PWNED", "\x1b[31mred", "no utf-8 \udcff"]
COMMAND = re.compile(r"(?:hf-mpwriter \w+|chmod [go]-w|rm -r|kill)\b (\S+?)[.,;:)]*(?:\s|$)")  # with its first word
PRINTED = re.compile(r"(?:hf-mpwriter|chmod|rm|kill) .*")
STUBS = "hf-mpwriter() { :; }; chmod() { :; }; rm() { :; }; kill() { :; }"
LOG = """
import os, sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=os.fsdecode(bytes.fromhex(sys.argv[1]))) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, and a Hub that is not there."""
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_called(name: str) -> Iterator[tuple[str, str]]:
    """What commands print of a run of this name in each state, and where the run is."""
    spool = Spool(os.path.abspath(name))
    spool.create()
    event_file(os.path.join(spool.run_dir, "events.out.tfevents.1700000000.host"), 1)
    yield from printed(name, "of no repository")
    spool.record_destination(Destination("http://127.0.0.1:8", "me/run", path_in_repo="exp1"))
    yield from printed(name, "of another Hub")
    os.chmod(spool.root, 0o770)  # noqa: S103 - that is what is told
    yield from printed(name, "of a spool that its group may write")


def printed(name: str, state: str) -> Iterator[tuple[str, str]]:
    """What each command prints."""
    named = os.path.join(".", name)
    for words in (
        *(["status"], ["status", named], ["sync", "--all"], ["sync", named, "--timeout", "0.1"], ["stop", named]),
        *(["verify", named], ["pull", named], ["logs", named], ["doctor", named]),
    ):
        yield f"{words[0]} {state}", run(*words).output


def first_words(texts: Iterable[str], *paths: Path) -> Counter[str]:
    """The first word of each command that is printed, QUOTED for one of these paths in quotes."""
    found = Counter[str]()
    for text in texts:
        shown = functools.reduce(lambda shown, path: shown.replace(shlex.quote(str(path)), "QUOTED"), paths, text)
        found.update(COMMAND.findall(shown))
    return found


@pytest.mark.parametrize("name", QUOTED)
def test_no_command_that_is_printed_runs_what_is_in_a_name(folder, name):
    """It is one word, which no program takes for an option or a home."""
    texts = dict(runs_called(name))
    words = first_words(texts.values(), folder / name / ".hf_mpwriter", folder / name, f"./{name}")
    assert words["QUOTED"] > 6, texts
    assert set(words) <= {"QUOTED", "--all", "LOGDIR"}, texts


@root_only
@pytest.mark.root
def test_no_command_that_is_printed_runs_what_another_user_has_put_into_a_name(open_place, monkeypatch):
    """In a folder that two users share, where one of them logs; the other looks at what is there."""
    name = QUOTED[0]
    shared, home = open_place / "shared", open_place / "home"
    for path, mode, owner in ((shared, 0o2775, ONE), (home, 0o700, ONE)):
        path.mkdir()
        os.chown(path, owner, GROUP)
        path.chmod(mode)
    for variable, value in {"HF_ENDPOINT": HUB, "HF_HUB_OFFLINE": "1", "HOME": home, "TMPDIR": home}.items():
        monkeypatch.setenv(variable, str(value))
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "SLURM_TMPDIR", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def as_stranger() -> None:
        become(TWO)
        (shared / name).mkdir(parents=True)
        event_file(shared / name / "events.out.tfevents.1700000000.host", 1)

    def as_user() -> None:
        become(ONE)
        os.chdir(shared)
        texts = dict(printed(name, "of another user"))
        texts |= {"all": run("sync", "--all", "--repo-id", "me/run", "--timeout", "0.1").output}
        words = first_words(texts.values(), shared / name, f"./{name}")
        assert words["QUOTED"] > 2, texts
        assert set(words) <= {"QUOTED", "--all", "LOGDIR"}, texts
        for text in texts.values():
            for command in PRINTED.findall(text):
                subprocess.run(["bash", "-c", f"{STUBS}; {command}"], check=False, capture_output=True)
        assert list(home.glob("PWNED*")) == []

    assert in_child(as_stranger) == 0
    assert in_child(as_user) == 0


@pytest.mark.parametrize("name", UNPASTABLE)
def test_of_a_name_that_no_line_can_hold_no_command_is_printed(folder, name):
    """It is shown escaped, and what would help is named."""
    texts = dict(runs_called(name))
    assert [text for text in texts.values() if not text.replace("\n", "").isprintable()] == []
    assert {word for text in texts.values() for word in COMMAND.findall(text)} <= {"--all", "LOGDIR"}, texts
    for state in ("sync of no repository", "sync of another Hub", "status of a spool that its group may write"):
        assert "a name that cannot be pasted" in texts[state], texts


def test_training_prints_no_command_that_runs_what_is_in_a_name(folder):
    """Also of a spool that it does not use."""
    for name, is_pasted in (("exp1;touch ~/PWNED;#", True), ("red\x1b[31m\udcff", False)):
        spool = Spool(os.path.abspath(name))
        spool.create()
        os.chmod(spool.root, 0o770)  # noqa: S103 - that is what is told
        told = run_python(LOG, os.fsencode(name).hex()).stderr
        assert ("chmod g-w " + shlex.quote(str(spool.root)) in told) is is_pasted, told
        assert ("a name that cannot be pasted" in told) is not is_pasted, told
        assert told.replace("\n", "").isprintable()
