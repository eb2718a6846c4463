"""IPC compression where the network is the limit: GET and PUT over links of limited rate, with none, LZ4 and ZSTD.

Server and client are in two network namespaces made here, with a veth pair between them whose ends tc (tbf) limits. The
client is stock pyarrow; the bytes are counted at the link, with all headers. Every round is verified by row count, the
warm-up by hash. `--update` writes bench/NETWORK.md.

    sh bench/network.sh --rounds 3 --update
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contenders import wait_until_it_answers
from measure import check
from processes import Agent, Server
from report import machine
from workloads import FINGERPRINT, Workload

HERE = Path(__file__).resolve().parent
SERVER, CLIENT = "mallard-bench-server", "mallard-bench-client"
ADDRESS = {SERVER: "10.77.0.2", CLIENT: "10.77.0.1"}
LINK = {SERVER: "bench-server", CLIENT: "bench-client"}
LOCATION = f"grpc://{ADDRESS[SERVER]}:8815"
RATES = ["1gbit", "2.5gbit", "10gbit", "unlimited"]
CODECS = ["none", "lz4", "zstd"]


def main():
    arguments = parse_arguments()
    workloads = [Workload("flights", arguments.flights), Workload("lineitem", arguments.lineitem)]
    lines = []
    with ExitStack() as stack:
        stack.enter_context(namespaces())
        environment = {
            "MALLARD__ADMIN__LISTEN": "off",
            "MALLARD__LOG__LEVEL": "error",
            "MALLARD__AUTH__ALLOW_ANONYMOUS": "true",
        }
        serve = inside(SERVER, [str(arguments.mallard), "serve", "--location", LOCATION, "--db", ":memory:"])
        server = stack.enter_context(Server(serve, environment))
        pyarrow = inside(CLIENT, [sys.executable, "-m", "clients.pyarrow_client"])
        client = stack.enter_context(Agent(pyarrow, {"PYTHONPATH": str(HERE)}))
        wait_until_it_answers(server, LOCATION, client)
        for workload in workloads:
            ask(client, "sql", sql=f"CREATE TABLE {workload.name} AS {workload.select}")
            expected = ask(client, "sql", sql=FINGERPRINT.format(workload.name))["rows"][0]
            generated = ask(client, "generate", workload=workload.name, rows=workload.rows)
            for rate in RATES:
                limit(rate)
                lines += rows_of(arguments, workload, rate, server, client, expected, generated["bytes"])
    text = markdown(arguments, lines)
    print(text)
    if arguments.update:
        (HERE / "NETWORK.md").write_text(text)


def rows_of(arguments, workload, rate, server, client, expected, size):
    samples = {(operation, codec): [] for operation in ("get", "put") for codec in CODECS}
    for number in range(arguments.rounds + 1):
        for (operation, codec), kept in samples.items():
            print(f"{workload.name}, {rate}, round {number}: {operation}, {codec}", file=sys.stderr)
            moved = bytes_sent()
            cpu = server.cpu_seconds()
            request = {"table": workload.name, "to": "arrived", "compression": codec}
            answer = ask(client, operation, **request, verify=number == 0 and operation == "get")
            sample = {
                "seconds": answer["seconds"],
                "server": server.cpu_seconds() - cpu,
                "client": answer["cpu_seconds"],
                "moved": bytes_sent() - moved,
            }
            check(f"rows of {operation}", answer["rows"], expected["n"])
            if operation == "put":
                if number == 0:
                    check("stored rows", ask(client, "sql", sql=FINGERPRINT.format("arrived"))["rows"][0], expected)
                ask(client, "sql", sql="DROP TABLE arrived")
            elif number == 0:
                check("hash of what came", answer["hash"], expected["h"])
            if number > 0:
                kept.append(sample)
    lines = []
    for operation in ("get", "put"):
        middles = {codec: middle(samples[operation, codec]) for codec in CODECS}
        best = min(CODECS, key=lambda codec: middles[codec]["seconds"])
        for codec, one in middles.items():
            cells = [
                operation.upper(),
                workload.name,
                rate,
                f"**{codec}**" if codec == best else codec,
                f"{one['seconds']:.2f}",
                f"{size / one['seconds'] / 1e6:.0f}",
                f"{size / one['moved']:.2f}",
                f"{one['server'] / size * 1e9:.2f}",
                f"{one['client'] / size * 1e9:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def middle(samples):
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def markdown(arguments, lines):
    told = [f"- {key}: {value}" for key, value in machine().items()]
    command = f"sh bench/network.sh --rounds {arguments.rounds} --flights {arguments.flights} --lineitem {arguments.lineitem}"
    return "\n".join(
        [
            "# IPC compression over limited links",
            "",
            f"`{command}`, {time.strftime('%Y-%m-%d', time.gmtime())}",
            "",
            *told,
            "",
            f"Medians of {arguments.rounds} rounds in alternation, all verified; client and server share the processor. MB/s are of the",
            "table's own bytes, and so are the CPU seconds per GB; the ratio is those bytes to the bytes on the link with all",
            "headers. The fastest of each three is bold.",
            "",
            "| operation | workload | link | compression | seconds | MB/s | ratio | server CPU s/GB | client CPU s/GB |",
            "|---|---|---|---|---:|---:|---:|---:|---:|",
            *lines,
            "",
        ]
    )


# === Namespaces ===


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def inside(namespace, command):
    return ["ip", "netns", "exec", namespace, *command]


@contextmanager
def namespaces():
    remove()
    try:
        for name in (SERVER, CLIENT):
            run("ip", "netns", "add", name)
        run("ip", "link", "add", LINK[SERVER], "netns", SERVER, "type", "veth", "peer", "name", LINK[CLIENT], "netns", CLIENT)
        for name in (SERVER, CLIENT):
            run(*inside(name, ["ip", "address", "add", f"{ADDRESS[name]}/24", "dev", LINK[name]]))
            run(*inside(name, ["ip", "link", "set", LINK[name], "up"]))
            run(*inside(name, ["ip", "link", "set", "lo", "up"]))
        yield
    finally:
        remove()


def remove():
    for name in (SERVER, CLIENT):
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def limit(rate):
    for name in (SERVER, CLIENT):
        qdisc = inside(name, ["tc", "qdisc", "replace", "dev", LINK[name], "root"])
        run(*qdisc, *(["pfifo_fast"] if rate == "unlimited" else ["tbf", "rate", rate, "burst", "1mb", "latency", "20ms"]))


def bytes_sent():
    """On the link, in both directions."""
    total = 0
    for name in (SERVER, CLIENT):
        counter = f"/sys/class/net/{LINK[name]}/statistics/tx_bytes"
        total += int(subprocess.run(inside(name, ["cat", counter]), check=True, capture_output=True).stdout)
    return total


# === The client ===


def ask(client, operation, **request):
    return client.ask({"operation": operation, "servers": [LOCATION]} | request)


def parse_arguments():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    arguments.add_argument("--mallard", type=Path, default=Path(target) / "release/mallard")
    arguments.add_argument("--flights", type=int, default=12_000_000, help="rows of flights")
    arguments.add_argument("--lineitem", type=int, default=2_000_000, help="rows of lineitem")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--update", action="store_true", help="write bench/NETWORK.md")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
