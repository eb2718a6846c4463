"""Strict validation against the schemas of Kubernetes, as `kubernetes-validate --strict` does it, with the schemas of a
version read once. Kinds that Kubernetes itself does not have are not validated."""

import functools
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import referencing

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
FOREIGN = {"Certificate", "Gateway", "GRPCRoute", "PrometheusRule", "ServiceMonitor"}


def versions(since):
    found = [name.name[1:-len("-local-strict")] for name in SCHEMAS.glob("v*-local-strict")]
    numbers = sorted(tuple(map(int, name.split("."))) for name in found)
    return [".".join(map(str, number)) for number in numbers if number[:2] >= since]


@functools.cache
def definitions(version):
    directory = SCHEMAS / f"v{version}-local-strict"
    return referencing.Resource.from_contents(json.loads((directory / "_definitions.json").read_bytes()))


@functools.cache
def validator(version, api_version, kind):
    group, _, name = api_version.rpartition("/")
    file = f"{kind}-{group.split('.')[0]}-{name}.json" if group else f"{kind}-{name}.json"
    path = SCHEMAS / f"v{version}-local-strict" / file.lower()
    if not path.exists():
        return None
    schema = referencing.Resource.from_contents(json.loads(path.read_bytes()))
    registry = definitions(version) @ (schema @ referencing.Registry())
    return jsonschema.Draft202012Validator(schema.contents, registry=registry)


def problems(thing, version):
    name = f"{thing['kind']}/{thing['metadata']['name']}"
    if thing["kind"] in FOREIGN:
        return
    check = validator(version, thing["apiVersion"], thing["kind"])
    if check is None:
        yield f"{name}: Kubernetes {version} has no {thing['apiVersion']} {thing['kind']}"
        return
    for error in check.iter_errors(thing):
        yield f"{name}: Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:200]}"
