"""Helm 3 (the command) and Helm 4 (its SDK), and what they make of the chart."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import helm_python as helm
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "mallard"
NOTES = "mallard/templates/NOTES.txt"
# Beside secrets there is nothing random in what the chart renders.
RANDOM = re.compile(r"(?<=: )[A-Za-z0-9+/]{52,}={0,2}$", re.MULTILINE)


@contextlib.contextmanager
def quiet():
    """The SDK says of each symbolic link that it follows it."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Refused(Exception):
    """The chart does not take the values; the text says why."""


def load(path):
    return yaml.load(Path(path).read_text(), yaml.CSafeLoader) or {}


def objects(text):
    """Kubernetes objects in YAML documents. A key that is there twice is a mistake that YAML parsers pass over."""
    return [document for document in yaml.load_all(text, Strict) if document]


class Strict(yaml.CSafeLoader):
    pass


def mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {sorted(twice)}", node.start_mark)
    return yaml.CSafeLoader.construct_mapping(loader, node, deep=True)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


class Helm3:
    name = "Helm 3"

    def __init__(self, command):
        self.command = command

    def run(self, *arguments, stdin=None):
        done = subprocess.run([self.command, *map(str, arguments)], input=stdin, capture_output=True, text=True)
        said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("walk.go"))
        if done.returncode:
            raise Refused((said + "\n" + done.stdout).strip())
        return done.stdout

    def version(self):
        return self.run("version", "--short").strip()

    def render(self, values, kubernetes, release="rel"):
        """Text of all objects for these values and this version of Kubernetes."""
        return self.run("template", release, CHART, "--namespace", "ns", "--kube-version", kubernetes, "--values", "-",
                        stdin=yaml.safe_dump(values))

    def lint(self, values):
        text = self.run("lint", "--strict", CHART, "--values", "-", stdin=yaml.safe_dump(values))
        return [line for line in text.splitlines() if "[WARNING]" in line or "[ERROR]" in line]


class Helm4:
    name = "Helm 4"

    def __init__(self):
        with quiet():
            self.chart = helm.Chart.load(str(CHART))

    def version(self):
        return helm.helm_sdk_version()

    def templates(self, values, release="rel", validate=True):
        """Text of each template for these values, NOTES.txt included."""
        try:
            if validate:
                self.chart.validate_schema(values)
            return self.chart.render(values, name=release, namespace="ns")
        except helm.HelmError as error:
            raise Refused(str(error)) from None

    def render(self, values, release="rel"):
        templates = self.templates(values, release)
        return "\n---\n".join(text for path, text in templates.items() if path != NOTES)

    def kubernetes(self):
        """The version of Kubernetes that the SDK renders for when it has no cluster."""
        probe = {"apiVersion": "v1", "kind": "Probe", "version": "{{ .Capabilities.KubeVersion.Version }}"}
        text = self.templates({"extraObjects": [probe]})["mallard/templates/extraobjects.yaml"]
        return objects(text)[0]["version"].removeprefix("v")

    def lint(self, values, kubernetes):
        with quiet():
            found = helm.lint(str(CHART), values, strict=True, namespace="ns", kube_version=f"v{kubernetes}")
        return found["errors"] + [message["error"] for message in found["messages"] if message["severity"] > 1]
