"""Who may call: passwords become tokens, tokens expire, and nothing on the Flight port answers a stranger."""

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from support import PASSWORD, USER, WITH_USERS, bearer, refused, until

SELECT_1 = flight.Ticket(b"SELECT 1 AS one")
PLANNED = flight.FlightDescriptor.for_command(b"SELECT 1")
ECHO = flight.FlightDescriptor.for_command(b"echo")
TABLE = flight.FlightDescriptor.for_path("t")
NUMBERS = pa.schema([("n", pa.int64())])


def test_a_login_answers_a_token_that_later_calls_accept(guarded):
    with guarded.client() as client:
        name, value = client.authenticate_basic_token(USER, PASSWORD)
        assert (name, value[:7]) == (b"authorization", b"Bearer ")
        assert client.do_get(SELECT_1, bearer((name, value))).read_all().to_pylist() == [{"one": 1}]


def test_a_token_is_good_on_another_connection(guarded):
    with guarded.client() as first, guarded.client() as second:
        options = bearer(first.authenticate_basic_token(USER, PASSWORD))
        assert second.do_get(SELECT_1, options).read_all().num_rows == 1


class PayloadLogin(flight.ClientAuthHandler):
    """The older form: name and password in the Handshake's payload; pyarrow sends the answer with every later call."""

    def __init__(self):
        super().__init__()
        self.token = b""

    def authenticate(self, outgoing, incoming):
        outgoing.write(flight.BasicAuth(USER, PASSWORD).serialize())
        self.token = incoming.read()

    def get_token(self):
        return self.token


def test_the_payload_form_of_handshake_logs_in(guarded):
    with guarded.client() as client:
        client.authenticate(PayloadLogin())
        assert client.do_get(SELECT_1).read_all().num_rows == 1


@pytest.mark.parametrize(
    "user, password",
    [(USER, "wrong"), (USER, ""), ("mallory", PASSWORD), ("", "")],
    ids=["wrong-password", "no-password", "unknown-user", "nothing"],
)
def test_wrong_credentials_are_unauthenticated(guarded, user, password):
    with guarded.client() as client, refused("UNAUTHENTICATED"):
        client.authenticate_basic_token(user, password)


def send(call):
    writer, reader = call
    with writer:
        writer.done_writing()
        reader.read()


CALLS = {
    "DoGet": lambda client, options: client.do_get(SELECT_1, options).read_all(),
    "DoPut": lambda client, options: send(client.do_put(TABLE, NUMBERS, options)),
    "DoExchange": lambda client, options: client.do_exchange(ECHO, options)[1].read_all(),
    "DoAction": lambda client, options: list(client.do_action(flight.Action("list_exchanges", b"{}"), options)),
    "ListActions": lambda client, options: list(client.list_actions(options)),
    "ListFlights": lambda client, options: list(client.list_flights(options=options)),
    "GetFlightInfo": lambda client, options: client.get_flight_info(PLANNED, options),
    "GetSchema": lambda client, options: client.get_schema(PLANNED, options),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer made-up")],
        [(b"authorization", b"Basic bm8=")],
        [(b"auth-token-bin", b"made-up")],
    ],
    ids=["no-token", "false-token", "false-basic", "false-payload-token"],
)
def test_no_call_answers_without_identity(guarded, call, headers):
    options = flight.FlightCallOptions(timeout=20, headers=headers)
    with guarded.client() as client, refused("UNAUTHENTICATED"):
        call(client, options)


def test_an_expired_token_is_refused_and_a_new_login_helps(launch):
    server = launch("--auth", settings=WITH_USERS | {"MALLARD__AUTH__TOKEN_TTL": "2s"})
    with server.client() as client:
        options = bearer(client.authenticate_basic_token(USER, PASSWORD))
        assert client.do_get(SELECT_1, options).read_all().num_rows == 1

        def expired():
            try:
                client.do_get(SELECT_1, options).read_all()
                return False
            except flight.FlightUnauthenticatedError:
                return True

        until(expired, seconds=20, what="the token's end")
        renewed = bearer(client.authenticate_basic_token(USER, PASSWORD))
        assert client.do_get(SELECT_1, renewed).read_all().num_rows == 1


def test_passwords_and_tokens_stay_out_of_the_log(launch):
    server = launch("--auth", settings=WITH_USERS | {"MALLARD__LOG__LEVEL": "debug"})
    with server.client() as client:
        _, value = client.authenticate_basic_token(USER, PASSWORD)
        client.do_get(SELECT_1, bearer((b"authorization", value))).read_all()
        with refused("UNAUTHENTICATED"):
            client.authenticate_basic_token(USER, "almost-right-password")
    log = server.log.read_text()
    for secret in (PASSWORD, "almost-right-password", value.removeprefix(b"Bearer ").decode()):
        assert secret not in log
