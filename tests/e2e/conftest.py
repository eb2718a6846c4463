import pytest

from support import WITH_USERS, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server without authentication for every test that needs nothing special: tests name their own tables."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """One server that asks who calls."""
    server = Server(tmp_path_factory.mktemp("guarded"), "--auth", settings=WITH_USERS)
    yield server
    server.stop()


@pytest.fixture
def launch(tmp_path):
    """Starts servers with flags and settings of the test's own."""
    servers = []

    def launch(*flags, **options):
        servers.append(Server(tmp_path, *flags, **options))
        return servers[-1]

    yield launch
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def table(request):
    """A table name that no other test uses."""
    return "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
