"""Writes what a run of tests/soak/run.sh measured between the marks in SECURITY.md: python3 figures.py LOG SECURITY.md"""

import datetime
import os
import pathlib
import re
import sys

log, page = (pathlib.Path(path) for path in sys.argv[1:])
# The test runner writes "test name ... " in front of what a test prints first.
measured = re.findall(r"^(?:test \S+ \.\.\. )?measured: (.+)$", log.read_text(), re.M)
if not measured:
    sys.exit(f"{log} holds no line that begins with \"measured: \"")
when = f"{datetime.date.today()}, {os.cpu_count()} cores, {os.environ['MALLARD_SOAK_SECONDS']} s of mixed load:"
begin, end = "<!-- figures -->", "<!-- end of figures -->"
before, rest = page.read_text().split(begin)
_, after = rest.split(end)
page.write_text("\n".join([before + begin, when, "", *(f"- {line}" for line in measured), end]) + after)
