"""SQL with its expected answers, asked of a Mallard server through ADBC and of DuckDB itself, in the same run.

    sh tests/sqllogic/run.sh            all of them
    sh tests/sqllogic/run.sh windows    one file
    sh tests/sqllogic/run.sh --write    writes what DuckDB answers as what is expected: read the difference

A file is records with an empty line between them: `statement ok`, `statement error WORDS` or `query`, then the SQL, and
after `----` a query's rows, columns apart by tabs. Rows come in the order of the answer. An error has to be one on both
sides, and to hold the words.
"""

import argparse
import datetime
import sys
import tempfile
import uuid
import warnings
from pathlib import Path

import duckdb
import pyarrow as pa

# That a whole result is read at once, which is what is meant.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e"), str(HERE.parent / "e2e" / "clients")]

import adbc_driver_flightsql.dbapi as flightsql  # noqa: E402
from adbc_driver_manager import DatabaseOptions  # noqa: E402

from support import PASSWORD, USER, WITH_USERS, Server  # noqa: E402


class Record:
    def __init__(self, file, line, lines):
        self.place = f"{file.name}:{line}"
        self.head = lines[0]
        cut = lines.index("----") if "----" in lines else len(lines)
        self.sql = "\n".join(lines[1:cut])
        self.expected = lines[cut + 1 :]

    def text(self):
        tail = ["----", *self.expected] if self.head == "query" else []
        return "\n".join([self.head, self.sql, *tail])


def records(file):
    start, lines = 1, []
    for number, line in enumerate([*file.read_text().splitlines(), ""], 1):
        if line:
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield Record(file, start, lines)
            lines = []


class Direct:
    """DuckDB in this process, with the settings that the server has."""

    def __init__(self):
        self.connection = duckdb.connect()
        self.connection.execute("SET arrow_lossless_conversion = true; SET TimeZone = 'UTC'")

    def ask(self, sql):
        return self.connection.execute(sql).to_arrow_reader().read_all()

    def run(self, sql):
        self.connection.execute(sql).fetchall()


class Served:
    def __init__(self, server):
        login = {DatabaseOptions.USERNAME.value: USER, DatabaseOptions.PASSWORD.value: PASSWORD}
        lossless = {"adbc.flight.sql.rpc.call_header.x-mallard-types": "lossless"}
        self.connection = flightsql.connect(server.location, db_kwargs=login | lossless, autocommit=True)
        self.cursor = self.connection.cursor()

    def ask(self, sql):
        self.cursor.execute(sql)
        return self.cursor.fetch_arrow_table()

    def run(self, sql):
        self.cursor.execute(sql)
        # What fails while it runs says so here.
        self.cursor.fetch_arrow_table()

    def close(self):
        self.cursor.close()
        self.connection.close()


def rows(table):
    columns = [[text(value, field) for value in column.to_pylist()]
               for field, column in zip(table.schema, stored(table), strict=True)]
    return ["\t".join(row) for row in zip(*columns, strict=True)]


def stored(table):
    """Columns as they are stored where Python has no value of their type."""
    return [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in table.columns]


def text(value, field):
    kind = field.type
    name = getattr(kind, "type_name", None)
    if value is None:
        return "NULL"
    if name in ("hugeint", "uhugeint"):
        return str(int.from_bytes(value, "little", signed=name == "hugeint"))
    if isinstance(kind, pa.ExtensionType | pa.BaseExtensionType) and isinstance(value, uuid.UUID | str | bool):
        return value.replace("\n", "\\n") if isinstance(value, str) else str(value).lower()
    if isinstance(value, bool):
        return str(value).lower()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "[" + ", ".join(text(item, kind.value_field) for item in value) + "]"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(f"{inner.name}: {text(value[inner.name], inner)}" for inner in kind) + "}"
    if pa.types.is_map(kind):
        pairs = [f"{text(key, kind.key_field)}: {text(item, kind.item_field)}" for key, item in value]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bytes):
        return f"x{value.hex()}"
    if isinstance(value, datetime.datetime) and value.tzinfo:
        return value.astimezone(datetime.timezone.utc).isoformat(" ")
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n") or "(empty)"
    if hasattr(value, "months"):
        return f"{value.months} months {value.days} days {value.nanoseconds} ns"
    return str(value)


def outcome(engine, record):
    """Rows and columns, or None where there are none to have; an exception is an outcome, too."""
    try:
        if record.head == "query":
            table = engine.ask(record.sql)
            return rows(table), columns(table.schema)
        engine.run(record.sql)
    except (duckdb.Error, flightsql.Error) as error:
        return error
    return None


def columns(schema):
    """Names and types; booleans leave Mallard as Arrow's own."""
    return [(field.name, str(field.type).replace("extension<arrow.bool8>", "bool")) for field in schema]


def wrong(record, side, got):
    """What is wrong with an outcome, if something is."""
    if isinstance(got, Exception):
        words = record.head.removeprefix("statement error").strip()
        if record.head.startswith("statement error") and words.lower() in str(got).lower():
            return None
        return f"{side}: {' '.join(str(got).split())[:300]}"
    if record.head.startswith("statement error"):
        return f"{side}: no error"
    if record.head == "query" and got[0] != record.expected:
        return f"{side}: {got[0]}, expected {record.expected}"
    return None


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("files", nargs="*")
    arguments.add_argument("--write", action="store_true")
    arguments.add_argument("--direct", action="store_true", help="DuckDB alone")
    arguments = arguments.parse_args()
    files = sorted(HERE.glob("*.test"))
    files = [file for file in files if not arguments.files or file.stem in arguments.files]
    asked, mistakes = 0, []
    with tempfile.TemporaryDirectory() as directory:
        server = None if arguments.direct or arguments.write else Server(Path(directory), "--auth", settings=WITH_USERS)
        try:
            for file in files:
                direct, served = Direct(), Served(server) if server else None
                kept = []
                for record in records(file):
                    asked += 1
                    expected = outcome(direct, record)
                    if arguments.write and isinstance(expected, tuple):
                        record.expected = expected[0]
                    kept.append(record.text())
                    found = [wrong(record, "DuckDB", expected)]
                    if served:
                        got = outcome(served, record)
                        found.append(wrong(record, "Mallard", got))
                        if isinstance(got, tuple) and isinstance(expected, tuple) and got[1] != expected[1]:
                            found.append(f"columns: {got[1]} of Mallard, {expected[1]} of DuckDB")
                    mistakes += [f"{record.place}: {record.sql}\n    {what}" for what in found if what]
                if arguments.write:
                    file.write_text("\n\n".join(kept) + "\n")
                if served:
                    served.close()
        finally:
            if server:
                server.stop()
    print("\n".join(mistakes))
    print(f"{asked} statements in {len(files)} files, {len(mistakes)} mistakes")
    sys.exit(bool(mistakes) or not asked)


if __name__ == "__main__":
    main()
