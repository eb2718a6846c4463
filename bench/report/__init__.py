"""A run's results as JSON with every sample, as Markdown, as one HTML page, and in the repository's own pages."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from floors import CORES
from report import charts, markdown, page, summary, targets
from workloads import HERE

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def write(results, arguments):
    numbers = summary.of(results)
    report = {
        "command": results["command"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "origin": origin(results, arguments),
        "engines": {name: table["engine_of_floors"] for name, table in results["tables"].items()},
        "failures": results["failures"],
        "targets": targets.reached(numbers),
        "summary": numbers,
        "results": results,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown.in_full(report))
    stem.with_suffix(".html").write_text(page.page(report))
    print(markdown.in_full(report))
    print(f"{stem}.json, .md, .html", file=sys.stderr)
    if arguments.update:
        update(report)


def update(report):
    """The pages that readers of the repository see."""
    folder = HERE / "charts"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    drawn = charts.of(report["summary"])
    for chart in drawn:
        (folder / f"{chart.file}.svg").write_text(charts.svg(chart) + "\n")
    all_of_them = [(chart.title, f"charts/{chart.file}.svg") for chart in drawn]
    (HERE / "RESULTS.md").write_text(markdown.in_full(report, all_of_them))
    in_millions = [(title, f"bench/{path}") for title, path in all_of_them if path.endswith(("-rows.svg", "small.svg"))]
    readme = HERE.parent / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{markdown.in_short(report, in_millions)}\n{END}{after}")


def machine():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{processor()}, {CORES} cores",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def origin(results, arguments):
    program = subprocess.check_output([str(arguments.mallard), "--version"], text=True).strip()
    return {
        **machine(),
        "mallard": program,
        **{f"DuckDB of {title}": duckdb for title, duckdb in results["versions"].items()},
        "Python's DuckDB": version("duckdb"),
        "pyarrow": version("pyarrow"),
        "Python": platform.python_version(),
        "databases": {"memory": "in memory", "file": "files"}[results["database"]],
        **settings(),
    }


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def settings():
    """Configuration in the environment changes what was measured; identities are nobody's business."""
    names = [name for name in os.environ if name.startswith("MALLARD__") and not name.startswith("MALLARD__AUTH")]
    return {name: os.environ[name] for name in sorted(names)}
