"""What has to hold for the objects of every rendering. Each rule takes a list of objects and yields problems."""

import base64
import ipaddress
import re

# Labels that no upgrade changes.
IMMUTABLE = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "mallard-db.github.io/server",
}
# https://kubernetes.io/docs/concepts/security/pod-security-standards, restricted.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
FLIGHT, ADMIN = 8815, 9815
DNS_1035 = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


def label(thing):
    return f"{thing['kind']}/{thing['metadata']['name']}"


def kind(objects, *kinds):
    return [thing for thing in objects if thing["kind"] in kinds]


def pods(objects):
    """Pod templates with the name of what has them."""
    return [(label(thing), thing["spec"]["template"]) for thing in kind(objects, "StatefulSet", "Job")]


def containers(pod):
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def matches(selector, labels):
    """Whether a LabelSelector selects these labels."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In" or labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def keys(selector):
    return selector.get("matchLabels", {}).keys() | {part["key"] for part in selector.get("matchExpressions", [])}


def selectors_are_immutable_and_select(objects):
    templates = pods(objects)
    for thing in objects:
        spec = thing.get("spec", {})
        selector = {
            "StatefulSet": spec.get("selector"),
            "PodDisruptionBudget": spec.get("selector"),
            "NetworkPolicy": spec.get("podSelector"),
            "Service": {"matchLabels": spec.get("selector")},
        }.get(thing["kind"])
        if selector is None:
            continue
        if keys(selector) - IMMUTABLE:
            yield f"{label(thing)}: selects by {sorted(keys(selector) - IMMUTABLE)}, which may change"
        selected = [name for name, template in templates if matches(selector, template["metadata"]["labels"])]
        servers = [name for name in selected if name.startswith("StatefulSet/")]
        if thing["kind"] == "StatefulSet" and selected != [label(thing)]:
            yield f"{label(thing)}: selects {selected}"
        if thing["kind"] in ("PodDisruptionBudget", "Service") and (len(selected) != 1 or selected != servers):
            yield f"{label(thing)}: selects {selected}, not one server"
        if thing["kind"] == "NetworkPolicy" and not selected:
            yield f"{label(thing)}: selects no pod"
    for thing in kind(objects, "StatefulSet"):
        for claim in thing["spec"].get("volumeClaimTemplates", []):
            changing = claim["metadata"].get("labels", {}).keys() - IMMUTABLE
            if changing:
                yield f"{label(thing)}: its claim, which must not change, has the labels {sorted(changing)}"
        spec = thing["spec"]["template"]["spec"]
        affinity = spec.get("affinity", {}).get("podAntiAffinity", {})
        terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []) + [
            weighted["podAffinityTerm"]
            for weighted in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
        ] + spec.get("topologySpreadConstraints", [])
        for term in terms:
            if not matches(term["labelSelector"], thing["spec"]["template"]["metadata"]["labels"]):
                yield f"{label(thing)}: is spread among pods that it is not one of"


def ports_exist(objects):
    templates = pods(objects)
    services = {thing["metadata"]["name"]: thing for thing in kind(objects, "Service")}
    for name, template in templates:
        for container in containers(template):
            ports = container.get("ports", [])
            known = {port["name"] for port in ports} | {port["containerPort"] for port in ports}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe not in container:
                    if name.startswith("StatefulSet/") and container["name"] == "mallard":
                        yield f"{name}: {container['name']} has no {probe}"
                    continue
                asked = [container[probe][how]["port"] for how in ("httpGet", "grpc") if how in container[probe]]
                if len(asked) != 1 or asked[0] not in known:
                    yield f"{name}: {probe} asks {asked}, the ports are {sorted(map(str, known))}"
    for service in services.values():
        for _, template in templates:
            if not matches({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"]):
                continue
            names = {port["name"] for container in containers(template) for port in container.get("ports", [])}
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in names:
                    yield f"{label(service)}: targetPort {port['targetPort']} is no port of the pod"
                if port["appProtocol"] != {"flight": "kubernetes.io/h2c", "admin": "http"}[port["name"]]:
                    yield f"{label(service)}: port {port['name']} has appProtocol {port['appProtocol']}"
    for thing in kind(objects, "StatefulSet"):
        headless = services.get(thing["spec"]["serviceName"])
        if not headless or headless["spec"].get("clusterIP") != "None":
            yield f"{label(thing)}: serviceName {thing['spec']['serviceName']} is no headless Service"
    for thing in kind(objects, "Ingress"):
        for rule in thing["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                ports = {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
                if backend["port"]["name"] not in ports:
                    yield f"{label(thing)}: {backend} is no port of the Service"
    for thing in kind(objects, "GRPCRoute"):
        for rule in thing["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                if backend["port"] not in {port["port"] for port in services[backend["name"]]["spec"]["ports"]}:
                    yield f"{label(thing)}: {backend} is no port of the Service"
    for thing in kind(objects, "ServiceMonitor"):
        selected = {
            service["metadata"]["name"]
            for service in services.values()
            if matches(thing["spec"]["selector"], service["metadata"]["labels"])
        }
        headless = {name for name, service in services.items() if service["spec"].get("clusterIP") == "None"}
        if selected != headless:
            yield f"{label(thing)}: scrapes {sorted(selected)}, not each server once"
        for endpoint in thing["spec"]["endpoints"]:
            if any(endpoint["port"] not in {p["name"] for p in services[name]["spec"]["ports"]} for name in selected):
                yield f"{label(thing)}: there is no port {endpoint['port']}"
        jobs = {services[name]["metadata"]["labels"].get(thing["spec"]["jobLabel"], "") for name in selected}
        if any("mallard" not in job for job in jobs):
            yield f"{label(thing)}: the alerts select jobs with mallard in their name, not {jobs}"


def pods_are_restricted(objects):
    for name, template in pods(objects):
        spec = template["spec"]
        pod = spec.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{name}: {field}"
        for volume in spec.get("volumes", []):
            if volume.keys() - {"name"} - VOLUMES:
                yield f"{name}: volume {volume['name']} is a {sorted(volume.keys() - {'name'})}"
        if pod.get("sysctls"):
            yield f"{name}: sysctls"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name}: mounts a service account's token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name}: has service links"
        if not spec.get("serviceAccountName"):
            yield f"{name}: has no service account"
        for container in containers(template):
            where = f"{name}: {container['name']}"
            own = container.get("securityContext", {})
            if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
                yield f"{where} may run as root"
            if own.get("runAsUser", pod.get("runAsUser", 1)) == 0:
                yield f"{where} runs as user 0"
            seccomp = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            if seccomp not in ("RuntimeDefault", "Localhost"):
                yield f"{where} has the seccomp profile {seccomp}"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{where} may escalate privileges"
            if own.get("privileged"):
                yield f"{where} is privileged"
            capabilities = own.get("capabilities", {})
            if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
                yield f"{where} has the capabilities {capabilities}"
            if own.get("procMount", "Default") != "Default":
                yield f"{where} has procMount {own['procMount']}"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where} can write to its root file system"
            for port in container.get("ports", []):
                if "hostPort" in port:
                    yield f"{where} has a hostPort"


def names_and_lists_are_unique(objects):
    seen = set()
    for thing in objects:
        identity = (thing["apiVersion"], label(thing))
        if identity in seen:
            yield f"{label(thing)}: is there twice"
        seen.add(identity)
    for name, template in pods(objects):
        volumes = [volume["name"] for volume in template["spec"].get("volumes", [])]
        for thing in kind(objects, "StatefulSet"):
            if label(thing) == name:
                volumes += [claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", [])]
        names = [container["name"] for container in containers(template)]
        lists = [("volumes", volumes), ("containers", names)]
        for container in containers(template):
            mounts = container.get("volumeMounts", [])
            lists.append(("environment", [variable["name"] for variable in container.get("env", [])]))
            lists.append(("mounts", [mount["mountPath"] for mount in mounts]))
            missing = {mount["name"] for mount in mounts} - set(volumes)
            if missing:
                yield f"{name}: {container['name']} mounts {sorted(missing)}, which is no volume"
        for what, values in lists:
            if len(values) != len(set(values)):
                yield f"{name}: {what} are not unique: {values}"


def references_exist(objects):
    """What a pod needs is in the release, or is the user's own by a value."""
    there = {label(thing) for thing in objects}
    own = {"Secret/mallard-login", "Secret/mallard-tls", "Secret/mallard-users", "ServiceAccount/databases"}
    for name, template in pods(objects):
        spec = template["spec"]
        wanted = {f"ServiceAccount/{spec['serviceAccountName']}"}
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                wanted.add(f"ConfigMap/{volume['configMap']['name']}")
            if "secret" in volume:
                wanted.add(f"Secret/{volume['secret']['secretName']}")
        for missing in sorted(wanted - there - own):
            yield f"{name}: needs {missing}, which is not there"


