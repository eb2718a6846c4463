"""The report as one HTML page: charts drawn in it, tables below, nothing loaded from anywhere."""

from html import escape

from report import charts, markdown

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mallard and its peers, measured</title>
<style>
:root {{ color-scheme: light dark; --page: #ffffff; --text: #1f2328; --line: #d1d9e0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #0d1117; --text: #e6edf3; --line: #3d444d; }} }}
body {{ background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
svg {{ display: block; max-width: 100%; height: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }}
table {{ font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; text-align: left; vertical-align: top; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(report):
    """The Markdown report's own words and tables, with each section's charts before its tables."""
    drawn = charts.of(report["summary"])
    body = []
    for block in markdown.in_full(report).strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            heading = lines[0].lstrip("# ")
            body.append(f"<h{level}>{inline(heading)}</h{level}>")
            body += [charts.svg(chart) for chart in drawn if level == 2 and belongs(chart, heading)]
        elif lines[0].startswith("|"):
            body.append(table(lines))
        elif lines[0].startswith("- "):
            body += ["<ul>", *(f"<li>{inline(line[2:])}</li>" for line in lines), "</ul>"]
        else:
            body.append(f"<p>{inline(' '.join(lines))}</p>")
    return PAGE.format(body="\n".join(body))


def belongs(chart, heading):
    return heading == chart.title if chart.file == "small" else heading.startswith(chart.file.split("-")[0] + ":")


def table(lines):
    head, _, *rows = [[inline(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
    return "\n".join(
        [
            "<table>",
            "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>",
            *("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows),
            "</table>",
        ]
    )


def inline(words):
    """The Markdown that these reports use within a line: code and bold."""
    words = escape(words)
    for mark, tag in (("`", "code"), ("**", "strong")):
        parts = words.split(mark)
        words = "".join(f"<{tag}>{part}</{tag}>" if index % 2 else part for index, part in enumerate(parts))
    return words
