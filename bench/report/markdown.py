"""A report as Markdown: RESULTS.md in full, README's block in short."""

import floors
import operations
from contenders import KINDS
from report.targets import MALLARD, MIB

PROCESSES = ("server 1", "server 2", "client")
READING = """\
Every contender does the same work in alternation, in one run; numbers are medians of the rounds after one that
warms up and compares hashes, with the smallest and largest in parentheses. Rows are counted every time. CPU seconds
and memory are those of server 1 / server 2 / client. Above the tables: the peak less the level with what is stored.
MB/s counts the table once, also where it travels twice (relayed) or there and back (EXCHANGE). Quack has no second
server: it pulls into its client, and does not relay or exchange. The pyarrow baseline cannot pull: its relayed
transfer stands there. A proven transfer ends with the hashes of both sides compared. Over a Unix socket, the floor
is that of a raw Unix socket.
""".splitlines()


def in_full(report, charts=()):
    lines = ["# Mallard and its peers, measured", "", f"`{report['command']}`, {report['date']}", ""]
    lines += [*origin(report), "", *READING]
    lines += ["", "## Asked for, and reached", "", *targets(report)]
    if charts:
        lines += ["", "## Charts", "", *pictures(charts)]
    for name, table in report["summary"]["tables"].items():
        lines += ["", f"## {name}: {table['rows']:,} rows, {table['bytes'] / 1e6:,.0f} MB", "", *speeds(table)]
        lines += ["", *costs(table), "", *floor_table(name, table, report)]
        if table["slow_reader"]:
            lines += ["", *slow_readers(table)]
    if "small" in report["summary"]:
        lines += ["", "## One-row queries", "", *one_row(report["summary"]["small"])]
    if report["failures"]:
        lines += ["", "## Failures", "", *(f"- {failure}" for failure in report["failures"])]
    return "\n".join(lines) + "\n"


def in_short(report, charts):
    lines = [f"`{report['command']}`, {report['date']}, {report['origin']['processor']}:", ""]
    lines += pictures(charts)
    for name, table in report["summary"]["tables"].items():
        lines += ["", f"{name}, {table['rows']:,} rows, {table['bytes'] / 1e6:,.0f} MB, M rows/s:", "", *rates(table)]
    if "small" in report["summary"]:
        lines += ["", *one_row(report["summary"]["small"])]
    judged = [target for target in report["targets"] if target["met"] is not None]
    met = sum(target["met"] for target in judged)
    lines += [
        "",
        f"Of {len(judged)} goals set beforehand this run reached {met}. [RESULTS.md](bench/RESULTS.md) has all of",
    ]
    lines += ["them, CPU and memory of every process, and the distance to what the machine allows."]
    return "\n".join(lines)


def pictures(charts):
    """`charts` are titles with paths."""
    return [f"![{title}]({path})" for title, path in charts]


def origin(report):
    return [f"- {name}: {value}" for name, value in report["origin"].items()]


def grid(head, rows):
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def targets(report):
    names = [KINDS[key].title.removeprefix("Mallard, ") for key in MALLARD]
    rows = [
        [
            target["what"],
            target["asked"],
            number(target["reached"]),
            {True: "yes", False: "**no**", None: "not measured"}[target["met"]],
            *(number(target["by_client"].get(key)) for key in MALLARD),
        ]
        for target in report["targets"]
    ]
    return grid(["", "asked", "reached", "met", *names], rows)


def rates(table):
    keys = [key for key in KINDS if any(key in each for each in table["operations"].values())]
    rows = [
        [name, *(f"{each[key]['rows_per_second'] / 1e6:.1f}" if key in each else "-" for key in keys)]
        for name, each in table["operations"].items()
    ]
    return grid(["", *(KINDS[key].title for key in keys)], rows)


def speeds(table):
    rows = [
        [
            name,
            KINDS[key].title,
            f"{each['seconds']:.3f} ({each['seconds_min']:.3f}..{each['seconds_max']:.3f})",
            f"{each['rows_per_second'] / 1e6:.1f}",
            f"{each['mb_per_second']:.0f}",
            number(each.get("times_best_peer")),
            number(each.get("times_floor")),
            str(each["rounds"]),
        ]
        for name, by_contender in table["operations"].items()
        for key, each in by_contender.items()
    ]
    ratios = ["times the best peer's speed", "times the floor"]
    return grid(["operation", "contender", "seconds", "M rows/s", "MB/s", *ratios, "rounds"], rows)


def costs(table):
    rows = [
        [
            name,
            KINDS[key].title,
            of_each(each, "cpu_seconds", lambda seconds: f"{seconds:.2f}"),
            f"{each['server_cpu_seconds_per_gb']:.2f}",
            of_each(each, "rss_peak", mib),
            of_each(each, "rss_above", mib),
        ]
        for name, by_contender in table["operations"].items()
        for key, each in by_contender.items()
    ]
    memory = ["peak RSS, MiB", "above the tables, MiB"]
    return grid(["operation", "contender", "CPU seconds", "server CPU seconds per GB", *memory], rows)


def floor_table(name, table, report):
    parts = grid(
        ["alone", "seconds", "CPU seconds, both sides"],
        [[what, f"{each['seconds']:.3f}", f"{each['cpu_seconds']:.3f}"] for what, each in table["floors"].items()],
    )
    made_of = {operation.name: " + ".join(operation.parts) for operation in operations.ALL}
    rows = [
        [operation, made_of[operation], *(number(seconds[carrier], 3) for carrier in (floors.TCP, floors.UNIX))]
        for operation, seconds in table["floor_seconds"].items()
    ]
    return [
        f"The floor of an operation: the CPU seconds of its parts, each alone, over {floors.CORES} cores. Scan and",
        f"insert are those of {report['engines'][name]}, in memory, without a server; a socket is one passage of the",
        "same bytes.",
        "",
        *parts,
        "",
        *grid(["operation", "parts", "floor over TCP, seconds", "over a Unix socket"], rows),
    ]


def slow_readers(table):
    rows = [[KINDS[key].title, mib(above)] for key, above in table["slow_reader"].items()]
    return grid(["a reader of one batch a second that leaves", "server memory above its tables, MiB"], rows)


def one_row(small):
    rows = [
        [
            name,
            KINDS[key].title,
            number(each["p50"]),
            number(each["p99"]),
            f"{each['per_second']:,.0f}",
            f"{each['errors']}" + (f": {each['first_error'].splitlines()[0]}" if each["first_error"] else ""),
        ]
        for name, by_contender in small.items()
        for key, each in by_contender.items()
    ]
    return grid(["one-row queries", "contender", "p50, ms", "p99, ms", "queries/s", "errors"], rows)


def of_each(summary, cost, form):
    processes = summary["processes"]
    return " / ".join(form(processes[name][cost]) if name in processes else "-" for name in PROCESSES)


def mib(size):
    return f"{size / MIB:.0f}"


def number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"
