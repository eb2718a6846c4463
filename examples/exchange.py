# python examples/exchange.py processed      (needs pyarrow; starts nothing: run `mallard serve` first)
"""Streams rows through an exchanger: one thread sends while the main one reads the answers as they come."""

import os
import sys
import threading

import pyarrow as pa
import pyarrow.flight as flight

exchanger = sys.argv[1] if len(sys.argv) > 1 else "processed"
batches = [pa.record_batch({"id": pa.array(range(n, n + 1000))}) for n in range(0, 100_000, 1000)]

with flight.connect(os.environ.get("MALLARD_URI", "grpc://127.0.0.1:8815")) as client:
    options = flight.FlightCallOptions()
    if "MALLARD_USER" in os.environ:
        token = client.authenticate_basic_token(os.environ["MALLARD_USER"], os.environ["MALLARD_PASSWORD"])
        options = flight.FlightCallOptions(headers=[token])

    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(exchanger.encode()), options)

    def send():
        writer.begin(batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()

    with writer:
        # Nobody holds the whole stream, so whoever only sends would in the end wait for answers to be read.
        sender = threading.Thread(target=send)
        sender.start()
        rows = sum(chunk.data.num_rows for chunk in reader)
        sender.join()

    print(f"sent {sum(batch.num_rows for batch in batches)} rows, got {rows} back with columns {reader.schema.names}")
