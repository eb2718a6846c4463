"""The ADBC driver for Flight SQL, which is written in Go, through its Python DB-API."""

import datetime
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from importlib.metadata import version

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
from adbc_driver_manager import DatabaseOptions

from matrix import Client

ADBC = Client(
    name="ADBC",
    version=f"adbc-driver-flightsql {version('adbc-driver-flightsql')}",
    language="python",
    snippet="""\
# pip install adbc-driver-flightsql pyarrow
import adbc_driver_flightsql.dbapi as flightsql

with flightsql.connect(
    "{uri}", db_kwargs={{"username": "{user}", "password": "{password}"}}, autocommit=True
) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT 6 * 7 AS answer")
    print(cursor.fetch_arrow_table())
""",
    about="The same driver serves Go, C, R, Ruby and every program with an ADBC driver manager.",
)


def connect(stage, autocommit=True, user=None, password=None, **options):
    options = {
        DatabaseOptions.USERNAME.value: user or stage.user,
        DatabaseOptions.PASSWORD.value: password or stage.password,
    } | options
    return dbapi.connect(stage.uri, db_kwargs=options, autocommit=autocommit)


def rows(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    return cursor.fetchall()


@ADBC.check("login")
def login(stage):
    with connect(stage) as connection, connection.cursor() as cursor:
        assert rows(cursor, "SELECT 1") == [(1,)]
    refused(lambda: connect(stage, password="wrong").cursor().execute("SELECT 1"), "unauthenticated")


@ADBC.check("query")
def query(stage):
    with connect(stage) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT i, 'row ' || i AS label FROM range(300000) AS numbers(i) ORDER BY i")
        assert [column[0] for column in cursor.description] == ["i", "label"]
        table = cursor.fetch_arrow_table()
        assert table.schema == pa.schema([("i", pa.int64()), ("label", pa.string())]), table.schema
        assert table["i"].to_pylist() == list(range(300_000))
        # No row, and still the columns.
        cursor.execute("SELECT 1::SMALLINT AS small WHERE false")
        assert cursor.fetch_arrow_table().schema == pa.schema([("small", pa.int16())])


@ADBC.check("small queries")
def small_queries(stage):
    with connect(stage) as connection, connection.cursor() as cursor:
        for number in range(200):
            assert rows(cursor, f"SELECT {number}") == [(number,)]


@ADBC.check("parameters")
def parameters(stage):
    values = (42, "it's", None, 1.5, True, b"\x00\xff", datetime.date(2024, 2, 29), Decimal("12.34"))
    with connect(stage) as connection, connection.cursor() as cursor:
        marks = ", ".join("?" * len(values))
        [answer] = rows(cursor, f"SELECT {marks}", values)
        assert answer == values, answer
        assert rows(cursor, "SELECT count(*) FROM range(10) AS r(i) WHERE i < $1", (4,)) == [(4,)]
        # The same number twice, and numbers out of order.
        assert rows(cursor, "SELECT $2::INTEGER - $1::INTEGER + $1::INTEGER", (3, 10)) == [(10,)]


@ADBC.check("executemany")
def executemany(stage):
    with connect(stage) as connection, connection.cursor() as cursor, stage.table(cursor, "id INTEGER, name VARCHAR") as t:
        people = [(number, f"name {number}") for number in range(1000)]
        cursor.executemany(f"INSERT INTO {t} VALUES (?, ?)", people)
        assert rows(cursor, f"FROM {t} ORDER BY id") == people


@ADBC.check("DDL once")
def ddl_once(stage):
    t = stage.name()
    with connect(stage) as connection, connection.cursor() as cursor:
        # A second run would say that it is there already.
        cursor.execute(f"CREATE TABLE {t} (i INTEGER)")
        cursor.execute(f"INSERT INTO {t} VALUES (1), (2)")
        assert rows(cursor, f"FROM {t}") == [(1,), (2,)]
        cursor.execute(f"UPDATE {t} SET i = i + 1")
        assert rows(cursor, f"FROM {t}") == [(2,), (3,)]
        # With a parameter, which makes it a prepared statement.
        cursor.execute(f"INSERT INTO {t} VALUES (?)", (10,))
        assert rows(cursor, f"SELECT count(*), sum(i)::INTEGER FROM {t}") == [(3, 15)]
        cursor.executemany(f"DELETE FROM {t} WHERE i = ?", [(10,), (3,)])
        assert rows(cursor, f"FROM {t}") == [(2,)]
        cursor.execute(f"DROP TABLE {t}")
        refused(lambda: cursor.execute(f"FROM {t}"), t)


@ADBC.check("transactions")
def transactions(stage):
    with connect(stage, autocommit=False) as writing, connect(stage) as watching:
        with writing.cursor() as cursor, watching.cursor() as outside, stage.table(outside, "i INTEGER") as t:
            cursor.execute(f"INSERT INTO {t} VALUES (1)")
            assert rows(cursor, f"FROM {t}") == [(1,)]
            assert rows(outside, f"FROM {t}") == []
            writing.commit()
            assert rows(outside, f"FROM {t}") == [(1,)]
            cursor.execute(f"INSERT INTO {t} VALUES (2)")
            writing.rollback()
            assert rows(cursor, f"FROM {t}") == [(1,)]
            # DDL is a part of it, too.
            cursor.execute(f"CREATE TABLE {t}_later (i INTEGER)")
            assert writing.adbc_get_table_schema(f"{t}_later").names == ["i"]
            writing.rollback()
            refused(lambda: outside.execute(f"FROM {t}_later"), "later")
            # An error does not end the connection.
            refused(lambda: cursor.execute("SELECT nothing_of_that_name"), "nothing_of_that_name")
            writing.rollback()
            assert rows(cursor, "SELECT 1") == [(1,)]
            writing.rollback()


@ADBC.check("ingest")
def ingest(stage):
    people = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["Ada", None, "Grace"]})
    more = pa.table({"id": pa.array([4], pa.int64()), "name": ["Mary"]})
    t = stage.name()
    with connect(stage) as connection, connection.cursor() as cursor:
        count = lambda name: rows(cursor, f"SELECT count(*), sum(id)::INTEGER FROM {name}")  # noqa: E731
        refused(lambda: cursor.adbc_ingest(t, people, mode="append"), t)
        assert cursor.adbc_ingest(t, people, mode="create") == 3
        refused(lambda: cursor.adbc_ingest(t, people, mode="create"), t)
        assert cursor.adbc_ingest(t, more, mode="append") == 1
        assert count(t) == [(4, 10)]
        assert cursor.adbc_ingest(t, more, mode="create_append") == 1
        assert count(t) == [(5, 14)]
        assert cursor.adbc_ingest(t, people, mode="replace") == 3
        assert rows(cursor, f"FROM {t} ORDER BY id") == [(1, "Ada"), (2, None), (3, "Grace")]
        assert cursor.adbc_ingest(f"{t}_new", more, mode="create_append") == 1
        # In a schema of its own.
        cursor.execute(f"CREATE SCHEMA {t}_schema")
        assert cursor.adbc_ingest("people", people, mode="create", db_schema_name=f"{t}_schema") == 3
        assert count(f"{t}_schema.people") == [(3, 6)]
        # Temporary: there for this connection and no other. The cursor above keeps the schema that it was given.
        with connection.cursor() as temporary:
            assert temporary.adbc_ingest(f"{t}_here", people, mode="create", temporary=True) == 3
        assert count(f"{t}_here") == [(3, 6)]
        with connect(stage) as other, other.cursor() as elsewhere:
            refused(lambda: elsewhere.execute(f"FROM {t}_here"), t)
    with connect(stage) as connection, connection.cursor() as cursor:
        # Many batches, read as a stream.
        batches = pa.table({"id": pa.array(range(200_000), pa.int64())}).to_reader(max_chunksize=10_000)
        assert cursor.adbc_ingest(f"{t}_big", batches, mode="create") == 200_000
        assert rows(cursor, f"SELECT count(DISTINCT id) FROM {t}_big") == [(200_000,)]
        # A stream that does not fit leaves nothing.
        wrong = pa.table({"id": pa.array(["no number"])})
        refused(lambda: cursor.adbc_ingest(t, wrong, mode="append"), "id")
        assert rows(cursor, f"SELECT count(*) FROM {t}") == [(3,)]
    with connect(stage, autocommit=False) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(t, more, mode="append")
        cursor.adbc_ingest(f"{t}_rolled_back", more, mode="create")
        connection.rollback()
        assert rows(cursor, f"SELECT count(*) FROM {t}") == [(3,)]
        refused(lambda: cursor.execute(f"FROM {t}_rolled_back"), "rolled_back")
        connection.rollback()
        cursor.adbc_ingest(t, more, mode="append")
        connection.commit()
    with connect(stage) as connection, connection.cursor() as cursor:
        assert rows(cursor, f"SELECT count(*) FROM {t}") == [(4,)]


