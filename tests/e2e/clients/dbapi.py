"""flightsql-dbapi, a Flight SQL client in Python over pyarrow, and SQLAlchemy over it."""

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from importlib.metadata import version

import flightsql.sqlalchemy  # noqa: F401  registers the dialect
import pyarrow as pa
import sqlalchemy
from flightsql import FlightSQLClient
from flightsql import connect as dbapi

from adbc import refused
from matrix import Client

DBAPI = Client(
    name="flightsql-dbapi",
    version=f"flightsql-dbapi {version('flightsql-dbapi')}",
    language="python",
    snippet="""\
# pip install flightsql-dbapi
from flightsql import FlightSQLClient, connect

client = FlightSQLClient(host="{host}", port={port}, user="{user}", password="{password}", insecure=True)
with connect(client) as connection:
    print(connection.cursor().execute("SELECT 6 * 7 AS answer").fetchall())
""",
)

ALCHEMY = Client(
    name="SQLAlchemy",
    version=f"SQLAlchemy {version('sqlalchemy')} over flightsql-dbapi",
    language="python",
    snippet="""\
# pip install flightsql-dbapi, which brings SQLAlchemy 1.4
import flightsql.sqlalchemy  # registers the dialect
import sqlalchemy

engine = sqlalchemy.create_engine(
    "datafusion+flightsql://{user}:{password}@{host}:{port}?insecure=True&feature-sqlalchemy-prepared-statements=on"
)
with engine.connect() as connection:
    print(connection.execute("SELECT 6 * 7 AS answer").fetchall())
""",
)


def client(stage, user=None, password=None):
    return FlightSQLClient(
        host=stage.host, port=stage.port, user=user or stage.user, password=password or stage.password, insecure=True
    )


def connection(stage, **who):
    return dbapi(client(stage, **who))


def rows(cursor, sql, parameters=None):
    return [tuple(row) for row in cursor.execute(sql, parameters).fetchall()]


@DBAPI.check("login")
def login(stage):
    with connection(stage) as here:
        assert rows(here.cursor(), "SELECT 1") == [(1,)]
    refused(lambda: client(stage, password="wrong"), "unauthenticated")


@DBAPI.check("query")
def query(stage):
    with connection(stage) as here:
        cursor = here.cursor().execute("SELECT i, 'row ' || i AS label FROM range(100000) AS r(i) ORDER BY i")
        assert [column[0] for column in cursor.description] == ["i", "label"]
        assert cursor.fetchone() == [0, "row 0"]
        assert [row[0] for row in cursor.fetchall()] == list(range(1, 100_000))


@DBAPI.check("small queries")
def small_queries(stage):
    with connection(stage) as here:
        cursor = here.cursor()
        for number in range(100):
            assert rows(cursor, f"SELECT {number}") == [(number,)]


@DBAPI.check("parameters")
def parameters(stage):
    with connection(stage) as here:
        # The client sends each value as a dense union.
        assert rows(here.cursor(), "SELECT ?, ?, ?", (42, "it's", 1.5)) == [(42, "it's", 1.5)]
        assert rows(here.cursor(), "SELECT count(*) FROM range(10) AS r(i) WHERE i < ?", (4,)) == [(4,)]


@DBAPI.check("executemany")
def executemany(stage):
    with connection(stage) as here, stage.made(lambda sql: here.cursor().execute(sql), "id BIGINT, name VARCHAR") as t:
        here.cursor().executemany(f"INSERT INTO {t} VALUES (?, ?)", [(number, f"name {number}") for number in range(20)])
        assert rows(here.cursor(), f"SELECT count(*), sum(id)::BIGINT FROM {t}") == [(20, 190)]


@DBAPI.check("DDL once")
def ddl_once(stage):
    t = stage.name()
    with connection(stage) as here:
        cursor = here.cursor()
        cursor.execute(f"CREATE TABLE {t} (i INTEGER)")
        cursor.execute(f"INSERT INTO {t} VALUES (1), (2)")
        cursor.execute(f"INSERT INTO {t} VALUES (?)", (3,))
        assert here.client.execute_update(f"UPDATE {t} SET i = i + 10 WHERE i > 1") == 2
        assert rows(cursor, f"FROM {t} ORDER BY i") == [(1,), (12,), (13,)]
        cursor.execute(f"DROP TABLE {t}")
        refused(lambda: cursor.execute(f"FROM {t}"), t)


