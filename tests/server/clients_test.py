"""Clients of OpenAI's API that others wrote, each skipped where it is not installed (tools/test-venv clients)."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

CAPITALS = [("France", ["Paris", "Rome", "Berlin"], 0), ("Italy", ["Paris", "Rome", "Berlin"], 1),
            ("Germany", ["Paris", "Rome", "Berlin"], 2), ("Spain", ["Lisbon", "Madrid", "Vienna"], 1)]
TASK = """task: kivi_capitals
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
"""


def tool(name):
    if not (BIN / name).exists():
        pytest.skip(f"{name} is not installed")
    return str(BIN / name)


def run(*command, timeout=900, env=None, cwd=None):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, cwd=cwd,
                            env={**os.environ, **(env or {})})
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def test_lm_eval_scores(server, tmp_path):
    lm_eval = tool("lm_eval")
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps({"country": c, "choices": names, "label": i}) + "\n" for c, names, i in CAPITALS))
    (tmp_path / "capitals.yaml").write_text(TASK.format(data=data))
    arguments = f"model=smollm2-135m,base_url={server.url}/v1/completions,tokenizer_backend=remote,num_concurrent=4"
    run(lm_eval, "--model", "local-completions", "--model_args", arguments, "--tasks", "kivi_capitals", "--include_path",
        tmp_path, "--output_path", tmp_path / "out", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")})
    result = json.loads(next((tmp_path / "out").rglob("*.json")).read_text())
    assert result["results"]["kivi_capitals"]["acc,none"] >= 0.75
    server.expect_idle()


def test_schemathesis_finds_no_server_error(start, tmp_path):
    # A short context, so that no example runs for long.
    server = start("--max-model-len", 64)
    run(tool("schemathesis"), "run", server.url + "/openapi.json", "--checks", "not_a_server_error", "-n", 20,
        "--request-timeout", 120, cwd=tmp_path)
    server.expect_idle()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("policy", ["round_robin", "cache_aware"])
def test_a_router_outlives_a_server(start, policy):
    router = tool("vllm-router")
    servers = [start("--threads", 1, "--served-model-name", "model") for _ in range(2)]
    port = free_port()
    command = [router, "--host", "127.0.0.1", "--port", str(port), "--policy", policy, "--worker-urls"]
    process = subprocess.Popen(command + [server.url for server in servers], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    front = type(servers[0]).__new__(type(servers[0]))  # speaks to the router as to a server
    front.port, front.url, front.process = port, f"http://127.0.0.1:{port}", process
    def ask(n_tokens=4):
        body = {"model": "model", "prompt": "The capital of France is", "max_tokens": n_tokens, "temperature": 0,
                "ignore_eos": True}
        return front.post("/v1/completions", json.dumps(body))
    try:
        def answers():
            try:
                return ask()[0] == 200
            except OSError:
                return False
        assert front.wait_until(answers)
        for _ in range(6):
            status, body = ask()
            assert status == 200 and json.loads(body)["choices"][0]["text"].startswith(" Paris"), body
        if policy == "round_robin":
            assert all(server.metric("vllm:prompt_tokens_total") > 0 for server in servers)
        # One of them is killed in the middle of its answers; the other goes on.
        for _ in range(4):
            threading.Thread(target=ask, args=(200,), daemon=True).start()
        time.sleep(1)
        servers[0].process.kill()
        assert front.wait_until(answers)
        servers[1].expect_idle()
    finally:
        process.terminate()
        process.wait(30)
