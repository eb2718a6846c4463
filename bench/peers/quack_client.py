"""A DuckDB that has attached a Quack server, with the loop of clients/protocol.py.

Pulling is its own work, since a DuckDB that attaches a server is all that Quack needs on the other side: it stands for
the second server, and a location of null is its own database. Nothing is relayed, and Quack has no exchange.
"""

from functools import partial

import pyarrow as pa

from clients.one_row import one_row
from clients.protocol import Arrivals, measured, serve
from peers.quack_server import TOKEN, connect
from workloads import BATCH_ROWS, FINGERPRINT, Workload


class QuackClient:
    def __init__(self):
        self.database = connect()
        self.database.execute(f"CREATE SECRET (TYPE quack, TOKEN '{TOKEN}')")
        self.attached = {}

    def generate(self, request):
        workload = Workload(request["workload"], request["rows"])
        with measured() as answer:
            table = self.database.sql(workload.select).to_arrow_table().combine_chunks()
            table = pa.Table.from_batches(table.to_batches(max_chunksize=BATCH_ROWS))
        self.database.register("incoming", table)
        return answer | {"rows": table.num_rows} | self._hash_of("incoming")

    def get(self, request):
        remote = self._attached(request["servers"][0])
        with measured() as answer:
            arrivals = Arrivals(request.get("verify"))
            for batch in self.database.sql(f"FROM {remote}.{request['table']}").to_arrow_reader(BATCH_ROWS):
                arrivals.add(batch)
        answer |= arrivals.answer()
        if arrivals.kept is not None:
            self.database.register("received", pa.Table.from_batches(arrivals.kept))
            answer |= self._hash_of("received")
            self.database.unregister("received")
        return answer

    def put(self, request):
        remote = self._attached(request["servers"][0])
        with measured() as answer:
            answer["rows"] = self._changed(f"CREATE TABLE {remote}.{request['to']} AS FROM incoming")
        return answer

    def pull(self, request):
        remote = self._attached(request["servers"][0])
        with measured() as answer:
            answer["rows"] = self._changed(f"CREATE TABLE {request['to']} AS FROM {remote}.{request['table']}")
        return answer

    def small(self, request):
        remote = self._attached(request["servers"][0])
        ask = f"FROM {remote}.query('SELECT 1')"
        return one_row(request, lambda: partial(fetch, self.database.cursor(), ask))

    def sql(self, request):
        sql = request["sql"]
        location = request["servers"][0]
        if location is not None:
            sql = f"FROM {self._attached(location)}.query({quoted(sql)})"
        result = self.database.execute(sql)
        names = [column[0] for column in result.description]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        # The attached catalog has not noticed what was created or dropped by text: it finds no new table, and CREATE
        # TABLE AS of a name that it still knows moves no rows and answers none, without an error.
        self.database.execute("CALL quack_clear_cache()")
        return {"rows": rows}

    def _changed(self, sql):
        return self.database.execute(sql).fetchall()[0][0]

    def _hash_of(self, table):
        return {"hash": self.database.execute(FINGERPRINT.format(table)).fetchall()[0][1]}

    def _attached(self, location):
        if location not in self.attached:
            name = f"remote_{len(self.attached)}"
            self.database.execute(f"ATTACH {quoted(location)} AS {name}")
            self.attached[location] = name
        return self.attached[location]


def fetch(cursor, sql):
    return cursor.execute(sql).fetchall()


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


if __name__ == "__main__":
    serve(QuackClient())
