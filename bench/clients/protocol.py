"""The loop of a client that is measured, as `mallard bench --stdin` has it: one JSON object a line in, one out.

An operation is the client's method of that name. It times only what is inside `measured`, so that checking what came
is nobody's slowness.
"""

import json
import sys
import time
from contextlib import contextmanager


def serve(client):
    for line in sys.stdin:
        request = json.loads(line)
        operation = request["operation"]
        try:
            answer = getattr(client, operation)(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"operation": operation} | answer), flush=True)


@contextmanager
def measured():
    """A dictionary for the answer, which has `seconds` and `cpu_seconds` once the block has ended."""
    answer = {}
    cpu, start = time.process_time(), time.perf_counter()
    yield answer
    answer["seconds"] = time.perf_counter() - start
    answer["cpu_seconds"] = time.process_time() - cpu


class Arrivals:
    """Counts batches and drops them, or keeps them where they are to be verified."""

    def __init__(self, keep):
        self.start = time.perf_counter()
        self.rows = self.bytes = 0
        self.first_after = None
        self.kept = [] if keep else None

    def add(self, batch):
        if self.first_after is None:
            self.first_after = time.perf_counter() - self.start
        self.rows += batch.num_rows
        self.bytes += batch.nbytes
        if self.kept is not None:
            self.kept.append(batch)

    def answer(self):
        return {"rows": self.rows, "bytes": self.bytes, "first_batch_seconds": self.first_after}
