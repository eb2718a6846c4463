"""The baseline: a pyarrow Flight server over an in-memory Python DuckDB.

It stands for the way such a server is usually written in Python, and for the demonstration Mallard grew out of: every
operation holds the whole table. DoGet runs the query to its end, then streams the Arrow table; DoPut reads the whole
stream, then inserts it; DoExchange reads everything, appends the column, then answers everything. A transfer between
two of these servers is the client's work: DoGet from one, DoPut to the other.

    python bench/peers/pyarrow_server.py --port 8815
"""

import argparse
import signal

import duckdb
import pyarrow as pa
import pyarrow.flight as flight


class Baseline(flight.FlightServerBase):
    def __init__(self, location, path):
        self.database = duckdb.connect(path)
        # The first call may arrive before this returns.
        super().__init__(location)

    def do_get(self, context, ticket):
        # A cursor per call: one shared connection answers errors as soon as two clients meet.
        return flight.RecordBatchStream(self.database.cursor().sql(ticket.ticket.decode()).to_arrow_table())

    def do_put(self, context, descriptor, reader, writer):
        table = '"' + descriptor.path[0].decode().replace('"', '""') + '"'
        cursor = self.database.cursor()
        cursor.register("incoming", reader.read_all())
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM incoming LIMIT 0").fetchall()
        cursor.execute(f"INSERT INTO {table} FROM incoming").fetchall()

    def do_exchange(self, context, descriptor, reader, writer):
        table = reader.read_all()
        answer = table.append_column("processed", pa.repeat(True, table.num_rows))
        writer.begin(answer.schema)
        writer.write_table(answer)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--port", type=int, default=8815)
    arguments.add_argument("--db", default=":memory:")
    arguments = arguments.parse_args()
    server = Baseline(f"grpc://127.0.0.1:{arguments.port}", arguments.db)
    signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
    server.serve()


if __name__ == "__main__":
    main()
