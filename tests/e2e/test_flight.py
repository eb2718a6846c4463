"""The Flight calls as a stock pyarrow client makes them: data, catalog, exchangers, actions, errors, cancellation."""

import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from support import PASSWORD, USER, WITH_USERS, Server, bearer, refused, until

PEOPLE = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["Ada", "Grace", None]})
# An exchange that hangs should fail, not wait for the whole test's limit.
BOUNDED = flight.FlightCallOptions(timeout=60)


# === DoGet ===


def test_get_answers_every_row_in_order(server):
    with server.client() as client:
        sql = b"SELECT i, 'row ' || i AS label FROM range(300000) AS numbers(i) ORDER BY i"
        answer = client.do_get(flight.Ticket(sql)).read_all()
    assert answer.schema == pa.schema([("i", pa.int64()), ("label", pa.string())])
    assert answer["i"].to_pylist() == list(range(300_000))
    assert answer["label"][299_999].as_py() == "row 299999"


def test_get_without_rows_still_answers_the_schema(server):
    with server.client() as client:
        answer = client.do_get(flight.Ticket(b"SELECT 1::SMALLINT AS small, 'x' AS text WHERE false")).read_all()
    assert answer.num_rows == 0
    assert answer.schema == pa.schema([("small", pa.int16()), ("text", pa.string())])


def test_statements_without_rows_run_once_and_say_what_changed(server, table):
    assert server.query(f"CREATE TABLE {table} (n INTEGER)")[0]["status"] == "OK"
    assert server.query(f"INSERT INTO {table} VALUES (1), (2)") == [{"status": "OK", "rows_changed": 2}]
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 2}]
    assert server.query(f"DELETE FROM {table} WHERE n = 1") == [{"status": "OK", "rows_changed": 1}]


def test_every_type_makes_the_round_trip(server, table):
    with server.client() as client:
        # Plainly, as clients get types that do not ask, the extremes of HUGEINT would not fit.
        lossless = flight.FlightCallOptions(headers=[(b"x-mallard-types", b"lossless")])
        sent = client.do_get(flight.Ticket(b"SELECT * FROM test_all_types()"), lossless).read_all()
    server.put(table, sent)
    types = "SELECT column_name, column_type FROM (DESCRIBE {})"
    assert server.query(types.format(table)) == server.query(types.format("FROM test_all_types()"))
    for difference in (
        f"FROM test_all_types() EXCEPT ALL FROM {table}",
        f"FROM {table} EXCEPT ALL FROM test_all_types()",
    ):
        assert server.query(f"SELECT count(*) AS n FROM ({difference})") == [{"n": 0}]


# === DoPut ===


def test_put_creates_the_table_and_then_appends(server, table):
    for _ in range(2):
        result = server.put(table, PEOPLE)
        assert result["rows"] == 3 and result["bytes"] > 0
    assert server.query(f"SELECT id, name FROM {table} ORDER BY id") == sorted(
        PEOPLE.to_pylist() * 2, key=lambda person: person["id"]
    )


def test_a_put_of_many_batches_stores_every_value(server, table):
    rows = pa.table({"id": pa.array(range(500_000), pa.int64()), "label": [f"row {n}" for n in range(500_000)]})
    assert server.put(table, rows)["rows"] == 500_000
    # Values are read, since a count alone may come from the table's metadata.
    stored = f"SELECT sum(hash(id, label))::VARCHAR AS h FROM {table}"
    generated = "SELECT sum(hash(i, 'row ' || i))::VARCHAR AS h FROM range(500000) AS numbers(i)"
    assert server.query(stored) == server.query(generated)


@pytest.mark.parametrize(
    "descriptor",
    [
        lambda table: flight.FlightDescriptor.for_path("main", table),
        lambda table: flight.FlightDescriptor.for_path("memory", "main", table),
        lambda table: flight.FlightDescriptor.for_command(table.encode()),
        lambda table: flight.FlightDescriptor.for_command(b"main." + table.encode()),
    ],
    ids=["schema-and-table", "catalog-schema-and-table", "command", "dotted-command"],
)
def test_put_finds_the_table_by(server, table, descriptor):
    with server.client() as client:
        writer, _ = client.do_put(descriptor(table), PEOPLE.schema)
        with writer:
            writer.write_table(PEOPLE)
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 3}]


