"""Two Flight SQL clients of npm's; their checks are in node.cjs."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

from matrix import Client

HERE = Path(__file__).parent
PINNED = json.loads((HERE / "package.json").read_text())["dependencies"]

GIZMODATA = Client(
    name="@gizmodata",
    version=f"@gizmodata/gizmosql-client {PINNED['@gizmodata/gizmosql-client']} (JavaScript)",
    language="js",
    snippet="""\
// npm install @gizmodata/gizmosql-client
const {{ FlightSQLClient }} = require("@gizmodata/gizmosql-client");

const client = new FlightSQLClient({{
  host: "{host}", port: {port}, plaintext: true, username: "{user}", password: "{password}",
}});
client.execute("SELECT 6 * 7 AS answer").then((table) => console.log(table.toArray()));
""",
)

LAKEHOUSE = Client(
    name="@lakehouse-rs",
    version=f"@lakehouse-rs/flight-sql-client {PINNED['@lakehouse-rs/flight-sql-client']} (Node.js over Rust)",
    language="js",
    snippet="""\
// npm install @lakehouse-rs/flight-sql-client apache-arrow
const {{ createFlightSqlClient }} = require("@lakehouse-rs/flight-sql-client");
const {{ tableFromIPC }} = require("apache-arrow");

createFlightSqlClient({{
  host: "{host}", port: {port}, tls: false, username: "{user}", password: "{password}", headers: [],
}}).then(async (client) => console.log(tableFromIPC(await client.query("SELECT 6 * 7 AS answer")).toArray()));
""",
)

GIZMODATA.lacks(
    "its prepare and its question for keys send no message of Flight SQL's", "parameters", "executemany", "keys"
)
GIZMODATA.lacks("the client has no call for it", "transactions", "ingest", "table schema", "cancel", "64 cursors", "plain types")
GIZMODATA.lacks("its answers are Arrow tables", "data frame out", "data frame in")
LAKEHOUSE.lacks(
    "the client has no call for it",
    "parameters", "executemany", "transactions", "ingest", "keys", "server info", "cancel", "64 cursors",
    "plain types",
)
LAKEHOUSE.lacks("its answers are Arrow tables", "data frame out", "data frame in")


def node(*arguments):
    environment = os.environ | {"NODE_PATH": os.environ["MALLARD_NODE_MODULES"]}
    ended = subprocess.run(
        ["node", HERE / "node.cjs", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr.strip() or f"node ended with {ended.returncode}"
    return ended.stdout


def run(client, feature, stage):
    told = {name: getattr(stage, name) for name in ("host", "port", "user", "password", "reader", "version")}
    node(client, feature, json.dumps(told | {"table": stage.name()}))


for client, name in ((GIZMODATA, "gizmodata"), (LAKEHOUSE, "lakehouse")):
    for feature in json.loads(node("list"))[name]:
        client.check(feature)(partial(run, name, feature))
