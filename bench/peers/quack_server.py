"""DuckDB's own protocol, Quack: one database that listens on loopback until it is ended.

Needs the environment of requirements-quack.txt. The token is in the environment, as BENCH_QUACK_TOKEN.

    python bench/peers/quack_server.py --location quack:127.0.0.1:9494
"""

import argparse
import os
import signal
from importlib.resources import files

import duckdb

TOKEN = os.environ.get("BENCH_QUACK_TOKEN", "")


def connect(path=":memory:"):
    connection = duckdb.connect(path, config={"allow_unsigned_extensions": True})
    # Quack's client is httpfs, which therefore comes first.
    for name in ("httpfs", "quack"):
        folder = files(f"duckdb_extension_{name}") / "extensions" / f"v{duckdb.__version__}"
        connection.execute(f"LOAD '{folder / name}.duckdb_extension'")
    return connection


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--location", default="quack:127.0.0.1:9494")
    arguments.add_argument("--db", default=":memory:")
    arguments = arguments.parse_args()
    connection = connect(arguments.db)
    connection.execute("CALL quack_serve(?, token = ?)", [arguments.location, TOKEN]).fetchall()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    # Blocked before DuckDB starts threads, so that none of them takes the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
