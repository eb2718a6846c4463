"""The checks of run.sh, which says where everything is: arguments, MALLARD_IMAGE, COMPOSE_* and E2E_* (ports, report).

Prints a line for each check and, last, how many passed; exit code 1 if any failed. Sections may be named as arguments.
"""

import argparse
import base64
import html.parser
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(__file__).resolve().parent
IMAGE = os.environ["MALLARD_IMAGE"]
PROJECT = os.environ["COMPOSE_PROJECT_NAME"]
FLIGHT = {server: int(os.environ[f"E2E_FLIGHT_{server}"]) for server in (1, 2)}
ADMIN = {server: int(os.environ[f"E2E_ADMIN_{server}"]) for server in (1, 2)}
REPORT = pathlib.Path(os.environ["E2E_REPORT"])
JOBS = ["signing-key", "password", "demo"]
SERVERS = ["mallard-1", "mallard-2"]
HARDENED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
OPERATIONS = ["PUT", "GET", "TRANSFER relayed", "TRANSFER pulled", "EXCHANGE", "EXCHANGE registered"]
DEMO_ROWS = 3_000_000
LARGEST_IMAGE_MB = 150
PATIENCE = 60
# Of docker-compose.yml: within this a stop has to end.
STOP_GRACE = 60
# HTTP/2 keepalive: 20 s of silence, 20 s for the answer; and some time to tell.
NETWORK_CUT = 60

arguments = argparse.ArgumentParser()
arguments.add_argument("--work", type=pathlib.Path, required=True)
arguments.add_argument("--tools", type=pathlib.Path, required=True)
arguments.add_argument("sections", nargs="*")
arguments = arguments.parse_args()
WORK = arguments.work
# What the image is built from: a compilation that goes on meanwhile changes nothing.
MALLARD = WORK / "build/mallard"


# === Checks ===

passed, failed = [], []
# Whether this section has shown its logs; how many log lines of which containers a failure shows.
told = False
SHOWN = 12


@contextmanager
def check(name):
    global told
    try:
        yield
    except Exception as failure:  # whatever goes wrong is one failed check, and the others still run
        why = f"{type(failure).__name__}: {failure}" if not isinstance(failure, AssertionError) else str(failure)
        print(f"FAIL {name}")
        for line in why.splitlines() or ["assertion failed"]:
            print(f"     {line}")
        if not told:
            told = True
            show_logs()
        failed.append(name)
    else:
        print(f"ok   {name}")
        passed.append(name)
    sys.stdout.flush()


def show_logs():
    listed = docker("ps", "-a", "--format={{.Names}}\t{{.Status}}", any_code=True).stdout.splitlines()
    for name, status in (line.split("\t") for line in listed if line.startswith(PROJECT)):
        print(f"     --- {name}: {status}")
        logs = docker("logs", f"--tail={SHOWN}", name, any_code=True)
        for line in (logs.stdout + logs.stderr).splitlines():
            print(f"     {line[:400]}")


def nothing(found, what):
    """Fails with the list of what should not be there."""
    found = list(found)
    assert not found, f"{what}:\n" + "\n".join(f"  {one}" for one in found)


def equal(seen, expected, what):
    assert seen == expected, f"{what}: {seen!r}, expected {expected!r}"


def until(true, what, patience=PATIENCE, pause=0.1):
    """What `true` answers once that is true; a server that is not there is asked again."""
    deadline = time.monotonic() + patience
    while True:
        try:
            seen, why = true(), ""
        except (OSError, KeyError) as error:
            seen, why = None, f" ({error})"
        if seen:
            return seen
        assert time.monotonic() < deadline, f"not within {patience} s: {what}{why}"
        time.sleep(pause)


# === Commands ===


def run(command, timeout=PATIENCE, any_code=False, env=None):
    """Runs a command to its end, within `timeout` seconds, without input."""
    command = ["timeout", "-k", "5", str(timeout), *map(str, command)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=os.environ | (env or {})
    )
    if not any_code:
        said = (done.stdout + done.stderr).strip()[-2000:]
        assert done.returncode == 0, f"exit code {done.returncode} of {' '.join(command[4:])}\n{said}"
    return done


def docker(*command, **how):
    return run(["docker", *command], **how)


def compose(*command, **how):
    return docker("compose", *command, **{"timeout": 120} | how)


def inspect(*names):
    """What `docker inspect` says of one thing, or of each of several."""
    found = json.loads(docker("inspect", *names).stdout)
    return found[0] if len(names) == 1 else found


def container(service):
    return f"{PROJECT}-{service}-1"


class Running:
    """A command that runs beside the checks; when it ended is noted."""

    def __init__(self, command, env=None):
        self.output = tempfile.TemporaryFile("w+", dir=WORK, errors="replace")
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
        )
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        self.code = self.process.wait()
        self.end = time.monotonic()

    def is_running(self):
        return self.process.poll() is None

    def wait(self, patience):
        """Exit code and output, or an error when it takes longer."""
        self.thread.join(patience)
        if self.is_running():
            self.process.kill()
            raise AssertionError(f"still running after {patience} s:\n{self.text()}")
        return self.code, self.text()

    def text(self):
        self.output.seek(0)
        return self.output.read().strip()


# === The two servers ===

login_now = {}


def up(**how):
    """Starts what does not run, waits until both servers are healthy and answer on this machine's ports."""
    login_now.clear()
    compose("up", "-d", "--wait", *SERVERS, **how)
    for server in FLIGHT:
        until(lambda server=server: get(server, "/readyz")[0] == 200, f"server {server} is ready at its port")


