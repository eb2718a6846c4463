"""What an operator relies on: health, metrics, and an orderly end."""

import socket

import pytest


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz?verbose", "/metrics"])
@pytest.mark.parametrize("which", ["server", "guarded"])
def test_the_admin_port_answers_with_and_without_authentication(request, which, path):
    status, _ = request.getfixturevalue(which).http(path)
    assert status == 200


def test_verbose_readiness_says_what_was_checked(server):
    _, text = server.http("/readyz?verbose")
    assert "ok" in text.lower() and len(text.split()) > 1


def test_an_unknown_admin_path_is_not_found(server):
    assert server.http("/nothing-here")[0] == 404


def test_metrics_count_what_was_asked(server):
    before = server.metric('mallard_queries_total{outcome="ok",statement="select"}')
    server.query("SELECT 1")
    assert server.metric('mallard_queries_total{outcome="ok",statement="select"}') > before
    assert "mallard_build_info{" in server.http("/metrics")[1]


def test_a_silent_connection_does_not_keep_the_server_from_stopping(launch):
    server = launch()
    with socket.create_connection(server.address):
        server.stop()


def test_an_idle_client_does_not_keep_the_server_from_stopping(launch):
    server = launch()
    with server.client() as client:
        client.wait_for_available(10)
        server.stop()
