"""arrow-rs's command line client of Flight SQL: the binary flight_sql_client of the crate arrow-flight."""

import os
import subprocess

from matrix import Client

ARROW_RS = Client(
    name="arrow-rs",
    version=f"flight_sql_client of the crate arrow-flight {os.environ['ARROW_FLIGHT_VERSION']} (Rust)",
    language="sh",
    snippet="""\
# cargo install arrow-flight --bin flight_sql_client --features cli,flight-sql,tls-ring
flight_sql_client --host {host} --port {port} --username {user} --password {password} \\
    statement-query "SELECT 6 * 7 AS answer"
""",
    about="The library behind it, `FlightSqlServiceClient`, is what `tests/it` speaks.",
)

ARROW_RS.lacks("the client has no call for it", "transactions", "ingest", "table schema", "keys", "server info", "cancel", "plain types")
ARROW_RS.lacks("one run is one connection and one call, with one row of parameters", "small queries", "executemany", "64 cursors")
ARROW_RS.lacks("it prints a table", "data frame out", "data frame in")


def ended(stage, *arguments, user=None, password=None):
    login = ["--username", user or stage.user, "--password", password or stage.password]
    command = ["flight_sql_client", "--host", stage.host, "--port", str(stage.port), *login, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def table(stage, *arguments, **login):
    """Names of columns, and rows of text, of the table that it prints."""
    run = ended(stage, *arguments, **login)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("|")]
    names, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return names, rows


def rows(stage, sql, **login):
    return table(stage, "statement-query", sql, **login)[1]


def refused(stage, word, *arguments, **login):
    run = ended(stage, *arguments, **login)
    assert run.returncode != 0, f"went through, and should have failed with {word!r}: {run.stdout}"
    assert word in run.stderr.lower(), run.stderr


@ARROW_RS.check("login")
def login(stage):
    assert rows(stage, "SELECT 1") == [["1"]]
    refused(stage, "wrong user or password", "statement-query", "SELECT 1", password="wrong-password")


@ARROW_RS.check("query")
def query(stage):
    names, found = table(stage, "statement-query", "SELECT i, 'row ' || i AS label FROM range(100000) AS r(i) ORDER BY i")
    assert names == ["i", "label"], names
    assert found == [[str(i), f"row {i}"] for i in range(100_000)]


@ARROW_RS.check("parameters")
def parameters(stage):
    sql = "SELECT $1::INTEGER + 1 AS number, upper($2::VARCHAR) AS label"
    assert table(stage, "prepared-statement-query", sql, "-p", "1=41", "-p", "2=it's") == (["number", "label"], [["42", "IT'S"]])


@ARROW_RS.check("DDL once")
def ddl_once(stage):
    name = stage.name()
    for kind in ("statement-query", "prepared-statement-query"):
        assert ended(stage, kind, f"CREATE TABLE {name} (i INTEGER)").returncode == 0
        assert ended(stage, kind, f"INSERT INTO {name} VALUES (1), (2)").returncode == 0
        assert rows(stage, f"SELECT count(*) FROM {name}") == [["2"]]
        assert ended(stage, kind, f"DROP TABLE {name}").returncode == 0
        refused(stage, name, "statement-query", f"FROM {name}")


@ARROW_RS.check("catalog")
def catalog(stage):
    here = rows(stage, "SELECT current_database()")[0][0]
    assert [here] in table(stage, "catalogs")[1]
    assert [here, "main"] in table(stage, "db-schemas", here)[1]
    assert table(stage, "table-types")[1], "types of tables"
    with stage.made(lambda sql: ended(stage, "statement-query", sql).check_returncode(), "i INTEGER") as name:
        found = table(stage, "tables", here, "--table-filter", name, "--table-types", "TABLE")
        assert found == (["catalog_name", "db_schema_name", "table_name", "table_type"], [[here, "main", name, "TABLE"]]), found


@ARROW_RS.check("errors")
def errors(stage):
    refused(stage, "nowhere_to_be_found", "statement-query", "SELECT * FROM nowhere_to_be_found")
    refused(stage, "syntax error", "statement-query", "SELEC 1")


@ARROW_RS.check("types")
def types(stage):
    wanted = {
        "12.34::DECIMAL(10, 2)": "12.34",
        "TIMESTAMPTZ '2024-02-29 12:00:00.5+00'": "2024-02-29T12:00:00.500Z",
        "INTERVAL '1 month 2 days 3 seconds'": "1 mons 2 days 3.000000000 secs",
        "[1, NULL]::INTEGER[]": "[1, ]",
        "{'a': 1, 'b': 'x'}": "{a: 1, b: x}",
        "MAP {'k': 7}": "{k: 7}",
        "'\\xAA'::BLOB": "aa",
        "DATE '2024-02-29'": "2024-02-29",
        "TIME '12:34:56.5'": "12:34:56.500",
        "'b'::ENUM ('a', 'b')": "b",
        "NULL::INTEGER": "",
    }
    assert rows(stage, "SELECT " + ", ".join(wanted)) == [list(wanted.values())], rows(stage, "SELECT " + ", ".join(wanted))


@ARROW_RS.check("reading role")
def reading_role(stage):
    assert rows(stage, "SELECT 1", user=stage.reader) == [["1"]]
    refused(stage, "permission", "statement-query", "CREATE TABLE not_made (i INTEGER)", user=stage.reader)
