"""Where the server's CPU goes: perf samples of one operation, by group. profile.sh runs it."""

import argparse
import collections
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from contenders import wait_until_it_answers
from processes import Agent, Server, free_port
from workloads import HERE, Workload

# The first group whose pattern is in the symbol, by where the symbol is from.
KERNEL = [
    ("kernel: copy to and from sockets", r"_copy_(from|to)_iter|copy_user|rep_movs"),
    ("kernel: pages", r"page|fault|clear_|mm_|vma|unmap|zap|folio|lru|charge|rmap|anon|pte|pmd|madvise"),
    ("kernel: TCP and IP", r"tcp|sock|skb|ip_|inet|net|dev_|nf_|softirq|csum"),
    ("kernel: scheduling, wake-ups, the rest", r""),
]
DUCKDB = [
    ("DuckDB: Arrow arrays", r"Arrow"),
    ("DuckDB: append to storage", r"Append|Distinct|Stats|HyperLog|GreaterThan|LessThan"),
    ("DuckDB: the rest", r""),
]
LIBC = [
    ("libc: memmove", r"memmove|memcpy|memset"),
    ("libc: malloc and free", r"alloc|free|unlink_chunk|consolidate"),
    ("libc: the rest", r""),
]
OURS = [("Mallard, h2, hyper, tokio, arrow-rs", r"")]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    arguments.add_argument("--mallard", type=Path, default=Path(target) / "release/mallard")
    arguments.add_argument("--rows", type=int, default=24_000_000)
    arguments.add_argument("--repeat", type=int, default=10)
    arguments.add_argument("operations", nargs="*", default=["get", "put", "exchange"])
    arguments = arguments.parse_args()
    flights = Workload("flights", arguments.rows)
    location = f"grpc://127.0.0.1:{free_port()}"
    quiet = {"MALLARD__ADMIN__LISTEN": "off", "MALLARD__LOG__LEVEL": "error"}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mallard-profile-"))
        serve = [str(arguments.mallard), "serve", "--location", location, "--db", ":memory:"]
        server = stack.enter_context(Server(serve, quiet))
        client = stack.enter_context(Agent([sys.executable, "-m", "clients.pyarrow_client"], {"PYTHONPATH": str(HERE)}))

        def ask(operation, **request):
            return client.ask({"operation": operation, "servers": [location]} | request)

        wait_until_it_answers(server, location, client)
        ask("sql", sql=f"CREATE TABLE flights AS {flights.select}")
        ask("generate", workload=flights.name, rows=flights.rows)
        request = {"table": "flights", "to": "arrived", "exchanger": "processed"}
        for operation in arguments.operations:
            samples = Path(directory) / operation
            command = ["perf", "record", "-q", "-o", str(samples), "-e", "cpu-clock", "-F", "1999", "-p", str(server.pid)]
            perf = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(1)
            cpu = server.cpu_seconds()
            for _ in range(arguments.repeat):
                ask(operation, **request)
                if operation == "put":
                    ask("sql", sql="DROP TABLE arrived")
            cpu = (server.cpu_seconds() - cpu) / arguments.repeat
            perf.send_signal(signal.SIGINT)
            perf.wait()
            print("\n".join(table(operation, cpu, samples)))


def table(operation, cpu, samples):
    report = ["perf", "report", "-i", str(samples), "--no-children", "-g", "none", "--sort", "sym,dso", "--percent-limit", "0"]
    text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
    shares, leading = collections.Counter(), collections.defaultdict(list)
    for share, place, symbol, library in re.findall(r"^\s+([\d.]+)%\s+\[(.)\]\s+(.*?)\s{2,}(\S+)", text, re.MULTILINE):
        groups = KERNEL if place == "k" else DUCKDB if "duckdb" in symbol else LIBC if library.startswith("libc.") else OURS
        group = next(name for name, pattern in groups if re.search(pattern, symbol))
        shares[group] += float(share)
        leading[group].append((float(share), symbol))
    lines = [f"{operation.upper()}: {cpu:.2f} CPU seconds of the server each", "", "| share | where | led by |", "|---:|---|---|"]
    for group, share in shares.most_common():
        first = sorted(leading[group], reverse=True)[:3]
        led = ", ".join(f"`{symbol[:60]}` {part:.1f}" for part, symbol in first if part >= 0.5)
        lines.append(f"| {share:.1f} % | {group} | {led} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
