"""What the pods would run, run here: the servers with the environment and files that the chart gives them, then the
commands of its Jobs, with this machine's paths and ports in place of the cluster's."""

import base64
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from rules import containers, kind

PASSWORD = "a password of these checks only"


def run(command, environment, timeout=120):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def said(done):
    return f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()[-400:]}"


def knows(mallard, *words):
    """Whether this binary's help for a command names an option."""
    command, option = words
    return option in run([mallard, command, "--help"], {}).stdout


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Pod:
    """The files and the environment of a StatefulSet's container, under a directory."""

    def __init__(self, thing, objects, directory):
        template = thing["spec"]["template"]
        self.container = next(c for c in template["spec"]["containers"] if c["name"] == "mallard")
        self.directory = directory
        self.name = thing["metadata"]["name"]
        for mount in self.container["volumeMounts"]:
            self.local(mount["mountPath"], make=True)
        maps = {thing["metadata"]["name"]: thing["data"] for thing in kind(objects, "ConfigMap")}
        mounts = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        for volume in template["spec"]["volumes"]:
            if "configMap" in volume and volume["name"] in mounts:
                for file, text in maps[volume["configMap"]["name"]].items():
                    (directory / mounts[volume["name"]].lstrip("/") / file).write_text(text)
        login = next(v for v in template["spec"]["volumes"] if v["name"] == "login")["secret"]
        for item in login["items"]:
            (directory / "run/mallard" / item["path"]).write_text(PASSWORD)
        users = directory / "etc/mallard-users"
        if users.exists():
            (users / "users.toml").write_text("")

    def local(self, path, make=False):
        here = self.directory / path.lstrip("/")
        if make:
            here.mkdir(parents=True, exist_ok=True)
        return str(here)

    def environment(self, **more):
        environment = {}
        for variable in self.container["env"]:
            value = variable.get("value", PASSWORD if "valueFrom" in variable else None)
            if value.startswith(("/data/", "/tmp/", "/etc/mallard", "/run/mallard/")):
                value = self.local(value)
            environment[variable["name"]] = re.sub(r"\$\((\w+)\)", "this", value)
        config = self.directory / "etc/mallard/mallard.toml"
        config.write_text(config.read_text().replace('"/etc/', f'"{self.directory}/etc/'))
        return environment | more


def check_configuration(mallard, objects, directory):
    """`mallard config check` in the place of each server."""
    for thing in kind(objects, "StatefulSet"):
        pod = Pod(thing, objects, directory / thing["metadata"]["name"])
        done = run([mallard, "config", "check"], pod.environment())
        if done.returncode:
            yield f"{pod.name}: {said(done)}"


@contextlib.contextmanager
def servers(mallard, objects, directory):
    """Runs `mallard serve` as each StatefulSet would; a map from the URI in the cluster to (URI here, pod, admin)."""
    running, places = [], {}
    try:
        for thing in kind(objects, "StatefulSet"):
            pod = Pod(thing, objects, directory / thing["metadata"]["name"])
            flight, admin = free_port(), free_port()
            environment = pod.environment(
                MALLARD__SERVER__LOCATION=f"grpc://127.0.0.1:{flight}",
                MALLARD__ADMIN__LISTEN=f"127.0.0.1:{admin}",
            )
            log = open(directory / f"{pod.name}.log", "w")
            running.append(
                (pod, subprocess.Popen([mallard, *pod.container["args"]], env=environment, stdout=log, stderr=log))
            )
            places[f"grpc://{pod.name}.ns.svc:8815"] = (f"grpc://127.0.0.1:{flight}", pod, f"http://127.0.0.1:{admin}")
        yield places
    finally:
        for _, process in running:
            process.send_signal(signal.SIGTERM)
            # The second signal does not wait for the drain.
            process.send_signal(signal.SIGTERM)
        for _, process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def answers(url, patience=0.0):
    """The status of a probe, which may take a while to become 200."""
    end = time.monotonic() + patience
    while True:
        try:
            status = urllib.request.urlopen(url, timeout=5).status
        except urllib.error.HTTPError as error:
            status = error.code
        except OSError as error:
            status = str(error)
        if status == 200 or time.monotonic() > end:
            return status
        time.sleep(0.1)


def check_probes(places):
    for _, pod, admin in places.values():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = pod.container[probe]["httpGet"]["path"]
            status = answers(admin + path, patience=30)
            if status != 200:
                yield f"{pod.name}: {probe} {path} answers {status}"


def check_job(mallard, job, places, directory):
    """Runs the containers of a Job in their order."""
    template = job["spec"]["template"]
    for container in containers(template):
        arguments = container["args"]
        for uri, (here, _, _) in places.items():
            arguments = [argument.replace(uri, here) for argument in arguments]
        login = directory / "password"
        login.write_text(PASSWORD)
        environment = {variable["name"]: variable.get("value", "this") for variable in container["env"]}
        environment["MALLARD_PASSWORD_FILE"] = str(login)
        done = run([mallard, *arguments], environment)
        if done.returncode:
            yield f"Job/{job['metadata']['name']}: {container['name']}: {' '.join(arguments)}: {said(done)}"


def check_notes(mallard, notes, places):
    """The command that NOTES.txt runs within the first server's container."""
    line = next(line for line in notes.splitlines() if " exec " in line and " -- mallard " in line)
    here, pod, _ = next(iter(places.values()))
    _, *arguments = shlex.split(line.partition(" -- ")[2].replace("grpc://127.0.0.1:8815", here))
    done = run([mallard, *arguments], pod.environment())
    if done.returncode or pod.name not in line:
        yield f"{line.strip()}: {said(done)}"


def decoded(secret, key):
    return base64.b64decode(secret["data"][key]).decode()


def executable(path):
    return os.access(path, os.X_OK)