def test_put_quotes_the_table_name(server):
    name = 'or"der; DROP TABLE x'
    server.put(name, PEOPLE)
    assert server.query('SELECT count(*) AS n FROM "or""der; DROP TABLE x"') == [{"n": 3}]


def test_put_matches_columns_by_name_and_casts_without_loss(server, table):
    server.query(f"CREATE TABLE {table} (name VARCHAR, id INTEGER)")
    server.put(table, PEOPLE)
    assert server.query(f"SELECT id, name FROM {table} ORDER BY id") == PEOPLE.to_pylist()


@pytest.mark.parametrize("batches", [0, 1], ids=["no-batch", "empty-batch"])
def test_an_empty_put_creates_the_table(server, table, batches):
    empty = pa.RecordBatch.from_pylist([], PEOPLE.schema)
    result = server.put(table, pa.Table.from_batches([empty] * batches, PEOPLE.schema))
    assert result["rows"] == 0
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 0}]


@pytest.mark.parametrize(
    "rows, column",
    [
        (pa.table({"id": [1], "surprise": ["x"]}), "surprise"),
        (pa.table({"id": pa.array([[1]], pa.list_(pa.int64())), "name": ["x"]}), "id"),
        (pa.table({"id": ["not a number"], "name": ["x"]}), "id"),
    ],
    ids=["unknown-column", "type-without-a-cast", "value-without-a-cast"],
)
def test_a_put_that_does_not_fit_names_the_column_and_leaves_nothing(server, table, rows, column):
    server.query(f"CREATE TABLE {table} (id BIGINT, name VARCHAR)")
    with refused("INVALID_ARGUMENT", column):
        server.put(table, rows)
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 0}]


