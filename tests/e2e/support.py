"""A `mallard serve` process on free loopback ports, and what the tests ask of it with the stock pyarrow client."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.flight as flight
import pytest

USER = "alice"
PASSWORD = "correct:horse battery"
WITH_USERS = {"MALLARD__AUTH__USERS__ALICE__PASSWORD": PASSWORD, "MALLARD__AUTH__USERS__ALICE__ROLE": "admin"}


# Several codes share one pyarrow exception, but its message opens with words that only one code has.
CODES = {
    "INVALID_ARGUMENT": "Flight returned invalid argument error",
    "NOT_FOUND": "Flight returned not found error",
    "ALREADY_EXISTS": "Flight returned already exists error",
    "UNAUTHENTICATED": "Flight returned unauthenticated error",
    "RESOURCE_EXHAUSTED": "gRPC returned resource exhausted error",
    "FAILED_PRECONDITION": "gRPC returned precondition failed error",
}


class Server:
    def __init__(self, directory, *flags, settings=None):
        port, admin = free_ports(2)
        self.location = f"grpc://127.0.0.1:{port}"
        self.admin = f"http://127.0.0.1:{admin}"
        self.address = ("127.0.0.1", port)
        self.log = directory / f"mallard-{port}.log"
        # Settings of whoever runs the tests are not what is tested.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLARD__")}
        environment |= {"MALLARD__ADMIN__LISTEN": f"127.0.0.1:{admin}"} | (settings or {})
        command = [os.environ["MALLARD_BIN"], "serve", "--location", self.location, "--db", ":memory:", *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            until(self._ready, seconds=60, what=f"readiness of {self.location}")
        except BaseException:
            self.process.kill()
            raise

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.log.read_text()}"

    def client(self):
        return flight.connect(self.location)

    def query(self, sql, options=None):
        """All rows of the answer, as dictionaries."""
        with self.client() as client:
            return client.do_get(flight.Ticket(sql.encode()), options).read_all().to_pylist()

    def put(self, table, rows, options=None):
        """Sends a pyarrow table; answers the JSON of the PutResult."""
        with self.client() as client:
            options = options or flight.FlightCallOptions(headers=[(b"x-mallard-end", b"explicit")])
            writer, results = client.do_put(flight.FlightDescriptor.for_path(table), rows.schema, options)
            with writer:
                writer.write_table(rows, max_chunksize=61_440)
                writer.write_metadata(json.dumps({"end": True, "rows": rows.num_rows}).encode())
                writer.done_writing()
                return json.loads(results.read().to_pybytes())

    def action(self, name, body=None, options=None):
        """Runs an action with a JSON body; answers its results as text."""
        with self.client() as client:
            results = client.do_action(flight.Action(name, json.dumps(body or {}).encode()), options)
            return [result.body.to_pybytes().decode() for result in results]

    def transfer(self, order):
        """Runs a transfer; answers its last result, the progress before it left out."""
        return json.loads(self.action("transfer", order)[-1])

    def http(self, path):
        try:
            with urllib.request.urlopen(self.admin + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()

    def metric(self, name):
        _, text = self.http("/metrics")
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def _ready(self):
        if self.process.poll() is not None:
            pytest.fail(f"mallard ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            socket.create_connection(self.address, timeout=1).close()
            return self.http("/readyz")[0] == 200
        except OSError:
            return False


def bearer(header):
    return flight.FlightCallOptions(headers=[header])


def until(true, *, seconds, what):
    """Waits for a condition and answers how long that took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - start


@contextmanager
def refused(code, *words):
    """The block fails with this gRPC code, in a message that holds these words."""
    # GetSchema raises what is wrong with the transport as OSError.
    with pytest.raises((pa.ArrowException, OSError)) as caught:
        yield
    message = str(caught.value)
    assert CODES[code] in message, message
    for word in words:
        assert word.lower() in message.lower(), message


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
