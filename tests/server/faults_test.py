"""Clients that misbehave, and servers that run out of something. After each nothing runs and no page is taken."""

import concurrent.futures
import json
import os
import random
import signal
import socket
import threading
import time

LONG = {"prompt": "Once upon a time", "max_tokens": 2000, "temperature": 0, "ignore_eos": True, "stream": True}
SHORT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}


def http(path, body, length=None):
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data) if length is None else length}\r\n\r\n".encode() + data


def read_until(connection, marker):
    data = b""
    while marker not in data:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return data


def completes(server):
    status, body = server.post("/v1/completions", json.dumps(SHORT))
    assert status == 200, body
    return json.loads(body)["choices"][0]["text"]


def test_a_client_that_vanishes_stops_its_request(server):
    for stream in (True, False):
        connection = server.raw()
        connection.sendall(http("/v1/completions", {**LONG, "stream": stream}))
        assert server.wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
        before = server.metric("vllm:generation_tokens_total")
        connection.close()
        server.expect_idle()
        assert server.metric("vllm:generation_tokens_total") - before < 1000
    completes(server)


def test_half_sent_requests_disturb_nobody(server):
    halves = [server.raw() for _ in range(50)]
    for i, connection in enumerate(halves):
        whole = http("/v1/completions", SHORT)
        connection.sendall(whole[:len(whole) * (i + 1) // 51])
    completes(server)
    for connection in halves:
        connection.close()
    server.expect_idle()


def test_a_slow_reader_stalls_nobody(server):
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    slow.sendall(http("/v1/completions", {**LONG, "logprobs": 20}))  # reads nothing from here on
    assert server.wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    for _ in range(3):
        completes(server)
    slow.close()
    server.expect_idle()


def test_many_idle_connections(server):
    idle = []
    for _ in range(10000):
        try:
            idle.append(server.raw())
        except OSError:  # of this process: the server's own limit is lower
            break
    assert len(idle) >= min(10000, os.sysconf("SC_OPEN_MAX") - 100)
    completes(server)
    for connection in idle:
        connection.close()
    server.expect_idle()


def test_a_huge_body_is_refused_unread(server):
    connection = server.raw()
    connection.sendall(http("/v1/completions", b"{", length=1 << 30))
    assert b" 413 " in read_until(connection, b"}}")
    completes(server)
    server.expect_idle()


def test_random_bodies(server):
    generator = random.Random(7)
    values = [None, True, -1, 0, 1, 1e308, -1e308, 2**63, "", "x", "\u0000", [], {}, [[]], [1, "a"], {"a": [None]}]
    fields = ["model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stream", "stop", "seed",
              "logprobs", "echo", "logit_bias", "stream_options", "min_tokens", "stop_token_ids", "tokens", "tools"]
    paths = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
    for i in range(1000):
        path = paths[i % len(paths)]
        if i % 3 == 0:
            body = bytes(generator.randrange(256) for _ in range(generator.randrange(200)))
        else:
            body = {generator.choice(fields): generator.choice(values) for _ in range(generator.randrange(6))}
            body = json.dumps({"prompt": "x", "max_tokens": 1, **body})
        if i % 3 == 1:  # broken somewhere
            at = generator.randrange(len(body) + 1)
            body = body[:at] + generator.choice(["", "}", "\"", "[", "\\u12"]) + body[at + 1:]
        status, answer = server.post(path, body)
        assert status < 500, (path, body, answer)
        assert status == 200 or json.loads(answer)["error"]["message"], (path, body)
    server.expect_idle()


def test_a_full_queue_answers_at_once(start):
    server = start("--max-num-seqs", 1, "--max-queue", 1)
    busy = [server.raw() for _ in range(2)]
    for connection in busy:
        connection.sendall(http("/v1/completions", LONG))
    assert server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1)
    begin = time.monotonic()
    status, body = server.post("/v1/completions", json.dumps(SHORT))
    assert status == 503 and json.loads(body)["error"]["code"] == "queue_full"
    assert time.monotonic() - begin < 1
    for connection in busy:
        connection.close()
    server.expect_idle()
    completes(server)


def test_a_full_cache_preempts_and_completes(start):
    # A token takes 22.5 KiB in 16 bits. Room for 1,650 of them is enough for as far as the scheduler looks ahead, 512 for
    # each of three, but not for the end.
    server = start("--kv", "f16", "--kv-memory", 0.0355, "--max-model-len", 1000)
    request = {"prompt": "Once upon a time there was", "max_tokens": 560, "temperature": 0, "ignore_eos": True}
    alone = json.loads(server.post("/v1/completions", json.dumps(request))[1])["choices"][0]["text"]
    request["n"] = 3
    status, body = server.post("/v1/completions", json.dumps(request), timeout=300)
    assert status == 200, body
    assert {choice["text"] for choice in json.loads(body)["choices"]} == {alone}
    assert server.metric("vllm:num_preemptions_total") >= 1
    server.expect_idle()


def test_identical_alone_and_among_others(start):
    server = start("--max-num-seqs", 64)
    prompts = [f"Question {i}: how far is the moon? Answer:" for i in range(64)]
    prompts[40] = "The weather is fine. " * 150  # longer than a step
    def ask(prompt):
        body = json.dumps({"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True})
        status, answer = server.post("/v1/completions", body, timeout=300)
        assert status == 200, answer
        return json.loads(answer)["choices"][0]["text"]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, prompts))
    for i in (0, 17, 40, 63):
        assert ask(prompts[i]) == together[i], i
    server.expect_idle()


def test_a_long_prompt_lets_others_go_on(start):
    server = start("--step-tokens", 128)
    words = "The weather is fine today and we walk. " * 150  # some 1,350 tokens
    connection = server.raw()
    connection.sendall(http("/v1/completions", {**LONG, "max_tokens": 400}))
    read_until(connection, b"data: ")
    tokens_before = server.metric("vllm:generation_tokens_total")
    answer = {}
    def prefill():
        answer["status"], _ = server.post("/v1/completions", json.dumps({"prompt": words, "max_tokens": 1}), timeout=300)
    thread = threading.Thread(target=prefill)
    thread.start()
    thread.join()
    assert answer["status"] == 200
    # 10 steps at least, each with a token of the other stream.
    assert server.metric("vllm:generation_tokens_total") - tokens_before >= 10
    connection.close()
    server.expect_idle()


def test_terminating_drains(start):
    server = start()
    results = []
    def ask():
        results.append(server.post("/v1/completions", json.dumps({**SHORT, "max_tokens": 60, "ignore_eos": True})))
    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    assert server.wait_until(lambda: server.metric("vllm:num_requests_running") == 12)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    for thread in threads:
        thread.join()
    assert [status for status, _ in results] == [200] * 12
    assert all(json.loads(body)["usage"]["completion_tokens"] == 60 for _, body in results)


def test_a_second_signal_stops_at_once(start):
    server = start()
    connection = server.raw()
    connection.sendall(http("/v1/completions", {**LONG, "max_tokens": 8000}))
    assert server.wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0


def test_the_shutdown_timeout_cuts_off(start):
    server = start("--shutdown-timeout", 1)
    connection = server.raw()
    connection.sendall(http("/v1/completions", {**LONG, "max_tokens": 8000}))
    assert server.wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    server.process.send_signal(signal.SIGTERM)
    assert b'"finish_reason":"abort"' in read_until(connection, b"[DONE]")
    assert server.process.wait(10) == 0