def test_a_client_that_dies_half_way_leaves_nothing(server, table):
    dying = f"""
import os, pyarrow as pa, pyarrow.flight as flight
rows = pa.table({{"id": pa.array(range(200000), pa.int64())}})
writer, _ = flight.connect("{server.location}").do_put(flight.FlightDescriptor.for_path("{table}"), rows.schema)
for _ in range(5):
    writer.write_table(rows, max_chunksize=61440)
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", dying]).returncode == 7
    until(lambda: server.metric("mallard_streams_open") == 0, seconds=10, what="the end of the put")
    with refused("NOT_FOUND", table):
        server.query(f"FROM {table}")


EXPLICIT = flight.FlightCallOptions(headers=[(b"x-mallard-end", b"explicit")])


def failing(server, table, options, inside_with):
    """A program whose source fails half way; pyarrow ends its stream cleanly all the same."""

    def source():
        yield from numbers(batches=5)
        raise RuntimeError("the source failed")

    with server.client() as client:
        writer, _ = client.do_put(flight.FlightDescriptor.for_path(table), numbers()[0].schema, options)
        with writer if inside_with else nullcontext():
            for batch in source():
                writer.write_batch(batch)
            writer.write_metadata(b'{"end": true, "rows": 10000}')
            writer.done_writing()


@pytest.mark.parametrize("inside_with", [False, True], ids=["collected", "with-writer"])
def test_a_client_that_raises_half_way_leaves_nothing_where_it_announced_an_explicit_end(server, table, inside_with):
    # With `with writer:` the server's refusal may come in place of the program's own error.
    with pytest.raises((RuntimeError, pa.ArrowInvalid)):
        failing(server, table, EXPLICIT, inside_with)
    gc.collect()
    until(lambda: server.metric("mallard_streams_open") == 0, seconds=10, what="the end of the put")
    with refused("NOT_FOUND", table):
        server.query(f"FROM {table}")


def test_an_explicit_end_that_fits_stores_the_rows(server, table):
    for batches in (0, 3):
        with server.client() as client:
            writer, results = client.do_put(flight.FlightDescriptor.for_path(table), numbers()[0].schema, EXPLICIT)
            with writer:
                for batch in numbers(batches):
                    writer.write_batch(batch)
                writer.write_metadata(b'{"end": true, "rows": %d}' % (batches * 1000))
                writer.done_writing()
                assert json.loads(results.read().to_pybytes())["rows"] == batches * 1000
    # The end may come with the last rows.
    with server.client() as client:
        writer, results = client.do_put(flight.FlightDescriptor.for_path(table), numbers()[0].schema, EXPLICIT)
        with writer:
            writer.write_with_metadata(numbers()[0], b'{"end": true, "rows": 1000}')
            writer.done_writing()
            assert json.loads(results.read().to_pybytes())["rows"] == 1000
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 4000}]


def test_an_explicit_end_that_does_not_fit_is_refused(server, table):
    with refused("INVALID_ARGUMENT", "999 rows, and 1000 came"), server.client() as client:
        writer, results = client.do_put(flight.FlightDescriptor.for_path(table), numbers()[0].schema, EXPLICIT)
        with writer:
            writer.write_batch(numbers()[0])
            writer.write_metadata(b'{"end": true, "rows": 999}')
            writer.done_writing()
            results.read()
    with refused("NOT_FOUND", table):
        server.query(f"FROM {table}")


def test_a_message_over_the_limit_is_refused_by_the_key_that_sets_it(launch):
    server = launch(settings={"MALLARD__LIMITS__MAX_MESSAGE_SIZE": "8MiB"})
    big = pa.table({"n": pa.array(range(2_000_000), pa.int64())})
    with refused("RESOURCE_EXHAUSTED", "max_message_size"), server.client() as client:
        writer, _ = client.do_put(flight.FlightDescriptor.for_path("big"), big.schema)
        with writer:
            writer.write_table(big)
    # The refusal ends one call, not the server.
    with server.client() as client:
        writer, _ = client.do_put(flight.FlightDescriptor.for_path("big"), big.schema)
        with writer:
            writer.write_table(big, max_chunksize=61_440)
    assert server.query("SELECT count(*) AS n FROM big") == [{"n": 2_000_000}]


# === DoExchange ===


def exchange(server, name, batches):
    """Sends everything, half-closes, and only then reads."""
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(name.encode()), BOUNDED)
        with writer:
            writer.begin(batches[0].schema)
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
            return reader.read_all()


def numbers(batches=3, rows=1000):
    return [
        pa.record_batch({"id": pa.array(range(first, first + rows), pa.int64())})
        for first in range(0, batches * rows, rows)
    ]


@pytest.mark.parametrize("name", ["processed", "my_streaming_exchanger"])
def test_every_row_comes_back_processed_after_the_half_close(server, name):
    answer = exchange(server, name, numbers())
    assert answer.schema == pa.schema([("id", pa.int64()), ("processed", pa.bool_())])
    assert answer["id"].to_pylist() == list(range(3000))
    assert set(answer["processed"].to_pylist()) == {True}


def test_echo_answers_what_was_sent(server):
    assert exchange(server, "echo", PEOPLE.to_batches()) == PEOPLE


def test_echo_answers_app_metadata(server):
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"echo"), BOUNDED)
        with writer:
            writer.begin(numbers()[0].schema)
            for number, batch in enumerate(numbers()):
                writer.write_with_metadata(batch, b"batch %d" % number)
                chunk = reader.read_chunk()
                assert chunk.data == batch and chunk.app_metadata.to_pybytes() == b"batch %d" % number
            writer.write_metadata(b"alone")
            chunk = reader.read_chunk()
            assert chunk.data is None and chunk.app_metadata.to_pybytes() == b"alone"
            writer.done_writing()


def test_count_answers_rows_batches_and_bytes(server):
    [counted] = exchange(server, "count", numbers()).to_pylist()
    assert (counted["rows"], counted["batches"]) == (3000, 3)
    assert counted["bytes"] >= 3000 * 8


def test_answers_flow_before_the_input_ends(server):
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"processed"), BOUNDED)
        with writer:
            writer.begin(numbers()[0].schema)
            for batch in numbers(batches=5):
                writer.write_batch(batch)
                answer = reader.read_chunk().data
                assert answer.column("id") == batch.column("id")
                assert answer.column("processed").true_count == 1000
            writer.done_writing()
            with pytest.raises(StopIteration):
                reader.read_chunk()


def test_a_million_rows_come_back_while_they_are_sent(server):
    batches = numbers(batches=20, rows=50_000)

    def send(writer):
        writer.begin(batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()

    with server.client() as client, ThreadPoolExecutor(1) as pool:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"processed"), BOUNDED)
        with writer:
            sending = pool.submit(send, writer)
            rows = true = 0
            for chunk in reader:
                rows += chunk.data.num_rows
                true += chunk.data.column("processed").true_count
            sending.result()
    assert rows == true == 1_000_000


def test_twenty_four_million_rows_come_back_to_a_client_that_sends_all_of_them_first(server):
    batch = pa.record_batch(
        {"a": pa.array(range(61_440), pa.int64()), "b": pa.array([0.5] * 61_440), "c": pa.array(range(61_440), pa.int32())}
    )
    answer = 0
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"my_streaming_exchanger"), BOUNDED)
        with writer:
            writer.begin(batch.schema)
            for _ in range(391):
                writer.write_batch(batch)
            writer.done_writing()
            assert server.metric("mallard_exchange_buffer_bytes") > 0
            for chunk in reader:
                assert chunk.data.num_columns == 4
                answer += chunk.data.num_rows
    assert answer == 391 * 61_440
    until(lambda: server.metric("mallard_exchange_buffer_bytes") == 0, seconds=10, what="the end of the exchange")


def test_a_client_that_sends_more_than_may_wait_is_told_to_read_while_it_sends(launch):
    server = launch(settings={"MALLARD__EXCHANGE__BUFFER_DISK": "8MiB", "MALLARD__EXCHANGE__BUFFER_TIMEOUT": "500ms"})
    batch = numbers(batches=1, rows=100_000)[0]
    with refused("RESOURCE_EXHAUSTED", "exchange.buffer_disk", "read while sending"), server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"echo"), BOUNDED)
        writer.begin(batch.schema)
        for _ in range(200):
            writer.write_batch(batch)
        writer.done_writing()
        reader.read_all()


def test_an_exchange_without_rows_answers_the_schema(server):
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"processed"), BOUNDED)
        with writer:
            writer.begin(PEOPLE.schema)
            writer.done_writing()
            answer = reader.read_all()
    assert answer.num_rows == 0
    assert answer.schema.names == ["id", "name", "processed"]


def test_a_column_named_processed_is_not_overwritten(server):
    with refused("INVALID_ARGUMENT", "processed"):
        exchange(server, "processed", [pa.record_batch({"processed": [1]})])


def test_an_exchange_with_sql_answers_its_rows(server):
    with server.client() as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"SELECT 42 AS answer"), BOUNDED)
        with writer:
            writer.done_writing()
            assert reader.read_all().to_pylist() == [{"answer": 42}]


def test_a_registered_exchanger_runs_its_sql_over_the_input(server):
    server.action("add_exchange", {"name": "doubled", "sql": "SELECT *, 2 * id AS twice FROM input"})
    assert "doubled" in "".join(server.action("list_exchanges"))
    answer = exchange(server, "doubled", numbers())
    assert sorted(answer["twice"].to_pylist()) == list(range(0, 6000, 2))

    with refused("ALREADY_EXISTS", "doubled"):
        server.action("add_exchange", {"name": "doubled", "sql": "FROM input"})
    server.action("drop_exchange", {"name": "doubled"})
    assert "doubled" not in "".join(server.action("list_exchanges"))
    with refused("NOT_FOUND", "doubled"):
        exchange(server, "doubled", numbers())


def test_an_unknown_exchanger_is_not_found_and_the_known_ones_are_named(server):
    with refused("NOT_FOUND", "no_such_exchanger", "processed"):
        exchange(server, "no_such_exchanger", numbers())


# === ListFlights, GetFlightInfo, GetSchema ===


def test_a_listed_table_can_be_fetched_by_its_endpoint(server, table):
    server.put(table, PEOPLE)
    with server.client() as client:
        [listed] = [info for info in client.list_flights() if info.descriptor.path[-1] == table.encode()]
        info = client.get_flight_info(listed.descriptor)
        assert listed.schema == info.schema == client.get_schema(listed.descriptor).schema == PEOPLE.schema
        rows = [row for endpoint in info.endpoints for row in client.do_get(endpoint.ticket).read_all().to_pylist()]
    assert sorted(rows, key=lambda row: row["id"]) == PEOPLE.to_pylist()


def test_the_criteria_is_a_glob_on_schema_and_table(server, table):
    server.put(table, PEOPLE)
    server.put(table + "_other", PEOPLE)
    with server.client() as client:
        listed = [info.descriptor.path[-1].decode() for info in client.list_flights(f"main.{table}".encode())]
        assert listed == [table]
        listed = [info.descriptor.path[-1].decode() for info in client.list_flights(f"main.{table}*".encode())]
        assert sorted(listed) == [table, table + "_other"]


def test_sql_is_planned_and_its_ticket_runs_it(server):
    descriptor = flight.FlightDescriptor.for_command(b"SELECT i FROM range(5) AS numbers(i)")
    with server.client() as client:
        info = client.get_flight_info(descriptor)
        assert info.schema == client.get_schema(descriptor).schema == pa.schema([("i", pa.int64())])
        assert info.total_records in (-1, 5)
        [endpoint] = info.endpoints
        assert client.do_get(endpoint.ticket).read_all()["i"].to_pylist() == [0, 1, 2, 3, 4]


def test_several_endpoints_give_every_row_once_however_they_are_read(server, table):
    rows = 400_000
    server.query(f"CREATE TABLE {table} AS SELECT i, 'row ' || i AS label FROM range({rows}) AS numbers(i)")
    wanted = server.query(f"SELECT count(*) AS n, sum(hash(i, label))::VARCHAR AS h FROM {table}")

    def read(endpoint):
        with server.client() as client:
            return client.do_get(endpoint.ticket, BOUNDED).read_all()

    for endpoints, threads in [(1, 1), (2, 2), (4, 4), (4, 1)]:
        asking = flight.FlightCallOptions(headers=[(b"x-mallard-endpoints", str(endpoints).encode())])
        with server.client() as client:
            info = client.get_flight_info(flight.FlightDescriptor.for_path(table), asking)
        assert (len(info.endpoints), info.ordered, info.total_records) == (endpoints, False, rows)
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(read, info.endpoints))
        assert all(part.schema == info.schema for part in parts)
        arrived = f"{table}_{endpoints}_{threads}"
        server.put(arrived, pa.concat_tables(parts))
        assert server.query(f"SELECT count(*) AS n, sum(hash(i, label))::VARCHAR AS h FROM {arrived}") == wanted
        with refused("FAILED_PRECONDITION", "used already") if endpoints > 1 else nullcontext():
            read(info.endpoints[0])


# === Actions ===


def test_the_actions_are_listed_with_descriptions(server):
    with server.client() as client:
        actions = {action.type: action.description for action in client.list_actions()}
    assert {"add_exchange", "drop_exchange", "list_exchanges", "transfer"} <= actions.keys()
    assert all(actions.values())


@pytest.mark.parametrize(
    "name, body, code, word",
    [
        ("no_such_action", b"", "NOT_FOUND", "no_such_action"),
        ("add_exchange", b"not json", "INVALID_ARGUMENT", "add_exchange"),
        ("add_exchange", b'{"name": "x", "sql": "FROM input", "colour": 1}', "INVALID_ARGUMENT", "colour"),
        ("add_exchange", b'{"name": "x"}', "INVALID_ARGUMENT", "sql"),
        ("drop_exchange", b'{"name": "never_added"}', "NOT_FOUND", "never_added"),
        ("transfer", b'{"from": "nowhere", "table": "t", "to": "t", "mode": "create"}', "INVALID_ARGUMENT", "from"),
    ],
    ids=["unknown", "not-json", "unknown-key", "missing-key", "unknown-exchanger", "bad-location"],
)
def test_a_wrong_action_says_what_is_wrong(server, name, body, code, word):
    with server.client() as client, refused(code, word):
        list(client.do_action(flight.Action(name, body)))


# === transfer ===


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A server that asks for a password, with a table to fetch."""
    source = Server(tmp_path_factory.mktemp("source"), "--auth", settings=WITH_USERS)
    try:
        with source.client() as client:
            options = bearer(client.authenticate_basic_token(USER, PASSWORD))
        source.query("CREATE TABLE numbers AS SELECT i, 'row ' || i AS label FROM range(200000) AS numbers(i)", options)
        yield source
    finally:
        source.stop()