@ADBC.check("catalog")
def catalog(stage):
    s = stage.name()
    with connect(stage) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {s}")
        cursor.execute(f"CREATE TABLE {s}.a_b (id INTEGER PRIMARY KEY, amount DECIMAL(10, 2) NOT NULL, note VARCHAR)")
        cursor.execute(f"CREATE TABLE {s}.axb (i INTEGER)")
        cursor.execute(f"CREATE VIEW {s}.seen AS SELECT * FROM {s}.a_b")

        def objects(depth, **filters):
            return connection.adbc_get_objects(depth=depth, **filters).read_all().to_pylist()

        [found] = objects("catalogs")
        assert found["catalog_name"] == "memory", found
        [found] = objects("db_schemas", db_schema_filter=s)
        assert [schema["db_schema_name"] for schema in found["catalog_db_schemas"]] == [s], found
        [found] = objects("tables", db_schema_filter=s)
        [schema] = found["catalog_db_schemas"]
        named = {table["table_name"]: table["table_type"] for table in schema["db_schema_tables"]}
        assert named == {"a_b": "TABLE", "axb": "TABLE", "seen": "VIEW"}, named

        def tables(**filters):
            found = objects("tables", db_schema_filter=s, **filters)
            schemas = [schema for one in found for schema in one["catalog_db_schemas"] or []]
            return [table["table_name"] for schema in schemas for table in schema["db_schema_tables"] or []]

        assert tables(table_name_filter="a%") == ["a_b", "axb"]
        assert tables(table_name_filter="a_b") == ["a_b", "axb"]
        assert tables(table_name_filter="a\\_b") == ["a_b"]
        assert tables(table_types_filter=["VIEW"]) == ["seen"]
        [found] = objects("columns", db_schema_filter=s, table_name_filter="a\\_b")
        [schema] = found["catalog_db_schemas"]
        [table] = schema["db_schema_tables"]
        columns = [(column["column_name"], column["ordinal_position"]) for column in table["table_columns"]]
        assert columns == [("id", 1), ("amount", 2), ("note", 3)], columns
        types = {column["column_name"]: column["xdbc_type_name"] for column in table["table_columns"]}
        assert types == {"id": "INTEGER", "amount": "DECIMAL(10,2)", "note": "VARCHAR"}, types
        assert connection.adbc_get_table_types() == ["LOCAL TEMPORARY", "TABLE", "VIEW"]


