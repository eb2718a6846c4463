"""What is measured, and what each operation cannot do without."""

from dataclasses import dataclass

# The table that an operation makes; it is dropped afterwards.
ARRIVED = "arrived"


@dataclass(frozen=True, eq=False)
class Operation:
    name: str
    request: dict
    # Which of the two servers has the table afterwards.
    stores_on: int | None
    # DuckDB's part alone, and the bytes once through a socket for each time they travel: what floors.py adds up.
    parts: tuple


GET = Operation("GET", {"operation": "get"}, None, ("scan", "socket"))
PUT = Operation("PUT", {"operation": "put"}, 0, ("insert", "socket"))
RELAY = Operation("TRANSFER relayed", {"operation": "relay"}, 1, ("scan", "insert", "socket", "socket"))
PULL = Operation("TRANSFER pulled", {"operation": "pull"}, 1, ("scan", "insert", "socket"))
# Its time has the transfer's own proof in it: hashes of both tables, each by its server.
PROVEN = Operation("TRANSFER pulled, proven", {"operation": "pull", "verify": True}, 1, ())
EXCHANGE = Operation("EXCHANGE", {"operation": "exchange", "exchanger": "processed"}, None, ("socket", "socket"))
# The same by an exchanger that was registered.
EXCHANGE_SQL = Operation("EXCHANGE, SQL", {"operation": "exchange", "exchanger": "bench_sql"}, None, ())
EXCHANGE_WASM = Operation("EXCHANGE, WebAssembly", {"operation": "exchange", "exchanger": "bench_wasm"}, None, ())
REGISTERED = (EXCHANGE_SQL, EXCHANGE_WASM)

ALL = (GET, PUT, RELAY, PULL, PROVEN, EXCHANGE, *REGISTERED)