@DBAPI.check("catalog")
def catalog(stage):
    with connection(stage) as here, stage.made(lambda sql: here.cursor().execute(sql), "id INTEGER, name VARCHAR") as t:
        assert t in here.flightsql_get_table_names("main")
        assert "main" in here.flightsql_get_schema_names()
        names = [column["name"] for column in here.flightsql_get_columns(t, "main")]
        assert names == ["id", "name"], names
        catalogs = here.client.do_get(here.client.get_catalogs().endpoints[0].ticket).read_all().to_pylist()
        assert {"catalog_name": "memory"} in catalogs, catalogs
        types = here.client.do_get(here.client.get_table_types().endpoints[0].ticket).read_all()
        assert "VIEW" in types["table_type"].to_pylist()


@DBAPI.check("table schema")
def table_schema(stage):
    with connection(stage) as here, stage.made(
        lambda sql: here.cursor().execute(sql), "id BIGINT NOT NULL, price DECIMAL(10, 2) DEFAULT 1"
    ) as t:
        info = here.client.get_tables(table_name_filter_pattern=t, include_schema=True)
        [found] = here.client.do_get(info.endpoints[0].ticket).read_all().to_pylist()
        schema = pa.ipc.read_schema(pa.py_buffer(found["table_schema"]))
        notes = {key.decode(): value.decode() for key, value in schema.field("price").metadata.items()}
        assert schema.field("id").nullable is False and schema.field("price").type == pa.decimal128(10, 2)
        assert notes["ARROW:FLIGHT:SQL:TYPE_NAME"] == "DECIMAL(10,2)" and notes["ARROW:FLIGHT:SQL:TABLE_NAME"] == t
        assert (notes["ARROW:FLIGHT:SQL:PRECISION"], notes["ARROW:FLIGHT:SQL:SCALE"]) == ("10", "2"), json.dumps(notes)


@DBAPI.check("keys")
def keys(stage):
    with connection(stage) as here:
        run = here.cursor().execute
        with stage.made(run, "a INTEGER, b INTEGER, PRIMARY KEY (a, b)") as parent:
            with stage.made(run, f"x INTEGER, y INTEGER, FOREIGN KEY (x, y) REFERENCES {parent} (a, b)") as child:
                primary = [(key["column_name"], key["key_sequence"]) for key in here.flightsql_get_primary_keys(parent)]
                assert primary == [("a", 1), ("b", 2)], primary
                foreign = here.flightsql_get_foreign_keys(child)
                pairs = [(key["fk_column_name"], key["pk_table_name"], key["pk_column_name"]) for key in foreign]
                assert pairs == [("x", parent, "a"), ("y", parent, "b")], foreign


@DBAPI.check("server info")
def server_info(stage):
    with connection(stage) as here:
        info = here.flightsql_get_sql_info([0, 1, 8, 504])
        assert info == {0: "Mallard", 1: stage.version, 8: 1, 504: '"'}, info


@DBAPI.check("64 cursors")
def many_cursors(stage):
    with connection(stage) as here:
        def ask(number):
            return rows(here.cursor(), f"SELECT sum(i + {number})::BIGINT FROM range(1000) AS r(i)")

        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(ask, range(64)))
        assert answers == [[(499_500 + 1000 * number,)] for number in range(64)]


@DBAPI.check("errors")
def errors(stage):
    with connection(stage) as here:
        cursor = here.cursor()
        refused(lambda: cursor.execute("SELEC 1"), "syntax error")
        refused(lambda: cursor.execute("FROM no_such_table"), "no_such_table")
        assert rows(cursor, "SELECT 1") == [(1,)]


@DBAPI.check("types")
def types(stage):
    sql = "SELECT 12.34::DECIMAL(10, 2) AS d, [1, 2] AS li, DATE '2024-02-29' AS day, 'x' AS t, NULL AS nothing"
    with connection(stage) as here:
        [(d, li, day, t, nothing)] = rows(here.cursor(), sql)
    assert d == Decimal("12.34") and list(li) == [1, 2] and str(day)[:10] == "2024-02-29" and t == "x" and nothing is None


@DBAPI.check("reading role")
def reading_role(stage):
    with connection(stage, user=stage.reader) as here:
        assert rows(here.cursor(), "SELECT 1") == [(1,)]
        refused(lambda: here.cursor().execute("CREATE TABLE not_for_readers (i INTEGER)"), "role")


DBAPI.lacks("its commit and rollback do nothing", "transactions")
DBAPI.lacks("the client has no call for it", "ingest", "cancel", "plain types")
DBAPI.lacks("its answers are rows", "data frame out", "data frame in")