def down():
    """Stops and removes, but for the named volumes; the names of unnamed volumes that stay behind."""
    login_now.clear()
    ids = compose("ps", "-aq").stdout.split()
    mounted = {mount["Name"] for one in listed(ids) for mount in one["Mounts"] if mount["Type"] == "volume"}
    compose("down")
    left = {name for name in docker("volume", "ls", "-q").stdout.split() if name in mounted}
    unnamed = sorted(name for name in left if not name.startswith(f"{PROJECT}_"))
    for name in unnamed:
        docker("volume", "rm", name)
    return unnamed


def listed(ids):
    return json.loads(docker("inspect", *ids).stdout) if ids else []


def password():
    return compose("exec", "-T", "mallard-1", "mallard", "user", "password").stdout.strip()


def login():
    if not login_now:
        login_now.update(MALLARD_USER="mallard", MALLARD_PASSWORD=password())
    return dict(login_now)


def mallard(*command, timeout=PATIENCE, env=None):
    return run([MALLARD, *command], timeout=timeout, any_code=True, env=login() if env is None else env)


def sql(server, statement):
    """The rows of a statement, as texts."""
    done = mallard("query", f"grpc://127.0.0.1:{FLIGHT[server]}", statement, "--format=csv")
    assert done.returncode == 0, f"exit code {done.returncode} of {statement!r} at server {server}: {done.stderr.strip()}"
    return [line.split(",") for line in done.stdout.splitlines()[1:]]


def get(server, path, port=None):
    """Status and text of a page of the admin port."""
    address = f"http://127.0.0.1:{port or ADMIN[server]}{path}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(server, port=None):
    status, text = get(server, "/metrics", port)
    equal(status, 200, "/metrics")
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def metric(server, name, port=None):
    return metrics(server, port)[name]


def tables(server):
    """Without those of the schema that is the server's own, where it keeps what clients register."""
    return {name for (name,) in sql(server, "SELECT table_name FROM duckdb_tables() WHERE schema_name <> '_mallard'")}


# === The image ===


def base_image():
    """The Dockerfile's own, unless the binary was linked against a newer glibc than Debian 12's."""
    newest = max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", MALLARD.read_bytes()))
    return [] if newest <= 36 else ["--build-arg=BASE_IMAGE=debian:trixie-slim"]


def build():
    docker(
        *["build", "--quiet", f"--tag={IMAGE}", f"--build-context=build={MALLARD.parent}", *base_image()],
        *["--build-arg=REVISION=e2e", "--build-arg=CREATED=2000-01-01T00:00:00Z", ROOT],
        timeout=600,
    )


def image_files():
    """Everything in the image, as members of an archive."""
    name = docker("create", "--label=mallard-e2e", IMAGE).stdout.strip()
    archive = WORK / "image.tar"
    docker("export", f"--output={archive}", name)
    docker("rm", "-v", name)
    with tarfile.open(archive) as opened:
        return list(opened)


# What the engine itself puts into every container.
OF_THE_ENGINE = re.compile(r"\.dockerenv|(dev|proc|sys)(/.*)?|etc/(hostname|hosts|mtab|resolv\.conf)")
OF_THE_IMAGE = re.compile(
    r"usr/local/bin/mallard"
    r"|(usr/)?lib(64)?/([\w-]+/)?(ld-linux[\w-]*|libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)\.so\.\d+"
    r"|etc/ssl/certs/ca-certificates\.crt|etc/(passwd|group|nsswitch\.conf)"
    r"|usr/share/doc/[\w.+-]+/copyright"
)


