"""The identity of a process, which is never used twice."""

from __future__ import annotations

import os
import re
import signal

from forks import fork, reap
from programs import succeed

import hf_mpwriter
from hf_mpwriter.system import process
from hf_mpwriter.system.process import Process


def test_a_process_has_one_identity_and_another_has_another():
    """Asked twice it is the same; a child differs; a process that is gone has no start ticks."""
    mine = Process.current()
    assert mine == Process.current()
    assert mine.ticks > 0
    told, tell = os.pipe()

    def child() -> None:
        other = Process.current()
        assert other != mine
        assert (other.host, other.boot, other.namespace) == (mine.host, mine.boot, mine.namespace)
        os.write(tell, str(process.start_ticks(os.getpid())).encode())

    pid = fork(child)
    ticks = int(os.read(told, 20))
    assert ticks >= mine.ticks
    assert reap(pid) == 0
    assert process.start_ticks(pid) == 0
    os.close(told)
    os.close(tell)


def test_a_zombie_is_gone():
    """It does nothing any more; its parent may reap it late, or never."""
    pid = fork(lambda: None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert os.path.exists(f"/proc/{pid}/stat")
        assert process.start_ticks(pid) == 0
    finally:
        reap(pid)


def test_start_ticks_survive_any_name_of_a_program(tmp_path):
    """Parentheses and blanks in the name of a process do not shift the field."""
    link = tmp_path / "a) R 1 (b"
    link.symlink_to("/bin/sleep")
    pid = os.posix_spawn(str(link), ["x", "60"], {})
    try:
        assert process.start_ticks(pid) >= process.start_ticks(os.getpid())
    finally:
        os.kill(pid, 9)
        reap(pid)


def test_the_host_id_is_stable_and_fits_into_a_file_name():
    """The same in every process of the machine, with nothing that a file name could not carry."""
    assert re.fullmatch(r"[A-Za-z0-9_-]+-[0-9a-f]{8}", process.host_id())
    assert succeed("from hf_mpwriter.system import process; print(process.host_id())").strip() == process.host_id()


def test_a_zombie_keeps_the_name_that_it_took_which_may_hold_any_character():
    """By that, training that is process 1 knows which zombies are ours."""
    named, done = os.pipe()
    if not (pid := os.fork()):
        process.take_name(") Z 1 (")
        os.write(done, b"+")
        signal.pause()
    os.read(named, 1)
    lives = process.entry(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    dead = process.entry(pid)
    os.waitpid(pid, 0)
    assert (lives.name, lives.state != "Z", dead.name, dead.state) == (") Z 1 (", True, ") Z 1 (", "Z")


PATH = """
import os, sys
from hf_mpwriter.system import process
sys.path[:0] = ["", "lib", None, "/away", os.getcwd(), "/away/"]
print(process.start_directory(), *process.import_path(), sep="\\n")
"""


def test_the_import_path_of_a_child_has_absolute_places_only_and_not_the_current_folder(tmp_path, monkeypatch):
    """Nor what PYTHONPATH names in it; the place of the package comes last, where it stands before, too."""
    package = os.path.dirname(os.path.dirname(hf_mpwriter.__file__))
    monkeypatch.setenv("PYTHONPATH", f":x:/elsewhere:{package}")
    monkeypatch.chdir(tmp_path)
    here, *places = succeed(PATH, fresh=True).splitlines()
    assert here == str(tmp_path)
    assert places[:2] == ["/away", "/elsewhere"]
    assert not [place for place in places if not os.path.isabs(place) or place.startswith(here)]
    assert places[2] == places[-1] == package
