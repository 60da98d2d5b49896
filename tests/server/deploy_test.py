"""The examples of deploy/: by the tools that know their formats, and against a server that runs.

What needs a package of tools/test-venv clients is skipped where it is not installed."""

import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import KIVI, MODEL, ROOT, Client, tool

DEPLOY = ROOT / "deploy"
# What Debian's smallest image has.
IN_THE_IMAGE = {"libc6", "libgcc-s1", "libstdc++6"}


def check(*command, **options):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_dockerfile_has_no_finding():
    check(tool("hadolint"), DEPLOY / "Dockerfile")


def package_of(library):
    # Debian's lists have paths from before /lib became a link to /usr/lib.
    return check("dpkg", "-S", "*" + os.path.realpath(library).removeprefix("/usr")).split(":")[0]


def test_image_has_the_libraries_of_the_program():
    image = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").split("FROM debian:12-slim")[-1]
    if platform.freedesktop_os_release().get("VERSION_CODENAME") != "bookworm":
        pytest.skip("the image's Debian has to say which package a library is in")
    installed = set(re.search(r"--no-install-recommends([^&]*)&&", image)[1].split())
    needed = re.findall(r"NEEDED.*\[(.*)\]", check("readelf", "-d", KIVI))
    paths = dict(re.findall(r"(\S+) => (/\S+)", check("ldd", KIVI)))
    owners = {name: package_of(paths[name]) for name in needed if name in paths}
    assert set(owners.values()) - IN_THE_IMAGE <= installed, owners


def kubernetes_objects():
    yaml = pytest.importorskip("yaml")
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def test_kubernetes_objects_are_of_the_schema():
    check(tool("kubernetes-validate"), "--strict", DEPLOY / "kubernetes.yaml")


def test_kubernetes_starts_and_asks_a_server_as_it_is(start):
    objects = kubernetes_objects()
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    args = container["args"]
    assert args[:2] == ["-m", "/models/model.gguf"]  # the fixture gives another one
    server = start(*args[2:], env={variable["name"]: "secret" for variable in container["env"]})
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        server.get(container[probe]["httpGet"]["path"])
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.get("/v1/models")
    grace = float(args[args.index("--shutdown-timeout") + 1]) + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > grace
    # Deployment, service and image agree.
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    port = container["ports"][0]
    assert f"EXPOSE {port['containerPort']}\n" in dockerfile
    assert f"USER {pod['securityContext']['runAsUser']}\n" in dockerfile
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels == objects["Deployment"]["spec"]["selector"]["matchLabels"]


def three_free_ports():
    """The first of three neighbours."""
    for first in range(20000, 30000, 3):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


def test_router_script_serves_and_ends(tmp_path):
    path = f"{os.path.dirname(tool('vllm-router'))}:{os.path.dirname(KIVI)}:{os.environ['PATH']}"
    port = three_free_ports()
    with (tmp_path / "log").open("w") as log:
        script = subprocess.Popen([DEPLOY / "router.sh", MODEL, "cache_aware", str(port)], stdout=log, stderr=log,
                                  env={**os.environ, "PATH": path})
    front, workers = Client(port), [Client(port + 1), Client(port + 2)]
    def answers():
        with contextlib.suppress(OSError):
            return front.post("/v1/completions", json.dumps({"model": "model", "prompt": "One,", "max_tokens": 2}))[0] == 200
    try:
        assert front.wait_until(answers), (tmp_path / "log").read_text()
    finally:
        script.send_signal(signal.SIGTERM)
        script.wait(60)
    for client in (front, *workers):
        with pytest.raises(OSError):
            client.get("/health")


def test_dashboard_asks_for_what_the_server_has(server):
    server.post("/v1/completions", json.dumps({"prompt": "One,", "max_tokens": 3}))
    server.expect_idle()
    text = server.get("/metrics")
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 0
    asked = set()
    for target in (target for panel in panels for target in panel["targets"]):
        names = set(re.findall(r"\b(?:vllm|kivi):\w+", target["expr"]))
        labels = {label for by in re.findall(r"by \(([\w, ]+)\)", target["expr"]) for label in by.split(", ")}
        assert names, target
        for name in names:
            sample = re.search(rf"^{name}{{(.*)}} \S+$", text, re.M)
            assert sample and all(f'{label}="' in sample[1] for label in labels), target
        asked |= names
    # What people would miss if it were gone from the dashboard.
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "kivi:kv_bytes_packed"} <= asked
