"""Arrow data that is malformed, out of range or of a rare layout, sent by stock clients on every way into the server: what comes
back is what pyarrow itself reads, or it is refused with the column's name; the server stays alive and gives no memory away."""

import datetime
import decimal
import struct

import adbc_driver_flightsql.dbapi as adbc
import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from support import Server

INT = pa.int32()


def opaque(name):
    return {"ARROW:extension:name": "arrow.opaque", "ARROW:extension:metadata": f'{{"type_name":"{name}","vendor_name":"DuckDB"}}'}


def extension(name, metadata=""):
    return {"ARROW:extension:name": name, "ARROW:extension:metadata": metadata}


EXTENSIONS = {
    "arrow.uuid": (extension("arrow.uuid"), pa.binary(16)),
    "arrow.bool8": (extension("arrow.bool8"), pa.int8()),
    "arrow.json": (extension("arrow.json"), pa.string()),
    "geoarrow.wkb": (extension("geoarrow.wkb", "{}"), pa.binary()),
    "hugeint": (opaque("hugeint"), pa.binary(16)),
    "uhugeint": (opaque("uhugeint"), pa.binary(16)),
    "time_tz": (opaque("time_tz"), pa.binary(8)),
    "bit": (opaque("bit"), pa.binary()),
    "bignum": (opaque("bignum"), pa.binary()),
}

STORAGES = [
    pa.array([b"a"] * 64, pa.binary(1)),
    pa.Array.from_buffers(pa.binary(0), 64, [None, pa.py_buffer(b"")]),
    pa.array([b"abcdefgh"] * 64, pa.binary(8)),
    pa.array([bytes(range(16))] * 64, pa.binary(16)),
    pa.array([None] * 64, pa.null()),
    pa.array([{"a": 1}] * 64, pa.struct([("a", INT)])),
    pa.array([b"a" * 16] * 64, pa.binary()),
    pa.array([b"a" * 16] * 64, pa.large_binary()),
    pa.array(["a" * 16] * 64, pa.string()),
    pa.array([1] * 64, INT),
    pa.array([1] * 64, pa.int8()),
    pa.array([True] * 64, pa.bool_()),
    pa.array([[1]] * 64, pa.list_(pa.int8())),
    pa.array([b"a"] * 64, pa.binary()).dictionary_encode(),
]


def raw(data_type, layout, *values):
    """An array of values that pyarrow would not make of Python's."""
    return pa.Array.from_buffers(data_type, len(values), [None, pa.py_buffer(struct.pack(f"<{len(values)}{layout}", *values))])