def order(source, to, **changes):
    login = {"username": USER, "password": PASSWORD}
    return {"from": source.location, "table": "numbers", "to": to, "mode": "create"} | login | changes


def test_a_transfer_is_pulled_counted_and_verified(server, source, table):
    last = server.transfer(order(source, table))
    assert last["verified"] is True
    stored = server.query(f"SELECT sum(hash(i, label))::VARCHAR AS h FROM {table}")
    assert stored == server.query("SELECT sum(hash(i, 'row ' || i))::VARCHAR AS h FROM range(200000) AS numbers(i)")
    assert PASSWORD not in server.log.read_text()


@pytest.mark.parametrize("mode, rows", [("append", 200_001), ("replace", 200_000)])
def test_a_transfer_into_a_table_that_exists(server, source, table, mode, rows):
    server.query(f"CREATE TABLE {table} AS SELECT -1::BIGINT AS i, 'mine' AS label")
    with refused("ALREADY_EXISTS", table):
        server.transfer(order(source, table))
    server.transfer(order(source, table, mode=mode))
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": rows}]


def test_a_transfer_takes_a_query(server, source, table):
    wanted = order(source, table, query="SELECT i FROM numbers WHERE i < 10")
    del wanted["table"]
    last = server.transfer(wanted)
    assert last["verified"] is True
    assert server.query(f"SELECT count(*) AS n FROM {table}") == [{"n": 10}]