@ADBC.check("table schema")
def table_schema(stage):
    t = stage.name()
    with connect(stage) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {t} (id BIGINT NOT NULL, seen TIMESTAMP WITH TIME ZONE, tags VARCHAR[])")
        schema = connection.adbc_get_table_schema(t)
        assert [(field.name, field.nullable) for field in schema] == [("id", False), ("seen", True), ("tags", True)]
        assert pa.types.is_int64(schema.field("id").type) and pa.types.is_list(schema.field("tags").type)
        assert schema.field("seen").type.unit == "us" and schema.field("seen").type.tz is not None
        assert connection.adbc_get_table_schema(t, db_schema_filter="main").equals(schema)
        refused(lambda: connection.adbc_get_table_schema("no_such_table"), "no_such_table", "not found")


@ADBC.check("server info")
def server_info(stage):
    with connect(stage) as connection:
        info = connection.adbc_get_info()
        assert info["vendor_name"] == "Mallard" and info["vendor_version"] == stage.version, info
        assert info["vendor_arrow_version"], info


@ADBC.check("cancel")
def cancel(stage):
    with connect(stage) as connection, closing(connection.cursor()) as cursor:
        endless = "SELECT count(*) FROM range(1000000000000) AS endless(i), range(1000) AS b(j) WHERE hash(i, j) = 0"
        outcome = []

        def run():
            try:
                cursor.execute(endless)
                outcome.append(cursor.fetchall())
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        stage.until(lambda: stage.running("endless"), "the query runs")
        cursor.adbc_cancel()
        thread.join(30)
        assert not thread.is_alive() and isinstance(outcome[0], Exception), outcome
        assert "cancel" in str(outcome[0]).lower(), outcome
        stage.until(lambda: not stage.running("endless"), "the server's query ends")
        with connection.cursor() as next_one:
            assert rows(next_one, "SELECT 1") == [(1,)]


@ADBC.check("64 cursors")
def many_cursors(stage):
    with connect(stage) as connection:
        cursors = [connection.cursor() for _ in range(64)]

        def ask(number):
            cursor = cursors[number]
            cursor.execute(f"SELECT i + {number} AS i FROM range(2000) AS r(i) ORDER BY i")
            table = cursor.fetch_arrow_table()
            return table["i"].to_pylist() == list(range(number, number + 2000))

        with ThreadPoolExecutor(64) as pool:
            assert all(pool.map(ask, range(64)))
        for cursor in cursors:
            cursor.close()


