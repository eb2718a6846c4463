"""What an operation cannot do without: DuckDB's own part, and the bytes once through a socket. Each measured alone."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

RAW = [sys.executable, str(Path(__file__).resolve().parent / "raw.py")]
CORES = len(os.sched_getaffinity(0))
# What carries a contender's bytes: the name of its floor.
TCP, UNIX = "raw TCP", "raw Unix socket"


def measure(size, table, agent, directory):
    """One sample of each floor; `agent` has the table and the rows in its memory, and the engine that is measured."""
    return {
        TCP: through_socket("tcp", size),
        UNIX: through_socket(str(directory / "raw.sock"), size),
        "memcpy": last_line(subprocess.check_output([*RAW, "memcpy", str(size)], text=True)),
        "scan": agent.ask({"operation": "scan", "table": table}),
        "insert": agent.ask({"operation": "insert", "to": "inserted"}),
    }


def through_socket(address, size):
    """CPU seconds are those of both ends."""
    with ExitStack() as stack:
        receiver = stack.enter_context(started("receive", address))
        address = json.loads(receiver.stdout.readline())["address"]
        sender = stack.enter_context(started("send", address, str(size)))
        sent, received = (last_line(process.communicate()[0]) for process in (sender, receiver))
    Path(address).unlink(missing_ok=True)
    return {"seconds": received["seconds"], "cpu_seconds": sent["cpu_seconds"] + received["cpu_seconds"]}


def started(*arguments):
    return subprocess.Popen([*RAW, *arguments], stdout=subprocess.PIPE, text=True)


def last_line(text):
    return json.loads(text.splitlines()[-1])


def floor_seconds(operation, carrier, samples):
    """The CPU seconds of the operation's parts, spread over all cores; None where it has none."""
    if not operation.parts or not samples:
        return None
    names = [carrier if part == "socket" else part for part in operation.parts]
    return sum(median(sample[name]["cpu_seconds"] for sample in samples) for name in names) / CORES
