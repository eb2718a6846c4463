"""Runs every client at one server, and writes or compares docs/clients.md.

    sh tests/e2e/clients/run.sh           compares the page in docs/ with what this run says
    sh tests/e2e/clients/run.sh --write   writes it
"""

import argparse
import difflib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pyarrow.flight as flight

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))

import adbc  # noqa: E402
import arrow_rs  # noqa: E402
import dbapi  # noqa: E402
import frames  # noqa: E402
import jdbc  # noqa: E402
import npm  # noqa: E402
from matrix import FEATURES  # noqa: E402
from support import Server  # noqa: E402

CLIENTS = [
    adbc.ADBC, dbapi.DBAPI, dbapi.ALCHEMY, frames.PANDAS, frames.POLARS, npm.GIZMODATA, npm.LAKEHOUSE,
    arrow_rs.ARROW_RS, jdbc.JDBC,
]
PAGE = ROOT / "docs" / "clients.md"
PASSWORD = "a-long-password"

HEAD = """\
<!-- Written by `sh tests/e2e/clients/run.sh --write`, from a run; CI fails where another run says something else. -->
# Clients

Mallard serves Flight SQL and plain Arrow Flight on one port. These clients are run against it as they come from their
registries, each at the version below, with a user and a password. A cell is one check in `tests/e2e/clients`:
**yes** has passed; a number says below the table why there is no check; what failed says **no**, and how.

"""

TAIL = """\
## Others

- **pyarrow** has no Flight SQL client, and needs none: a plain `DoGet` with SQL as the ticket is one round trip
  ([examples](../examples), `tests/e2e/test_flight.py`).
- **A program that fails while it stores rows**: pyarrow's writer ends its stream cleanly where the program above it fails, also
  inside `with writer:`, and the server then stores the rows that came. Announce an explicit end (`x-mallard-end: explicit`, as the
  README shows), and nothing is stored without it. ADBC's ingest needs none: it breaks its stream off where its source fails. It
  cannot send one, either, so it is refused by a server with `put.require_end`.
- **ADBC's ingest mode replace**, and `if_exists="replace"` of pandas and polars over it, drop the table and create it anew, as Flight SQL
  says of TABLE_EXISTS_OPTION_REPLACE: keys, defaults, indexes and comments go with it. To keep them, empty the table and append in one
  transaction, or let `mallard transfer --mode replace` bring the rows.
- **dbt**: dbt-gizmosql 1.11.16, an adapter for DuckDB behind Flight SQL, builds seeds, tables, views, incremental models, tests and
  snapshots here (`tests/e2e/clients/tools.sh`). It wants `duckdb` 2.0 beside it for its seeds. A second run of a snapshot was
  refused when texts of several statements were, and was not tried since.
- **SQLAlchemy 2**: sqlalchemy-adbc 0.3.0 queries, inserts, reflects columns and carries pandas, with a login and without (the same
  script); the login is written `adbc+flightsql://localhost:8815?tls=false&username=alice&password=…`, because the driver takes the
  password of a URL for a bearer token. Its list of tables is empty: it looks for the type `table` in small letters, as SQLite has it,
  and Flight SQL's is `TABLE`.
- **ibis-gizmosql 1.0.4** says `SET TimeZone` when it connects, and **sqlalchemy-gizmosql-adbc-dialect 0.0.27** says `BEGIN` in the
  transaction that its driver has begun; both were tried while the server refused that, and not since.
- **ODBC**: its driver is not in a registry that the tests reach, so it is not in the table.
- **Go, C, R**: the ADBC driver in the table is the one they use, with the same options.
- Without a login, a client's connection is its session for `BEGIN`, `SET`, `USE`, temporary tables and session options, and they end
  with the connection. A client that sends the server's cookie has the cookie's session instead (ADBC:
  `adbc.flight.sql.rpc.with_cookie_middleware`). Where a proxy passes calls on (headers `forwarded`, `x-forwarded-for`, `via`), and with
  `session.per_connection = false`, only a login or a cookie is a session.
- A text of Flight SQL's statements (`mallard sql -f FILE`, too) may hold several statements, at most `limits.statements_per_text` for
  Flight SQL. They run in order, each checked right before it runs, and each in its own transaction unless one is open; the last one's
  result is the answer. An error says which statement failed, and those before it stay done. Prepared statements and plain
  tickets hold one.

Types: [types.md](types.md). Names are compared without regard to case, as in DuckDB; in the patterns of metadata calls
`%` and `_` are wildcards and `\\\\` escapes them. Metadata lists what the caller may read and nothing else.
"""