def image():
    with check("hadolint has nothing to say about the Dockerfile"):
        run([arguments.tools / "hadolint", ROOT / "Dockerfile"])
    with check("docker-compose.yml is valid, with and without the observability profile"):
        shipped = {"COMPOSE_FILE": str(ROOT / "docker-compose.yml")}
        compose("config", "-q", env=shipped)
        compose("--profile", "observability", "config", "-q", env=shipped)
    with check("docker-compose.yml publishes ports on the loopback interface only"):
        shipped = compose("--profile", "observability", "config", "--format=json", env=shipped).stdout
        ports = [port for service in json.loads(shipped)["services"].values() for port in service.get("ports", [])]
        assert len(ports) >= 4, f"ports: {ports}"
        nothing((port for port in ports if port.get("host_ip") != "127.0.0.1"), "published elsewhere")

    known = inspect(IMAGE)
    config = known["Config"]
    size = known["Size"] / 1e6
    with check(f"the image has {size:.1f} MB, fewer than {LARGEST_IMAGE_MB}"):
        assert size < LARGEST_IMAGE_MB
    with check("it runs as 65532, without a shell in between, and stops on SIGTERM"):
        equal(config["User"], "65532:65532", "user")
        equal(config["Entrypoint"], ["mallard"], "entry point")
        equal(config["Cmd"], ["serve"], "command")
        equal(config["StopSignal"], "SIGTERM", "stop signal")
        equal(set(config["Volumes"]), {"/data", "/tmp"}, "volumes")
        equal(set(config["ExposedPorts"]), {"8815/tcp", "9815/tcp"}, "ports")
    with check("its health check is the binary's own"):
        equal(config["Healthcheck"]["Test"], ["CMD", "mallard", "health"], "health check")
    with check("mallard --version runs in it, and the OCI labels say what it is"):
        version = docker("run", "--rm", IMAGE, "--version").stdout.split()
        equal(version[0], "mallard", "program")
        label = "org.opencontainers.image."
        labels = {key.removeprefix(label): value for key, value in config["Labels"].items() if key.startswith(label)}
        equal(labels.pop("created"), "2000-01-01T00:00:00Z", "created")
        equal(labels.pop("revision"), "e2e", "revision")
        equal(labels.pop("version"), version[1], "version")
        equal(labels.pop("licenses"), "MIT", "licenses")
        for name in ("title", "description", "base.name"):
            assert labels.pop(name, ""), f"no label {name}"
    with check("nothing is in it but the binary, libraries, certificates and licences"):
        files = [file for file in image_files() if not OF_THE_ENGINE.fullmatch(file.name)]
        known = {file.name for file in files if OF_THE_IMAGE.fullmatch(file.name)}
        nothing((file.name for file in files if not file.isdir() and file.name not in known), "files")
        parents = {str(parent) for name in known for parent in pathlib.PurePath(name).parents}
        nothing((file.name for file in files if file.isdir() and file.name not in parents | {"data", "run", "run/mallard", "tmp"}), "directories")
        for needed in ("usr/local/bin/mallard", "etc/ssl/certs/ca-certificates.crt", "usr/share/doc/mallard/copyright"):
            assert needed in known, f"{needed} is not there"
    with check("only /data, /run/mallard and /tmp can be written in it, and nothing gains rights"):
        own = {"data", "run/mallard"}
        nothing((file.name for file in files if (file.uid, file.gid) != ((65532, 65532) if file.name in own else (0, 0))), "owners")
        nothing((file.name for file in files if file.mode & 0o6000 or (file.mode & 0o022 and file.name != "tmp")), "modes")
    with check("without a configuration it refuses to serve without a login, and names the key"):
        done = docker("run", "--rm", IMAGE, any_code=True)
        equal(done.returncode, 2, "exit code")
        assert "auth.enabled" in done.stderr and "auth.allow_anonymous" in done.stderr, done.stderr
    with check("it serves hardened (read-only, no capabilities, no new privileges), is healthy, and stops with 0"):
        name = start_alone("hardened", ["--tmpfs=/tmp"])
        until(lambda: inspect(name)["State"]["Health"]["Status"] == "healthy", "healthy")
        asked = docker("exec", name, "mallard", "query", "grpc://127.0.0.1:8815", "CREATE TABLE t AS SELECT 42")
        assert "OK" in asked.stdout, asked.stdout
        docker("stop", name)
        equal(inspect(name)["State"]["ExitCode"], 0, "exit code")
        docker("rm", "-v", name)


def start_alone(name, options, environment=()):
    """A server outside compose that everyone may use."""
    variables = ["MALLARD__AUTH__ALLOW_ANONYMOUS=true", *environment]
    docker(
        *["run", "--detach", f"--name={PROJECT}-{name}", "--label=mallard-e2e", *HARDENED, *options],
        *[f"--env={variable}" for variable in variables],
        IMAGE,
    )
    return f"{PROJECT}-{name}"


# === The demo ===


