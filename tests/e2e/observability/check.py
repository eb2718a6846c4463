"""The checks of run.sh on the dashboard, the alerts, the runbooks, and what two servers and a Prometheus say of them.

`check.py files` needs nothing running; `scraped`, `live` and `stopped` are told by run.sh where the servers are (CHECK_*).
Prints a line for each check and adds it to the file CHECK_RESULTS.
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

ROOT = pathlib.Path(__file__).resolve().parents[3]
DASHBOARD = ROOT / "config/grafana/dashboards/mallard.json"
RULES = ROOT / "config/prometheus/mallard.rules.yml"
PROVISIONING = ROOT / "config/grafana/provisioning"
COLLECTOR = ROOT / "config/otel-collector.yaml"
RULES_TEST = pathlib.Path(__file__).resolve().parent / "rules_test.yml"
RUNBOOKS = ROOT / "docs/runbooks"
RUNBOOK_URL = "https://github.com/mallard-db/mallard/blob/main/docs/runbooks/"
RUNBOOK_SECTIONS = ["What it means", "Impact", "How to look", "Likely causes", "What to do", "When it is over"]
ROWS = ["Overview", "RPCs", "Queries", "Data movement", "Identity", "DuckDB", "Process"]

# Every metric of /metrics: its type and labels.
CATALOGUE = {
    line.split()[0]: (line.split()[1], frozenset(line.split()[2:]))
    for line in """