def secrets_stay_in_secrets(objects):
    secret = {
        form
        for thing in kind(objects, "Secret")
        for value in thing["data"].values()
        for form in (value, base64.b64decode(value).decode())
    }
    for thing in objects:
        if thing["kind"] == "Secret":
            continue
        text = str(thing)
        if any(value in text for value in secret):
            yield f"{label(thing)}: holds a secret"
    for name, template in pods(objects):
        for container in containers(template):
            for variable in container.get("env", []):
                word = variable["name"]
                if word == "MALLARD__TLS__KEY" and variable.get("value", "").startswith("/"):
                    # The path of a file.
                    continue
                if re.search("PASSWORD|KEY|SECRET|TOKEN", word) and "value" in variable and not word.endswith("_FILE"):
                    yield f"{name}: {word} has its value in the open"
            for argument in container.get("args", []):
                if argument in ("--password",):
                    yield f"{name}: a password among the arguments"


def names_fit(objects):
    for thing in objects:
        name = thing["metadata"]["name"]
        pattern = DNS_1035 if thing["kind"] == "Service" else DNS_1123
        if not pattern.fullmatch(name) or len(name) > 63:
            yield f"{label(thing)}: the name does not fit"
        if thing["kind"] == "StatefulSet" and len(name) > 52:
            yield f"{label(thing)}: the name leaves no room for a revision's hash in a label"
        labels = dict(thing["metadata"].get("labels", {}))
        labels.update(thing.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {}))
        for key, value in labels.items():
            if not LABEL.fullmatch(value):
                yield f"{label(thing)}: label {key} has the value {value!r}"