class External(html.parser.HTMLParser):
    """What a page loads or runs that is not in it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "link", "iframe", "object", "embed", "img", "base", "form"):
            self.found.append(f"<{tag}>")
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and not (value or "").startswith("#"):
                self.found.append(f"{name}={value}")
            if name.startswith("on"):
                self.found.append(name)
            if name == "style" and "url(" in (value or ""):
                self.found.append(f"{name}={value}")

    def handle_data(self, data):
        if "url(" in data or "@import" in data:
            self.found.append(data.strip()[:80])


def demo():
    with check("docker compose up: the demo ends with exit code 0"):
        compose("up", "-d", env={"MALLARD_DEMO_ROWS": str(DEMO_ROWS)})
        compose("wait", "demo")
        until(lambda: all(get(server, "/readyz")[0] == 200 for server in FLIGHT), "both servers are ready")
    with check("demo.json: six operations, all rows, everything verified"):
        report = json.loads((REPORT / "demo.json").read_text())
        assert report["verified"] is True and report["failure"] is None, report["failure"]
        equal([one["operation"] for one in report["operations"]], OPERATIONS, "operations")
        nothing((one for one in report["operations"] if not one["verified"] or one["rows"] != DEMO_ROWS), "operations")
        assert len(report["checks"]) == 3 and all(one["verified"] for one in report["checks"]), report["checks"]
        assert "mallard-1:8815 and grpc://mallard-2:8815" in report["servers"], report["servers"]
    with check("demo.md says the same"):
        text = (REPORT / "demo.md").read_text()
        assert "Everything was verified." in text, text
        equal(text.count(f"| {DEMO_ROWS:,} |"), len(OPERATIONS), "rows of the table")
        equal(text.count("| yes |"), len(OPERATIONS), "verified rows of the table")
    with check("demo.html says the same, loads nothing and runs no script"):
        text = (REPORT / "demo.html").read_text()
        assert "Everything was verified." in text and f"{DEMO_ROWS:,}" in text, "the verdict or the rows"
        for operation in OPERATIONS:
            assert operation in text, f"{operation} is not there"
        page = External()
        page.feed(text)
        nothing(page.found, "not of the page's own")
    with check("the demo leaves no tables behind"):
        equal(tables(1) | tables(2), set(), "tables")
    with check("the servers log JSON, and nothing above INFO"):
        for name in SERVERS:
            logs = docker("logs", container(name))
            lines = [json.loads(line) for line in (logs.stdout + logs.stderr).splitlines()]
            assert any(line["message"] == "serving" for line in lines), f"{name} does not say that it serves"
            nothing((line for line in lines if line["level"] in ("WARN", "ERROR")), f"{name} logs")
    hardening()


def hardening():
    with check("every container is read-only, without capabilities, new privileges, or more than 512 processes"):
        for service in SERVERS + JOBS:
            host = inspect(container(service))["HostConfig"]
            assert host["ReadonlyRootfs"] and not host["Privileged"], f"{service}: {host}"
            equal(host["CapDrop"], ["ALL"], f"capabilities dropped by {service}")
            equal(host["CapAdd"], None if service not in ("demo", "password") else ["DAC_OVERRIDE"], f"capabilities added by {service}")
            assert "no-new-privileges:true" in host["SecurityOpt"], f"{service}: {host['SecurityOpt']}"
            equal(host["PidsLimit"], 512, f"process limit of {service}")
            if service in ("password", "signing-key"):
                equal(host["NetworkMode"], "none", f"network of {service}")
    with check("the servers run as 65532, within 4 GiB"):
        for service in SERVERS:
            known = inspect(container(service))
            equal(known["Config"]["User"], "65532:65532", f"user of {service}")
            equal(known["HostConfig"]["Memory"], 4 << 30, f"memory limit of {service}")
            status = pathlib.Path(f"/proc/{known['State']['Pid']}/status")
            # Not there where the engine runs on another machine.
            if status.exists():
                status = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
                seen = {key: status[key] for key in ("NoNewPrivs", "Seccomp")} | {"uid": status["Uid"].split()[0]}
                equal(seen, {"NoNewPrivs": "1", "Seccomp": "2", "uid": "65532"}, f"process of {service}")
                nothing((key for key in ("CapEff", "CapPrm", "CapBnd") if int(status[key], 16)), f"capabilities of {service}")
    with check("a process in a server's container can write neither its root nor the secrets"):
        for path in ("/etc/probe", "/run/mallard/probe"):
            done = compose("exec", "-T", "mallard-1", "mallard", "user", "password", "--quiet", f"--file={path}", any_code=True)
            assert done.returncode == 1 and "ead-only" in done.stderr, f"{path}: {done.returncode} {done.stderr}"
    with check("ports are published on the loopback interface only"):
        for service in SERVERS + JOBS:
            ports = inspect(container(service))["NetworkSettings"]["Ports"] or {}
            published = [binding["HostIp"] for bindings in ports.values() for binding in bindings or []]
            equal(published, ["127.0.0.1"] * (2 if service in SERVERS else 0), f"addresses of {service}")


# === From the host ===


def host():
    with check("/metrics counts the rows that the demo moved"):
        first, second = metrics(1), metrics(2)
        # PUT and two exchanges; GET, relayed, pulled and two exchanges, beside one row for each small question.
        equal(first['mallard_rows_total{direction="received"}'], 3 * DEMO_ROWS, "received by server 1")
        small = first['mallard_rows_total{direction="sent"}'] - 5 * DEMO_ROWS
        assert 0 < small < 100, f"sent by server 1: {small} beside the large table"
        # The small table and the relayed transfer; what it pulls is counted as a transfer.
        equal(second['mallard_rows_total{direction="received"}'], DEMO_ROWS + 3, "received by server 2")
        equal(second["mallard_transfer_rows_total"], DEMO_ROWS, "pulled by server 2")
        equal(second['mallard_transfers_total{outcome="ok"}'], 1, "transfers")
        for kind in ("builtin", "sql"):
            equal(first[f'mallard_exchanges_total{{kind="{kind}",outcome="ok"}}'], 1, f"{kind} exchanges")
    with check("/metrics: logged in, nothing left running, ready, memory limit and volumes"):
        for seen in (first, second):
            assert seen['mallard_logins_total{method="basic",outcome="ok"}'] >= 1, "logins"
            for name in ("queries_running", "streams_open", "transfers_running", "exchanges_running"):
                equal(seen[f"mallard_{name}"], 0, name)
            equal(seen["mallard_ready"], 1, "ready")
            limit = seen["mallard_duckdb_memory_limit_bytes"]
            assert abs(limit - 2800 * 2**20) < 0.03 * limit, f"memory limit {limit}"
            for volume in ("database", "temp"):
                assert seen[f'mallard_volume_size_bytes{{volume="{volume}"}}'] > 0, f"no volume {volume}"
    with check("/livez, /readyz and /startupz answer 200"):
        for server in FLIGHT:
            for path in ("/livez", "/readyz?verbose", "/startupz"):
                equal(get(server, path)[0], 200, f"{path} of server {server}")
    with check("the status pages name the location that clients on this machine use"):
        for server, port in FLIGHT.items():
            status, page = get(server, "/")
            assert status == 200 and f"grpc://localhost:{port}" in page, page
    with check("mallard health from this machine"):
        for port in FLIGHT.values():
            equal(mallard("health", f"grpc://localhost:{port}", env={}).returncode, 0, "exit code")


def secrets():
    key = compose("exec", "-T", "mallard-1", "mallard", "user", "password", "--file=/run/mallard/signing-key").stdout.strip()
    assert len(key) >= 32, "the signing key is shorter than 32 characters"
    basic = base64.b64encode(f"mallard:{password()}".encode()).decode()
    return {"the password": password(), "the signing key": key, "the login": basic}


def leaks():
    """Where a secret can be seen."""
    seen = {
        "docker compose logs": compose("logs", "--no-color").stdout,
        "docker inspect": json.dumps(listed(compose("ps", "-aq").stdout.split())),
        "demo reports": "".join(file.read_text() for file in REPORT.iterdir()),
    }
    for server in FLIGHT:
        seen |= {f"{path} of server {server}": get(server, path)[1] for path in ("/metrics", "/", "/readyz?verbose")}
    assert all(seen[name] for name in ("docker compose logs", "docker inspect")), "nothing to look at"
    for what, secret in secrets().items():
        yield from (f"{what} is in {where}" for where, text in seen.items() if secret in text)


def login_needed():
    with check("docker compose exec prints the password"):
        assert re.fullmatch(r"[\w-]{32}", password()), "not a random password of 32 characters"
        assert login()["MALLARD_PASSWORD"] == password(), "it differs from one time to the next"
    with check("a query without a login is refused with exit code 4, and so is one with a wrong password"):
        for wrong in ({}, {"MALLARD_USER": "mallard", "MALLARD_PASSWORD": "wrong"}):
            done = mallard("query", f"grpc://127.0.0.1:{FLIGHT[1]}", "SELECT 1", env=wrong)
            equal(done.returncode, 4, f"exit code, saying {done.stderr.strip()}")
    with check("a query with the password works, from this machine and in the container"):
        equal(sql(1, "SELECT 42"), [["42"]], "answer")
        inside = compose("exec", "-T", "mallard-2", "mallard", "query", "grpc://mallard-1:8815", "SELECT 42", "--format=csv")
        equal(inside.stdout.split()[-1], "42", "answer")
    with check("password, signing key and login are in no log, no docker inspect, no metric, no page, no report"):
        nothing(leaks(), "seen")


# === What stays ===


def persistence():
    before = password()
    with check("tables survive docker compose down and up, and so does the password"):
        store = "CREATE TABLE stays AS SELECT i, hash(i) AS h FROM range(100000) AS r(i)"
        compose("exec", "-T", "mallard-1", "mallard", "query", "grpc://127.0.0.1:8815", store)
        sql(2, "CREATE TABLE stays AS SELECT 'two' AS server")
        stored = sql(1, "SELECT count(*), sum(h) FROM stays")
        left = down()
        up()
        equal(sql(1, "SELECT count(*), sum(h) FROM stays"), stored, "rows at server 1")
        equal(sql(2, "FROM stays"), [["two"]], "rows at server 2")
        equal(password(), before, "password")
    with check("docker compose down leaves no unnamed volumes behind"):
        nothing(left, "volumes")


def own_password():
    """A file that only its owner may read, instead of the random password."""

    def own(name):
        file = WORK / name
        file.touch(mode=0o600)
        file.write_text(f"own {name}\n")
        return file, {"MALLARD_PASSWORD_FILE": str(file)}

    before = password()
    file, given = own("second thought")
    with check("a password file of one's own counts from the next docker compose up"):
        up(env=given)
        equal(password(), "own second thought", "password")
        equal(sql(1, "SELECT 42"), [["42"]], "answer")
    file, given = own("first choice")
    with check("a password file of one's own, mode 0600, wins over the random password"):
        down()
        up(env=given)
        equal(password(), "own first choice", "password")
        for server in FLIGHT:
            equal(sql(server, "SELECT 42"), [["42"]], "answer")
        equal((file.stat().st_mode & 0o777, file.read_text()), (0o600, "own first choice\n"), "the file")
    with check("the random password is refused from then on"):
        done = mallard("query", f"grpc://127.0.0.1:{FLIGHT[1]}", "SELECT 1", env=login() | {"MALLARD_PASSWORD": before})
        equal(done.returncode, 4, "exit code")
    with check("it is seen nowhere, either"):
        nothing(leaks(), "seen")


# === Traces ===


def traces():
    file = WORK / "spans.jsonl"
    file.touch()
    network = inspect(f"{PROJECT}_mallard")
    gateway = network["IPAM"]["Config"][0]["Gateway"]
    receiver = subprocess.Popen(
        [arguments.tools / "python", HERE / "receiver.py", gateway, file], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        port = receiver.stdout.readline().strip()
        assert port, "the receiver of spans did not start"
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gateway}:{port}", "MALLARD_DEMO_ROWS": "100000"}
        with check("the demo passes with traces on"):
            up(env=traced)
            compose("run", "--rm", "demo", env=traced)

        def spans():
            # The last line may be half of one.
            lines = file.read_text().split("\n")[:-1]
            every = [json.loads(line) for line in lines]
            roots = [span["trace"] for span in every if span["service"] == "mallard-demo" and not span["parent"]]
            return [span for span in every if span["trace"] in roots]

        def pulled(trace):
            """Spans of mallard-1 that mallard-2 has brought about."""
            service = {span["span"]: span["service"] for span in trace}
            return [span["name"] for span in trace if span["service"] == "mallard-1" and service.get(span["parent"]) == "mallard-2"]

        with check("the demo, mallard-1 and mallard-2 are in one trace"):
            services = {"mallard-demo", "mallard-1", "mallard-2"}
            until(lambda: {span["service"] for span in spans()} == services and pulled(spans()), "spans of all three")
            equal(len({span["trace"] for span in spans()}), 1, "traces")
            equal([span["name"] for span in spans() if not span["parent"]], ["mallard demo"], "roots")
        with check("what mallard-2 pulls from mallard-1 is in it: login, plan and rows"):
            wanted = {f"arrow.flight.protocol.FlightService/{method}" for method in ("Handshake", "GetFlightInfo", "DoGet")}
            until(lambda: wanted <= set(pulled(spans())), "spans of the pull", patience=20)
        with check("no span shows a secret"):
            text = file.read_text()
            nothing((what for what, secret in secrets().items() if secret in text), "seen")
    finally:
        receiver.kill()
        receiver.wait()


# === In the middle of a transfer ===

# Far too long to end by itself, so that whatever happens does so in the middle; a shorter one for the second run.
ENDLESS = "CREATE OR REPLACE VIEW feed AS SELECT i, hash(i) AS h FROM range(10000000000) AS r(i)"
FINITE = "CREATE OR REPLACE VIEW feed AS SELECT i, hash(i) AS h FROM range(1000000) AS r(i)"
KEPT = "SELECT count(*), sum(h) FROM kept"


def prepare():
    sql(1, ENDLESS)
    kept = {}
    for server in FLIGHT:
        sql(server, f"CREATE OR REPLACE TABLE kept AS SELECT i, hash(i + {server}) AS h FROM range(300000) AS r(i)")
        kept[server] = sql(server, KEPT)
    return kept


def transfer():
    """Server 2 pulls the feed from server 1, the same command each time."""
    command = ["transfer", "grpc://mallard-1:8815", f"grpc://127.0.0.1:{FLIGHT[2]}"]
    return Running([MALLARD, *command, "--query=SELECT * FROM feed", "--into=copy"], env=login())


def in_the_middle():
    """Starts the transfer; it is under way, with several row groups stored, when this returns."""
    rows = metric(2, "mallard_transfer_rows_total")
    running = transfer()

    def is_under_way():
        seen = metrics(2)
        assert running.is_running(), f"the transfer ended: {running.text()}"
        return seen["mallard_transfers_running"] == 1 and seen["mallard_transfer_rows_total"] - rows > 1_000_000

    until(is_under_way, "the transfer is under way", pause=0.05)
    return running


def kill(service):
    """kill -9, as a crash where that may be done, which the restart policy answers; else by the engine."""
    name = container(service)
    try:
        os.kill(inspect(name)["State"]["Pid"], signal.SIGKILL)
        return True
    except (PermissionError, ProcessLookupError):
        docker("kill", "--signal=KILL", name)
        return False


def fails_clearly(running, names, since, patience):
    code, text = running.wait(max(since + patience - time.monotonic(), 1))
    assert code in (1, 3), f"exit code {code}: {text}"
    assert "error: " in text and names in text, f"no clear error that names {names}: {text}"


def nothing_half():
    """No rows of the transfer, and its table not at all."""
    assert "copy" not in tables(2), "a table of the transfer is there: " + str(sql(2, "SELECT count(*) FROM copy"))


def second_run(kept):
    sql(1, FINITE)
    code, text = transfer().wait(PATIENCE)
    assert code == 0 and "verified: count and hash" in text, f"exit code {code}: {text}"
    equal(sql(2, "SELECT count(*), sum(h) FROM copy"), sql(1, "SELECT count(*), sum(h) FROM feed"), "rows")
    for server in FLIGHT:
        equal(sql(server, KEPT), kept[server], f"the other table of server {server}")
    sql(2, "DROP TABLE copy")


def nothing_running(server):
    names = ["mallard_queries_running", "mallard_streams_open", "mallard_transfers_running"]
    until(lambda: not any(metric(server, name) for name in names), f"server {server} has nothing running")


def kill_puller():
    kept = prepare()
    with check("kill -9 of the server that pulls: the transfer fails with a clear error"):
        running = in_the_middle()
        since = time.monotonic()
        docker("kill", "--signal=KILL", container("mallard-2"))
        fails_clearly(running, f"127.0.0.1:{FLIGHT[2]}", since, 15)
        equal(inspect(container("mallard-2"))["State"]["ExitCode"], 137, "exit code of the server")
    with check("it starts again without half a table, and the other server has let go"):
        up()
        nothing_half()
        nothing_running(1)
    with check("the second run passes, and both servers have kept the rest"):
        second_run(kept)


def kill_source():
    kept = prepare()
    with check("kill -9 of the server that is pulled from: the transfer fails with a clear error"):
        running = in_the_middle()
        since = time.monotonic()
        crashed = kill("mallard-1")
        fails_clearly(running, "mallard-1:8815", since, 15)
    if crashed:
        with check("the restart policy brings it back"):
            until(lambda: inspect(container("mallard-1"))["RestartCount"] >= 1, "it is started again")
    with check("there is no half table, and the server that pulled has let go"):
        up()
        nothing_half()
        nothing_running(2)
        assert metric(2, 'mallard_transfers_total{outcome="error"}') >= 1, "no transfer is counted as failed"
    with check("the second run passes, and both servers have kept the rest"):
        second_run(kept)


def kill_demo():
    many = 12_000_000
    rows = 'mallard_rows_total{direction="received"}'
    before = metric(1, rows)
    for file in REPORT.iterdir():
        file.unlink()
    with check("kill -9 of a server under the demo: it fails with a clear error"):
        command = ["timeout", "-k", "5", "120", "docker", "compose", "run", "--rm", "-T", "demo"]
        running = Running(command, env={"MALLARD_DEMO_ROWS": str(many)})

        def is_under_way():
            assert running.is_running(), f"the demo ended: {running.text()}"
            return metric(1, rows) - before > 100_000

        until(is_under_way, "the demo sends rows", pause=0.02)
        kill("mallard-1")
        code, text = running.wait(PATIENCE)
        assert code in (1, 3) and "error: " in text and "mallard-1:8815" in text, f"exit code {code}: {text}"
        assert "the walk was broken off" in text, text
    with check("its report says so"):
        report = json.loads((REPORT / "demo.json").read_text())
        assert report["verified"] is False and "mallard-1:8815" in report["failure"], report["failure"]
        for name in ("demo.md", "demo.html"):
            assert "The walk was broken off" in (REPORT / name).read_text(), name
    with check("no table of the demo is there by half"):
        up()
        for server in FLIGHT:
            for name in tables(server) & {"flights", "flights_pulled"}:
                equal(sql(server, f"SELECT count(*) FROM {name}"), [[str(many)]], f"{name} at server {server}")
    with check("the second run of the demo passes"):
        done = compose("run", "--rm", "-T", "demo", env={"MALLARD_DEMO_ROWS": "200000"})
        assert "everything was verified" in done.stdout, done.stdout
        assert json.loads((REPORT / "demo.json").read_text())["verified"] is True, "demo.json"


# === Stop ===


class SlowReader:
    """A query whose rows are read slowly, without end."""

    def __init__(self, server):
        endless = "SELECT i FROM range(1000000000000) AS r(i)"
        command = [MALLARD, "query", f"grpc://127.0.0.1:{FLIGHT[server]}", endless, "--format=arrow"]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, env=os.environ | login())
        self.bytes = 0
        self.pause = 0.02
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        while part := self.process.stdout.read(1 << 18):
            self.bytes += len(part)
            time.sleep(self.pause)

    def end(self):
        """What is on its way is read, and the end is waited for."""
        self.pause = 0
        self.thread.join(PATIENCE)
        self.process.wait(PATIENCE)
        return self.process.returncode, self.process.stderr.read().decode()


def data_files(name):
    """Names and sizes in /data of a container that need not run."""
    archive = WORK / "data.tar"
    with archive.open("wb") as file:
        command = ["timeout", "-k", "5", "60", "docker", "cp", f"{name}:/data", "-"]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, check=True)
    with tarfile.open(archive) as opened:
        return {file.name.removeprefix("data/"): file.size for file in opened if file.isfile()}


def stop():
    for server in FLIGHT:
        sql(server, "CREATE OR REPLACE TABLE last_words AS SELECT 'all is well' AS said")
        assert metric(server, "mallard_wal_size_bytes") > 0, f"server {server} has no write-ahead log to check"
    reader = SlowReader(1)
    until(lambda: reader.bytes > 1 << 20, "the stream flows")
    stopping = Running(["timeout", "-k", "5", str(STOP_GRACE + 30), "docker", "compose", "stop"])
    with check("stop: /readyz says 503 and mallard_draining 1, while a running stream goes on"):
        until(lambda: get(1, "/readyz")[0] == 503, "not ready any more")
        equal(metric(1, "mallard_draining"), 1, "mallard_draining")
        equal(get(1, "/livez")[0], 200, "/livez")
        read = reader.bytes
        # More than what may have been on its way.
        until(lambda: reader.bytes > read + (64 << 20), "the stream goes on")
    with check("stop: who comes now is told with exit code 3 that the server is not there"):
        done = mallard("query", f"grpc://127.0.0.1:{FLIGHT[1]}", "SELECT 1")
        equal(done.returncode, 3, f"exit code of a query, saying {done.stderr.strip()}")
    with check("stop: mallard health ends with exit code 3"):
        done = mallard("health", f"grpc://127.0.0.1:{FLIGHT[1]}")
        equal(done.returncode, 3, f"exit code, saying {(done.stdout + done.stderr).strip()}")
    with check("stop: a server without streams stops at once"):
        until(lambda: not inspect(container("mallard-2"))["State"]["Running"], "mallard-2 has stopped", patience=15)
        assert stopping.is_running() or stopping.code == 0, stopping.text()
    with check("stop: one with a stream stops within stop_grace_period, and the stream ends with an error"):
        code, text = stopping.wait(STOP_GRACE + 30)
        equal(code, 0, f"exit code of docker compose stop, saying {text}")
        took = stopping.end - stopping.start
        assert took < STOP_GRACE, f"it took {took:.1f} s"
        code, error = reader.end()
        assert code == 3 and "draining" in error, f"exit code {code} of the stream: {error}"
    with check("stop: both end with exit code 0 and say that they have stopped"):
        for service in SERVERS:
            state = inspect(container(service))["State"]
            equal((state["ExitCode"], state["OOMKilled"]), (0, False), f"end of {service}")
            logs = docker("logs", "--tail=3", container(service))
            assert '"stopped"' in logs.stdout + logs.stderr, f"{service}: {logs.stdout}{logs.stderr}"
    with check("stop: the database was checkpointed; no write-ahead log is left"):
        for service in SERVERS:
            files = data_files(container(service))
            assert files.get("mallard.duckdb", 0) > 0, f"{service}: {files}"
            # The server's own state is beside it.
            kept = ("mallard.duckdb", "mallard.duckdb.mallard")
            nothing((f"{name}: {size}" for name, size in files.items() if name not in kept and size), service)
    with check("stop: all is there after a start"):
        up()
        for server in FLIGHT:
            equal(sql(server, "FROM last_words"), [["all is well"]], f"rows of server {server}")


# === The network is cut; a full volume, which is checked while that is waited for ===


def cut():
    kept = prepare()
    first = container("mallard-1")
    running = in_the_middle()
    docker("network", "disconnect", f"{PROJECT}_mallard", first)
    since = time.monotonic()
    try:
        with check("network cut: the server that pulls stays ready and answers"):
            equal(get(2, "/readyz")[0], 200, "/readyz")
            equal(sql(2, KEPT), kept[2], "answer")
        full_volume()
        with check("network cut: the transfer ends with a clear error"):
            fails_clearly(running, "mallard-1:8815", since, NETWORK_CUT)
            print(f"     (after {running.end - since:.0f} s)")
    finally:
        docker("network", "connect", "--alias=mallard-1", f"--alias={first}", f"{PROJECT}_mallard", first)
    with check("network cut: no half table is there, and both servers have let go"):
        up()
        nothing_half()
        nothing_running(1)
        nothing_running(2)
    with check("network cut: once connected again, the second run passes"):
        second_run(kept)


def full_volume():
    """A server on a volume of 40 MB. A second one holds the volume in memory while the first restarts, and a file in it
    that leaves no room and can be made small."""
    volume, places = f"{PROJECT}-full", ["--tmpfs=/tmp", f"--volume={PROJECT}-full:/data"]
    options = ["type=tmpfs", "device=tmpfs", "o=size=40m,uid=65532,gid=65532,mode=0700"]
    docker("volume", "create", "--label=mallard-e2e", *[f"--opt={option}" for option in options], volume)
    unlimited = ["MALLARD__DATABASE__PATH=:memory:", "MALLARD__DATABASE__EXTERNAL_ACCESS=true"]
    holder = start_alone("holder", places, unlimited)
    published = ["--publish=127.0.0.1::8815", "--publish=127.0.0.1::9815"]
    # In the image the admin port is on loopback.
    server = start_alone("full", places + published, ["MALLARD__ADMIN__LISTEN=0.0.0.0:9815"])
    acknowledged, count = {}, 0

    def port(inner):
        return int(docker("port", server, f"{inner}/tcp").stdout.strip().rsplit(":", 1)[1])

    def ready():
        return get(None, "/readyz", port(9815))[0] == 200

    def ask(statement):
        return mallard("query", f"grpc://127.0.0.1:{port(8815)}", statement, "--format=csv", env={})

    def write(rows):
        nonlocal count
        count += 1
        done = ask(f"INSERT INTO rows SELECT {count}, hash(i + {count} * 1000000) FROM range({rows}) AS r(i)")
        if done.returncode == 0:
            acknowledged[count] = rows
        return done

    def stored():
        done = ask("SELECT batch, count(*) FROM rows GROUP BY batch")
        assert done.returncode == 0, done.stderr
        return {int(batch): int(rows) for batch, rows in (line.split(",") for line in done.stdout.splitlines()[1:])}

    def fill(blocks):
        block = "SELECT repeat('x', 1000000)"
        copy = f"COPY ({block} FROM range({blocks})) TO '/data/ballast' (FORMAT csv, USE_TMP_FILE false)"
        docker("exec", holder, "mallard", "query", "grpc://127.0.0.1:8815", copy)

    def restart():
        docker("restart", server)
        until(ready, "ready after a restart")

    until(lambda: docker("exec", holder, "mallard", "health", any_code=True).returncode == 0, "the holder serves")
    until(ready, "ready")
    fill(28)
    with check("full volume: a write that finds no room answers an error that says so"):
        created = ask("CREATE TABLE rows (batch INTEGER, h UBIGINT)")
        assert created.returncode == 0, created.stderr
        while (last := write(50_000)).returncode == 0:
            assert count < 100, "40 MB are not full after 60 MB"
        assert last.returncode == 1 and "No space left on device" in last.stderr, f"{last.returncode}: {last.stderr}"
        assert len(acknowledged) > 5, f"only {len(acknowledged)} writes before"
    with check("full volume: what was acknowledged can be read, and nothing of the failed write"):
        equal(stored(), acknowledged, "rows by write")
    with check("full volume: a small write after it is acknowledged or refused, and kept if acknowledged"):
        for _ in range(3):
            write(100)
        equal(stored(), acknowledged, "rows by write")
    with check("full volume: a checkpoint without room is an error, and the database is reopened in the process"):
        done = ask("CHECKPOINT")
        assert done.returncode == 1 and "is being reopened" in done.stderr.replace("\n", " "), f"{done.returncode}: {done.stderr}"
        until(lambda: ask("SELECT count(*) FROM rows").returncode == 0, "it serves again", patience=20)
        equal(stored(), acknowledged, "rows by write")
    with check("full volume: after a restart, still without room, all acknowledged rows are there"):
        restart()
        equal(stored(), acknowledged, "rows by write")
    with check("full volume: with room it checkpoints and takes rows again, and all are there after a restart"):
        fill(0)
        # The last time its log could not be checkpointed at start.
        restart()
        for statement in ("CHECKPOINT", "SELECT 1"):
            done = ask(statement)
            assert done.returncode == 0, f"{statement}: {done.stderr}"
        assert write(50_000).returncode == 0, "a write is refused"
        restart()
        equal(stored(), acknowledged, "rows by write")
    docker("rm", "-fv", server, holder)
    docker("volume", "rm", volume)


SECTIONS = [
    image,
    demo,
    host,
    login_needed,
    persistence,
    own_password,
    traces,
    kill_puller,
    kill_source,
    kill_demo,
    stop,
    cut,
]


def main():
    global told
    start = time.monotonic()
    build()
    for section in SECTIONS:
        name = section.__name__
        if arguments.sections and name not in arguments.sections:
            continue
        print(f"== {name} ({time.monotonic() - start:.0f} s)", flush=True)
        told = False
        try:
            # Whatever the section before has left.
            if section not in (image, demo):
                up()
            section()
        except Exception as failure:
            with check(f"{name}: all of it can be run"):
                raise failure
    print(f"took {time.monotonic() - start:.0f} s")
    if failed:
        print("failed:")
        for name in failed:
            print(f"  {name}")
        sys.exit(1)
    print(f"{len(passed)} passed")


main()
