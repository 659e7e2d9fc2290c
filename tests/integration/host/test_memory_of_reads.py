"""What a stranger's file announces costs no memory: neither training, nor the uploader, nor `status`."""

from __future__ import annotations

from programs import succeed

from hf_mpwriter.events import framing

ANNOUNCED = 200 << 30  # bytes, of which the disk holds none
WITHIN = 5 << 10  # KiB
# what each process has held at most (KiB), of training up to its end, and the exit code of `status`
MEASURE = """
import contextlib, io, os, sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool

def most(pid):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def measured(work):
    reading, writing = os.pipe()
    if not os.fork():
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        said = work()
        os.write(writing, f"{most(os.getpid())} {said}".encode())
        os._exit(0)
    os.close(writing)
    assert os.wait()[1] == 0
    with open(reading) as pipe:
        return pipe.read()

def train():
    writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
    writer.add_scalar("loss", 1.0, 1)
    assert writer.push(60)
    uploader = most(HubSink(Spool(sys.argv[1])).status().pid)
    writer.status()
    writer.last_step()
    writer.close(wait=True)
    return uploader

def status():
    from hf_mpwriter.cli.main import main
    with contextlib.redirect_stdout(io.StringIO()):
        return main(["status", sys.argv[1]], standalone_mode=False)

print(measured(train), measured(status))
"""


def test_a_file_that_announces_200_gb_costs_no_memory(hub, tmp_path):
    """Under a name of ours and under one of another writer; the run goes on as without it, and `status` says so."""
    figures = []
    for name in ("without", "with"):
        run = tmp_path / name
        run.mkdir()
        for path in ("1700000000.host.1.0123abcd", "1700000000.theirs") if name == "with" else ():
            with open(run / f"events.out.tfevents.{path}", "wb") as file:
                file.write(framing.frame(framing.version_event(1.0)) + framing.header(ANNOUNCED))
                file.truncate(ANNOUNCED + 100)
        figures.append(list(map(int, succeed(MEASURE, run).split())))
    print("training, uploader, status (KiB), exit code:", *figures)
    (*before, fine), (*after, needs_a_person) = figures
    assert all(abs(with_it - without) < WITHIN for without, with_it in zip(before, after, strict=True)), figures
    assert (fine, needs_a_person) == (0, 4)
