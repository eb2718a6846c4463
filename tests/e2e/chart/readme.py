"""Writes the tables of values in the chart's README from the comments in values.yaml."""

import json
import re

import yaml

from engines import CHART

BEGIN, END = "<!-- values:begin -->", "<!-- values:end -->"
KEY = re.compile(r"( *)([A-Za-z_]+):(.*)")


def sections(text):
    """(title, [(path, comment)]) of values.yaml: what is commented, in the file's order."""
    found, path, comment = [], [], []
    for line in text.splitlines():
        if line.startswith("# === "):
            found.append((line.removeprefix("# === "), []))
            comment = []
        elif line.lstrip().startswith("# "):
            comment.append(line.lstrip().removeprefix("# "))
        elif not line.strip():
            comment = []
        elif match := KEY.fullmatch(line):
            depth = len(match[1]) // 2
            path[depth:] = [match[2]]
            if comment:
                found[-1][1].append((".".join(path), " ".join(comment)))
            comment = []
    return found


def value(values, path):
    for part in path.split("."):
        values = values[part]
    return values


def table(text):
    values = yaml.safe_load(text)
    lines = []
    for title, keys in sections(text):
        lines += ["", f"### {title}", "", "| value | default | meaning |", "|---|---|---|"]
        for path, comment in keys:
            default = json.dumps(value(values, path))
            comment = comment.replace("|", "\\|").replace("{{", "{{")
            lines.append(f"| `{path}` | `{default}` | {comment} |")
    return "\n".join(lines).strip() + "\n"


def written():
    """The README as it should be."""
    text = (CHART / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table((CHART / 'values.yaml').read_text())}{END}{after}"


def problems():
    text = (CHART / "values.yaml").read_text()
    described = {path for _, keys in sections(text) for path, _ in keys}
    for path in leaves(yaml.safe_load(text)):
        parts = path.split(".")
        if not any(".".join(parts[:length]) in described for length in range(1, len(parts) + 1)):
            yield f"values.yaml: {path} has no comment"
    if (CHART / "README.md").read_text() != written():
        yield "helm/mallard/README.md is not what values.yaml makes of it; tests/e2e/chart/run.sh --update writes it"


def leaves(values, prefix=""):
    """Paths of everything in values.yaml that is not a map with something in it."""
    for key, inner in values.items():
        path = f"{prefix}{key}"
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, f"{path}.")
        else:
            yield path
