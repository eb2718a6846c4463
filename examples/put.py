# python examples/put.py ducks      (needs pyarrow; starts nothing: run `mallard serve` first)
"""Sends an Arrow table into a DuckDB table, which is created if it is missing and appended to otherwise."""

import json
import os
import sys

import pyarrow as pa
import pyarrow.flight as flight

table = sys.argv[1] if len(sys.argv) > 1 else "ducks"
ducks = pa.table({"name": ["mallard", "teal", "eider"], "grams": [1100, 350, 2000]})

with flight.connect(os.environ.get("MALLARD_URI", "grpc://127.0.0.1:8815")) as client:
    # pyarrow ends the stream cleanly even where the program fails half way, also inside `with writer:`. The server could not
    # tell that half from the whole, and would store it; this header makes it wait for the explicit end below.
    headers = [(b"x-mallard-end", b"explicit")]
    if "MALLARD_USER" in os.environ:
        headers.append(client.authenticate_basic_token(os.environ["MALLARD_USER"], os.environ["MALLARD_PASSWORD"]))
    options = flight.FlightCallOptions(headers=headers)

    writer, results = client.do_put(flight.FlightDescriptor.for_path(table), ducks.schema, options)
    with writer:
        writer.write_table(ducks)
        # The last message: all rows have been sent, so many.
        writer.write_metadata(json.dumps({"end": True, "rows": ducks.num_rows}).encode())
        writer.done_writing()
        # The answer comes once the whole stream is committed; before that, nothing of it is in the table.
        print(json.loads(results.read().to_pybytes()))