@pytest.mark.parametrize(
    "changes, code",
    [({"password": "wrong"}, "UNAUTHENTICATED"), ({"table": "no_such_table"}, "NOT_FOUND")],
    ids=["wrong-password", "unknown-table"],
)
def test_a_transfer_that_fails_leaves_nothing(server, source, table, changes, code):
    with refused(code):
        server.transfer(order(source, table, **changes))
    with refused("NOT_FOUND", table):
        server.query(f"FROM {table}")


# === Errors, cancellation, many clients ===


@pytest.mark.parametrize(
    "ticket, code, word",
    [
        (b"SELECT * FROM no_such_table", "NOT_FOUND", "no_such_table"),
        (b"SELEC 1", "INVALID_ARGUMENT", "SELEC"),
        (b"SELECT no_such_column FROM range(1)", "INVALID_ARGUMENT", "no_such_column"),
        (b"SELECT 1; SELECT 2", "INVALID_ARGUMENT", "one statement"),
        (b"", "INVALID_ARGUMENT", "empty"),
        (b"\xff\xfe", "INVALID_ARGUMENT", "UTF-8"),
        (b"SELECT 'x'::INTEGER", "INVALID_ARGUMENT", "convert"),
    ],
    ids=["unknown-table", "broken", "unknown-column", "two-statements", "empty", "not-utf-8", "bad-cast"],
)
def test_a_ticket_that_cannot_be_answered(server, ticket, code, word):
    with server.client() as client, refused(code, word):
        client.do_get(flight.Ticket(ticket)).read_all()


