# python examples/query.py "SELECT 42 AS answer"      (needs pyarrow; starts nothing: run `mallard serve` first)
"""Sends SQL as a ticket and prints each batch of rows as it arrives."""

import os
import sys

import pyarrow.flight as flight

sql = sys.argv[1] if len(sys.argv) > 1 else "SELECT i, i * i AS square FROM range(5) AS numbers(i)"

with flight.connect(os.environ.get("MALLARD_URI", "grpc://127.0.0.1:8815")) as client:
    options = flight.FlightCallOptions()
    if "MALLARD_USER" in os.environ:
        token = client.authenticate_basic_token(os.environ["MALLARD_USER"], os.environ["MALLARD_PASSWORD"])
        options = flight.FlightCallOptions(headers=[token])

    for chunk in client.do_get(flight.Ticket(sql.encode()), options):
        for row in chunk.data.to_pylist():
            print(row)
