"""What Helm needs of an API server to install, upgrade and look up: a store of objects, and the two rules about changes
that an upgrade meets. It runs nothing, validates nothing, and proves nothing about a real cluster but what Helm sends."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml

# group/version -> plural -> kind
KINDS = {
    "v1": {
        "configmaps": "ConfigMap",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps/v1": {"statefulsets": "StatefulSet"},
    "batch/v1": {"jobs": "Job"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
}
# Fields of a StatefulSet's spec that may change; everything else is immutable.
MUTABLE = {
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
    "revisionHistoryLimit",
}


class Refused(Exception):
    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code, self.reason = code, reason


class Cluster:
    """An API server at `address`, with what was stored in `objects` by (plural, namespace, name)."""

    def __init__(self, version):
        self.version = version
        self.objects = {}
        self.revision = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def kubeconfig(self):
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": self.address}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "c",
            }
        )

    def get(self, plural, name, namespace="ns"):
        return self.objects[plural, namespace, name]

    def store(self, key, new, old):
        if key[0] == "statefulsets" and old:
            changed = {
                field
                for field in old["spec"].keys() | new["spec"].keys()
                if old["spec"].get(field) != new["spec"].get(field)
            }
            if changed - MUTABLE:
                raise Refused(422, "Invalid", f"StatefulSet {key[2]}: forbidden change of {sorted(changed - MUTABLE)}")
        if key[0] == "jobs" and old and old["spec"]["template"] != new["spec"]["template"]:
            raise Refused(422, "Invalid", f"Job {key[2]}: spec.template: field is immutable")
        self.revision += 1
        new["metadata"] |= {"uid": f"uid-{'-'.join(key)}", "resourceVersion": str(self.revision), "namespace": key[1]}
        self.objects[key] = new
        return new

    def answer(self, method, path, query, content_type, body):
        parts = path.strip("/").split("/")
        if path == "/version":
            major, minor = self.version.split(".")[:2]
            return {"major": major, "minor": minor, "gitVersion": f"v{self.version}"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [version.split("/") for version in KINDS if "/" in version]
            versions = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [
                    {"name": group, "versions": [version], "preferredVersion": version}
                    for (group, _), version in zip(groups, versions)
                ],
            }
        if parts[:2] == ["openapi", "v3"]:
            return openapi("/".join(parts[2:]))
        version = "/".join(parts[1:2] if parts[0] == "api" else parts[1:3])
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] not in ("api", "apis") or version not in KINDS:
            raise Refused(404, "NotFound", f"{path} is not served")
        if not rest:
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": version,
                "resources": [
                    {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind,
                     "verbs": ["create", "delete", "get", "list", "patch", "update"]}
                    for plural, kind in KINDS[version].items()
                ],
            }
        namespace, plural = rest[1], rest[2]
        kind = KINDS[version][plural]
        if len(rest) == 3 and method == "GET":
            wanted = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
            items = [
                stored
                for key, stored in self.objects.items()
                if key[:2] == (plural, namespace)
                and wanted.items() <= stored["metadata"].get("labels", {}).items()
            ]
            return {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items}
        name = rest[3] if len(rest) > 3 else body["metadata"]["name"]
        key = (plural, namespace, name)
        old = self.objects.get(key)
        match method:
            case "POST" if old:
                raise Refused(409, "AlreadyExists", f"{plural} {name} already exists")
            case "POST":
                return self.store(key, body, None)
            case "PATCH" if "apply-patch" in content_type:
                return self.store(key, body, old)
            case _ if not old:
                raise Refused(404, "NotFound", f"{plural} {name} not found")
            case "GET":
                return old
            case "PUT":
                return self.store(key, body, old)
            case "PATCH":
                return self.store(key, patched(old, body), old)
            case "DELETE":
                return self.objects.pop(key)
        raise Refused(405, "MethodNotAllowed", method)


def openapi(path):
    """Tells Helm 4 that objects are validated here (they are not), so that it does not ask for schemas."""
    if not path:
        versions = ["api/v1" if version == "v1" else f"apis/{version}" for version in KINDS]
        return {"paths": {version: {"serverRelativeURL": f"/openapi/v3/{version}"} for version in versions}}
    group, _, version = path.partition("/")[2].rpartition("/")
    patches = {
        f"/{path}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "operationId": f"patch{kind}",
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            }
        }
        for plural, kind in KINDS[path.partition("/")[2]].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "kinds", "version": "1"}, "paths": patches}


def patched(old, patch):
    """JSON merge patch; also of strategic ones, as far as they replace lists."""
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return patch
    new = dict(old)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            new.pop(key, None)
        else:
            new[key] = patched(old.get(key), value)
    return new


def handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self):
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            try:
                body = yaml.load(text, yaml.CSafeLoader) if text else None
                with cluster.lock:
                    code, answer = 200, cluster.answer(
                        self.command, url.path, parse_qs(url.query), self.headers.get("Content-Type", ""), body
                    )
            except Refused as refused:
                code = refused.code
                answer = {
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": str(refused), "reason": refused.reason, "code": code,
                }
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        def log_message(self, *_):
            pass

    return Handler
