"""TLS with the stock pyarrow client: who is trusted, client certificates, and a certificate that is replaced."""

import subprocess

import pyarrow.flight as flight
import pytest

from support import PASSWORD, USER, WITH_USERS, bearer, refused, until

SELECT_1 = flight.Ticket(b"SELECT 1 AS one")


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A CA and what it signs, as files in a directory."""

    def __init__(self, directory, name="ca"):
        self.directory, self.name = directory, name
        key, certificate = self.files(name)
        request = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        openssl("req", *request, "-subj", f"/CN={name}", "-keyout", key, "-out", certificate)

    def files(self, name):
        return self.directory / f"{name}.key", self.directory / f"{name}.crt"

    def issue(self, name, alternatives):
        key, certificate = self.files(name)
        own_key, own = self.files(self.name)
        request = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        extensions = [f"subjectAltName={alternatives}", "basicConstraints=critical,CA:FALSE"]
        extensions = [word for extension in extensions for word in ("-addext", extension)]
        signing = ["-CA", own, "-CAkey", own_key]
        openssl("req", *request, "-subj", f"/CN={name}", *extensions, *signing, "-keyout", key, "-out", certificate)
        return certificate, key

    @property
    def pem(self):
        return self.files(self.name)[1].read_bytes()


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def serve(launch, authority):
    def start(**more):
        certificate, key = authority.issue("server", "DNS:localhost,IP:127.0.0.1")
        settings = {"MALLARD__TLS__CERTIFICATE": str(certificate), "MALLARD__TLS__KEY": str(key)}
        server = launch("--auth", settings=WITH_USERS | settings | more)
        server.location = server.location.replace("grpc://", "grpc+tls://")
        return server

    return start


def test_a_login_and_a_query_under_tls(serve, authority):
    with flight.connect(serve().location, tls_root_certs=authority.pem) as client:
        options = bearer(client.authenticate_basic_token(USER, PASSWORD))
        assert client.do_get(SELECT_1, options).read_all().to_pylist() == [{"one": 1}]


def test_an_unknown_authority_is_not_trusted(serve, authority, tmp_path):
    other = Authority(tmp_path, "other")
    with flight.connect(serve().location, tls_root_certs=other.pem) as client:
        with pytest.raises((flight.FlightUnavailableError, flight.FlightInternalError)):
            client.authenticate_basic_token(USER, PASSWORD)
        # What leaves is the alert of the handshake, and no password.
        with pytest.raises(flight.FlightUnavailableError):
            client.do_get(SELECT_1).read_all()


def test_a_client_certificate_is_a_login(serve, authority):
    settings = {"MALLARD__TLS__CLIENT_CA": str(authority.files("ca")[1]), "MALLARD__TLS__CLIENT_AUTH": "optional"}
    server = serve(**settings)

    def client(name, alternatives):
        certificate, key = authority.issue(name, alternatives)
        pair = {"cert_chain": certificate.read_bytes(), "private_key": key.read_bytes()}
        return flight.connect(server.location, tls_root_certs=authority.pem, **pair)

    with client("alice", f"DNS:{USER}") as alice:
        assert alice.do_get(SELECT_1).read_all().to_pylist() == [{"one": 1}]
    with client("mallory", "DNS:mallory") as mallory, refused("UNAUTHENTICATED", "mallory"):
        mallory.do_get(SELECT_1).read_all()


def test_a_new_certificate_is_shown_and_open_connections_go_on(serve, authority, tmp_path):
    server = serve()
    with flight.connect(server.location, tls_root_certs=authority.pem) as before:
        options = bearer(before.authenticate_basic_token(USER, PASSWORD))
        new = Authority(tmp_path, "new")
        certificate, key = new.issue("server-2", "DNS:localhost,IP:127.0.0.1")
        certificate.replace(tmp_path / "server.crt")
        key.replace(tmp_path / "server.key")
        reloads = 'mallard_config_reloads_total{outcome="ok",what="certificate"}'
        until(lambda: server.metric(reloads) >= 1, seconds=30, what="the new certificate")
        assert before.do_get(SELECT_1, options).read_all().num_rows == 1
        # gRPC shares connections between clients that ask for the same.
        with flight.connect(server.location, tls_root_certs=new.pem) as after:
            assert after.do_get(SELECT_1, options).read_all().num_rows == 1
