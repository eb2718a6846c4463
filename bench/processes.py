"""Servers as processes of their own, and what Linux says of a process: CPU seconds and resident memory."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pyarrow.flight as flight

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process:
    def __init__(self, pid):
        self.directory = Path("/proc") / str(pid)

    def cpu_seconds(self):
        # The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field of the whole line.
        fields = (self.directory / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

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


class Server(Process):
    """A Flight server on a free loopback port; leaving the `with` block ends it."""

    def __init__(self, command, environment=None):
        port = free_port()
        self.location = f"grpc://127.0.0.1:{port}"
        arguments = [part.format(location=self.location, port=port) for part in command]
        self.child = subprocess.Popen(arguments, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL)
        super().__init__(self.child.pid)
        try:
            self.client = self._connected()
        except BaseException:
            self.child.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.child.terminate()
        try:
            self.child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.child.kill()

    def query(self, sql):
        return self.client.do_get(flight.Ticket(sql.encode())).read_all()

    def _connected(self):
        deadline = time.monotonic() + 60
        while True:
            client = flight.connect(self.location)
            try:
                client.do_get(flight.Ticket(b"SELECT 1")).read_all()
                return client
            except flight.FlightUnavailableError:
                client.close()
                if self.child.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


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