@ADBC.check("errors")
def errors(stage):
    with connect(stage) as connection, connection.cursor() as cursor, stage.table(cursor, "i INTEGER PRIMARY KEY") as t:
        refused(lambda: cursor.execute("SELEC 1"), "syntax error")
        refused(lambda: cursor.execute("SELECT missing_column"), "missing_column")
        refused(lambda: cursor.execute("FROM missing_table"), "missing_table", "not found")
        refused(lambda: cursor.execute("SELECT 1; SELEC 2"), "statement 2 of 2")
        cursor.execute(f"INSERT INTO {t} VALUES (1)")
        refused(lambda: cursor.execute(f"INSERT INTO {t} VALUES (1)"), "constraint")
        refused(lambda: cursor.execute("SELECT 'x'::INTEGER").fetchall(), "convert")
        assert rows(cursor, f"FROM {t}") == [(1,)]


@ADBC.check("types")
def types(stage):
    sql = """SELECT 12.34::DECIMAL(10, 2) AS d, TIMESTAMPTZ '2024-02-29 12:00:00+02' AS tz,
        TIMESTAMP '2024-02-29 12:00:00.123456' AS ts, DATE '1969-12-31' AS da, TIME '23:59:59.999999' AS ti,
        INTERVAL '1 month 2 days 3 seconds' AS iv, [1, NULL, 3] AS li, {'a': 1, 'b': 'x'} AS st, MAP {'k': 1} AS ma,
        '\\x00\\xFF'::BLOB AS bl, 'sad'::ENUM ('happy', 'sad') AS en, 18446744073709551615::UBIGINT AS ub, NULL AS nu"""
    with connect(stage) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        [row] = cursor.fetch_arrow_table().to_pylist()
        utc = datetime.timezone.utc
        assert row["d"] == Decimal("12.34")
        assert row["tz"] == datetime.datetime(2024, 2, 29, 10, tzinfo=utc), row["tz"]
        assert row["ts"] == datetime.datetime(2024, 2, 29, 12, 0, 0, 123456)
        assert row["da"] == datetime.date(1969, 12, 31) and row["ti"] == datetime.time(23, 59, 59, 999999)
        assert tuple(row["iv"]) == (1, 2, 3_000_000_000), row["iv"]
        assert row["li"] == [1, None, 3] and row["st"] == {"a": 1, "b": "x"} and row["ma"] == [("k", 1)]
        assert row["bl"] == b"\x00\xff" and row["en"] == "sad" and row["ub"] == 2**64 - 1 and row["nu"] is None


@ADBC.check("plain types")
def plain_types(stage):
    sql = """SELECT sum(i) AS total, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID AS id, 'ok'::ENUM ('ok') AS mood,
        '101'::BIT AS bits, '{}'::JSON AS j, '01:02:03+02'::TIMETZ AS t, [2::HUGEINT] AS li FROM range(4) AS r(i)"""
    expected = {"total": Decimal(6), "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "mood": "ok", "bits": "101", "j": "{}",
                "t": "01:02:03+02", "li": [Decimal(2)]}
    with connect(stage) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        table = cursor.fetch_arrow_table()
        assert table.to_pylist() == [expected], table.to_pylist()
        assert "extension" not in str(table.schema), table.schema
        with stage.table(cursor, "id UUID, n HUGEINT") as t:
            schema = connection.adbc_get_table_schema(t)
            assert schema.types == [pa.string(), pa.decimal128(38, 0)], schema
        connection.adbc_connection.set_options(**{"adbc.flight.sql.session.optionbool.lossless_types": "true"})
        cursor.execute(sql)
        assert "arrow.uuid" in str(cursor.fetch_arrow_table().schema)
    asking = {"adbc.flight.sql.rpc.call_header.x-mallard-types": "lossless"}
    with connect(stage, **asking) as other, other.cursor() as cursor:
        cursor.execute(sql)
        assert "arrow.uuid" in str(cursor.fetch_arrow_table().schema)


@ADBC.check("reading role")
def reading_role(stage):
    with connect(stage) as admin, admin.cursor() as cursor, stage.table(cursor, "i INTEGER") as t:
        with connect(stage, user=stage.reader) as connection, connection.cursor() as reading:
            assert rows(reading, f"FROM {t}") == []
            refused(lambda: reading.execute(f"INSERT INTO {t} VALUES (1)"), "role")
            refused(lambda: reading.adbc_ingest(t, pa.table({"i": [1]}), mode="append"), "role")
        assert rows(cursor, f"FROM {t}") == []


ADBC.lacks("the driver does not ask for keys", "keys")
ADBC.lacks("see pandas and polars", "data frame out", "data frame in")


def refused(call, *words):
    """The call fails with an error that holds one of these words."""
    try:
        call()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".lower().replace("_", " ")
        assert any(word.lower().replace("_", " ") in text for word in words), text
        return
    raise AssertionError(f"went through, and should have failed with one of {words}")

