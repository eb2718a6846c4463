"""Arrow's JDBC driver of Flight SQL, from Maven Central; its checks are in Jdbc.java."""

import os
import subprocess
from functools import partial
from pathlib import Path

from matrix import Client

HERE = Path(__file__).parent

JDBC = Client(
    name="JDBC",
    version=f"org.apache.arrow:flight-sql-jdbc-driver {os.environ['MALLARD_JDBC_VERSION']}",
    language="java",
    snippet="""\
// java --add-opens=java.base/java.nio=ALL-UNNAMED -cp flight-sql-jdbc-driver.jar Answer.java
class Answer {{
    public static void main(String[] none) throws java.sql.SQLException {{
        String url = "jdbc:arrow-flight-sql://{host}:{port}?useEncryption=false&user={user}&password={password}";
        try (var connection = java.sql.DriverManager.getConnection(url);
                var statement = connection.createStatement();
                var rows = statement.executeQuery("SELECT 6 * 7 AS answer")) {{
            while (rows.next()) System.out.println(rows.getInt("answer"));
        }}
    }}
}}
""",
    about="It is what DBeaver, Metabase and Tableau use. For TLS leave `useEncryption` out. Statement.addBatch and getTypeInfo "
    "are not implemented in the driver, whichever the server.",
)

JDBC.lacks("its commit and rollback do nothing", "transactions")
JDBC.lacks("the client has no call for it", "ingest")
JDBC.lacks("its answers are rows", "data frame out", "data frame in")


def java(*arguments):
    command = ["java", "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", os.environ["MALLARD_JDBC_DRIVER"]]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    lines = ended.stderr.strip().splitlines()
    why = [line for line in lines if line.startswith(("Exception in", "Caused by"))]
    assert ended.returncode == 0, "; ".join(why) or ended.stderr.strip()
    return ended.stdout


def run(feature, stage):
    told = [getattr(stage, name) for name in ("host", "port", "user", "password", "reader", "version")]
    java(HERE / "Jdbc.java", feature, *map(str, told), stage.name())


for feature in java(HERE / "Jdbc.java", "list").splitlines():
    JDBC.check(feature)(partial(run, feature))
