"""Who is measured: two servers, and the client that asks them. Several contenders may share servers or a client."""

import secrets
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import floors
import operations
from processes import Agent, Failed, Server, free_port

HERE = Path(__file__).resolve().parent
PYTHON_PATH = {"PYTHONPATH": str(HERE)}
EVERYTHING = frozenset(operations.ALL)
BY_BASELINE = EVERYTHING - {operations.PULL, operations.PROVEN, *operations.REGISTERED}
BY_QUACK = frozenset({operations.GET, operations.PUT, operations.PULL})


@dataclass(frozen=True)
class Kind:
    """What a contender is made of; servers and client by the names that Cast knows."""

    title: str
    servers: str
    client: str
    carrier: str = floors.TCP
    operations: frozenset = EVERYTHING
    # Peers are what Mallard is compared with.
    peer: bool = False


KINDS = {
    "mallard-pyarrow": Kind("Mallard, pyarrow client", "mallard", "pyarrow"),
    "mallard-rust": Kind("Mallard, Rust client", "mallard", "rust"),
    "mallard-unix": Kind("Mallard, Rust client, Unix socket", "mallard over a Unix socket", "rust", floors.UNIX),
    "baseline": Kind("pyarrow baseline", "baseline", "pyarrow", operations=BY_BASELINE, peer=True),
    "quack": Kind("DuckDB Quack 1.5.5", "quack", "quack", operations=BY_QUACK, peer=True),
}


@dataclass
class Contender:
    key: str
    kind: Kind
    servers: list
    # One for each of the two; None is the client's own database.
    locations: list
    client: Agent
    # Prepares and checks tables, unmeasured.
    control: Agent

    def processes(self):
        return {f"server {number}": server for number, server in enumerate(self.servers, 1)} | {"client": self.client}

    def keeper(self, index):
        """The process that has the tables at the location of that index."""
        return "client" if self.locations[index] is None else f"server {index + 1}"

    def ask(self, request):
        return self.client.ask({"servers": self.locations} | request)

    def sql(self, index, sql):
        return self.control.ask({"operation": "sql", "servers": [self.locations[index]], "sql": sql})["rows"]

    def register(self, exchanger):
        self.control.ask({"operation": "register", "servers": self.locations[:1], "exchanger": exchanger})

    def version(self):
        return self.sql(0, "SELECT version() AS v")[0]["v"]


class Cast:
    """Starts what the contenders need, each process once; `stack` ends them."""

    def __init__(self, stack, arguments, directory):
        self.stack, self.arguments, self.directory = stack, arguments, directory
        self.token = {"BENCH_QUACK_TOKEN": secrets.token_hex(16)}
        self.agents, self.pairs = {}, {}

    def contender(self, key):
        kind = KINDS[key]
        control = self.agent("quack" if kind.client == "quack" else "control")
        servers, locations = self.pair(kind.servers, control)
        return Contender(key, kind, servers, locations, self.agent(kind.client), control)

    def agent(self, name):
        if name not in self.agents:
            pyarrow = [sys.executable, "-m", "clients.pyarrow_client"]
            command, environment = {
                "pyarrow": (pyarrow, PYTHON_PATH),
                "control": (pyarrow, PYTHON_PATH),
                "rust": (shlex.split(self.arguments.rust_client), PYTHON_PATH),
                "quack": ([str(self.arguments.quack_python), "-m", "peers.quack_client"], PYTHON_PATH | self.token),
            }[name]
            self.agents[name] = self.stack.enter_context(Agent(command, environment))
        return self.agents[name]

    def pair(self, name, control):
        if name not in self.pairs:
            start = {
                "mallard": self._mallard_over_tcp,
                "mallard over a Unix socket": self._mallard_over_unix,
                "baseline": self._baseline,
                "quack": self._quack,
            }[name]
            # Quack's second database is its client.
            count = 1 if name == "quack" else 2
            started = [start(number) for number in range(count)]
            for server, location in started:
                wait_until_it_answers(server, location, control)
            servers, locations = map(list, zip(*started, strict=True))
            self.pairs[name] = servers, locations + [None] * (2 - count)
        return self.pairs[name]

    def _mallard_over_tcp(self, number):
        return self._mallard(f"grpc://127.0.0.1:{free_port()}", f"tcp-{number}")

    def _mallard_over_unix(self, number):
        return self._mallard(f"grpc+unix://{self.directory}/{number}.sock", f"unix-{number}")

    def _mallard(self, location, name):
        quiet = {"MALLARD__ADMIN__LISTEN": "off", "MALLARD__LOG__LEVEL": "error"}
        command = [str(self.arguments.mallard), "serve", "--location", location, "--db", self._database(name)]
        return self._server(command, quiet), location

    def _baseline(self, number):
        port = free_port()
        command = [sys.executable, str(HERE / "peers" / "pyarrow_server.py"), "--port", str(port)]
        return self._server([*command, "--db", self._database(f"baseline-{number}")]), f"grpc://127.0.0.1:{port}"

    def _quack(self, number):
        location = f"quack:127.0.0.1:{free_port()}"
        command = [str(self.arguments.quack_python), str(HERE / "peers" / "quack_server.py"), "--location", location]
        return self._server([*command, "--db", self._database(f"quack-{number}")], self.token), location

    def _database(self, name):
        return ":memory:" if self.arguments.database == "memory" else str(self.directory / f"{name}.duckdb")

    def _server(self, command, environment=None):
        return self.stack.enter_context(Server(command, environment))


def wait_until_it_answers(server, location, control):
    deadline = time.monotonic() + 60
    while True:
        try:
            control.ask({"operation": "sql", "servers": [location], "sql": "SELECT 1"})
            return
        except Failed:
            if server.has_ended() or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
