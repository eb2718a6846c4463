"""docs/exchangers.md and the example: what they show works with stock pyarrow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/exchangers.md").read_text(), re.DOTALL)
# Those with a module are run where it is compiled, by wasm/examples.py.
SNIPPETS = [snippet for snippet in SNIPPETS if ".wasm" not in snippet]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_of_the_documentation_runs(server, number):
    exec(SNIPPETS[number].replace("grpc://127.0.0.1:8815", server.location), {})


def test_a_client_registers_its_own_exchanger_and_reads_every_row_back_processed(server):
    command = [sys.executable, str(ROOT / "examples/exchangers.py"), "1000000"]
    done = subprocess.run(command, env={**os.environ, "MALLARD_URI": server.location}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1000000 rows came back, all of them with processed = true" in done.stdout