def wide(data_type, *values):
    buffer = b"".join(value.to_bytes(data_type.bit_width // 8, "little", signed=True) for value in values)
    return pa.Array.from_buffers(data_type, len(values), [None, pa.py_buffer(buffer)])


def bytes_of(*values):
    return pa.array(values, pa.binary())


# In row 2 of 3; and what the refusal says.
OUT_OF_RANGE = [
    ("time32 s before midnight", raw(pa.time32("s"), "i", 1, -5, 3), "00:00:00 to 24:00:00"),
    ("time32 ms past 24 h", raw(pa.time32("ms"), "i", 1, 86_400_001, 3), "00:00:00 to 24:00:00"),
    ("time64 us before midnight", raw(pa.time64("us"), "q", 1, -1, 3), "00:00:00 to 24:00:00"),
    ("time64 ns past 24 h", raw(pa.time64("ns"), "q", 1, 2**62, 3), "00:00:00 to 24:00:00"),
    ("date32", raw(pa.date32(), "i", 0, -(2**31), 0), "DATE"),
    ("decimal", wide(pa.decimal128(5, 2), 1, 100_000, 3), "more digits"),
    ("decimal, all digits", wide(pa.decimal128(38, 0), 1, -(2**127), 3), "more digits"),
    ("decimal256", wide(pa.decimal256(38, 0), 1, 2**200, 3), "more digits"),
    *[
        (f"timestamp {unit} {zone} {value}", raw(pa.timestamp(unit, zone), "q", 0, value, 0), "outside the range")
        for unit in ("s", "ms", "us", "ns")
        for zone in (None, "UTC")
        for value in (-(2**63), -(2**63) + 2)
    ],
    ("timestamp s that overflows", raw(pa.timestamp("s"), "q", 0, 2**62, 0), "outside the range"),
    ("timestamp ms that overflows", raw(pa.timestamp("ms", "UTC"), "q", 0, -(2**62), 0), "outside the range"),
    ("duration that overflows", raw(pa.duration("s"), "q", 0, 2**62, 0), "outside the range"),
    ("time_tz past 24 h", (opaque("time_tz"), pa.array([bytes(8), b"\xff" * 8, bytes(8)], pa.binary(8))), "time_tz"),
    ("bit without bits", (opaque("bit"), bytes_of(b"\x00\x01", b"", b"\x00\x01")), "bit value"),
    ("bit with too much padding", (opaque("bit"), bytes_of(b"\x00\x01", b"\xff\x01", b"\x00\x01")), "bit value"),
    ("bignum without a header", (opaque("bignum"), bytes_of(b"\x80\x00\x01\x01", b"", b"\x80\x00\x01\x01")), "bignum value"),
    ("bignum of other bytes", (opaque("bignum"), bytes_of(b"\x80\x00\x01\x01", b"\x80\x00\x09\x01", b"\x80\x00\x01\x01")), "bignum"),
    ("no JSON", (extension("arrow.json"), pa.array(["1", "{", "2"])), "JSON"),
]

WORDS = pa.array(["a", "b", None, "a", "c", "b"]).dictionary_encode()
RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([2, 4, 6], INT), pa.array(["x", None, "z"]))


def runs_of(values):
    return pa.RunEndEncodedArray.from_arrays(pa.array(range(2, 2 * len(values) + 2, 2), INT), values)


def union(values, others, tags=(0, 1, 0, 1), **kinds):
    return pa.UnionArray.from_sparse(pa.array(tags, pa.int8()), [values, others], **kinds)


# Valid data in layouts that are rare.
RARE = {
    "dictionary": WORDS,
    "dictionary in a list": pa.ListArray.from_arrays([0, 2, 4, 6], WORDS),
    "dictionary in a fixed-size list": pa.FixedSizeListArray.from_arrays(WORDS, 2),
    "dictionary in a list in a fixed-size list": pa.FixedSizeListArray.from_arrays(pa.ListArray.from_arrays([0, 3, 6], WORDS), 2),
    "dictionary in a struct in a fixed-size list": pa.FixedSizeListArray.from_arrays(pa.StructArray.from_arrays([WORDS], ["x"]), 2),
    "dictionary in a list view": pa.ListViewArray.from_arrays(pa.array([3, 0, 2], INT), pa.array([2, 3, 0], INT), WORDS),
    "dictionary of lists": pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.int8()), pa.array([[1], [2, None]])),
    "runs": RUNS,
    "runs in a fixed-size list": pa.FixedSizeListArray.from_arrays(RUNS, 2),
    "runs in a list": pa.ListArray.from_arrays([0, 1, 6], RUNS),
    "runs of a dictionary": runs_of(WORDS[:3]),
    "runs of runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 4], INT), pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], INT), pa.array([1, 2]))),
    "runs of lists": runs_of(pa.array([[1], [2, 3], None])),
    "runs of structs": runs_of(pa.array([{"a": 1}, None, {"a": 3}])),
    "runs of maps": runs_of(pa.array([[("k", 1)], None], pa.map_(pa.string(), INT))),
    "runs of a union": runs_of(union(pa.array([1, 2]), pa.array(["a", "b"]), (0, 1))),
    "sparse union": union(pa.array([1, 2, None, 4]), pa.array(["a", "b", "c", None])),
    "dense union": pa.UnionArray.from_dense(pa.array([0, 1, 1], pa.int8()), pa.array([0, 0, 1], INT), [pa.array([1]), pa.array(["a", "b"])]),
    "union of other type ids": union(pa.array([1, 2]), pa.array(["a", "b"]), (5, 7), field_names=["x", "y"], type_codes=[5, 7]),
    "union of nulls": union(pa.array([None] * 4, INT), pa.array([None] * 4, pa.string())),
    "list of unions": pa.ListArray.from_arrays([0, 2, 4], union(pa.array([1, 2, None, 4]), pa.array(["a", "b", "c", None]))),
    "list of nulls": pa.array([[None, None], [], None], pa.list_(pa.null())),
    "struct of null": pa.array([{"a": None}, None], pa.struct([("a", pa.null())])),
    "views": pa.array(["a" * 100, None, "b"], pa.string_view()),
    "map": pa.array([[("a", 1), ("b", None)], [], None], pa.map_(pa.string(), INT)),
    "decimal of 256 bits": pa.array([decimal.Decimal("1.23"), None], pa.decimal256(30, 10)),
    "half floats": pa.array([1.5, None], pa.float16()),
    "slice": pa.array([[1], None, [2, 3], []], pa.list_(INT))[1:],
    "empty": pa.array([], pa.list_(WORDS.type)),
    "date64": pa.array([datetime.date(2020, 1, 1), None], pa.date64()),
}


