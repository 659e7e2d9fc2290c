"""The program of a rank: it logs from its checkpoint on until it is killed, or up to the last step that it is given.

    checkpoint_RANK        the step from which the next attempt goes on, every CHECKPOINT_EVERY steps
    logged_ATTEMPT_RANK    its process, once STEPS steps of this attempt have returned; others follow slowly
    last                   the step before which a rank ends well
    lost                   number of ranks; a rank of so many fails, as a collective does when a peer is lost
    ended_RANK             monotonic seconds when the last call had returned

ATTEMPT is counted for each rank: torchrun counts the restarts of each agent.
"""

CHECKPOINT_EVERY = 10  # steps
STEPS = 25  # of an attempt, before its mark
PACE = 0.5  # seconds between two steps after it: a worker looks after its uploader when it logs
TO_THE_END = 200  # steps, more than a rank can log while `last` is written
RANK = f"""
import sys
sys.modules["torch"] = None  # the agent needs it, a rank does not
import os, time
from pathlib import Path
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.testing import Journal

shared, logdir = Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else None
rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
world = os.environ.get("WORLD_SIZE", "1")
attempt = next(number for number in range(100) if not (shared / f"logged_{{number}}_{{rank}}").exists())

def read(name):
    path = shared / name
    return int(path.read_text()) if path.exists() else None

def put(name, content):
    temporary = shared / f".{{name}}.{{os.getpid()}}"
    temporary.write_text(str(content))
    temporary.rename(shared / name)

first = read(f"checkpoint_{{rank}}")
journal, step = Journal(shared / "journals"), first or 0
enough = step + {STEPS}
with HFSummaryWriter("me/run", logdir=logdir, purge_step=first) as writer:
    while (last := read("last")) is None or step < last:
        if (lost := read("lost")) is not None and str(lost) == world:
            sys.exit("a peer is lost")
        writer.add_scalar("loss", attempt, step)
        journal.note(writer, "loss", step)
        step += 1
        if step % {CHECKPOINT_EVERY} == 0:
            put(f"checkpoint_{{rank}}", step)
        if step == enough:
            put(f"logged_{{attempt}}_{{rank}}", os.getpid())
        if step >= enough and last is None:
            time.sleep({PACE})
    put(f"ended_{{rank}}", time.monotonic_ns())
"""  # shared folder, run directory
