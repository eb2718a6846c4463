"""GET, PUT, TRANSFER and EXCHANGE against `mallard serve` and against the pyarrow baseline, in alternation.

Both get the same work from the same stock pyarrow client (operations.py); every server is a process of its own, and
this one is the client. Needs Linux, for CPU seconds and memory out of /proc.

    pip install -r bench/requirements.txt
    python bench/run.py --rows 24000000 --rounds 5
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

import operations
import report
from processes import Process, Server, settled_rss

HERE = Path(__file__).resolve().parent
FLIGHTS = (HERE / "flights.sql").read_text()
FINGERPRINT = "SELECT count(*) AS n, sum(hash(t))::VARCHAR AS h FROM {} t"
# Divides DuckDB's row group of 122,880 rows.
BATCH_ROWS = 61_440
ONE_ROW_QUERIES = 300

# Name, function, and which of the two servers stores the result as a table.
OPERATIONS = [
    ("GET", operations.get, None),
    ("PUT", operations.put, 0),
    ("TRANSFER relayed", operations.relay, 1),
    ("TRANSFER pulled", operations.pull, 1),
    ("TRANSFER pulled, verified by itself", partial(operations.pull, verify=True), 1),
    ("EXCHANGE", operations.exchange, None),
]
# The baseline cannot pull: its relayed transfer stands against these.
PULLED = {name for name, _, _ in OPERATIONS if "pulled" in name}


def main():
    arguments = parse_arguments()
    flights = duckdb.sql(FLIGHTS.replace("{rows}", str(arguments.rows))).to_arrow_table().combine_chunks()
    batches = flights.to_batches(max_chunksize=BATCH_ROWS)
    expected = fingerprint_of(flights)

    mallard = [str(arguments.mallard), "serve", "--location", "{location}", "--db", ":memory:"]
    quiet = {"MALLARD__ADMIN__LISTEN": "off", "MALLARD__LOG__LEVEL": "error"}
    baseline = [sys.executable, str(HERE / "peers" / "pyarrow_server.py"), "--port", "{port}"]
    with ExitStack() as stack:
        systems = {
            "mallard": [stack.enter_context(Server(mallard, quiet)) for _ in range(2)],
            "baseline": [stack.enter_context(Server(baseline)) for _ in range(2)],
        }
        for first, _ in systems.values():
            first.query("CREATE TABLE flights AS " + FLIGHTS.replace("{rows}", str(arguments.rows)))
            check("the generated table", fingerprint_on(first, "flights"), expected)

        samples = {name: {system: [] for system in systems} for name, _, _ in OPERATIONS}
        one_row = {system: [] for system in systems}
        # Round 0 warms everything up and verifies by hash what reaches the client; it is not counted.
        for number in range(arguments.rounds + 1):
            # Whoever goes second finds a warmer machine, so the order changes from round to round.
            order = sorted(systems, reverse=number % 2 == 1)
            for name, operation, stored_on in OPERATIONS:
                for system in order:
                    if system == "baseline" and name in PULLED:
                        continue
                    print(f"round {number}: {name}, {system}", file=sys.stderr)
                    kept = [] if number == 0 else None
                    sample = measure(operation, systems[system], stored_on, batches, kept)
                    verify(f"{name} by {system}", systems[system], stored_on, sample["rows"], kept, expected)
                    if number > 0:
                        samples[name][system].append(sample)
            for system in order:
                latencies = one_row_latencies(systems[system][0])
                if number > 0:
                    one_row[system].append(latencies)
        versions = {
            "mallard": output_of([str(arguments.mallard), "--version"]),
            "DuckDB in mallard": systems["mallard"][0].query("SELECT version() AS v")["v"][0].as_py(),
            "DuckDB in the baseline": systems["baseline"][0].query("SELECT version() AS v")["v"][0].as_py(),
            "pyarrow": pa.__version__,
            "Python": sys.version.split()[0],
        }

    for name in PULLED:
        samples[name]["baseline"] = samples["TRANSFER relayed"]["baseline"]
    report.write(
        arguments.out,
        rows=arguments.rows,
        rounds=arguments.rounds,
        bytes_per_row=sum(field.type.bit_width for field in flights.schema) / 8,
        versions=versions,
        samples=samples,
        one_row=one_row,
    )


def measure(operation, servers, stored_on, batches, kept):
    processes = dict(zip(report.PROCESSES, [*servers, Process(os.getpid())]))
    before = settled_rss(processes)
    for process in processes.values():
        process.reset_peak_rss()
    cpu = {name: process.cpu_seconds() for name, process in processes.items()}
    start = time.perf_counter()
    rows = operation(*servers, batches, kept)
    seconds = time.perf_counter() - start
    sample = {"rows": rows, "seconds": seconds}
    for name, process in processes.items():
        sample[name] = {
            "cpu_seconds": round(process.cpu_seconds() - cpu[name], 2),
            "rss_before": before[name],
            "rss_peak": process.peak_rss(),
        }
    for name, rss in settled_rss(processes).items():
        sample[name]["rss_after"] = rss
    for index, name in enumerate(report.PROCESSES):
        # Where the operation stores a table, that table belongs to the level it is measured against.
        level = "rss_after" if index == stored_on else "rss_before"
        sample[name]["rss_above"] = sample[name]["rss_peak"] - sample[name][level]
    return sample


def verify(what, servers, stored_on, rows, kept, expected):
    check(f"{what}: rows", rows, expected[0])
    if kept:
        check(f"{what}: hash of the rows received", fingerprint_of(pa.Table.from_batches(kept)), expected)
    if stored_on is not None:
        check(f"{what}: stored table", fingerprint_on(servers[stored_on], "arrived"), expected)
        servers[stored_on].query("DROP TABLE arrived")


def check(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found}, expected {expected}")


def fingerprint_of(table):
    if "processed" in table.column_names:
        table = table.drop_columns("processed")
    with duckdb.connect() as connection:
        connection.register("received", table)
        return connection.execute(FINGERPRINT.format("received")).fetchall()[0]


def fingerprint_on(server, table):
    answer = server.query(FINGERPRINT.format(table))
    return answer["n"][0].as_py(), answer["h"][0].as_py()


def one_row_latencies(server):
    latencies = []
    for _ in range(ONE_ROW_QUERIES):
        start = time.perf_counter()
        server.query("SELECT 1")
        latencies.append(time.perf_counter() - start)
    return latencies


def output_of(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_000_000, help="rows of the flights table (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--mallard", type=Path, help="the mallard binary (default: the release build)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON and Markdown reports go")
    arguments = parser.parse_args()
    arguments.mallard = arguments.mallard or release_build() or parser.error("no release build found: give --mallard")
    return arguments


def release_build():
    targets = [os.environ.get("CARGO_TARGET_DIR"), HERE.parent / "target", Path.home() / ".cache/mallard/target"]
    binaries = [Path(target) / "release" / "mallard" for target in targets if target]
    return next((binary for binary in binaries if binary.is_file()), None)


if __name__ == "__main__":
    main()
