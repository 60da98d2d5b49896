#!/usr/bin/env python3
"""Load on a running kivi server, from Python's standard library alone.

  load.py --pid PID --port 8000 streams --concurrency 500 --requests 1000 --tokens 64
  load.py --pid PID --port 8000 soak --concurrency 500 --seconds 600 --tokens 64
  load.py --port 8000 speedup --concurrency 64 --tokens 64

streams  every request must end with exactly its tokens: none lost, none doubled
soak     the same for a time; memory of the process is sampled
speedup  output tokens/s of many requests at once beside one at a time

With --pid, the CPU time of the server's own threads (kivi-http, kivi-text) is set against all of it. Writes one JSON object.
"""

import argparse
import asyncio
import json
import re
import time
import urllib.request
from pathlib import Path


def thread_seconds(pid):
    """CPU time by thread name."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            stat = (task / "stat").read_text()
        except OSError:
            continue
        name = stat[stat.index("(") + 1:stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2:].split()
        seconds[name] = seconds.get(name, 0) + (int(fields[11]) + int(fields[12])) / 100
    return seconds


def resident_mib(pid):
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        return response.read().decode()


def buckets(text, name):
    return {float(le): int(n) for le, n in re.findall(name + r'_bucket\{[^}]*le="([^"]+)"[^}]*\} (\d+)', text)}


def quantile(before, after, q):
    """The bucket's upper end under which q of a histogram's values lie that came between two readings."""
    counts = {le: n - before.get(le, 0) for le, n in after.items()}
    return next((le for le, n in counts.items() if n >= q * counts[float("inf")] > 0), None)


async def stream(port, prompt, n_tokens):
    """The text of one streamed request, after checking that it is whole."""
    body = json.dumps({"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                       "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body)
    data = (await reader.read()).decode()
    writer.close()
    head, _, events = data.partition("\r\n\r\n")
    assert " 200 " in head, data[:300]
    lines = [line[6:] for line in events.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == n_tokens, chunks[-1]
    assert len({chunk["id"] for chunk in chunks}) == 1
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


async def many(options, keep_going):
    """Runs requests at the concurrency as long as keep_going(n started); gives texts by prompt."""
    texts = {}
    n_started = 0
    n_other = 0
    async def worker():
        nonlocal n_started, n_other
        while keep_going(n_started):
            i = n_started
            n_started += 1
            prompt = f"Fact number {i % 16} about the sea:"
            text = await stream(options.port, prompt, options.tokens)
            # Greedy: the same prompt has the same answer, whatever runs beside it.
            is_other = texts.setdefault(prompt, text) != text
            assert options.gpu or not is_other, prompt
            n_other += is_other
    await asyncio.gather(*[worker() for _ in range(options.concurrency)])
    return n_started, n_other


def measured(options, run):
    before = thread_seconds(options.pid) if options.pid else {}
    delays = buckets(metrics(options.port), "kivi:write_delay_seconds")
    begin = time.monotonic()
    n, n_other = asyncio.run(run)
    seconds = time.monotonic() - begin
    result = {"requests": n, "concurrency": options.concurrency, "tokens_each": options.tokens,
              "seconds": round(seconds, 1), "output_tokens_per_s": round(n * options.tokens / seconds, 1)}
    delays_now = buckets(metrics(options.port), "kivi:write_delay_seconds")
    if options.gpu:
        result["texts_other_than_the_first"] = n_other
    for q in (0.5, 0.99, 0.999):
        result[f"write_delay_p{100 * q:g}_s_at_most"] = quantile(delays, delays_now, q)
    if options.pid:
        after = thread_seconds(options.pid)
        used = {name: after[name] - before.get(name, 0) for name in after}
        own = used.get("kivi-http", 0) + used.get("kivi-text", 0)
        result["cpu_seconds"] = {name: round(value, 2) for name, value in used.items()}
        result["server_share_of_cpu"] = round(own / max(sum(used.values()), 1e-9), 4)
        result["resident_mib"] = round(resident_mib(options.pid), 1)
    return result


def streams(options):
    return measured(options, many(options, lambda n: n < options.requests))


def soak(options):
    end = time.monotonic() + options.seconds
    samples = []
    async def run():
        async def sample():
            while time.monotonic() < end:
                samples.append(round(resident_mib(options.pid), 1))
                await asyncio.sleep(options.seconds / 20)
        sampler = asyncio.create_task(sample())
        counts = await many(options, lambda n: time.monotonic() < end)
        await sampler
        return counts
    return {**measured(options, run()), "resident_mib_over_time": samples}


def speedup(options):
    alone = argparse.Namespace(**{**vars(options), "concurrency": 1})
    one = measured(alone, many(alone, lambda n: n < max(4, options.concurrency // 8)))
    all_at_once = measured(options, many(options, lambda n: n < 2 * options.concurrency))
    return {"one_at_a_time": one, "together": all_at_once,
            "speedup": round(all_at_once["output_tokens_per_s"] / one["output_tokens_per_s"], 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["streams", "soak", "speedup"])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--gpu", action="store_true",
                        help="count answers that differ from the first one to their prompt, which is an error otherwise: a "
                             "GPU's sums, and so near ties, depend on the batch")
    options = parser.parse_args()
    if options.mode == "soak" and not options.pid:
        parser.error("soak: needs --pid")
    result = {"streams": streams, "soak": soak, "speedup": speedup}[options.mode](options)
    print(json.dumps({"mode": options.mode, **result}, indent=1))


if __name__ == "__main__":
    main()
