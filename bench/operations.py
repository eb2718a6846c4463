"""What is measured, written once with the stock pyarrow client and run against every system.

Each operation returns the rows it moved. `kept` collects the batches that reached the client, so that they can be
verified; in measured rounds it is None and batches are dropped as they come.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow.flight as flight

ALL_FLIGHTS = flight.Ticket(b"SELECT * FROM flights")
ARRIVED = flight.FlightDescriptor.for_path("arrived")
PROCESSED = flight.FlightDescriptor.for_command(b"processed")


def get(first, second, batches, kept=None):
    return drain(first.client.do_get(ALL_FLIGHTS), kept)


def put(first, second, batches, kept=None):
    writer, _ = first.client.do_put(ARRIVED, batches[0].schema)
    with writer:
        for batch in batches:
            writer.write_batch(batch)
    return sum(batch.num_rows for batch in batches)


def relay(first, second, batches, kept=None):
    """The client passes each batch on as it comes and never holds the table."""
    rows = 0
    reader = first.client.do_get(ALL_FLIGHTS)
    writer, _ = second.client.do_put(ARRIVED, reader.schema)
    with writer:
        for chunk in reader:
            rows += chunk.data.num_rows
            writer.write_batch(chunk.data)
    return rows


def pull(first, second, batches, kept=None, verify=False):
    """The second server fetches the table itself; with `verify` its answer waits for the hashes of both sides."""
    order = {"from": first.location, "table": "flights", "to": "arrived", "mode": "create", "verify": verify}
    action = flight.Action("transfer", json.dumps(order).encode())
    last = [json.loads(result.body.to_pybytes()) for result in second.client.do_action(action)][-1]
    if last["verified"] is not verify:
        raise RuntimeError(f"the transfer was not verified as asked: {last}")
    return last["rows"]


def exchange(first, second, batches, kept=None):
    """One thread sends while this one reads every row back."""
    writer, reader = first.client.do_exchange(PROCESSED)

    def send():
        writer.begin(batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()

    with ThreadPoolExecutor(1) as pool, writer:
        sending = pool.submit(send)
        rows = drain(reader, kept, every_row_has="processed")
        sending.result()
    return rows


def drain(reader, kept, every_row_has=None):
    rows = 0
    for chunk in reader:
        batch = chunk.data
        if every_row_has and batch.column(every_row_has).true_count != batch.num_rows:
            raise RuntimeError(f"{every_row_has} is not true in every row")
        rows += batch.num_rows
        if kept is not None:
            kept.append(batch)
    return rows
