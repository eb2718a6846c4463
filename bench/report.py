"""Samples to a report: medians, spreads and ratios, as JSON with every sample and as Markdown."""

import json
import os
import platform
import time
from pathlib import Path
from statistics import median, quantiles

PROCESSES = ("server 1", "server 2", "client")
MIB = 1 << 20


def write(directory, *, rows, rounds, bytes_per_row, versions, samples, one_row):
    summary = {
        name: {system: summarise(list_of, bytes_per_row) for system, list_of in by_system.items()}
        for name, by_system in samples.items()
    }
    latencies = {system: latency(per_round) for system, per_round in one_row.items()}
    report = {
        "command": f"python bench/run.py --rows {rows} --rounds {rounds}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "settings": settings(),
        "versions": versions,
        "rows": rows,
        "bytes_per_row": bytes_per_row,
        "summary": summary,
        "one_row_query_milliseconds": latencies,
        "samples": samples,
    }
    markdown = to_markdown(report)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown)
    print(markdown)


def summarise(samples, bytes_per_row):
    seconds = [sample["seconds"] for sample in samples]
    middle = median(seconds)
    rows = samples[0]["rows"]
    return {
        "seconds": middle,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "rows_per_second": rows / middle,
        "mb_per_second": rows * bytes_per_row / middle / 1e6,
        **{
            process: {
                key: median(sample[process][key] for sample in samples)
                for key in ("cpu_seconds", "rss_before", "rss_peak", "rss_after", "rss_above")
            }
            for process in PROCESSES
        },
    }


def latency(per_round):
    """The median over the rounds of each round's percentile."""
    percentiles = [quantiles(latencies, n=100) for latencies in per_round]
    return {name: 1000 * median(p[index] for p in percentiles) for name, index in (("p50", 49), ("p99", 98))}


def to_markdown(report):
    lines = [
        f"# Mallard and the pyarrow baseline: {report['rows']:,} rows of {report['bytes_per_row']:g} bytes",
        "",
        f"`{report['command']}`, {report['date']}",
        "",
        *[f"- {key}: {value}" for key, value in (report["machine"] | report["versions"] | report["settings"]).items()],
        "",
        "Medians (min..max) of alternating rounds; every result verified by row count and hash. CPU seconds and memory",
        "are those of server 1 / server 2 / client. Above the table: the peak less the level with the stored tables.",
        "MB/s counts the table once, also where it travels twice (relayed) or there and back (EXCHANGE).",
        "",
        "| operation | system | seconds | M rows/s | MB/s | CPU seconds | peak RSS, MiB | above the table, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by_system in report["summary"].items():
        for system, summary in by_system.items():
            lines.append(row(name, system, summary))
    lines += [
        "",
        "| operation | times the baseline's speed | server CPU of the baseline's | above the table |",
        "|---|---|---|---|",
    ]
    for name, by_system in report["summary"].items():
        lines.append(ratio(name, by_system["mallard"], by_system["baseline"]))
    lines += ["", "| one-row query | p50, ms | p99, ms |", "|---|---|---|"]
    for system, values in report["one_row_query_milliseconds"].items():
        lines.append(f"| {system} | {values['p50']:.2f} | {values['p99']:.2f} |")
    lines += [
        "",
        'The baseline cannot pull: its relayed transfer stands against the pulled ones. "Verified by itself" has the',
        "transfer's own verification, by hash on both servers, in its time; this script's own is not timed.",
    ]
    return "\n".join(lines) + "\n"


def row(name, system, summary):
    cells = [
        name,
        system,
        f"{summary['seconds']:.2f} ({summary['seconds_min']:.2f}..{summary['seconds_max']:.2f})",
        f"{summary['rows_per_second'] / 1e6:.1f}",
        f"{summary['mb_per_second']:.0f}",
        each(summary, "cpu_seconds", lambda seconds: f"{seconds:.2f}"),
        each(summary, "rss_peak", mib),
        each(summary, "rss_above", mib),
    ]
    return "| " + " | ".join(cells) + " |"


def each(summary, key, form):
    return " / ".join(form(summary[process][key]) for process in PROCESSES)


def mib(size):
    return str(round(size / MIB))


def ratio(name, mallard, baseline):
    servers = PROCESSES[:2]
    cpu = [sum(summary[server]["cpu_seconds"] for server in servers) for summary in (mallard, baseline)]
    above = [max(summary[server]["rss_above"] for server in servers) for summary in (mallard, baseline)]
    # A run too short for the clock's tick of 10 ms has no CPU seconds to divide by.
    share = f"{cpu[0] / cpu[1]:.2f}" if cpu[1] else "-"
    return (
        f"| {name} | {baseline['seconds'] / mallard['seconds']:.2f} | {share} "
        f"| {mib(above[0])} MiB against {mib(above[1])} MiB |"
    )


def machine():
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{processor}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def settings():
    """Configuration in the environment changes what was measured; identities are nobody's business."""
    names = [name for name in os.environ if name.startswith("MALLARD__") and not name.startswith("MALLARD__AUTH")]
    return {name: os.environ[name] for name in sorted(names)}
