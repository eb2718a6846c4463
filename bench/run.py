"""Mallard with each of its clients, and its peers, at the same work in alternation, in one run on one machine.

contenders.py says who, operations.py and workloads.py what, measure.py how, floors.py what could not be beaten; report/
writes it down. This process only conducts: servers and clients are processes of their own. Needs Linux.

    sh bench/run.sh --rounds 5
    sh bench/run.sh --rows 1000000 --rounds 1 --without quack
"""

import argparse
import base64
import os
import shlex
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import floors
import measure
import operations
import report
from contenders import KINDS, Cast
from processes import Failed
from workloads import FINGERPRINT, HERE, Workload

WORKLOADS = ("flights", "lineitem", "small")
ONE_ROW_QUERIES = 300
CLIENTS = {
    "sequential": {"clients": 1, "count": ONE_ROW_QUERIES},
    "8 clients": {"clients": 8, "seconds": 2.0},
}


def main():
    arguments = parse_arguments()
    results = {"command": command(arguments), "database": arguments.database, "tables": {}, "failures": []}
    with tempfile.TemporaryDirectory(prefix="mallard-bench-") as directory:
        for name in arguments.workloads:
            folder = Path(directory) / name
            folder.mkdir()
            with ExitStack() as stack:
                cast = Cast(stack, arguments, folder)
                contenders = {key: cast.contender(key) for key in arguments.contenders}
                if name == "small":
                    results["small"] = one_row_queries(contenders, arguments, results)
                else:
                    workload = Workload(name, arguments.rows if name == "flights" else arguments.lineitem_rows)
                    results["tables"][name] = tables_moved(workload, cast, contenders, arguments, results)
                # Contenders that share servers share their DuckDB.
                results["versions"] = {each.kind.servers: each.version() for each in contenders.values()}
    report.write(results, arguments)
    if results["failures"]:
        sys.exit("\n".join(results["failures"]))


def tables_moved(workload, cast, contenders, arguments, results):
    result = {"rows": workload.rows, "samples": {}, "floors": [], "slow_reader": {}}
    expected = prepare(workload, cast, contenders, result, arguments)
    by_itself = cast.agents.get("rust") or cast.agents.get("pyarrow")
    result["engine_of_floors"] = "Mallard's engine" if "rust" in cast.agents else "Python's DuckDB"

    # Round 0 warms everything up and verifies hashes; it is not counted.
    for number in range(arguments.rounds + 1):
        for operation in operations.ALL:
            for contender in taking_turns(contenders, number, arguments.quack_rounds):
                if operation in contender.kind.operations and (operation != operations.EXCHANGE_WASM or arguments.module):
                    sample = attempt(
                        results,
                        f"{workload.name}, round {number}: {operation.name}, {contender.kind.title}",
                        partial(measure.sample, contender, operation, workload.name, expected, verify=number == 0),
                    )
                    if sample and number > 0:
                        by_contender = result["samples"].setdefault(operation.name, {})
                        by_contender.setdefault(contender.key, []).append(sample)
        if by_itself:
            alone = partial(floors.measure, result["bytes"], workload.name, by_itself, cast.directory)
            sample = attempt(results, f"{workload.name}, round {number}: floors", alone)
            if sample and number > 0:
                result["floors"].append(sample)

    for contender in contenders.values():
        if contender.kind.client == "pyarrow":
            what = f"{workload.name}: a slow reader, {contender.kind.title}"
            slow = partial(measure.slow_reader, contender, workload.name, arguments.slow_seconds)
            if sample := attempt(results, what, slow):
                result["slow_reader"][contender.key] = sample
    return result


def one_row_queries(contenders, arguments, results):
    result = {"samples": {name: {} for name in CLIENTS}}
    for number in range(arguments.rounds + 1):
        for name, request in CLIENTS.items():
            for contender in taking_turns(contenders, number, arguments.rounds):
                what = f"one-row queries, round {number}: {name}, {contender.kind.title}"
                sample = attempt(results, what, partial(measure.one_row, contender, request))
                if sample and number > 0:
                    result["samples"][name].setdefault(contender.key, []).append(sample)
    return result


def register(contender, module):
    """The exchangers that do what `processed` does, by SQL and as a module."""
    sql = "SELECT *, true AS processed FROM input"
    contender.register({"name": operations.EXCHANGE_SQL.request["exchanger"], "sql": sql})
    if module:
        wasm = base64.b64encode(module.read_bytes()).decode()
        contender.register({"name": operations.EXCHANGE_WASM.request["exchanger"], "wasm": wasm})