def test_a_table_that_exists_already_is_said_to(server, table):
    server.query(f"CREATE TABLE {table} AS SELECT 1 AS n")
    with refused("ALREADY_EXISTS", table):
        server.query(f"CREATE TABLE {table} AS SELECT 2 AS n")


def test_a_violated_constraint_is_a_failed_precondition(server, table):
    server.query(f"CREATE TABLE {table} (n INTEGER PRIMARY KEY)")
    server.query(f"INSERT INTO {table} VALUES (1)")
    with refused("FAILED_PRECONDITION"):
        server.query(f"INSERT INTO {table} VALUES (1)")


def test_a_cancelled_stream_ends_its_query_within_a_second(launch):
    server = launch()
    endless = b"SELECT a.i * b.i AS product FROM range(1000000) AS a(i), range(1000000) AS b(i)"
    with server.client() as client:
        reader = client.do_get(flight.Ticket(endless))
        assert reader.read_chunk().data.num_rows > 0
        assert server.metric("mallard_queries_running") == 1
        reader.cancel()
        # The one time that is promised.
        until(lambda: server.metric("mallard_queries_running") == 0, seconds=1, what="the end of the cancelled query")
    assert server.query("SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.parametrize("shared", [True, False], ids=["one-connection", "a-connection-each"])
def test_two_hundred_queries_at_once_each_get_their_own_answer(server, shared):
    def ask(number):
        client = one if shared else server.client()
        try:
            return client.do_get(flight.Ticket(f"SELECT {number} AS n".encode())).read_all()["n"][0].as_py()
        finally:
            if not shared:
                client.close()

    with server.client() as one, ThreadPoolExecutor(200) as pool:
        assert list(pool.map(ask, range(200))) == list(range(200))
