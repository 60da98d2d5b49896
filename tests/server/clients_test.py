"""Clients of OpenAI's API that others wrote, each skipped where it is not installed (tools/test-venv clients)."""

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from conftest import Client, tool

CAPITALS = [("France", ["Paris", "Rome", "Cairo"], 0), ("Egypt", ["Paris", "Rome", "Cairo"], 2),
            ("Japan", ["Warsaw", "Tokyo", "Vienna"], 1), ("Poland", ["Warsaw", "Tokyo", "Vienna"], 0)]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
"""
CHOICE_TASK = """output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
"""
CHAT_TASK = """output_type: generate_until
doc_to_text: "What is the capital of {{country}}?"
doc_to_target: "{{choices[label]}}"
generation_kwargs:
  max_gen_toks: 24
  until: ["\\n\\n"]
filter_list:
  - name: city
    filter:
      - function: regex
        regex_pattern: "(Paris|Rome|Cairo|Warsaw|Tokyo|Vienna)"
      - function: take_first
metric_list:
  - metric: exact_match
"""


def run(*command, timeout=900, env=None, cwd=None):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, cwd=cwd,
                            env={**os.environ, **(env or {})})
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def lm_eval_result(server, tmp_path, model, path, task, *options):
    """The results of a task on CAPITALS."""
    lm_eval = tool("lm_eval")
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps({"country": c, "choices": names, "label": i}) + "\n" for c, names, i in CAPITALS))
    (tmp_path / "task.yaml").write_text(TASK.format(name="kivi_capitals", data=data) + task)
    arguments = f"model=smollm2-135m,base_url={server.url}{path},num_concurrent=4"
    run(lm_eval, "--model", model, "--model_args", arguments, "--tasks", "kivi_capitals", "--include_path", tmp_path,
        "--output_path", tmp_path / "out", *options, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")})
    server.expect_idle()
    return json.loads(next((tmp_path / "out").rglob("*.json")).read_text())["results"]["kivi_capitals"]


def test_lm_eval_scores_choices(server, tmp_path):
    result = lm_eval_result(server, tmp_path, "local-completions", "/v1/completions,tokenizer_backend=remote", CHOICE_TASK)
    assert result["acc,none"] >= 0.75


def test_lm_eval_reads_chat_answers(server, tmp_path):
    result = lm_eval_result(server, tmp_path, "local-chat-completions", "/v1/chat/completions", CHAT_TASK,
                            "--apply_chat_template")
    assert result["exact_match,city"] >= 0.75


def byte_tokenizer(folder):
    """One token a byte: what aiperf makes prompts of a length with. Tokens are counted by the server."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def aiperf(server, tmp_path, *options):
    """Loads the server with 8 streams at a time; what the client and its reader of /metrics have seen."""
    command = [tool("aiperf"), "profile", "--model", "smollm2-135m", "--url", server.url, "--streaming",
               "--tokenizer", byte_tokenizer(tmp_path / "tokenizer"), "--use-server-token-count",
               "--concurrency", 8, "--prompt-input-tokens-mean", 200, "--prompt-output-tokens-mean", 16,
               "--extra-inputs", "ignore_eos:true", "--output-artifact-dir", tmp_path / "out",
               "--no-gpu-telemetry", "--ui", "none", "--workers-max", 1, "--record-processors", 1, "--random-seed", 1]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    run(*command, *options, env=nowhere, cwd=tmp_path)
    server.expect_idle()
    return [json.loads((tmp_path / "out" / name).read_text())
            for name in ("profile_export_aiperf.json", "server_metrics_export.json")]


def test_aiperf_loses_no_request(server, tmp_path):
    seen, scraped = aiperf(server, tmp_path, "--endpoint-type", "chat", "--request-count", 32)
    assert seen["error_summary"] == [] and seen["request_count"]["avg"] == 32
    assert seen["usage_completion_tokens"]["min"] == seen["usage_completion_tokens"]["max"] == 16
    # The server has counted the same, and aiperf reads its metrics.
    counted = scraped["metrics"]["vllm:generation_tokens"]["series"][0]["stats"]["total"]
    assert counted == seen["total_usage_completion_tokens"]["avg"] == 32 * 16
    assert scraped["metrics"]["vllm:time_to_first_token_seconds"]["series"][0]["stats"]["count"] == 32


def test_aiperf_cancels_requests(server, tmp_path):
    seen, _ = aiperf(server, tmp_path, "--endpoint-type", "completions", "--request-count", 24,
                     "--request-cancellation-rate", 50, "--request-cancellation-delay", 0.2)
    errors = {error["error_details"]["type"]: error["count"] for error in seen["error_summary"]}
    assert set(errors) == {"RequestCancellationError"}
    assert seen["request_count"]["avg"] + errors["RequestCancellationError"] == 24


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
    front = Client(port)
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
