"""pandas and polars, each through the ADBC driver."""

from importlib.metadata import version

import pandas
import polars

from adbc import connect, refused, rows
from matrix import Client

BELOW = "as its ADBC driver, see there"

PANDAS = Client(
    name="pandas",
    version=f"pandas {version('pandas')}",
    language="python",
    snippet="""\
# pip install pandas adbc-driver-flightsql pyarrow
import adbc_driver_flightsql.dbapi as flightsql
import pandas

with flightsql.connect(
    "{uri}", db_kwargs={{"username": "{user}", "password": "{password}"}}, autocommit=True
) as connection:
    pandas.DataFrame({{"id": [1, 2]}}).to_sql("numbers", connection, index=False, if_exists="replace")
    print(pandas.read_sql("SELECT sum(id) AS total FROM numbers", connection))
""",
)

POLARS = Client(
    name="polars",
    version=f"polars {version('polars')}",
    language="python",
    snippet="""\
# pip install polars adbc-driver-flightsql pyarrow
import adbc_driver_flightsql.dbapi as flightsql
import polars

with flightsql.connect(
    "{uri}", db_kwargs={{"username": "{user}", "password": "{password}"}}, autocommit=True
) as connection:
    polars.DataFrame({{"id": [1, 2]}}).write_database("numbers", connection, if_table_exists="replace", engine="adbc")
    print(polars.read_database("SELECT sum(id) AS total FROM numbers", connection))
""",
)

for client in (PANDAS, POLARS):
    client.lacks(
        BELOW, "login", "small queries", "executemany", "DDL once", "transactions", "ingest", "catalog", "table schema",
        "keys", "server info", "cancel", "64 cursors", "plain types", "reading role",
    )


PANDAS.lacks("it refuses parameters with ADBC connections", "parameters")


@PANDAS.check("query")
def pandas_query(stage):
    with connect(stage) as connection:
        frame = pandas.read_sql("SELECT i, 'row ' || i AS label FROM range(100000) AS r(i) ORDER BY i", connection)
    assert list(frame.columns) == ["i", "label"] and len(frame) == 100_000
    assert frame["i"].sum() == 4_999_950_000 and frame["label"].iloc[-1] == "row 99999"


@PANDAS.check("data frame out")
def pandas_out(stage):
    with connect(stage) as connection:
        frame = pandas.read_sql("SELECT DATE '2024-02-29' AS day, 1.5 AS price, NULL::INTEGER AS nothing", connection)
    assert str(frame["day"].iloc[0])[:10] == "2024-02-29" and float(frame["price"].iloc[0]) == 1.5
    assert frame["nothing"].isna().all()


@PANDAS.check("data frame in")
def pandas_in(stage):
    t = stage.name()
    frame = pandas.DataFrame({"id": [1, 2, 3], "name": ["Ada", "Grace", None], "score": [1.5, None, 3.0]})
    with connect(stage) as connection, connection.cursor() as cursor:
        assert frame.to_sql(t, connection, index=False) == 3
        refused(lambda: frame.to_sql(t, connection, index=False, if_exists="fail"), "exists")
        frame.to_sql(t, connection, index=False, if_exists="append")
        assert rows(cursor, f"SELECT count(*), count(name), sum(score) FROM {t}") == [(6, 4, 9.0)]
        frame.to_sql(t, connection, index=False, if_exists="replace")
        assert rows(cursor, f"FROM {t} ORDER BY id") == [(1, "Ada", 1.5), (2, "Grace", None), (3, None, 3.0)]
        back = pandas.read_sql(f"FROM {t} ORDER BY id", connection)
        assert back["id"].tolist() == [1, 2, 3] and back["name"].tolist()[:2] == ["Ada", "Grace"]
        # By name, which asks for the table's columns first.
        assert len(pandas.read_sql_table(t, connection)) == 3


@PANDAS.check("errors")
def pandas_errors(stage):
    with connect(stage) as connection:
        refused(lambda: pandas.read_sql("FROM no_such_table", connection), "no_such_table")
        assert len(pandas.read_sql("SELECT 1", connection)) == 1


@PANDAS.check("types")
def pandas_types(stage):
    with connect(stage) as connection:
        frame = pandas.read_sql("SELECT 12.34::DECIMAL(10,2) AS d, TIMESTAMPTZ '2024-02-29 12:00:00+02' AS tz, [1, 2] AS li",
                                connection)
    [row] = frame.to_dict("records")
    assert str(row["d"]) == "12.34" and list(row["li"]) == [1, 2]
    assert row["tz"] == pandas.Timestamp("2024-02-29 10:00:00", tz="UTC"), row


@POLARS.check("query")
def polars_query(stage):
    with connect(stage) as connection:
        frame = polars.read_database("SELECT i, 'row ' || i AS label FROM range(100000) AS r(i) ORDER BY i", connection)
    assert frame.columns == ["i", "label"] and frame.height == 100_000 and frame["i"].sum() == 4_999_950_000


@POLARS.check("parameters")
def polars_parameters(stage):
    with connect(stage) as connection:
        frame = polars.read_database(
            "SELECT ?::INTEGER + 1 AS next", connection, execute_options={"parameters": (41,)}
        )
    assert frame["next"].to_list() == [42]


@POLARS.check("data frame out")
def polars_out(stage):
    sql = "SELECT DATE '2024-02-29' AS day, 12.34::DECIMAL(10,2) AS d, NULL::INTEGER AS nothing, 'x' AS label"
    with connect(stage) as connection:
        frame = polars.read_database(sql, connection)
        assert frame.schema["day"] == polars.Date and frame.schema["d"] == polars.Decimal(10, 2), frame.schema
        # In parts, as they come.
        parts = polars.read_database(
            "SELECT i FROM range(200000) AS r(i)", connection, iter_batches=True, batch_size=50_000
        )
        assert sum(part.height for part in parts) == 200_000


@POLARS.check("data frame in")
def polars_in(stage):
    t = stage.name()
    frame = polars.DataFrame({"id": [1, 2, 3], "name": ["Ada", "Grace", None]})
    with connect(stage) as connection, connection.cursor() as cursor:
        assert frame.write_database(t, connection, engine="adbc") == 3
        refused(lambda: frame.write_database(t, connection, engine="adbc", if_table_exists="fail"), "exists")
        frame.write_database(t, connection, engine="adbc", if_table_exists="append")
        assert rows(cursor, f"SELECT count(*), count(name) FROM {t}") == [(6, 4)]
        frame.write_database(t, connection, engine="adbc", if_table_exists="replace")
        assert polars.read_database(f"FROM {t} ORDER BY id", connection).equals(frame)


@POLARS.check("errors")
def polars_errors(stage):
    with connect(stage) as connection:
        refused(lambda: polars.read_database("FROM no_such_table", connection), "no_such_table")
        assert polars.read_database("SELECT 1 AS one", connection).height == 1


@POLARS.check("types")
def polars_types(stage):
    sql = "SELECT TIMESTAMPTZ '2024-02-29 12:00:00+02' AS tz, [1, 2] AS li, {'a': 1} AS st, 'sad'::ENUM ('sad', 'happy') AS en"
    with connect(stage) as connection:
        [row] = polars.read_database(sql, connection).to_dicts()
    assert row["li"] == [1, 2] and row["st"] == {"a": 1} and row["en"] == "sad"
    assert row["tz"].timestamp() == 1709200800, row