def prepare(workload, cast, contenders, result, arguments):
    """The table on every first server, and the same rows in every client; answers their number and hash."""
    expected = None
    filled = set()
    for contender in contenders.values():
        if contender.locations[0] not in filled:
            filled.add(contender.locations[0])
            say(f"{workload.name}: {workload.rows:,} rows on the server of {contender.kind.title}")
            if operations.EXCHANGE_SQL in contender.kind.operations:
                register(contender, arguments.module)
            contender.sql(0, f"CREATE TABLE {workload.name} AS {workload.select}")
            (found,) = contender.sql(0, FINGERPRINT.format(workload.name))
            expected = expected or found
            measure.check(f"the table of {contender.kind.title}", found, expected)
    for name, agent in cast.agents.items():
        if name == "control":
            continue
        answer = agent.ask({"operation": "generate", "workload": workload.name, "rows": workload.rows})
        measure.check(f"rows in the {name} client", answer["rows"], expected["n"])
        measure.check(f"hash of the rows in the {name} client", answer.get("hash", expected["h"]), expected["h"])
        if "bytes" in answer:
            result.setdefault("bytes", answer["bytes"])
    return expected


def taking_turns(contenders, number, quack_rounds):
    """Whoever comes later finds a warmer machine, so another one begins in each round."""
    keys = list(contenders)
    first = number % len(keys)
    return [contenders[key] for key in keys[first:] + keys[:first] if key != "quack" or number <= quack_rounds]


def attempt(results, what, measured):
    """What one contender cannot do is reported, and ends the run with 1, but not before the others are measured."""
    say(what)
    try:
        return measured()
    except Failed as error:
        results["failures"].append(f"{what}: {' '.join(str(error).split())}")
        say(f"failed: {error}")
        return None


def say(what):
    print(what, file=sys.stderr, flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, default=24_000_000, help="rows of flights (default: %(default)s)")
    add("--lineitem-rows", type=int, help="rows of lineitem (default: a quarter of --rows)")
    add("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    add("--quack-rounds", type=int, default=1, help="Quack's, which pushes for half a minute (default: %(default)s)")
    add("--workloads", default=",".join(WORKLOADS), help="some of them (default: %(default)s)")
    add("--without", action="append", default=[], choices=KINDS, help="leave a contender out; may be repeated")
    add("--database", choices=("memory", "file"), default="memory", help="of every server (default: %(default)s)")
    add("--slow-seconds", type=float, default=8, help="of the reader of one batch a second (default: %(default)s)")
    add("--mallard", type=Path, help="the mallard binary (default: the release build)")
    add("--module", type=Path, help="a module that appends `processed`; without it EXCHANGE, WebAssembly is left out")
    add("--rust-client", help="command of the Rust client (default: `mallard bench --stdin` of that binary)")
    add("--quack-python", type=Path, help="Python of the environment of requirements-quack.txt")
    add("--out", type=Path, default=HERE / "results", help="where the JSON, Markdown and HTML reports go")
    add("--update", action="store_true", help="also write bench/RESULTS.md, bench/charts/ and README's block")
    arguments = parser.parse_args()
    asked = arguments.workloads.split(",")
    if unknown := set(asked) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(unknown)}")
    arguments.workloads = [name for name in WORKLOADS if name in asked]
    arguments.lineitem_rows = arguments.lineitem_rows or arguments.rows // 4
    arguments.contenders = [key for key in KINDS if key not in arguments.without]
    if "quack" in arguments.contenders and not arguments.quack_python:
        parser.error("run bench/run.sh, give --quack-python, or leave Quack out: --without quack")
    arguments.mallard = arguments.mallard or release_build() or parser.error("no release build found: give --mallard")
    arguments.rust_client = arguments.rust_client or f"{shlex.quote(str(arguments.mallard))} bench --stdin"
    return arguments


def command(arguments):
    """What shows it again, on any machine."""
    parts = ["sh bench/run.sh", f"--rows {arguments.rows}", f"--rounds {arguments.rounds}"]
    if arguments.lineitem_rows != arguments.rows // 4:
        parts.append(f"--lineitem-rows {arguments.lineitem_rows}")
    if arguments.quack_rounds != 1:
        parts.append(f"--quack-rounds {arguments.quack_rounds}")
    if arguments.workloads != list(WORKLOADS):
        parts.append(f"--workloads {','.join(arguments.workloads)}")
    if arguments.database != "memory":
        parts.append(f"--database {arguments.database}")
    if arguments.module:
        parts.append(f"--module {arguments.module.name}")
    return " ".join(parts + [f"--without {key}" for key in arguments.without])


def release_build():
    targets = [os.environ.get("CARGO_TARGET_DIR"), HERE.parent / "target", Path.home() / ".cache/mallard/target"]
    binaries = [Path(target) / "release" / "mallard" for target in targets if target]
    return next((binary for binary in binaries if binary.is_file()), None)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"cannot start: {error}")
