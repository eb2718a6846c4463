"""The stock pyarrow client, against any Flight server. protocol.py has its loop.

It also answers `sql`, with which run.py prepares and checks tables, and `scan` and `insert`, which are DuckDB's part of
an operation without any server: from a table in this process to Arrow, and from Arrow to one.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import duckdb
import pyarrow as pa
import pyarrow.flight as flight

from clients.one_row import one_row
from clients.protocol import Arrivals, measured, serve
from workloads import BATCH_ROWS, FINGERPRINT, Workload


EXPLICIT = (b"x-mallard-end", b"explicit")
EXPLICIT_END = flight.FlightCallOptions(headers=[EXPLICIT])


class PyarrowClient:
    def __init__(self):
        self.connections = {}
        self.batches = []
        self.engine = duckdb.connect()

    def generate(self, request):
        workload = Workload(request["workload"], request["rows"])
        with measured() as answer:
            table = duckdb.sql(workload.select).to_arrow_table().combine_chunks()
            self.batches = table.to_batches(max_chunksize=BATCH_ROWS)
        self.engine = duckdb.connect()
        answer |= {"rows": table.num_rows, "bytes": sum(map(size_of_values, self.batches))}
        return answer | hash_of(self.batches)

    def get(self, request):
        with measured() as answer:
            arrivals = Arrivals(request.get("verify"))
            for chunk in self._first(request).do_get(all_of(request), compressed(request)):
                arrivals.add(chunk.data)
        return answer | arrivals.answer() | hash_of(arrivals.kept)

    def put(self, request):
        with measured() as answer:
            writer, _ = self._first(request).do_put(
                target(request), self.batches[0].schema, compressed(request, EXPLICIT)
            )
            with writer:
                for batch in self.batches:
                    writer.write_batch(batch)
                writer.write_metadata(end_of(sum(batch.num_rows for batch in self.batches)))
        return answer | {"rows": sum(batch.num_rows for batch in self.batches)}

    def relay(self, request):
        """Each batch is passed on as it comes; this process never holds the table."""
        rows = 0
        with measured() as answer:
            reader = self._first(request).do_get(all_of(request))
            writer, _ = self._connected(request["servers"][1]).do_put(target(request), reader.schema, EXPLICIT_END)
            with writer:
                for chunk in reader:
                    rows += chunk.data.num_rows
                    writer.write_batch(chunk.data)
                writer.write_metadata(end_of(rows))
        return answer | {"rows": rows}

    def pull(self, request):
        """The second server fetches the table itself; with `verify` its answer waits for the hashes of both sides."""
        first, second = request["servers"]
        verify = request.get("verify", False)
        order = {"from": first, "table": request["table"], "to": request["to"], "mode": "create", "verify": verify}
        action = flight.Action("transfer", json.dumps(order).encode())
        with measured() as answer:
            results = list(self._connected(second).do_action(action))
        last = json.loads(results[-1].body.to_pybytes())
        if last["verified"] is not verify:
            raise RuntimeError(f"the transfer was not verified as asked: {last}")
        return answer | {"rows": last["rows"]}

    def register(self, request):
        """Makes an exchanger known to the server: the body of the action add_exchange."""
        body = json.dumps(request["exchanger"]).encode()
        list(self._first(request).do_action(flight.Action("add_exchange", body)))
        return {}

    def exchange(self, request):
        """One thread sends while this one reads every row back."""
        sent = 0

        def send():
            nonlocal sent
            writer.begin(self.batches[0].schema)
            for batch in self.batches:
                writer.write_batch(batch)
                sent += batch.num_rows
            writer.done_writing()

        with measured() as answer:
            arrivals = Arrivals(request.get("verify"))
            writer, reader = self._first(request).do_exchange(command(request["exchanger"]))
            with ThreadPoolExecutor(1) as pool, writer:
                sending = pool.submit(send)
                for chunk in reader:
                    if not arrivals.rows:
                        answer["first_batch_after_input_rows"] = sent
                    if chunk.data.column("processed").true_count != chunk.data.num_rows:
                        raise RuntimeError("processed is not true in every row")
                    arrivals.add(chunk.data)
                sending.result()
        return answer | arrivals.answer() | hash_of(arrivals.kept)

    def small(self, request):
        return one_row(request, lambda: partial(ask, connect(request["servers"][0]), "SELECT 1"))

    def slow(self, request):
        """Reads one batch a second, for some seconds, then leaves."""
        with measured() as answer:
            reader = self._first(request).do_get(all_of(request))
            rows = 0
            end = time.monotonic() + request["seconds"]
            for chunk in reader:
                rows += chunk.data.num_rows
                if time.monotonic() > end:
                    break
                time.sleep(1)
            reader.cancel()
        return answer | {"rows": rows}

    def scan(self, request):
        table = request["table"]
        if not self.engine.execute("FROM duckdb_tables() WHERE table_name = ?", [table]).fetchall():
            self._insert(table)
        with measured() as answer:
            arrivals = Arrivals(False)
            for batch in self.engine.sql(f"FROM {table}").to_arrow_reader(BATCH_ROWS):
                arrivals.add(batch)
        return answer | arrivals.answer()

    def insert(self, request):
        with measured() as answer:
            self._insert(request["to"])
        self.engine.execute(f"DROP TABLE {request['to']}")
        return answer | {"rows": sum(batch.num_rows for batch in self.batches)}

    def sql(self, request):
        return {"rows": ask(self._first(request), request["sql"]).to_pylist()}

    def _insert(self, name):
        self.engine.register("incoming", pa.Table.from_batches(self.batches))
        self.engine.execute(f"CREATE TABLE {name} AS FROM incoming").fetchall()
        self.engine.unregister("incoming")

    def _first(self, request):
        return self._connected(request["servers"][0])

    def _connected(self, location):
        if location not in self.connections:
            self.connections[location] = connect(location)
        return self.connections[location]


def connect(location):
    # The authority that gRPC's C++ client makes of a socket's path is none that HTTP/2 servers in Rust take.
    options = [("grpc.default_authority", "localhost")] if location.startswith("grpc+unix:") else []
    return flight.connect(location, generic_options=options)


def ask(connection, sql):
    return connection.do_get(flight.Ticket(sql.encode())).read_all()


def end_of(rows):
    """The last message of a DoPut: everything has been sent. Other servers than Mallard pass over it."""
    return json.dumps({"end": True, "rows": rows}).encode()


def compressed(request, *headers):
    """Call options: the IPC compression that the request names, asked of the server and done here."""
    codec = request.get("compression", "none")
    return flight.FlightCallOptions(
        headers=[*headers, *([(b"x-mallard-ipc-compression", codec.encode())] if codec != "none" else [])],
        write_options=pa.ipc.IpcWriteOptions(compression=None if codec == "none" else codec),
    )


def all_of(request):
    return flight.Ticket(f"SELECT * FROM {request['table']}".encode())


def target(request):
    return flight.FlightDescriptor.for_path(request["to"])


def command(name):
    return flight.FlightDescriptor.for_command(name.encode())


def size_of_values(batch):
    """Without the bitmaps of columns that have no nulls: who leaves them out sends no less of the table."""
    bitmaps = sum(column.buffers()[0] is not None for column in batch.columns)
    return batch.nbytes - bitmaps * -(-batch.num_rows // 8)


def hash_of(batches):
    """An answer's `hash`, where batches were kept."""
    if batches is None:
        return {}
    table = pa.Table.from_batches(batches)
    if "processed" in table.column_names:
        table = table.drop_columns("processed")
    with duckdb.connect() as connection:
        connection.register("received", table)
        return {"hash": connection.execute(FINGERPRINT.format("received")).fetchall()[0][1]}


if __name__ == "__main__":
    serve(PyarrowClient())
