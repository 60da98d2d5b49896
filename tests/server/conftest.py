"""A kivi server on a real model, for each test file or for one test."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KIVI = os.environ.get("KIVI", str(ROOT / "build/dev/bin/kivi"))
MODEL = ROOT / "models/smollm2-135m.gguf"
START_SECONDS = 120


def tool(name):
    """A program of tools/test-venv clients."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed")
    return str(path)


class Client:
    """Speaks to what listens on a port of this machine."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path, timeout=30):
        with urllib.request.urlopen(self.url + path, timeout=timeout) as response:
            return response.read().decode()

    def post(self, path, body, timeout=60):
        """The status and the body of the answer."""
        data = body if isinstance(body, bytes) else body.encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        """{name or name{labels}: value}."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if not line.startswith("#")]
        return {re.sub(r'model_name="[^"]*",?|,?model_name="[^"]*"', "", name).replace("{}", ""): float(value)
                for name, value in lines}

    def metric(self, name):
        return self.metrics()[name]

    def wait_until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.05)
        return False

    def raw(self):
        """A plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


class Server(Client):
    """A running server; what it writes goes to `log`."""

    def __init__(self, log, *args, env=None):
        self.log = Path(log)
        with self.log.open("w") as out:
            command = [KIVI, "serve", "-m", str(MODEL), "--port", "0", *map(str, args)]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        super().__init__(self._wait_for_port())

    def _wait_for_port(self):
        for _ in range(START_SECONDS * 10):
            found = re.search(r"serving \S+ at http://\S+:(\d+)", self.log.read_text())
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"the server does not start:\n{self.log.read_text()}")

    def expect_idle(self):
        """Nothing runs, no page is taken, and the process lives."""
        def idle():
            metrics = self.metrics()
            return (metrics["vllm:kv_cache_usage_perc"] == 0 and metrics["vllm:num_requests_running"] == 0
                    and metrics["vllm:num_requests_waiting"] == 0)
        assert self.wait_until(idle), self.get("/metrics")
        assert self.process.poll() is None

    def stop(self, sig=signal.SIGTERM, timeout=60):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)


def pytest_collection_modifyitems(items):
    if not MODEL.exists():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"{MODEL} is missing; tools/get-model fetches it"))


@contextlib.contextmanager
def running(log, *args, **options):
    server = Server(log, *args, **options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server") / "log") as one:
        yield one


@pytest.fixture
def start(tmp_path):
    """start(args...): a server of this test alone."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(running(tmp_path / f"log{time.monotonic_ns()}", *args, **options))
