"""Processes that are measured, and what Linux says of one: CPU seconds and resident memory.

It does not know what a process is for; contenders.py does.
"""

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

# Quack pushes 24 million rows in half a minute; whatever needs this long has stopped.
DEADLINE_SECONDS = 900


class Process:
    def __init__(self, pid):
        self.pid = pid
        self.directory = Path("/proc") / str(pid)

    def cpu_seconds(self):
        # The clock id that clock_getcpuclockid(3) makes: all threads, also ended ones, in nanoseconds. /proc has ticks.
        return time.clock_gettime((~self.pid << 3) | 2)

    def rss(self):
        return self._status("VmRSS")

    def peak_rss(self):
        return self._status("VmHWM")

    def reset_peak_rss(self):
        (self.directory / "clear_refs").write_text("5")

    def _status(self, key):
        for line in (self.directory / "status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError(f"{self.directory} has no {key}: the process has ended")


class Child(Process):
    """A process of ours; leaving the `with` block ends it."""

    def __init__(self, command, environment=None, **pipes):
        self.child = subprocess.Popen(command, env=os.environ | (environment or {}), **pipes)
        super().__init__(self.child.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.terminate()
        try:
            self.child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def has_ended(self):
        return self.child.poll() is not None


class Server(Child):
    def __init__(self, command, environment=None):
        super().__init__(command, environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


class Failed(Exception):
    """A contender could not do its work, or did it wrong."""


class Agent(Child):
    """A client that takes one JSON object a line and answers with one: `mallard bench --stdin`, or one in clients/."""

    def __init__(self, command, environment=None):
        super().__init__(command, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = Path(command[0]).name + " " + " ".join(command[1:])

    def ask(self, request):
        late = threading.Timer(DEADLINE_SECONDS, self.child.kill)
        late.start()
        try:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late.cancel()
        if not line:
            raise Failed(f"{self.name}: has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer


def settled_rss(processes):
    """Resident bytes by name once they stop changing: allocators give memory back a little after it was freed."""
    now = {name: process.rss() for name, process in processes.items()}
    for _ in range(15):
        time.sleep(0.2)
        last, now = now, {name: process.rss() for name, process in processes.items()}
        if all(abs(now[name] - last[name]) < 1 << 20 for name in now):
            break
    return now


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
