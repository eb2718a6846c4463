# python examples/exchangers.py [ROWS]      (needs pyarrow; starts nothing: run `mallard serve` first)
"""Registers an exchanger of its own, sends rows through it (24,000,000 unless told otherwise), and reads every row back."""

import json
import os
import sys
import threading

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight

rows = int(sys.argv[1]) if len(sys.argv) > 1 else 24_000_000
schema = pa.schema([("id", pa.int64())])

with flight.connect(os.environ.get("MALLARD_URI", "grpc://127.0.0.1:8815")) as client:
    own = {"name": "my_own", "sql": "SELECT *, true AS processed FROM input", "replace": True}
    added = client.do_action(flight.Action("add_exchange", json.dumps(own).encode()))
    print("registered", *(result.body.to_pybytes().decode() for result in added))

    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"my_own"))

    def send():
        writer.begin(schema)
        for start in range(0, rows, 100_000):
            writer.write_batch(pa.record_batch([pa.array(range(start, min(start + 100_000, rows)))], schema))
        writer.done_writing()

    back = processed = total = 0
    with writer:
        sender = threading.Thread(target=send)
        sender.start()
        for chunk in reader:
            back += chunk.data.num_rows
            processed += pc.sum(chunk.data["processed"]).as_py() or 0
            total += pc.sum(chunk.data["id"]).as_py() or 0
        sender.join()

    assert (back, processed, total) == (rows, rows, rows * (rows - 1) // 2)
    print(f"{back} rows came back, all of them with processed = true")
    list(client.do_action(flight.Action("drop_exchange", b'{"name": "my_own"}')))