def engine(stage, user=None):
    return sqlalchemy.create_engine(
        f"datafusion+flightsql://{user or stage.user}:{stage.password}@{stage.host}:{stage.port}"
        "?insecure=True&feature-sqlalchemy-prepared-statements=on&feature-sqlalchemy-primary-keys=on"
    )


@ALCHEMY.check("login")
def alchemy_login(stage):
    with engine(stage).connect() as here:
        assert here.execute(sqlalchemy.text("SELECT 1")).fetchall() == [(1,)]


@ALCHEMY.check("query")
def alchemy_query(stage):
    with engine(stage).connect() as here:
        answer = here.execute(sqlalchemy.text("SELECT i, 'row ' || i AS label FROM range(1000) AS r(i) ORDER BY i"))
        found = answer.fetchall()
        assert found[999].label == "row 999" and len(found) == 1000


@ALCHEMY.check("parameters")
def alchemy_parameters(stage):
    with engine(stage).connect() as here:
        answer = here.execute(sqlalchemy.text("SELECT :one + 1 AS next, :name AS name"), {"one": 41, "name": "it's"})
        assert answer.fetchall() == [(42, "it's")]


@ALCHEMY.check("DDL once")
def alchemy_ddl(stage):
    # What the object layer writes: a table is made, filled, read and dropped.
    people = sqlalchemy.Table(
        stage.name(), sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Integer),
        sqlalchemy.Column("name", sqlalchemy.String),
    )
    source = engine(stage)
    with source.connect() as here:
        people.create(here)
        here.execute(people.insert().values(id=1, name="Ada"))
        here.execute(people.insert().values(id=2, name="Grace"))
        here.execute(people.update().where(people.c.id == 2).values(name="Mary"))
        found = here.execute(sqlalchemy.select([people]).order_by(people.c.id)).fetchall()
        assert found == [(1, "Ada"), (2, "Mary")], found
        people.drop(here)
        assert not sqlalchemy.inspect(source).has_table(people.name)


@ALCHEMY.check("executemany")
def alchemy_executemany(stage):
    with engine(stage).connect() as here:
        with stage.made(lambda sql: here.execute(sqlalchemy.text(sql)), "id INTEGER, name VARCHAR") as t:
            here.execute(
                sqlalchemy.text(f"INSERT INTO {t} VALUES (:id, :name)"),
                [{"id": number, "name": f"name {number}"} for number in range(20)],
            )
            assert here.execute(sqlalchemy.text(f"SELECT count(*) FROM {t}")).fetchall() == [(20,)]


@ALCHEMY.check("catalog")
def alchemy_catalog(stage):
    source = engine(stage)
    with source.connect() as here:
        with stage.made(lambda sql: here.execute(sqlalchemy.text(sql)), "id INTEGER NOT NULL, name VARCHAR") as t:
            inspector = sqlalchemy.inspect(source)
            assert "main" in inspector.get_schema_names() and t in inspector.get_table_names("main")
            columns = [(column["name"], column["nullable"]) for column in inspector.get_columns(t, "main")]
            assert columns == [("id", False), ("name", True)], columns


@ALCHEMY.check("keys")
def alchemy_keys(stage):
    source = engine(stage)
    with source.connect() as here:
        with stage.made(lambda sql: here.execute(sqlalchemy.text(sql)), "a INTEGER, b INTEGER, PRIMARY KEY (a, b)") as t:
            assert sqlalchemy.inspect(source).get_pk_constraint(t)["constrained_columns"] == ["a", "b"]


@ALCHEMY.check("errors")
def alchemy_errors(stage):
    with engine(stage).connect() as here:
        refused(lambda: here.execute(sqlalchemy.text("FROM no_such_table")), "no_such_table")
        assert here.execute(sqlalchemy.text("SELECT 1")).fetchall() == [(1,)]


@ALCHEMY.check("reading role")
def alchemy_reading(stage):
    with engine(stage, user=stage.reader).connect() as here:
        refused(lambda: here.execute(sqlalchemy.text("CREATE TABLE not_for_readers (i INTEGER)")), "role")


ALCHEMY.lacks(
    "as flightsql-dbapi, see there", "small queries", "transactions", "ingest", "table schema", "server info", "cancel",
    "64 cursors", "types", "plain types",
)
ALCHEMY.lacks("pandas reads through its ADBC driver", "data frame out", "data frame in")
