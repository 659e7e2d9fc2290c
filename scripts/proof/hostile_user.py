#!/usr/bin/env python3
"""A hostile local user: a second user of the same group does what the modes allow him, while a training runs.

Two set-ups, one after another: the run directory can be written by the group (2775), or only its parent can. In each,
ranks log and are started again, their uploaders are killed, and the attacker renames, replaces, links and changes modes
at seeded moments, above all when an uploader or a push starts. See `hostile/attacker.py`.

    scripts/proof/hostile_user.py --minutes 2 --seed 1

What must hold:
- the stranger's server, to which a spool of the attacker's leads, gets no request, and the token least of all;
- no file of the victim's outside the run directory is read, changed or uploaded through a link;
- in training nothing raises, no call waits, the exit code is 0;
- when all is put back, the next start uploads, and no process stays behind.

What is found is printed when it happens. Needs root on Linux, to become two other users. Exit code 0 if all held, 3 if
something was found, 1 if the script itself failed.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from hostile.attacker import SPOOL, Attacker, forge
from hostile.stranger import Stranger
from hostile.users import ATTACKER, CANARY, VICTIM, Place, become
from lib.arguments import add_seed, make_parser
from lib.isolation import variables
from lib.paths import HELPERS, PACKAGE
from lib.waiting import becomes_true

sys.path.insert(0, str(HELPERS))
from waits import timing

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.status import LONGEST_PAUSE
from hf_mpwriter.testing import processes

RANKS = 2
LIFE = (3.0, 8.0)  # seconds of a rank
TOKEN, HIS_TOKEN = "hf_" + "TheTokenOfTheVictim" * 2, "hf_" + "TheTokenOfTheAttacker"
LONGEST = 30.0  # seconds that a call may take on a busy machine; one that waits takes for ever
ENDING = 300.0  # seconds that a rank may take to end, an uploader to leave, a last record to arrive
IN_FLIGHT = f"{SPOOL}/hosts/*/in_flight.json"
FORGERIES = 10  # attempts to end an uploader while a batch of it is in flight
SETTINGS = {  # name: whether only the parent can be written
    "a run directory of the group": False,
    "a parent of the group": True,
}
RANK = Path(__file__).resolve().parent / "hostile" / "rank.py"


class Siege:
    """One run under attack."""

    def __init__(self, place: Place, name: str, seed: int, *, only_parent: bool) -> None:
        self._place, self._name, self._seed = place, name, f"{seed} {name}"
        self._rng, self._only_parent = random.Random(self._seed), only_parent
        place.make(only_parent=only_parent)
        self.findings: list[str] = []  # broken promises
        self.troubles: list[str] = []  # what kept the script from its work
        self.tally: Counter[str] = Counter()  # what the attacker did
        self.calls = self._lives = self._forged = 0
        self._hub, self._stranger = LocalHub(place.top / "hub", token=TOKEN), Stranger()

    def go(self, seconds: float) -> None:
        """Attack for so long, then judge."""
        with self._hub:
            try:
                forged = self._forge()
                self._forged = len(self._stranger.requests)
                self._storm(forged, seconds)
                self._afterwards()
                self._watch()
                if self._is_on_hub(CANARY):
                    self._find("a canary is on the Hub")
            finally:
                self._stranger.stop()
                for run in (str(self._place.run_dir), str(self._place.attic / "own")):
                    for pid in processes.left_behind(run):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

    # processes

    def _start(self, user: int, run_dir: Path, seconds: float, *, endpoint: str, token: str) -> subprocess.Popen[bytes]:
        """Start a rank as one of the users."""
        home = self._place.home if user == VICTIM else self._place.attic
        for name in ("tmp", "without_torch"):
            directory = home / name
            if not directory.exists():
                directory.mkdir()
                os.chown(directory, user, -1)
        (home / "without_torch" / "torch.py").write_text("raise ImportError('hidden: it takes seconds')")
        paths = [
            home / "without_torch",
            HELPERS / "watch",
            os.environ.get("PYTHONPATH", PACKAGE.parent),
        ]
        environment = {
            **os.environ,
            **variables(home),
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "PYTHONPATH": ":".join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_ENDPOINT": endpoint,
            "HF_MPWRITER_TIMING": timing(),
            "HF_TOKEN": token,
        }
        self._lives += 1
        environment |= {"RANK": str(self._lives % RANKS), "WORLD_SIZE": str(RANKS)}
        return subprocess.Popen(
            [sys.executable, str(RANK), str(run_dir), f"{seconds:.2f}", f"life{self._lives}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            preexec_fn=lambda: become(user, reading=True),  # noqa: PLW1509 - this process has no other thread but the server's
        )

    def _forge(self) -> Path:
        """Let the attacker make a spool, with the stranger as Hub and a batch in flight; return it."""
        own, forged = self._place.attic / "own", self._place.attic / "forged"
        errors = b""
        for _ in range(FORGERIES):  # his uploader may have taken its answer in before the kill, on a busy machine
            his = self._start(ATTACKER, own, 60.0, endpoint=self._stranger.endpoint, token=HIS_TOKEN)
            becomes_true(lambda: list(own.glob(IN_FLIGHT)) or his.poll() is not None, ENDING)  # noqa: B023 - called here
            self._kill(str(own))
            his.kill()
            _, errors = his.communicate()
            becomes_true(lambda: not self._kill(str(own)), ENDING)
            if list(own.glob(IN_FLIGHT)):
                break
        if not (own / SPOOL).is_dir():
            raise RuntimeError(f"the attacker cannot train: {errors.decode()[-2000:]}")
        forge(own / SPOOL, forged, self._place.run_dir)
        for path in (forged, *forged.rglob("*")):
            os.chown(path, ATTACKER, -1)
        if not list(forged.glob("hosts/*/in_flight.json")):
            self.troubles.append("no batch of the attacker's was in flight")
        return forged

    @staticmethod
    def _kill(run_dir: str) -> list[int]:
        """Kill the uploaders and pushes of a run; return who lived."""
        found = processes.left_behind(run_dir)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    # the attack

    def _storm(self, forged: Path, seconds: float) -> None:
        stop, tally = self._place.top / "stop", self._place.attic / "tally.json"
        attacker = multiprocessing.get_context("fork").Process(target=self._attack, args=(forged, stop, tally))
        attacker.start()
        end, ranks, kill_at = time.monotonic() + seconds, {}, 0.0
        while time.monotonic() < end and attacker.is_alive() and not self.findings:
            for number in range(RANKS):
                if number not in ranks or ranks[number].poll() is not None:
                    if number in ranks:
                        self._end(ranks.pop(number))
                    ranks[number] = self._start(
                        VICTIM, self._place.run_dir, self._rng.uniform(*LIFE), endpoint=self._hub.endpoint, token=TOKEN
                    )
            if time.monotonic() > kill_at:
                self._kill(str(self._place.run_dir))
                kill_at = time.monotonic() + self._rng.uniform(1.0, 6.0)
            self._watch()
            time.sleep(0.05)
        for rank in ranks.values():
            self._end(rank)
        stop.touch()
        attacker.join(ENDING)
        if attacker.exitcode != 0:
            self.troubles.append(f"the attacker ended with {attacker.exitcode}")
            attacker.kill()
        self.tally = Counter(json.loads(tally.read_text())) if tally.exists() else Counter()

    def _attack(self, forged: Path, stop: Path, tally: Path) -> None:
        become(ATTACKER, reading=False)
        attacker = Attacker(self._place, forged, f"{self._seed} attacker", only_parent=self._only_parent)
        attacker.strike_until(stop)
        tally.write_text(json.dumps(attacker.tally))

    def _end(self, rank: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait for the end of a rank; it must be a good one."""
        try:
            out, errors = rank.communicate(timeout=ENDING + LIFE[1])
        except subprocess.TimeoutExpired:
            rank.send_signal(signal.SIGKILL)
            _, errors = rank.communicate()
            self._find(f"a rank did not end: {errors.decode()[-2000:]}")
            return {}
        if rank.returncode:
            self._find(f"a rank ended with {rank.returncode}: {errors.decode()[-3000:]}")
            return {}
        found: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
        self.calls += found["calls"]
        if found["longest"] > LONGEST:
            self._find(f"a call of training took {found['longest']:.0f} s")
        return found

    # the judgement

    def _afterwards(self) -> None:
        """All is put back: the next start uploads, and ends.

        Its uploader may have to wait until a pause is over, as so many before it were killed; so training starts again.
        """
        self._sweep()
        run_dir, mine, end = str(self._place.run_dir), b"", time.monotonic() + ENDING + LONGEST_PAUSE
        while time.monotonic() < end and not (mine and self._is_on_hub(mine)):
            rank = self._start(VICTIM, self._place.run_dir, 3.0, endpoint=self._hub.endpoint, token=TOKEN)
            name = f"life{self._lives}/loss".encode()
            if self._end(rank).get("built"):
                mine = mine or name
                becomes_true(lambda: self._is_on_hub(mine), LIFE[1], 0.2)  # noqa: B023 - called here
        if mine and not self._is_on_hub(mine):
            self._find("what was logged after the attack is not on the Hub")
        if not becomes_true(lambda: not processes.left_behind(run_dir), ENDING, 0.2):
            self._find(f"processes stay behind: {processes.left_behind(run_dir)}")

    def _sweep(self) -> None:
        """Remove what the attacker has left.

        He undoes his attacks while the victim's processes make, rename and remove things at the same places, and he
        was killed if he did not end. A link of his in the place of `rank_00001` would stay: the start afterwards, which
        is that rank, rightly does not follow it, tells so, and has nothing to upload. That is no loss to be found.
        """
        for path, names, files in os.walk(self._place.project, topdown=False):
            for name in [*names, *files]:
                left = Path(path, name)
                with contextlib.suppress(FileNotFoundError):  # an uploader is at work
                    if left.lstat().st_uid != ATTACKER:
                        continue
                    self.tally["left in the end, removed"] += 1
                    if left.is_dir() and not left.is_symlink():
                        shutil.rmtree(left)
                    else:
                        left.unlink()

    def _is_on_hub(self, words: bytes) -> bool:
        """Whether something is in any file that the Hub holds, of whatever commit."""
        with contextlib.suppress(OSError):  # the Hub writes at this moment
            for path in Path(self._hub.root).rglob("*"):
                if path.is_file() and words in path.read_bytes():
                    return True
        return False

    def _watch(self) -> None:
        """Look for what must never happen, at any time."""
        requests = self._stranger.requests[self._forged :]
        tokens = [request for request in requests if TOKEN in request.authorization]
        if tokens:
            self._find(f"the token reached the stranger: {tokens[0].line}")
        if requests and not tokens:
            self._find(f"a request reached the stranger: {requests[0].line}")
        if any(CANARY in request.body for request in requests):
            self._find("a canary reached the stranger")
        canaries = self._place.canaries()
        for path in canaries:
            status = path.stat()
            if status.st_atime_ns != 10**9:
                self._find(f"a canary was read: {path.name}")
            if status.st_mtime_ns != 2 * 10**9 or status.st_size != len(CANARY) or status.st_mode & 0o777 != 0o600:
                self._find(f"a canary was changed: {path.name}")
        made = sorted(set(os.listdir(self._place.private)) - {path.name for path in canaries})
        if made:
            self._find(f"something was made among the canaries: {made}")

    def _find(self, finding: str) -> None:
        """Note a broken promise, and print it now; each once."""
        if finding not in self.findings:
            self.findings.append(finding)
            print(f"FOUND at {time.strftime('%H:%M:%S')}, {self._name}: {finding}", flush=True)


def main() -> int:
    """Run all set-ups; print what was done and what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of attack, in all (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(SETTINGS), help="one set-up (default: all)")
    add_seed(parser)
    options = parser.parse_args()
    if os.geteuid() != 0 or sys.platform != "linux":
        print("This needs root on Linux, to become two other users.")
        return sabotage.TROUBLE
    root = Path(tempfile.mkdtemp(prefix="hostile_"))
    root.chmod(0o755)
    names = [options.only] if options.only else list(SETTINGS)
    print(f"seed {options.seed}, in {root}", flush=True)
    findings, troubles = [], []
    for number, name in enumerate(names):
        place = Place(root / str(number))
        place.top.mkdir()
        siege = Siege(place, name, options.seed, only_parent=SETTINGS[name])
        siege.go(60 * options.minutes / len(names))
        print(f"{name}: {siege.calls} calls of training")
        print("\n".join(f"{count:8}  {what}" for what, count in sorted(siege.tally.items())), flush=True)
        findings += siege.findings
        troubles += siege.troubles
    success = "no token left, nothing of others was followed, training did not notice"
    return sabotage.conclude(findings, root, options.seed, success, troubles=troubles)


if __name__ == "__main__":
    sys.exit(main())
