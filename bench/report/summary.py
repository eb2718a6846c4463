"""Samples to medians, spreads and ratios. It knows no format: markdown.py, charts.py and page.py write it down."""

from statistics import median

import floors
import operations
from contenders import KINDS

# The baseline has no other way to transfer than through the client, which therefore stands against the pulled ones, and no
# other exchanger than the one it was written with.
STANDS_IN = {operation.name: operations.RELAY.name for operation in (operations.PULL, operations.PROVEN)}
STANDS_IN |= {operation.name: operations.EXCHANGE.name for operation in operations.REGISTERED}


def of(results):
    summary = {"tables": {name: table(result) for name, result in results["tables"].items()}}
    if "small" in results:
        summary["small"] = one_row(results["small"])
    return summary


def table(result):
    gigabytes = result["bytes"] / 1e9
    by_operation = {}
    for operation in operations.ALL:
        samples = dict(result["samples"].get(operation.name, {}))
        if samples and operation.name in STANDS_IN:
            stand_in = result["samples"].get(STANDS_IN[operation.name], {})
            samples |= {key: stand_in[key] for key in ("baseline",) if key in stand_in}
        of_operation = {}
        for key in KINDS:
            if key in samples:
                of_operation[key] = one(samples[key], result["rows"], gigabytes)
                # Quack's DuckDB is another version, with a floor of its own.
                floor = key != "quack" and floors.floor_seconds(operation, KINDS[key].carrier, result["floors"])
                if floor:
                    of_operation[key]["times_floor"] = of_operation[key]["seconds"] / floor
        against_peers(of_operation)
        if of_operation:
            by_operation[operation.name] = of_operation
    return {
        "rows": result["rows"],
        "bytes": result["bytes"],
        "operations": by_operation,
        "floors": floor_medians(result),
        "floor_seconds": floor_seconds(result["floors"]),
        "slow_reader": {key: servers_above(sample["processes"]) for key, sample in result["slow_reader"].items()},
    }


def one(samples, rows, gigabytes):
    seconds = [sample["seconds"] for sample in samples]
    middle = median(seconds)
    processes = {
        name: {
            cost: median(sample["processes"][name][cost] for sample in samples)
            for cost in ("cpu_seconds", "rss_before", "rss_peak", "rss_after", "rss_above")
        }
        for name in samples[0]["processes"]
    }
    server_cpu = median(
        sum(cost["cpu_seconds"] for name, cost in sample["processes"].items() if name != "client") for sample in samples
    )
    summary = {
        "rounds": len(samples),
        "seconds": middle,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "rows_per_second": rows / middle,
        "mb_per_second": gigabytes * 1e3 / middle,
        "server_cpu_seconds_per_gb": server_cpu / gigabytes,
        "server_bytes_above": max(servers_above(sample["processes"]) for sample in samples),
        "processes": processes,
    }
    if any("first_batch_after_input_rows" in sample for sample in samples):
        sent = max(sample["first_batch_after_input_rows"] for sample in samples)
        summary["percent_sent_before_first_answer"] = 100 * sent / rows
    return summary


def servers_above(processes):
    return max(cost["rss_above"] for name, cost in processes.items() if name != "client")


def against_peers(of_operation):
    peers = {key: each["seconds"] for key, each in of_operation.items() if KINDS[key].peer}
    if not peers:
        return
    best = min(peers, key=peers.get)
    for each in of_operation.values():
        each["best_peer"] = best
        each["times_best_peer"] = peers[best] / each["seconds"]


def floor_seconds(samples):
    return {
        operation.name: {name: floors.floor_seconds(operation, name, samples) for name in (floors.TCP, floors.UNIX)}
        for operation in operations.ALL
        if operation.parts and samples
    }


def floor_medians(result):
    names = result["floors"][0] if result["floors"] else ()
    return {
        name: {what: median(sample[name][what] for sample in result["floors"]) for what in ("seconds", "cpu_seconds")}
        for name in names
    }


def one_row(result):
    """Percentiles are medians of each round's; errors are all of them."""
    return {
        name: {
            key: {
                "p50": middle(samples, "p50"),
                "p99": middle(samples, "p99"),
                "per_second": middle(samples, "per_second"),
                "errors": sum(sample.get("errors", 0) for sample in samples),
                "first_error": next((sample["first_error"] for sample in samples if sample.get("first_error")), None),
            }
            for key in KINDS
            if (samples := by_contender.get(key))
        }
        for name, by_contender in result["samples"].items()
    }


def middle(samples, name):
    values = [sample["latencies_ms"][name] for sample in samples if name in sample["latencies_ms"]]
    return median(values) if values else None
