"""Bar charts as SVG: each readable by itself, on light and dark, without scripts or anything from outside."""

from dataclasses import dataclass
from html import escape

from contenders import KINDS

WIDTH, NAMES, VALUES = 760, 230, 70
ROW, BAR, HEAD, GAP = 19, 13, 24, 10
# Mallard's in greens, its peers in amber and grey: (light, dark).
COLOURS = {
    "mallard-pyarrow": ("#0f766e", "#2dd4bf"),
    "mallard-rust": ("#15803d", "#4ade80"),
    "mallard-unix": ("#4d7c0f", "#a3e635"),
    "baseline": ("#b45309", "#fbbf24"),
    "quack": ("#6b7280", "#9ca3af"),
}
LIGHT, DARK = ("".join(f".{key}{{fill:{pair[shade]}}}" for key, pair in COLOURS.items()) for shade in (0, 1))
STYLE = f"""
.page{{fill:#ffffff}}.text{{fill:#1f2328}}.faint{{fill:#59636e}}.line{{stroke:#59636e}}{LIGHT}
@media (prefers-color-scheme:dark){{
.page{{fill:#0d1117}}.text{{fill:#e6edf3}}.faint{{fill:#9198a1}}.line{{stroke:#9198a1}}{DARK}}}
text{{font:12px system-ui,sans-serif}}.title{{font-size:15px;font-weight:600}}.head{{font-weight:600}}
"""


@dataclass
class Chart:
    file: str
    title: str
    # What a bar is, and in which direction it is good.
    caption: str
    # Value by contender, by group.
    groups: dict
    digits: int = 1
    # A line across all bars.
    mark: float | None = None


def of(summary):
    """All charts that this run has numbers for."""
    charts = []
    for name, table in summary["tables"].items():
        rows = f"{table['rows'] / 1e6:g} M rows"
        operations = table["operations"]
        speeds = scaled(operations, 1e-6)
        charts += [
            Chart(f"{name}-rows", f"{name}, {rows}", "million rows a second; longer is better", speeds),
            Chart(
                f"{name}-peers",
                f"{name}: against the best peer",
                "times the speed of the best peer, which the line marks; longer is better",
                values(operations, "times_best_peer"),
                2,
                1,
            ),
            Chart(
                f"{name}-floor",
                f"{name}: distance to the floor",
                "times what DuckDB's part and raw sockets cost alone, which the line marks; shorter is better",
                values(operations, "times_floor"),
                2,
                1,
            ),
        ]
    if "small" in summary:
        rates = values(summary["small"], "per_second")
        charts.append(Chart("small", "One-row queries", "queries a second; longer is better", rates, 0))
    return [chart for chart in charts if chart.groups]


def values(groups, name):
    """A bar alone compares nothing, so such groups are left out."""
    found = {
        group: {key: each[name] for key, each in by_contender.items() if each.get(name)}
        for group, by_contender in groups.items()
    }
    return {group: bars for group, bars in found.items() if len(bars) > 1}


def scaled(groups, factor):
    found = values(groups, "rows_per_second")
    return {group: {key: value * factor for key, value in bars.items()} for group, bars in found.items()}


def svg(chart):
    most = max([value for bars in chart.groups.values() for value in bars.values()] + [chart.mark or 0])
    scale = (WIDTH - NAMES - VALUES) / most
    top = 52
    lines = []
    for group, bars in chart.groups.items():
        lines.append(text(16, top + 16, group, "head text"))
        top += HEAD
        for key, value in bars.items():
            lines.append(text(28, top + 11, KINDS[key].title, "faint"))
            length = max(value * scale, 1)
            lines.append(f'<rect class="{key}" x="{NAMES}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>')
            lines.append(text(NAMES + length + 6, top + 11, f"{value:,.{chart.digits}f}", "text"))
            top += ROW
        top += GAP
    if chart.mark is not None:
        x = NAMES + chart.mark * scale
        lines.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="56" y2="{top - GAP}" stroke-dasharray="3 3"/>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}">',
            f"<title>{escape(chart.title)}: {escape(chart.caption)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{top}" rx="6"/>',
            text(16, 26, chart.title, "title text"),
            text(16, 44, chart.caption, "faint"),
            *lines,
            "</svg>",
        ]
    )


def text(x, y, what, classes):
    return f'<text class="{classes}" x="{x:.1f}" y="{y}">{escape(what)}</text>'