def objects_are_labelled(objects):
    for thing in objects:
        if "mallard-db.github.io/extra" in str(thing) or label(thing).endswith(("-motd", "-queries")):
            continue
        labels = thing["metadata"]["labels"]
        wanted = {
            "helm.sh/chart",
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/version",
            "app.kubernetes.io/managed-by",
            "app.kubernetes.io/part-of",
        }
        if wanted - labels.keys():
            yield f"{label(thing)}: has no label {sorted(wanted - labels.keys())}"
        if thing["metadata"].get("namespace") != "ns":
            yield f"{label(thing)}: is in the namespace {thing['metadata'].get('namespace')}"


def servers_have_one_writer(objects):
    for thing in kind(objects, "StatefulSet"):
        if thing["spec"]["replicas"] not in (0, 1):
            yield f"{label(thing)}: {thing['spec']['replicas']} replicas"
        for claim in thing["spec"].get("volumeClaimTemplates", []):
            if set(claim["spec"]["accessModes"]) - {"ReadWriteOncePod", "ReadWriteOnce"}:
                yield f"{label(thing)}: {claim['spec']['accessModes']}"


def network_is_closed(objects):
    """Every pod is selected by a policy for both directions, where there are policies; no rule is open by accident."""
    policies = kind(objects, "NetworkPolicy")
    if not policies:
        return
    for name, template in pods(objects):
        directions = {
            direction
            for policy in policies
            if matches(policy["spec"]["podSelector"], template["metadata"]["labels"])
            for direction in policy["spec"]["policyTypes"]
        }
        if directions != {"Ingress", "Egress"}:
            yield f"{name}: policies cover {sorted(directions)}"
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                yield f"{label(policy)}: an ingress rule lets everybody in"
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            if not rule.get("ports"):
                yield f"{label(policy)}: a rule opens all ports"
            for peer in rule.get("from", []) + rule.get("to", []):
                if "ipBlock" in peer:
                    ipaddress.ip_network(peer["ipBlock"]["cidr"])


RULES = [
    selectors_are_immutable_and_select,
    ports_exist,
    pods_are_restricted,
    names_and_lists_are_unique,
    references_exist,
    secrets_stay_in_secrets,
    names_fit,
    objects_are_labelled,
    servers_have_one_writer,
    network_is_closed,
]