class Stage:
    """A server, and what the checks need of it."""

    user = "alice"
    reader = "rita"
    password = PASSWORD
    host = "127.0.0.1"

    def __init__(self, directory):
        settings = {}
        for name, role in ((self.user, "admin"), (self.reader, "reader")):
            settings[f"MALLARD__AUTH__USERS__{name.upper()}__PASSWORD"] = PASSWORD
            settings[f"MALLARD__AUTH__USERS__{name.upper()}__ROLE"] = role
        self.server = Server(directory, "--auth", settings=settings)
        self.uri = self.server.location
        self.port = self.server.address[1]
        self.made_names = 0
        # What GetSqlInfo says.
        self.version = f"duckdb v{version('duckdb')}, Mallard {os.environ['MALLARD_VERSION']}"
        self.flight = flight.connect(self.uri)
        self.options = flight.FlightCallOptions(headers=[self.flight.authenticate_basic_token(self.user, PASSWORD)])

    def name(self):
        """A name that no other check uses."""
        self.made_names += 1
        return f"made_{self.made_names}"

    def table(self, cursor, columns):
        return self.made(cursor.execute, columns)

    @contextmanager
    def made(self, run, columns):
        """A new table for the block."""
        name = self.name()
        run(f"CREATE TABLE {name} ({columns})")
        yield name
        run(f"DROP TABLE IF EXISTS {name}")

    def running(self, words):
        """Whether a statement with these words runs, as the server tells its administrator."""
        answer = self.flight.do_action(flight.Action("queries", b""), self.options)
        return any(words in result.body.to_pybytes().decode() for result in answer)

    def until(self, true, what):
        start = time.monotonic()
        while not true():
            assert time.monotonic() - start < 30, f"not within 30 s: {what}"
            time.sleep(0.05)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="write docs/clients.md")
    arguments.add_argument("--only", help="clients or features whose names hold this; nothing is compared")
    arguments = arguments.parse_args()
    outcomes, failed = {}, []
    with tempfile.TemporaryDirectory() as directory:
        stage = Stage(Path(directory))
        try:
            for client in CLIENTS:
                for feature, check in client.checks.items():
                    if arguments.only and arguments.only not in f"{client.name} {feature}":
                        continue
                    outcomes[client.name, feature] = outcome(check, stage)
                    said = outcomes[client.name, feature] or "passed"
                    print(f"{client.name:16} {feature:16} {said}", flush=True)
                    failed += [f"{client.name}: {feature}"] if outcomes[client.name, feature] else []
                if arguments.only and arguments.only not in client.name:
                    continue
                wrong = outcome(lambda stage, client=client: snippet(client, stage), stage)
                print(f"{client.name:16} {'its snippet':16} {wrong or 'passed'}", flush=True)
                failed += [f"{client.name}: its snippet"] if wrong else []
        finally:
            stage.flight.close()
            stage.server.stop()
    print(f"{len(outcomes) - len(failed)} checks passed, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    if arguments.only:
        sys.exit(bool(failed))
    page = written(outcomes)
    if arguments.write:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        changes = difflib.unified_diff(PAGE.read_text().splitlines(), page.splitlines(), "committed", "this run", "", "")
        sys.exit("docs/clients.md is not what this run says:\n" + "\n".join(changes))
    sys.exit(bool(failed))


def snippet(client, stage):
    """What the page says to copy does what it says."""
    told = {name: getattr(stage, name) for name in ("uri", "host", "port", "user", "password")}
    if client.language == "java":
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory) / "Answer.java"
            source.write_text(client.snippet.format(**told))
            assert jdbc.java(source).strip() == "42", "it printed something else"
        return
    command = {"python": [sys.executable, "-c"], "js": ["node", "-e"], "sh": ["sh", "-c"]}[client.language]
    environment = os.environ | {"NODE_PATH": os.environ["MALLARD_NODE_MODULES"]}
    ended = subprocess.run(
        [*command, client.snippet.format(**told)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0 and ended.stdout.strip(), ended.stderr or "it printed nothing"


def outcome(check, stage):
    """Why it failed, in one line; nothing where it passed."""
    try:
        check(stage)
    except Exception as error:
        if os.environ.get("MALLARD_TRACE"):
            traceback.print_exc()
        text = " ".join(str(error).split())
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (text or f"line {where.lineno} of {Path(where.filename).name}: {where.line}")[:300]
    return None


def written(outcomes):
    reasons = []

    def cell(client, feature):
        if feature in client.checks:
            wrong = outcomes[client.name, feature]
            return "yes" if wrong is None else f"no: {wrong.replace('|', '/')[:60]}"
        reason = client.absent[feature]
        if reason not in reasons:
            reasons.append(reason)
        return f"{reasons.index(reason) + 1}"

    lines = ["| | " + " | ".join(client.name for client in CLIENTS) + " |", "|---" * (len(CLIENTS) + 1) + "|"]
    for feature in FEATURES:
        lines.append(f"| {feature} | " + " | ".join(cell(client, feature) for client in CLIENTS) + " |")
    page = HEAD + "\n".join(lines) + "\n\n"
    page += "".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1)) + "\n"
    page += "What a check shows:\n\n" + "".join(f"- {name}: {shows}\n" for name, shows in FEATURES.items()) + "\n"
    given = {"uri": "grpc://localhost:8815", "host": "localhost", "port": 8815, "user": "alice", "password": "…"}
    for client in CLIENTS:
        page += f"## {client.name}\n\n{client.version}. {client.about}".rstrip() + "\n\n"
        page += f"```{client.language}\n{client.snippet.format(**given)}```\n\n"
    return page + TAIL.replace("\\\\", "\\")


if __name__ == "__main__":
    main()
