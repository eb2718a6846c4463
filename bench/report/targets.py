"""What was asked for, against what a run reached. Nothing here passes or fails a run; what falls short is shown so."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from contenders import KINDS

MIB = 1 << 20
MALLARD = [key for key, kind in KINDS.items() if not kind.peer]
PYARROW, RUST, UNIX = MALLARD


@dataclass(frozen=True)
class Target:
    what: str
    asked: float
    at_least: bool
    # Whose value is held against what was asked; None: the worst of all Mallard's.
    judged: str | None
    # Of a summary and a contender; LookupError where it was not measured.
    value: Callable


def speed(table, operation, peer, summary, key):
    by_contender = summary["tables"][table]["operations"][operation]
    return by_contender[peer]["seconds"] / by_contender[key]["seconds"]


def server_cpu(operation, summary, key):
    by_contender = summary["tables"]["flights"]["operations"][operation]
    return by_contender[key]["server_cpu_seconds_per_gb"] / by_contender["baseline"]["server_cpu_seconds_per_gb"]


def of_flights(operation, name, summary, key):
    return summary["tables"]["flights"]["operations"][operation][key][name]


def memory(summary, key):
    table = summary["tables"]["flights"]
    samples = (by_contender[key] for by_contender in table["operations"].values() if key in by_contender)
    above = [sample["server_bytes_above"] for sample in samples]
    if key in table["slow_reader"]:
        above.append(table["slow_reader"][key])
    return max(above) / MIB if above else None


def latency(summary, key):
    sequential = summary["small"]["sequential"]
    mine, theirs = sequential[key]["p50"], sequential["baseline"]["p50"]
    return mine / theirs if mine and theirs else None


def rate(summary, key):
    return summary["small"]["8 clients"][key]["per_second"] / summary["small"]["sequential"]["baseline"]["per_second"]


def of_built_in(operation, summary, key):
    by_operation = summary["tables"]["flights"]["operations"]
    return by_operation[operation][key]["seconds"] / by_operation["EXCHANGE"][key]["seconds"]


def against_built_in(operation, asked):
    what = f"{operation}, Rust client over TCP: times the built-in exchanger's seconds"
    return Target(what, asked, False, RUST, partial(of_built_in, operation))


def against_baseline(what, operation, asked, judged):
    value = partial(speed, "flights", operation, "baseline")
    return Target(f"{what}: times the baseline's speed", asked, True, judged, value)


def against_quack(table, what, operation, asked):
    value = partial(speed, table, operation, "quack")
    return Target(f"{table}, {what}: times Quack's speed", asked, True, PYARROW, value)


def against_floor(operation):
    value = partial(of_flights, operation, "times_floor")
    return Target(f"{operation}, Rust client over TCP: times the floor", 1.3, False, RUST, value)


TARGETS = [
    against_baseline("GET, pyarrow client", "GET", 1.25, PYARROW),
    against_baseline("GET, Rust client over TCP", "GET", 1.3, RUST),
    against_baseline("GET, Rust client over a Unix socket", "GET", 1.5, UNIX),
    against_baseline("PUT, pyarrow client", "PUT", 1.3, PYARROW),
    against_baseline("TRANSFER relayed, pyarrow client", "TRANSFER relayed", 1.5, PYARROW),
    against_baseline("TRANSFER pulled, against the baseline's relayed", "TRANSFER pulled", 2, PYARROW),
    against_baseline("EXCHANGE, pyarrow client", "EXCHANGE", 1.6, PYARROW),
    against_built_in("EXCHANGE, SQL", 2),
    against_built_in("EXCHANGE, WebAssembly", 3),
    Target(
        "EXCHANGE: percent of the input sent before the first answer",
        1,
        False,
        PYARROW,
        partial(of_flights, "EXCHANGE", "percent_sent_before_first_answer"),
    ),
    Target("GET: server CPU per GB, of the baseline's", 0.5, False, PYARROW, partial(server_cpu, "GET")),
    Target("EXCHANGE: server CPU per GB, of the baseline's", 0.5, False, PYARROW, partial(server_cpu, "EXCHANGE")),
    *map(against_floor, ("GET", "PUT", "TRANSFER relayed", "TRANSFER pulled", "EXCHANGE")),
    against_quack("flights", "GET", "GET", 6),
    against_quack("flights", "TRANSFER pulled", "TRANSFER pulled", 4),
    against_quack("flights", "PUT against its push", "PUT", 20),
    against_quack("lineitem", "GET", "GET", 2),
    against_quack("lineitem", "TRANSFER pulled", "TRANSFER pulled", 2),
    against_quack("lineitem", "PUT against its push", "PUT", 2),
    Target("one-row query: p50, of the baseline's", 0.5, False, PYARROW, latency),
    Target("8 clients: queries a second, times the baseline's sequential rate", 3, True, PYARROW, rate),
    Target("flights, any operation or slow reader: MiB of a server above its tables", 128, False, None, memory),
]


def reached(summary):
    return [verdict(target, summary) for target in TARGETS]


def verdict(target, summary):
    values = {}
    for key in MALLARD:
        try:
            value = target.value(summary, key)
        except LookupError:
            continue
        if value is not None:
            values[key] = value
    worst = min if target.at_least else max
    value = values.get(target.judged) if target.judged else worst(values.values(), default=None)
    met = None
    if value is not None:
        met = value >= target.asked if target.at_least else value <= target.asked
    return {
        "what": target.what,
        "asked": ("at least " if target.at_least else "at most ") + f"{target.asked:g}",
        "reached": value,
        "met": met,
        "by_client": values,
    }
