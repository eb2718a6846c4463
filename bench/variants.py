"""The same server with different settings, in alternation: seconds, CPU and memory of GET, PUT and EXCHANGE, and of 1,000
small queries.

One server process for each variant, all alive at once and asked in turns by one client: stock pyarrow, or with
`--rust` our own. Allocators other than glibc's are preloaded, so that DuckDB's C++ gets them too, where Debian's packages
libjemalloc2 and libmimalloc2.0 are installed. variants.sh runs it:

    sh bench/variants.sh allocators --rounds 5
    sh bench/variants.sh http2 threads --rust
"""

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from contenders import wait_until_it_answers
from processes import Agent, Server, free_port, settled_rss
from workloads import HERE, Workload

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
RAISED = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728"
VARIANTS = {
    "allocators": {
        "glibc as it comes": {},
        "glibc, thresholds raised": {"GLIBC_TUNABLES": RAISED},
        "jemalloc": {"LD_PRELOAD": str(LIBRARIES / "libjemalloc.so.2")},
        "mimalloc": {"LD_PRELOAD": str(LIBRARIES / "libmimalloc.so.2")},
    },
    "http2": {
        "defaults": {},
        "frames of 16 KiB": {"MALLARD__WIRE__FRAME_SIZE": "16KiB"},
        "frames of 256 KiB": {"MALLARD__WIRE__FRAME_SIZE": "256KiB"},
        "frames of 1 MiB": {"MALLARD__WIRE__FRAME_SIZE": "1MiB"},
        "send buffer of 256 KiB": {"MALLARD__WIRE__SEND_BUFFER": "256KiB"},
        "send buffer of 4 MiB": {"MALLARD__WIRE__SEND_BUFFER": "4MiB"},
        "stream window of 1 MiB": {"MALLARD__WIRE__STREAM_WINDOW": "1MiB"},
        "stream window of 64 MiB": {"MALLARD__WIRE__STREAM_WINDOW": "64MiB", "MALLARD__WIRE__CONNECTION_WINDOW": "256MiB"},
        "without TCP_NODELAY": {"MALLARD__WIRE__NODELAY": "false"},
        "standard path": {"MALLARD__WIRE__STANDARD_PATH": "true"},
    },
    "threads": {
        "half of the cores": {},
        "one for each core": {"TOKIO_WORKER_THREADS": str(os.cpu_count())},
    },
    "batches": {f"{rows} rows a batch": {"MALLARD__DATABASE__BATCH_ROWS": str(rows)} for rows in (15_360, 30_720, 61_440, 122_880)},
}
OPERATIONS = {
    "GET": {"operation": "get", "table": "flights"},
    "PUT": {"operation": "put", "to": "arrived"},
    "EXCHANGE": {"operation": "exchange", "exchanger": "processed"},
    "1,000 small queries": {"operation": "small", "clients": 1, "count": 1000},
}
MIB = 1 << 20


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    arguments.add_argument("--mallard", type=Path, default=Path(target) / "release/mallard")
    arguments.add_argument("--rows", type=int, default=24_000_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--rust", action="store_true", help="our own client in place of pyarrow's")
    arguments.add_argument("sets", nargs="+", choices=VARIANTS)
    arguments = arguments.parse_args()
    for name in arguments.sets:
        print(f"{name}, {'our own' if arguments.rust else 'pyarrow'} client, {arguments.rows:,} rows, {arguments.rounds} rounds:\n")
        print("\n".join(compared(VARIANTS[name], arguments)) + "\n")


def compared(variants, arguments):
    flights = Workload("flights", arguments.rows)
    with ExitStack() as stack:
        pyarrow = [sys.executable, "-m", "clients.pyarrow_client"]
        control = stack.enter_context(Agent(pyarrow, {"PYTHONPATH": str(HERE)}))
        command = [str(arguments.mallard), "bench", "--stdin"] if arguments.rust else pyarrow
        client = stack.enter_context(Agent(command, {"PYTHONPATH": str(HERE)}))
        servers = {}
        for name, environment in variants.items():
            library = environment.get("LD_PRELOAD")
            if library is None or Path(library).exists():
                servers[name] = start(stack, arguments.mallard, environment, control, flights)
        client.ask({"operation": "generate", "workload": flights.name, "rows": flights.rows})
        samples = {name: [] for name in servers}
        for number in range(arguments.rounds + 1):
            turn = number % len(servers)
            for name in list(servers)[turn:] + list(servers)[:turn]:
                print(f"round {number}: {name}", file=sys.stderr)
                sample = measure(client, control, *servers[name])
                if number > 0:
                    samples[name].append(sample)
    columns = list(next(iter(samples.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, of_it in samples.items():
        middles = [statistics.median(sample[column] for sample in of_it) for column in columns]
        lines.append(f"| {name} | " + " | ".join(f"{value:.0f}" if "MiB" in column else f"{value:.2f}" for column, value in zip(columns, middles)) + " |")
    return lines


def start(stack, mallard, environment, client, flights):
    location = f"grpc://127.0.0.1:{free_port()}"
    quiet = {"MALLARD__ADMIN__LISTEN": "off", "MALLARD__LOG__LEVEL": "error"}
    server = stack.enter_context(
        Server([str(mallard), "serve", "--location", location, "--db", ":memory:"], quiet | environment)
    )
    wait_until_it_answers(server, location, client)
    ask(client, location, "sql", sql=f"CREATE TABLE flights AS {flights.select}")
    return server, location


def measure(client, control, server, location):
    sample = {}
    stored = settled_rss({"server": server})["server"]
    for operation, request in OPERATIONS.items():
        before = settled_rss({"server": server})["server"]
        server.reset_peak_rss()
        cpu = server.cpu_seconds()
        start = time.perf_counter()
        answer = client.ask({"servers": [location]} | request)
        sample[f"{operation} s"] = answer.get("seconds") or time.perf_counter() - start
        sample[f"{operation} CPU s"] = server.cpu_seconds() - cpu
        if operation == "PUT":
            ask(control, location, "sql", sql="DROP TABLE arrived")
        else:
            sample[f"{operation} MiB above"] = (server.peak_rss() - before) / MIB
    # DuckDB frees a dropped table's memory a little later.
    sample["MiB kept at the end"] = (settled_rss({"server": server})["server"] - stored) / MIB
    return sample


def ask(client, location, operation, **request):
    return client.ask({"operation": operation, "servers": [location]} | request)


if __name__ == "__main__":
    main()