class Ways:
    """A client of each way into the server; each answers the rows as they came back."""

    def __init__(self, server):
        self.server = server
        self.tables = 0
        for name, sql in {"pass_on": "SELECT * FROM input LIMIT 1000000", "keep": "SELECT * FROM input WHERE 1 = 1"}.items():
            server.action("add_exchange", {"name": name, "sql": sql})

    def table(self):
        self.tables += 1
        return f"hostile_{self.tables}"

    def put(self, rows):
        name = self.table()
        self.server.put(name, rows)
        with self.server.client() as client:
            return client.do_get(flight.Ticket(f"FROM {name}".encode())).read_all()

    def exchange(self, name, rows):
        with self.server.client() as client:
            writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(name.encode()))
            try:
                # The refusal is in what is read, and a client that still writes may see the end of the stream first.
                try:
                    writer.begin(rows.schema)
                    for batch in rows.to_batches():
                        writer.write_batch(batch)
                    writer.done_writing()
                except pa.ArrowException:
                    pass
                return reader.read_all()
            finally:
                try:
                    writer.close()
                except pa.ArrowException:
                    pass

    def pass_on(self, rows):
        return self.exchange("pass_on", rows)

    def keep(self, rows):
        return self.exchange("keep", rows)

    def echo(self, rows):
        return self.exchange("echo", rows)

    def ingest(self, rows):
        name = self.table()
        with adbc.connect(self.server.location, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.adbc_ingest(name, rows.to_reader(), mode="create")
            cursor.execute(f"FROM {name}")
            return cursor.fetch_arrow_table()

    def bind(self, rows):
        with adbc.connect(self.server.location, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT ? AS c", rows)
            return cursor.fetch_arrow_table()


WAYS = ["put", "pass_on", "keep", "echo", "ingest", "bind"]
ERRORS = (pa.ArrowException, OSError, adbc_driver_manager.Error)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that gives every client DuckDB's own types back, unions among them."""
    server = Server(tmp_path_factory.mktemp("hostile"), settings={"MALLARD__DATABASE__LOSSLESS_TYPES": "on"})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def ways(server):
    return Ways(server)


def column(array, metadata=None):
    return pa.Table.from_batches([pa.RecordBatch.from_arrays([array], schema=pa.schema([pa.field("c", array.type, metadata=metadata)]))])


def values(rows):
    return [value for chunk in rows.column(0).chunks for value in chunk.to_pylist()]


def check_refusal(error, what, *words):
    message = str(error)
    assert "internal" not in message.lower(), f"{what}: {message}"
    for word in ('column "c', *words):
        assert word in message.replace('\\"', '"'), f"{what}: {message}"


def alive(server):
    assert server.query("SELECT 42 AS answer") == [{"answer": 42}]
    assert server.process.poll() is None


@pytest.mark.parametrize("way", [way for way in WAYS if way != "echo"])
def test_an_extension_type_over_another_storage_is_refused(server, ways, way):
    for name, (metadata, storage) in EXTENSIONS.items():
        for array in STORAGES:
            if array.type == storage or (pa.types.is_large_binary(array.type) and pa.types.is_binary(storage)):
                continue
            if pa.types.is_dictionary(array.type) and pa.types.is_binary(storage):
                continue
            if array.type == pa.binary(0) and way in ("ingest", "bind"):
                continue  # ADBC's driver does not send it.
            what = f"{way}: {name} over {array.type}"
            with pytest.raises(ERRORS) as caught:
                pytest.fail(f"{what} was taken as {values(getattr(ways, way)(column(array, metadata)))[:3]}")
            check_refusal(caught.value, what, "is stored as")
    alive(server)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "echo"])
def test_a_value_out_of_range_is_refused_with_column_and_row(server, ways, way):
    for what, array, says in OUT_OF_RANGE:
        metadata, array = array if isinstance(array, tuple) else (None, array)
        with pytest.raises(ERRORS) as caught:
            pytest.fail(f"{way}: {what} was taken as {getattr(ways, way)(column(array, metadata))}")
        check_refusal(caught.value, f"{way}: {what}", "row 2", says)
    alive(server)


@pytest.mark.parametrize("way", WAYS)
def test_rare_layouts_come_back_as_pyarrow_reads_them(server, ways, way):
    refused = {}
    for what, array in RARE.items():
        rows = column(array)
        try:
            back = getattr(ways, way)(rows)
        except ERRORS as error:
            refused[what] = str(error)
            continue
        assert values(back) == values(rows), f"{way}: {what}"
    alive(server)
    # What a client's own library cannot write is not the server's; the server itself refuses none of these.
    ours = {what: message for what, message in refused.items() if "column" in message or "internal" in message.lower()}
    assert not ours, ours
    assert len(refused) <= (6 if way in ("ingest", "bind") else 0), refused


@pytest.mark.parametrize("way", [*WAYS, "checksum"])
def test_batches_of_different_dictionaries_are_joined(server, ways, way):
    batches = []
    for number in range(40):
        words = pa.array([f"{number} {word}" for word in range(100)])
        keys = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), words)
        batches.append(pa.RecordBatch.from_arrays([keys], ["c"]))
    rows = pa.Table.from_batches(batches)
    if way == "checksum":
        plain = pa.table({"c": pa.array(values(rows))})
        assert ways.exchange("checksum", rows).to_pylist()[0]["rows"] == ways.exchange("checksum", plain).to_pylist()[0]["rows"]
    else:
        assert values(getattr(ways, way)(rows)) == values(rows)
    alive(server)


def test_refusals_keep_no_memory(server, ways):
    def resident():
        with open(f"/proc/{server.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    metadata, _ = EXTENSIONS["arrow.uuid"]
    attack = column(pa.array([b"a"] * 1_000_000, pa.binary(1)), metadata)

    def refuse(times):
        for _ in range(times):
            with pytest.raises(ERRORS):
                ways.put(attack)

    refuse(20)
    before = resident()
    refuse(100)
    assert resident() - before < 64 * 1024, f"{before} kB became {resident()} kB"
    alive(server)
