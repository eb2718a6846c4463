"""The SDK's examples, compiled and registered by a client, with every row read back."""

import base64
import json
import os
import pathlib
import re
import subprocess
import threading
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight
import pytest
from support import Server, refused

MODULES = pathlib.Path(os.environ["MALLARD_WASM_MODULES"])
FLIGHTS = """CREATE TABLE flights AS SELECT DATE '2006-01-01' + (i % 90)::INTEGER AS FL_DATE,
    (hash(i) % 200)::SMALLINT - 50 AS DEP_DELAY, (hash(i + 1) % 5000)::SMALLINT AS DISTANCE,
    (i % 24)::FLOAT AS DEP_TIME FROM range(1000000) t(i)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("wasm"))
    for name in ("processed", "keep", "tokens", "hash", "copy_nested"):
        module = (MODULES / f"{name}.wasm").read_bytes()
        body = {"name": f"wasm_{name}", "wasm": base64.b64encode(module).decode()}
        added = json.loads(running.action("add_exchange", body)[0])
        assert added == {"name": f"wasm_{name}", "version": 1}
    running.query(FLIGHTS)
    yield running
    running.stop()


def exchange(server, what, rows):
    """Sends a table through an exchanger while it reads what comes back."""
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(what.encode()))
        with writer:
            writer.begin(rows.schema)

            def send():
                # Why it was refused is what the reader is told, too.
                with suppress(pa.ArrowException):
                    for batch in rows.to_batches(max_chunksize=61_440):
                        writer.write_batch(batch)
                    writer.done_writing()

            sending = threading.Thread(target=send)
            sending.start()
            answer = reader.read_all()
            sending.join()
            return answer


def flights(server):
    with server.client() as client:
        return client.do_get(flight.Ticket(b"SELECT * FROM flights")).read_all()


def test_every_row_comes_back_processed(server):
    rows = flights(server)
    answer = exchange(server, "wasm_processed", rows)
    assert answer.num_rows == 1_000_000
    assert answer.schema.field("processed").type == pa.bool_()
    assert pc.all(answer["processed"]).as_py() and answer["processed"].null_count == 0
    assert answer.drop_columns(["processed"]).equals(rows)
    assert answer.combine_chunks().equals(exchange(server, "processed", rows).combine_chunks())


def test_rows_are_kept_by_a_column(server):
    rows = flights(server)
    answer = exchange(server, 'wasm_keep {"column": "dep_delay", "above": 100}', rows)
    assert 0 < answer.num_rows < 1_000_000
    assert answer.combine_chunks().equals(rows.filter(pc.greater(rows["DEP_DELAY"], 100)).combine_chunks())
    with refused("INVALID_ARGUMENT", 'exchanger "wasm_keep"', "there is no column", "DEP_DELAY"):
        exchange(server, 'wasm_keep {"column": "delay", "above": 100}', rows.slice(0, 10))


def test_texts_become_words(server):
    rows = pa.table({"id": [1, 2, 3], "text": ["To be, or not", None, "häuser & Äpfel"]})
    answer = exchange(server, 'wasm_tokens {"column": "text"}', rows)
    assert answer.select(["id", "position", "token"]).to_pylist() == [
        {"id": row, "position": position, "token": token}
        for row, words in [(1, ["to", "be", "or", "not"]), (3, ["häuser", "äpfel"])]
        for position, token in enumerate(words, 1)
    ]


def test_texts_are_hashed_in_c(server):
    def fnv(text):
        value = 14695981039346656037
        for byte in text.encode():
            value = (value ^ byte) * 1099511628211 % 2**64
        return value

    texts = ["", "a", None, "ä" * 1000] * 5000
    rows = pa.table({"n": list(range(20_000)), "text": texts})
    answer = exchange(server, "wasm_hash", rows)
    hashes = {text: None if text is None else fnv(text) for text in texts[:4]}
    assert answer["hash"].to_pylist() == [hashes[text] for text in texts]
    with refused("INVALID_ARGUMENT", "the input has no text column"):
        exchange(server, "wasm_hash", rows.select(["n"]))


def test_nested_columns_are_made_with_every_null_where_it_was(server):
    lists = [[1, None, 2], None, [], [3], None]
    rows = pa.table(
        {
            "id": pa.array(range(5), pa.int64()),
            "list": pa.array(lists, pa.list_(pa.int64())),
            "large": pa.array(lists, pa.large_list(pa.int32())),
            "fixed": pa.array([[1, 2], None, [None, 3], [4, 5], None], pa.list_(pa.int32(), 2)),
            "struct": pa.array(
                [{"n": 1, "t": "a"}, None, {"n": None, "t": None}, {"n": 2, "t": ""}, None],
                pa.struct([("n", pa.int64()), ("t", pa.string())]),
            ),
            "deep": pa.array(
                [[{"l": [1]}, None, {"l": None}], None, [], [{"l": []}], [None]],
                pa.list_(pa.struct([("l", pa.list_(pa.int64()))])),
            ),
        }
    )
    # NULL lists whose items are there and mean nothing.
    offsets, items = pa.array([0, 2, 4, 5, 5, 6], pa.int32()), pa.array(range(6), pa.int64())
    hidden = pa.ListArray.from_arrays(offsets, items, mask=pa.array([False, True, False, True, False]))
    rows = rows.append_column("hidden", hidden)
    for part in (rows, rows.slice(1, 3), rows.slice(1, 1), rows.slice(0, 0)):
        answer = exchange(server, "wasm_copy_nested", part)
        assert answer.schema == part.schema and answer.to_pylist() == part.to_pylist()


def test_chains_mix_kinds(server):
    server.action("add_exchange", {"name": "late", "sql": "SELECT * FROM input WHERE DEP_DELAY > 100"})
    rows = flights(server)
    answer = exchange(server, 'late | wasm_processed | wasm_keep {"column": "DISTANCE", "above": 2500}', rows)
    expected = rows.filter(pc.and_(pc.greater(rows["DEP_DELAY"], 100), pc.greater(rows["DISTANCE"], 2500)))
    assert answer.num_rows == expected.num_rows


def test_modules_are_tried_out_and_added_by_the_command_line(server, tmp_path):
    def mallard(*arguments):
        return subprocess.run([os.environ["MALLARD_BIN"], "exchange", *arguments], capture_output=True, text=True)

    answer = tmp_path / "answer.parquet"
    tried = mallard("test", MODULES / "processed.wasm", "--query", "SELECT i FROM range(200000) t(i)", "-o", answer)
    assert tried.returncode == 0, tried.stderr
    assert "processed: Boolean" in tried.stderr
    assert re.search(r"200000 rows in \d+ batches in, 200000 rows in \d+ batches out, [\d.]+ s", tried.stderr)
    tried = mallard("test", MODULES / "keep.wasm", "--params", '{"column": "processed"}', "--in", answer)
    assert tried.returncode == 1 and 'the parameter "above" must be a whole number' in tried.stderr
    added = mallard("add", server.location, "wasm_processed", "--wasm", MODULES / "processed.wasm", "--replace")
    assert json.loads(added.stdout) == {"name": "wasm_processed", "version": 2}, added.stderr


def test_what_the_documentation_shows_of_modules_is_what_happens(server, monkeypatch):
    text = (pathlib.Path(__file__).parents[3] / "docs/exchangers.md").read_text()
    text = text.replace("grpc://127.0.0.1:8815", server.location)
    monkeypatch.chdir(MODULES / "docs")
    (console,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = re.findall(r"^\$ (mallard .*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    assert len(commands) == 3
    for command, shown in commands:
        script = f'mallard() {{ "{os.environ["MALLARD_BIN"]}" "$@"; }}\n{command}'
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, shown), f"{command}: {done.stderr}"
    (snippet,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ".wasm" in one]
    exec(snippet, {})
    listed = [json.loads(one) for one in server.action("list_exchanges")]
    assert [one["version"] for one in listed if one["name"] == "keep"] == [2, 1]