grpc_server_started_total counter grpc_type grpc_service grpc_method
grpc_server_handled_total counter grpc_type grpc_service grpc_method grpc_code
grpc_server_handling_seconds histogram grpc_type grpc_service grpc_method
grpc_server_msg_received_total counter grpc_type grpc_service grpc_method
grpc_server_msg_sent_total counter grpc_type grpc_service grpc_method
mallard_build_info gauge version revision duckdb_version arrow_version
mallard_ready gauge
mallard_audit_lost_total counter
mallard_config_reloads_total counter what outcome
mallard_tls_handshakes_total counter outcome
mallard_tls_certificate_not_after_timestamp_seconds gauge
mallard_draining gauge
mallard_database_invalidated gauge
mallard_database_reopened_total counter
mallard_connections gauge
mallard_connections_total counter
mallard_connections_unauthenticated gauge
mallard_connections_refused_total counter reason
mallard_connections_closed_total counter reason
mallard_streams_stalled_total counter direction
mallard_bytes_in_flight gauge
mallard_exchange_buffer_bytes gauge
mallard_streams_open gauge
mallard_logins_total counter method outcome
mallard_logins_waiting gauge
mallard_sessions_closed gauge
mallard_jwks_fetches_total counter outcome
mallard_denials_total counter reason
mallard_sessions gauge
mallard_queries_total counter statement outcome
mallard_query_duration_seconds histogram statement
mallard_query_queue_duration_seconds histogram
mallard_query_time_to_first_batch_seconds histogram
mallard_query_cancellations_total counter reason
mallard_queries_running gauge
mallard_queries_queued gauge
mallard_pool_size gauge
mallard_rows_total counter direction
mallard_bytes_total counter direction
mallard_stream_buffer_bytes gauge
mallard_database_file_lost gauge
mallard_client_sessions gauge
mallard_transactions_open gauge
mallard_prepared_statements gauge
mallard_ingests_waiting gauge
mallard_exchanges_total counter kind outcome
mallard_exchanges_running gauge
mallard_exchangers_registered gauge
mallard_transfers_total counter outcome
mallard_transfers_running gauge
mallard_transfer_rows_total counter
mallard_transfer_bytes_total counter
mallard_duckdb_memory_bytes gauge tag
mallard_duckdb_temp_storage_bytes gauge tag
mallard_duckdb_memory_limit_bytes gauge
mallard_database_size_bytes gauge
mallard_wal_size_bytes gauge
mallard_volume_free_bytes gauge volume
mallard_volume_size_bytes gauge volume
mallard_checkpoints_total counter
mallard_backups_total counter outcome
mallard_backup_last_success_timestamp_seconds gauge
mallard_backup_last_duration_seconds gauge
process_resident_memory_bytes gauge
process_virtual_memory_bytes gauge
process_cpu_seconds_total counter
process_start_time_seconds gauge
process_open_fds gauge
process_max_fds gauge
process_threads gauge
""".strip().splitlines()
}
# In no panel and no alert, on purpose.
UNUSED = {
    "mallard_exchange_buffer_bytes": "0 but for clients that send everything before they read; its limit answers them",
    "mallard_connections_unauthenticated": "a part of the open connections, to look at when some are refused",
    "mallard_connections_closed_total": "old, idle and silent connections end like this every day",
    "process_virtual_memory_bytes": "address space is reserved freely and says nothing about memory in use",
    "mallard_backups_total": "whoever asks for a backup is told how it went",
    "mallard_backup_last_success_timestamp_seconds": "for alerts of those who make backups, which not everybody does",
    "mallard_backup_last_duration_seconds": "shown to whoever asks for a backup",
    "mallard_audit_lost_total": "0 where the audit log can be written; README says what it is",
    "mallard_tls_handshakes_total": "all 0 without TLS; failures are a client's, and mallard_connections shows what they cost",
}
# Series that Prometheus makes itself.
OF_PROMETHEUS = {"up": frozenset(), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}
# Expressions of the dashboard, as (panel, refId), that rightly return nothing here.
MAY_BE_EMPTY = {}
# Those that may rightly be 0 after the load: what is under way, faults of the server, and what it did not need to do.
MAY_BE_ZERO = {
    ("Error ratio", "A"),
    ("Error ratio by server", "A"),
    ("Error ratio by method", "A"),
    ("Streams open", "A"),
    ("Streams open by server", "A"),
    ("In progress by method", "A"),
    ("Connections", "A"),
    ("Connections", "C"),
    ("Cancellations", "B"),
    ("Running and queued", "A"),
    ("Running and queued", "B"),
    ("Running and queued", "D"),
    ("Pool in use by server", "A"),
    ("Buffered in streams", "A"),
    ("Buffered in streams", "B"),
    ("Exchanges running and registered", "A"),
    ("Exchanges running and registered", "B"),
    ("Transfers", "B"),
    ("Memory by use", "A"),
    ("Sessions", "B"),
    ("Sessions", "C"),
    ("State of sessions", "B"),
    ("State of sessions", "C"),
    ("Denials", "B"),
    ("Memory of the limit", "A"),
    ("Temporary storage by use", "A"),
    ("Write-ahead log", "A"),
    ("Checkpoints", "A"),
    ("Restarts", "A"),
}
# Alerts that the load brings about; all the others have to stay silent.
EXPECTED_ALERTS = {"MallardLoginFailures", "MallardRequestsRefused"}
# These speak of the machine that the checks run on.
OF_THE_MACHINE = {"MallardVolumeAlmostFull", "MallardVolumeFullSoon"}

BAD_LOGINS = 25
BAD_QUERIES = ["SELECT * FROM no_such_table", "SELEC 1", "SELECT error('on purpose')"]
PATIENCE = 90


# === Checks ===


@contextmanager
def check(name):
    try:
        yield
    except Exception as failure:  # whatever goes wrong is one failed check, and the others still run
        why = f"{type(failure).__name__}: {failure}" if not isinstance(failure, AssertionError) else str(failure)
        print(f"FAIL {name}")
        for line in why.splitlines() or ["assertion failed"]:
            print(f"     {line}")
        result = f"FAIL {name}"
    else:
        print(f"ok   {name}")
        result = f"ok {name}"
    sys.stdout.flush()
    if "CHECK_RESULTS" in os.environ:
        with open(os.environ["CHECK_RESULTS"], "a") as results:
            results.write(result + "\n")


def nothing(found, what):
    """Fails with the list of what should not be there."""
    found = list(found)
    assert not found, f"{what}:\n" + "\n".join(f"  {one}" for one in found)


def until(true, what):
    deadline = time.monotonic() + PATIENCE
    while True:
        seen = true()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.5)


# === PromQL, as far as these checks read it ===

STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^{}]*)\}")
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def metric_names(expression):
    text = GROUPING.sub(" ", STRING.sub('""', expression))
    text = re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]", " ", text)
    words = re.finditer(r"(?<![\w.])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w)(?!\s*\()", text)
    return {word[0] for word in words} - KEYWORDS


def family(name):
    """The name in the catalogue: a histogram has series with endings."""
    for ending in ("_bucket", "_sum", "_count"):
        base = name.removesuffix(ending)
        if base != name and CATALOGUE.get(base, ("",))[0] == "histogram":
            return base
    return name


def labels_of(name):
    own = OF_PROMETHEUS.get(name) or CATALOGUE.get(family(name), ("", frozenset()))[1]
    return own | {"job", "instance"} | ({"le"} if name.endswith("_bucket") else set())


def mistakes(expression):
    """Metrics and labels that the catalogue does not have."""
    names = metric_names(expression)
    for name in sorted(names):
        if name not in OF_PROMETHEUS and family(name) not in CATALOGUE:
            yield f"{name} is not in the catalogue: {expression}"
        elif CATALOGUE.get(name, ("",))[0] == "histogram":
            yield f"{name} is a histogram and has no series of its own name: {expression}"
    for name, matchers in SELECTOR.findall(expression):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", STRING.sub('""', matchers)):
            if label not in labels_of(name):
                yield f"{name} has no label {label}: {expression}"
    known = set().union(*(labels_of(name) for name in names)) if names else set()
    for _, labels in GROUPING.findall(expression):
        for label in re.findall(r"\w+", labels):
            if label not in known:
                yield f"no metric here has the label {label}: {expression}"


# === Dashboard ===


def walk(value):
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    for child in children:
        yield from walk(child)


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard):
    """(where, refId, expression) of every panel and annotation."""
    found = [(panel["title"], target["refId"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]
    found += [(note["name"], "annotation", note["expr"]) for note in dashboard["annotations"]["list"] if "expr" in note]
    return found


def alert_names():
    return re.findall(r"^\s*- alert: (\w+)$", RULES.read_text(), re.MULTILINE)


def runbook_blocks(language):
    for page in sorted(RUNBOOKS.glob("*.md")):
        for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            yield page.name, block


def files():
    with check("the dashboard is JSON with a fixed uid and a current schema"):
        dashboard = json.loads(DASHBOARD.read_text())
        assert dashboard["uid"] == "mallard" and dashboard["id"] is None, "uid or id"
        assert dashboard["schemaVersion"] >= 39, f"schemaVersion {dashboard['schemaVersion']}"
    with check("the dashboard lets one choose data source, job and instances"):
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
        assert variables["job"]["includeAll"] and variables["instance"]["includeAll"] and variables["instance"]["multi"]
    with check("the dashboard names no data source of its own and no address"):
        nothing(
            (
                source
                for part in walk(dashboard)
                if isinstance(part, dict) and isinstance(source := part.get("datasource"), dict)
                if source not in ({"type": "prometheus", "uid": "${datasource}"}, {"type": "grafana", "uid": "-- Grafana --"})
            ),
            "data sources",
        )
        nothing((part for part in walk(dashboard) if isinstance(part, str) and "://" in part), "addresses")
        nothing((panel["title"] for panel in panels(dashboard) if "datasource" not in panel), "panels without a data source")
    with check("the dashboard has its rows"):
        rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
        assert rows == ROWS, f"{rows}"
    with check("every panel has a title, a description and a unit"):
        titles = [panel["title"] for panel in panels(dashboard)]
        nothing((title for title in titles if titles.count(title) > 1), "titles used twice")
        nothing((panel["title"] for panel in panels(dashboard) if len(panel.get("description", "")) < 20), "no description")
        nothing((p["title"] for p in panels(dashboard) if not p["fieldConfig"]["defaults"].get("unit")), "no unit")
    with check("panels have places of their own"):
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids)), "an id is used twice"
        taken = {}
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24, f"{panel['title']} is wider than the page"
            for x in range(at["x"], at["x"] + at["w"]):
                for y in range(at["y"], at["y"] + at["h"]):
                    assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                    taken[x, y] = panel["title"]
    with check("every selector of the dashboard follows the chosen job and instances"):
        both = {'job=~"$job"', 'instance=~"$instance"'}
        for where, _, expression in expressions(dashboard):
            selectors = SELECTOR.findall(expression)
            assert {name for name, _ in selectors} == metric_names(expression), f"{where}: a bare metric in {expression}"
            nothing((expression for _, matchers in selectors if not both <= set(matchers.split(","))), where)
    with check("the dashboard asks only for metrics and labels of the catalogue"):
        nothing((f"{where}: {wrong}" for where, _, text in expressions(dashboard) for wrong in mistakes(text)), "unknown")

    with check("Grafana is told of the compose profile's Prometheus and of the dashboard"):
        assert "url: http://prometheus:9090\n" in (PROVISIONING / "datasources/prometheus.yml").read_text(), "Prometheus"
        assert "path: /etc/grafana/dashboards\n" in (PROVISIONING / "dashboards/mallard.yml").read_text(), "dashboards"
    with check("the collector's pipeline uses all that it defines, and no more"):
        # There is no YAML in Python's library; the file is written so that this reads it.
        sections = dict(re.findall(r"^(\w+):\n((?:(?: .*)?\n)+)", COLLECTOR.read_text(), re.MULTILINE))
        for kind in ("extensions", "receivers", "processors", "exporters"):
            used = re.findall(rf"\b{kind}: \[(.*)\]", sections["service"])
            assert used == [", ".join(re.findall(r"^  ([\w/]+):", sections[kind], re.MULTILINE))], f"{kind}: {used}"
        for port in (4317, 4318, 13133):
            assert f"endpoint: 0.0.0.0:{port}\n" in COLLECTOR.read_text(), f"port {port}"

    alerts = alert_names()
    with check("every alert has a page among the runbooks, and every page an alert"):
        pages = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
        assert pages == set(alerts), f"{sorted(pages ^ set(alerts))}"
        index = (RUNBOOKS / "README.md").read_text()
        nothing((name for name in alerts if f"]({name}.md)" not in index), "not in the index")
    with check("every runbook has all its parts"):
        for name in alerts:
            headings = re.findall(r"^## (.+)$", (RUNBOOKS / f"{name}.md").read_text(), re.MULTILINE)
            assert headings == RUNBOOK_SECTIONS, f"{name}: {headings}"
    with check("the runbooks name only configuration keys that exist"):
        keys, section = set(), ""
        for line in (ROOT / "config/mallard.toml").read_text().splitlines():
            if head := re.match(r"\[(\w+)\]", line):
                section = head[1]
            elif key := re.match(r"(?:# )?(\w+) = ", line):
                # Every secret has a twin ending in _file; which keys are secrets, the comments do not say for sure.
                keys |= {f"{section}.{key[1]}", f"{section}.{key[1]}_file"}
        sections = {key.split(".")[0] for key in keys}
        for page in sorted(RUNBOOKS.glob("*.md")):
            named = re.findall(r"`([a-z]+\.[a-z_]+)`", page.read_text())
            nothing((key for key in named if key.split(".")[0] in sections and key not in keys), page.name)
    with check("the runbooks ask only for metrics and labels of the catalogue"):
        nothing((f"{page}: {wrong}" for page, text in runbook_blocks("promql") for wrong in mistakes(text)), "unknown")
    with check("the runbooks link to nothing that is missing"):
        for page in sorted(RUNBOOKS.glob("*.md")):
            links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
            nothing((link for link in links if not (page.parent / link).exists()), page.name)
    with check("every alert is tested both firing and silent"):
        cases = re.findall(r"alertname: (\w+)\n\s+exp_alerts:( \[\])?", RULES_TEST.read_text())
        for name in alerts:
            seen = {bool(silent) for alert, silent in cases if alert == name}
            assert seen == {True, False}, f"{name}: firing {False in seen}, silent {True in seen}"


# === Servers and Prometheus ===


class Server:
    def __init__(self, flight, admin):
        self.flight, self.instance = flight, admin

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.instance}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def value(self, name, **labels):
        """The sum of the samples of this name with these labels."""
        total, seen = 0.0, False
        for line in self.metrics().splitlines():
            if (sample := re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)) and sample[1] == name:
                its = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', sample[2] or ""))
                if all(its.get(label) == value for label, value in labels.items()):
                    total, seen = total + float(sample[3]), True
        assert seen, f"{self.instance} has no {name}{labels or ''}"
        return total

    def start(self, *arguments, password=None):
        """Starts a command of mallard, logged in unless `password` is a wrong one."""
        environment = {"PATH": os.environ["PATH"], "MALLARD_USER": "mallard"}
        if password is None:
            environment["MALLARD_PASSWORD_FILE"] = os.environ["CHECK_PASSWORD"]
        else:
            environment["MALLARD_PASSWORD"] = password
        command = [os.environ["CHECK_MALLARD"], *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def query(self, sql, **login):
        """Runs a query to its end: the exit code, and what it said on standard error."""
        with self.start("query", self.flight, sql, **login) as client:
            try:
                _, said = client.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                client.kill()
                raise
        return client.returncode, said


def servers():
    flights, admins = os.environ["CHECK_FLIGHT"].split(), os.environ["CHECK_ADMIN"].split()
    return [Server(flight, admin) for flight, admin in zip(flights, admins)]


def prometheus(path, **parameters):
    address = f"{os.environ['CHECK_PROMETHEUS']}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as refusal:
        raise AssertionError(f"{json.load(refusal).get('error')}: {parameters}") from None


def ask(expression):
    """The samples of an instant query, as (labels, value)."""
    answer = prometheus("query", query=expression)
    if answer["resultType"] == "scalar":
        return [({}, float(answer["result"][1]))]
    return [(one["metric"], float(one["value"][1])) for one in answer["result"]]


def up(instance):
    return any(value == 1 for _, value in ask(f'up{{job="mallard",instance="{instance}"}}'))


def chosen(expression):
    """What Grafana makes of an expression when all jobs and instances are chosen."""
    instances = "|".join(server.instance.replace(".", "\\\\.") for server in servers())
    for name, value in {"job": "mallard", "instance": f"({instances})", "__rate_interval": "10m", "__range": "1h"}.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, f"an unknown variable in {expression}"
    return expression


def scraped():
    with check("Prometheus scrapes both servers (up is 1)"):
        for server in servers():
            until(lambda: up(server.instance), f"up of {server.instance}")
    with check("Prometheus has read every metric before the load"):
        for server in servers():
            until(lambda: ask(f'mallard_rows_total{{instance="{server.instance}"}}'), "mallard_rows_total")


def families(text):
    """What /metrics says: the type and the label names of each metric."""
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    labels = {name: frozenset() for name in types}
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        base = next((base for base in (name, re.sub("_(bucket|sum|count)$", "", name)) if base in types), name)
        labels[base] = labels.get(base, frozenset()) | frozenset(re.findall(r'(\w+)="', inside)) - {"le"}
    return {name: (types.get(name, "untyped"), labels[name]) for name in labels}


def load(first, second):
    """Mistakes of clients, on top of the demo: each is counted, exactly."""
    before = [first.value("mallard_queries_total", outcome="error"), first.value("mallard_rows_total", direction="sent")]
    refused = first.value("mallard_logins_total", outcome="refused")
    limits = second.value("mallard_denials_total", reason="limit")
    with check("failing queries fail, and are counted as errors"):
        for sql in BAD_QUERIES:
            code, said = first.query(sql)
            assert code in (1, 5), f"{sql}: {code} {said}"
        counted = first.value("mallard_queries_total", outcome="error") - before[0]
        assert counted == len(BAD_QUERIES), f"{counted} of {len(BAD_QUERIES)}"
    with check("rows sent are counted to the row"):
        code, said = first.query("SELECT range FROM range(12345)")
        assert code == 0, f"{code} {said}"
        counted = first.value("mallard_rows_total", direction="sent") - before[1]
        assert counted == 12345, f"{counted}"
    with check("a query whose client leaves is counted as cancelled, and runs no more"):
        gone = first.value("mallard_query_cancellations_total", reason="client")
        client = first.start("query", first.flight, "SELECT count(*) FROM range(1000000000000)")
        try:
            until(lambda: first.value("mallard_queries_running") == 1, "a running query")
        finally:
            client.kill()
            client.wait()
        until(lambda: first.value("mallard_query_cancellations_total", reason="client") == gone + 1, "the cancellation")
        until(lambda: first.value("mallard_queries_running") == 0, "the end of the query")
    with check("a session that keeps a temporary table is counted"):
        kept = first.value("mallard_client_sessions")
        with first.start("sql", first.flight, "--command", "CREATE TEMP TABLE kept (i INTEGER)") as shell:
            _, said = shell.communicate(timeout=60)
        assert shell.returncode == 0, f"{shell.returncode} {said}"
        assert first.value("mallard_client_sessions") == kept + 1, f"{kept} before"
    with check("refused logins are counted, each of them"):
        for _ in range(BAD_LOGINS):
            code, said = first.query("SELECT 1", password="wrong")
            assert code == 4, f"{code} {said}"
        counted = first.value("mallard_logins_total", outcome="refused") - refused
        assert counted == BAD_LOGINS, f"{counted}"
    with check("a request beyond a limit is counted as such"):
        code, said = second.query(f"SELECT '{'x' * 9000}'")
        assert code == 1 and "limits.sql_length" in said, f"{code} {said}"
        counted = second.value("mallard_denials_total", reason="limit") - limits
        assert counted == 1, f"{counted}"


def demo_counted(first, second):
    rows = int(os.environ["CHECK_ROWS"])
    with check("the demo's rows are counted: sent by server 1"):
        # GET, both transfers and the answers of two exchanges; and a few rows of checking.
        sent = ask(f'mallard_rows_total{{instance="{first.instance}",direction="sent"}}')[0][1]
        assert 5 * rows <= sent <= 5 * rows + 1000, f"{sent:.0f} for {rows} rows five times"
    with check("the demo's rows are counted: received by both servers, and pulled by server 2"):
        # PUT and the input of two exchanges; the relayed transfer and three rows of foo.
        for server, expected in ((first, 3 * rows), (second, rows + 3)):
            received = ask(f'mallard_rows_total{{instance="{server.instance}",direction="received"}}')[0][1]
            assert received == expected, f"{server.instance}: {received:.0f}, not {expected}"
        pulled = ask(f'mallard_transfer_rows_total{{instance="{second.instance}"}}')[0][1]
        assert pulled == rows, f"{pulled:.0f}"
    with check("the demo's exchanges and its transfer are counted"):
        for server, name, labels in (
            (first, "mallard_exchanges_total", {"kind": "builtin", "outcome": "ok"}),
            (first, "mallard_exchanges_total", {"kind": "sql", "outcome": "ok"}),
            (second, "mallard_transfers_total", {"outcome": "ok"}),
        ):
            assert server.value(name, **labels) == 1, f"{name} {labels}: {server.value(name, **labels)}"


def live():
    first, second = servers()
    with check("promtool finds nothing to say about /metrics of either server"):
        for server in (first, second):
            done = subprocess.run(["promtool", "check", "metrics"], input=server.metrics(), capture_output=True, text=True)
            assert done.returncode == 0 and not done.stderr.strip(), f"{server.instance}: {done.stdout}{done.stderr}"
    with check("/metrics is what the catalogue says: names, types and labels"):
        for server in (first, second):
            there = families(server.metrics())
            nothing(sorted(CATALOGUE.keys() - there.keys()), f"{server.instance} lacks")
            nothing(sorted(there.keys() - CATALOGUE.keys()), f"{server.instance} has, and the catalogue lacks")
            nothing((f"{n}: {there[n]}, not {CATALOGUE[n]}" for n in there if there[n] != CATALOGUE[n]), "types and labels")

    def caught_up():
        return all(
            ask(f'sum(mallard_queries_total{{instance="{server.instance}"}})')[0][1] == server.value("mallard_queries_total")
            and ask(f'sum(mallard_rows_total{{instance="{server.instance}"}})')[0][1] == server.value("mallard_rows_total")
            for server in (first, second)
        )

    with check("Prometheus has read the demo's numbers"):
        until(caught_up, "the numbers of both servers in Prometheus")
    demo_counted(first, second)
    load(first, second)
    with check("Prometheus has read what followed"):
        until(caught_up, "the numbers of both servers in Prometheus")
    with check("both servers are ready (mallard_ready is 1)"):
        for server in (first, second):
            assert ask(f'mallard_ready{{instance="{server.instance}"}}')[0][1] == 1, server.instance

    rules = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
    with check("Prometheus evaluates every alert without an error"):

        def evaluated():
            rules[:] = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
            return all(rule["health"] != "unknown" for rule in rules)

        until(evaluated, "the evaluation of all rules")
        assert sorted(rule["name"] for rule in rules) == sorted(alert_names())
        nothing((f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"), "unhealthy")
        for rule in rules:
            ask(rule["query"])
    with check("every alert has a severity, a summary, a description and its runbook"):
        for rule in rules:
            assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["name"]
            assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_URL}{rule['name']}.md", rule["name"]
            assert rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 40, rule["name"]
    with check("the alerts ask only for metrics and labels of the catalogue"):
        nothing((f"{rule['name']}: {wrong}" for rule in rules for wrong in mistakes(rule["query"])), "unknown")
    with check("only the alerts that the load deserves are pending or firing"):
        until(
            lambda: {one["labels"]["alertname"] for one in prometheus("alerts")["alerts"]} >= EXPECTED_ALERTS,
            f"{sorted(EXPECTED_ALERTS)}",
        )
        active = {one["labels"]["alertname"]: one["state"] for one in prometheus("alerts")["alerts"]}
        nothing(
            (f"{name}: {state}" for name, state in active.items() if name not in EXPECTED_ALERTS | OF_THE_MACHINE), "active"
        )
        assert active["MallardLoginFailures"] == "firing", f"{active}"

    dashboard = json.loads(DASHBOARD.read_text())
    asked = expressions(dashboard)
    for title in dict.fromkeys(where for where, _, _ in asked):
        with check(f'the dashboard\'s "{title}" has data'):
            for _, ref, expression in (one for one in asked if one[0] == title):
                query = chosen(expression)
                if (title, ref) in MAY_BE_EMPTY:
                    ask(query)
                    nothing((name for name in metric_names(query) if not ask(f"count({name})")), "metrics without series")
                else:
                    zero = (title, ref) in MAY_BE_ZERO
                    until(
                        lambda: any(math.isfinite(value) and (value != 0 or zero) for _, value in ask(query)),
                        f"a number{'' if zero else ' other than 0'} from {query}",
                    )
    with check("the dashboard's variables find both servers"):
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", chosen(variable["definition"])).groups()
                found = prometheus(f"label/{label}/values", **{"match[]": selector})
                expected = {"job": ["mallard"], "instance": sorted(server.instance for server in servers())}[label]
                assert sorted(found) == expected, f"{variable['name']}: {found}"
    with check("every selector of dashboard, alerts and runbooks finds series"):
        texts = [(f"dashboard, {where}", chosen(text)) for where, _, text in asked]
        texts += [(rule["name"], rule["query"]) for rule in rules]
        texts += [(page, line) for page, block in runbook_blocks("promql") for line in block.splitlines() if line.strip()]
        empty = {}
        for where, text in texts:
            for name, matchers in SELECTOR.findall(text):
                if name != "ALERTS" and not ask(f"count({name}{{{matchers}}})"):
                    empty[f"{name}{{{matchers}}}"] = where
        nothing((f"{selector}: {where}" for selector, where in empty.items()), "no series")
    with check("every metric is in a panel or an alert, or left out on purpose"):
        used = {
            family(name) for text in [t for _, _, t in asked] + [rule["query"] for rule in rules] for name in metric_names(text)
        }
        nothing(sorted(CATALOGUE.keys() - used - UNUSED.keys()), "unused")
        nothing(sorted(UNUSED.keys() & used), "said to be unused, but used")
    runbooks(first)


def runbooks(server):
    """Every expression and every command of the runbooks, run as it stands there."""
    with check("every expression of the runbooks is valid"):
        for page, block in runbook_blocks("promql"):
            for line in filter(None, map(str.strip, block.splitlines())):
                try:
                    ask(line)
                except AssertionError as failure:
                    raise AssertionError(f"{page}: {failure}") from None
    environment = {
        "PATH": f"{os.path.dirname(os.environ['CHECK_MALLARD'])}:{os.environ['PATH']}",
        "MALLARD_URI": server.flight,
        "MALLARD_USER": "mallard",
        "MALLARD_PASSWORD_FILE": os.environ["CHECK_PASSWORD"],
        "ADMIN": f"http://{server.instance}",
    }
    with check("every command of the runbooks runs"):
        ran = 0
        for page, block in runbook_blocks("console"):
            for line in re.findall(r"^ *\$ (.+)$", block, re.MULTILINE):
                if line.split()[0] not in ("mallard", "curl"):
                    continue
                done = subprocess.run(["sh", "-ec", line], env=environment, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, f"{page}: {line}\n{done.returncode} {done.stderr}"
                ran += 1
        assert ran, "no command found"


def stopped():
    _, second = servers()
    with check("a server that has stopped brings MallardDown about, for itself only"):

        def down():
            alerts = prometheus("alerts")["alerts"]
            return [one["labels"]["instance"] for one in alerts if one["labels"]["alertname"] == "MallardDown"]

        until(down, "MallardDown")
        assert down() == [second.instance], f"{down()}"


if __name__ == "__main__":
    {"files": files, "scraped": scraped, "live": live, "stopped": stopped}[sys.argv[1]]()
