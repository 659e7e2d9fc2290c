"""Programs with an unusual interpreter, import path or run directory: uploaded, or told what helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from programs import wait_for
from repository import ROOT
from runs import LOG_AND_EXIT, check_oracle, finished

from hf_mpwriter.base.names import name_on_hub

LAUNCHER = """#!/bin/sh
echo started >> "{count}"
exec "{python}" "$@"
"""


def test_a_launcher_in_the_place_of_the_interpreter_is_never_started(hub, run_dir, tmp_path, start):
    """`sys.executable` names what starts training: the Python of this process is found in another way."""
    launcher, count = tmp_path / "python3", tmp_path / "count"
    launcher.write_text(LAUNCHER.format(count=count, python=sys.executable))
    launcher.chmod(0o755)
    start(f"import sys; sys.executable = {str(launcher)!r}" + LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub)
    assert not count.exists()


def test_a_frozen_program_logs_and_is_told_what_helps(hub, run_dir, start):
    """One line; with HF_MPWRITER_PYTHON, another Python that has the package, all is sent."""
    frozen = "import sys; sys.frozen = True" + LOG_AND_EXIT
    _, _, errors = start(frozen, run_dir, 5, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).finish()
    assert errors.count("set HF_MPWRITER_PYTHON") == 1, errors
    start(frozen, run_dir, 5, env={"HF_MPWRITER_PYTHON": sys.executable}).succeed()
    wait_for(lambda: finished(run_dir), "all is sent")
    assert sum(file.hub_events for file in check_oracle(run_dir, hub).files.values()) == 10


def test_an_import_path_of_any_length_reaches_uploader_and_push(hub, run_dir, start):
    """More than an argument can be long, as with thousands of wheels in a path each."""
    long = "import sys; sys.path += [f'/nowhere/{n:04d}' + 'x' * 100 for n in range(2000)]"
    start(long + LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub)


FROM_ARCHIVE = (
    """
import hf_mpwriter, os
assert ".pyz" in hf_mpwriter.__file__
os.chdir("/")
"""
    + LOG_AND_EXIT
)


def test_a_package_in_an_archive_is_found_by_uploader_and_push(hub, run_dir, tmp_path, without_torch):
    """`python app.pyz` by a relative name; training changes its directory before it logs."""
    with zipfile.PyZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", FROM_ARCHIVE)
        archive.writepy(str(ROOT / "hf_mpwriter"))
    env = os.environ | {"PYTHONPATH": without_torch}  # the hooks of other tests expect a loader for each module
    subprocess.run([sys.executable, "app.pyz", run_dir, "5"], cwd=tmp_path, env=env, check=True, timeout=200)
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub)


def test_a_run_directory_that_is_no_utf_8_is_uploaded(hub, tmp_path, start):
    """From worker to Hub, status and sync; the Hub has the odd bytes as `%FF`."""
    run_dir = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"runs", b"exp\xff")))
    start(LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub, folder="tensorboard/exp%FF")

    def command(*words: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([sys.executable, "-m", "hf_mpwriter", *words], capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    command("sync", str(run_dir))
    shown = [command("status", str(run_dir), *more).stdout for more in ([], ["--json"])]
    assert rb"exp\udcff" in shown[0]
    assert json.loads(shown[1])["logdir"] == str(run_dir)
    hub.stop()
    _, _, errors = start(LOG_AND_EXIT, run_dir, 5, env={"HF_MPWRITER_EXIT_TIMEOUT": "1"}).finish()
    assert "are not on the Hub yet" in errors
    assert "Traceback" not in errors  # the message may name the error of the connection
    assert "Unicode" not in errors
    assert b"Traceback" not in command("sync", str(run_dir), "--timeout", "1", code=1).stderr


def test_a_name_for_the_hub_is_text():
    """Bytes that are no UTF-8 only; anything else stays."""
    assert name_on_hub(os.fsdecode(b"a\xff\x80\xc3\xa4%/")) == "a%FF%80ä%/"
