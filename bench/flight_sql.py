"""One-row queries through Flight SQL and beside it: Mallard through ADBC and through plain DoGet, ROAPI through ADBC, Quack.

Everyone has their turn in each round, in an order that turns with the rounds; what is compared is measured in the same
round. The table goes to bench/FLIGHT_SQL.md, the samples beside it. Needs Linux.

    sh bench/flight_sql.sh --rounds 7
    sh bench/flight_sql.sh --rounds 1 --seconds 1 --count 50 --out /tmp/flight_sql.md
"""

import argparse
import json
import os
import platform
import secrets
import shlex
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from processes import Agent, Failed, Server, free_port

HERE = Path(__file__).resolve().parent
PYTHON_PATH = {"PYTHONPATH": str(HERE)}


@dataclass(frozen=True)
class Contender:
    title: str
    server: str
    client: str
    operation: str


CONTENDERS = [
    Contender("Mallard, ADBC, the same statement again", "mallard", "adbc", "again"),
    Contender("Mallard, ADBC, a new statement each time", "mallard", "adbc", "anew"),
    Contender("Mallard, plain DoGet (pyarrow)", "mallard", "pyarrow", "small"),
    Contender("ROAPI 0.12.7, ADBC, the same statement again", "roapi", "adbc", "again"),
    Contender("ROAPI 0.12.7, ADBC, a new statement each time", "roapi", "adbc", "anew"),
    Contender("DuckDB Quack 1.5.5", "quack", "quack", "small"),
]
# Who is divided by whom.
RATIOS = [
    ("ADBC, the same statement again", 0, 3),
    ("ADBC, a new statement each time", 1, 4),
    ("plain DoGet beside Quack", 2, 5),
]


def main():
    arguments = parse_arguments()
    samples = {contender.title: [] for contender in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="mallard-bench-") as directory, ExitStack() as stack:
        token = {"BENCH_QUACK_TOKEN": secrets.token_hex(16)}
        locations = {
            "mallard": mallard(stack, arguments),
            "roapi": roapi(stack, arguments, Path(directory)),
            "quack": quack(stack, arguments, token),
        }
        clients = {
            "adbc": [str(arguments.adbc_python), "-m", "clients.adbc_client"],
            "pyarrow": [sys.executable, "-m", "clients.pyarrow_client"],
            "quack": [str(arguments.quack_python), "-m", "peers.quack_client"],
        }
        agents = {
            name: stack.enter_context(Agent(command, PYTHON_PATH | token)) for name, command in clients.items()
        }
        contenders = CONTENDERS
        # Round 0 warms everything up.
        for number in range(arguments.rounds + 1):
            contenders = contenders[1:] + contenders[:1]
            for contender in contenders:
                request = {"operation": contender.operation, "servers": [locations[contender.server]]}
                alone = agents[contender.client].ask(request | {"clients": 1, "count": arguments.count})
                eight = agents[contender.client].ask(request | {"clients": 8, "seconds": arguments.seconds})
                for answer in (alone, eight):
                    if answer["errors"]:
                        sys.exit(f"{contender.title}: {answer['errors']} errors, the first: {answer['first_error']}")
                if number > 0:
                    sample = {"p50_ms": alone["latencies_ms"]["p50"], "p99_ms": alone["latencies_ms"]["p99"],
                              "per_second": eight["latencies_ms"]["per_second"]}
                    samples[contender.title].append(sample)
                    print(f"round {number}: {contender.title}: {sample}", flush=True)
    arguments.out.write_text(page(samples, arguments))
    arguments.out.with_suffix(".json").write_text(json.dumps(samples, indent=1) + "\n")
    print(arguments.out.read_text())


def mallard(stack, arguments):
    location = f"grpc://127.0.0.1:{free_port()}"
    quiet = {"MALLARD__ADMIN__LISTEN": "off", "MALLARD__LOG__LEVEL": "error"}
    stack.enter_context(Server([str(arguments.mallard), "serve", "--location", location, "--db", ":memory:"], quiet))
    return answering(location)


def roapi(stack, arguments, directory):
    # It serves tables, so it is given one.
    (directory / "one.csv").write_text("one\n1\n")
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    command = [str(arguments.roapi), "--table", f"one={directory}/one.csv", "--addr-flight-sql", addresses[0],
               "--addr-http", addresses[1], "--addr-postgres", addresses[2]]
    stack.enter_context(Server(command, {"RUST_LOG": "off"}))
    return answering(f"grpc://{addresses[0]}")


def quack(stack, arguments, token):
    location = f"quack:127.0.0.1:{free_port()}"
    command = [str(arguments.quack_python), str(HERE / "peers" / "quack_server.py"), "--location", location]
    stack.enter_context(Server(command, token))
    return answering(location)


def answering(location):
    """The location, once somebody listens there."""
    port = int(location.rsplit(":", 1)[1])
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return location
        except OSError:
            if time.monotonic() > deadline:
                raise Failed(f"{location}: nobody listens") from None
            time.sleep(0.1)


def page(samples, arguments):
    lines = [
        "# One-row queries through Flight SQL",
        "",
        f"Written by `{shlex.join(['sh', 'bench/flight_sql.sh', *sys.argv[1:]])}`; {arguments.rounds} rounds after one that",
        f"warms up, on {platform.machine()} with {os.cpu_count()} cores. Medians of the rounds; in parentheses the smallest",
        "and the largest. Latency is one client's, queries a second those of 8 clients, each with a connection of its own.",
        "The client's own work is in both.",
        "",
        "| | p50, ms | p99, ms | queries a second, 8 clients |",
        "|---|---|---|---|",
    ]
    for title, rounds in samples.items():
        cells = [spread([one[key] for one in rounds], digits)
                 for key, digits in (("p50_ms", 2), ("p99_ms", 2), ("per_second", 0))]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "Ratios of each round, Mallard's to the other's: below 1 is faster for latency, above 1 for queries a second.",
              "", "| | p50 | queries a second |", "|---|---|---|"]
    titles = list(samples)
    for name, ours, other in RATIOS:
        pairs = list(zip(samples[titles[ours]], samples[titles[other]], strict=True))
        cells = [spread([a[key] / b[key] for a, b in pairs], 2) for key in ("p50_ms", "per_second")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values, digits):
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    parser.add_argument("--mallard", type=Path, default=target / "release" / "mallard")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=300, help="queries of the single client in a round")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long the 8 clients ask in a round")
    parser.add_argument("--out", type=Path, default=HERE / "FLIGHT_SQL.md")
    for name in ("adbc-python", "quack-python", "roapi"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=argparse.SUPPRESS)
    arguments, sys.argv[1:] = parser.parse_args(), [one for one in sys.argv[1:] if not hidden(one)]
    return arguments


def hidden(argument):
    """Where the environments are is nobody's business."""
    return argument.split("=")[0] in ("--adbc-python", "--quack-python", "--roapi")


if __name__ == "__main__":
    main()
